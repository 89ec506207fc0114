"""The faults put into pictures for the backbone's training, and how much quality they cost."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from grmp_edge.train.pictures.distort import DISTORTIONS, Image, distort
from grmp_edge.train.recipe.captions import LOW_RESOLUTION

__all__ = ["CAMERA_KINDS", "HARD_KINDS", "KINDS", "apply_fault", "draw_chain", "quality_of"]

KINDS = (*DISTORTIONS, LOW_RESOLUTION)
# How much of the quality the worst level takes away. By eye, in the spirit of KADID-10k, where blur, noise
# and coding hurt most and changes of colour and tone least.
_HARM = {
    "gaussian_blur": 0.85,
    "lens_blur": 0.88,
    "motion_blur": 0.85,
    "color_diffusion": 0.35,
    "color_shift": 0.5,
    "color_quantization": 0.55,
    "color_saturation_1": 0.35,
    "color_saturation_2": 0.5,
    "jpeg2000": 0.85,
    "jpeg": 0.85,
    "white_noise": 0.8,
    "color_component_noise": 0.65,
    "impulse_noise": 0.8,
    "multiplicative_noise": 0.75,
    "denoise": 0.75,
    "brighten": 0.6,
    "darken": 0.7,
    "mean_shift": 0.45,
    "jitter": 0.88,
    "non_eccentricity_patch": 0.4,
    "pixelate": 0.85,
    "quantization": 0.6,
    "color_block": 0.5,
    "high_sharpen": 0.55,
    "contrast_change": 0.55,
    LOW_RESOLUTION: 0.85,
}
_LEVEL_SHARE = (0.2, 0.4, 0.6, 0.8, 1.0)
# What real cameras do, in their order; each step happens with the given probability.
_CAMERA_CHAIN = (
    (("darken", "brighten", "mean_shift", "contrast_change"), 0.55),
    (("gaussian_blur", "lens_blur", "motion_blur", LOW_RESOLUTION), 0.6),
    (("white_noise", "color_component_noise", "multiplicative_noise", "denoise"), 0.45),
    (("color_saturation_1", "color_saturation_2", "high_sharpen"), 0.25),
    (("jpeg", "jpeg2000"), 0.4),
)
CAMERA_KINDS = [kind for kinds, _ in _CAMERA_CHAIN for kind in kinds]
# Ranked worst by recipe 1: shown more often.
HARD_KINDS = ("jpeg", "darken", "brighten", "contrast_change")


def apply_fault(image: Image, kind: str, level: int, rng: np.random.Generator) -> Image:
    """Distort an (H, W, 3) uint8 picture by one of ``KINDS``, level 1..5."""
    if kind != LOW_RESOLUTION:
        return distort(image, kind, level, rng)
    height, width = image.shape[:2]
    side = (150, 110, 80, 56, 38)[level - 1]
    small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    way = cv2.INTER_CUBIC if rng.random() < 0.5 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(small, (width, height), interpolation=way), np.uint8)


def draw_chain(rng: np.random.Generator) -> list[tuple[str, int]]:
    """Draw several faults, as a camera makes them or at random."""
    faults: list[tuple[str, int]] = []
    if rng.random() < 0.7:
        for kinds, chance in _CAMERA_CHAIN:
            if rng.random() < chance:
                faults.append((str(rng.choice(kinds)), int(rng.integers(1, 5))))
    if not faults:
        names = rng.choice(list(DISTORTIONS), int(rng.integers(2, 4)), replace=False)
        faults = [(str(name), int(rng.integers(1, 5))) for name in names]
    return faults


def quality_of(faults: Sequence[tuple[str, int]]) -> float:
    """The quality that remains with some faults, 0..1: an estimate, see ``_HARM``."""
    shares = [1 - _HARM[kind] * _LEVEL_SHARE[level - 1] for kind, level in faults]
    return float(np.prod(shares)) if shares else 1.0
