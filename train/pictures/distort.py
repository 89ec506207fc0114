"""The 25 distortion types of KADID-10k at five levels, on uint8 RGB pictures, with numpy and OpenCV only.

Kinds and order are KADID-10k's (Lin, Hosu, Saupe, QoMEX 2019). The strengths are this project's own: chosen
for pictures of 224 to 512 pixels a side, so that each level is visibly worse than the one before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from grmp_edge.errors import DataError, ImageError
from grmp_edge.train.pictures import distort_colour as colour
from grmp_edge.train.pictures import distort_signal as signal
from grmp_edge.train.pictures import distort_spatial as spatial
from grmp_edge.train.pictures.distort_signal import Image

__all__ = ["DISTORTIONS", "LEVELS", "Distortion", "Image", "distort"]

LEVELS = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Distortion:
    """One type: its family, its strength at levels 1..5 (unit in the comment) and the function."""

    family: str
    strengths: tuple[float, float, float, float, float]
    apply: Callable[[Image, float, np.random.Generator], Image]


DISTORTIONS: dict[str, Distortion] = {
    # Gaussian sigma, pixels
    "gaussian_blur": Distortion("blur", (0.7, 1.2, 1.9, 3.0, 4.8), spatial.gaussian_blur),
    # radius of the disk, pixels
    "lens_blur": Distortion("blur", (1.2, 2.2, 3.4, 5.0, 7.5), spatial.lens_blur),
    # length of the path, pixels
    "motion_blur": Distortion("blur", (3.5, 6.0, 10.0, 15.0, 23.0), spatial.motion_blur),
    # Gaussian sigma on the two colour axes, pixels
    "color_diffusion": Distortion("colour", (2.5, 5.0, 9.0, 15.0, 25.0), colour.color_diffusion),
    # displacement of green against red and blue, pixels
    "color_shift": Distortion("colour", (1.0, 2.0, 4.0, 7.0, 12.0), colour.color_shift),
    # colours left in the palette
    "color_quantization": Distortion("colour", (48, 28, 16, 9, 5), colour.color_quantization),
    # share of the chroma kept
    "color_saturation_1": Distortion("colour", (0.7, 0.45, 0.25, 0.1, 0.0), colour.scale_chroma),
    # gain on the chroma
    "color_saturation_2": Distortion("colour", (1.4, 1.9, 2.6, 4.0, 6.5), colour.scale_chroma),
    # compression ratio against 24 bits a pixel
    "jpeg2000": Distortion("compression", (24, 42, 70, 115, 190), signal.jpeg2000),
    # libjpeg quality
    "jpeg": Distortion("compression", (50, 30, 18, 10, 5), signal.jpeg),
    # sigma, grey values
    "white_noise": Distortion("noise", (6, 11, 18, 28, 42), signal.white_noise),
    # sigma on Cb and Cr, grey values; a third of it on Y
    "color_component_noise": Distortion("noise", (7, 13, 20, 30, 45), signal.color_component_noise),
    # share of the pixels
    "impulse_noise": Distortion("noise", (0.004, 0.012, 0.03, 0.07, 0.15), signal.impulse_noise),
    # sigma of the relative error
    "multiplicative_noise": Distortion("noise", (0.05, 0.1, 0.18, 0.3, 0.5), signal.multiplicative_noise),
    # sigma of the noise that was removed, grey values
    "denoise": Distortion("noise", (8, 15, 24, 36, 52), signal.denoise),
    # exponent of the tone curve
    "brighten": Distortion("brightness", (1.3, 1.7, 2.3, 3.3, 5.0), colour.brighten),
    "darken": Distortion("brightness", (1.3, 1.7, 2.3, 3.3, 5.0), colour.darken),
    # grey values up or down
    "mean_shift": Distortion("brightness", (12, 24, 38, 55, 78), colour.mean_shift),
    # sigma of the displacement of each pixel, pixels
    "jitter": Distortion("spatial", (0.5, 0.9, 1.5, 2.5, 4.2), spatial.jitter),
    # patches copied to a place nearby
    "non_eccentricity_patch": Distortion("spatial", (12, 25, 45, 75, 120), spatial.non_eccentricity_patch),
    # side of a block, pixels
    "pixelate": Distortion("spatial", (1.6, 2.4, 3.5, 5.3, 8.0), spatial.pixelate),
    # levels of each channel
    "quantization": Distortion("spatial", (18, 12, 8, 5, 3), colour.quantization),
    # blocks of one colour
    "color_block": Distortion("spatial", (2, 4, 7, 11, 16), spatial.color_block),
    # gain of the unsharp mask
    "high_sharpen": Distortion("sharpness", (0.8, 1.6, 2.8, 4.8, 9.0), spatial.high_sharpen),
    # share of the contrast taken away, or what raises it as much
    "contrast_change": Distortion("sharpness", (0.25, 0.42, 0.57, 0.7, 0.82), colour.contrast_change),
}


def distort(image: Image, kind: str, level: int, rng: np.random.Generator) -> Image:
    """Distort a picture; a higher level is worse, and no level is harmless.

    Args:
        image: (H, W, 3) uint8 RGB, at least 8 pixels a side. Not changed.
        kind: a key of ``DISTORTIONS``.
        level: 1 (slight) to 5 (severe).
        rng: the only source of chance: the same state gives the same picture. With equal states, the levels
            of one kind share their random part (noise, direction, places), so that they can be compared.

    Returns:
        (H, W, 3) uint8 RGB, a new array.

    Raises:
        DataError: unknown kind, or a level outside 1..5.
        ImageError: the picture has another shape or type.
    """
    if kind not in DISTORTIONS:
        raise DataError(f"unknown distortion {kind!r}", f"known: {', '.join(DISTORTIONS)}")
    if isinstance(level, bool) or not isinstance(level, (int, np.integer)) or level not in LEVELS:
        raise DataError(f"distortion level {level!r} is outside 1..5", "give a whole number from 1 to 5")
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ImageError(f"cannot distort {what}", "give a uint8 RGB array of shape (H, W, 3)")
    if min(image.shape[:2]) < 8:
        raise ImageError(f"cannot distort a picture of {image.shape[1]}x{image.shape[0]}", "give 8x8 or more")
    kind_ = DISTORTIONS[kind]
    result = kind_.apply(np.ascontiguousarray(image), kind_.strengths[level - 1], rng)
    return np.ascontiguousarray(result)
