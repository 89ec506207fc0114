"""What goes with a backbone: its prompts and how it learns, complete when made.

The defaults are the reference's, tuned for OpenAI's CLIP. A backbone that needs others has one
``BackboneSettings`` here, where no torch is loaded: labels are read and options checked before it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grmp_edge.default_bundle import EMBEDDED

if TYPE_CHECKING:  # the settings of the protocol come from here too, and need no torch
    from open_clip.model import CLIP
    from torch import Tensor

__all__ = [
    "CALIBRATION_STEPS",
    "BackboneSettings",
    "EMBEDDED_SETTINGS",
    "EmbeddedBackbone",
    "LearningSettings",
    "MetaSettings",
    "PromptConfig",
    "given_only",
    "settings_for",
]

# Measured on the embedded backbone: the scores reach the labels' scale in them, in a second or two.
CALIBRATION_STEPS = 400


@dataclass(frozen=True)
class PromptConfig:
    """The learned prompts and what the network reads."""

    visual_tokens: int = 100  # per block; the paper's choice
    text_tokens: int = 4  # context vectors shared by both classes; the paper's choice
    dropout: float = 0.1  # on the projected visual prompts while they are being learned, as the reference
    normalization: str = "imagenet"  # what the reference feeds; "clip" is what CLIP was trained with


@dataclass(frozen=True)
class MetaSettings:
    """Of meta-prompt pre-training, what depends on the backbone."""

    epochs: int = 50  # an epoch visits every phase's tasks once
    inner_lr: float = 1e-4  # Adam's
    outer_lr: float = 1e-2  # beta


@dataclass(frozen=True)
class LearningSettings:
    """Of fine-tuning, what depends on the backbone."""

    epochs: int = 2000  # of steps of 192, which with 50 labels are one step an epoch
    batch: int = 192
    lr: float = 1e-3  # SGD without momentum
    qgr_strength: float = 5.0  # lambda; 1 is the paper's orthogonal projection, 5 gave the published figures
    # Before the labels: steps of fitting the text side to the labels' scale (see label_scale.py); 0 begins
    # with the labels.
    calibration_steps: int = 0
    text_rate: float = 1.0  # learning rate of the text side as a fraction of lr
    average: bool = False  # judge and keep the mean of the weights after each epoch so far
    # Image blocks that learn, from the last; None: the last third. 0 learns the text side alone: for a
    # handful of labels, or to leave the image tower as it is.
    image_blocks: int | None = None


@dataclass(frozen=True)
class BackboneSettings:
    """All that depends on the backbone."""

    prompts: PromptConfig = PromptConfig()
    meta: MetaSettings = MetaSettings()
    finetune: LearningSettings = LearningSettings()
    lr_with_text: float = 1e-3  # of fine-tuning, where the text side learns too
    validation_fraction: float = 0.2  # of the labels: chooses the epoch of fine-tuning

    def finetune_values(self, **given: Any) -> dict[str, Any]:
        """The fields of LearningSettings with ``given`` ones in their place, and what follows from those."""
        values = {**vars(self.finetune), **given}
        if given.get("image_blocks") == 0 and "text_rate" not in given:
            values["text_rate"] = 1.0  # without image blocks the text side must learn
        if "lr" not in given and values["text_rate"]:
            values["lr"] = self.lr_with_text
        return values


# Of the backbones whose weights ship with the project, by name.
EMBEDDED_SETTINGS = {
    EMBEDDED: BackboneSettings(
        # Fewer than a quarter of the 65 tokens that flow; the stem reads what it was trained with.
        prompts=PromptConfig(visual_tokens=16, dropout=0.0, normalization="lite"),
        # Tasks are reset, so one epoch at the reference's beta moves the prompts by a hundredth of ten small
        # steps; and it is for CPUs, where fifty epochs take hours.
        meta=MetaSettings(epochs=3, inner_lr=1e-3, outer_lr=1.0),
        finetune=LearningSettings(
            # Few steps, as more unlearn what it knew (docs/experiments.md, 17 and 19).
            epochs=12,
            batch=16,
            # The reference's was found for CLIP's logit scale of 100; here it is 17, and gradients fall
            # with it.
            lr=0.5,
            qgr_strength=1.0,  # its view of scenes is too dim to be worth more (docs/experiments.md, 17)
            # Once calibrated, its text side fits the errors of few labels first (docs/experiments.md, 19).
            calibration_steps=CALIBRATION_STEPS,
            text_rate=0.0,
            average=True,  # swings less than the weights of one epoch (docs/experiments.md, 19)
        ),
        lr_with_text=0.03,
        # Of its few epochs, whose weights are averaged, a handful of pictures chooses no better than the
        # schedule, and they are missed in training (docs/experiments.md, 19).
        validation_fraction=0.0,
    ),
}


def settings_for(name: str) -> BackboneSettings:
    """What goes with a backbone, by name: the reference's settings for a CLIP of open_clip."""
    return EMBEDDED_SETTINGS.get(name, BackboneSettings())


@dataclass(frozen=True)
class EmbeddedBackbone:
    """A backbone whose weights ship with the project."""

    name: str
    build: Callable[[], CLIP]  # with random weights from torch's global generator
    load: Callable[[Path | None], CLIP]  # from a file; None: the weights that ship
    load_prompts: Callable[[], dict[str, Tensor]]  # meta-learned for the weights that ship
    prompts_path: Path


def given_only(options: dict[str, Any]) -> dict[str, Any]:
    """The options that are not None."""
    return {name: value for name, value in options.items() if value is not None}
