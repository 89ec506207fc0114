"""How live cameras are read and scored, from the command line or from a ``streams.toml``.

A ``streams.toml`` names the cameras, their settings, and where results go:

[defaults]                 # any camera setting, for all
max_fps = 5
[defaults.alert]
below = 0.4

[[camera]]
name = "gate"
source = "rtsp://viewer:${GATE_PASSWORD}@10.0.0.5/live"   # from the environment
max_fps = 2
alert = { drop = 0.15 }    # added to the defaults

[live]                     # batch, max_wait_s
[[sink]]
kind = "jsonl"             # jsonl, csv, sqlite, mqtt, webhook, apprise, frames
path = "scores.jsonl"
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from grmp_edge.errors import UsageError
from grmp_edge.files import read_text
from grmp_edge.redact import from_environment, scrub
from grmp_edge.runtime.live.alert import AlertRule
from grmp_edge.runtime.video.config import CaptureConfig, check_positive

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["CameraConfig", "LiveConfig", "Streams", "distinct", "read_streams"]


@dataclass(frozen=True)
class CameraConfig(CaptureConfig):
    """One camera: its source, and what to do with its frames. Times are in seconds."""

    _: KW_ONLY
    queue: int = 32  # frames held under `every`: two seconds at 15 a second, 200 MB at 1080p
    # Native crops scored beside the whole of each frame, if the model wants any. They take turns: more show
    # the whole picture sooner, and each costs as much as the whole.
    crops: int = 2
    max_age_s: float | None = None  # a frame older than this is dropped instead of scored; None: never
    # When a read outlives its own timeout by this much, its thread is abandoned and replaced.
    hang_grace_s: float = 5.0
    backoff_min_s: float = 1.0  # gentle on a rebooting camera, quick after a dropped connection
    backoff_max_s: float = 60.0  # a camera back after a weekend is seen within a minute
    stable_s: float = 10.0  # after frames for this long, the next failure starts at backoff_min_s again
    freeze_after_s: float = 5.0  # identical frames for this long mean a frozen camera
    alert: AlertRule = field(default_factory=AlertRule)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "queue", "max_age_s", "hang_grace_s", "stable_s", "freeze_after_s")
        check_positive(self, "backoff_min_s", "backoff_max_s")
        if self.crops < 0:
            raise UsageError(f"camera {self.label}: crops is {self.crops}", "use 0 or more")


@dataclass(frozen=True)
class LiveConfig:
    """How the cameras share one network."""

    batch: int = 8  # where CPUs stop gaining
    # How long a frame waits for others to share its run. One frame of 15 a second is 67 ms apart: this
    # gathers cameras that tick together and costs a lone camera little.
    max_wait_s: float = 0.01
    # Folder where the cameras' usual scores are kept; None: forgotten at the end. The commands `watch` and
    # `serve` choose one below the user's state folder, and "none" means None.
    memory: str | None = None
    # Each camera's state is told again so often to sinks that can notice silence (mqtt, a webhook with
    # `heartbeat`); a minute is soon enough for a camera and cheap for a broker. 0: never.
    heartbeat_s: float = 60.0
    repeat_s: float = 0.0  # each alert still raised is sent again so often; 0: only on request

    def __post_init__(self) -> None:
        if self.batch < 1 or self.max_wait_s < 0:
            raise UsageError(f"a batch of {self.batch} with a wait of {self.max_wait_s} s", "use 1 or more")
        if self.heartbeat_s < 0 or self.repeat_s < 0:
            raise UsageError("heartbeat_s and repeat_s cannot be negative", "use 0 for never")


_Config = TypeVar("_Config", CameraConfig, LiveConfig, AlertRule)


@dataclass(frozen=True)
class Streams:
    """What a streams.toml says."""

    cameras: tuple[CameraConfig, ...]
    live: LiveConfig
    sinks: tuple[Mapping[str, object], ...] = ()  # tables as make_sink reads them: `kind`, and its settings


def distinct(cameras: Sequence[CameraConfig]) -> list[CameraConfig]:
    """The cameras with unique names: the second "name" becomes "name #2"."""
    seen: dict[str, int] = {}
    distinct = []
    for camera in cameras:
        label = camera.label
        seen[label] = seen.get(label, 0) + 1
        while seen[label] > 1 and f"{label} #{seen[label]}" in seen:
            seen[label] += 1
        name = label if seen[label] == 1 else f"{label} #{seen[label]}"
        seen.setdefault(name, 1)
        distinct.append(replace(camera, name=name))
    return distinct


def read_streams(path: Path) -> Streams:
    """Read and check a streams.toml.

    ``${NAME}`` in a string comes from the environment, so that passwords need not be written down. Relative
    paths (``file:`` sources and sinks) are relative to the working directory, as on the command line.

    Raises:
        UsageError: the file is missing or not TOML, or has an unknown key or a value of the wrong type.
    """
    try:
        data = tomllib.loads(read_text(path))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})", "check --streams") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not valid TOML: {scrub(str(error))}") from None
    data = _expanded(data, path)
    unknown = sorted(set(data) - {"defaults", "camera", "live", "sink"})
    if unknown:
        raise UsageError(f"{path}: unknown section {unknown[0]!r}", "use defaults, camera, live, sink")
    cameras, sinks = data.get("camera", []), data.get("sink", [])
    for key, value in (("camera", cameras), ("sink", sinks)):
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise UsageError(f"{path}: {key} is not a list of tables", f"write [[{key}]]")
    if not cameras:
        raise UsageError(f"{path}: no camera", "add a [[camera]] with its source")
    defaults = data.get("defaults", {})
    return Streams(
        cameras=tuple(_camera(defaults, camera, path, index) for index, camera in enumerate(cameras)),
        live=_make(LiveConfig, data.get("live", {}), f"{path}: [live]"),
        sinks=tuple(sinks),
    )


def _camera(defaults: Any, camera: Mapping[str, Any], path: Path, index: int) -> CameraConfig:
    where = f"{path}: camera {index + 1}"
    if not isinstance(defaults, dict) or "source" in defaults or "name" in defaults:
        raise UsageError(
            f"{path}: [defaults] cannot name a camera", "give source and name in each [[camera]]"
        )
    merged = {**defaults, **camera}
    alerts = [part.get("alert", {}) for part in (defaults, camera)]
    if not all(isinstance(alert, dict) for alert in alerts):
        raise UsageError(f"{where}: alert is not a table", "write alert = { below = 0.4 }")
    merged["alert"] = _make(AlertRule, {**alerts[0], **alerts[1]}, f"{where}: alert")
    if "source" not in merged:
        raise UsageError(f"{where}: it has no source", 'write source = "rtsp://..."')
    if isinstance(merged["source"], int):
        merged["source"] = str(merged["source"])
    return _make(CameraConfig, merged, where)


def _make(kind: type[_Config], values: Any, where: str) -> _Config:
    if not isinstance(values, dict):
        raise UsageError(f"{where}: not a table")
    known = {field.name: str(field.type) for field in fields(kind)}
    for key, value in values.items():
        if key not in known:
            raise UsageError(f"{where}: unknown setting {key!r}", f"use {', '.join(known)}")
        kind_name = known[key].removesuffix(" | None")
        accepted: tuple[type, ...] = {
            "str": (str,), "int": (int,), "float": (int, float), "bool": (bool,)
        }.get(kind_name, (object,))  # fmt: skip
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind_name in ("int", "float")):
            raise UsageError(f"{where}: {key} is not a {kind_name}")
    try:
        return kind(**values)
    except UsageError as error:
        raise UsageError(f"{where}: {error.message}", error.remedy) from None


def _expanded(value: Any, path: Path) -> Any:
    if isinstance(value, dict):
        return {key: _expanded(item, path) for key, item in value.items()}
    if isinstance(value, list):
        return [_expanded(item, path) for item in value]
    return from_environment(value, str(path)) if isinstance(value, str) else value
