"""Procedural pictures that need no download: they stand in for photographs in training, tests and the demo.

Seven kinds: dead leaves (occluding shapes of power-law size, Lee, Mumford, Huang 2001), 1/f noise, gradients,
pages of text and charts, and simple landscapes, streets, rooms and still lifes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from grmp_edge.errors import DataError
from grmp_edge.train.pictures import procedural_scenes as scenes
from grmp_edge.train.pictures import procedural_texture as texture
from grmp_edge.train.pictures.procedural_texture import Image

__all__ = ["PROCEDURAL", "procedural_image"]

# Each with the scene word of its captions and how often it is drawn.
PROCEDURAL: dict[str, tuple[Callable[[np.random.Generator, int], NDArray[np.float32]], str, float]] = {
    "dead_leaves": (texture.dead_leaves, "others", 0.22),
    "fractal": (texture.fractal, "others", 0.1),
    "gradient": (texture.gradient, "others", 0.05),
    "page": (scenes.page, "others", 0.08),
    "landscape": (scenes.landscape, "landscape", 0.17),
    "street": (scenes.street, "cityscape", 0.14),
    "room": (scenes.room, "indoor", 0.12),
    "still_life": (scenes.still_life, "still_life", 0.12),
}


def procedural_image(rng: np.random.Generator, size: int, kind: str | None = None) -> Image:
    """Draw one picture.

    Args:
        rng: the only source of chance: the same state gives the same picture.
        size: side in pixels, at least 32.
        kind: a key of ``PROCEDURAL``; None draws one by its weight.

    Returns:
        (size, size, 3) uint8 RGB, sharp and without noise.

    Raises:
        DataError: unknown kind, or a size below 32.
    """
    if size < 32:
        raise DataError(f"cannot draw a picture of {size} pixels", "give 32 or more")
    if kind is None:
        weights = np.array([weight for _, _, weight in PROCEDURAL.values()])
        kind = str(rng.choice(list(PROCEDURAL), p=weights / weights.sum()))
    if kind not in PROCEDURAL:
        raise DataError(f"unknown procedural picture {kind!r}", f"known: {', '.join(PROCEDURAL)}")
    picture = PROCEDURAL[kind][0](rng, size)
    return texture.to_image(picture)
