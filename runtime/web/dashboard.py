"""What a browser is told of the live cameras: their state, their scores over time, what happened."""

from __future__ import annotations

import math
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from grmp_edge import __version__
from grmp_edge.runtime.live.events import CameraState
from grmp_edge.runtime.live.live import CameraStatus, Live, LiveEvent, LiveScore
from grmp_edge.runtime.sinks.queue import Message, QueuedSink, Record
from grmp_edge.runtime.web.camera_metrics import CameraMetrics, drops
from grmp_edge.runtime.web.history import COARSE_S, FINE_S, History, WallClock
from grmp_edge.runtime.web.metrics_text import Metrics
from grmp_edge.runtime.web.thumbnails import Thumbnails

__all__ = ["STEPS", "Cursor", "Dashboard"]

STEPS = (FINE_S, COARSE_S)  # seconds of a step, as the history has them

_EVENTS = 100  # alerts, and as many changes, that are remembered
_TOLD = ("event", "camera", "at", "kind", "raised", "value", "limit", "since_s", "state", "picture", "detail",
         "retry_s")  # fmt: skip
_FRESH_S = 0.4  # snapshots are taken at most so often, however many ask
_ROOM = 1000  # events on their way from the scoring thread: seconds of many cameras


@dataclass
class Cursor:
    """How far a follower has been told."""

    point: int  # the last step of the history
    event: int = 0  # the last alert or change


class _Intake:
    """The dashboard's own sink: takes events in on a thread that scoring never waits for."""

    def __init__(self, dashboard: Dashboard) -> None:
        self._dashboard = dashboard

    def wants(self, record: Record) -> bool:
        """All of them."""
        return True

    def write(self, message: Message) -> None:
        """Take in an event."""
        self._dashboard.take(message.record)

    def close(self) -> None:
        """Nothing is open."""


class _Sink(QueuedSink):
    """Hands frames over as well: by a reference of which the newest alone is kept."""

    def __init__(self, dashboard: Dashboard) -> None:
        super().__init__("dashboard", _Intake(dashboard), _ROOM)
        self._thumbnails = dashboard.thumbnails

    def put(self, event: LiveEvent, record: Record) -> None:
        """Hand over an event; returns at once."""
        if isinstance(event, LiveScore):
            captured_s = event.score.captured_s
            now = time.monotonic() if captured_s is None else captured_s
            self._thumbnails.offer(event.camera, event.image, now)
        super().put(event, record)


class Dashboard:
    """The state that pages, the JSON API and the metrics read. For many threads.

    Put events into ``sink``, as into any other; whoever serves this reads the rest.
    """

    def __init__(self, live: Live, sinks: Sequence[QueuedSink] = ()) -> None:
        """``sinks``: those whose losses the metrics tell; more may be added to the list later."""
        self._live, self._sinks = live, sinks
        names = [camera.label for camera in live.cameras]
        self._rules = {camera.label: camera.alert for camera in live.cameras}
        self.ids = _ids(names)
        self._names = {identity: name for name, identity in self.ids.items()}
        self.clock = WallClock()
        self.histories = {name: History() for name in names}
        self.thumbnails = Thumbnails(names)
        self.metrics = Metrics()
        self._measured = CameraMetrics(self.metrics, names)
        self._lock = threading.Lock()
        self._alerts: deque[Record] = deque(maxlen=_EVENTS)
        self._changes: deque[Record] = deque(maxlen=_EVENTS)
        self._told = 0  # number of the last event
        self._statuses: list[CameraStatus] = []
        self._statuses_s = -math.inf
        self.count_clients: Callable[[], int] = lambda: 0  # pages that follow now; set by who serves them
        self.sink: QueuedSink = _Sink(self)

    # In: the dashboard's thread.

    def take(self, record: Record) -> None:
        """Take in an event."""
        name = record["camera"]
        self._measured.take(record)
        if record["event"] == "score":
            self.histories[name].add(record["value"])
            self.thumbnails.shrink(name)
            return
        with self._lock:
            self._told += 1
            kept = self._alerts if record["event"] == "alert" else self._changes
            told = {key: record[key] for key in _TOLD if key in record}
            kept.append({"number": self._told, "id": self.ids[name], **told})

    # Out: the server's threads.

    def find(self, name: str) -> str | None:
        """The camera of a name or id."""
        return name if name in self.ids else self._names.get(name)

    def statuses(self) -> list[CameraStatus]:
        """The cameras' status, at most a moment old."""
        with self._lock:
            now = time.monotonic()
            if now - self._statuses_s > _FRESH_S:
                self._statuses, self._statuses_s = self._live.status(), now
            return self._statuses

    def ready(self) -> bool:
        """Whether any camera runs."""
        return any(status.stats.state is CameraState.RUNNING for status in self.statuses())

    def cameras(self) -> list[dict[str, Any]]:
        """The state of all cameras, for JSON."""
        _, offset = self.clock.read()
        now = time.monotonic()
        return [self._camera(status, now, offset) for status in self.statuses()]

    def _camera(self, status: CameraStatus, now: float, offset: float) -> dict[str, Any]:
        stats, last, rule = status.stats, status.last, self._rules[status.camera]
        limits = {}
        if rule.below is not None:
            limits["low"] = rule.below
        if rule.drop is not None and status.baseline is not None:
            limits["drop"] = round(status.baseline - rule.drop, 4)
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
            "scored_at": None if captured_s is None else round(captured_s + offset, 3),
            "age_s": None if captured_s is None else round(now - captured_s, 3),
            "latency_ms": None if last is None else _number(last.latency_ms, 2),
            "fps": round(stats.fps, 2),
            "size": stats.size,
            "frames": stats.frames,
            "scored": status.scored,
            "dropped": drops(stats),
            "reconnects": max(0, stats.connects - 1),
            "alerts": status.alerts,
            "limits": limits,
            "baseline": _number(status.baseline, 4),
            "thumbnail": None
            if picture is None
            else {"number": picture[0], "at": round(picture[1] + offset, 3)},
        }

    def cursor(self) -> Cursor:
        """Of a follower who begins now: all alerts, and of the history what comes."""
        return Cursor(int(time.monotonic() // FINE_S) - 1)

    def update(self, cursor: Cursor) -> dict[str, Any]:
        """Everything that is so now, and what has happened since the cursor, which moves on."""
        run, offset = self.clock.read()
        found: dict[str, Any] = {
            "run": run,
            "version": __version__,
            "model": self._live.scorer.bundle.id,
            "at": round(time.time(), 3),
            "cameras": self.cameras(),
            "points": {},
        }
        filling = int(
            time.monotonic() // FINE_S
        )  # one border for all cameras: none is told less than another
        for name, history in self.histories.items():
            points = history.points(FINE_S, cursor.point, filling)
            if points:
                found["points"][self.ids[name]] = self._timed(points, FINE_S, offset)
        cursor.point = filling - 1
        with self._lock:
            happened = [event for event in (*self._alerts, *self._changes) if event["number"] > cursor.event]
        if happened:
            found["events"] = sorted(happened, key=lambda event: int(event["number"]))
            cursor.event = found["events"][-1]["number"]
        return found

    def history(self, name: str, since: float, step_s: int) -> dict[str, Any]:
        """A camera's scores after a time (seconds since 1970), a mean and a minimum each ``step_s``."""
        run, offset = self.clock.read()
        after = math.floor((since - offset + 0.001) / step_s)  # times are told to the millisecond
        points = self.histories[name].points(step_s, after)
        return {
            "run": run, "camera": name, "step_s": step_s, "points": self._timed(points, step_s, offset)
        }  # fmt: skip

    @staticmethod
    def _timed(points: Sequence[tuple[int, float, float]], step_s: int, offset: float) -> list[list[float]]:
        return [[round(step * step_s + offset, 3), mean, low] for step, mean, low in points]

    def scrape(self) -> str:
        """The metrics as text."""
        sinks = list(self._sinks)
        stats = [sink.stats() for sink in (sinks if self.sink in sinks else [*sinks, self.sink])]
        self._measured.refresh(self.statuses(), stats, self.count_clients())
        return self.metrics.text()


def _number(value: float | None, digits: int) -> float | None:
    """A number that JSON has, or None."""
    return None if value is None or not math.isfinite(value) else round(value, digits)


def _ids(names: Sequence[str]) -> dict[str, str]:
    """For each name a short one that is the same in any address, and is no other camera's name."""
    found: dict[str, str] = {}
    used: set[str] = set()
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:60] or "camera"
        identity, number = plain, 1
        while identity in used or (identity != name and identity in names):
            number += 1
            identity = f"{plain}-{number}"
        used.add(identity)
        found[name] = identity
    return found
