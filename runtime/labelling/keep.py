"""A sink of ``watch`` that keeps a few frames for the next labelling, and says when that would pay."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from grmp_edge.files import as_typed
from grmp_edge.runtime.labelling.answers import wanted_images
from grmp_edge.runtime.labelling.frames import CollectConfig, Frame, FrameStore
from grmp_edge.runtime.labelling.looks import SAME
from grmp_edge.runtime.sinks.queue import Message, Record, Writer

__all__ = ["KeepWriter"]

_CALM_S, _NEAR_S = 60.0, 5.0  # between candidates of a camera; near its limit they come sooner
_NEAR = 0.05  # of a score: this close to a limit it decides about alerts
_NEW = 3 * SAME  # farther than this from all labelled frames, a frame is news to the model
_PAYS = 20  # such frames


class KeepWriter(Writer):
    """Keeps frames at alerts, near the limits and of new looks, as ``grmp-edge collect`` does."""

    needs_image = True

    def __init__(self, folder: Path, tell: Callable[[str], object], limit: int = 200) -> None:
        """``tell`` is called with a line when labelling again would pay.

        Raises:
            UsageError: another process collects into the folder.
        """
        self._folder, self._tell = folder, tell
        self._store = FrameStore(folder, CollectConfig(limit), lambda: wanted_images(folder))
        self._limits: dict[str, float] = {}  # by camera, as its alerts say
        self._due: dict[str, float] = {}
        self._told: frozenset[str] | None = None  # the labelled frames when it was last said

    def wants(self, record: Record) -> bool:
        """Alerts with a frame, and scores now and then."""
        if record["event"] == "camera" or "value" not in record:
            return False
        now, camera = time.monotonic(), record["camera"]
        if record["event"] == "alert":
            if "limit" in record:
                self._limits[camera] = record["limit"]
            return True
        near = abs(record["value"] - self._limits.get(camera, -1.0)) < _NEAR
        if now < self._due.get(camera, 0.0) - (_CALM_S - _NEAR_S) * near:
            return False
        self._due[camera] = now + _CALM_S
        return True

    def write(self, message: Message) -> None:
        """Offer the frame to the folder."""
        record = message.record
        if message.image is None or record["event"] == "camera":
            return
        frame = Frame(
            ".png", record["camera"], record["at"], record.get("value"), record.get("cause"),
            record.get("causes"), record.get("model"), None, record.get("frame"),
        )  # fmt: skip
        if self._store.add(frame, message.image) != "kept":
            return
        labelled = wanted_images(self._folder)
        count = self._store.unlike(labelled, _NEW)
        if count >= _PAYS and labelled != self._told:
            self._told = labelled
            what = "unlike all that is labelled" if labelled else "and none is labelled"
            self._tell(
                f"{count} frames in {self._folder} {what}; next: grmp-edge label {as_typed(self._folder)}"
            )

    def close(self) -> None:
        """Let another process collect there."""
        self._store.close()
