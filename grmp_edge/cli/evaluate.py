"""The command ``evaluate``: the few-shot protocol, its ablation and baselines, or an exported bundle."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from grmp_edge.cli import options as opt
from grmp_edge.errors import UsageError

if TYPE_CHECKING:
    from grmp_edge.train.evaluate.tables import Tables

__all__ = ["register"]


class PrecisionChoice(str, Enum):
    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"
    all = "all"


def register(app: typer.Typer) -> None:
    """Add ``evaluate`` to the app."""
    app.command()(evaluate)


def evaluate(
    data: Annotated[
        str, typer.Option("--data", help="Labelled set: NAME:PATH (see grmp-edge data check) or a csv.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for tables, plot and finished splits.")
    ] = Path("runs/evaluation"),
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help="Evaluate this exported bundle as it is; trains nothing.")
    ] = None,
    precision: Annotated[
        PrecisionChoice, typer.Option("--precision", help="Of the bundle: which graph, or all it has.")
    ] = PrecisionChoice.fp32,
    provider: Annotated[
        str, typer.Option("--provider", help="Of the bundle: auto, cpu, cuda or tensorrt.")
    ] = "auto",
    test_part: Annotated[
        int | None,
        typer.Option(
            "--test-part", help="Of the bundle: only the 20 % that training with this seed kept for testing."
        ),
    ] = None,
    splits: Annotated[int, typer.Option("--splits", min=1, help="Random 80/20 splits.")] = 10,
    labels: Annotated[
        str,
        typer.Option(
            "--labels",
            "-n",
            help="Numbers of labels, comma-separated; 0: without fine-tuning; 'all': the whole 80 %.",
        ),
    ] = "50,100,200",
    cross: Annotated[
        list[str] | None,
        typer.Option("--cross", help="Test every trained model on this set too; repeatable."),
    ] = None,
    ablate: Annotated[
        bool,
        typer.Option("--ablate", help="Also without MPP, without QGR and without either: four rows."),
    ] = False,
    baselines: Annotated[
        str | None,
        typer.Option(
            "--baselines",
            help="Hand-crafted metrics on the same splits: brisque,niqe,laplacian. With 0 labels their own "
            "score, else an SVR on their features of the same N labels.",
        ),
    ] = None,
    only_baselines: Annotated[
        bool, typer.Option("--only-baselines", help="Train nothing: the metrics of --baselines alone.")
    ] = False,
    niqe_photos: Annotated[
        Path | None,
        typer.Option(
            "--niqe-photos", help="Fit NIQE's model to these good photographs; default: its authors' model."
        ),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Pre-training checkpoint (MPP), shared by all splits; default: made in OUTPUT/pretrain.",
        ),
    ] = None,
    allow_unfinished: opt.AllowUnfinished = False,
    photos: opt.Photos = None,
    meta_data: opt.MetaData = None,
    distortions: opt.Distortions = None,
    max_photos: opt.MaxPhotos = None,
    meta_epochs: opt.MetaEpochs = None,
    no_mpp: Annotated[bool, typer.Option("--no-mpp", help="Fine-tune from fresh prompts.")] = False,
    no_qgr: opt.NoQgr = False,
    preset: opt.Preset = opt.PresetChoice.default,
    images: opt.Images = None,
    mos_range: opt.MosRange = None,
    test_fraction: opt.TestFraction = 0.2,
    validation_fraction: opt.ValFraction = None,
    backbone: opt.BackboneName = None,
    weights: opt.Weights = "",
    quick_gelu: opt.QuickGelu = None,
    normalization: opt.Norm = None,
    epochs: opt.Epochs = None,
    lr: opt.Lr = None,
    batch: opt.BatchSize = None,
    calibrate: opt.Calibrate = None,
    text_rate: opt.TextRate = None,
    strength: opt.Lambda = None,
    projection: opt.ProjectionOption = opt.ProjectionChoice.per_tensor,
    select_on_test: opt.SelectOnTest = None,
    train_precision: Annotated[
        opt.TrainPrecisionChoice,
        typer.Option("--train-precision", help="Matrix products in training: --precision of train."),
    ] = opt.TrainPrecisionChoice.auto,
    keep_checkpoints: Annotated[
        bool, typer.Option("--keep-checkpoints", help="Keep every split's checkpoint in its folder runs/.")
    ] = False,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    as_json: opt.AsJson = False,
) -> None:
    """Run the few-shot protocol on a labelled set, or test an exported bundle on it.

    The protocol: random 80/20 splits, N labels of the 80 %, agreement on the 20 %; finished splits are kept,
    so that the same command continues what was interrupted.
    """
    from grmp_edge.cli.training_options import scale_of_labels
    from grmp_edge.train.data.named_sets import notes_of, read_spec

    names = tuple(name for name in (baselines or "").replace(" ", "").split(",") if name)
    if bundle is None:
        _check(start, no_mpp, no_qgr, ablate, names, only_baselines, test_fraction)
    labelled = read_spec(data, images, scale_of_labels(mos_range))
    others = [read_spec(spec) for spec in cross or ()]
    for one in (labelled, *others):
        for note in notes_of(one):
            print(f"note: {note}", file=sys.stderr)
    if bundle is not None:
        from grmp_edge.cli.evaluate_bundle import evaluate_bundle

        evaluate_bundle(
            bundle, labelled, precision.value, provider, test_part, test_fraction, output, as_json
        )
        return
    from grmp_edge.cli.train_result import need_torch, working
    from grmp_edge.cli.training_options import MetaChoice, ModelChoice, TargetChoice, TaskChoice, TuningChoice
    from grmp_edge.train.evaluate.protocol import ProtocolConfig
    from grmp_edge.train.evaluate.tables import Tables

    tuning = TuningChoice(
        data, images, mos_range, None, test_fraction, validation_fraction, epochs, lr, batch, calibrate,
        text_rate, no_qgr, strength, projection, select_on_test, seed, preset, train_precision,
    )  # fmt: skip
    protocol = ProtocolConfig(splits, _labels(labels), test_fraction, seed=seed)
    tables = Tables(output, labelled.name, preset.value, seed, test_fraction)
    if not only_baselines:
        need_torch()
    with working("the same command goes on from the last finished split") as progress:
        if names:
            from grmp_edge.train.evaluate.baselines import BaselineConfig, evaluate_baselines

            evaluate_baselines(BaselineConfig(names, niqe_photos), labelled, protocol, tables, progress)
        if not only_baselines:
            from grmp_edge.cli.run_stages import do_pretrain
            from grmp_edge.train.evaluate.splits import TrainingConfig, evaluate_models

            model = ModelChoice(backbone, weights, quick_gelu, normalization, seed, device, preset)
            if start is not None:
                model.check_start(start)
            elif not no_mpp:
                start = output / "pretrain"
                tasks = TaskChoice(photos, meta_data, distortions, max_photos, seed)
                meta = MetaChoice(meta_epochs, None, None, 75, 50, None, seed, train_precision)
                target = TargetChoice(data, images, mos_range)
                do_pretrain(start, model, tasks, meta, target, True, progress, "png")
            name = model.name_after(start)
            protocol = replace(
                protocol,
                validation_fraction=tuning.split(name).validation_fraction,
                keep_checkpoints=keep_checkpoints,
            )
            training = TrainingConfig(model.config(), tuning.config(name), start, ablate, allow_unfinished)
            evaluate_models(training, labelled, protocol, tables, others, progress)
    tables.write()
    _show(tables, as_json)


def _show(tables: Tables, as_json: bool) -> None:
    """Print the table, or all of it as JSON, and what comes next."""
    from grmp_edge.train.evaluate.protocol import text_table

    result = tables.result()
    if as_json:
        print(json.dumps(result))
    else:
        print(tables.title)
        print(text_table(result["rows"]))
        for leak in tables.leaks:
            print(f"not an honest figure: {leak}")
    print(
        f"written: {tables.output}/table.md, table.csv, plot.svg, results.json\n"
        "next: grmp-edge train --data ... (one model of these settings), then grmp-edge export",
        file=sys.stderr,
    )


def _check(
    start: Path | None,
    no_mpp: bool,
    no_qgr: bool,
    ablate: bool,
    baselines: tuple[str, ...],
    only_baselines: bool,
    test_fraction: float,
) -> None:
    if start is not None and no_mpp:
        raise UsageError("--from and --no-mpp contradict each other", "give one of them")
    if ablate and (no_mpp or no_qgr):
        raise UsageError("--ablate runs with and without MPP and QGR", "leave --no-mpp and --no-qgr out")
    if only_baselines and not baselines:
        raise UsageError("--only-baselines without --baselines", "for instance --baselines brisque,laplacian")
    if test_fraction == 0:
        raise UsageError("--test-fraction 0 leaves nothing to test on", "for instance --test-fraction 0.2")


def _labels(text: str) -> tuple[int | None, ...]:
    found: list[int | None] = []
    for part in text.replace(" ", "").split(","):
        if part == "all":
            found.append(None)
        elif part.isdecimal() and (int(part) >= 4 or int(part) == 0):
            found.append(int(part))
        else:
            raise UsageError(
                f"--labels {text!r}: {part!r} is no number of labels",
                "for instance 0,50,100,all",
            )
    return tuple(dict.fromkeys(found))
