"""What ``watch`` and ``serve`` share: which cameras to read and how, and the end of the sinks."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from grmp_edge.cli.groups import PERFORMANCE, option
from grmp_edge.cli.options import BundleOption, named_bundle, typed_address
from grmp_edge.errors import SourceError, UsageError
from grmp_edge.files import as_typed

if TYPE_CHECKING:
    from grmp_edge.runtime.live.config import CameraConfig, Streams
    from grmp_edge.runtime.live.live import Live
    from grmp_edge.runtime.sinks.queue import QueuedSink

__all__ = [
    "ALERTS",
    "CameraOptions",
    "Doubts",
    "SourceOptions",
    "close_sinks",
    "describe_memory",
    "plan_streams",
    "tell_warning",
]

ALERTS = "Alerts"


@dataclass(frozen=True)
class SourceOptions:
    """The bundle and the cameras."""

    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[BUNDLE] [SOURCE...]",
            help="Folder made by grmp-edge export (default: the model that ships), then 0, /dev/video0, "
            "rtsp://, http:// (MJPEG or snapshot), gst:PIPELINE, file:VIDEO.",
        ),
    ] = None
    bundle: BundleOption = None
    streams: Annotated[
        Path | None, option("--streams", "A streams.toml with cameras, their settings and sinks.")
    ] = None

    def named(self) -> tuple[Path, list[str]]:
        """The bundle and the sources on the command line; see :func:`named_bundle`."""
        return named_bundle(self.arguments, self.bundle)


@dataclass(frozen=True)
class CameraOptions:
    """Settings of every camera; None: what streams.toml says, or the usual."""

    policy: Annotated[
        str | None, option("--policy", "latest: newest frame only (default); every: all, in order.")
    ] = None
    max_fps: Annotated[float | None, option("--max-fps", "Most frames scored per second and camera.")] = None
    decode: Annotated[
        str | None,
        option(
            "--decode",
            "Frames of a stream to decode: all, key (key frames only), or auto (default): key frames if "
            "--max-fps is reached with them, or is 1 or less and one comes every 2 s.",
            PERFORMANCE,
        ),
    ] = None
    hardware: Annotated[
        str | None, option("--hardware", "Decode streams with cuda, qsv, vaapi or drm.", PERFORMANCE)
    ] = None
    max_age: Annotated[float | None, option("--max-age", "Drop frames older than this, in seconds.")] = None
    loop: Annotated[bool, option("--loop/--no-loop", "Play a file again when it ends.")] = True
    crops: Annotated[
        int | None,
        option(
            "--crops",
            "Native crops of each frame, in turn, if the model reads any; default 2.",
            PERFORMANCE,
            min=0,
        ),
    ] = None
    below: Annotated[float | None, option("--below", "Alert below this score (0..1).", ALERTS)] = None
    drop: Annotated[
        float | None, option("--drop", "Alert this far below the camera's own usual score.", ALERTS)
    ] = None
    alert_for: Annotated[
        float | None,
        option("--for", "Seconds that the condition must last to raise or clear an alert.", ALERTS),
    ] = None
    preset: Annotated[
        str | None,
        option(
            "--preset",
            "How readily to alert: sensitive, normal (default) or calm; off: only --below and --drop.",
            ALERTS,
        ),
    ] = None
    memory: Annotated[
        str | None,
        option(
            "--memory",
            "Keep what is usual for each camera in this folder, over restarts; none: nowhere. Default: a "
            "folder below ~/.local/state/grmp-edge.",
            ALERTS,
        ),
    ] = None
    batch: Annotated[
        int | None, option("--batch", "Frames in one run of the network; default 8.", PERFORMANCE, min=1)
    ] = None

    def apply(self, camera: CameraConfig) -> CameraConfig:
        """The camera with the settings that were given."""
        rule: dict[str, Any] = {"below": self.below, "drop": self.drop, "for_s": self.alert_for}
        rule["preset"] = self.preset or camera.alert.preset or "normal"
        alert = replace(camera.alert, **{key: value for key, value in rule.items() if value is not None})
        return replace(
            camera,
            alert=alert,
            policy=camera.policy if self.policy is None else self.policy,
            max_fps=camera.max_fps if self.max_fps is None else self.max_fps,
            decode=camera.decode if self.decode is None else self.decode,
            hardware=camera.hardware if self.hardware is None else self.hardware,
            max_age_s=camera.max_age_s if self.max_age is None else self.max_age,
            loop=camera.loop and self.loop,
            crops=camera.crops if self.crops is None else self.crops,
        )


def plan_streams(
    sources: Sequence[str], streams: Path | None, options: CameraOptions | None = None
) -> Streams:
    """The cameras of the file, then those of the command line, whose options apply to both.

    Raises:
        SourceError: a source is neither a camera nor a file.
        UsageError: no camera at all, or a setting out of range.
    """
    from grmp_edge.image_files import IMAGE_SUFFIXES
    from grmp_edge.redact import safe_name
    from grmp_edge.runtime.live.config import CameraConfig, LiveConfig, Streams, read_streams
    from grmp_edge.runtime.video.capture import is_live

    options = options or CameraOptions()
    plan = read_streams(streams) if streams is not None else Streams((), LiveConfig())
    cameras = list(plan.cameras)
    for source in sources:
        if not is_live(source):
            if not Path(source).is_file():
                raise SourceError(
                    f"{safe_name(source)}: not a camera",
                    f"to score a folder's pictures as they come: grmp-edge score --follow {as_typed(source)}"
                    if Path(source).is_dir()
                    else "give 0, rtsp://, http://, gst:PIPELINE or file:VIDEO",
                )
            source = f"file:{source}"
        cameras.append(CameraConfig(typed_address(source)))
    for camera in cameras:
        file = camera.source.removeprefix("file:")
        if file != camera.source and Path(file).suffix.lower() in IMAGE_SUFFIXES:
            raise SourceError(
                f"{file}: a picture, not a camera", f"score it with: grmp-edge score {as_typed(file)}"
            )
    if not cameras:
        raise UsageError("nothing to watch", "give a SOURCE or --streams FILE")
    live = replace(plan.live, batch=options.batch) if options.batch else plan.live
    live = replace(live, memory=_memory(options.memory or live.memory, streams, cameras))
    return replace(plan, cameras=tuple(map(options.apply, cameras)), live=live)


def _memory(given: str | None, streams: Path | None, cameras: Sequence[CameraConfig]) -> str | None:
    """The folder of the memories; None: nothing is kept."""
    from grmp_edge.runtime.live.memory import memory_folder

    if given == "none" or (given is None and all(camera.source.startswith("file:") for camera in cameras)):
        return None  # a clip has no hours
    folder = memory_folder(streams) if given is None else Path(given)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "no permission to write")
    except OSError as error:
        if given is not None:
            raise UsageError(f"{folder}: {error.strerror}", "give --memory a folder, or none") from None
        typer.echo(
            f"warning: nothing is remembered: {folder}: {error.strerror}; give --memory FOLDER", err=True
        )
        return None
    return str(folder)


def describe_memory(live: Live) -> None:
    """Say on stderr what is remembered, and where."""
    from grmp_edge.runtime.live.alarms import NEW

    if live.config.memory is None:
        return
    statuses = live.status()
    known = sum(status.days > 0 for status in statuses)
    typer.echo(f"memory: {known} of {len(statuses)} cameras known, in {live.config.memory}", err=True)
    lost: dict[str, list[str]] = {}
    for status in statuses:
        if status.fresh not in ("", NEW):
            lost.setdefault(status.fresh, []).append(status.camera)
    for why, cameras in lost.items():
        typer.echo(f"memory: begins anew for {', '.join(cameras)}: {why}", err=True)


class Doubts:
    """Says on stderr, once for each camera, what is wrong with its limits."""

    _EVERY_S = 5.0

    def __init__(self, live: Live) -> None:
        self._live, self._said, self._looked = live, set[str](), float("-inf")

    def look(self) -> None:
        """Say what is new; cheap to call often."""
        if time.monotonic() - self._looked < self._EVERY_S:
            return
        self._looked = time.monotonic()
        for status in self._live.status():
            for doubt in status.doubts:
                line = f"warning: alerts of {status.camera}: {doubt}"
                if line not in self._said:
                    self._said.add(line)
                    typer.echo(line, err=True)


def tell_warning(text: str) -> None:
    """What goes wrong while the command goes on."""
    typer.echo(f"warning: {text}", err=True)


def close_sinks(sinks: list[QueuedSink]) -> None:
    """Close all sinks, and report on stderr what they lost."""
    from grmp_edge.runtime.sinks.queue import close_all

    for stats in close_all(sinks):
        if stats.failed or stats.lost:
            why = f" ({stats.error})" if stats.error else ""
            typer.echo(
                f"sink {stats.name}: {stats.written} written, {stats.failed} failed{why}, {stats.lost} lost",
                err=True,
            )
