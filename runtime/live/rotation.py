"""The native crops of a camera's frames: a few from each, which together show the whole frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from grmp_edge.preprocess import Preprocess
from grmp_edge.views import Box, Views, cover, crop

__all__ = ["Rotation"]

UInt8Array = npt.NDArray[np.uint8]
Float64Array = npt.NDArray[np.float64]

# When the whole's logit has moved by this much since a place was read, that reading is of another picture: a
# fault that covers everything must not wait until every place has been read again.
_OUTDATED = 0.7


@dataclass(frozen=True)
class _Reading:
    logits: Float64Array  # (1 + causes,)
    whole: float  # the whole's logit in that frame


class Rotation:
    """Which crops of which frame are read, and what was read of each place last. For the scoring thread.

    The crops are chosen when a frame is scored, not when it arrives: frames that are replaced before their
    turn would take crops with them, and with every second frame replaced, some places would never be read.
    """

    def __init__(self, preprocess: Preprocess, crops: int) -> None:
        """``crops`` of each frame; none if the bundle's model reads the whole alone."""
        self._side = preprocess.crop
        self._crops = crops if preprocess.native else 0
        self._boxes: tuple[Box, ...] = ()
        self._size, self._next = (0, 0), 0
        self._readings: dict[Box, _Reading] = {}

    def add(self, whole: Views, image: UInt8Array) -> Views:
        """The views of a frame, uint8 (H, W, 3) BGR: the ``whole``, and the crops whose turn it is."""
        height, width = image.shape[:2]
        if not self._crops:
            return whole
        if (height, width) != self._size:
            boxes = cover(height, width, self._side)
            # Neighbours far apart in time, so that a few frames already show all parts of the picture.
            step = _coprime(len(boxes))
            self._boxes = tuple(boxes[index * step % len(boxes)] for index in range(len(boxes)))
            self._size, self._next = (height, width), 0
        count = min(self._crops, len(self._boxes))
        chosen = [self._boxes[(self._next + index) % len(self._boxes)] for index in range(count)]
        self._next = (self._next + count) % len(self._boxes)
        crops = [crop(image, box, self._side)[None, :, :, ::-1] for box in chosen]
        return Views(np.concatenate([whole.pixels, *crops]), tuple(chosen))

    def complete(self, views: Views, logits: Float64Array) -> tuple[tuple[Box, ...], Float64Array]:
        """Add what is known of the frame's other places.

        Args:
            views: what :meth:`add` gave.
            logits: of these views, (1 + n, 1 + causes).

        Returns:
            All places with a valid reading, and the logits (1 + places, 1 + causes) of the whole and of them.
        """
        if not views.boxes:
            return (), logits
        whole = float(logits[0, 0])
        valid = {
            box: reading
            for box, reading in self._readings.items()
            if box in self._boxes and abs(reading.whole - whole) <= _OUTDATED
        }
        valid.update((box, _Reading(own, whole)) for box, own in zip(views.boxes, logits[1:], strict=True))
        self._readings = valid
        places = tuple(sorted(valid, key=lambda box: (box.top, box.left)))
        return places, np.stack([logits[0], *(valid[box].logits for box in places)])


def _coprime(count: int) -> int:
    """A step of about .62 of ``count`` that visits everything once."""
    step = max(1, round(count * 0.618))
    while np.gcd(step, count) != 1:
        step += 1
    return step
