"""The views of a picture: the whole squashed, and native crops at the picture's own pixels.

A squash of 4K to 244 pixels shows the scene and averages compression and noise away; a native crop shows
both as the camera made them. A model says how many crops it wants (:attr:`Preprocess.native`) and how the
views' logits become one (:class:`Aggregate`). Without crops there is only the whole, as for CLIP and in the
paper.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypedDict

import cv2
import numpy as np
import numpy.typing as npt

from grmp_edge.errors import BackendError

__all__ = [
    "EVEN",
    "Aggregate",
    "AggregateReport",
    "Box",
    "Views",
    "checked_logits",
    "cover",
    "crop",
    "logit",
    "sigmoid",
    "spread",
]

UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Box:
    """A native crop's place in its picture, in pixels; a picture smaller than the crop lies inside of it."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class Views:
    """What the network reads of one picture."""

    pixels: UInt8Array  # (1 + n, S, S, 3) RGB: the whole, then the crops
    boxes: tuple[Box, ...] = ()  # of the n crops

    def __post_init__(self) -> None:
        if len(self.pixels) != 1 + len(self.boxes):
            raise ValueError(f"{len(self.pixels)} views of a picture with {len(self.boxes)} boxes")


class AggregateReport(TypedDict):
    """An :class:`Aggregate` as bundles and checkpoints record it."""

    whole: float
    native: float
    shift: float


@dataclass(frozen=True)
class Aggregate:
    """A picture's logit from those of its views: whole * z_0 + native * mean(z_1..z_n) + shift.

    z_0 is the whole's; without crops it counts with both weights. The mean may be over other crops than those
    of the same frame: a camera keeps the last reading of each place.
    """

    whole: float = 1.0
    native: float = 0.0
    shift: float = 0.0

    def __call__(self, logits: Float64Array) -> Float64Array:
        """Combine views (1 + n, ...), the whole first, into one (...)."""
        native = logits[1:].mean(axis=0) if len(logits) > 1 else logits[0]
        combined: Float64Array = self.whole * logits[0] + self.native * native + self.shift
        return combined

    def to_json(self) -> AggregateReport:
        """Plain JSON."""
        return AggregateReport(whole=self.whole, native=self.native, shift=self.shift)


# For causes: darkness shows in the whole, noise in the crops, and each is as likely as the other.
EVEN = Aggregate(0.5, 0.5)


def checked_logits(logits: Float32Array, count: int) -> Float64Array:
    """What a graph gave for ``count`` views, (count, 1 + causes), unless these are no logits at all."""
    if logits.ndim != 2 or len(logits) != count or not np.isfinite(logits).all():
        raise BackendError(
            f"the graph gave logits {logits.shape} for {count} views, or some that are not numbers",
            "export the checkpoint again, or try another --precision or --provider",
        )
    return logits.astype(np.float64)


def logit(scores: npt.ArrayLike) -> Float64Array:
    """The inverse of :func:`sigmoid`: of any float32 in 0..1, a finite number that leads back to its bits."""
    inside = np.clip(np.asarray(scores, np.float64), 1e-300, 1.0 - 2.0**-53)
    return np.asarray(np.log(inside / (1.0 - inside)))


def sigmoid(logits: npt.ArrayLike) -> Float64Array:
    """Logits to 0..1, in float64."""
    bounded = np.clip(np.asarray(logits, np.float64), -700.0, 700.0)  # exp overflows beyond
    return np.asarray(1.0 / (1.0 + np.exp(-bounded)))


def spread(height: int, width: int, count: int, side: int) -> tuple[Box, ...]:
    """Crops of ``side`` pixels in the middles of ``count`` cells, in the grid that suits the frame's shape.

    Four are 2 x 2. Row by row; they overlap where the frame is small, and equal ones are given once.
    """
    if not count:
        return ()
    rows = min(
        (rows for rows in range(1, count + 1) if count % rows == 0),
        # The cells as square as can be; of a square number of crops, as many rows as columns.
        key=lambda rows: (
            abs(math.log(_cell_shape(height, width, rows, count // rows)))
            - (1.0 if rows * rows == count else 0.0)
        ),
    )
    columns = count // rows
    tops = [_middle(height, (row + 0.5) / rows, side) for row in range(rows)]
    lefts = [_middle(width, (column + 0.5) / columns, side) for column in range(columns)]
    return tuple(dict.fromkeys(_box(height, width, top, left, side) for top in tops for left in lefts))


def cover(height: int, width: int, side: int) -> tuple[Box, ...]:
    """The fewest crops of ``side`` pixels, evenly spread, that show every pixel of a frame. Row by row."""
    tops, lefts = (
        np.linspace(0, max(length - side, 0), max(1, math.ceil(length / side))).round().astype(int).tolist()
        for length in (height, width)
    )
    return tuple(_box(height, width, top, left, side) for top in tops for left in lefts)


def crop(image: UInt8Array, box: Box, side: int) -> UInt8Array:
    """Cut a box out of (H, W, 3) as (side, side, 3); a smaller picture is mirrored, not enlarged."""
    cut = image[box.top : box.top + box.height, box.left : box.left + box.width]
    down, right = side - box.height, side - box.width
    if not down and not right:
        return cut
    top, left = down // 2, right // 2
    mirrored = cv2.copyMakeBorder(cut, top, down - top, left, right - left, cv2.BORDER_REFLECT_101)
    return np.asarray(mirrored, dtype=np.uint8)


def _cell_shape(height: int, width: int, rows: int, columns: int) -> float:
    return (height / rows) / (width / columns)


def _middle(length: int, place: float, side: int) -> int:
    return min(max(round(place * length - side / 2), 0), max(length - side, 0))


def _box(height: int, width: int, top: int, left: int, side: int) -> Box:
    return Box(left, top, min(side, width), min(side, height))
