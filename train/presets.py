"""Presets: what the released code does and what this project does by default, difference by difference.

``reference`` reproduces the released GRMP-IQA code, the leaks of test data included, so that its published
figures can be compared with; ``default`` is honest: nothing that is tested on has chosen anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from grmp_edge.errors import UsageError

if TYPE_CHECKING:
    from grmp_edge.train.data.labelled import SplitConfig
    from grmp_edge.train.finetune.config import FinetuneConfig
    from grmp_edge.train.meta import MetaConfig
    from grmp_edge.train.tasks import Task

__all__ = ["NOT_REPRODUCED", "PRESETS", "Difference", "Preset", "differences", "leaks", "preset_named"]

# What ``reference`` leaves out, too.
NOT_REPRODUCED = (
    "half precision without loss scaling: the released code fine-tunes and tests so; here --precision fp16 "
    "scales the loss, and tests are in float32",
)


def _because(default: Any, reason: str) -> Any:
    return field(default=default, metadata={"reason": reason})


@dataclass(frozen=True)
class Preset:
    """Choices where the paper is silent or the released code departs from it."""

    name: str
    reset_per_task: bool = _because(
        True,
        "the paper adapts every task from the shared prompts; the released code carries the adapted ones on",
    )
    support_by_reference: bool = _because(
        True,
        "the released code splits support and query picture by picture, so both show the same contents",
    )
    visit_kadid_25: bool = _because(True, "the released code's loop ends before KADID-10k's 25th type")
    meta_select_on: Literal["held-out tasks", "target set"] = _because(
        "held-out tasks",
        "the released code keeps the pre-training epoch with the best SRCC on the whole target set (LIVEC), "
        "test pictures included",
    )
    select_on: Literal["validation", "test"] = _because(
        "validation",
        "the released code chooses the fine-tuning epoch, and lowers the learning rate, by the test part",
    )
    meta_squash: Literal["bicubic", "antialiased"] = _because(
        "bicubic",
        "the released code's pre-training squashes anti-aliased and bilinear on floats (scikit-image), its "
        "fine-tuning aliased and bicubic; here prompts are learned on pictures as they are scored",
    )
    meta_labels_apart: bool = _because(
        False,
        "the released code scales a task's labels to 0..1 in its support and its query part apart, so that "
        "the same picture has two labels; here once for the task",
    )
    carry_adam: bool = _because(
        False,
        "the released code makes one Adam for all tasks of the first phase, TID2013's, which in later epochs "
        "goes on from KADID-10k's last task; its moments are other tasks', and change the outer update by a "
        "third",
    )
    flip: Literal["independent", "by column"] = _because(
        "independent",
        "the released code mirrors a batch exactly where its column offset is below 10, so half of the views "
        "never occur",
    )
    prompt_dropout: bool = _because(
        False,
        "the released code leaves the whole model in training mode in fine-tuning, so that a tenth of the "
        "visual prompts, which do not learn, are dropped at every step",
    )
    label_scale: Literal["declared", "drawn"] = _because(
        "declared",
        "the released code scales the N drawn labels to 0..1 by their own lowest and highest; here by the "
        "ends of the set's scale where it is declared (--mos-range)",
    )
    livec_training_pictures: bool = _because(
        False,
        "the released code keeps the seven pictures that LIVEC's subjects were trained with: 1,169 instead "
        "of 1,162",
    )
    calibrate: bool = _because(
        True,
        "the released code learns from the labels at once, both towers at one rate; the embedded backbone is "
        "first brought onto their scale, then moves its image tower, and keeps its weights' mean",
    )
    validation_fraction: float | None = _because(
        None,
        "the released code learns from all N labels, as the test part chooses the epoch; here a fifth of "
        "them does, and with the embedded backbone a fixed schedule",
    )

    def meta(self, backbone: str, **given: Any) -> MetaConfig:
        """The settings of meta-pre-training for a backbone, with given ones (not None) in their place.

        ``held_out`` becomes 0 where the target set chooses; judging on that set is the caller's to do.
        """
        from grmp_edge.train.meta import MetaConfig
        from grmp_edge.train.network.settings import given_only

        usual: dict[str, Any] = {
            "reset_per_task": self.reset_per_task,
            "carry_adam": self.carry_adam,
            "squash": self.meta_squash,
            "labels_apart": self.meta_labels_apart,
        }
        if self.meta_select_on == "target set":
            usual["held_out"] = 0.0
        return MetaConfig.of(backbone, **usual | given_only(given))

    def tasks(self, phases: Sequence[Sequence[Task]]) -> list[list[Task]]:
        """The phases of tasks under this preset; of a phase of 25, KADID-10k's, the last may go."""
        chosen_phases = []
        for phase in phases:
            chosen = list(phase)
            if not self.visit_kadid_25 and len(chosen) == 25:
                chosen = chosen[:-1]
            if not self.support_by_reference:
                chosen = [
                    replace(t, references=tuple(str(i) for i in range(len(t.references)))) for t in chosen
                ]
            chosen_phases.append(chosen)
        return chosen_phases

    def finetune(self, backbone: str, **given: Any) -> FinetuneConfig:
        """The settings of fine-tuning for a backbone, with given ones (not None) in their place."""
        from grmp_edge.train.finetune.config import FinetuneConfig
        from grmp_edge.train.network.settings import given_only

        usual: dict[str, Any] = {
            "select_on": self.select_on,
            "flip": self.flip,
            "prompt_dropout": self.prompt_dropout,
            "label_scale": self.label_scale,
        }
        if not self.calibrate:
            usual |= {"calibration_steps": 0, "text_rate": 1.0, "average": False}
        return FinetuneConfig.of(backbone, **usual | given_only(given))

    def split(self, backbone: str, **given: Any) -> SplitConfig:
        """The division of the labels for a backbone, with given settings (not None) in their place."""
        from grmp_edge.train.data.labelled import SplitConfig
        from grmp_edge.train.network.settings import given_only, settings_for

        fraction = self.validation_fraction
        if fraction is None:
            fraction = settings_for(backbone).validation_fraction
        return SplitConfig(**{"validation_fraction": fraction} | given_only(given))


PRESETS = {
    "default": Preset("default"),
    "reference": Preset(
        "reference",
        reset_per_task=False,
        support_by_reference=False,
        visit_kadid_25=False,
        meta_select_on="target set",
        select_on="test",
        calibrate=False,
        validation_fraction=0.0,
        meta_squash="antialiased",
        meta_labels_apart=True,
        carry_adam=True,
        flip="by column",
        prompt_dropout=True,
        label_scale="drawn",
        livec_training_pictures=True,
    ),
}


def preset_named(name: str) -> Preset:
    """The preset of a name.

    Raises:
        UsageError: there is none.
    """
    if name not in PRESETS:
        raise UsageError(f"--preset {name!r} is unknown", f"use {' or '.join(PRESETS)}")
    return PRESETS[name]


@dataclass(frozen=True)
class Difference:
    """One field in which two presets differ."""

    field: str
    first: Any
    second: Any
    reason: str


def differences(first: Preset, second: Preset) -> list[Difference]:
    """The fields in which two presets differ, with reasons."""
    return [
        Difference(item.name, getattr(first, item.name), getattr(second, item.name), item.metadata["reason"])
        for item in fields(Preset)
        if item.name != "name" and getattr(first, item.name) != getattr(second, item.name)
    ]


def leaks(finetune: FinetuneConfig | None, pretrained_by: Mapping[str, Any] | None = None) -> list[str]:
    """Why a result is not an honest figure, one sentence for each leak; empty for an honest one.

    Args:
        finetune: the settings that were used; None where nothing was fine-tuned.
        pretrained_by: a pre-training checkpoint's config.json, if there was one.
    """
    sentences = []
    if finetune is not None and finetune.select_on == "test":
        sentences.append("the epoch and the learning rate were chosen on the test part")
    if (pretrained_by or {}).get("meta_select_on") == "target set":
        sentences.append("the pre-training epoch was chosen on the target set, test pictures included")
    return sentences
