"""The command ``train``, its stages ``train pretrain`` and ``train finetune``, and ``train presets``."""

from __future__ import annotations

from pathlib import Path

import typer

from grmp_edge.cli import options as opt
from grmp_edge.cli.ranks import as_team
from grmp_edge.cli.run_stages import do_finetune, do_pretrain, refuse_overwrite
from grmp_edge.cli.train_result import finish, need_torch, presets, working
from grmp_edge.cli.training_options import MetaChoice, ModelChoice, TargetChoice, TaskChoice, TuningChoice
from grmp_edge.errors import UsageError

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
    group.callback()(as_team(train))
    group.command()(as_team(pretrain))
    group.command()(as_team(finetune))
    group.command()(presets)
    app.add_typer(group, name="train")


def train(
    context: typer.Context,
    data: opt.Data = None,
    output: opt.Output = _OUTPUT,
    images: opt.Images = None,
    mos_range: opt.MosRange = None,
    labels: opt.Labels = None,
    test_fraction: opt.TestFraction = 0.2,
    validation_fraction: opt.ValFraction = None,
    photos: opt.Photos = None,
    meta_data: opt.MetaData = None,
    distortions: opt.Distortions = None,
    max_photos: opt.MaxPhotos = None,
    backbone: opt.BackboneName = None,
    weights: opt.Weights = "",
    quick_gelu: opt.QuickGelu = None,
    normalization: opt.Norm = None,
    meta_epochs: opt.MetaEpochs = None,
    inner_lr: opt.InnerLr = None,
    outer_lr: opt.OuterLr = None,
    support_batch: opt.SupportBatch = 75,
    query_batch: opt.QueryBatch = 50,
    reset_per_task: opt.Reset = None,
    epochs: opt.Epochs = None,
    lr: opt.Lr = None,
    batch: opt.BatchSize = None,
    calibrate: opt.Calibrate = None,
    text_rate: opt.TextRate = None,
    no_mpp: opt.NoMpp = False,
    preset: opt.Preset = opt.PresetChoice.default,
    no_qgr: opt.NoQgr = False,
    strength: opt.Lambda = None,
    projection: opt.ProjectionOption = opt.ProjectionChoice.per_tensor,
    select_on_test: opt.SelectOnTest = None,
    precision: opt.TrainPrecision = opt.TrainPrecisionChoice.auto,
    curves: opt.Curves = opt.CurvesChoice.png,
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
    model = ModelChoice(backbone, weights, quick_gelu, normalization, seed, device, preset)
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
        calibrate,
        text_rate,
        no_qgr,
        strength,
        projection,
        select_on_test,
        seed,
        preset,
        precision,
    )
    tasks = TaskChoice(photos, meta_data, distortions, max_photos, seed)
    meta = MetaChoice(
        meta_epochs, inner_lr, outer_lr, support_batch, query_batch, reset_per_task, seed, precision
    )
    need_torch()
    tuning.check(model.name)
    first = None if no_mpp else output / "pretrain"
    if not resume:
        refuse_overwrite(output)  # before the first stage, not after it
    with working() as reporter:
        if first:
            target = TargetChoice(data, images, mos_range)
            do_pretrain(first, model, tasks, meta, target, resume, reporter, curves.value)
        result = do_finetune(output, model, first, tuning, resume, reporter, curves.value)
    finish(result, output, as_json, f"grmp-edge export {output} --fp16 -o bundles/{output.name}")


def pretrain(
    output: opt.Output = _OUTPUT / "pretrain",
    preset: opt.Preset = opt.PresetChoice.default,
    data: opt.TargetData = None,
    images: opt.Images = None,
    mos_range: opt.MosRange = None,
    photos: opt.Photos = None,
    meta_data: opt.MetaData = None,
    distortions: opt.Distortions = None,
    max_photos: opt.MaxPhotos = None,
    backbone: opt.BackboneName = None,
    weights: opt.Weights = "",
    quick_gelu: opt.QuickGelu = None,
    normalization: opt.Norm = None,
    meta_epochs: opt.MetaEpochs = None,
    inner_lr: opt.InnerLr = None,
    outer_lr: opt.OuterLr = None,
    support_batch: opt.SupportBatch = 75,
    query_batch: opt.QueryBatch = 50,
    reset_per_task: opt.Reset = None,
    precision: opt.TrainPrecision = opt.TrainPrecisionChoice.auto,
    curves: opt.Curves = opt.CurvesChoice.png,
    resume: opt.Resume = False,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    as_json: opt.AsJson = False,
) -> None:
    """Learn the prompts on tasks of one distortion each (MPP); needs no labels of yours."""
    need_torch()
    model = ModelChoice(backbone, weights, quick_gelu, normalization, seed, device, preset)
    tasks = TaskChoice(photos, meta_data, distortions, max_photos, seed)
    meta = MetaChoice(
        meta_epochs, inner_lr, outer_lr, support_batch, query_batch, reset_per_task, seed, precision
    )
    with working() as reporter:
        target = TargetChoice(data, images, mos_range)
        result = do_pretrain(output, model, tasks, meta, target, resume, reporter, curves.value)
    finish(result, output, as_json, f"grmp-edge train finetune --from {output} --data LABELS.csv")


def finetune(
    data: opt.Data = None,
    output: opt.Output = _OUTPUT,
    start: opt.From = None,
    allow_unfinished: opt.AllowUnfinished = False,
    preset: opt.Preset = opt.PresetChoice.default,
    images: opt.Images = None,
    mos_range: opt.MosRange = None,
    labels: opt.Labels = None,
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
    no_qgr: opt.NoQgr = False,
    strength: opt.Lambda = None,
    projection: opt.ProjectionOption = opt.ProjectionChoice.per_tensor,
    select_on_test: opt.SelectOnTest = None,
    precision: opt.TrainPrecision = opt.TrainPrecisionChoice.auto,
    curves: opt.Curves = opt.CurvesChoice.png,
    resume: opt.Resume = False,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    as_json: opt.AsJson = False,
) -> None:
    """Fine-tune on labelled pictures (QGR), from a pre-training checkpoint or shipped prompts.

    With --from, that checkpoint's backbone and normalisation hold; other ones are refused.
    """
    if data is None:
        raise UsageError(
            "training needs labelled pictures", "give a csv with the columns image,mos: --data FILE"
        )
    need_torch()
    model = ModelChoice(
        backbone, weights, quick_gelu, normalization, seed, device, preset, shipped_prompts=start is None
    )
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
        calibrate,
        text_rate,
        no_qgr,
        strength,
        projection,
        select_on_test,
        seed,
        preset,
        precision,
    )
    if start is not None:
        model.check_start(start)
    tuning.check(model.name_after(start))
    with working() as reporter:
        result = do_finetune(output, model, start, tuning, resume, reporter, curves.value, allow_unfinished)
    finish(result, output, as_json, f"grmp-edge export {output} --fp16 -o bundles/{output.name}")


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
