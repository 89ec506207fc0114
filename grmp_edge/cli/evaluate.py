"""The command ``evaluate``: the few-shot protocol, its ablation and baselines, or an exported bundle."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from grmp_edge.cli import options as opt
from grmp_edge.cli.evaluate_bundle import BundleOptions, evaluate_bundle
from grmp_edge.cli.groups import PERFORMANCE, add_command, option
from grmp_edge.cli.progress import working
from grmp_edge.cli.ranks import as_team, leads
from grmp_edge.cli.requirements import need_torch
from grmp_edge.cli.train import pretrain_into
from grmp_edge.cli.training_options import (
    AllowUnfinished,
    MetaEpochs,
    MetaOptions,
    ModelOptions,
    NoMpp,
    RunOptions,
    SetOptions,
    SplitOptions,
    TaskOptions,
    TestData,
    TestImages,
    TrainPrecision,
    TuningOptions,
)
from grmp_edge.errors import UsageError

if TYPE_CHECKING:
    from grmp_edge.train.data.labelled import Labelled
    from grmp_edge.train.evaluate.tables import Tables

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add ``evaluate`` to the app."""
    example = (
        "grmp-edge data sample\ngrmp-edge evaluate --data sample-data/labels.csv --splits 2 --labels 0,24"
    )
    add_command(app, evaluate, example)


@dataclass(frozen=True)
class BaselineOptions:
    """Hand-crafted metrics to compare with."""

    baselines: Annotated[
        str | None,
        option(
            "--baselines",
            "Hand-crafted metrics on the same splits: brisque,niqe,laplacian. With 0 labels "
            "their own score, else an SVR on their features of the same N labels.",
        ),
    ] = None
    only_baselines: Annotated[
        bool, option("--only-baselines", "Train nothing: the metrics of --baselines alone.")
    ] = False
    niqe_photos: Annotated[
        Path | None,
        option("--niqe-photos", "Fit NIQE's model to these good photographs; default: its authors' model."),
    ] = None

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics asked for."""
        return tuple(name for name in (self.baselines or "").replace(" ", "").split(",") if name)


@dataclass(frozen=True)
class ProtocolOptions:
    """What the protocol runs, and from which prompts."""

    splits: Annotated[int, option("--splits", "Random 80/20 splits.", min=1)] = 10
    labels: Annotated[
        str,
        option(
            "--labels -n",
            "Numbers of labels, comma-separated; 0: without fine-tuning; 'all': the whole 80 %.",
        ),
    ] = "50,100,200"
    cross: Annotated[
        list[str] | None, option("--cross", "Test every trained model on this set too; repeatable.")
    ] = None
    cross_images: Annotated[
        list[Path] | None,
        option("--cross-images", "Folder of the pictures of --cross; repeatable, in the same order."),
    ] = None
    ablate: Annotated[
        bool, option("--ablate", "Also without MPP, without QGR and without either: four rows.")
    ] = False
    start: Annotated[
        Path | None,
        option(
            "--from", "Pre-training checkpoint (MPP), shared by all splits; default: made in OUTPUT/pretrain."
        ),
    ] = None
    allow_unfinished: AllowUnfinished = False
    keep_checkpoints: Annotated[
        bool, option("--keep-checkpoints", "Keep every split's checkpoint in its folder runs/.")
    ] = False
    no_mpp: NoMpp = False
    meta_epochs: MetaEpochs = None
    train_precision: Annotated[
        TrainPrecision,
        option("--train-precision", "Matrix products in training: --precision of train.", PERFORMANCE),
    ] = "auto"

    def others(self) -> list[Labelled]:
        """The sets of --cross.

        Raises:
            UsageError: there are folders of pictures, but not one for each.
        """
        from grmp_edge.train.data.named_sets import read_spec

        specs = self.cross or []
        folders: list[Path | None] = [*(self.cross_images or ())] or [None for _ in specs]
        if len(folders) != len(specs):
            raise UsageError(
                f"{len(folders)} --cross-images for {len(specs)} --cross",
                "give one for each, in the same order",
            )
        return [read_spec(spec, images) for spec, images in zip(specs, folders, strict=True)]

    def counts(self) -> tuple[int | None, ...]:
        """The numbers of labels, None for all.

        Raises:
            UsageError: a part of --labels is not a number of labels.
        """
        counts: list[int | None] = []
        for part in self.labels.replace(" ", "").split(","):
            if part == "all":
                counts.append(None)
            elif part.isdecimal() and (int(part) >= 4 or int(part) == 0):
                counts.append(int(part))
            else:
                raise UsageError(
                    f"--labels {self.labels!r}: {part!r} is no number of labels", "for instance 0,50,100,all"
                )
        return tuple(dict.fromkeys(counts))


_HINT = "the same command continues from the last finished split"


@partial(as_team, hint=_HINT)
def evaluate(
    *,
    data: Annotated[str, option("--data", "Labelled set: NAME:PATH (see grmp-edge data check) or a csv.")],
    test_data: TestData = None,
    test_images: TestImages = None,
    sets: SetOptions,
    output: Annotated[Path, option("--output -o", "Folder for tables, plot and finished splits.")] = Path(
        "runs/evaluation"
    ),
    exported: BundleOptions,
    protocol: ProtocolOptions,
    baselines: BaselineOptions,
    split: SplitOptions,
    tasks: TaskOptions,
    model: ModelOptions,
    tuning: TuningOptions,
    as_json: opt.AsJson = False,
) -> None:
    """Measure agreement with human scores on a labelled set.

    Runs the few-shot protocol: random 80/20 splits, N labels of the 80 %, agreement on the 20 %. Finished
    splits are kept, so the same command continues an interrupted run. With --bundle, tests an exported
    bundle instead. Under torchrun, several processes share the training.
    """
    from grmp_edge.train.data.sides import refuse_shared

    if exported.bundle is None:
        _check(protocol, baselines, split, tuning)
    if test_data is None and test_images is not None:
        raise UsageError("--test-images without --test-data", "give the set with --test-data")
    labelled = sets.read(data, model.preset, test_data, test_images)
    others = protocol.others()
    for other in others:
        refuse_shared(labelled, other)
    for one in (labelled, *others):
        for note in one.notes:
            print(f"note: {note}", file=sys.stderr)
    if exported.bundle is not None:
        if not leads():
            return
        evaluate_bundle(exported.bundle, labelled, exported, split.tested, output, as_json)
        return
    from grmp_edge.train.evaluate.baselines import BaselineConfig, evaluate_baselines
    from grmp_edge.train.evaluate.protocol import ProtocolConfig
    from grmp_edge.train.evaluate.tables import Tables

    config = ProtocolConfig(protocol.splits, protocol.counts(), split.tested, seed=split.seed)
    tables = Tables(output, labelled.name, model.preset, split.seed, split.tested)
    if not baselines.only_baselines:
        need_torch()
    with working(output, _HINT) as progress:
        if baselines.names and leads():
            metrics = BaselineConfig(baselines.names, baselines.niqe_photos)
            evaluate_baselines(metrics, labelled, config, tables, progress)
        if not baselines.only_baselines:
            from grmp_edge.train.evaluate.splits import TrainingConfig, evaluate_models

            start = protocol.start
            own = (protocol.no_mpp, protocol.meta_epochs, protocol.ablate, tasks.given, start)
            shipped = model.ships and model.preset == "default" and not any(own)
            if start is not None:
                model.check_start(start)
            elif not protocol.no_mpp and not shipped:
                start = output / "pretrain"
                meta = MetaOptions(protocol.meta_epochs, seed=split.seed)
                run = RunOptions(resume=True, precision=protocol.train_precision)
                pretrain_into(start, model, tasks, meta, labelled, run, progress)
            name = model.name_after(start)
            config = replace(
                config,
                validation_fraction=split.config(name).validation_fraction,
                keep_checkpoints=protocol.keep_checkpoints,
            )
            training = TrainingConfig(
                model.config(shipped_prompts=shipped),
                tuning.config(name, protocol.train_precision, shipped),
                start,
                protocol.ablate,
                protocol.allow_unfinished,
            )
            evaluate_models(training, labelled, config, tables, others, progress)
    if leads():
        tables.write()
        _show(tables, as_json)


def _show(tables: Tables, as_json: bool) -> None:
    """Print the table, or all of it as JSON, and what comes next."""
    from grmp_edge.train.evaluate.protocol import INTERVAL, text_table

    result = tables.result()
    if as_json:
        print(json.dumps(result))
    else:
        print(tables.title)
        print(text_table(result["rows"]))
        print(INTERVAL)
        for leak in tables.leaks:
            print(f"not an honest figure: {leak}")
    print(
        f"written: {tables.output}/table.md, table.csv, plot.svg, results.json\n"
        "next: grmp-edge train --data ... (one model of these settings), then grmp-edge export",
        file=sys.stderr,
    )


def _check(
    protocol: ProtocolOptions, baselines: BaselineOptions, split: SplitOptions, tuning: TuningOptions
) -> None:
    if protocol.start is not None and protocol.no_mpp:
        raise UsageError("--from and --no-mpp contradict each other", "give one of them")
    if protocol.ablate and (protocol.no_mpp or tuning.no_qgr):
        raise UsageError("--ablate runs with and without MPP and QGR", "leave --no-mpp and --no-qgr out")
    if baselines.only_baselines and not baselines.names:
        raise UsageError("--only-baselines without --baselines", "for instance --baselines brisque,laplacian")
    if split.test_fraction == 0:
        raise UsageError("--test-fraction 0 leaves nothing to test on", "for instance --test-fraction 0.2")
