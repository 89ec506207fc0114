"""Where results go: each sink on a thread of its own, behind a queue that never blocks scoring."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from grmp_edge.errors import GrmpError
from grmp_edge.redact import scrub
from grmp_edge.runtime.live.events import CameraEvent
from grmp_edge.runtime.live.live import AlertEvent, LiveEvent

__all__ = [
    "EarlierLostError",
    "Message",
    "QueuedSink",
    "Record",
    "SinkStats",
    "Writer",
    "close_all",
    "to_record",
]

_ROOM = 1000  # messages in a queue: a minute of one camera at 15 frames a second
_IMAGE_ROOM = 16  # where each holds a frame: 4K frames must not fill the machine's memory

# One event as plain JSON: "event" is score, alert or camera; "at" is the wall clock in seconds since 1970.
Record: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Message:
    """A record and, for those who save pictures, its frame."""

    record: Record
    image: npt.NDArray[np.uint8] | None = None  # (H, W, 3) BGR


class EarlierLostError(GrmpError):
    """A writer's failure that takes ``earlier`` messages with it, which it had taken as delivered."""

    def __init__(self, message: str, earlier: int, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.earlier = earlier


class Writer(Protocol):
    """What a sink does with messages, on the sink's own thread.

    Two more methods are called where a writer has them: ``idle()``, when no message has come for a tenth of a
    second, and ``hurry()``, from another thread, when the sink is to close.
    """

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
    failed: int  # the writer raised, now or later for what it had taken
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

    def __init__(self, name: str, writer: Writer, room: int | None = None) -> None:
        """``room``: messages held while the writer is slow; by default _ROOM, or _IMAGE_ROOM with frames."""
        self.name = name
        self._writer = writer
        self._with_image = getattr(writer, "needs_image", False)
        self._queue: queue.Queue[Message] = queue.Queue(room or (_IMAGE_ROOM if self._with_image else _ROOM))
        self._lock = threading.Lock()
        self._written = self._failed = self._lost = 0
        self._error = ""
        self._busy = False  # a message has left the queue and is not counted yet
        self._given_up = False  # what the thread still does is not counted any more
        self._closing = threading.Event()
        self._until = 0.0  # when closing must be over, monotonic
        self._thread = threading.Thread(target=self._run, name=f"sink {name}", daemon=True)
        self._thread.start()

    def put(self, event: LiveEvent, record: Record) -> None:
        """Hand over an event; it is counted as lost when there is no room."""
        if not self._writer.wants(record):
            return
        image = event.image if self._with_image and not isinstance(event, CameraEvent) else None
        try:
            self._queue.put_nowait(Message(record, image))
        except queue.Full:
            with self._lock:
                self._lost += 1

    def stats(self) -> SinkStats:
        """The counters now."""
        with self._lock:
            return SinkStats(self.name, self._written, self._failed, self._lost, self._error)

    def begin_close(self, timeout_s: float = 5.0) -> None:
        """Take no longer than ``timeout_s`` from now on; returns at once."""
        if not self._closing.is_set():
            self._until = time.monotonic() + timeout_s
            self._closing.set()
            getattr(self._writer, "hurry", _nothing)()

    def close(self, timeout_s: float = 5.0) -> SinkStats:
        """Write what is queued, at most for so long; the rest is counted as lost.

        Returns within ``timeout_s``, whatever the writer does: a thread that hangs in it is left behind.
        """
        self.begin_close(timeout_s)
        self._thread.join(max(0.0, self._until - time.monotonic()))
        with self._lock:
            if self._thread.is_alive() and not self._given_up:
                self._given_up = True
                self._lost += self._queue.qsize() + self._busy
                self._error = self._error or f"did not finish within {timeout_s:.0f} s"
        return self.stats()

    def _run(self) -> None:
        while not (self._closing.is_set() and time.monotonic() >= self._until):
            try:
                message = self._queue.get(timeout=0.1)
            except queue.Empty:
                if self._closing.is_set():
                    break
                self._guarded(getattr(self._writer, "idle", _nothing))
                continue
            with self._lock:
                self._busy = True
            self._guarded(lambda message=message: self._writer.write(message), 1)  # type: ignore[misc]
        with self._lock:
            if not self._given_up:
                self._lost += self._queue.qsize()
        self._guarded(self._writer.close)

    def _guarded(self, call: Callable[[], None], messages: int = 0) -> None:
        """Call the writer and count what became of ``messages``: a full disk, a dead server end nothing."""
        earlier, reason = 0, ""
        try:
            call()
        except EarlierLostError as error:
            earlier, reason = error.earlier, str(error)
        except GrmpError as error:
            reason = str(error)
        except Exception as error:
            reason = _plain(error)
        with self._lock:
            self._busy = False
            if self._given_up:
                return
            self._failed += earlier + (messages if reason else 0)
            self._written += (0 if reason else messages) - earlier
            if reason:
                self._error = scrub(reason)


def _nothing() -> None:
    pass


def _plain(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def close_all(sinks: Sequence[QueuedSink], timeout_s: float = 5.0) -> list[SinkStats]:
    """Close sinks side by side: within ``timeout_s`` for all of them together."""
    for sink in sinks:  # all are told before one is waited for
        sink.begin_close(timeout_s)
    return [sink.close(timeout_s) for sink in sinks]
