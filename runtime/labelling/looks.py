"""How pictures look, as numbers: what tells a new scene, light or fault from one that is there already."""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["LOOK_SIZE", "SAME", "distances", "look"]

UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]

_COLOURS, _CELLS, _BINS, _SCALES = 8, 4, 8, 3
LOOK_SIZE = _COLOURS * _COLOURS * 3 + _CELLS * _CELLS * _BINS + _SCALES
# Weights of the three parts, so that each is about 1 between two unlike scenes.
_COLOUR, _EDGE, _DETAIL = 5.0, 1.2, 0.35
# Below this distance two frames are one scene. By tests/field/looks.py: what noise, compression and the next
# second of an empty scene change lies below, what a passer-by, a blur or the lamps change lies above.
SAME = 0.12
_NATIVE = 512  # pixels a side: the middle, at its own size, where fine detail is measured


def look(image: UInt8Array, bgr: bool = True) -> Float32Array:
    """The looks of a picture, uint8 (H, W, 3) BGR (or RGB), float32 (LOOK_SIZE,).

    A small colour thumbnail, directions of edges in 4 x 4 places, and the fine detail at three scales: the
    same scene out of focus is another look. Euclidean distances are meant: see :data:`SAME`.
    """
    step = max(1, min(image.shape[:2]) // 256)  # averaging all of a 4K frame takes 60 ms, and tells no more
    small = cv2.resize(image[::step, ::step], (64, 64), interpolation=cv2.INTER_AREA)
    to_lab, to_grey = (
        (cv2.COLOR_BGR2LAB, cv2.COLOR_BGR2GRAY) if bgr else (cv2.COLOR_RGB2LAB, cv2.COLOR_RGB2GRAY)
    )
    lab = cv2.resize(cv2.cvtColor(small, to_lab), (_COLOURS, _COLOURS), interpolation=cv2.INTER_AREA)
    colour = lab.astype(np.float32).ravel() / 255 * (_COLOUR / _COLOURS)
    return np.concatenate([colour, _edges(cv2.cvtColor(small, to_grey)), _detail(image, to_grey)]).astype(
        np.float32
    )


def _edges(grey: npt.NDArray[np.generic]) -> Float32Array:
    """Histograms of gradient directions of (64, 64), as roots, so that their length is the weight."""
    plane = cv2.GaussianBlur(np.asarray(grey, np.float32), (0, 0), 1.0)
    dx, dy = cv2.Sobel(plane, cv2.CV_32F, 1, 0), cv2.Sobel(plane, cv2.CV_32F, 0, 1)
    strength = np.hypot(dx, dy)
    bins = np.minimum(((np.arctan2(dy, dx) + math.pi) / (2 * math.pi) * _BINS).astype(np.int64), _BINS - 1)
    place = np.arange(64) * _CELLS // 64
    cell = (place[:, None] * _CELLS + place[None, :]) * _BINS + bins
    sums = np.bincount(cell.ravel(), strength.ravel(), _CELLS * _CELLS * _BINS)
    # A floor: the noise of a plain picture must not count as edges.
    return np.asarray(_EDGE * np.sqrt(sums / (sums.sum() + 64 * 64 * 20.0)), np.float32)


def _detail(image: UInt8Array, to_grey: int) -> Float32Array:
    top, left = (max(0, side - _NATIVE) // 2 for side in image.shape[:2])
    plane = cv2.cvtColor(image[top : top + _NATIVE, left : left + _NATIVE], to_grey).astype(np.float32)
    levels = []
    for _ in range(_SCALES):
        levels.append(math.log2(1.0 + float(np.abs(cv2.Laplacian(plane, cv2.CV_32F)).mean())))
        plane = np.asarray(cv2.pyrDown(plane), np.float32)
    return np.asarray(levels, np.float32) * (_DETAIL / math.sqrt(_SCALES))


def distances(one: Float32Array, others: Float32Array) -> Float32Array:
    """Of (D,) from each of (n, D): (n,)."""
    return np.asarray(np.linalg.norm(others - one, axis=1), np.float32)
