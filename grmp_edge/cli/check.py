"""The command ``check``: one look at each of many cameras, for cron."""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from grmp_edge.cli.groups import PERFORMANCE, add_command, option
from grmp_edge.cli.live_plan import SourceOptions, plan_streams
from grmp_edge.cli.options import BackendOptions, PrecisionOption, model_name

if TYPE_CHECKING:
    from grmp_edge.runtime.live.check import CameraCheck

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    add_command(
        app, check, "grmp-edge data sample\ngrmp-edge check sample-data/clip.mp4 --report report.html"
    )


@dataclass(frozen=True)
class LookOptions:
    """How to look at each camera, and what counts as a problem."""

    frames: Annotated[int, option("--frames", "Frames scored of each; their median counts.", min=1)] = 3
    drop: Annotated[float, option("--drop", "This far below its usual score is worse.")] = 0.15
    below: Annotated[
        float, option("--below", "Below this score is low, unless streams.toml gives the camera a limit.")
    ] = 0.15
    timeout: Annotated[
        float | None, option("--timeout", "Seconds to open a camera, and for each read.", PERFORMANCE)
    ] = None
    workers: Annotated[int, option("--workers", "Cameras looked at side by side.", PERFORMANCE, min=1)] = 32


def check(
    *,
    given: SourceOptions,
    as_json: Annotated[bool, option("--json", "Print one JSON line per camera on stdout.")] = False,
    report: Annotated[
        Path | None, option("--report", "Also write a page with pictures, worst first.", metavar="HTML")
    ] = None,
    history: Annotated[
        Path | None,
        option("--history", "File of the cameras' earlier scores (default: in the state folder)."),
    ] = None,
    accept: Annotated[
        bool, option("--accept", "Take the present scores as usual, as after a repair or a move.")
    ] = False,
    look: LookOptions,
    precision: PrecisionOption = "fp32",
    backend: BackendOptions,
) -> None:
    """Look once at each of many cameras, for cron.

    Is it there, and as good as usual?

    Ends with 0 if all are ok, with 1 if one is not.
    """
    from grmp_edge.files import user_folder
    from grmp_edge.runtime.live.check import THREADS, CheckConfig, History, check_cameras
    from grmp_edge.runtime.live.config import distinct
    from grmp_edge.runtime.live.memory import fleet_name
    from grmp_edge.runtime.reports.fleet import worst_first, write_fleet_report
    from grmp_edge.runtime.reports.page import check_report_path

    if report is not None:
        check_report_path(report)
    model, sources = given.named()
    cameras = distinct(plan_streams(sources, given.streams).cameras)
    config = CheckConfig(
        look.frames, workers=look.workers, drop=look.drop, below=look.below, timeout_s=look.timeout
    )
    checks: list[CameraCheck] = []
    with backend.open(model, precision) as scorer:
        usual = user_folder("state") / "checks" / f"{fleet_name(given.streams)}.json"
        past = History(history or usual, scorer.bundle.id)
        name = model_name(model, scorer.bundle.id)
        for done in check_cameras(scorer, cameras, config, past.cameras):
            checks.append(done)
            if as_json:
                print(done.to_json(), flush=True)
            elif sys.stderr.isatty():
                typer.echo(f"\r{len(checks)} of {len(cameras)} cameras", err=True, nl=False)
    if not as_json:
        if sys.stderr.isatty():
            typer.echo("\r\033[K", err=True, nl=False)
        _table(worst_first(checks))
    past.save(checks, accept)
    if report is not None:
        write_fleet_report(report, name, checks)
        typer.echo(f"report: {report}", err=True)
    problems = sum(one.verdict != "ok" for one in checks)
    typer.echo(f"{len(checks) - problems} of {len(checks)} cameras ok", err=True)
    if any(thread.name == THREADS for thread in threading.enumerate()):
        # One still hangs inside a decoder, and Python must not end under it: C++ would abort the process.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1 if problems else 0)
    if problems:
        raise typer.Exit(1)


def _table(checks: list[CameraCheck]) -> None:
    print(f"{'verdict':9}  {'score':>6}  {'last':>6}  {'cause':12}  camera")
    for one in checks:
        score = "-" if one.score is None else f"{one.score:.3f}"
        last = "-" if one.before is None else f"{one.before:.3f}"
        detail = f": {one.detail}" if one.detail else ""
        print(f"{one.verdict:9}  {score:>6}  {last:>6}  {one.cause or '-':12}  {one.camera}{detail}")
