"""The command ``calibrate``: labels become a new head of an exported bundle, without torch."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from grmp_edge.cli import options as opt
from grmp_edge.cli.groups import PERFORMANCE, add_command, option
from grmp_edge.cli.training_options import SetOptions
from grmp_edge.files import as_typed

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add ``calibrate`` to the app."""
    add_command(
        app,
        calibrate,
        "grmp-edge data sample\ngrmp-edge calibrate default --data sample-data/labels.csv -o bundles/mine",
    )


def calibrate(
    bundle: Annotated[
        Path,
        typer.Argument(metavar="BUNDLE", help="The bundle to start from; 'default' is the one here."),
    ],
    *,
    data: Annotated[
        str, option("--data", "Labelled pictures: a csv with the columns image,mos, or SET:PATH.")
    ],
    sets: SetOptions,
    output: Annotated[Path, option("--output -o", "Bundle folder to write.")] = Path("bundles/calibrated"),
    coverage: Annotated[
        float,
        option("--coverage", "Share of opinions that a score's interval is to hold.", min=0.5, max=0.99),
    ] = 0.9,
    no_twins: Annotated[
        bool,
        option("--no-twins", "Leave out distorted copies, which keep faults visible that no picture has."),
    ] = False,
    seed: opt.Seed = 0,
    threads: Annotated[
        int | None, option("--threads", "CPU threads; default: onnxruntime's choice.", PERFORMANCE, min=1)
    ] = None,
    as_json: opt.AsJson = False,
) -> None:
    """Fit an exported bundle to your labels, on the device.

    Takes seconds and needs no torch: the network stays, its head is fitted by ridge regression, and each
    score gets an interval. Writes a new bundle. All labels are learned from; the figures come from
    cross-validation within them.
    """
    from grmp_edge.bundle import Bundle
    from grmp_edge.cli.progress import TrainProgress
    from grmp_edge.runtime.calibrate import CalibrateConfig
    from grmp_edge.runtime.calibrate import calibrate as fit
    from grmp_edge.train.data.labelled import SplitConfig, split_indices
    from grmp_edge.train.pictures.twins import TWINS, twin

    labelled = sets.read(data)
    for note in labelled.notes:
        print(f"note: {note}", file=sys.stderr)
    rows = list(range(len(labelled)))
    if labelled.fixed is not None:
        split = split_indices(labelled, SplitConfig(validation_fraction=0.0))
        rows = sorted([*split.train, *split.validation])
        print(f"note: the {len(split.test)} pictures of the test part are left out", file=sys.stderr)
    config = CalibrateConfig(coverage, seed, threads=threads)
    kinds = list(TWINS)
    with TrainProgress() as progress:
        copies = 0 if no_twins else min(len(rows), config.twins)
        progress.start("looking at pictures", len(rows) + copies)
        made = fit(
            Bundle.load(bundle),
            lambda index: labelled.picture(rows[index]),
            labelled.mos[rows],
            labelled.scale_of(rows),
            output,
            config,
            None if no_twins else lambda picture, index: twin(picture, kinds[index % len(kinds)], index),
            progress.step,
        )
    result = {"bundle": str(output), "model": made.bundle.id, **made.report}
    if as_json:
        print(json.dumps(result))
    else:
        _print(result, asdict(labelled.scale_of(rows)))
    for precision, reason in made.report["left_out"].items():
        print(f"note: without its {precision} graph: {reason}", file=sys.stderr)
    print(f"bundle: {output}\nnext: grmp-edge score {as_typed(output)} SOURCE...", file=sys.stderr)


def _print(result: dict[str, Any], scale: dict[str, float]) -> None:
    from grmp_edge.metrics import interval_words

    for name, words in (("start", "before"), ("calibrated", "calibrated")):
        figures = result[name]
        numbers = "  ".join(
            f"{key.upper()} {'-' if figures[key] is None else format(figures[key], '.3f')}"
            for key in ("srcc", "plcc", "krcc", "rmse")
        )
        sure = interval_words(figures["srcc_interval"], figures["count"])
        print(f"{words:10} {numbers}  ({figures['count']} pictures; SRCC {sure})")
    chosen = {"ridge": "ridge regression on top of its own score", "start": "its own score, on your scale"}
    print(f"chosen     {chosen[result['fit']['chosen']]}, by cross-validation")
    interval = result["interval"]
    if interval is None:
        print("interval   none: it needs more labels")
        return
    width = interval["half_width"]
    span = scale["high"] - scale["low"]
    print(
        f"interval   a score plus or minus {width:.3f} ({width * span:.3g} on your scale) holds "
        f"{interval['coverage']:.0%} of opinions; scores whose intervals overlap may not differ"
    )
