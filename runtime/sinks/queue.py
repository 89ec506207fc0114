"""Events as records, and sinks that each work on a thread of their own, behind a queue that never blocks."""

from __future__ import annotations

import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypedDict, cast

import cv2
import numpy as np
import numpy.typing as npt

from grmp_edge.errors import GrmpError
from grmp_edge.redact import scrub
from grmp_edge.runtime.live.alert import Alert, AlertKind, Severity
from grmp_edge.runtime.live.events import CameraEvent
from grmp_edge.runtime.live.live import AlertEvent, LiveEvent
from grmp_edge.runtime.live.no_picture import Verdict

__all__ = [
    "AlertRecord",
    "CameraRecord",
    "EarlierLostError",
    "Message",
    "QueuedSink",
    "Record",
    "ScoreRecord",
    "SinkStats",
    "Throttle",
    "Writer",
    "close_all",
    "jpeg",
    "to_record",
]

_TELL_S = 60.0
_ROOM = 1000  # messages in a queue: a minute of one camera at 15 frames a second
_MESSAGE_WIDTH = 640
_IMAGE_ROOM = 16  # with a frame, at most: 4K frames must not fill the machine's memory


class _Measurements(TypedDict, total=False):
    mos: float  # the score on the training labels' scale
    age_ms: float  # from capture to result
    latency_ms: float  # the frame's share of the network's run
    captured_s: float  # time.monotonic() at the capture
    cause: str  # the likeliest one, if it is likelier than not
    causes: dict[str, float]  # what is wrong, each 0 to 1, if the model says
    damage: str  # what the decoder says is wrong with the frame, where such are scored


class _Scored(_Measurements):
    camera: str
    at: float  # seconds since 1970 at the capture
    value: float  # 0 to 1
    frame: int | None
    model: str


class ScoreRecord(_Scored):
    """A score as plain JSON."""

    event: Literal["score"]


class _Alerted(_Measurements, total=False):
    value: float  # 0 to 1
    frame: int | None
    model: str
    limit: float
    topic: str  # ONVIF, where there is one
    detail: str
    repeated: bool  # True: sent again, not new
    part: list[float]  # of the picture, where it is about one: left, top, width, height, as shares


class AlertRecord(_Alerted):
    """An alert raised or cleared, as plain JSON."""

    event: Literal["alert"]
    camera: str
    at: float  # seconds since 1970
    kind: AlertKind
    severity: Severity
    raised: bool  # False: it is over
    since_s: float


class _Reason(TypedDict, total=False):
    detail: str
    retry_s: float
    repeated: bool  # True: told again, nothing has changed


class CameraRecord(_Reason):
    """A camera's change of state as plain JSON."""

    event: Literal["camera"]
    camera: str
    at: float  # seconds since 1970
    state: str
    picture: Verdict


Record: TypeAlias = ScoreRecord | AlertRecord | CameraRecord


@dataclass(frozen=True)
class Message:
    """A record and, for a writer that saves pictures, its frame."""

    record: Record
    image: npt.NDArray[np.uint8] | None = None  # (H, W, 3) BGR


class EarlierLostError(GrmpError):
    """A failure that also loses ``earlier`` messages which were already counted as written."""

    def __init__(self, message: str, earlier: int, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.earlier = earlier


class Writer(ABC):
    """Delivers a sink's messages, on the sink's own thread."""

    needs_image = False  # whether what it wants must carry its frame
    takes_image = False  # or alerts may
    repeats = False  # whether it takes what is repeated: a file that has it needs it only once

    def wants(self, record: Record) -> bool:
        """Whether to queue this record. Runs on the scoring thread, so it must return at once."""
        return True

    @abstractmethod
    def write(self, message: Message) -> None:
        """Deliver one message; after any exception it counts as failed, and the next one follows."""

    def idle(self) -> None:  # noqa: B027
        """Called after a tenth of a second without a message."""

    def hurry(self) -> None:  # noqa: B027
        """Called on another thread when the sink is about to close."""

    def close(self) -> None:  # noqa: B027
        """Flush and release everything."""


class Throttle:
    """Lets all events through, but each camera's scores at most every ``interval_s`` seconds."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._last: dict[str, float] = {}  # by camera: time.monotonic() of its last score

    def passes(self, record: Record) -> bool:
        """Whether this record is due."""
        if record["event"] == "score":
            now = time.monotonic()
            if now - self._last.get(record["camera"], -1e9) < self._interval_s:
                return False
            self._last[record["camera"]] = now
        return True


@dataclass(frozen=True)
class SinkStats:
    """What became of a sink's messages."""

    name: str
    written: int
    failed: int  # the writer raised, at once or later
    lost: int  # the queue was full, or not empty at the end
    error: str  # the last failure, in one line without credentials


def to_record(event: LiveEvent) -> Record:
    """An event as plain JSON, stamped with the wall clock."""
    if isinstance(event, CameraEvent):
        change: CameraRecord = {
            "event": "camera", "camera": event.camera, "at": time.time(), "state": event.state.value,
            "picture": event.picture,
        }  # fmt: skip
        if event.detail:
            change["detail"] = event.detail
        if event.retry_s is not None:
            change["retry_s"] = round(event.retry_s, 2)
        if event.repeated:
            change["repeated"] = True
        return change
    if event.score is None:
        return cast(
            Record,
            {"event": "alert", "camera": event.camera, "at": round(time.time(), 3), **_of(event.alert)},
        )
    score = event.score
    # Read both clocks each time: when the wall clock is set, one record is wrong and not all later ones.
    at = time.time() - (time.monotonic() - (score.captured_s or time.monotonic()))
    record: dict[str, object] = {
        "event": "score", "camera": event.camera, "at": round(at, 3), "value": round(score.value, 6)
    }  # fmt: skip
    for key, digits in (("mos", 4), ("age_ms", 2), ("latency_ms", 3), ("captured_s", 4)):
        value = getattr(score, key)
        if value is not None:
            record[key] = round(value, digits)
    if score.damage is not None:
        record["damage"] = score.damage
    if score.cause is not None:
        record["cause"] = score.cause
    if score.causes is not None:
        record["causes"] = {name: round(value, 3) for name, value in score.causes.items()}
    record |= {"frame": score.frame, "model": score.model}
    if isinstance(event, AlertEvent):
        record |= {"event": "alert", **_of(event.alert)}
    return cast(Record, record)


def _of(alert: Alert) -> dict[str, object]:
    record: dict[str, object] = {
        "kind": alert.kind, "severity": alert.severity, "raised": alert.raised,
        "since_s": round(alert.since_s, 2),
    }  # fmt: skip
    if alert.limit is not None:
        record["limit"] = round(alert.limit, 6)
    if alert.part is not None:
        record["part"] = [round(share, 3) for share in alert.part]
    optional = {"topic": alert.topic, "detail": alert.detail, "repeated": alert.repeated}
    return record | {key: value for key, value in optional.items() if value}


def jpeg(image: npt.NDArray[np.uint8]) -> bytes:
    """A frame, uint8 (H, W, 3) BGR, as a JPEG for a message: at most 640 pixels wide, about 50 KB."""
    height, width = image.shape[:2]
    scale = min(1.0, _MESSAGE_WIDTH / width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()


class QueuedSink:
    """A writer on its own thread. :meth:`put` returns at once, whatever the writer does."""

    def __init__(
        self,
        name: str,
        writer: Writer,
        room: int | None = None,
        tell: Callable[[str], object] = lambda _: None,
    ) -> None:
        """``room``: messages held while the writer is slow; by default 1000, or 16 if they need frames.

        ``tell`` is called with what goes wrong while it does, at most once a minute.
        """
        self._tell, self._told = tell, -_TELL_S
        self.name = name
        self._writer = writer
        room = room or (_IMAGE_ROOM if writer.needs_image else _ROOM)
        self._queue: queue.Queue[Message] = queue.Queue(room)
        self._lock = threading.Lock()
        self._written = self._failed = self._lost = 0
        self._error = ""
        self._busy = False  # a message has left the queue and is not counted yet
        self._abandoned = False  # the thread hangs; whatever it still does is no longer counted
        self._closing = threading.Event()
        self._until = 0.0  # monotonic time by which the sink must be closed
        self._thread = threading.Thread(target=self._run, name=f"sink {name}", daemon=True)
        self._thread.start()

    def put(self, event: LiveEvent, record: Record) -> None:
        """Queue an event; if there is no room, it counts as lost."""
        if (record["event"] != "score" and record.get("repeated") and not self._writer.repeats) or (
            not self._writer.wants(record)
        ):
            return
        image = None
        if not isinstance(event, CameraEvent) and (
            self._writer.needs_image
            or (
                isinstance(event, AlertEvent)
                and self._writer.takes_image
                and self._queue.qsize() < _IMAGE_ROOM
            )
        ):
            image = event.image
        try:
            self._queue.put_nowait(Message(record, image))
        except queue.Full:
            with self._lock:
                self._lost += 1
            self._say()

    def _say(self) -> None:
        """Tell what is lost, unless something was told a moment ago."""
        now = time.monotonic()
        with self._lock:
            due = now - self._told >= _TELL_S
            self._told = now if due else self._told
        if due:
            stats = self.stats()
            why = f" ({stats.error})" if stats.error else ""
            self._tell(f"sink {stats.name}: {stats.failed} failed{why}, {stats.lost} lost so far")

    def stats(self) -> SinkStats:
        """The counters now."""
        with self._lock:
            return SinkStats(self.name, self._written, self._failed, self._lost, self._error)

    def begin_close(self, timeout_s: float = 5.0) -> None:
        """Start closing, within ``timeout_s`` seconds from now; returns at once."""
        if not self._closing.is_set():
            self._until = time.monotonic() + timeout_s
            self._closing.set()
            self._writer.hurry()

    def close(self, timeout_s: float = 5.0) -> SinkStats:
        """Write what is queued within ``timeout_s`` seconds; the rest counts as lost.

        Returns in time whatever the writer does: a thread that hangs is abandoned.
        """
        self.begin_close(timeout_s)
        self._thread.join(max(0.0, self._until - time.monotonic()))
        with self._lock:
            if self._thread.is_alive() and not self._abandoned:
                self._abandoned = True
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
                self._guarded(self._writer.idle)
                continue
            with self._lock:
                self._busy = True
            self._guarded(lambda message=message: self._writer.write(message), 1)  # type: ignore[misc]
        with self._lock:
            if not self._abandoned:
                self._lost += self._queue.qsize()
        self._guarded(self._writer.close)

    def _guarded(self, call: Callable[[], None], messages: int = 0) -> None:
        """Call the writer and count the outcome of ``messages``; no failure ends the thread."""
        earlier, reason = 0, ""
        try:
            call()
        except EarlierLostError as error:
            earlier, reason = error.earlier, str(error)
        except GrmpError as error:
            reason = str(error)
        except Exception as error:  # a full disk, a dead server
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        with self._lock:
            self._busy = False
            if self._abandoned:
                return
            self._failed += earlier + (messages if reason else 0)
            self._written += (0 if reason else messages) - earlier
            if reason:
                self._error = scrub(reason)
        if reason and messages:
            self._say()


def close_all(sinks: Sequence[QueuedSink], timeout_s: float = 5.0) -> list[SinkStats]:
    """Close sinks side by side, all of them within ``timeout_s`` seconds."""
    for sink in sinks:  # all of them begin before the first one is waited for
        sink.begin_close(timeout_s)
    return [sink.close(timeout_s) for sink in sinks]
