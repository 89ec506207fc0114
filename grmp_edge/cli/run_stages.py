"""Running the stages of training as the options ask for them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from grmp_edge.cli.training_options import (
    MetaChoice,
    ModelChoice,
    TargetChoice,
    TaskChoice,
    TuningChoice,
    preset_of,
)

if TYPE_CHECKING:
    from grmp_edge.train.session.curves import CurveKind
    from grmp_edge.train.session.progress import Reporter

__all__ = ["do_finetune", "do_pretrain", "refuse_overwrite"]


def do_pretrain(
    output: Path,
    model: ModelChoice,
    tasks: TaskChoice,
    meta: MetaChoice,
    target: TargetChoice,
    resume: bool,
    reporter: Reporter,
    curves: CurveKind,
) -> dict[str, Any]:
    """Run the first stage into ``output``."""
    from grmp_edge.train.runs import run_pretrain

    preset = preset_of(model.preset)
    chooser = target.labelled(preset)
    phases, said = tasks.build(reporter, preset)
    config = meta.config(model.name, preset)
    return run_pretrain(
        output, model.config(), phases, said, config, resume, reporter, chooser, preset.name, curves
    )


def do_finetune(
    output: Path,
    model: ModelChoice,
    start: Path | None,
    tuning: TuningChoice,
    resume: bool,
    reporter: Reporter,
    curves: CurveKind,
    allow_unfinished: bool = False,
) -> dict[str, Any]:
    """Run the second stage into ``output``."""
    from grmp_edge.train.runs import run_finetune

    backbone = model.name_after(start)
    return run_finetune(
        output,
        model.config(),
        start,
        tuning.labelled(),
        tuning.split(backbone),
        tuning.config(backbone),
        resume,
        reporter,
        allow_unfinished,
        model.preset.value,
        curves,
    )


def refuse_overwrite(output: Path) -> None:
    """Raise CheckpointError if the folder holds a run."""
    from grmp_edge.train.session.checkpoint import CheckpointWriter

    CheckpointWriter(output, {}).refuse_overwrite()
