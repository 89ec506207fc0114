"""Tests for change: within hours on a camera's recent scores, over weeks on its daily levels."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from grmp_edge.runtime.live.memory import Usual

__all__ = ["Recent", "Trend", "shifted", "slow_fall", "trend"]

_PART_S = 300.0  # seconds of one mean
_KEEP_S = 12 * 3600.0
_HOUR_S = 3600.0
_FEW = 6  # means, at least, behind a level: half an hour
_RAIN = 0.08  # how far below usual a bad hour of weather lies, and no more
_SUN = 0.05  # and a good one above
_STEADY = 0.05  # between two neighbouring half hours; where they differ more, dusk decides


_SLACK = 1.0  # standard deviations by which a day may be worse without adding to the CUSUM
_LEAST = 0.015  # least spread of daily levels: a week of still weather is not the whole truth
_WINDOWS = (7, 14, 28, 56)  # days
_FAR = 730.0  # days ahead: no line through weeks says what comes in years


class Recent:
    """How a camera does today, beside what is usual: a mean for each five minutes of half a day.

    A sudden fall is measured from :attr:`level`, so that a van in the rain is not two faults in one; a slow
    one from what is usual, or from :attr:`good` on a good day. Both are bounded: what is recent never absorbs
    a fault. Not thread-safe.
    """

    SLOW_S = 1800.0  # over which a slow fall is the median: a van that unloads stays for less

    def __init__(self) -> None:
        self.level = 0.0  # of the last hour but for the last five minutes, -0.08 to 0.05
        self.good = 0.0  # of the last half day but for the last hour, 0 to 0.05
        self.slow: float | None = None  # the last half hour, beside the least that is usual
        self._parts: deque[tuple[float, float, float | None]] = deque()  # (end, below, beside)
        self._below: list[float] = []  # of this part: scores less the least that is usual
        self._beside: list[float] = []  # less the centre, away from dusk
        self._began = 0.0

    def add(self, now: float, value: float, usual: Usual) -> bool:
        """Take a mean of some seconds (monotonic ``now``); returns whether a part has ended."""
        ended = bool(self._below) and now - self._began >= _PART_S
        if ended:
            self._end(now)
        if not self._below:
            self._began = now
        self._below.append(value - usual.floor)
        if usual.centre - usual.floor < _STEADY and usual.ceiling - usual.centre < _STEADY:
            self._beside.append(value - usual.centre)
        return ended

    def interrupted(self) -> None:
        """Forget the part that has begun: the camera is lost."""
        self._below, self._beside = [], []

    def _end(self, now: float) -> None:
        beside = statistics.median(self._beside) if 2 * len(self._beside) > len(self._below) else None
        self._parts.append((now, statistics.median(self._below), beside))
        self._below, self._beside = [], []
        while now - self._parts[0][0] > _KEEP_S:
            self._parts.popleft()
        self._sum_up(now)

    def _sum_up(self, now: float) -> None:
        hour = [part for part in self._parts if now - part[0] <= _HOUR_S]
        last = [below for at, below, _ in hour if now - at < self.SLOW_S - 1.0]
        self.slow = statistics.median(last) if len(last) >= _FEW - 1 else None
        self.level = _middle([beside for at, _, beside in hour if now - at >= _PART_S / 2], -_RAIN)
        self.good = _middle([beside for at, _, beside in self._parts if now - at > _HOUR_S], 0.0)

    def to_json(self, now: float) -> list[list[float | None]]:
        """What must survive a restart; ``now``: monotonic seconds."""
        return [
            [round(now - at, 1), round(below, 4), None if beside is None else round(beside, 4)]
            for at, below, beside in self._parts
        ]

    def restore(self, data: Sequence[Sequence[float | None]], now: float) -> None:
        """Take what :meth:`to_json` gave."""
        for age, below, beside in data:
            if age is not None and below is not None and age <= _KEEP_S:
                self._parts.append((now - age, below, beside))
        self._sum_up(now)


def _middle(values: Sequence[float | None], least: float) -> float:
    known = [value for value in values if value is not None]
    return min(max(statistics.median(known), least), _SUN) if len(known) >= _FEW else 0.0


@dataclass(frozen=True)
class Trend:
    """A significant fall of the daily level."""

    per_day: float  # scores a day, negative
    fallen: float  # over the window, positive
    days_left: float  # until the level has fallen by `usable`, at this rate
    sure_days: float  # by which `days_left` may be wrong, as two standard errors of the slope
    window: int  # days


def shifted(levels: Sequence[tuple[int, float]], threshold: float) -> bool:
    """Whether the levels (day, difference from normal) have shifted down by now, by a one-sided CUSUM.

    ``threshold``: in standard deviations of a day, summed; what one day adds is limited, so that one storm
    alone does not reach it.
    """
    if len(levels) < 3:
        return False
    values = np.array([level for _, level in levels])
    steps = np.abs(np.diff(values))
    spread = max(_LEAST, 1.05 * float(np.median(steps)))  # 1.48 / sqrt(2): of single days, immune to shifts
    total = 0.0
    for value in values:
        total = max(0.0, total + min(-value / spread - _SLACK, threshold / 2))
    return total >= threshold


def trend(levels: Sequence[tuple[int, float]], usable: float, sure: float, least: float) -> Trend | None:
    """The steepest significant fall over 1 to 8 weeks; None: there is none.

    Args:
        levels: (day, difference from normal).
        usable: how far the level may fall before the camera is of no use.
        sure: the t statistic that the slope must have.
        least: by how much it must have fallen over the window, and lie below normal now.
    """
    if not levels:
        return None
    last, best = levels[-1][0], None
    for window in _WINDOWS:
        part = [(day, level) for day, level in levels if day > last - window]
        if len(part) < max(5, window // 2):
            continue
        days, values = np.array(part, dtype=np.float64).T
        centred = days - days.mean()
        slope = float(centred @ values / (centred @ centred))
        rest = values - values.mean() - slope * centred
        # Weather of one day is like that of the next: as if there were half as many days.
        error = np.sqrt(2 * float(rest @ rest) / max(1, len(part) - 2) / float(centred @ centred))
        fallen, now = -slope * (window - 1), float(np.median(values[-3:]))
        if fallen < least or now > -least or -slope < sure * max(float(error), 1e-5):
            continue
        if best is None or slope < best.per_day:
            left = max(0.0, usable + now) / -slope
            best = Trend(slope, fallen, left, 2 * left * float(error) / -slope, window)
    return best


def slow_fall(
    levels: Sequence[tuple[int, float]], usable: float, shift: float, sure: float, least: float
) -> str:
    """What the daily levels say of a slow fall, in words; empty: there is none.

    Args:
        levels: (days since 1970, difference from normal).
        usable: how far the level may fall before the picture is of no use.
        shift: threshold of :func:`shifted`.
        sure: the t statistic that a :func:`trend` must have.
        least: by how much the level must have fallen.
    """
    falling = trend(levels, usable, sure, least)
    if falling is not None:
        rate = f"falls by {-falling.per_day:.3f} a day"
        if not falling.days_left:
            return f"{rate}, and is of little use already"
        day = levels[-1][0] + falling.days_left
        if falling.days_left > _FAR:
            return rate
        date = time.strftime("%d %B %Y", time.gmtime(day * 86400.0)).lstrip("0")
        sure = max(1, round(falling.sure_days))
        return f"{rate}: at this rate unusable on {date}, give or take {sure} day{'s'[: sure > 1]}"
    if levels and levels[-1][1] < -least and shifted(levels, shift):
        return f"is {-levels[-1][1]:.2f} below its normal for days"
    return ""
