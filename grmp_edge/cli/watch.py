"""The command ``watch``: live cameras scored, shown, and told of when they go bad."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from grmp_edge.cli.options import (
    AllowCpu,
    Precision,
    PrecisionOption,
    Provider,
    ProviderOption,
    StreamsFile,
    Threads,
    named_bundle,
    open_scorer,
)
from grmp_edge.errors import SourceError, UsageError

if TYPE_CHECKING:
    from grmp_edge.cli.watch_view import Trends
    from grmp_edge.runtime.live.config import Streams
    from grmp_edge.runtime.live.live import Live
    from grmp_edge.runtime.sinks.queue import QueuedSink

__all__ = ["close_sinks", "plan_streams", "register"]


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command()(watch)


def watch(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[BUNDLE] [SOURCE...]",
            help="Folder made by grmp-edge export (without it, the model that ships); then 0, /dev/video0, "
            "rtsp://, http:// (MJPEG or snapshot), gst:PIPELINE, file:VIDEO.",
        ),
    ] = None,
    streams: StreamsFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line an event on stdout.")] = False,
    policy: Annotated[
        str | None,
        typer.Option("--policy", help="latest: newest frame only (default); every: all, in order."),
    ] = None,
    max_fps: Annotated[float | None, typer.Option("--max-fps", help="Frames scored a second, each.")] = None,
    max_age: Annotated[float | None, typer.Option("--max-age", help="Drop frames older, in seconds.")] = None,
    below: Annotated[float | None, typer.Option("--below", help="Alert under this score (0..1).")] = None,
    drop: Annotated[
        float | None, typer.Option("--drop", help="Alert this far under the camera's own usual score.")
    ] = None,
    alert_for: Annotated[
        float | None,
        typer.Option("--for", help="Seconds it must hold to raise or clear an alert; default 5."),
    ] = None,
    jsonl: Annotated[
        Path | None, typer.Option("--jsonl", help="Also JSON lines to this file, rotated.")
    ] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Also rows to this CSV file.")] = None,
    sqlite: Annotated[Path | None, typer.Option("--sqlite", help="Also rows to this SQLite file.")] = None,
    frames: Annotated[
        Path | None, typer.Option("--save-frames", help="Save the frame of each alert in this folder.")
    ] = None,
    mqtt: Annotated[
        str | None, typer.Option("--mqtt", help="Publish to this broker: mqtt://user:password@host.")
    ] = None,
    webhook: Annotated[str | None, typer.Option("--webhook", help="POST alerts to this address.")] = None,
    http: Annotated[
        str | None,
        typer.Option("--http", metavar="[HOST:]PORT", help="Serve a live page, JSON and /metrics there too."),
    ] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="Frames in one run; default 8.")] = None,
    loop: Annotated[bool, typer.Option("--loop/--no-loop", help="Play a file: again at its end.")] = True,
    precision: PrecisionOption = Precision.fp32,
    provider: ProviderOption = Provider.auto,
    allow_cpu: AllowCpu = False,
    threads: Threads = None,
) -> None:
    """Score live cameras until Ctrl-C, and tell when one goes bad."""
    from grmp_edge.runtime.live.live import Live
    from grmp_edge.runtime.service import limit_arenas, supervised
    from grmp_edge.runtime.sinks.make import make_sink

    limit_arenas()
    bundle, sources = named_bundle(arguments)
    settings = {"policy": policy, "max_fps": max_fps, "max_age_s": max_age, "loop": loop}
    alert = {"below": below, "drop": drop, "for_s": alert_for}
    plan = plan_streams(sources, streams, settings, alert, batch)
    places = {"jsonl": jsonl, "csv": csv, "sqlite": sqlite, "frames": frames}
    wanted = [*plan.sinks, *({"kind": kind, "path": path} for kind, path in places.items() if path)]
    wanted += [{"kind": kind, "url": url} for kind, url in (("mqtt", mqtt), ("webhook", webhook)) if url]
    with contextlib.ExitStack() as stack:
        scorer = stack.enter_context(open_scorer(bundle, precision, provider, threads, allow_cpu))
        sinks: list[QueuedSink] = []
        stack.callback(close_sinks, sinks)
        for sink in wanted:
            sinks.append(make_sink(sink))
        live = Live(scorer, plan.cameras, plan.live)
        if http is not None:
            from grmp_edge.cli.serve import serve_beside

            sinks.append(stack.enter_context(serve_beside(live, sinks, http)))
        with _until_signal(live), supervised(lambda: live.beat_s):
            broken = _show(live, sinks, as_json)
        dead = [status for status in live.status() if status.stats.state.value == "error"]
        for status in dead:
            typer.echo(f"error: {status.stats.detail}", err=True)
    # 141: as shells report a process ended by SIGPIPE.
    code = 141 if broken else 1 if len(dead) == len(plan.cameras) else 0
    if live.hanging:
        # Everything is closed. Python must not end under a thread inside OpenCV: C++ would abort the process.
        sys.stderr.flush()
        os._exit(code)
    if code:
        raise typer.Exit(code)


def plan_streams(
    sources: list[str],
    streams: Path | None,
    settings: dict[str, Any],
    alert: dict[str, Any],
    batch: int | None,
) -> Streams:
    """What to watch: the file's cameras, then the command line's; its options hold for both."""
    from dataclasses import replace

    from grmp_edge.redact import safe_name
    from grmp_edge.runtime.live.alert import AlertRule
    from grmp_edge.runtime.live.config import CameraConfig, LiveConfig, Streams, read_streams
    from grmp_edge.runtime.video.capture import is_live

    plan = read_streams(streams) if streams is not None else Streams((), LiveConfig())
    given = {key: value for key, value in settings.items() if value is not None and value is not True}
    rule = {key: value for key, value in alert.items() if value is not None}
    cameras = list(plan.cameras)
    for source in sources:
        if not is_live(source):
            if not Path(source).is_file():
                raise SourceError(
                    f"{safe_name(source)}: not a camera",
                    "give 0, rtsp://, http://, gst:PIPELINE or file:VIDEO",
                )
            source = f"file:{source}"
        cameras.append(CameraConfig(source, alert=AlertRule()))
    if not cameras:
        raise UsageError("nothing to watch", "give a SOURCE or --streams FILE")
    cameras = [replace(camera, alert=replace(camera.alert, **rule), **given) for camera in cameras]
    return replace(plan, cameras=tuple(cameras), live=replace(plan.live, batch=batch) if batch else plan.live)


def _show(live: Live, sinks: list[QueuedSink], as_json: bool) -> bool:
    """Run until stopped; whether it was because the reader of stdout has gone."""
    from grmp_edge.cli.watch_view import LineWriter, Trends, plain_line
    from grmp_edge.runtime.sinks.queue import QueuedSink, to_record

    gone: list[bool] = []

    def reader_gone() -> None:
        gone.append(True)
        live.stop()

    trends = Trends()
    table = not as_json and sys.stdout.isatty()
    if not table:
        line = json.dumps if as_json else plain_line
        sinks.append(QueuedSink("stdout", LineWriter(line, reader_gone, interval_s=0.0 if as_json else 1.0)))
    with contextlib.ExitStack() as stack:
        stack.enter_context(live)
        if table:
            stack.enter_context(_table(live, sinks, trends))
        for event in live.events():
            record = to_record(event)
            for sink in sinks:
                sink.put(event, record)
            if record["event"] == "score":
                trends.add(record)
    return bool(gone)


@contextlib.contextmanager
def _table(live: Live, sinks: list[QueuedSink], trends: Trends) -> Iterator[None]:
    from rich.console import Console
    from rich.live import Live as Screen

    from grmp_edge.cli.watch_view import status_table

    def draw() -> Any:
        lost = sum(stats.lost + stats.failed for stats in (sink.stats() for sink in sinks))
        return status_table(live.status(), trends, lost)

    with Screen(get_renderable=draw, console=Console(file=sys.stdout), refresh_per_second=4):
        yield


@contextlib.contextmanager
def _until_signal(live: Live) -> Iterator[None]:
    """Ctrl-C and SIGTERM are how a watch is meant to end; a second one is how it is forced to."""

    def end(number: int, frame: object) -> None:
        live.stop()
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def close_sinks(sinks: list[QueuedSink]) -> None:
    """Close them all and tell of what they lost."""
    from grmp_edge.runtime.sinks.queue import close_all

    for stats in close_all(sinks):
        if stats.failed or stats.lost:
            why = f" ({stats.error})" if stats.error else ""
            typer.echo(
                f"sink {stats.name}: {stats.written} written, {stats.failed} failed{why}, {stats.lost} lost",
                err=True,
            )
