"""The cameras' metrics as Prometheus has them: counters ``_total``, times in seconds, a state one-hot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

from grmp_edge.runtime.live.events import CameraState, CameraStats
from grmp_edge.runtime.live.live import CameraStatus
from grmp_edge.runtime.live.no_picture import Verdict
from grmp_edge.runtime.sinks.queue import Record, SinkStats
from grmp_edge.runtime.web.metrics_text import Metrics

__all__ = ["CameraMetrics", "drops"]

_DECLARED = (
    ("grmp_edge_camera_frames_total", "counter", "Frames received from the camera."),
    ("grmp_edge_camera_scored_total", "counter", "Frames scored."),
    ("grmp_edge_camera_dropped_total", "counter", "Frames received and not scored, by reason."),
    ("grmp_edge_camera_reconnects_total", "counter", "Times the source was opened again after the first."),
    ("grmp_edge_camera_hangs_total", "counter", "Reads given up because they did not come back."),
    ("grmp_edge_camera_alerts_total", "counter", "Alerts raised, by kind."),
    ("grmp_edge_camera_score", "gauge", "The last score, 0 to 1."),
    ("grmp_edge_camera_alert", "gauge", "1 while an alert of this kind is raised."),
    ("grmp_edge_camera_state", "gauge", "1 for the state the camera is in, 0 for the others."),
    ("grmp_edge_camera_picture", "gauge", "1 for what the picture is (ok, frozen, black, ...), 0 else."),
    ("grmp_edge_camera_fps", "gauge", "Frames received a second, over the last ones."),
    (
        "grmp_edge_camera_last_frame_timestamp_seconds",
        "gauge",
        "When the last scored frame was captured, in seconds since 1970.",
    ),
    ("grmp_edge_camera_inference_seconds", "histogram", "A frame's share of the network's run on its batch."),
    ("grmp_edge_camera_age_seconds", "histogram", "From a frame's capture to its score."),
    ("grmp_edge_sink_written_total", "counter", "Events delivered by a sink."),
    ("grmp_edge_sink_lost_total", "counter", "Events that found no room in a sink's queue."),
    ("grmp_edge_sink_failed_total", "counter", "Events that a sink tried to deliver and could not."),
    ("grmp_edge_dashboard_clients", "gauge", "Pages that follow the cameras now."),
)
_KINDS = ("low", "drop")
# A repeated frame is only counted: it never becomes the state of the picture.
_PICTURES = tuple(verdict for verdict in get_args(Verdict) if verdict != "repeated")


def drops(stats: CameraStats) -> dict[str, int]:
    """Frames received and not scored, by reason."""
    return {
        "replaced": stats.dropped, "stale": stats.stale, "thinned": stats.thinned, "expired": stats.expired,
        "damaged": stats.damaged, **{verdict: stats.skipped[verdict] for verdict in get_args(Verdict)[1:]},
    }  # fmt: skip


class CameraMetrics:
    """Fills :class:`Metrics` from events, one by one, and from the cameras' counters when it is read."""

    def __init__(self, metrics: Metrics, cameras: Sequence[str]) -> None:
        """All series are there from the start: what appears only with its first event has no rate."""
        self._metrics = metrics
        for name, kind, text in _DECLARED:
            # The cameras are the owner's own, so they are all told apart, however many.
            metrics.declare(name, kind, text, series=None)
        for camera in cameras:
            for kind in _KINDS:
                metrics.add("grmp_edge_camera_alerts_total", 0.0, camera=camera, kind=kind)

    def take(self, record: Record) -> None:
        """Take in an event."""
        metrics, camera = self._metrics, record["camera"]
        if record["event"] == "score":
            if math.isfinite(record["value"]):
                metrics.set("grmp_edge_camera_score", record["value"], camera=camera)
            metrics.set("grmp_edge_camera_last_frame_timestamp_seconds", record["at"], camera=camera)
            for key, name in (("latency_ms", "inference"), ("age_ms", "age")):
                if key in record:
                    seconds = record[key] / 1000.0
                    metrics.observe(f"grmp_edge_camera_{name}_seconds", seconds, camera=camera)
        elif record["event"] == "alert" and record["raised"]:
            metrics.add("grmp_edge_camera_alerts_total", camera=camera, kind=record["kind"])

    def refresh(self, cameras: Sequence[CameraStatus], sinks: Sequence[SinkStats], clients: int) -> None:
        """Take over the counters as they are now."""
        metrics = self._metrics
        for status in cameras:
            camera, stats = status.camera, status.stats
            for name, value in (
                ("frames_total", stats.frames),
                ("scored_total", status.scored),
                ("reconnects_total", max(0, stats.connects - 1)),
                ("hangs_total", stats.hangs),
                ("fps", round(stats.fps, 3)),
            ):
                metrics.set(f"grmp_edge_camera_{name}", float(value), camera=camera)
            for reason, count in drops(stats).items():
                metrics.set("grmp_edge_camera_dropped_total", float(count), camera=camera, reason=reason)
            for state in CameraState:
                metrics.set(
                    "grmp_edge_camera_state", float(state is stats.state), camera=camera, state=state.value
                )
            for picture in _PICTURES:
                metrics.set(
                    "grmp_edge_camera_picture",
                    float(picture == stats.picture),
                    camera=camera,
                    picture=picture,
                )
            for kind in _KINDS:
                metrics.set("grmp_edge_camera_alert", float(kind in status.alerts), camera=camera, kind=kind)
        for sink in _named_apart(sinks):
            for name, count in (("written", sink.written), ("lost", sink.lost), ("failed", sink.failed)):
                metrics.set(f"grmp_edge_sink_{name}_total", float(count), sink=sink.name)
        metrics.set("grmp_edge_dashboard_clients", float(clients))


def _named_apart(sinks: Sequence[SinkStats]) -> list[SinkStats]:
    """Two sinks of one kind become "jsonl" and "jsonl #2"."""
    seen: dict[str, int] = {}
    found = []
    for sink in sinks:
        seen[sink.name] = seen.get(sink.name, 0) + 1
        number = seen[sink.name]
        found.append(sink if number == 1 else replace(sink, name=f"{sink.name} #{number}"))
    return found
