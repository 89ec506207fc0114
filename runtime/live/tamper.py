"""A camera that is covered, turned away, out of focus or blinded: its picture beside its usual one.

A frame is reduced to 160 x 96 grey pixels, and the median of some seconds of them is compared with a
reference in 60 tiles, of which only those count that have texture and are usually still. The comparison is a
correlation, of grey values or of gradients, so that neither light nor its colour matters: dusk and infrared
keep the edges.
"""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Mapping
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["Tamper", "TamperKind"]

UInt8Array = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]
TamperKind = Literal["covered", "moved", "blurred", "dark", "bright"]

_WIDTH, _HEIGHT = 160, 96
_ROWS, _COLUMNS = 6, 10
_TILE = 16  # pixels
_EVERY_S = 0.5  # between frames looked at
_FRAMES = 5  # behind a median: who walks through the picture within two seconds vanishes
_TEXTURE = 3.0  # grey levels of standard deviation: a tile with less shows nothing to recognise
_STILL = 0.6  # usual correlation of a tile that counts: a conveyor belt does not
_FEWEST = 5  # tiles that count; with fewer, the scene is too plain to say covered or moved
_SAME = 0.5  # correlation of a tile that still shows what it did
_CHANGED = 0.6  # share of changed tiles: a lorry at the kerb covers less
_CALM = 0.25  # share of changed tiles up to which the reference follows
_FOLLOW = 0.02  # a frame: the reference is some 25 seconds old
_SLOTS = 12  # references kept on disk, two hours apart
_SOFT = 0.45  # of its fine detail: a picture that lost more is out of focus
_WHITE = 245  # grey level
_GLARE = 0.25  # more of the picture than usual is white
_ALIGNED = 0.4  # correlation of the gradients, once the shift is undone
_GLOOM = 0.35  # of the usual light


class Tamper:
    """Watches the picture of one camera. Not thread-safe."""

    HOLD_S = 3.0  # a change must last this long
    CLEAR_S = 8.0  # and its end this long: who covers a lens moves about

    def __init__(self) -> None:
        self._frames: deque[UInt8Array] = deque(maxlen=_FRAMES)
        self._reference: FloatArray | None = None
        self._fine: FloatArray | None = None  # usual fine detail of each tile
        self._still = np.ones(_ROWS * _COLUMNS, np.float32)  # usual correlation of each tile
        self._white = 0.0  # usual share of white pixels
        self._slots: dict[int, UInt8Array] = {}
        self._last = float("-inf")
        self._kind: TamperKind | None = None
        self._next: TamperKind | None = None
        self._since = 0.0

    def step(self, now: float, at: float, image: UInt8Array, learn: bool = True) -> TamperKind | None:
        """Look at a frame.

        Args:
            now: monotonic seconds.
            at: seconds since 1970.
            image: uint8 (H, W, 3) BGR.
            learn: nothing else is wrong with the camera.

        Returns:
            What is wrong with its picture now; None: nothing, or not known yet.
        """
        if now - self._last < _EVERY_S:
            return self._kind
        self._last = now
        large = cv2.resize(image, (2 * _WIDTH, 2 * _HEIGHT), interpolation=cv2.INTER_AREA)
        grey = cv2.cvtColor(large, cv2.COLOR_BGR2GRAY)
        small = cv2.resize(grey, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_AREA)
        self._frames.append(small.astype(np.uint8))
        if len(self._frames) < _FRAMES:
            return self._kind
        picture = np.median(np.stack(self._frames), axis=0).astype(np.float32)
        fine = _fine(grey.astype(np.uint8))
        if self._reference is None:
            slot = self._slots.get(_slot(at))
            self._reference = picture if slot is None else slot.astype(np.float32)
            self._fine = fine if slot is None else self._fine
        if self._fine is None:
            self._fine = fine
        kind, alike = self._judge(picture, fine, at)
        # One alarm for one fault: the first name stays, whatever the picture turns into meanwhile.
        if self._kind is not None and kind is not None:
            kind = self._kind
        if kind != self._next:
            self._next, self._since = kind, now
        if kind != self._kind and now - self._since >= (self.CLEAR_S if kind is None else self.HOLD_S):
            self._kind = kind
        if kind is None and self._kind is None and learn:
            self._learn(picture, fine, alike, at)
        return self._kind

    def accept(self) -> None:
        """Make the present picture the reference."""
        self._reference, self._fine, self._kind, self._next = None, None, None, None
        self._still[:] = 1.0
        self._slots.clear()

    def _judge(
        self, picture: FloatArray, fine: FloatArray, at: float
    ) -> tuple[TamperKind | None, FloatArray]:
        """What is wrong, and how much each tile is like its reference."""
        reference = self._reference
        assert reference is not None and self._fine is not None
        alike = _alike(picture, reference)
        texture = _spread(reference)
        counted = (texture >= _TEXTURE) & (self._still >= _STILL)
        light, usual = float(picture.mean()), float(reference.mean())
        coarse = _correlation(_blurred(picture), _blurred(reference))
        if float((picture > _WHITE).mean()) > self._white + _GLARE:
            return "bright", alike
        if light < _GLOOM * usual and coarse < 0.6:
            return "dark", alike
        if counted.sum() < _FEWEST:
            return None, alike
        changed = float((alike[counted] < _SAME).mean())
        contrast = float(picture.std()) / max(1.0, float(reference.std()))
        detail = np.median(fine[counted] / np.maximum(self._fine[counted], 0.1)) / max(0.05, contrast)
        if coarse > 0.85 and detail < _SOFT:
            return "blurred", alike
        if changed < _CHANGED:
            return None, alike
        slot = self._slots.get(_slot(at))
        if slot is not None:
            then = _alike(picture, slot.astype(np.float32))[counted]
            if float((then < _SAME).mean()) < _CALM:  # the lights are off, as always at this hour
                return None, alike
        if _shifted(picture, reference):
            return "moved", alike
        # What is close to the lens is out of focus or plain, and may leave a part of the scene as it was.
        # A camera that was turned shows another scene, as sharp as the first.
        sharp = float(fine.mean() / max(0.1, self._fine.mean()))
        plain = float(np.median(_spread(picture)[counted])) < _TEXTURE
        intact = float((alike[counted] > 0.8).mean())
        return ("covered" if plain or sharp < 0.5 or intact > 0.15 else "moved"), alike

    def _learn(self, picture: FloatArray, fine: FloatArray, alike: FloatArray, at: float) -> None:
        assert self._reference is not None and self._fine is not None
        self._still += _FOLLOW * (alike - self._still)
        counted = (_spread(self._reference) >= _TEXTURE) & (self._still >= _STILL)
        if counted.any() and float((alike[counted] < _SAME).mean()) > _CALM:
            return
        self._reference = self._reference + _FOLLOW * (picture - self._reference)
        # Slower: a lens that fogs up within minutes is out of focus, too.
        self._fine = self._fine + 0.1 * _FOLLOW * (fine - self._fine)
        self._white += _FOLLOW * (float((picture > _WHITE).mean()) - self._white)
        slot = _slot(at)
        before = self._slots.get(slot)
        new = self._reference if before is None else 0.999 * before + 0.001 * self._reference
        self._slots[slot] = np.rint(new).astype(np.uint8)

    def to_json(self) -> dict[str, object]:
        """What must survive a restart: about 30 KB."""
        slots = {}
        for slot, picture in self._slots.items():
            _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 80])
            slots[str(slot)] = base64.b64encode(data.tobytes()).decode("ascii")
        return {
            "slots": slots,
            "still": np.round(self._still, 3).tolist(),
            "fine": None if self._fine is None else np.round(self._fine, 3).tolist(),
            "white": round(self._white, 4),
            "kind": self._kind,
        }

    def restore(self, data: Mapping[str, object]) -> None:
        """Take what :meth:`to_json` gave; what is damaged is learned again."""
        try:
            for slot, text in data["slots"].items():  # type: ignore[attr-defined]
                picture = cv2.imdecode(np.frombuffer(base64.b64decode(text), np.uint8), cv2.IMREAD_GRAYSCALE)
                if picture is not None and picture.shape == (_HEIGHT, _WIDTH):
                    self._slots[int(slot)] = picture.astype(np.uint8)
            still, fine = np.array(data["still"], np.float32), data["fine"]
            if still.shape == self._still.shape:
                self._still = still
            if fine is not None:
                self._fine = np.array(fine, np.float32).reshape(_ROWS * _COLUMNS)
            self._white = float(data["white"])  # type: ignore[arg-type]
            self._kind = self._next = data["kind"]  # type: ignore[assignment]
        except (KeyError, TypeError, ValueError, AttributeError):
            return


def _slot(at: float) -> int:
    return int(at // (86400 // _SLOTS)) % _SLOTS


def _tiles(picture: FloatArray, side: int = _TILE) -> FloatArray:
    """(60, pixels of a tile)."""
    split = picture.reshape(_ROWS, side, _COLUMNS, side).transpose(0, 2, 1, 3)
    tiles: FloatArray = split.reshape(_ROWS * _COLUMNS, side * side)
    return tiles


def _spread(picture: FloatArray) -> FloatArray:
    spread: FloatArray = _tiles(picture).std(axis=1)
    return spread


def _fine(grey: UInt8Array) -> FloatArray:
    """Fine detail of each tile: mean second difference at 320 x 192."""
    detail = np.abs(cv2.Laplacian(grey, cv2.CV_32F)).astype(np.float32)
    mean: FloatArray = _tiles(detail, 2 * _TILE).mean(axis=1)
    return mean


def _alike(picture: FloatArray, reference: FloatArray) -> FloatArray:
    """Correlation of each tile, of grey values or of gradients, whichever is higher."""
    return np.maximum(
        _rows_alike(_tiles(picture), _tiles(reference)),
        _rows_alike(_tiles(_gradient(picture)), _tiles(_gradient(reference))),
    )


def _blurred(picture: FloatArray) -> FloatArray:
    return cv2.blur(picture, (9, 9)).astype(np.float32)


def _gradient(picture: FloatArray) -> FloatArray:
    smooth = cv2.GaussianBlur(picture, (3, 3), 0)
    across, down = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
    return cv2.magnitude(across, down).astype(np.float32)


def _rows_alike(one: FloatArray, other: FloatArray) -> FloatArray:
    one = one - one.mean(axis=1, keepdims=True)
    other = other - other.mean(axis=1, keepdims=True)
    norm = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    alike: FloatArray = (one * other).sum(axis=1) / np.maximum(norm, 1e-3)
    return alike


def _correlation(one: FloatArray, other: FloatArray) -> float:
    return float(_rows_alike(one.reshape(1, -1), other.reshape(1, -1))[0])


def _shifted(picture: FloatArray, reference: FloatArray) -> bool:
    """Whether the picture is the reference shifted by some pixels."""
    window = cv2.createHanningWindow((_WIDTH, _HEIGHT), cv2.CV_32F)
    before, after = _gradient(reference), _gradient(picture)
    (x, y), _ = cv2.phaseCorrelate(before, after, window)
    right, down = round(x), round(y)
    if max(abs(right), abs(down)) < 2 or abs(right) > _WIDTH // 2 or abs(down) > _HEIGHT // 2:
        return False
    old = before[max(0, -down) : _HEIGHT - max(0, down), max(0, -right) : _WIDTH - max(0, right)]
    new = after[max(0, down) : _HEIGHT + min(0, down), max(0, right) : _WIDTH + min(0, right)]
    return _correlation(np.ascontiguousarray(old), np.ascontiguousarray(new)) > max(
        _ALIGNED, _correlation(before, after) + 0.2
    )
