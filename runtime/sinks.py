"""Where results go: each sink on a thread of its own, behind a queue that never blocks scoring."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from grmp_edge.errors import GrmpError, UsageError
from grmp_edge.runtime.camera_state import CameraEvent
from grmp_edge.runtime.live import AlertEvent, LiveEvent, LiveScore
from grmp_edge.runtime.names import scrub

__all__ = ["Message", "QueuedSink", "Record", "SinkStats", "Writer", "make_sink", "to_record"]

# One event as plain JSON: "event" is score, alert or camera; "at" is the wall clock in seconds since 1970.
Record: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Message:
    """A record and, for those who save pictures, its frame."""

    record: Record
    image: npt.NDArray[np.uint8] | None = None  # (H, W, 3) BGR


class Writer(Protocol):
    """What a sink does with messages, on the sink's own thread."""

    def wants(self, record: Record) -> bool:
        """Whether this record is for it at all (asked on the scoring thread: must be instant)."""

    def write(self, message: Message) -> None:
        """Deliver one message; any exception counts it as failed, and the next one is tried."""

    def close(self) -> None:
        """Flush and let go."""


@dataclass(frozen=True)
class SinkStats:
    """What became of the messages."""

    name: str
    written: int
    failed: int  # the writer raised
    lost: int  # no room in the queue, or still in it at the end
    error: str  # the last failure, in one line without credentials


def to_record(event: LiveEvent) -> Record:
    """An event as plain JSON, with the wall clock of its capture."""
    if isinstance(event, CameraEvent):
        record: Record = {
            "event": "camera", "camera": event.camera, "at": time.time(), "state": event.state.value,
            "picture": event.picture,
        }  # fmt: skip
        if event.detail:
            record["detail"] = event.detail
        if event.retry_s is not None:
            record["retry_s"] = round(event.retry_s, 2)
        return record
    score = event.score
    # Asked anew each time: a stepped clock puts one record wrong, not all later ones.
    at = time.time() - (time.monotonic() - (score.captured_s or time.monotonic()))
    record = {"event": "score", "camera": event.camera, "at": round(at, 3), "value": round(score.value, 6)}
    for key, digits in (("mos", 4), ("age_ms", 2), ("latency_ms", 3), ("captured_s", 4)):
        value = getattr(score, key)
        if value is not None:
            record[key] = round(value, digits)
    record |= {"frame": score.frame, "model": score.model}
    if isinstance(event, AlertEvent):
        alert = event.alert
        record |= {
            "event": "alert", "kind": alert.kind, "raised": alert.raised,
            "limit": round(alert.limit, 6), "since_s": round(alert.since_s, 2),
        }  # fmt: skip
    return record


class QueuedSink:
    """A writer on its own thread. :meth:`put` returns at once, whatever the writer does."""

    def __init__(self, name: str, writer: Writer, room: int = 1000) -> None:
        """``room``: messages held while the writer is slow; 1000 is a minute of one camera at 15 a second."""
        self.name = name
        self._writer = writer
        self._queue: queue.Queue[Message] = queue.Queue(room)
        self._lock = threading.Lock()
        self._written = self._failed = self._lost = 0
        self._error = ""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"sink {name}", daemon=True)
        self._thread.start()

    def put(self, event: LiveEvent, record: Record) -> None:
        """Hand over an event; it is counted as lost when there is no room."""
        if not self._writer.wants(record):
            return
        image = event.image if isinstance(event, (LiveScore, AlertEvent)) else None
        keeps = getattr(self._writer, "needs_image", False)
        try:
            self._queue.put_nowait(Message(record, image if keeps else None))
        except queue.Full:
            with self._lock:
                self._lost += 1

    def stats(self) -> SinkStats:
        """The counters now."""
        with self._lock:
            return SinkStats(self.name, self._written, self._failed, self._lost, self._error)

    def close(self, timeout_s: float = 5.0) -> SinkStats:
        """Write what is queued, at most for so long; the rest is counted as lost."""
        self._closing.set()
        self._thread.join(timeout_s)
        with self._lock:
            if self._thread.is_alive():
                self._lost += self._queue.qsize() + 1
                self._error = self._error or f"did not finish within {timeout_s:.0f} s"
        return self.stats()

    def _run(self) -> None:
        while True:
            try:
                message = self._queue.get(timeout=0.1)
            except queue.Empty:
                if self._closing.is_set():
                    break
                with contextlib.suppress(Exception):  # it will fail again in write, and be told
                    getattr(self._writer, "idle", _nothing)()
                continue
            try:
                self._writer.write(message)
            except Exception as error:  # a full disk, a dead server: told by the counters
                with self._lock:
                    self._failed += 1
                    self._error = scrub(str(error) if isinstance(error, GrmpError) else _plain(error))
            else:
                with self._lock:
                    self._written += 1
        with contextlib.suppress(Exception):
            self._writer.close()


def _nothing() -> None:
    pass


def _plain(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def make_sink(settings: Mapping[str, Any]) -> QueuedSink:
    """A sink from its settings: ``kind`` and the arguments of its writer.

    Raises:
        UsageError: an unknown kind or setting, or a place that cannot be written to.
        MissingDependencyError: the kind needs a package that is not installed.
    """
    from grmp_edge.runtime import sinks_file, sinks_net

    kinds: dict[str, Callable[..., Writer]] = {
        "jsonl": sinks_file.JsonlWriter,
        "csv": sinks_file.CsvWriter,
        "sqlite": sinks_file.SqliteWriter,
        "frames": sinks_file.FrameWriter,
        "mqtt": sinks_net.MqttWriter,
        "webhook": sinks_net.WebhookWriter,
    }
    rest = dict(settings)
    kind = rest.pop("kind", None)
    if kind not in kinds:
        raise UsageError(f"unknown sink {kind!r}", f"use {', '.join(kinds)}")
    room = rest.pop("room", None)
    if "path" in rest:
        rest["path"] = Path(rest["path"])
    try:
        writer = kinds[kind](**rest)
    except TypeError as error:  # the constructor's own words name the argument
        raise UsageError(
            f"sink {kind}: {str(error).rpartition('() ')[2]}", "see docs/live.md for its settings"
        ) from None
    except OSError as error:
        raise UsageError(f"sink {kind}: {error.filename}: {error.strerror}", "check its path") from None
    # A queue of 4K frames must not become the memory of the machine.
    return QueuedSink(kind, writer, room or (16 if getattr(writer, "needs_image", False) else 1000))
