"""Distortions of sharpness and place. Each takes and gives (H, W, 3) uint8 RGB."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from grmp_edge.train.pictures.distort_signal import Image, to_uint8

__all__ = [
    "color_block",
    "gaussian_blur",
    "high_sharpen",
    "jitter",
    "lens_blur",
    "motion_blur",
    "non_eccentricity_patch",
    "pixelate",
]

# Drawn in full at every level, so that the levels of one random state share their places.
_MOST_PATCHES = 120
_MOST_BLOCKS = 16


def _filter(image: Image, kernel: NDArray[np.float32]) -> Image:
    """Correlate with a kernel that is first normalised to sum 1."""
    kernel = kernel / kernel.sum()
    return np.asarray(cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101), np.uint8)


def gaussian_blur(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Gaussian blur of sigma ``strength`` pixels."""
    return np.asarray(cv2.GaussianBlur(image, (0, 0), strength), np.uint8)


def lens_blur(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Out-of-focus blur: a disk of radius ``strength`` with a soft rim."""
    reach = int(np.ceil(strength))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return _filter(image, np.clip(strength + 0.5 - np.hypot(x, y), 0, 1).astype(np.float32))


def motion_blur(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Blur along a straight path of ``strength`` pixels in a random direction."""
    angle = rng.uniform(0, np.pi)
    reach = int(np.ceil(strength / 2))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    along = x * np.cos(angle) + y * np.sin(angle)
    across = x * np.sin(angle) - y * np.cos(angle)
    path = np.clip(strength / 2 + 0.5 - np.abs(along), 0, 1) * np.clip(1 - np.abs(across), 0, 1)
    return _filter(image, path.astype(np.float32))


def jitter(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Fetch each pixel from a place off by a normal step of sigma ``strength``."""
    height, width = image.shape[:2]
    step = rng.standard_normal((2, height, width), dtype=np.float32) * np.float32(strength)
    map_x = step[0] + np.arange(width, dtype=np.float32)[None, :]
    map_y = step[1] + np.arange(height, dtype=np.float32)[:, None]
    moved = cv2.remap(image, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(moved, np.uint8)


def non_eccentricity_patch(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Copy ``strength`` small patches of the original to places nearby."""
    height, width = image.shape[:2]
    side = max(3, round(min(height, width) / 16))
    draws = rng.random((_MOST_PATCHES, 4))
    result: Image = image.copy()
    for place_y, place_x, turn, reach in draws[: int(strength)]:
        y, x = int(place_y * (height - side)), int(place_x * (width - side))
        far = side * (0.5 + 0.5 * reach)
        to_y = int(np.clip(y + far * np.sin(2 * np.pi * turn), 0, height - side))
        to_x = int(np.clip(x + far * np.cos(2 * np.pi * turn), 0, width - side))
        result[to_y : to_y + side, to_x : to_x + side] = image[y : y + side, x : x + side]
    return result


def pixelate(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Average blocks of ``strength`` pixels a side and show them as squares."""
    height, width = image.shape[:2]
    small = (max(1, round(width / strength)), max(1, round(height / strength)))
    coarse = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)


def color_block(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Cover ``strength`` squares of a ninth of the short side with random colours."""
    height, width = image.shape[:2]
    side = max(2, round(min(height, width) / 9))
    places = rng.random((_MOST_BLOCKS, 2))
    colours = rng.integers(0, 256, (_MOST_BLOCKS, 3), dtype=np.uint8)
    result: Image = image.copy()
    for (place_y, place_x), fill in list(zip(places, colours, strict=True))[: int(strength)]:
        y, x = int(place_y * (height - side)), int(place_x * (width - side))
        result[y : y + side, x : x + side] = fill
    return result


def high_sharpen(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Overdo the unsharp mask by a gain of ``strength``, which leaves halos and grain."""
    blurred = cv2.GaussianBlur(image, (0, 0), 1.4)
    return to_uint8(image + (image.astype(np.float32) - blurred) * np.float32(strength))
