"""The command ``collect``: frames worth labelling, from cameras, clips and folders."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from grmp_edge.cli.groups import add_command, option
from grmp_edge.cli.live_plan import CameraOptions, SourceOptions, plan_streams
from grmp_edge.cli.options import BackendOptions, PrecisionOption, model_name
from grmp_edge.errors import SourceError, UsageError
from grmp_edge.files import as_typed

if TYPE_CHECKING:
    from grmp_edge.runtime.labelling.collect import Step

__all__ = ["FRAMES_FOLDER", "register"]

FRAMES_FOLDER = Path("frames")


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    add_command(app, collect, "grmp-edge data sample\ngrmp-edge collect sample-data/clip.mp4 -o frames")


@dataclass(frozen=True)
class KeepOptions:
    """How long to look, and how much to keep."""

    hours: Annotated[float, option("--hours", "How long to look at cameras.")] = 24.0
    every: Annotated[float, option("--every", "Seconds from one candidate to the next, of each source.")] = (
        2.0
    )
    limit: Annotated[int, option("--limit", "Most frames in the folder; the most redundant leave.")] = 500
    disk: Annotated[str, option("--disk", "Most bytes of pictures, such as 500MB.", metavar="SIZE")] = "1GB"


@dataclass(frozen=True)
class CollectOptions(SourceOptions):
    """Where the frames come from."""

    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[BUNDLE] SOURCE...",
            help="Folder made by grmp-edge export (default: the model that ships), then cameras as for "
            "watch, clips, folders and globs of pictures.",
        ),
    ] = None


def collect(
    *,
    given: CollectOptions,
    output: Annotated[Path, option("--output -o", "Folder of the frames; more are added to it.")] = (
        FRAMES_FOLDER
    ),
    keep: KeepOptions,
    as_json: Annotated[bool, option("--json", "Print the result as one JSON object on stdout.")] = False,
    precision: PrecisionOption = "fp32",
    backend: BackendOptions,
) -> None:
    """Collect frames to label: few, and unlike each other.

    Ends when the time is over, when all files are read, or on Ctrl-C; what is there by then is kept.
    """
    from grmp_edge.runtime.labelling.answers import wanted_images
    from grmp_edge.runtime.labelling.collect import collect_cameras, collect_files
    from grmp_edge.runtime.labelling.frames import CollectConfig, FrameStore
    from grmp_edge.runtime.live.live import Live
    from grmp_edge.runtime.service import end_at_once, limit_arenas, on_end_signals
    from grmp_edge.runtime.sources.sources import Failure
    from grmp_edge.runtime.video.capture import is_live

    limit_arenas()
    if not (keep.hours > 0 and keep.every > 0):
        raise UsageError(f"--hours {keep.hours:g} --every {keep.every:g}", "use positive numbers")
    config = CollectConfig(limit=keep.limit, disk=_bytes(keep.disk))
    model, sources = given.named()
    cameras = [source for source in sources if is_live(source)]
    files = [source for source in sources if not is_live(source)]
    options = CameraOptions(max_fps=1 / keep.every, loop=False, preset="off", memory="none")
    plan = plan_streams(cameras, given.streams, options) if cameras or given.streams else None
    if plan is None and not files:
        raise UsageError("nothing to collect from", "give a camera, a clip, a folder or --streams FILE")
    stopped: list[int] = []
    live: Live | None = None

    def stop(number: int, frame: object) -> None:
        stopped.append(number)
        if live is not None:
            live.stop()
        end_at_once(number)

    counts: Counter[str] = Counter()
    failures: list[str] = []

    def note(step: Step) -> None:
        if isinstance(step, Failure):
            failures.append(str(step.error))
            typer.echo(f"error: {step.error}", err=True)
            return
        counts[step.outcome] += 1
        if sys.stderr.isatty():
            typer.echo(
                f"\r\033[K{sum(counts.values())} looked at, {len(store.frames)} frames", err=True, nl=False
            )

    with (
        backend.open(model, precision) as scorer,
        FrameStore(output, config, lambda: wanted_images(output)) as store,
        on_end_signals(stop),
    ):
        typer.echo(f"collecting into {output} with {model_name(model, scorer.bundle.id)}", err=True)
        for step in collect_files(scorer, store, files, keep.every, lambda: bool(stopped)):
            note(step)
        if plan is not None and not stopped:
            live = Live(scorer, plan.cameras, plan.live)
            until_s = time.monotonic() + keep.hours * 3600  # files, which were read first, take none of it
            with live:
                for step in collect_cameras(store, live, until_s):
                    note(step)
            for status in live.status():
                if not status.scored:
                    detail = status.stats.detail or "no picture of a scene came in this time"
                    failures.append(f"{status.camera}: {detail}")
                    typer.echo(f"error: {failures[-1]}", err=True)
        kept, cameras_seen = len(store.frames), len({frame.camera for frame in store.frames})
    if sys.stderr.isatty():
        typer.echo("\r\033[K", err=True, nl=False)
    if as_json:
        result = {
            "frames": str(output),
            "count": kept,
            "cameras": cameras_seen,
            "looked_at": sum(counts.values()),
        }
        print(json.dumps({**result, "added": counts["kept"], "failures": failures}))
    like_others = counts["same"] + counts["redundant"]
    typer.echo(
        f"{sum(counts.values())} looked at, {counts['kept']} new, {like_others} like others; "
        f"{kept} frames of {cameras_seen} source{'s' * (cameras_seen != 1)} in {output}",
        err=True,
    )
    if kept:
        typer.echo(f"next: grmp-edge label {as_typed(output)}", err=True)
    code = 1 if not sum(counts.values()) and failures else 0
    if live is not None and live.hanging:
        # Python must not end under a thread inside OpenCV, as in grmp-edge watch.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if code:
        raise typer.Exit(code)
    if not kept:
        raise SourceError("no frame was collected", "look at the sources with: grmp-edge watch SOURCE")


def _bytes(text: str) -> int:
    """Bytes of a size such as 500MB or 2GiB."""
    match = re.fullmatch(r"(?i)\s*([0-9]*\.?[0-9]+)\s*([KMGT]?)(i?)B?\s*", text)
    if not match:
        raise UsageError(f"--disk {text}: no size", "write it as 500MB or 2GB")
    power = " KMGT".index(match[2].upper() or " ")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)
