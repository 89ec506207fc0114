"""The command ``train`` and its stages ``train pretrain`` and ``train finetune``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from grmp_edge import cli_options as opt
from grmp_edge.cli_stages import (
    MetaChoice,
    ModelChoice,
    TaskChoice,
    TuningChoice,
    do_finetune,
    do_pretrain,
    refuse_overwrite,
)
from grmp_edge.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    from grmp_edge.cli_progress import TrainProgress

__all__ = ["register"]

_OUTPUT = Path("runs/grmp-edge")


def register(app: typer.Typer) -> None:
    """Add ``train`` to the app."""
    group = typer.Typer(
        help="Train: meta-pre-training of the prompts, then few-shot fine-tuning (both stages by default).",
        invoke_without_command=True,
        rich_markup_mode=None,
        add_completion=False,
    )
    group.callback()(train)
    group.command()(pretrain)
    group.command()(finetune)
    app.add_typer(group, name="train")


def train(
    context: typer.Context,
    data: opt.Data = None,
    output: opt.Output = _OUTPUT,
    images: opt.Images = None,
    mos_range: opt.MosRange = None,
    labels: opt.Labels = None,
    test_fraction: opt.TestFraction = 0.2,
    validation_fraction: opt.ValFraction = 0.2,
    photos: opt.Photos = None,
    meta_data: opt.MetaData = None,
    distortions: opt.Distortions = None,
    max_photos: opt.MaxPhotos = None,
    backbone: opt.BackboneName = "embedded-s16",
    weights: opt.Weights = "",
    quick_gelu: opt.QuickGelu = None,
    normalization: opt.Norm = None,
    meta_epochs: opt.MetaEpochs = None,
    inner_lr: opt.InnerLr = None,
    outer_lr: opt.OuterLr = None,
    support_batch: opt.SupportBatch = 75,
    query_batch: opt.QueryBatch = 50,
    reset_per_task: opt.Reset = True,
    epochs: opt.Epochs = 2000,
    lr: opt.Lr = None,
    batch: opt.BatchSize = 192,
    no_mpp: opt.NoMpp = False,
    no_qgr: opt.NoQgr = False,
    strength: opt.Lambda = 5.0,
    projection: opt.ProjectionOption = opt.ProjectionChoice.per_tensor,
    select_on_test: opt.SelectOnTest = False,
    resume: opt.Resume = False,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    as_json: opt.AsJson = False,
) -> None:
    """Train both stages: learn the prompts on distortion tasks, then fine-tune on labelled pictures.

    Writes OUTPUT (the checkpoint to export) and OUTPUT/pretrain.
    """
    if context.invoked_subcommand is not None:
        given = [name for name in context.params if _is_given(context, name)]
        if given:
            raise UsageError(
                f"--{given[0].replace('_', '-')} stands before {context.invoked_subcommand!r}",
                f"write it after: grmp-edge train {context.invoked_subcommand} ...",
            )
        return
    if data is None:
        raise UsageError(
            "training needs labelled pictures", "give a csv with the columns image,mos: --data FILE"
        )
    model = ModelChoice(backbone, weights, quick_gelu, normalization, seed, device)
    tuning = TuningChoice(
        data,
        images,
        mos_range,
        labels,
        test_fraction,
        validation_fraction,
        epochs,
        lr,
        batch,
        no_qgr,
        strength,
        projection,
        select_on_test,
        seed,
    )
    tasks = TaskChoice(photos, meta_data, distortions, max_photos, seed)
    meta = MetaChoice(meta_epochs, inner_lr, outer_lr, support_batch, query_batch, reset_per_task, seed)
    _need_torch()
    tuning.check()
    first = None if no_mpp else output / "pretrain"
    if not resume:
        refuse_overwrite(output)  # before the first stage, not after it
    with _working() as reporter:
        if first:
            do_pretrain(first, model, tasks, meta, resume, reporter)
        result = do_finetune(output, model, first, tuning, resume, reporter)
    _finish(result, output, as_json, f"grmp-edge export {output} --fp16 -o bundles/{output.name}")


def pretrain(
    output: opt.Output = _OUTPUT / "pretrain",
    photos: opt.Photos = None,
    meta_data: opt.MetaData = None,
    distortions: opt.Distortions = None,
    max_photos: opt.MaxPhotos = None,
    backbone: opt.BackboneName = "embedded-s16",
    weights: opt.Weights = "",
    quick_gelu: opt.QuickGelu = None,
    normalization: opt.Norm = None,
    meta_epochs: opt.MetaEpochs = None,
    inner_lr: opt.InnerLr = None,
    outer_lr: opt.OuterLr = None,
    support_batch: opt.SupportBatch = 75,
    query_batch: opt.QueryBatch = 50,
    reset_per_task: opt.Reset = True,
    resume: opt.Resume = False,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    as_json: opt.AsJson = False,
) -> None:
    """Learn the prompts on tasks of one distortion each (MPP); needs no labels of yours."""
    _need_torch()
    model = ModelChoice(backbone, weights, quick_gelu, normalization, seed, device)
    tasks = TaskChoice(photos, meta_data, distortions, max_photos, seed)
    meta = MetaChoice(meta_epochs, inner_lr, outer_lr, support_batch, query_batch, reset_per_task, seed)
    with _working() as reporter:
        result = do_pretrain(output, model, tasks, meta, resume, reporter)
    _finish(result, output, as_json, f"grmp-edge train finetune --from {output} --data LABELS.csv")


def finetune(
    data: opt.Data = None,
    output: opt.Output = _OUTPUT,
    start: opt.From = None,
    images: opt.Images = None,
    mos_range: opt.MosRange = None,
    labels: opt.Labels = None,
    test_fraction: opt.TestFraction = 0.2,
    validation_fraction: opt.ValFraction = 0.2,
    backbone: opt.BackboneName = "embedded-s16",
    weights: opt.Weights = "",
    quick_gelu: opt.QuickGelu = None,
    normalization: opt.Norm = None,
    epochs: opt.Epochs = 2000,
    lr: opt.Lr = None,
    batch: opt.BatchSize = 192,
    no_qgr: opt.NoQgr = False,
    strength: opt.Lambda = 5.0,
    projection: opt.ProjectionOption = opt.ProjectionChoice.per_tensor,
    select_on_test: opt.SelectOnTest = False,
    resume: opt.Resume = False,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    as_json: opt.AsJson = False,
) -> None:
    """Fine-tune on labelled pictures (QGR), from a pre-training checkpoint or from fresh prompts.

    With --from, that checkpoint's backbone and normalisation hold.
    """
    if data is None:
        raise UsageError(
            "training needs labelled pictures", "give a csv with the columns image,mos: --data FILE"
        )
    _need_torch()
    model = ModelChoice(backbone, weights, quick_gelu, normalization, seed, device)
    tuning = TuningChoice(
        data,
        images,
        mos_range,
        labels,
        test_fraction,
        validation_fraction,
        epochs,
        lr,
        batch,
        no_qgr,
        strength,
        projection,
        select_on_test,
        seed,
    )
    tuning.check()
    with _working() as reporter:
        result = do_finetune(output, model, start, tuning, resume, reporter)
    _finish(result, output, as_json, f"grmp-edge export {output} --fp16 -o bundles/{output.name}")


def _finish(result: dict[str, Any], output: Path, as_json: bool, then: str) -> None:
    said = {key: value for key, value in result.items() if key not in ("history", "lr", "waited")}
    if as_json:
        print(json.dumps({"checkpoint": str(output), **said}))
    else:
        for name, found in result.get("metrics", {}).items():
            numbers = "  ".join(
                f"{key.upper()} {'-' if value is None else format(value, '.3f')}"
                for key, value in found.items()
                if key != "count"
            )
            print(f"{name:20} {numbers}  ({found['count']} pictures)")
        if result.get("selected_on_test"):
            print("the epoch was chosen on the test part: these test figures are not honest ones")
        if result.get("held_out_tasks"):
            print(f"held-out tasks  SRCC {result['best_srcc']:.3f}  ({', '.join(result['held_out_tasks'])})")
    print(f"checkpoint: {output}\nnext: {then}", file=sys.stderr)


def _need_torch() -> None:
    from importlib.util import find_spec

    for package in ("torch", "open_clip", "safetensors"):
        if find_spec(package) is None:
            raise MissingDependencyError(package, "train", "training")


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


@contextmanager
def _working() -> Iterator[TrainProgress]:
    from grmp_edge.cli_progress import TrainProgress

    try:
        with TrainProgress() as reporter:
            yield reporter
    except KeyboardInterrupt:
        print("stopped; the same command with --resume goes on from the last save", file=sys.stderr)
        raise
