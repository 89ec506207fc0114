"""Computed pictures, bit for bit the same on every machine, to check a network on the device.

So a bundle carries nobody's photographs and spends no space on them: a seed and a count define the pictures.
All arithmetic is on whole numbers; docs/bundle.md specifies it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["NAME", "check_pictures"]

NAME = "value-noise-1"  # another method must get another name
_CELLS = (64, 32, 16, 8, 4, 2, 1)  # pixels between the random values of each layer
# The weight of each layer: smooth, natural, busy, and mostly fine grain, in turn.
_WEIGHTS = ((16, 8, 4, 2, 0, 0, 0), (8, 8, 6, 4, 3, 2, 1), (2, 4, 8, 8, 8, 4, 2), (4, 2, 1, 2, 4, 8, 16))
_CONTRAST = (32, 24, 12, 4)  # in sixteenths; the next one with every fourth picture

UInt8Array = npt.NDArray[np.uint8]
UInt64Array = npt.NDArray[np.uint64]


def check_pictures(count: int, size: int, seed: int = 0) -> UInt8Array:
    """Make ``count`` pictures, uint8 (count, size, size, 3), of different smoothness and contrast."""
    return np.stack([_picture(seed, index, size) for index in range(count)])


def _picture(seed: int, index: int, size: int) -> UInt8Array:
    weights, total = _WEIGHTS[index % 4], np.zeros((3, size, size), np.int32)
    for layer, (cell, weight) in enumerate(zip(_CELLS, weights, strict=True)):
        if weight:
            total += weight * _layer(seed * 1_000_003 + index * 101 + layer, cell, size)
    value = total // sum(weights) - 128  # -128..127, a mean near 0
    value = value * _CONTRAST[index // 4 % 4] // 16 + 128
    return np.ascontiguousarray(np.clip(value, 0, 255).astype(np.uint8).transpose(1, 2, 0))


def _layer(stream: int, cell: int, size: int) -> npt.NDArray[np.int32]:
    """Random values 0..255 on a grid, interpolated linearly: int32 (3, size, size)."""
    side = size // cell + 2
    grid = (_random(stream, side * side * 3) >> np.uint64(56)).reshape(side, side, 3).transpose(2, 0, 1)
    if cell == 1:
        plain: npt.NDArray[np.int32] = grid[:, :size, :size].astype(np.int32)
        return plain
    # As matrix products, which float32 computes exactly: whole numbers of at most 255 * 64 * 64 < 2 ** 24.
    at = np.arange(size)
    blend = np.zeros((size, side), np.float32)
    blend[at, at // cell], blend[at, at // cell + 1] = cell - at % cell, at % cell
    both: npt.NDArray[np.int32] = (blend @ grid.astype(np.float32) @ blend.T).astype(np.int32)
    return both // (cell * cell)


def _random(stream: int, count: int) -> UInt64Array:
    """SplitMix64 (Steele et al., 2014), its counter starting at ``stream`` times 2 ** 32."""
    z = np.uint64(stream << 32) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: UInt64Array = z ^ (z >> np.uint64(31))
    return mixed
