"""The few-shot protocol: random 80/20 splits, N labels of the 80 %, agreement on the 20 %.

Paper section 4. One JSON file per split and number of labels, written when it is finished; what is finished
is not run again, and a split that was interrupted continues from its checkpoint.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grmp_edge.errors import CheckpointError
from grmp_edge.files import sha256_file
from grmp_edge.train.data.labelled import Labelled, split_indices
from grmp_edge.train.evaluate.evaluate_split import run_split
from grmp_edge.train.evaluate.protocol import ProtocolConfig, label_name, summarize
from grmp_edge.train.evaluate.store import data_settings, finished, keep, same_settings, split_file
from grmp_edge.train.finetune.config import FinetuneConfig
from grmp_edge.train.runs import ModelConfig
from grmp_edge.train.session.checkpoint import WEIGHTS, refuse_unfinished
from grmp_edge.train.session.progress import Reporter, Silent

__all__ = ["InMemory", "ProtocolConfig", "Variant", "ablation", "run_protocol", "run_variants"]

UInt8Array = npt.NDArray[np.uint8]

_VERSION = 1


@dataclass(frozen=True)
class InMemory(Labelled):
    """A labelled set whose squashed pictures are kept: the splits overlap, and decoding is slow.

    Holds at most pictures x side x side x 3 bytes (207 MB for LIVEC at 244).
    """

    base: Labelled | None = None
    kept: dict[int, tuple[UInt8Array, npt.NDArray[np.bool_]]] = field(
        default_factory=dict, compare=False, repr=False
    )

    @classmethod
    def of(cls, data: Labelled) -> InMemory:
        """Wrap a set."""
        return cls(data.name, data.paths, data.mos, data.references, data.distortions, data.scale, base=data)

    def squashed(
        self, indices: Sequence[int], side: int, on_image: Callable[[], None] | None = None
    ) -> UInt8Array:
        """The chosen pictures, (n, side, side, 3) RGB, decoded only if they never were at this side."""
        if side not in self.kept:
            # Pages are taken from the system only when they are written.
            self.kept[side] = np.empty((len(self), side, side, 3), np.uint8), np.zeros(len(self), np.bool_)
        pixels, known = self.kept[side]
        missing = [index for index in dict.fromkeys(indices) if not known[index]]
        if missing:
            found = self.base.squashed if self.base else super().squashed
            pixels[missing] = found(missing, side, on_image)
            known[missing] = True
        return pixels[list(indices)]


@dataclass(frozen=True)
class Variant:
    """One way of training, a row of the table for every number of labels."""

    method: str  # its name there; empty where there is only one
    output: Path  # the folder of its finished splits
    start: Path | None  # a pre-training checkpoint; None: fresh prompts, of seed + k for split k
    finetune: FinetuneConfig
    zero_shot: bool = True  # whether it shows the model before fine-tuning, or another row does already


def ablation(output: Path, start: Path, finetune: FinetuneConfig) -> list[Variant]:
    """The paper's ablation: everything, then without MPP, without QGR, and without either."""
    plain = replace(finetune, qgr=False)
    return [
        Variant("MPP + QGR", output / "full", start, finetune),
        Variant("no MPP", output / "no-mpp", None, finetune),
        Variant("no QGR", output / "no-qgr", start, plain, zero_shot=False),
        Variant("neither", output / "neither", None, plain, zero_shot=False),
    ]


def run_protocol(
    output: Path,
    model: ModelConfig,
    start: Path | None,
    data: Labelled,
    config: ProtocolConfig,
    finetune: FinetuneConfig,
    cross: Sequence[Labelled] = (),
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Run what is missing of the protocol for one way of training, into ``output``; see run_variants."""
    return run_variants([Variant("", output, start, finetune)], model, data, config, cross, reporter)


def run_variants(
    variants: Sequence[Variant],
    model: ModelConfig,
    data: Labelled,
    config: ProtocolConfig,
    cross: Sequence[Labelled] = (),
    reporter: Reporter | None = None,
    on_split: Callable[[list[dict[str, Any]]], None] | None = None,
    allow_unfinished: bool = False,
) -> dict[str, Any]:
    """Run what is missing of the protocol and summarise it: split by split, all variants on each.

    Args:
        variants: the ways of training, each with a folder of its own; with the same settings as before its
            finished splits are kept, and more splits or numbers of labels may be asked for.
        model: what to build where a variant has no ``start``.
        data: the set to learn from and test on.
        config: the protocol.
        cross: further sets on the whole of which every trained model is tested.
        reporter: told of splits, and of the steps within one by their metrics.
        on_split: given all splits finished so far whenever another one is.
        allow_unfinished: begin from a pre-training run that was not finished, too.

    Returns:
        ``splits`` (the content of every split's file and its ``method``, without its predictions) and
        ``rows`` (see :func:`grmp_edge.train.evaluate.protocol.summarize`).

    Raises:
        CheckpointError: a folder holds a protocol of other settings, or a start is no checkpoint.
        DataError: too few pictures for a number of labels, or an unreadable picture.
    """
    reporter = reporter or Silent()
    for labels in config.labels:
        for split in range(config.splits):
            split_indices(data, config.split(labels, split))  # too few pictures: say so before the work
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
        same_settings(variant.output, _settings(model, variant, data, config, cross))
    kept, others = InMemory.of(data), [InMemory.of(other) for other in cross]
    jobs = [
        (variant, labels, split)
        for split in range(config.splits)
        for labels in config.labels
        for variant in variants
        if variant.zero_shot or labels != 0
    ]
    done = [finished(split_file(variant.output, labels, split)) for variant, labels, split in jobs]
    reporter.start("splits", len(jobs), sum(found is not None for found in done))
    for place, (variant, labels, split) in enumerate(jobs):
        if done[place] is not None:
            continue
        folder = variant.output / "runs" / f"{label_name(labels)}-{split:02d}"
        found = run_split(
            folder, model, variant.start, kept, config, variant.finetune, others, labels, split, reporter
        )
        keep(split_file(variant.output, labels, split), found)
        if not config.keep_checkpoints:
            shutil.rmtree(folder, ignore_errors=True)
        done[place] = found
        reporter.step(1)
        metrics, name = found["metrics"], f"{variant.method}, " if variant.method else ""
        reporter.note(
            f"{name}{label_name(labels)} labels, split {split}: SRCC {_shown(metrics['srcc'])}  "
            f"PLCC {_shown(metrics['plcc'])}  ({found['seconds']:.0f} s)"
        )
        if on_split:
            on_split(_named(jobs, done))
    if not config.keep_checkpoints:
        for variant in variants:
            shutil.rmtree(variant.output / "runs", ignore_errors=True)
    splits = _named(jobs, done)
    return {"splits": splits, "rows": summarize(splits)}


def _named(
    jobs: Sequence[tuple[Variant, int | None, int]], done: Sequence[dict[str, Any] | None]
) -> list[dict[str, Any]]:
    """Finished splits with their method, variant by variant, without their predictions."""
    order = {variant.method: place for place, variant in enumerate(dict.fromkeys(job[0] for job in jobs))}
    named = []
    for (variant, _, _), found in zip(jobs, done, strict=True):
        if found is not None:
            content = {key: value for key, value in found.items() if key != "predictions"}
            if not variant.zero_shot:
                content["zero_shot"] = None
            named.append({"method": variant.method, **content})
    return sorted(named, key=lambda found: order[found["method"]])


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _settings(
    model: ModelConfig,
    variant: Variant,
    data: Labelled,
    config: ProtocolConfig,
    cross: Sequence[Labelled],
) -> dict[str, Any]:
    """All that a finished split depends on; splits and labels may grow."""
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
