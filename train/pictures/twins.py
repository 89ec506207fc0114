"""Plain faults, made at a picture's own size: its distorted twins, which must score lower than it does.

One for each cause that the model names, at a middle level: plain to see, far from ruin.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from grmp_edge.train.pictures.distort import Image, distort
from grmp_edge.train.pictures.distort_signal import to_uint8

__all__ = ["TWINS", "twin"]

_MIDDLE = 3  # of distort's five levels


def _kadid(kind: str) -> Callable[[Image, np.random.Generator], Image]:
    return lambda image, rng: distort(image, kind, _MIDDLE, rng)


def _haze(image: Image, rng: np.random.Generator) -> Image:
    """Half of the light comes from the air between."""
    return to_uint8(0.45 * image.astype(np.float32) + 0.55 * rng.uniform(150, 215))


def _cover(image: Image, rng: np.random.Generator) -> Image:
    """Something dark and out of focus in front of two fifths of the lens."""
    height, width = image.shape[:2]
    turn = rng.uniform(0, 2 * np.pi)
    rows, columns = np.ogrid[:height, :width]
    along = (columns / width - 0.5) * np.cos(turn) + (rows / height - 0.5) * np.sin(turn)
    edge = -0.1 * (abs(np.cos(turn)) + abs(np.sin(turn)))
    mask: NDArray[np.float32] = (1 / (1 + np.exp(np.clip((along - edge) / 0.02, -30, 30)))).astype(np.float32)
    return to_uint8(image * (1 - mask[:, :, None]) + rng.uniform(10, 60) * mask[:, :, None])


TWINS: dict[str, Callable[[Image, np.random.Generator], Image]] = {
    "defocus": _kadid("lens_blur"),
    "motion blur": _kadid("motion_blur"),
    "noise": _kadid("white_noise"),
    "compression": _kadid("jpeg"),
    "darkness": _kadid("darken"),
    "over-exposure": _kadid("brighten"),
    "haze": _haze,
    "obstruction": _cover,
}


def twin(image: Image, kind: str, seed: int) -> Image:
    """A distorted copy of uint8 (H, W, 3) RGB; ``kind`` is one of ``TWINS``, ``seed`` decides all chance."""
    if min(image.shape[:2]) < 8:
        return image
    return TWINS[kind](image, np.random.default_rng([seed, sorted(TWINS).index(kind)]))
