"""Alerts on scores: too low, or lower than usual for this camera."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

from grmp_edge.errors import UsageError
from grmp_edge.runtime.live.change import Recent
from grmp_edge.runtime.live.memory import Usual

__all__ = ["SEVERITY", "TOPICS", "Alert", "AlertKind", "AlertRule", "AlertTracker", "Preset", "Severity"]

AlertKind = Literal[
    "low", "drop", "trend", "part", "offline", "black", "frozen", "no_signal", "covered", "moved", "blurred",
    "dark", "bright",
]  # fmt: skip
Severity = Literal["critical", "warning", "notice"]

# Critical: the camera shows nothing of its scene. Warning: badly. Notice: not yet.
SEVERITY: Mapping[AlertKind, Severity] = {
    "low": "warning", "drop": "warning", "trend": "notice", "part": "notice", "offline": "critical",
    "black": "critical", "frozen": "critical", "no_signal": "critical", "covered": "critical",
    "moved": "critical", "blurred": "warning", "dark": "warning", "bright": "warning",
}  # fmt: skip

# The ONVIF imaging topics (tns1:VideoSource/...) that a video management system knows these faults by.
TOPICS: Mapping[AlertKind, str] = {
    "offline": "SignalLoss", "black": "SignalLoss", "frozen": "SignalLoss", "no_signal": "SignalLoss",
    "covered": "GlobalSceneChange", "moved": "GlobalSceneChange", "blurred": "ImageTooBlurry",
    "dark": "ImageTooDark", "bright": "ImageTooBright",
}  # fmt: skip


@dataclass(frozen=True)
class Preset:
    """How readily alerts are raised."""

    drop: float | None  # least fall at once, from where the camera was this hour: a van that stops is one
    ramp: float | None  # least fall that went on for minutes: no van does that
    slow: float | None  # least fall below what is usual, as a median of half an hour
    first: float | None  # fall while the hour is not known yet: the first dusk is a fall of a quarter
    spreads: float  # and at least this many standard deviations of this half hour
    for_s: float  # over which the median score must have fallen: a lorry passes in less
    shift: float  # threshold of the CUSUM over days, in standard deviations of a day
    sure: float  # t statistic that a trend must have


_PRESETS: Mapping[str, Preset] = {
    "sensitive": Preset(0.09, 0.08, 0.085, 0.2, 3.0, 30.0, 6.0, 4.0),
    "normal": Preset(0.13, 0.1, 0.1, 0.3, 3.0, 120.0, 10.0, 6.0),
    "calm": Preset(0.2, 0.17, 0.17, 0.35, 6.0, 180.0, 16.0, 8.0),
    "off": Preset(None, None, None, None, 0.0, 5.0, float("inf"), float("inf")),
}


@dataclass(frozen=True)
class AlertRule:
    """What raises and clears an alert. Times are in seconds, scores in 0..1."""

    below: float | None = None  # raised below this score; None: no absolute alert, since scenes differ
    drop: float | None = None  # raised this far below the camera's usual score; None: as the preset says
    # How long the condition must hold without a break. None: 5 s for `below`, as the preset says for `drop`.
    for_s: float | None = None
    hysteresis: float = 0.05  # cleared this far above the limit, so that noise does not toggle the alert
    baseline_s: float = 600.0  # until the memory knows the hour: the median over this long is the usual score
    warmup_s: float = 30.0  # no relative alert until the baseline covers this much
    # sensitive, normal or calm; off: only `below` and `drop`, where they are given. None: off; the commands
    # `watch` and `serve` make it normal.
    preset: str | None = None
    offline_s: float = 3.0  # a camera that is back within this raises nothing: many reconnect once a day

    def __post_init__(self) -> None:
        for key in ("below", "drop"):
            value = getattr(self, key)
            if value is not None and not 0 < value < 1:
                raise UsageError(f"alert {key} is {value}", "use a score between 0 and 1")
        times = (self.for_s or 0.0, self.hysteresis, self.warmup_s, self.offline_s)
        if min(times) < 0 or self.baseline_s <= 0:
            raise UsageError("alert times and hysteresis cannot be negative")
        if self.preset is not None and self.preset not in _PRESETS:
            raise UsageError(f"alert preset {self.preset!r}", f"use {', '.join(_PRESETS)}")

    @property
    def settings(self) -> Preset:
        """What the preset says."""
        return _PRESETS[self.preset or "off"]

    @property
    def fall(self) -> float | None:
        """How far below its usual score a camera must be; None: no relative alert."""
        return self.settings.drop if self.drop is None else self.drop

    @property
    def slow(self) -> float | None:
        """How far below its usual score a camera may be for half an hour; None: no relative alert."""
        return self.settings.slow if self.drop is None else self.drop

    @property
    def drop_s(self) -> float:
        """How long a drop must last."""
        return self.settings.for_s if self.for_s is None else self.for_s

    @property
    def states(self) -> bool:
        """Whether a camera that is lost, frozen, covered or moved raises an alert."""
        return self.preset not in (None, "off")

    @property
    def active(self) -> bool:
        """Whether the rule can ever raise an alert on a score."""
        return self.below is not None or self.fall is not None

    def doubts(self, usual: float) -> list[str]:
        """What is wrong with the limits for a camera whose score is usually ``usual``."""
        doubts = []
        if self.below is not None and self.below >= usual:
            doubts.append(
                f"below = {self.below:g} would be raised for ever: its score is usually {usual:.2f}"
            )
        elif self.below is not None and self.below < 0.1 * usual:
            doubts.append(f"below = {self.below:g} is hardly ever raised: its score is usually {usual:.2f}")
        if self.drop is not None and self.drop > usual / 2:
            doubts.append(f"drop = {self.drop:g} is more than half of its usual {usual:.2f}: half is used")
        return doubts


@dataclass(frozen=True)
class Alert:
    """An alert that has just been raised or cleared."""

    kind: AlertKind
    raised: bool  # False: it is over
    value: float | None = None  # the score that raised or cleared it
    limit: float | None = None  # what the score was compared with
    since_s: float = 0.0  # how long the condition had held
    detail: str = ""  # in one line, without credentials
    repeated: bool = False  # sent again, on request or by `repeat_s`: not a new alert
    # The part of the picture that it is about, as shares: left, top, width, height.
    part: tuple[float, float, float, float] | None = None

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        return SEVERITY[self.kind]

    @property
    def topic(self) -> str:
        """The ONVIF topic; empty where there is none."""
        return TOPICS.get(self.kind, "")


_FEWEST = 7  # means behind a median, where a camera sends one a minute
_STEADIER = 2 / 3  # of the spread of minutes is that of half hours, weather included
_SLOTS = 12  # means behind the median of a drop: more would say the same
_OVER_S = (480.0, 960.0)  # over which a fall within half an hour is half done, and one within an hour
# How much of the fall had happened (from, to) so long ago, in shares of that time: of a step, none or all.
_GOING = ((1.0, -1.0, 0.4), (0.75, 0.2, 0.65), (0.5, 0.35, 0.8), (0.25, 0.6, 0.95))


class _Condition:
    """One limit with its duration and hysteresis."""

    def __init__(self, for_s: float) -> None:
        self.raised = False
        self._for_s = for_s
        self._since: float | None = None  # when the score first asked for a change of state

    def step(self, now: float, value: float, limit: float, above: float) -> float | None:
        """Take a score; if the state changes, return for how many seconds the condition held."""
        changing = value >= limit + above if self.raised else value < limit
        if not changing:
            self._since = None
            return None
        if self._since is None:
            self._since = now
        duration = now - self._since
        if duration < self._for_s:
            return None
        self.raised, self._since = not self.raised, None
        return duration

    @property
    def pending(self) -> bool:
        """Whether the score asks for a change of state that has not lasted long enough yet."""
        return self._since is not None

    def interrupted(self) -> None:
        self._since = None


class AlertTracker:
    """The alerts of one camera's scores. Not thread-safe."""

    _BUCKETS = 120  # means behind the baseline: the median of this many is steady, and cheap

    def __init__(self, rule: AlertRule) -> None:
        self.rule = rule
        self.recent = Recent()
        self._low = _Condition(5.0 if rule.for_s is None else rule.for_s)
        self._drop = _Condition(rule.drop_s)
        self._means: deque[tuple[float, float]] = deque(maxlen=self._BUCKETS)
        self._bucket: list[float] = []
        self._bucket_start = 0.0
        self._seen_s = 0.0
        self._last: float | None = None
        self._slots: deque[tuple[float, float]] = deque()  # (start, mean) of the last `drop_s` seconds
        self._slot: list[float] = []
        self._slot_start = 0.0
        self._middles: deque[tuple[float, float]] = deque()  # (time, median) of the last minutes
        self._near: deque[tuple[float, float]] = deque()  # scores of one slot's time, while no hour is known

    @property
    def raised(self) -> tuple[AlertKind, ...]:
        """The kinds of alert raised now."""
        pairs: tuple[tuple[AlertKind, _Condition], ...] = (("low", self._low), ("drop", self._drop))
        return tuple(kind for kind, condition in pairs if condition.raised)

    @property
    def baseline(self) -> float | None:
        """The camera's usual score of the last minutes; None until it is known."""
        if self._seen_s < self.rule.warmup_s:
            return None
        # Copied in one step: another thread may read the status meanwhile.
        values = [mean for _, mean in list(self._means)] or list(self._bucket)
        return statistics.median(values) if values else None

    def limit(self, usual: Usual | None) -> float | None:
        """Below which score a drop is raised; None: not known yet.

        Never more than half below what is usual, so that it can be reached.
        """
        fall = self.rule.fall
        if fall is None:
            return None
        if usual is not None:
            return usual.floor + self.recent.level - self._allowed(fall, usual)
        baseline = self.baseline
        first = fall if self.rule.drop is not None else self.rule.settings.first or fall
        return None if baseline is None else baseline - min(first, baseline / 2)

    def _allowed(self, fall: float, usual: Usual, share: float = 1.0) -> float:
        return min(max(fall, share * self.rule.settings.spreads * usual.spread), usual.floor / 2)

    def _slow(self, usual: Usual) -> float:
        """The least fall of a half hour; its median spreads less than the minutes do."""
        return self._allowed(self.rule.slow or 0.0, usual, _STEADIER)

    def interrupted(self) -> None:
        """Restart the durations: the camera is lost or frozen, and gives no scores for a while."""
        self._last = None
        self._slots.clear()
        self._slot.clear()
        self._near.clear()
        self._middles.clear()
        self.recent.interrupted()
        self._low.interrupted()
        self._drop.interrupted()

    def step(self, now: float, value: float, usual: Usual | None = None) -> list[Alert]:
        """Take a score; return the alerts it raises or clears.

        Args:
            now: its time, monotonic seconds.
            value: 0 to 1.
            usual: what the camera's memory expects; None: it does not know yet, and the baseline is used.
        """
        alerts = []
        if self.rule.below is not None:
            above = min(self.rule.hysteresis, self.rule.below / 2)
            duration = self._low.step(now, value, self.rule.below, above)
            if duration is not None:
                alerts.append(Alert("low", self._low.raised, value, self.rule.below, duration))
        if self.rule.fall is not None:
            alerts += self._first(now, value) if usual is None else self._fallen(now, value, usual)
            # The baseline rests while the alert is raised or about to be: a bad day must not become the norm,
            # and of a camera that has been seen for a minute, two bad ones would be most of it.
            if not (self._drop.raised or self._drop.pending):
                self._learn(now, value)
        self._last = now
        return alerts

    def _first(self, now: float, value: float) -> list[Alert]:
        """Compare a score with the baseline."""
        limit = self.limit(None)
        if limit is None:
            return []
        # Every score must be below the limit for the whole time: of a noisy camera, hardly any fall would be.
        self._near.append((now, value))
        while now - self._near[0][0] >= self.rule.drop_s / _SLOTS and len(self._near) > 1:
            self._near.popleft()
        value = statistics.fmean(score for _, score in self._near)
        above = min(self.rule.hysteresis, (self.rule.fall or 0.0) / 2, limit / 2)
        duration = self._drop.step(now, value, limit, above)
        return [] if duration is None else [Alert("drop", self._drop.raised, value, limit, duration)]

    def _fallen(self, now: float, value: float, usual: Usual) -> list[Alert]:
        """Compare the median over the whole duration: neither a lorry nor noise decides."""
        assert self.rule.fall is not None and self.rule.slow is not None
        span = self.rule.drop_s
        if self._slot and now - self._slot_start >= span / _SLOTS:
            self._slots.append((self._slot_start, statistics.fmean(self._slot)))
            self._slot = []
            while len(self._slots) > _FEWEST and now - self._slots[1][0] >= span:
                self._slots.popleft()
        if not self._slot:
            self._slot_start = now
        self._slot.append(value)
        if len(self._slot) > 1:  # the slots have not changed
            return []
        # While it is raised, too: where it is cleared in the rain, the rain goes on. The level is bounded.
        ended = bool(self._slots) and self.recent.add(now, self._slots[-1][1], usual)
        if len(self._slots) < _FEWEST or now - self._slots[0][0] < 0.7 * span:
            return []
        middle = statistics.median([mean for _, mean in self._slots])
        limit = usual.floor + self.recent.level - self._allowed(self._fall(now, middle, usual), usual)
        if self._drop.raised:
            # Cleared near what is usual, not at the lowest that dusk explains: dawn must not clear it.
            slow = usual.floor - self._slow(usual)
            above = min(self.rule.hysteresis, self._slow(usual) / 2)
            limit = max(limit, slow) + above + usual.centre - usual.floor
            if middle < limit:
                return []
            self._drop.raised = False
            return [Alert("drop", False, middle, limit, span)]
        if middle < limit:
            self._drop.raised = True
            return [Alert("drop", True, middle, limit, span)]
        slow_fall = self.recent.slow if ended else None
        if slow_fall is not None and slow_fall < self.recent.good - self._slow(usual):
            self._drop.raised = True
            limit = usual.floor + self.recent.good - self._slow(usual)
            return [Alert("drop", True, middle, limit, Recent.SLOW_S)]
        return []

    def _fall(self, now: float, middle: float, usual: Usual) -> float:
        """How far the median must have fallen: less, if it has been falling for minutes."""
        fall, ramp = self.rule.fall or 0.0, self.rule.settings.ramp
        if self.rule.drop is not None or ramp is None:
            return fall
        base = usual.floor + self.recent.level
        self._middles.append((now, middle))
        while now - self._middles[0][0] > 1.5 * _OVER_S[-1]:
            self._middles.popleft()
        if base - middle < ramp:
            return fall

        def happened(ago: float) -> float:
            earlier = [value for at, value in self._middles if 0 <= now - ago - at < ago / 4]
            return (base - earlier[-1]) / (base - middle) if earlier else math.nan

        going = any(
            all(least <= happened(share * over) <= most for share, least, most in _GOING) for over in _OVER_S
        )
        return ramp if going else fall

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

    def accept(self) -> list[Alert]:
        """Make the present the normal: forget the baseline; return the drop it clears."""
        raised, self._drop.raised = self._drop.raised, False
        self._means.clear()
        self._bucket, self._seen_s = [], 0.0
        self.recent = Recent()
        self.interrupted()
        return [Alert("drop", False, detail="accepted as the new normal")] if raised else []

    def to_json(self, now: float) -> dict[str, object]:
        """What must survive a restart; ``now``: monotonic seconds."""
        return {
            "raised": list(self.raised),
            "means": [[round(now - at, 1), round(mean, 5)] for at, mean in self._means],
            "seen_s": round(self._seen_s, 1),
            "recent": self.recent.to_json(now),
        }

    def restore(self, data: Mapping[str, object], now: float) -> None:
        """Take what :meth:`to_json` gave."""
        raised = cast("list[str]", data.get("raised", []))
        self._low.raised = "low" in raised and self.rule.below is not None
        self._drop.raised = "drop" in raised and self.rule.fall is not None
        for age, mean in cast("list[tuple[float, float]]", data.get("means", [])):
            self._means.append((now - float(age), float(mean)))
        self._seen_s = float(cast("float", data.get("seen_s", 0.0)))
        self.recent.restore(cast("list[list[float]]", data.get("recent", [])), now)
