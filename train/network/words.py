"""The words the method asks with: the two qualities, the scenes, and the place of the learned context."""

from __future__ import annotations

__all__ = ["CONTEXT_WORD", "QUALITY_WORDS", "SCENES", "quality_prompts", "scene_prompts"]

QUALITY_WORDS = ("high quality.", "low quality.")
SCENES = ("animal", "cityscape", "human", "indoor", "landscape", "night", "plant", "still_life", "others")
CONTEXT_WORD = "X"  # a placeholder: learned context vectors replace it


def quality_prompts(context: int) -> list[str]:
    """Prompts for high and low quality, in this order, behind ``context`` placeholders."""
    return [" ".join([*[CONTEXT_WORD] * context, words]) for words in QUALITY_WORDS]


def scene_prompts() -> list[str]:
    """The nine prompts of the semantic loss, in the order of ``SCENES``."""
    return [f"a photo of a {scene}" for scene in SCENES]
