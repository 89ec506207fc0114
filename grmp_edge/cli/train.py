"""The command ``train``, its stages ``train pretrain`` and ``train finetune``, and ``train presets``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from grmp_edge.cli import options as opt
from grmp_edge.cli.groups import add_command, grouped, new_group, option
from grmp_edge.cli.progress import working
from grmp_edge.cli.ranks import as_team
from grmp_edge.cli.requirements import need_torch
from grmp_edge.cli.training_options import (
    AllowUnfinished,
    MetaOptions,
    ModelOptions,
    NoMpp,
    RunOptions,
    SetOptions,
    SplitOptions,
    TaskOptions,
    TestData,
    TestImages,
    TuningOptions,
)
from grmp_edge.errors import UsageError
from grmp_edge.files import as_typed

if TYPE_CHECKING:
    from grmp_edge.train.data.labelled import Labelled, SplitConfig
    from grmp_edge.train.finetune.config import FinetuneConfig
    from grmp_edge.train.session.progress import Reporter

__all__ = ["pretrain_into", "register"]

_OUTPUT = Path("runs/grmp-edge")
_NEXT_EXPORT = "grmp-edge export {output} --fp16 -o {bundle}"

_Data = Annotated[
    str | None,
    option("--data", "Labelled pictures: a csv with the columns image,mos, or SET:PATH such as livec:DIR."),
]
_Labels = Annotated[
    int | None,
    option("--labels -n", "How many labels to learn from; default: all that are not for testing.", min=4),
]


def register(app: typer.Typer) -> None:
    """Add ``train`` to the app."""
    group = new_group(
        "train",
        "Train on a few labelled pictures.\n\n"
        "By default, the short way, in minutes: from the embedded backbone and the prompts that ship, a "
        "head is fitted to the labels. With --photos, --meta-data, --meta-epochs, --preset reference or "
        "another --backbone, the paper's, in hours: prompts are learned on distortion tasks (MPP) into "
        "OUTPUT/pretrain, then the labels (QGR). Writes OUTPUT, the checkpoint to export.",
    )
    group.callback(
        invoke_without_command=True,
        epilog="grmp-edge data sample\ngrmp-edge train --data sample-data/labels.csv --labels 50",
    )(grouped(train))
    add_command(group, pretrain, "grmp-edge train pretrain --max-photos 6 -o runs/prompts")
    add_command(
        group,
        finetune,
        "grmp-edge data sample\n"
        "grmp-edge train finetune --data sample-data/labels.csv --labels 50 -o runs/tuned",
    )
    add_command(group, presets, "grmp-edge train presets")
    app.add_typer(group)


@as_team
def train(
    context: typer.Context,
    *,
    data: _Data = None,
    test_data: TestData = None,
    test_images: TestImages = None,
    sets: SetOptions,
    labels: _Labels = None,
    output: opt.Output = _OUTPUT,
    split: SplitOptions,
    tasks: TaskOptions,
    model: ModelOptions,
    no_mpp: NoMpp = False,
    meta: MetaOptions,
    tuning: TuningOptions,
    run: RunOptions,
) -> None:
    """Train, by the short way unless the long one is asked for."""
    if context.invoked_subcommand is not None:
        given = [name for name in context.params if _is_given(context, name)]
        if given:
            raise UsageError(
                f"--{given[0].replace('_', '-')} stands before {context.invoked_subcommand!r}",
                f"write it after: grmp-edge train {context.invoked_subcommand} ...",
            )
        return
    spec = _required(data)
    need_torch()
    # The prompts that ship were learned with the backbone; tasks of the user's own replace them.
    shipped = model.ships and model.preset == "default" and not (no_mpp or tasks.given or meta.meta_epochs)
    config = tuning.config(model.name, run.precision, shipped)
    labelled, division = _read_and_divide(
        sets, spec, model, split, labels, config, model.name, (test_data, test_images)
    )
    from grmp_edge.train.runs import run_finetune
    from grmp_edge.train.session.checkpoint import CheckpointWriter

    start = None if no_mpp or shipped else output / "pretrain"
    if not run.resume:
        CheckpointWriter(output, {}).refuse_overwrite()  # before the first stage, not after it
    with working(output) as reporter:
        if start:
            pretrain_into(start, model, tasks, meta, labelled, run, reporter)
        result = run_finetune(
            output,
            model.config(shipped_prompts=shipped),
            start,
            labelled,
            division,
            config,
            run.resume,
            reporter,
            preset=model.preset,
            curves=run.curves,
            announce=True,
        )
    _finish(result, output, run.as_json, _NEXT_EXPORT)


@as_team
def pretrain(
    *,
    data: Annotated[
        str | None, option("--data", "With --preset reference: the target set that chooses the epoch.")
    ] = None,
    sets: SetOptions,
    output: opt.Output = _OUTPUT / "pretrain",
    tasks: TaskOptions,
    model: ModelOptions,
    meta: MetaOptions,
    run: RunOptions,
) -> None:
    """Learn the prompts on distortion tasks (MPP).

    Each task is one distortion type. Needs no labels of yours.
    """
    need_torch()
    from grmp_edge.train.presets import preset_named

    by_target = preset_named(model.preset).meta_select_on == "target set"
    with working(output) as reporter:
        target = sets.read(data, model.preset) if by_target and data is not None else None
        result = pretrain_into(output, model, tasks, meta, target, run, reporter)
    _finish(result, output, run.as_json, "grmp-edge train finetune --from {output} --data LABELS.csv")


@as_team
def finetune(
    *,
    data: _Data = None,
    test_data: TestData = None,
    test_images: TestImages = None,
    sets: SetOptions,
    labels: _Labels = None,
    output: opt.Output = _OUTPUT,
    start: Annotated[
        Path | None,
        option(
            "--from",
            "Pre-training checkpoint to start from; default: the prompts that ship with the "
            "embedded backbone, fresh ones for another.",
        ),
    ] = None,
    allow_unfinished: AllowUnfinished = False,
    split: SplitOptions,
    model: ModelOptions,
    tuning: TuningOptions,
    run: RunOptions,
) -> None:
    """Fine-tune on labelled pictures (QGR).

    Starts from a pre-training checkpoint or from the prompts that ship with the embedded backbone. With
    --from, that checkpoint's backbone and normalisation apply; others are refused.
    """
    spec = _required(data)
    need_torch()
    if start is not None:
        model.check_start(start)
    backbone = model.name_after(start)
    config = tuning.config(backbone, run.precision, start is None and model.ships)
    labelled, division = _read_and_divide(
        sets, spec, model, split, labels, config, backbone, (test_data, test_images)
    )
    from grmp_edge.train.runs import run_finetune

    network = model.config(shipped_prompts=start is None)
    with working(output) as reporter:
        result = run_finetune(
            output,
            network,
            start,
            labelled,
            division,
            config,
            run.resume,
            reporter,
            allow_unfinished,
            model.preset,
            run.curves,
            announce=True,
        )
    _finish(result, output, run.as_json, _NEXT_EXPORT)


def presets(*, as_json: opt.AsJson = False) -> None:
    """Show how --preset reference differs, and why."""
    from grmp_edge.train.presets import NOT_REPRODUCED, PRESETS, differences

    rows = differences(PRESETS["default"], PRESETS["reference"])
    if as_json:
        print(json.dumps([vars(row) for row in rows]))
        return
    for row in rows:
        print(f"{row.field}: default {_word(row.first)}, reference {_word(row.second)}")
        print(f"    {row.reason}")
    for left_out in NOT_REPRODUCED:
        print(f"in neither: {left_out}")
    print("next: grmp-edge train --preset reference --data LABELS.csv", file=sys.stderr)


def pretrain_into(
    output: Path,
    model: ModelOptions,
    tasks: TaskOptions,
    meta: MetaOptions,
    target: Labelled | None,
    run: RunOptions,
    reporter: Reporter,
) -> dict[str, Any]:
    """Run the first stage into ``output``.

    Args:
        output: the checkpoint folder.
        model: backbone and preset.
        tasks: where the tasks come from.
        meta: the settings.
        target: the set that chooses the epoch, if the preset has it so.
        run: how the run proceeds.
        reporter: receives the progress.

    Raises:
        UsageError: the preset needs ``target``, and it is None.
    """
    from grmp_edge.train.presets import preset_named
    from grmp_edge.train.runs import run_pretrain

    preset = preset_named(model.preset)
    if preset.meta_select_on == "held-out tasks":
        target = None
    elif target is None:
        raise UsageError(
            f"--preset {preset.name} chooses the pre-training epoch on the target set",
            "give it with --data, or use --preset default",
        )
    phases, description = tasks.build(reporter, preset)
    config = meta.config(model.name, preset, run.precision)
    return run_pretrain(
        output,
        model.config(),
        phases,
        description,
        config,
        run.resume,
        reporter,
        target,
        preset.name,
        run.curves,
    )


def _required(data: str | None) -> str:
    if data is None:
        raise UsageError(
            "training needs labelled pictures", "give a csv with the columns image,mos: --data FILE"
        )
    return data


def _read_and_divide(
    sets: SetOptions,
    spec: str,
    model: ModelOptions,
    split: SplitOptions,
    labels: int | None,
    config: FinetuneConfig,
    backbone: str,
    tested: tuple[str | None, Path | None],
) -> tuple[Labelled, SplitConfig]:
    """Read and divide the set before any long work, so that errors in it are reported at once."""
    from grmp_edge.train.data.labelled import refuse_no_test_part, split_indices

    if tested[0] is None and tested[1] is not None:
        raise UsageError("--test-images without --test-data", "give the set with --test-data")
    data = sets.read(spec, model.preset, *tested)
    division = split.fitting(len(data), labels, config).config(backbone, labels)
    if data.fixed is None:
        refuse_no_test_part(config.select_on, division.test_fraction)
    for note in data.notes:
        print(f"note: {note}", file=sys.stderr)
    parts = split_indices(data, division)
    if data.fixed is not None:
        print(
            f"note: divided as the labels say: {len(parts.train)} to learn from, {len(parts.validation)} to "
            f"choose by, {len(parts.test)} to test on",
            file=sys.stderr,
        )
    data.scale_of([*parts.train, *parts.validation])
    return data, division


def _finish(result: dict[str, Any], output: Path, as_json: bool, then: str) -> None:
    """Print a run's result, and what to run next."""
    from grmp_edge.metrics import interval_words

    if as_json:
        shown = {key: value for key, value in result.items() if key not in ("history", "lr", "waited")}
        print(json.dumps({"checkpoint": str(output), **shown}))
    else:
        # What was learned from is no test of what was learned, so it is not shown beside tests.
        shown_parts = {name: part for name, part in result.get("metrics", {}).items() if name != "train"}
        for name, metrics in shown_parts.items():
            numbers = "  ".join(
                f"{key.upper()} {'-' if metrics[key] is None else format(metrics[key], '.3f')}"
                for key in ("srcc", "plcc", "krcc", "rmse")
            )
            sure = interval_words(metrics.get("srcc_interval"), metrics["count"])
            print(f"{name.replace('_', ' '):20} {numbers}  ({metrics['count']} pictures; SRCC {sure})")
        if "train" in result.get("metrics", {}) and not {"test", "cross_validation"} & set(shown_parts):
            print(
                "no honest figure: all pictures were learned from; --test-data or --test-fraction gives one"
            )
        for leak in result.get("leaks", ()):
            print(f"not an honest figure: {leak}")
        if result.get("held_out_tasks"):
            best = "-" if result["best_srcc"] is None else f"{result['best_srcc']:.3f}"
            print(f"held-out tasks  SRCC {best}  ({', '.join(result['held_out_tasks'])})")
    following = then.format(output=as_typed(output), bundle=as_typed(Path("bundles") / output.name))
    print(f"checkpoint: {output}\nnext: {following}", file=sys.stderr)


def _word(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value) or "the backbone's"


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
