"""The words the method asks with: qualities, scenes, causes, and the place of the learned context."""

from __future__ import annotations

__all__ = [
    "CAUSES",
    "CONTEXT_WORD",
    "QUALITY_WORDS",
    "SCENES",
    "cause_prompts",
    "quality_prompts",
    "scene_prompts",
]

QUALITY_WORDS = ("high quality.", "low quality.")
SCENES = ("animal", "cityscape", "human", "indoor", "landscape", "night", "plant", "still_life", "others")
# What can be wrong with a picture, in ONVIF's and the field's terms, and the sentence that asks for it.
CAUSES = {
    "blur": "a blurry photo, out of focus.",
    "noise": "a noisy photo with grain.",
    "compression": "a photo with compression artifacts.",
    "dark": "a dark photo, too little light.",
    "bright": "a bright photo, too much light.",
    "low_contrast": "a washed out photo, low contrast.",
    "obstructed": "a covered lens.",
}
HEALTHY = "a clean sharp picture."  # what each cause is asked against
CONTEXT_WORD = "X"  # a placeholder: learned context vectors replace it


def quality_prompts(context: int) -> list[str]:
    """Prompts for high and low quality, in this order, behind ``context`` placeholders."""
    return [" ".join([*[CONTEXT_WORD] * context, words]) for words in QUALITY_WORDS]


def scene_prompts() -> list[str]:
    """The nine prompts of the semantic loss, in the order of ``SCENES``."""
    return [f"a photo of a {scene}" for scene in SCENES]


def cause_prompts() -> list[str]:
    """The healthy picture's sentence, then those of ``CAUSES``."""
    return [HEALTHY, *CAUSES.values()]
