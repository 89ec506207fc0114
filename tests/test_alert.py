"""When alerts are raised and cleared, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from grmp_edge.errors import UsageError
from grmp_edge.runtime.live.alert import Alert, AlertRule, AlertTracker


def run(rule: AlertRule, values: list[float], step_s: float = 1.0) -> list[tuple[float, Alert]]:
    tracker = AlertTracker(rule)
    return [(i * step_s, alert) for i, v in enumerate(values) for alert in tracker.step(i * step_s, v)]


def test_low_needs_its_time_and_clears_above_its_hysteresis() -> None:
    rule = AlertRule(below=0.5, for_s=3.0, hysteresis=0.1)
    #         0    1    2    3    4    5    6    7    8    9    10   11   12   13   14   15
    values = [0.9, 0.4, 0.4, 0.6, 0.4, 0.4, 0.4, 0.4, 0.4, 0.55, 0.7, 0.7, 0.55, 0.7, 0.7, 0.7, 0.7, 0.7]
    found = run(rule, values)
    # Broken off at 3; from 4 it holds for 3 s at 7. At 10 above 0.6, broken off at 12; from 13 to 16.
    assert [(at, alert.kind, alert.raised, alert.since_s) for at, alert in found] == [
        (7.0, "low", True, 3.0), (16.0, "low", False, 3.0),
    ]  # fmt: skip
    assert found[0][1].limit == 0.5


def test_just_at_the_limit_is_not_below() -> None:
    assert run(AlertRule(below=0.5, for_s=0.0), [0.5, 0.5]) == []
    assert [alert.raised for _, alert in run(AlertRule(below=0.5, for_s=0.0), [0.4999])] == [True]


def test_a_drop_is_from_the_cameras_own_usual() -> None:
    rule = AlertRule(drop=0.2, for_s=2.0, hysteresis=0.05, baseline_s=120.0, warmup_s=30.0)
    for usual in (0.9, 0.5):
        found = run(rule, [usual] * 60 + [usual - 0.15] * 20 + [usual - 0.3] * 10 + [usual] * 10)
        assert [(at, alert.raised) for at, alert in found] == [(82.0, True), (92.0, False)]
        assert found[0][1].limit == pytest.approx(usual - 0.2)


def test_no_drop_before_the_usual_is_known() -> None:
    rule = AlertRule(drop=0.2, for_s=0.0, warmup_s=30.0)
    assert run(rule, [0.9] * 10 + [0.1] * 15) == []


def test_the_usual_rests_while_it_is_raised_and_follows_otherwise() -> None:
    rule = AlertRule(drop=0.2, for_s=0.0, baseline_s=60.0, warmup_s=10.0)
    tracker = AlertTracker(rule)
    raised = [alert.raised for i in range(40) for alert in tracker.step(i, 0.8)]
    raised += [alert.raised for i in range(40, 400) for alert in tracker.step(i, 0.3)]
    assert raised == [True]  # a day of fog does not become the usual
    assert tracker.baseline == pytest.approx(0.8)
    assert tracker.raised == ("drop",)
    follower = AlertTracker(rule)
    for i in range(200):
        follower.step(i, 0.8 if i < 60 else 0.7)
    assert follower.baseline == pytest.approx(0.7)


@pytest.mark.parametrize("good_s", [35, 60, 300])
def test_a_fault_soon_after_the_start_is_no_usual_score(good_s: int) -> None:
    for preset, for_s in (("sensitive", 30.0), ("normal", 120.0), ("calm", 180.0)):
        found = run(AlertRule(preset=preset), [0.8] * good_s + [0.35] * 400)
        assert [(alert.kind, alert.raised) for _, alert in found] == [("drop", True)], preset
        assert found[0][0] <= good_s + for_s * (1 + 1 / 12)


def test_noise_hides_no_fall_of_a_new_camera() -> None:
    noise = np.random.default_rng(0).normal(0.0, 0.06, 1200)
    values = 0.75 + noise - 0.38 * (np.arange(1200) >= 600)
    found = run(AlertRule(preset="normal"), values.tolist())
    assert [alert.raised for _, alert in found] == [True] and 720 <= found[0][0] < 800


def test_a_gap_breaks_what_had_begun() -> None:
    tracker = AlertTracker(AlertRule(below=0.5, for_s=3.0))
    tracker.step(0.0, 0.1)
    tracker.interrupted()
    assert tracker.step(10.0, 0.1) == []
    assert [alert.since_s for alert in tracker.step(13.0, 0.1)] == [3.0]


def test_wrong_rules() -> None:
    assert not AlertRule().active
    for wrong in ({"below": 1.5}, {"drop": 0.0}, {"for_s": -1.0}, {"baseline_s": 0.0}):
        with pytest.raises(UsageError):
            AlertRule(**wrong)  # type: ignore[arg-type]
