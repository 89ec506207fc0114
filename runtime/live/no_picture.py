"""Detects frames that show no scene: repeated, frozen, black and no-signal frames."""

from __future__ import annotations

import zlib
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = ["PictureCheck", "Verdict", "synthetic"]

UInt8Array = npt.NDArray[np.uint8]
Verdict = Literal["ok", "repeated", "frozen", "black", "no_signal"]

_SIDE = 64  # samples along each side: enough to recognise a scene, 12 KB to read
_BLACK = 24  # video black is 16 in limited range; sensors in the dark stay above it by their noise
_FLAT_SHARE = 0.97  # of the picture in one colour, the rest being a "NO SIGNAL" caption
_FLAT_SPREAD = 2  # levels by which a compressed flat colour varies
_OVEREXPOSED = 250  # a white picture is a bad picture of the scene, so it is scored


def synthetic(image: UInt8Array) -> Literal["black", "no_signal"] | None:
    """Whether an image, uint8 (H, W, 3), came from a recorder or a decoder instead of a lens; None: no.

    ``black``: nothing in it is brighter than video black. ``no_signal``: one flat colour (a blue screen, the
    grey of a decoder without reference frames), with or without a caption, or a test card of vertical bars.
    """
    sample = _sample(image)
    if int(sample.max()) <= _BLACK:
        return "black"
    middle = np.median(sample.reshape(-1, 3), axis=0)
    flat = np.all(np.abs(sample - middle) <= _FLAT_SPREAD, axis=2).mean()
    if flat >= _FLAT_SHARE and middle.min() < _OVEREXPOSED:
        return "no_signal"
    return "no_signal" if _is_test_card(sample) else None


def _sample(image: UInt8Array) -> npt.NDArray[np.int16]:
    rows = np.linspace(0, image.shape[0] - 1, min(_SIDE, image.shape[0])).astype(np.intp)
    columns = np.linspace(0, image.shape[1] - 1, min(_SIDE, image.shape[1])).astype(np.intp)
    return image[rows[:, None], columns].astype(np.int16)


def _is_test_card(sample: npt.NDArray[np.int16]) -> bool:
    """Colour bars: all rows of the upper half are alike, with six to nine flat steps."""
    upper = sample[2 : len(sample) // 2]
    if len(upper) < 4 or sample.shape[1] < 32:
        return False
    if np.percentile(np.ptp(upper, axis=0), 90) > 3 * _FLAT_SPREAD:
        return False
    row = np.median(upper, axis=0)
    jumps = np.abs(np.diff(row, axis=0)).max(axis=1) > 8 * _FLAT_SPREAD
    # Adjacent jumps are one blurred edge.
    edges = int(np.count_nonzero(jumps & ~np.concatenate([[False], jumps[:-1]])))
    still = np.abs(np.diff(row, axis=0)).max(axis=1) <= _FLAT_SPREAD
    return 5 <= edges <= 8 and float(still.mean()) > 0.7


class PictureCheck:
    """Checks the frames of one camera in order. Not thread-safe."""

    def __init__(self, freeze_after_s: float) -> None:
        """``freeze_after_s``: identical frames for this many seconds mean a frozen camera."""
        self._freeze_after_s = freeze_after_s
        self._shape: tuple[int, ...] = ()
        self._digest = 0
        self._first: Verdict = "ok"  # verdict on the first of the identical frames
        self._since = 0.0

    def __call__(self, image: UInt8Array, now: float) -> Verdict:
        """Judge a frame, uint8 (H, W, 3), that arrived at ``now`` (monotonic seconds).

        A frame equal to the previous one in every byte compared (some 256 whole rows) is ``repeated``: a
        camera sends that when a still scene is compressed hard, and the last score still holds. If it lasts,
        the camera is ``frozen``.
        """
        digest = zlib.crc32(image[:: max(1, len(image) // 256)].tobytes())
        if image.shape == self._shape and digest == self._digest:
            if self._first != "ok":
                return self._first
            return "frozen" if now - self._since >= self._freeze_after_s else "repeated"
        self._shape, self._digest, self._since = image.shape, digest, now
        self._first = synthetic(image) or "ok"
        return self._first
