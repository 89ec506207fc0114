"""What is usual for a camera: its score over the day, learned over weeks and kept on disk.

Two parts, so that what adapts cannot absorb a fault. The *anchor* is the profile of the first days. Later a
half hour's anchor moves only to where somebody accepts a new normal, by at most :data:`DRIFT` a day, or as
dusk does through the year: towards its neighbours by at most :data:`SEASON` a day. The *centre* follows the
days; it may take any value that the anchor has within 90 minutes, and no other. A fault that lowers the whole
day or the whole night lies outside, however slowly it comes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from grmp_edge.errors import UsageError
from grmp_edge.files import replace_file, user_folder
from grmp_edge.redact import slug

__all__ = [
    "ACCEPT",
    "BEFORE",
    "BINS",
    "DRIFT",
    "SEASON",
    "Memory",
    "Usual",
    "fleet_name",
    "in_use",
    "memory_file",
    "memory_folder",
    "only_user",
    "read_json",
    "write_json",
]

ACCEPT = ".accept"  # suffix of an empty file that asks a running watch to make the present the normal
BEFORE = ".before"  # suffix of the memory of the model before: it may come back

FloatArray = npt.NDArray[np.float64]

BINS = 48  # half hours of the day, in UTC: the sun knows no summer time
DRIFT = 0.001  # a day: three hundredths a month, a tenth of the slowest fault that matters
_BIN_S = 86400 // BINS
SEASON = 0.1  # half hours a day: three minutes, as dusk moves in spring at 60 degrees
_LEARNING = 5  # days until a half hour's anchor is fixed
_KNOWN = 2  # days after which a half hour can be tested
_NEAR = 3  # half hours by which dusk may have moved since the anchor was fixed
_EDGE = 1  # half hours by which it may move from one day to the next
_RATE = 0.2  # a day, of what the centre and the spread adapt: a week's memory
_PRIOR = 0.03  # spread of a half hour before it is known, in scores
_FLOOR = 0.01  # least spread: a still camera of a still scene still meets weather
_DAYS = 120  # of levels kept: four months show the slowest trend
_MINUTES = 5  # with scores, at least, for a half hour to count
_PART = 8  # half hours, at least, for a day to count
_VERSION = 1
_LARGEST = 1_000_000  # bytes of a file; what is written has a tenth of it at most


@dataclass(frozen=True)
class Usual:
    """What a camera's score should be at a time."""

    centre: float
    floor: float  # the lowest centre within half an hour: dusk is not punctual
    ceiling: float  # and the highest
    spread: float  # robust standard deviation of minute means


class Memory:
    """The usual scores of one camera. Times are in seconds since 1970. Not thread-safe.

    The wall clock may jump: a step back or a gap ends the current half hour early, and costs that half hour.
    """

    def __init__(self, model: str) -> None:
        """``model``: id of the bundle that gives the scores; another one's scores mean something else."""
        self.model = model
        self._first = np.full((_LEARNING, BINS), np.nan)  # medians of the first days
        self._anchor = np.full(BINS, np.nan)
        self._centre = np.full(BINS, np.nan)
        self._spread = np.full(BINS, _PRIOR)
        self._days = np.zeros(BINS, np.int64)
        self._levels: list[tuple[int, float]] = []  # (day, median difference from the anchor)
        self._today: dict[int, float] = {}  # by bin: today's difference from the anchor
        self._minutes: list[float] = []  # means of the current half hour
        self._clean = True  # nothing was raised in it
        self._bin = -1  # half hours since 1970
        self._minute, self._sum, self._count = -1, 0.0, 0
        self._usual: tuple[int, Usual | None] = (-1, None)

    @property
    def levels(self) -> list[tuple[int, float]]:
        """For each past day (days since 1970): how far its scores lay above the anchor, as a median."""
        return list(self._levels)

    @property
    def days(self) -> int:
        """Days that the best-known half hour has been seen."""
        return int(self._days.max())

    def usual(self, at: float) -> Usual | None:
        """What is usual at a time; None until this half hour has been seen on two days."""
        minute = int(at // 60)
        if self._usual[0] != minute:
            self._usual = (minute, self._at(at))
        return self._usual[1]

    @property
    def middle(self) -> float | None:
        """The median of the anchor; None until something is known."""
        known = self._days >= _KNOWN
        return float(np.median(self._anchor[known])) if known.any() else None

    def band(self) -> list[tuple[float, float] | None]:
        """Centre and spread for each half hour of the day in UTC; None where it is not known."""
        return [
            (float(self._centre[index]), float(self._spread[index])) if self._days[index] >= _KNOWN else None
            for index in range(BINS)
        ]

    def add(self, at: float, value: float, learn: bool = True) -> bool:
        """Take a score; ``learn``: nothing is wrong with the camera. Returns whether a day has ended."""
        ended = False
        minute = int(at // 60)
        if minute != self._minute:
            ended = self._end_minute(minute)
        self._sum += value
        self._count += 1
        self._clean = self._clean and learn
        return ended

    def accept(self) -> None:
        """Make the present the normal: the whole profile moves to where the camera is now."""
        recent = np.array([*self._minutes[-15:], *([self._sum / self._count] if self._count else [])])
        index = self._bin % BINS
        if len(recent) and self._days[index]:
            shift = float(np.median(recent)) - float(self._centre[index])
            for profile in (self._anchor, self._centre, self._first):
                profile += shift
        self._levels, self._today, self._clean = [], {}, True
        self._usual = (-1, None)

    def seed(self, scores: Iterable[tuple[float | None, float]]) -> int:
        """Learn from past scores, ``(at, value)`` in the order of time; returns how many were used.

        Where no time is known, and where the timed ones are too few to know an hour, the median and spread of
        all become the usual for the whole day.
        """
        timeless, timed = [], []
        for at, value in scores:
            if at is None:
                timeless.append(value)
            else:
                timed.append(value)
                self.add(at, value)
        used = len(timed) + len(timeless)
        if self.days < _KNOWN:
            timeless += timed
        if timeless:
            middle = float(np.median(timeless))
            unknown = self._days == 0
            self._first[:_KNOWN, unknown] = middle
            self._anchor[unknown] = self._centre[unknown] = middle
            self._spread[unknown] = max(_PRIOR, 1.48 * float(np.median(np.abs(np.array(timeless) - middle))))
            self._days[unknown] = _KNOWN
        return used

    def _at(self, at: float) -> Usual | None:
        position = at / _BIN_S - 0.5
        low = math.floor(position)
        part, indices = position - low, [low % BINS, (low + 1) % BINS]
        here = int(at // _BIN_S) % BINS
        if self._days[here] < _KNOWN:
            return None
        if self._days[indices].min() < _KNOWN:
            part, indices = 0.0, [here, here]
        centre = float((1 - part) * self._centre[indices[0]] + part * self._centre[indices[1]])
        near = [(here + step) % BINS for step in range(-_EDGE, _EDGE + 1)]
        spread = float(max(self._spread[indices]))
        few = _PRIOR / math.sqrt(self._days[here])  # what a few days cannot tell
        low_high = float(np.nanmin(self._centre[near])), float(np.nanmax(self._centre[near]))
        return Usual(centre, min(centre, low_high[0]), max(centre, low_high[1]), math.hypot(spread, few))

    def _end_minute(self, minute: int) -> bool:
        ended = False
        if self._count:
            self._minutes.append(self._sum / self._count)
        half = minute * 60 // _BIN_S
        if half != self._bin:
            self._end_half_hour()
            if self._bin >= 0 and half // BINS != self._bin // BINS:
                ended = self._end_day(self._bin // BINS)
            self._bin, self._minutes, self._clean = half, [], True
        self._minute, self._sum, self._count = minute, 0.0, 0
        return ended

    def _end_half_hour(self) -> None:
        if len(self._minutes) < _MINUTES:
            return
        index, minutes = self._bin % BINS, np.array(self._minutes)
        middle = float(np.median(minutes))
        if self._days[index] >= _KNOWN:
            self._today[index] = middle - float(self._anchor[index])
        if not self._clean:
            return
        days = int(self._days[index])
        if days < _LEARNING:
            self._first[days, index] = middle
            self._anchor[index] = self._centre[index] = float(np.median(self._first[: days + 1, index]))
        else:
            self._anchor[index] += self._follow(index, _RATE * (middle - float(self._anchor[index])))
            near = self._anchor[[(index + step) % BINS for step in range(-_NEAR, _NEAR + 1)]]
            moved = self._centre[index] + _RATE * (middle - self._centre[index])
            self._centre[index] = np.clip(moved, np.nanmin(near), np.nanmax(near))
        spread = max(_FLOOR, 1.48 * float(np.median(np.abs(minutes - self._centre[index]))))
        # Clipped: one foggy half hour must not widen the band for a week, nor a fault for ever.
        spread = min(spread, 2 * float(self._spread[index]))
        self._spread[index] += _RATE * (spread - self._spread[index])
        self._days[index] = days + 1
        self._usual = (-1, None)

    def _follow(self, index: int, step: float) -> float:
        """How far of ``step`` the anchor may go: as far as its neighbours' values move here in a day."""
        near = self._anchor[[(index - 1) % BINS, index, (index + 1) % BINS]] - self._anchor[index]
        return float(np.clip(step, SEASON * np.nanmin(near) - DRIFT, SEASON * np.nanmax(near) + DRIFT))

    def _end_day(self, day: int) -> bool:
        today, self._today = self._today, {}
        if len(today) < _PART:
            return False
        earlier = [level for level in self._levels if level[0] < day]  # others: of a clock that was ahead
        self._levels = [*earlier, (day, float(np.median(list(today.values()))))][-_DAYS:]
        return True

    def to_json(self) -> dict[str, object]:
        """All of it, as JSON of bounded size."""
        return {
            "version": _VERSION,
            "model": self.model,
            "first": [_plain(row) for row in self._first],
            "anchor": _plain(self._anchor),
            "centre": _plain(self._centre),
            "spread": _plain(self._spread),
            "days": self._days.tolist(),
            "levels": [[day, round(level, 5)] for day, level in self._levels],
            "today": {str(index): round(value, 5) for index, value in self._today.items()},
            "minutes": [round(value, 5) for value in self._minutes],
            "clean": self._clean,
            "bin": self._bin,
            "minute": [self._minute, self._sum, self._count],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, object], model: str) -> Memory | None:
        """The memory that :meth:`to_json` gave; None if it is another model's, or not a memory."""
        memory = cls(model)
        if data.get("version") != _VERSION or data.get("model") != model:
            return None
        try:
            memory._first = _array(data["first"], (_LEARNING, BINS))
            memory._anchor = _array(data["anchor"], (BINS,))
            memory._centre = _array(data["centre"], (BINS,))
            memory._spread = _array(data["spread"], (BINS,))
            memory._days = np.nan_to_num(_array(data["days"], (BINS,)), nan=-1.0).astype(np.int64)
            memory._levels = [(int(day), float(level)) for day, level in data["levels"]]  # type: ignore[attr-defined]
            memory._today = {int(index): float(value) for index, value in data["today"].items()}  # type: ignore[attr-defined]
            memory._minutes = [float(value) for value in data["minutes"]]  # type: ignore[attr-defined]
            memory._clean, memory._bin = bool(data["clean"]), int(data["bin"])  # type: ignore[call-overload]
            minute, total, count = data["minute"]  # type: ignore[misc]
            memory._minute, memory._sum, memory._count = int(minute), float(total), int(count)  # type: ignore[has-type]
            memory._check()
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            return None
        return memory

    def _check(self) -> None:
        """A half hour that counts as known, and is not, would be watched by nobody.

        Raises:
            ValueError: this is no memory that :meth:`to_json` gave.
        """
        known = self._days > 0
        profiles = np.stack([self._anchor, self._centre, self._spread])[:, known]
        levels, days = np.array([level for _, level in self._levels]), [day for day, _ in self._levels]
        if not (
            np.all(self._days >= 0)
            and np.all(np.abs(profiles) <= 2)  # false for what is not known
            and np.all(self._spread > 0)
            and np.all(np.abs(levels) <= 2)
            and days == sorted(days)
            and all(0 <= index < BINS for index in self._today)
        ):
            raise ValueError("not a memory")


def memory_folder(streams: Path | None) -> Path:
    """Where memories are kept unless a folder is given: one folder for each streams.toml.

    Below systemd's ``StateDirectory`` if there is one, else below the user's state folder.
    """
    state = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    base = (Path(state) if state else user_folder("state")) / "memory"
    return base / fleet_name(streams)


def fleet_name(streams: Path | None) -> str:
    """A name of its own for each streams.toml, as cameras of two may have one name."""
    return "cameras" if streams is None else slug(str(streams.resolve()))


def memory_file(folder: Path, camera: str) -> Path:
    """The file of a camera, by its name."""
    return folder / f"{slug(camera)}.json"


@contextlib.contextmanager
def only_user(folder: Path) -> Iterator[None]:
    """Hold a folder of memories while nobody else uses it.

    Raises:
        UsageError: a watch or serve uses it; it would overwrite what is changed here.
    """
    with _locked(folder, exclusive=True) as got:
        if not got:
            raise UsageError(f"a running watch or serve uses {folder}", "stop it first")
        yield


@contextlib.contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Keep :func:`only_user` away while the block runs."""
    with _locked(folder, exclusive=False):
        yield


@contextlib.contextmanager
def _locked(folder: Path, exclusive: bool) -> Iterator[bool]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as stream:
        try:
            fcntl.flock(stream, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            got = True
        except OSError:  # in use, or a file system without locks
            got = False
        yield got


def write_json(path: Path, data: Mapping[str, object]) -> None:
    """Write a small file whole or not at all."""
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps(data, separators=(",", ":")), encoding="ascii")


def read_json(path: Path) -> dict[str, object]:
    """What :func:`write_json` wrote; empty if there is none, or it is damaged, or holds what is no number."""
    try:
        with path.open("rb") as stream:
            text = stream.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            return {}
        data = json.loads(text.decode("ascii"), parse_constant=_finite, parse_float=_finite)
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _plain(values: FloatArray) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), 5) for value in values]


def _array(values: object, shape: tuple[int, ...]) -> FloatArray:
    array = np.array(values, dtype=np.float64)  # None becomes nan
    if array.shape != shape:
        raise ValueError(f"shape {array.shape}")
    return array
