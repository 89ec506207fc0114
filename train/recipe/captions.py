"""Captions for the backbone's contrastive training: scene, scene statistics, distortions, severity, quality.

The words include the prompts that the method asks with later ("high quality.", "low quality." after a learned
context, and the nine scenes), so that these have meaning before any fine-tuning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from grmp_edge.train.network.words import CONTEXT_WORD, QUALITY_WORDS, SCENES, scene_prompts
from grmp_edge.train.pictures.distort import DISTORTIONS

__all__ = [
    "KIND_WORDS",
    "LOW_RESOLUTION",
    "QUALITY_PAIRS",
    "Statistics",
    "caption",
    "vocabulary",
]

# The first pair is the method's; the others teach the same axis in other words.
QUALITY_PAIRS = (
    QUALITY_WORDS,
    ("a high quality photo.", "a low quality photo."),
    ("a good photo.", "a bad photo."),
    ("a clean sharp picture.", "a degraded picture."),
    ("excellent image quality.", "terrible image quality."),
)

# Not a type of KADID-10k: too few pixels, enlarged.
LOW_RESOLUTION = "low_resolution"

KIND_WORDS: dict[str, tuple[str, ...]] = {
    "gaussian_blur": ("gaussian blur", "blur", "soft blurry look"),
    "lens_blur": ("lens blur", "out of focus blur", "defocus"),
    "motion_blur": ("motion blur", "camera shake", "smeared movement"),
    "color_diffusion": ("color diffusion", "bleeding colors"),
    "color_shift": ("color shift", "color fringes"),
    "color_quantization": ("color quantization", "a small palette of colors"),
    "color_saturation_1": ("washed out colors", "low saturation", "faded colors"),
    "color_saturation_2": ("oversaturated colors", "too strong colors", "gaudy colors"),
    "jpeg2000": ("jpeg 2000 compression", "wavelet compression artifacts"),
    "jpeg": ("jpeg compression", "blocking artifacts", "blocky compression"),
    "white_noise": ("white noise", "gaussian noise", "noise", "grain"),
    "color_component_noise": ("color noise", "chroma noise", "noisy colors"),
    "impulse_noise": ("impulse noise", "salt and pepper noise"),
    "multiplicative_noise": ("multiplicative noise", "speckle noise"),
    "denoise": ("denoising artifacts", "smeared noise reduction"),
    "brighten": ("overexposure", "too much light", "blown highlights"),
    "darken": ("underexposure", "too little light", "crushed shadows"),
    "mean_shift": ("a brightness shift", "shifted brightness"),
    "jitter": ("pixel jitter", "scattered pixels"),
    "non_eccentricity_patch": ("displaced patches", "misplaced patches"),
    "pixelate": ("pixelation", "visible square pixels"),
    "quantization": ("quantization", "banding", "posterized tones"),
    "color_block": ("color blocks", "covered squares", "missing blocks"),
    "high_sharpen": ("oversharpening", "halos", "too much sharpening"),
    "contrast_change": ("wrong contrast", "changed contrast"),
    LOW_RESOLUTION: ("low resolution", "upscaling", "few pixels"),
}

_SEVERITY = (
    ("very slight", "barely visible", "a trace of"),
    ("slight", "mild", "weak"),
    ("moderate", "noticeable", "some"),
    ("strong", "heavy", "annoying"),
    ("severe", "extreme", "very heavy"),
)
_GRADES = (  # from worst to best
    ("terrible quality", "bad quality", "awful", "low quality"),
    ("poor quality", "low quality", "degraded"),
    ("fair quality", "average quality", "mediocre"),
    ("good quality", "fine quality", "clear"),
    ("excellent quality", "high quality", "pristine", "clean and sharp"),
)
_CLEAN = ("no distortion", "no artifacts", "nothing wrong", "sharp details")
_NOUNS = ("photo", "picture", "image")
_STATISTICS = {  # (low, high) words
    "brightness": (("dark", "dim"), ("bright", "light")),
    "contrast": (("flat", "low contrast"), ("contrasty", "high contrast")),
    "colour": (("grey", "colorless"), ("colorful", "vivid")),
    "detail": (("smooth", "plain"), ("detailed", "full of detail")),
}


@dataclass(frozen=True)
class Statistics:
    """Scene statistics, each about -1 (little) to 1 (much) over ordinary photographs, -2 to 2 at the ends."""

    brightness: float
    contrast: float
    colour: float
    detail: float
    sharpness: float = 0.0  # of what detail there is, how much is of the finest kind
    blown: float = 0.0  # how much of the picture is burnt out


def _pick(rng: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(rng.integers(len(words)))]


def _grade(quality: float) -> int:
    return int(np.clip(quality * 5, 0, 4))


def caption(
    rng: np.random.Generator,
    scene: str,
    quality: float,
    faults: Sequence[tuple[str, int]],
    statistics: Statistics,
) -> str:
    """Describe a picture in varied words.

    Args:
        rng: chooses what is said and how.
        scene: one of ``SCENES``.
        quality: 0 (worst) to 1 (pristine).
        faults: distortions with their levels 1..5, worst first; empty for a clean picture.
        statistics: of the picture as shown.

    Returns:
        A text of at most about 30 tokens.
    """
    adjectives = []
    for name, (low, high) in _STATISTICS.items():
        value = getattr(statistics, name)
        if abs(value) > 0.6 and rng.random() < 0.5:
            adjectives.append(_pick(rng, high if value > 0 else low))
    if rng.random() < 0.7:
        adjectives.insert(0, _pick(rng, _GRADES[_grade(quality)]))
    subject = " ".join(["a", ", ".join(adjectives), _pick(rng, _NOUNS)] if adjectives else ["a", "photo"])
    if rng.random() < 0.6:
        subject += f" of a {scene}"
    if not faults:
        return f"{subject}, {_pick(rng, _CLEAN)}." if rng.random() < 0.7 else f"{subject}."
    phrases = []
    for kind, level in faults[:2]:
        if rng.random() < 0.85:
            phrases.append(f"{_pick(rng, _SEVERITY[level - 1])} {_pick(rng, KIND_WORDS[kind])}")
    return f"{subject} with {' and '.join(phrases)}." if phrases else f"{subject}."


def vocabulary() -> Iterator[str]:
    """Yield texts that together hold every word and stop of the captions and prompts."""
    for pair in QUALITY_PAIRS:
        yield from pair
    yield from scene_prompts()
    for group in (*KIND_WORDS.values(), *_SEVERITY, *_GRADES, _CLEAN, _NOUNS):
        yield from group
    for low, high in _STATISTICS.values():
        yield from (*low, *high)
    yield from (*SCENES, *(kind.replace("_", " ") for kind in DISTORTIONS))
    yield f"a an the of with and, no. {CONTEXT_WORD} {CONTEXT_WORD.lower()}"
