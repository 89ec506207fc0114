"""What a browser learns about the live cameras: their state, their scores over time, their events."""

from __future__ import annotations

import math
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from grmp_edge import __version__
from grmp_edge.runtime.live.events import CameraState
from grmp_edge.runtime.live.live import CameraStatus, Live, LiveEvent, LiveScore
from grmp_edge.runtime.live.memory import BINS
from grmp_edge.runtime.sinks.queue import Message, QueuedSink, Record, SinkStats, Writer, jpeg
from grmp_edge.runtime.web import prometheus
from grmp_edge.runtime.web.history import COARSE_S, FINE_S, History, Point, WallClock
from grmp_edge.runtime.web.messages import CameraJson, EventJson, HistoryJson, UpdateJson, UsualJson
from grmp_edge.runtime.web.thumbnails import Thumbnails
from grmp_edge.score import Tile

__all__ = ["STEPS", "Cursor", "Dashboard"]

STEPS = (FINE_S, COARSE_S)  # seconds per step of the history

_EVENTS = 100  # alerts to remember, and as many changes of state
_PICTURES = 40  # of the last alerts: 2 MB
_SHOWN = frozenset({*EventJson.__required_keys__, *EventJson.__optional_keys__})  # fields of a record
_MAX_AGE_S = 0.4  # a status is read at most this often, however many clients ask
_ROOM = 1000  # events on their way from the scoring thread: some seconds of many cameras


@dataclass
class Cursor:
    """What a follower has been sent so far."""

    point: int  # the last step of the history
    event: int = 0  # number of the last alert or change


class _Writer(Writer):
    """Takes events on the sink's thread, so that scoring never waits for the dashboard."""

    takes_image = True

    def __init__(self, dashboard: Dashboard) -> None:
        self._dashboard = dashboard

    def write(self, message: Message) -> None:
        """Take an event."""
        self._dashboard.take(message.record, message.image)


class _Sink(QueuedSink):
    """Passes on frames too, outside the queue: a newer frame replaces the one before."""

    def __init__(self, dashboard: Dashboard) -> None:
        super().__init__("dashboard", _Writer(dashboard), _ROOM)
        self._thumbnails = dashboard.thumbnails

    def put(self, event: LiveEvent, record: Record) -> None:
        """Pass on an event; returns at once."""
        if isinstance(event, LiveScore):
            captured_s = event.score.captured_s
            now = time.monotonic() if captured_s is None else captured_s
            self._thumbnails.offer(event.camera, event.image, now)
        super().put(event, record)


class Dashboard:
    """The state behind the page, the JSON API and the cameras' metrics. For many threads.

    Put events into ``sink`` as into any other sink; a server reads the rest.
    """

    def __init__(self, live: Live, sinks: Sequence[QueuedSink] = ()) -> None:
        """``sinks``: those whose losses the metrics count; the list may grow later."""
        self._live, self._sinks = live, sinks
        names = [camera.label for camera in live.cameras]
        self.ids = _ids(names)
        self._names = {identity: name for name, identity in self.ids.items()}
        self.clock = WallClock()
        self.histories = {name: History() for name in names}
        self.thumbnails = Thumbnails(names)
        self.count_clients: Callable[[], int] = lambda: 0  # pages that follow now; the server sets it
        self.metrics: prometheus.CameraMetrics | None = None
        if prometheus.AVAILABLE:
            self.metrics = prometheus.CameraMetrics(
                names, self.statuses, self._sink_stats, lambda: self.count_clients()
            )
        self._lock = threading.Lock()
        self._alerts: deque[EventJson] = deque(maxlen=_EVENTS)
        self._changes: deque[EventJson] = deque(maxlen=_EVENTS)
        self._last_event = 0  # its number
        self._pictures: dict[int, bytes] = {}  # JPEGs of alerts, by number
        self._statuses: list[CameraStatus] = []
        self._statuses_s = -math.inf
        self.sink: QueuedSink = _Sink(self)

    # Called on the sink's thread.

    def take(self, record: Record, image: npt.NDArray[np.uint8] | None = None) -> None:
        """Take an event; ``image``: an alert's frame, uint8 (H, W, 3) BGR."""
        name = record["camera"]
        if self.metrics is not None:
            self.metrics.take(record)
        if record["event"] == "score":
            self.histories[name].add(record["value"])
            self.thumbnails.shrink(name)
            return
        shows = record["event"] == "alert" and record["raised"] and image is not None
        picture = jpeg(image) if shows and image is not None else b""
        with self._lock:
            self._last_event += 1
            if picture:
                self._pictures[self._last_event] = picture
                while len(self._pictures) > _PICTURES:
                    del self._pictures[next(iter(self._pictures))]
            shown = {key: value for key, value in record.items() if key in _SHOWN}
            if picture:
                shown["has_picture"] = True
            event = cast(EventJson, {"number": self._last_event, "id": self.ids[name], **shown})
            (self._alerts if record["event"] == "alert" else self._changes).append(event)

    # Called on the server's threads.

    def find(self, name: str) -> str | None:
        """The name of the camera with this name or id."""
        return name if name in self.ids else self._names.get(name)

    def accept(self, name: str) -> None:
        """Make a camera's present scores and picture its normal."""
        self._live.accept(name)

    def picture(self, number: int) -> bytes | None:
        """The JPEG of an alert by the number of its event; None: it had none, or is too long ago."""
        with self._lock:
            return self._pictures.get(number)

    def usual(self, name: str) -> UsualJson:
        """What is usual for a camera."""
        memory = self._live.memory(name)
        return {
            "camera": name,
            "days": memory.days,
            "bin_s": 86400 // BINS,
            "bins": [None if one is None else (round(one[0], 4), round(one[1], 4)) for one in memory.band()],
            "levels": [((day + 0.5) * 86400.0, round(level, 4)) for day, level in memory.levels],
        }

    def again(self) -> None:
        """Send all states and raised alerts to the sinks once more."""
        self._live.again()

    def statuses(self) -> list[CameraStatus]:
        """The status of each camera, at most a moment old."""
        with self._lock:
            now = time.monotonic()
            if now - self._statuses_s > _MAX_AGE_S:
                self._statuses, self._statuses_s = self._live.status(), now
            return self._statuses

    def _sink_stats(self) -> list[SinkStats]:
        sinks = list(self._sinks)
        return [sink.stats() for sink in (sinks if self.sink in sinks else [*sinks, self.sink])]

    def ready(self) -> bool:
        """Whether any camera is running."""
        return any(status.stats.state is CameraState.RUNNING for status in self.statuses())

    def cameras(self) -> list[CameraJson]:
        """The state of every camera."""
        _, offset = self.clock.read()
        now = time.monotonic()
        return [self._camera(status, now, offset) for status in self.statuses()]

    def _camera(self, status: CameraStatus, now: float, offset: float) -> CameraJson:
        stats, last = status.stats, status.last
        limits = {kind: round(limit, 4) for kind, limit in status.limits.items()}
        captured_s = None if last is None else last.captured_s
        picture = self.thumbnails.latest(status.camera)
        return {
            "id": self.ids[status.camera],
            "name": status.camera,
            "state": stats.state.value,
            "picture": stats.picture,
            "detail": stats.detail,
            "score": None if last is None else _number(last.value, 4),
            "mos": None if last is None else _number(last.mos, 3),
            "cause": None if last is None else last.cause,
            "causes": {} if last is None else {name: round(v, 3) for name, v in (last.causes or {}).items()},
            "tiles": [] if last is None else [_tile(tile) for tile in last.tiles or ()],
            "scored_at": None if captured_s is None else round(captured_s + offset, 3),
            "age_s": None if captured_s is None else round(now - captured_s, 3),
            "latency_ms": None if last is None else _number(last.latency_ms, 2),
            "fps": round(stats.fps, 2),
            "size": stats.size,
            "frames": stats.frames,
            "scored": status.scored,
            "dropped": stats.not_scored(),
            "reconnects": stats.reconnects,
            "alerts": status.alerts,
            "limits": limits,
            "baseline": _number(status.baseline, 4),
            "doubts": status.doubts,
            "days": status.days,
            "trend": status.trend,
            "part": None if status.part is None else [round(share, 3) for share in status.part],
            "thumbnail": None
            if picture is None
            else {"number": picture[0], "at": round(picture[1] + offset, 3)},
        }

    def cursor(self) -> Cursor:
        """Where a new follower begins: with all remembered events, and with the history from now on."""
        return Cursor(int(time.monotonic() // FINE_S) - 1)

    def update(self, cursor: Cursor) -> UpdateJson:
        """The state now and what has happened since ``cursor``, which moves on."""
        run, offset = self.clock.read()
        update: UpdateJson = {
            "run": run,
            "version": __version__,
            "model": self._live.scorer.bundle.id,
            "at": round(time.time(), 3),
            "cameras": self.cameras(),
            "points": {},
        }
        # One border for all cameras, so that they all end at the same second.
        border = int(time.monotonic() // FINE_S)
        for name, history in self.histories.items():
            points = history.points(FINE_S, cursor.point, border)
            if points:
                update["points"][self.ids[name]] = _at_wall_clock(points, FINE_S, offset)
        cursor.point = border - 1
        with self._lock:
            events = [event for event in (*self._alerts, *self._changes) if event["number"] > cursor.event]
        if events:
            update["events"] = sorted(events, key=lambda event: event["number"])
            cursor.event = update["events"][-1]["number"]
        return update

    def history(self, name: str, since: float, step_s: int) -> HistoryJson:
        """A camera's scores after a time (seconds since 1970), in steps of ``step_s`` (1 or 60) seconds."""
        run, offset = self.clock.read()
        after = math.floor((since - offset + 0.001) / step_s)  # clients know times to the millisecond
        points = _at_wall_clock(self.histories[name].points(step_s, after), step_s, offset)
        return {"run": run, "camera": name, "step_s": step_s, "points": points}


def _at_wall_clock(points: Sequence[Point], step_s: int, offset: float) -> list[list[float]]:
    return [[round(step * step_s + offset, 3), mean, low] for step, mean, low in points]


def _tile(tile: Tile) -> list[float]:
    return [tile.left, tile.top, tile.width, tile.height, round(tile.value, 3)]


def _number(value: float | None, digits: int) -> float | None:
    """A rounded number; None for what JSON cannot express."""
    return None if value is None or not math.isfinite(value) else round(value, digits)


def _ids(names: Sequence[str]) -> dict[str, str]:
    """A short id for each name: safe in any address, and never another camera's name."""
    ids: dict[str, str] = {}
    used: set[str] = set()
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:60] or "camera"
        identity, number = plain, 1
        while identity in used or (identity != name and identity in names):
            number += 1
            identity = f"{plain}-{number}"
        used.add(identity)
        ids[name] = identity
    return ids
