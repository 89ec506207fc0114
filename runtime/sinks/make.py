"""A sink from its settings: a ``[[sink]]`` table of a streams.toml, or the options of ``watch``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from grmp_edge.errors import UsageError
from grmp_edge.runtime.sinks.files import CsvWriter, FrameWriter, JsonlWriter, SqliteWriter
from grmp_edge.runtime.sinks.mqtt import MqttWriter
from grmp_edge.runtime.sinks.network import AppriseWriter, WebhookWriter
from grmp_edge.runtime.sinks.queue import QueuedSink, Writer

__all__ = ["make_sink"]

_WRITERS: dict[str, Callable[..., Writer]] = {
    "jsonl": JsonlWriter,
    "csv": CsvWriter,
    "sqlite": SqliteWriter,
    "frames": FrameWriter,
    "mqtt": MqttWriter,
    "webhook": WebhookWriter,
    "apprise": AppriseWriter,
}


def make_sink(settings: Mapping[str, object], tell: Callable[[str], object] = lambda _: None) -> QueuedSink:
    """Make the sink that ``settings`` describe: its ``kind``, the arguments of its writer, and ``room``.

    ``tell``: see :class:`QueuedSink`.

    Raises:
        UsageError: an unknown kind or setting, or a place that cannot be written to.
        MissingDependencyError: the kind needs a package that is not installed.
    """
    arguments = dict(settings)
    kind, room = arguments.pop("kind", None), arguments.pop("room", None)
    if not isinstance(kind, str) or kind not in _WRITERS:
        raise UsageError(f"unknown sink {kind!r}", f"use {', '.join(_WRITERS)}")
    if room is not None and (not isinstance(room, int) or room < 1):
        raise UsageError(f"sink {kind}: room is {room!r}", "use a number of messages, 1 or more")
    if "path" in arguments:
        arguments["path"] = Path(str(arguments["path"]))
    try:
        writer = _WRITERS[kind](**arguments)
    except TypeError as error:  # Python's own message names the argument
        reason = str(error).rpartition("() ")[2]
        raise UsageError(f"sink {kind}: {reason}", "see docs/live.md for its settings") from None
    except OSError as error:
        raise UsageError(f"sink {kind}: {error.filename}: {error.strerror}", "check its path") from None
    return QueuedSink(kind, writer, room, tell)
