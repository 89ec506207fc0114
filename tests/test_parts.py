"""A part of the picture that decays is raised as that part; what all parts share is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grmp_edge.runtime.live import alarms as alarms_module
from grmp_edge.runtime.live.alarms import CameraAlarms
from grmp_edge.runtime.live.alert import Alert, AlertRule
from grmp_edge.runtime.live.live import AlertEvent
from grmp_edge.runtime.live.parts import Part, Parts
from grmp_edge.runtime.sinks.queue import to_record
from grmp_edge.score import Tile

DAY = 86400.0
START = 1_700_006_400.0  # midnight in UTC
SIZE = (640, 360)
NORMAL = AlertRule(preset="normal")
Values = Callable[[float], list[float]]


def tiles(values: list[float]) -> list[Tile]:
    """2 x 3 crops of 224 pixels, as of a frame of 640 x 360."""
    places = [(left, top) for top in (0, 136) for left in (0, 208, 416)]
    return [Tile(left, top, 224, 224, value) for (left, top), value in zip(places, values, strict=True)]


def usual(day: float) -> list[float]:
    rng = np.random.default_rng(int(day * 1440))
    light = 0.15 if 0.25 <= day % 1 < 0.75 else 0.0
    values = 0.4 + light + np.array([0.1, 0.0, 0.05, -0.1, 0.0, 0.1]) + rng.normal(0, 0.05, 6)
    return [float(value) for value in values]


def fouled(begin: float, days: float, where: int, fall: float = 0.3) -> Values:
    def at(day: float) -> list[float]:
        values = usual(day)
        values[where] -= fall * min(1.0, max(0.0, (day - begin) / days))
        return values

    return at


def watch(alarms: CameraAlarms, values: Values, first: int, days: int) -> list[tuple[int, Alert]]:
    """A score every five minutes: the whole's is hardly touched by one part."""
    found = []
    for step in range(first * 288, (first + days) * 288):
        day = step / 288
        alerts = alarms.score(day * DAY, START + day * DAY, 0.5, tiles(values(day)), SIZE)
        found += [(int(day), alert) for alert in alerts]
    return found


@pytest.mark.parametrize(
    ("days", "where", "words"), [(0.04, 2, "upper right"), (10, 3, "lower left"), (30, 1, "upper middle")]
)
def test_a_corner_decays(days: float, where: int, words: str) -> None:
    alarms = CameraAlarms(NORMAL, "gate", "m", now=0.0)
    ((day, alert),) = watch(alarms, fouled(9.0, days, where), 0, round(12 + max(5, 0.6 * days)))
    assert (alert.kind, alert.raised, alert.severity) == ("part", True, "notice")
    assert alert.detail.startswith(f"the {words} of its picture ")
    assert day <= 9 + max(7, 0.6 * days)
    assert alert.part == pytest.approx((where % 3 / 3, where // 3 / 2, 1 / 3, 1 / 2))
    assert to_record(AlertEvent("gate", alert, None, None))["part"] == pytest.approx(alert.part, abs=1e-3)  # type: ignore[typeddict-item]


def test_what_all_share_and_what_stays_for_days_is_no_part() -> None:
    def weather(day: float) -> list[float]:
        values = np.array(usual(day)) - 0.2 * (12 <= day < 18)
        values[4] -= 0.3 * (20 <= day < 23.5)  # a car is parked
        return [float(value) for value in values]

    assert watch(CameraAlarms(NORMAL, "gate", "m", now=0.0), weather, 0, 30) == []


def test_it_survives_a_restart_is_accepted_and_clears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alarms_module, "_SAVE_S", DAY)  # not every quarter of an hour of a month
    values = fouled(7.0, 0.5, 2)
    alarms = CameraAlarms(NORMAL, "gate", "m", tmp_path, now=0.0)
    assert watch(alarms, values, 0, 10) == []
    alarms.save(10 * DAY)
    alarms = CameraAlarms(NORMAL, "gate", "m", tmp_path, now=10 * DAY)
    assert [(alert.kind, alert.raised) for _, alert in watch(alarms, values, 10, 4)] == [("part", True)]
    alarms.save(14 * DAY)
    raised = (tmp_path / "gate.json").read_bytes()
    assert len(raised) < 16_000

    alarms = CameraAlarms(NORMAL, "gate", "m", tmp_path, now=14 * DAY)
    (again,) = alarms.again()
    assert again.kind == "part" and again.repeated and again.part is not None
    assert "upper right" in again.detail and "upper right" in alarms.trend and alarms.part == again.part
    cleaned = [(alert.kind, alert.raised) for _, alert in watch(alarms, usual, 14, 3)]
    assert cleaned == [("part", False)] and not alarms.raised

    (tmp_path / "gate.json").write_bytes(raised)
    alarms = CameraAlarms(NORMAL, "gate", "m", tmp_path, now=14 * DAY)
    assert [(alert.kind, alert.raised) for alert in alarms.accept(14 * DAY)] == [("part", False)]
    assert watch(alarms, values, 14, 10) == []  # a tree has grown
    ((_, alert),) = watch(alarms, fouled(24.0, 0.5, 0), 24, 7)[:1]
    assert "upper left" in alert.detail


def test_other_frame_sizes_and_pictures_of_one_part() -> None:
    parts = Parts()
    for minute in range(0, 6 * 1440, 5):
        parts.add(START + 60.0 * minute, tiles(usual(minute / 1440)), SIZE)
        parts.add(START + 60.0 * minute + 60, [Tile(0, 0, 224, 224, 0.1)], (224, 224))  # now and then
    known = parts.to_json()
    assert (known["grid"], len(known["levels"])) == ([2, 3], 3)  # type: ignore[arg-type]
    for minute in range(6 * 1440, 9 * 1440):
        parts.add(START + 60.0 * minute, [Tile(0, 0, 224, 224, 0.1)], (224, 224))
    assert parts.to_json()["grid"] == [1, 1]
    assert parts.worst(0.5, NORMAL.settings) is None
    large = Parts()
    for minute in range(30):
        frame = [
            Tile(left, top, 224, 224, 0.5) for top in range(0, 2160, 216) for left in range(0, 3840, 216)
        ]
        large.add(START + 60.0 * minute, frame, (3840, 2160))
    assert large.to_json()["grid"] == [4, 6]


def test_bounded_on_disk_after_months() -> None:
    parts = Parts()
    frame = [Tile(224 * column, 224 * row, 224, 224, 0.5) for row in range(4) for column in range(6)]
    for step in range(70 * 144):
        parts.add(START + 600.0 * step, frame, (1344, 896))
        if step % 12 == 11:
            parts._seen = [np.linspace(0.1234, 0.9876, 24)] * 12  # as many minutes as two hours need
    text = json.dumps(parts.to_json(), separators=(",", ":"))
    assert len(text) < 20_000
    assert Parts.from_json(json.loads(text)).to_json() == parts.to_json()


def test_parts_that_cannot_be() -> None:
    right = {"row": 1, "column": 0, "rows": 2, "columns": 3, "detail": ""}
    for wrong in ({"row": 2}, {"row": 0.5}, {"columns": 3.0}, {"detail": 5}, {"detail": None}):
        odd: Any = {**right, **wrong}
        with pytest.raises(ValueError, match="no part"):
            Part(**odd)
    assert Parts.from_json({"size": [640, 360], "grid": [99, 3]}).to_json() == Parts().to_json()
