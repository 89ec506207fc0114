"""Clean pictures as another camera or other light would have rendered them, before any fault.

A hundred good photographs all have ordinary light, full colour and a good lens. Of what people take, much is
dim, lit from one side, pale, hazy or a little soft; where scenes differ in quality, such pictures must have
been seen. What they are worth follows from their own statistics (scene_quality.py).
"""

from __future__ import annotations

import cv2
import numpy as np

from grmp_edge.train.pictures.distort import Image
from grmp_edge.train.pictures.distort_colour import tone_curve

__all__ = ["vary"]

# Chance of each change; about one picture in six is left as it is.
_SOFT, _COLOUR, _HAZE, _LIGHT, _TONE = 0.3, 0.3, 0.12, 0.3, 0.35


def vary(rng: np.random.Generator, image: Image) -> Image:
    """Take a clean picture with another lens, in other colours, air and light.

    Args:
        rng: the only source of chance.
        image: (H, W, 3) uint8 RGB, not changed.

    Returns:
        A picture of the same shape.
    """
    side = min(image.shape[:2])
    if rng.random() < _SOFT:
        # In pixels of the network's input, whatever the size of the picture.
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.4) * side / 244), np.uint8)
    if rng.random() < _COLOUR:
        image = _recolour(rng, image)
    if rng.random() < _HAZE:
        air, thickness = rng.uniform(150, 230), rng.uniform(0.1, 0.5)
        image = tone_curve(image, np.arange(256) * (1 - thickness) + air * thickness)
    if rng.random() < _LIGHT:
        image = _relight(rng, image)
    if rng.random() < _TONE:
        # More often darker than lighter, as a lack of light is the commoner.
        exponent = np.exp(rng.uniform(-0.45, 0.9))
        image = tone_curve(image, 255 * np.linspace(0, 1, 256) ** exponent)
    return image


def _recolour(rng: np.random.Generator, image: Image) -> Image:
    """Change the saturation and the colour of the light, by one matrix on RGB."""
    saturation = rng.uniform(0.15, 1.25)
    grey = np.tile([0.299, 0.587, 0.114], (3, 1))
    gains = np.exp(rng.normal(0, 0.08, 3))
    matrix = gains[:, None] * (saturation * np.eye(3) + (1 - saturation) * grey)
    return np.asarray(cv2.transform(image, matrix), np.uint8)


def _relight(rng: np.random.Generator, image: Image) -> Image:
    """Multiply by a smooth field, as lamps, windows, shade and vignetting do."""
    height, width = image.shape[:2]
    coarse = np.exp(rng.normal(-0.1, rng.uniform(0.15, 0.6), (4, 4))).astype(np.float32)
    field = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(cv2.multiply(image, cv2.merge([field] * 3), dtype=cv2.CV_8U), np.uint8)
