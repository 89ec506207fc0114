"""The command ``watch``: scores live cameras, shows them, and alerts when one goes bad."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from grmp_edge.cli.groups import add_command, option
from grmp_edge.cli.live_plan import (
    ALERTS,
    CameraOptions,
    Doubts,
    SourceOptions,
    close_sinks,
    describe_memory,
    plan_streams,
    tell_warning,
)
from grmp_edge.cli.options import (
    BackendOptions,
    PrecisionOption,
    model_name,
    typed_address,
)
from grmp_edge.cli.serve import serve_beside
from grmp_edge.cli.watch_view import Trends, plain_line, status_table

if TYPE_CHECKING:
    from grmp_edge.runtime.live.calibrate import Calibration
    from grmp_edge.runtime.live.live import Live
    from grmp_edge.runtime.sinks.queue import QueuedSink

__all__ = ["register"]

_SINKS = "Where results go"


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    add_command(app, watch, "grmp-edge data sample\ngrmp-edge watch sample-data/clip.mp4 --no-loop")


@dataclass(frozen=True)
class SinkOptions:
    """Where results go besides the terminal."""

    jsonl: Annotated[Path | None, option("--jsonl", "Write JSON lines to this file, rotated.", _SINKS)] = None
    csv: Annotated[Path | None, option("--csv", "Write rows to this CSV file.", _SINKS)] = None
    sqlite: Annotated[Path | None, option("--sqlite", "Write rows to this SQLite file.", _SINKS)] = None
    frames: Annotated[
        Path | None, option("--save-frames", "Save the frame of each alert in this folder.", _SINKS)
    ] = None
    collect: Annotated[
        Path | None,
        option("--collect", "Keep a few frames for labelling in this folder: near limits, and new.", _SINKS),
    ] = None
    mqtt: Annotated[
        str | None, option("--mqtt", "Publish to this broker: mqtt://user:password@host.", _SINKS)
    ] = None
    webhook: Annotated[str | None, option("--webhook", "POST alerts to this address.", _SINKS)] = None
    notify: Annotated[
        str | None,
        option("--notify", "Send alerts to this address of apprise: mailto://, tgram://, slack://.", _SINKS),
    ] = None

    def settings(self) -> list[dict[str, object]]:
        """One table of settings per sink, as in streams.toml."""
        paths = {"jsonl": self.jsonl, "csv": self.csv, "sqlite": self.sqlite, "frames": self.frames}
        urls = {"mqtt": self.mqtt, "webhook": self.webhook, "apprise": self.notify}
        settings: list[dict[str, object]] = [
            {"kind": kind, "path": path} for kind, path in paths.items() if path
        ]
        return settings + [{"kind": kind, "url": typed_address(url)} for kind, url in urls.items() if url]


def watch(
    *,
    given: SourceOptions,
    as_json: Annotated[bool, option("--json", "Print one JSON line per event on stdout.")] = False,
    camera: CameraOptions,
    sink_options: SinkOptions,
    http: Annotated[
        str | None,
        option("--http", "Serve a live page, JSON and /metrics there too.", _SINKS, metavar="[HOST:]PORT"),
    ] = None,
    calibrate: Annotated[
        str | None,
        option(
            "--calibrate",
            "Watch for this long, then print limits that would have raised nothing, for streams.toml.",
            ALERTS,
            metavar="24h",
        ),
    ] = None,
    precision: PrecisionOption = "fp32",
    backend: BackendOptions,
) -> None:
    """Score live cameras, and alert when one goes bad.

    Runs until Ctrl-C.
    """
    from grmp_edge.default_bundle import DEFAULT_BUNDLE
    from grmp_edge.runtime.labelling.keep import KeepWriter
    from grmp_edge.runtime.live.calibrate import Calibration, seconds
    from grmp_edge.runtime.live.live import Live
    from grmp_edge.runtime.live.takeover import following
    from grmp_edge.runtime.service import limit_arenas, supervised
    from grmp_edge.runtime.sinks.make import make_sink
    from grmp_edge.runtime.sinks.queue import QueuedSink

    limit_arenas()
    span = None if calibrate is None else seconds(calibrate)
    calibration = None if span is None else Calibration()
    model, sources = given.named()
    plan = plan_streams(sources, given.streams, camera)
    with contextlib.ExitStack() as stack:
        scorer = stack.enter_context(backend.open(model, precision))
        sinks: list[QueuedSink] = []
        stack.callback(close_sinks, sinks)
        for sink in (*plan.sinks, *sink_options.settings()):
            sinks.append(make_sink(sink, tell_warning))
        if sink_options.collect is not None:
            keeper = KeepWriter(sink_options.collect, partial(typer.echo, err=True))
            sinks.append(QueuedSink("collect", keeper))
        live = Live(scorer, plan.cameras, plan.live, tell=tell_warning)
        if http is not None:
            sinks.append(stack.enter_context(serve_beside(live, sinks, http)))
        if not as_json:
            typer.echo(f"watching with {model_name(model, scorer.bundle.id)}", err=True)
        describe_memory(live)
        stack.callback(lambda: live.scorer.close())  # it may be another by then
        if model != DEFAULT_BUNDLE:
            load = partial(backend.open, precision=precision)
            stack.enter_context(following(live, model, load, partial(typer.echo, err=True)))
        if span is not None:
            live.until_s = time.monotonic() + span
        with _until_signal(live), supervised(lambda: live.beat_s):
            broken = _show(live, sinks, as_json, calibration)
        dead = [status for status in live.status() if status.stats.state.value == "error"]
        for status in dead:
            typer.echo(f"error: {status.stats.detail}", err=True)
    if calibration is not None:
        _print_limits(calibration)
    # 141: as shells report a process ended by SIGPIPE.
    code = 141 if broken else 1 if len(dead) == len(plan.cameras) else 0
    if live.hanging:
        # Everything is closed. Python must not end under a thread inside OpenCV: C++ would abort the process.
        sys.stderr.flush()
        os._exit(code)
    if code:
        raise typer.Exit(code)


def _show(live: Live, sinks: list[QueuedSink], as_json: bool, calibration: Calibration | None) -> bool:
    """Run until stopped; returns whether the reader of stdout closed its end."""
    from grmp_edge.runtime.sinks.lines import LineWriter
    from grmp_edge.runtime.sinks.queue import QueuedSink, to_record

    gone: list[bool] = []

    def reader_gone() -> None:
        gone.append(True)
        live.stop()

    trends, doubts = Trends(), Doubts(live)
    table = not as_json and sys.stdout.isatty()
    if not table and (as_json or calibration is None):  # else stdout is for the limits
        line = json.dumps if as_json else plain_line
        sinks.append(QueuedSink("stdout", LineWriter(line, reader_gone, interval_s=0.0 if as_json else 1.0)))
    with contextlib.ExitStack() as stack:
        stack.enter_context(live)
        if table:
            stack.enter_context(_table(live, sinks, trends))
        live.again()  # what was raised before a restart still is
        for event in live.events():
            doubts.look()
            record = to_record(event)
            for sink in sinks:
                sink.put(event, record)
            if record["event"] == "score":
                trends.add(record)
                if calibration is not None:
                    calibration.add(record["camera"], record["at"], record["value"], record["model"])
    return bool(gone)


def _print_limits(calibration: Calibration) -> None:
    """What a calibration proposes, to paste into a streams.toml."""
    proposals = calibration.proposals()
    for one in proposals:
        print(f"# {one.minutes} minutes, usually {one.usual:.2f}, lowest {one.low:.2f}, fall {one.fall:.2f}")
        print(f"[[camera]]\nname = {json.dumps(one.camera)}\n{one.alert()}\n")
    if proposals:
        typer.echo("next: add each alert to its camera: grmp-edge watch --streams streams.toml", err=True)
    else:
        typer.echo("too few scores to propose limits: ten minutes of a camera, at least", err=True)


@contextlib.contextmanager
def _table(live: Live, sinks: list[QueuedSink], trends: Trends) -> Iterator[None]:
    from rich.console import Console
    from rich.live import Live as Screen

    def draw() -> Any:
        lost = sum(stats.lost + stats.failed for stats in (sink.stats() for sink in sinks))
        return status_table(live.status(), trends, lost)

    with Screen(get_renderable=draw, console=Console(file=sys.stdout), refresh_per_second=4):
        yield


@contextlib.contextmanager
def _until_signal(live: Live) -> Iterator[None]:
    """Ctrl-C, SIGTERM or SIGHUP ends the watch in order; a second one ends it at once."""
    from grmp_edge.runtime.service import end_at_once, on_end_signals

    def end(number: int, frame: object) -> None:
        live.stop()
        end_at_once(number)

    with on_end_signals(end):
        yield
