"""Metrics for Prometheus: counters end in ``_total``, times are in seconds, a state is one-hot."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

from grmp_edge import __version__
from grmp_edge.errors import DamagedError, GrmpError
from grmp_edge.runtime.live.alert import AlertKind
from grmp_edge.runtime.live.events import CameraState
from grmp_edge.runtime.live.live import CameraStatus
from grmp_edge.runtime.live.no_picture import Verdict
from grmp_edge.runtime.sinks.queue import Record, SinkStats
from grmp_edge.score import Score

try:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    AVAILABLE = True
except ModuleNotFoundError:  # everything else works without it, and /metrics says what is missing
    AVAILABLE = False

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from grmp_edge.runtime.scorer import Scorer

__all__ = ["AVAILABLE", "CameraMetrics", "RequestMetrics"]

# Seconds: from one picture on a GPU to a queue on a busy embedded CPU.
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_MAX_CAMERAS = 200  # camera names in the metrics of requests: clients invent them, and memory is finite
_ALERTS = get_args(AlertKind)
# A repeated frame is only counted: it never becomes the state of the picture.
_PICTURES = tuple(verdict for verdict in get_args(Verdict) if verdict != "repeated")


class _Metrics:
    """Instruments in a registry of their own. For many threads."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"grmp_edge_{name}_total", text, labels, registry=self._registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"grmp_edge_{name}", text, labels, registry=self._registry)

    def _seconds(self, name: str, text: str, *labels: str) -> Histogram:
        name = f"grmp_edge_{name}_seconds"
        return Histogram(name, text, labels, registry=self._registry, buckets=_BUCKETS)

    def collect(self) -> Iterator[Metric]:
        """All metrics, without the ``_created`` series that prometheus_client adds to each."""
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric

    def text(self) -> str:
        """All metrics in Prometheus' text format 0.0.4."""
        return generate_latest(self).decode()


class RequestMetrics(_Metrics):
    """What ``serve`` counts of the pictures sent to it."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self._names: set[str] = set()
        self._scores = self._counter("scores", "Pictures scored.", "camera")
        self._unreadable = self._counter(
            "unreadable", "Pictures that could not be decoded or were too large.", "camera"
        )
        self._damaged = self._counter(
            "damaged", "Pictures refused as known to be damaged; counted as unreadable, too.", "camera"
        )
        self._last = self._gauge("last_score", "The last score, 0 to 1.", "camera")
        self._requests = self._counter("requests", "HTTP requests answered.", "path", "status")
        self._answer = self._seconds("request", "Time to answer a request.", "path")
        self._inference = self._seconds("inference", "Resizing and the network's run, per request.")
        info = self._gauge("info", "What is running.", "version", "model", "provider")
        info.labels(__version__, scorer.bundle.id, scorer.backend.provider).set(1)

    def inference(self, seconds: float) -> None:
        """Count the network's share of a request."""
        self._inference.observe(seconds)

    def result(self, camera: str, result: Score | GrmpError) -> None:
        """Count the result of one picture."""
        if camera not in self._names:
            if len(self._names) < _MAX_CAMERAS:
                self._names.add(camera)
            else:
                camera = "other"
        if isinstance(result, Score):
            self._scores.labels(camera).inc()
            self._last.labels(camera).set(result.value)
        else:
            self._unreadable.labels(camera).inc()
            if isinstance(result, DamagedError):
                self._damaged.labels(camera).inc()

    def answered(self, path: str, status: int, seconds: float | None) -> None:
        """Count an answer; ``seconds`` is None for a stream, whose time depends on its reader."""
        if seconds is not None:
            self._answer.labels(path).observe(seconds)
        self._requests.labels(path, str(status)).inc()


class CameraMetrics(_Metrics):
    """The cameras, their sinks and the pages that follow them.

    Events are counted one by one; all else is read from the cameras' own counters at each scrape.
    """

    def __init__(
        self,
        cameras: Sequence[str],
        statuses: Callable[[], Sequence[CameraStatus]],
        sinks: Callable[[], Sequence[SinkStats]],
        clients: Callable[[], int],
    ) -> None:
        super().__init__()
        self._statuses, self._sinks, self._clients = statuses, sinks, clients
        self._score = self._gauge("camera_score", "The last score, 0 to 1.", "camera")
        self._captured = self._gauge(
            "camera_last_frame_timestamp_seconds",
            "When the last scored frame was captured, in seconds since 1970.",
            "camera",
        )
        self._inference = self._seconds(
            "camera_inference", "A frame's share of the network's run on its batch.", "camera"
        )
        self._age = self._seconds("camera_age", "From a frame's capture to its score.", "camera")
        self._alerts = self._counter("camera_alerts", "Alerts raised, by kind.", "camera", "kind")
        for camera in cameras:
            for kind in _ALERTS:  # a series that appears only with its first event has no rate
                self._alerts.labels(camera, kind)

    def take(self, record: Record) -> None:
        """Count an event."""
        camera = record["camera"]
        if record["event"] == "alert" and record["raised"]:
            self._alerts.labels(camera, record["kind"]).inc()
        elif record["event"] == "score":
            if math.isfinite(record["value"]):
                self._score.labels(camera).set(record["value"])
            self._captured.labels(camera).set(record["at"])
            if "latency_ms" in record:
                self._inference.labels(camera).observe(record["latency_ms"] / 1000)
            if "age_ms" in record:
                self._age.labels(camera).observe(record["age_ms"] / 1000)

    def collect(self) -> Iterator[Metric]:
        """All metrics; the cameras' counters as they are now."""
        yield from super().collect()
        statuses, sinks = self._statuses(), _numbered(self._sinks())
        for name, label, text, values in _PER_CAMERA:
            labels = ["camera", label] if label else ["camera"]
            rows = [
                ([status.camera, key][: len(labels)], value)
                for status in statuses
                for key, value in values(status).items()
            ]
            yield _family(f"camera_{name}", text, labels, rows)
        for name, text in _PER_SINK.items():
            yield _family(f"sink_{name}_total", text, ["sink"], [([s.name], getattr(s, name)) for s in sinks])
        yield _family("dashboard_clients", "Pages that follow the cameras.", [], [([], self._clients())])


_PER_CAMERA: tuple[tuple[str, str, str, Callable[[CameraStatus], Mapping[str, float]]], ...] = (
    ("frames_total", "", "Frames received from the camera.", lambda of: {"": of.stats.frames}),
    ("scored_total", "", "Frames scored.", lambda of: {"": of.scored}),
    ("dropped_total", "reason", "Frames received but not scored.", lambda of: of.stats.not_scored()),
    ("reconnects_total", "", "Times the source was reopened.", lambda of: {"": of.stats.reconnects}),
    ("hangs_total", "", "Reads abandoned because they did not return.", lambda of: {"": of.stats.hangs}),
    ("fps", "", "Frames received per second, recently.", lambda of: {"": round(of.stats.fps, 3)}),
    (
        "state", "state", "1 for the camera's state, 0 for the others.",
        lambda of: {state.value: state is of.stats.state for state in CameraState},
    ),
    (
        "picture", "picture", "1 for what the picture shows (ok, frozen, black, ...), 0 for the others.",
        lambda of: {picture: picture == of.stats.picture for picture in _PICTURES},
    ),
    (
        "cause", "cause", "How likely this is wrong with the last frame, 0 to 1, if the model says.",
        lambda of: (of.last and of.last.causes) or {},
    ),
    (
        "usual_score", "", "Its usual score at this hour, once it is known.",
        lambda of: {} if of.baseline is None else {"": round(of.baseline, 4)},
    ),
    ("limit", "kind", "The score below which an alert of this kind is raised, once it is known.",
     lambda of: of.limits),
    (
        "alert", "kind", "1 while an alert of this kind is raised.",
        lambda of: {kind: kind in of.alerts for kind in _ALERTS},
    ),
)  # fmt: skip
_PER_SINK = {
    "written": "Events delivered by a sink.",
    "lost": "Events for which a sink's queue had no room.",
    "failed": "Events that a sink could not deliver.",
}


def _family(name: str, text: str, labels: list[str], rows: Sequence[tuple[list[str], float]]) -> Metric:
    kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
    family = kind(f"grmp_edge_{name}", text, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


def _numbered(sinks: Sequence[SinkStats]) -> list[SinkStats]:
    """Two sinks of one kind become "jsonl" and "jsonl #2"."""
    seen: dict[str, int] = {}
    numbered = []
    for sink in sinks:
        number = seen[sink.name] = seen.get(sink.name, 0) + 1
        numbered.append(sink if number == 1 else replace(sink, name=f"{sink.name} #{number}"))
    return numbered
