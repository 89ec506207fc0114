"""Tests for slow change on a camera's daily levels: a CUSUM, and a slope with its confidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Trend", "shifted", "trend"]

_SLACK = 1.0  # standard deviations by which a day may be worse without adding to the CUSUM
_LEAST = 0.015  # least spread of daily levels: a week of still weather is not the whole truth
_WINDOWS = (7, 14, 28, 56)  # days


@dataclass(frozen=True)
class Trend:
    """A significant fall of the daily level."""

    per_day: float  # scores a day, negative
    fallen: float  # over the window, positive
    days_left: float  # until the level has fallen by `usable`, at this rate
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
            best = Trend(slope, fallen, max(0.0, usable + now) / -slope, window)
    return best
