"""Scores over time in fixed memory: a mean and a minimum for each second and each minute."""

from __future__ import annotations

import math
import secrets
import threading
import time
from typing import TypeAlias

import numpy as np

__all__ = ["COARSE_S", "FINE_S", "History", "Point", "Ring", "WallClock"]

# (number of the time step, mean, minimum); a step without a score has no point.
Point: TypeAlias = tuple[int, float, float]

FINE_S = 1  # seconds per step: fine enough to see it move
COARSE_S = 60
_FINE_ROOM = 3600  # an hour of seconds: what just happened
_COARSE_ROOM = 1440  # a day of minutes: last night
_ROW = np.dtype([("step", "<i8"), ("mean", "<f4"), ("low", "<f4")])


class Ring:
    """The last ``room`` steps of ``step_s`` seconds each. Not thread-safe."""

    def __init__(self, step_s: int, room: int) -> None:
        self.step_s, self._room = step_s, room
        self._rows = np.zeros(room, _ROW)
        self._rows["step"] = -1
        self._step = -1  # the step being filled
        self._count, self._sum, self._low = 0, 0.0, math.inf

    @property
    def nbytes(self) -> int:
        """Bytes in memory, however long it runs."""
        return int(self._rows.nbytes)

    def add(self, now: float, value: float) -> None:
        """Add a score at ``now`` (monotonic seconds, never decreasing)."""
        self._roll(now)
        self._count += 1
        self._sum += value
        self._low = min(self._low, value)

    def _roll(self, now: float) -> None:
        step = int(now // self.step_s)
        if step <= self._step:
            return
        if self._count:
            self._rows[self._step % self._room] = (self._step, self._sum / self._count, self._low)
        self._step, self._count, self._sum, self._low = step, 0, 0.0, math.inf

    def points(self, after: int, now: float) -> list[Point]:
        """The complete steps after step number ``after``, in order."""
        self._roll(now)
        oldest = max(after, self._step - self._room - 1, -1)
        rows = self._rows[self._rows["step"] > oldest]
        rows = rows[np.argsort(rows["step"])]
        return [(int(row["step"]), round(float(row["mean"]), 4), round(float(row["low"]), 4)) for row in rows]


class History:
    """One camera's scores: an hour of seconds and a day of minutes, 80,640 bytes. For many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rings = {FINE_S: Ring(FINE_S, _FINE_ROOM), COARSE_S: Ring(COARSE_S, _COARSE_ROOM)}

    @property
    def nbytes(self) -> int:
        """Bytes in memory, however long it runs."""
        return sum(ring.nbytes for ring in self._rings.values())

    def add(self, value: float) -> None:
        """Add a score (0..1) of this moment."""
        if not math.isfinite(value):
            return
        with self._lock:
            now = time.monotonic()  # under the lock, so that it never goes back
            for ring in self._rings.values():
                ring.add(now, value)

    def points(self, step_s: int, after: int, before: int | None = None) -> list[Point]:
        """The complete steps of ``step_s`` (1 or 60) seconds between two step numbers, both excluded."""
        with self._lock:
            points = self._rings[step_s].points(after, time.monotonic())
        return [point for point in points if before is None or point[0] < before]


class WallClock:
    """Converts the monotonic clock, which counts the steps, to the wall clock, which people read.

    The offset stays fixed, so that a step keeps its time to the millisecond, until the wall clock is set: a
    device without a battery starts in 1970 and learns the time later. ``run`` then changes, as at each start
    of the program, and readers must drop what they have and ask again.
    """

    _SET = 0.5  # seconds; a slewed clock stays within it for hours, and is then off by less than a step

    def __init__(self) -> None:
        self._name = secrets.token_hex(4)
        self._lock = threading.Lock()
        self._times_set = 0
        self._offset = time.time() - time.monotonic()

    def read(self) -> tuple[str, float]:
        """``run``, and the offset from monotonic time to seconds since 1970."""
        with self._lock:
            offset = time.time() - time.monotonic()
            if abs(offset - self._offset) > self._SET:
                self._offset = offset
                self._times_set += 1
            return f"{self._name}.{self._times_set}", self._offset
