"""Alerts: a camera's score is too low, or lower than usual for this camera."""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass
from typing import Literal

from grmp_edge.errors import UsageError

__all__ = ["Alert", "AlertRule", "AlertTracker"]


@dataclass(frozen=True)
class AlertRule:
    """What raises and clears an alert. Times are in seconds, scores in 0..1."""

    below: float | None = None  # raised below this score; None: no absolute alert, since scenes differ
    drop: float | None = None  # raised this far below the camera's own baseline; None: no relative alert
    for_s: float = 5.0  # how long the condition must hold without a break: a lorry passes in less
    hysteresis: float = 0.05  # cleared this far above the limit, so that noise does not toggle the alert
    baseline_s: float = 600.0  # the baseline is the median over this long: half of it may be bad
    warmup_s: float = 30.0  # no relative alert until the baseline covers this much

    def __post_init__(self) -> None:
        for key in ("below", "drop"):
            value = getattr(self, key)
            if value is not None and not 0 < value < 1:
                raise UsageError(f"alert {key} is {value}", "use a score between 0 and 1")
        if self.for_s < 0 or self.hysteresis < 0 or self.baseline_s <= 0 or self.warmup_s < 0:
            raise UsageError("alert times and hysteresis cannot be negative")

    @property
    def active(self) -> bool:
        """Whether the rule can ever raise an alert."""
        return self.below is not None or self.drop is not None


@dataclass(frozen=True)
class Alert:
    """An alert that has just been raised or cleared."""

    kind: Literal["low", "drop"]  # below `below`, or below the baseline by `drop`
    raised: bool  # False: it is over
    value: float  # the score that raised or cleared it
    limit: float  # what the score was compared with
    since_s: float  # how long the condition had held


class _Condition:
    """One limit with its duration and hysteresis."""

    def __init__(self, rule: AlertRule) -> None:
        self.raised = False
        self._rule = rule
        self._since: float | None = None  # when the score first asked for a change of state

    def step(self, now: float, value: float, limit: float) -> float | None:
        """Take a score; if the state changes, return for how many seconds the condition held."""
        changing = value >= limit + self._rule.hysteresis if self.raised else value < limit
        if not changing:
            self._since = None
            return None
        if self._since is None:
            self._since = now
        duration = now - self._since
        if duration < self._rule.for_s:
            return None
        self.raised, self._since = not self.raised, None
        return duration

    def interrupted(self) -> None:
        self._since = None


class AlertTracker:
    """The alerts of one camera. Not thread-safe."""

    _BUCKETS = 120  # means behind the baseline: the median of this many is steady, and cheap

    def __init__(self, rule: AlertRule) -> None:
        self.rule = rule
        self._low = _Condition(rule)
        self._drop = _Condition(rule)
        self._means: deque[tuple[float, float]] = deque(maxlen=self._BUCKETS)
        self._bucket: list[float] = []
        self._bucket_start = 0.0
        self._seen_s = 0.0
        self._last: float | None = None

    @property
    def raised(self) -> tuple[str, ...]:
        """The kinds of alert raised now."""
        pairs = (("low", self._low), ("drop", self._drop))
        return tuple(kind for kind, condition in pairs if condition.raised)

    @property
    def baseline(self) -> float | None:
        """The camera's usual score; None until it is known."""
        if self._seen_s < self.rule.warmup_s:
            return None
        # Copied in one step: another thread may read the status meanwhile.
        values = [mean for _, mean in list(self._means)] or list(self._bucket)
        return statistics.median(values) if values else None

    def interrupted(self) -> None:
        """Restart the durations: the camera is lost or frozen, and gives no scores for a while."""
        self._last = None
        self._low.interrupted()
        self._drop.interrupted()

    def step(self, now: float, value: float) -> list[Alert]:
        """Take a score (0..1) of ``now`` (monotonic seconds); return the alerts it raises or clears."""
        alerts = []
        if self.rule.below is not None:
            duration = self._low.step(now, value, self.rule.below)
            if duration is not None:
                alerts.append(Alert("low", self._low.raised, value, self.rule.below, duration))
        if self.rule.drop is not None:
            baseline = self.baseline
            if baseline is not None:
                limit = baseline - self.rule.drop
                duration = self._drop.step(now, value, limit)
                if duration is not None:
                    alerts.append(Alert("drop", self._drop.raised, value, limit, duration))
        # The baseline rests while the alert is raised: a bad day must not become the norm.
        if not self._drop.raised:
            self._learn(now, value)
        self._last = now
        return alerts

    def _learn(self, now: float, value: float) -> None:
        if self._last is not None:
            self._seen_s += now - self._last
        if not self._bucket:
            self._bucket_start = now
        self._bucket.append(value)
        if now - self._bucket_start >= self.rule.baseline_s / self._BUCKETS:
            self._means.append((now, statistics.fmean(self._bucket)))
            self._bucket = []
        while self._means and now - self._means[0][0] > self.rule.baseline_s:
            self._means.popleft()
