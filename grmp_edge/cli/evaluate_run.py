"""What ``evaluate`` runs: the pre-training that all splits share, the ways of training, the baselines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grmp_edge.cli.training_options import MetaChoice, ModelChoice, TargetChoice, TaskChoice, TuningChoice
    from grmp_edge.train.data.labelled import Labelled
    from grmp_edge.train.evaluate.protocol import ProtocolConfig
    from grmp_edge.train.evaluate.tables import Tables
    from grmp_edge.train.session.progress import Reporter

__all__ = ["BaselineChoice", "evaluate_baselines", "evaluate_models"]


@dataclass(frozen=True)
class BaselineChoice:
    """Which hand-crafted metrics."""

    names: tuple[str, ...]
    niqe_photos: Path | None


def evaluate_baselines(
    output: Path,
    choice: BaselineChoice,
    data: Labelled,
    protocol: ProtocolConfig,
    tables: Tables,
    reporter: Reporter,
) -> None:
    """Hand-crafted metrics on the splits, into ``output/baselines`` and the tables."""
    from grmp_edge.train.evaluate.baselines import run_baselines
    from grmp_edge.train.evaluate.handcrafted import metrics_named

    metrics = metrics_named(choice.names, choice.niqe_photos)
    found = run_baselines(output / "baselines", metrics, data, protocol, reporter=reporter)
    tables.baselines = found["splits"]
    tables.remarks["baselines"] = [
        "baselines: with 0 labels the metric's own score, higher being better, else an RBF support vector "
        "regression on its features of all N labels, tuned by cross-validation within them",
        *(f"{metric.title}: {metric.about}" for metric in metrics.values()),
    ]
    tables.write()


def evaluate_models(
    output: Path,
    model: ModelChoice,
    tasks: TaskChoice,
    meta: MetaChoice,
    target: TargetChoice,
    tuning: TuningChoice,
    data: Labelled,
    cross: Sequence[Labelled],
    splits: int,
    labels: Sequence[int | None],
    start: Path | None,
    no_mpp: bool,
    ablate: bool,
    keep_checkpoints: bool,
    allow_unfinished: bool,
    tables: Tables,
    reporter: Reporter,
) -> None:
    """Pre-train once where no checkpoint is given, then all splits of one way of training or of four."""
    from grmp_edge.cli.run_stages import do_pretrain
    from grmp_edge.train.evaluate.protocol import ProtocolConfig
    from grmp_edge.train.evaluate.splits import Variant, ablation, run_variants
    from grmp_edge.train.presets import leaks

    finetune = tuning.config()
    fraction = tuning.split().validation_fraction
    protocol = ProtocolConfig(
        splits, tuple(labels), tuning.test_fraction, fraction, tuning.seed, keep_checkpoints
    )
    if start is not None:
        model.check_start(start)
    elif not no_mpp:
        start = output / "pretrain"
        do_pretrain(start, model, tasks, meta, target, True, reporter, "png")
    before = _settings(start)
    name = (before.get("backbone") or {}).get("name") or model.name
    if ablate and start is not None:
        variants = ablation(output, start, finetune)
        tables.what = f"{name}, with and without MPP and QGR"
    else:
        method = f"{name}{', no MPP' if no_mpp else ''}{'' if finetune.qgr else ', no QGR'}"
        variants = [Variant(method if tables.baselines else "", output, start, finetune)]
        tables.what = (
            f"{name}, {'without' if no_mpp else 'with'} MPP, {'with' if finetune.qgr else 'without'} QGR"
        )
    tables.said = {"backbone": name, "mpp": start is not None, "qgr": finetune.qgr, "ablation": ablate}
    tables.leaks = leaks(finetune, before)
    epochs, batch = finetune.for_backbone(name).limits
    share = finetune.validation_fraction(name) if fraction is None else fraction
    tables.remarks["model"] = [
        f"at most {epochs} epochs in steps of {batch}, validation {share:.0%} of the labels, raw scores "
        "without a logistic fit",
        "labels 0: before fine-tuning",
    ]

    def on_split(found: list[dict[str, Any]]) -> None:
        tables.models = found
        tables.write()

    found = run_variants(
        variants, model.config(), data, protocol, cross, reporter, on_split, allow_unfinished
    )
    tables.models = found["splits"]


def _settings(start: Path | None) -> dict[str, Any]:
    """A pre-training checkpoint's config.json, as far as it can be read."""
    try:
        return dict(json.loads((start / "config.json").read_bytes())) if start else {}
    except (OSError, ValueError):
        return {}
