"""The few-shot protocol: random 80/20 splits, N labels of the 80 %, agreement on the 20 %.

Paper section 4. Every finished split is one JSON file per number of labels and is not run again; a split that
was interrupted continues from its checkpoint.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from grmp_edge.errors import CheckpointError
from grmp_edge.files import sha256_file
from grmp_edge.train.data.labelled import Labelled, split_indices
from grmp_edge.train.evaluate.protocol import Measures, ProtocolConfig, SplitResult, label_name, measure
from grmp_edge.train.evaluate.store import (
    check_settings,
    data_settings,
    read_result,
    split_file,
    without_predictions,
    write_result,
)
from grmp_edge.train.evaluate.tables import Tables
from grmp_edge.train.finetune.config import FinetuneConfig
from grmp_edge.train.finetune.loop import predict
from grmp_edge.train.finetune.seen import predict_labelled, preprocess_of
from grmp_edge.train.network.model import GrmpIqa
from grmp_edge.train.network.settings import settings_for
from grmp_edge.train.presets import leaks
from grmp_edge.train.runs import ModelConfig, build_network, pick_device, put_shipped_prompts, run_finetune
from grmp_edge.train.session.checkpoint import (
    WEIGHTS,
    CheckpointConfig,
    load_checkpoint,
    read_config,
    refuse_unfinished,
)
from grmp_edge.train.session.progress import Reporter, Silent
from grmp_edge.train.session.ranks import current_team

__all__ = ["InMemory", "TrainingConfig", "Variant", "ablation", "evaluate_models", "run_variants"]

UInt8Array = npt.NDArray[np.uint8]

_VERSION = 1


@dataclass(frozen=True)
class TrainingConfig:
    """How the tested models are trained."""

    model: ModelConfig  # built where there is no ``start``
    finetune: FinetuneConfig
    start: Path | None = None  # a pre-training checkpoint, shared by all splits; None: fresh prompts
    ablate: bool = False  # also without MPP, without QGR and without either; needs a ``start``
    allow_unfinished: bool = False  # accept a ``start`` that was stopped before its last epoch


@dataclass(frozen=True)
class Variant:
    """One way of training: a row of the table for every number of labels."""

    method: str  # its name there; empty where there is only one
    output: Path  # the folder of its finished splits
    start: Path | None  # a pre-training checkpoint; None: fresh prompts, of seed + k for split k
    finetune: FinetuneConfig
    zero_shot: bool = True  # False where another variant already has the same model before fine-tuning


@dataclass(frozen=True)
class InMemory(Labelled):
    """A labelled set that caches its squashed pictures: the splits overlap, and decoding is slow.

    Holds at most pictures x side x side x 3 bytes (207 MB for LIVEC at 244).
    """

    base: Labelled | None = None
    cache: dict[int, tuple[UInt8Array, npt.NDArray[np.bool_]]] = field(
        default_factory=dict, compare=False, repr=False
    )  # by side: pixels, and which of them are decoded

    @classmethod
    def of(cls, data: Labelled) -> InMemory:
        """Wrap a set."""
        own = (data.name, data.paths, data.mos, data.references, data.distortions, data.scale)
        return cls(*own, fixed=data.fixed, memo={}, base=data)

    def picture(self, index: int) -> UInt8Array:
        """One picture as it is, decoded."""
        return self.base.picture(index) if self.base else super().picture(index)

    def squashed(
        self, indices: Sequence[int], side: int, on_image: Callable[[], None] | None = None
    ) -> UInt8Array:
        """The chosen pictures, (n, side, side, 3) RGB; each is decoded once per side."""
        if side not in self.cache:
            # np.empty reserves addresses; memory is used only as pictures are written.
            self.cache[side] = np.empty((len(self), side, side, 3), np.uint8), np.zeros(len(self), np.bool_)
        pixels, decoded = self.cache[side]
        missing = [index for index in dict.fromkeys(indices) if not decoded[index]]
        if missing:
            decode = self.base.squashed if self.base else super().squashed
            pixels[missing] = decode(missing, side, on_image)
            decoded[missing] = True
        return pixels[list(indices)]


def evaluate_models(
    training: TrainingConfig,
    data: Labelled,
    protocol: ProtocolConfig,
    tables: Tables,
    cross: Sequence[Labelled] = (),
    reporter: Reporter | None = None,
) -> None:
    """Train and test on every split, and put the results into the tables as they come.

    Args:
        training: one way of training, or with ``ablate`` the paper's four.
        data: the set to learn from and test on.
        protocol: the splits and numbers of labels.
        tables: written after every split; ``tables.output`` also has the finished splits.
        cross: further sets on the whole of which every trained model is tested.
        reporter: receives the progress.

    Raises:
        CheckpointError: a folder holds a protocol of other settings, or ``start`` is not a checkpoint.
        DataError: too few pictures for a number of labels, or an unreadable picture.
    """
    start, finetune = training.start, training.finetune
    before = _config_of(start)
    name = _backbone_name(before, training.model)
    if training.ablate and start is not None:
        variants = ablation(tables.output, start, finetune)
        tables.what = f"{name}, with and without MPP and QGR"
    else:
        method = f"{name}{', no MPP' if start is None else ''}{'' if finetune.qgr else ', no QGR'}"
        variants = [Variant(method if tables.baselines else "", tables.output, start, finetune)]
        if start is None and training.model.shipped_prompts and finetune.method in ("head", "both"):
            # What any learning must beat: plain ridge regression on what the same frozen network sees.
            ridge = replace(finetune, method="ridge")
            floor = Variant("ridge on frozen features", tables.output / "ridge", None, ridge, zero_shot=False)
            variants = [replace(variants[0], method="few labels"), floor]
        tables.what = (
            f"{name}, {'without' if start is None else 'with'} MPP, "
            f"{'with' if finetune.qgr else 'without'} QGR"
        )
        if finetune.method == "head":
            tables.what = f"{name}, regression on the frozen network"
    tables.settings = {
        "backbone": name, "mpp": start is not None, "qgr": finetune.qgr, "ablation": training.ablate,
    }  # fmt: skip
    tables.leaks = leaks(finetune, before)
    tables.remarks["models"] = [
        "labels in closed form: ridge regression of what the network's own score misses, all labels learned "
        "from, penalty by cross-validation within them; raw scores without a logistic fit"
        if finetune.method == "head"
        else f"at most {finetune.epochs} epochs in steps of {finetune.batch}, validation "
        f"{protocol.validation_fraction:.0%} of the labels, raw scores without a logistic fit",
        "labels 0: before fine-tuning",
    ]

    def on_split(splits: list[SplitResult]) -> None:
        tables.models = splits
        if current_team().leads:
            tables.write()

    tables.models = run_variants(
        variants, training.model, data, protocol, cross, reporter, on_split, training.allow_unfinished
    )


def _config_of(start: Path | None) -> CheckpointConfig:
    """A pre-training checkpoint's config.json; empty if unreadable, which loading the checkpoint reports."""
    try:
        return read_config(start) if start else {}
    except CheckpointError:
        return {}


def _backbone_name(config: CheckpointConfig, model: ModelConfig) -> str:
    return str((config.get("backbone") or {}).get("name") or model.backbone.name)


def ablation(output: Path, start: Path, finetune: FinetuneConfig) -> list[Variant]:
    """The paper's ablation: everything, then without MPP, without QGR, and without either."""
    plain = replace(finetune, qgr=False)
    return [
        Variant("MPP + QGR", output / "full", start, finetune),
        Variant("no MPP", output / "no-mpp", None, finetune),
        Variant("no QGR", output / "no-qgr", start, plain, zero_shot=False),
        Variant("neither", output / "neither", None, plain, zero_shot=False),
    ]


class _Job(NamedTuple):
    variant: Variant
    labels: int | None
    split: int

    @property
    def file(self) -> Path:
        return split_file(self.variant.output, self.labels, self.split)


def run_variants(
    variants: Sequence[Variant],
    model: ModelConfig,
    data: Labelled,
    config: ProtocolConfig,
    cross: Sequence[Labelled] = (),
    reporter: Reporter | None = None,
    on_split: Callable[[list[SplitResult]], None] | None = None,
    allow_unfinished: bool = False,
) -> list[SplitResult]:
    """Run what is missing of the protocol: split by split, all variants on each.

    The ranks of a team share the work within each split, through one folder; rank 0 writes the results.

    Args:
        variants: the ways of training, each with a folder of its own. Splits already finished there with the
            same settings are reused; more splits or numbers of labels may be added.
        model: built where a variant has no ``start``.
        data: the set to learn from and test on.
        config: the protocol.
        cross: further sets on the whole of which every trained model is tested.
        reporter: receives splits as steps, and the metrics of the steps within one.
        on_split: called after each split with all splits finished so far.
        allow_unfinished: accept a pre-training run that was stopped before its last epoch.

    Returns:
        All splits with their ``method``, variant by variant, without their predictions.

    Raises:
        CheckpointError: a folder holds a protocol of other settings, or a start is not a checkpoint.
        DataError: too few pictures for a number of labels, or an unreadable picture.
    """
    reporter, team = reporter or Silent(), current_team()
    for labels in config.labels:
        for split in range(config.splits):
            split_indices(data, config.split(labels, split))  # too few pictures: fail before the work
    for variant in variants:
        start = variant.start
        if start is not None:
            if not (start / WEIGHTS).is_file():
                raise CheckpointError(
                    f"{start}: no such checkpoint", "make one with: grmp-edge train pretrain"
                )
            if not allow_unfinished:
                refuse_unfinished(start)
    for variant in variants:
        name = _backbone_name(_config_of(variant.start), model)
        settings = _settings(model, variant, data, config, cross)
        completed = partial(_completed, backbone=name)
        team.lead(partial(check_settings, variant.output, settings, completed))
    cached, others = InMemory.of(data), [InMemory.of(other) for other in cross]
    jobs = [
        _Job(variant, labels, split)
        for split in range(config.splits)
        for labels in config.labels
        for variant in variants
        if variant.zero_shot or labels != 0
    ]
    finished = team.lead(lambda: [read_result(job.file) for job in jobs])
    results = {job: result for job, result in zip(jobs, finished, strict=True) if result}
    reporter.start("splits", len(jobs), len(results))
    for job in jobs:
        if job in results:
            continue
        variant, labels, split = job
        folder = variant.output / "runs" / f"{label_name(labels)}-{split:02d}"
        result = _run_split(folder, job, model, cached, config, others, reporter)
        if team.leads:
            write_result(job.file, result)
            if not config.keep_checkpoints:
                shutil.rmtree(folder, ignore_errors=True)
        results[job] = result
        reporter.step(1)
        metrics, name = result["metrics"], f"{variant.method}, " if variant.method else ""
        reporter.note(
            f"{name}{label_name(labels)} labels, split {split}: SRCC {_shown(metrics['srcc'])}  "
            f"PLCC {_shown(metrics['plcc'])}  ({result['seconds']:.0f} s)"
        )
        if on_split:
            on_split(_by_variant(variants, jobs, results))
    if team.leads and not config.keep_checkpoints:
        for variant in variants:
            shutil.rmtree(variant.output / "runs", ignore_errors=True)
    return _by_variant(variants, jobs, results)


def _by_variant(
    variants: Sequence[Variant], jobs: Sequence[_Job], results: dict[_Job, SplitResult]
) -> list[SplitResult]:
    """The finished splits with their method, variant by variant, without their predictions."""
    named = []
    for variant in variants:
        for job in jobs:
            if job.variant == variant and job in results:
                result = without_predictions(results[job], variant.method)
                if not variant.zero_shot:
                    result["zero_shot"] = None
                named.append(result)
    return named


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _completed(recorded: dict[str, Any], backbone: str) -> dict[str, Any]:
    """Settings of an evaluation begun when null stood for the backbone's own, in today's form."""
    finetune = asdict(FinetuneConfig.of(backbone, **recorded["finetune"]))
    protocol = dict(recorded["protocol"])
    if protocol.get("validation_fraction") is None:
        protocol["validation_fraction"] = settings_for(backbone).validation_fraction
    del finetune["seed"]
    return {**recorded, "protocol": protocol, "finetune": finetune}


def _settings(
    model: ModelConfig,
    variant: Variant,
    data: Labelled,
    config: ProtocolConfig,
    cross: Sequence[Labelled],
) -> dict[str, Any]:
    """All that a finished split depends on; more splits and numbers of labels may be added."""
    protocol = asdict(config)
    for free in ("splits", "labels", "keep_checkpoints"):
        del protocol[free]
    start = variant.start
    return {
        "format_version": _VERSION,
        "data": data_settings(data),
        "cross": [data_settings(other) for other in cross],
        "model": None if start else {"backbone": asdict(model.backbone), "prompts": asdict(model.prompts)},
        "start": sha256_file(start / WEIGHTS) if start else None,
        "protocol": protocol,
        "finetune": {key: value for key, value in asdict(variant.finetune).items() if key != "seed"},
    }


def _run_split(
    folder: Path,
    job: _Job,
    model: ModelConfig,
    data: Labelled,
    config: ProtocolConfig,
    cross: Sequence[Labelled],
    reporter: Reporter,
) -> SplitResult:
    """Learn from a split's labels, or from none, and test; continues what was interrupted in ``folder``."""
    began = time.monotonic()
    (variant, labels, split), weights = job, model.backbone.pretrained or None
    division = config.split(labels, split)
    built = replace(model, seed=model.seed + split) if variant.start is None else model
    whole = range(len(data))
    if labels == 0:
        if variant.start is None:
            network, _ = build_network(built)
            put_shipped_prompts(network, built)
        else:
            network = load_checkpoint(variant.start, weights).model
        epoch, on_test, zero_shot, scale = 0, False, None, data.scale_of(whole)
    else:
        tuned = replace(variant.finetune, seed=division.seed)
        progress = run_finetune(
            folder, built, variant.start, data, division, tuned, True, _Within(reporter),
            allow_unfinished=True,
        )  # fmt: skip
        current_team().wait()  # rank 0 has written it
        loaded = load_checkpoint(folder, weights)
        current_team().wait()  # and may remove it
        network, scale = loaded.model, loaded.mos or data.scale_of(whole)
        epoch, on_test = progress["epoch"], progress["selected_on_test"]
        zero_shot = progress["metrics"].get("zero_shot_test")
    network = network.to(pick_device(model.device))
    test = list(split_indices(data, division).test)
    predicted = _predict(network, data, test)
    return {
        "labels": labels,
        "split": split,
        "seed": division.seed,
        "epoch": epoch,
        "selected_on_test": on_test,
        "metrics": measure(predicted, data.mos[test], scale),
        "zero_shot": zero_shot,
        "cross": {other.name: _test_on(network, other) for other in cross},
        "predictions": {
            "index": test,
            "mos": data.mos[test].tolist(),
            "value": [float(value) for value in predicted],
        },
        "seconds": time.monotonic() - began,
    }


def _predict(network: GrmpIqa, data: Labelled, indices: Sequence[int]) -> npt.NDArray[np.float32]:
    """Score pictures of a set, (n,) in 0..1, by all views that the network looks at."""
    if network.native or len(network.head_row):
        return predict_labelled(network, data, indices)
    return predict(network, data.squashed(indices, preprocess_of(network).resize), team=current_team())


def _test_on(network: GrmpIqa, data: Labelled) -> Measures:
    """Agreement on the whole of another set."""
    whole = range(len(data))
    chunks = (whole[at : at + 512] for at in range(0, len(data), 512))
    values: npt.NDArray[np.float32] = np.concatenate([_predict(network, data, chunk) for chunk in chunks])
    return measure(values, data.mos, data.scale_of(whole))


class _Within:
    """Reports the steps inside a split: their metrics are shown, but the bar counts splits."""

    def __init__(self, outer: Reporter) -> None:
        self.outer = outer

    def start(self, stage: str, total: int, done: int = 0) -> None:
        """Ignored: there would be one bar for every stage of every split."""

    def step(self, count: int = 1, **metrics: float) -> None:
        """Show the metrics."""
        self.outer.step(0, **metrics)

    def note(self, text: str) -> None:
        """Pass on."""
        self.outer.note(text)
