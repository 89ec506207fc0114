"""A camera's memory and its alarms: what is usual, what is a fault, what survives a restart."""

from __future__ import annotations

import json
import re
import threading
from datetime import datetime
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import UInt8Array, make_image
from helpers_live import FakeCapture, opener

from grmp_edge.bundle import Bundle
from grmp_edge.errors import SourceError, UsageError
from grmp_edge.runtime.live.alarms import CameraAlarms, Keeper
from grmp_edge.runtime.live.alert import AlertRule
from grmp_edge.runtime.live.change import shifted, trend
from grmp_edge.runtime.live.config import CameraConfig, LiveConfig
from grmp_edge.runtime.live.live import Live
from grmp_edge.runtime.live.memory import Memory
from grmp_edge.runtime.live.tamper import Tamper
from grmp_edge.runtime.scorer import Scorer
from grmp_edge.runtime.sinks.queue import AlertRecord, to_record

DAY = 86400
START = 1_700_006_400  # midnight in UTC
NORMAL = AlertRule(preset="normal")


def usual_score(second: float) -> float:
    """Half of the day is light."""
    return 0.75 if 0.25 <= second % DAY / DAY < 0.75 else 0.5


def learn(alarms: CameraAlarms, days: float, first: float = 0.0, fall_a_day: float = 0.0) -> list[str]:
    """A score a minute; the kinds raised, with their clearing as "-kind"."""
    changes = []
    for minute in range(round(first * 1440), round((first + days) * 1440)):
        now = minute * 60.0
        value = usual_score(now) - fall_a_day * (minute / 1440 - first) + 0.01 * (minute % 3 - 1)
        for alert in alarms.score(now, START + now, max(0.01, value)):
            changes.append(("" if alert.raised else "-") + alert.kind)
    return changes


def test_night_is_learned_and_raises_nothing() -> None:
    alarms = CameraAlarms(NORMAL, "gate", "m", now=0.0)
    assert learn(alarms, 6) == []
    noon, night = alarms.usual(START + 6.5 * DAY), alarms.usual(START + 6 * DAY)
    assert noon is not None and night is not None
    assert noon.centre == pytest.approx(0.75, abs=0.01)
    assert night.centre == pytest.approx(0.5, abs=0.01)
    assert alarms.limits(START + 6.5 * DAY)["drop"] == pytest.approx(0.75 - 0.12, abs=0.02)


@pytest.mark.parametrize("days", [1.0, 7.0, 14.0])
def test_a_slow_fall_is_raised_before_half_of_it(days: float) -> None:
    alarms = CameraAlarms(NORMAL, "gate", "m", now=0.0)
    learn(alarms, 8)
    half = learn(alarms, days / 2, 8.0, 0.3 / days)
    assert half and half[0] in ("drop", "trend")


def test_when_a_slow_fall_makes_it_useless() -> None:
    alarms, found = CameraAlarms(NORMAL, "gate", "m", now=0.0), []
    for minute in range(0, 45 * 1440, 4):
        now, day = minute * 60.0, minute / 1440
        value = usual_score(now) - 0.005 * max(0.0, day - 10) + 0.01 * (minute % 3 - 1)
        found += alarms.score(now, START + now, value)
    (alert,) = (alert for alert in found if alert.kind == "trend" and alert.raised)
    assert "at this rate unusable on" in alert.detail
    # What is said later knows more: half of .62, the median of day and night, is left after 62 days of .005.
    told = re.fullmatch(
        r"falls by (0.00\d) a day: at this rate unusable on (\d+ \w+ \d{4}), give or take (\d+) days?",
        alarms.trend,
    )
    assert told is not None and 0.004 <= float(told[1]) <= 0.006
    left = datetime.strptime(f"{told[2]} +0000", "%d %B %Y %z").timestamp() - START
    assert left / DAY == pytest.approx(10 + 62, abs=8)


def test_the_memory_cannot_be_led_away() -> None:
    memory = Memory("m")
    for minute in range(50 * 1440):  # a fall of .3 in 40 days, after ten good days, and nobody notices
        day = minute / 1440
        memory.add(START + minute * 60.0, usual_score(minute * 60.0) - 0.3 / 40 * max(0.0, day - 10))
    noon, midnight = memory.usual(START + 49.5 * DAY), memory.usual(START + 49.99 * DAY)
    assert noon is not None and noon.centre > 0.75 - 40 * 0.0015
    assert midnight is not None and midnight.centre > 0.5 - 40 * 0.0015
    assert memory.levels[-1][1] < -0.2


def test_dusk_moves_through_the_year() -> None:
    memory = Memory("m")
    for minute in range(0, 182 * 1440, 5):
        second, day = minute * 60.0, minute / 1440
        half = (8.0 - 4.0 * np.cos(np.pi * day / 182)) / 48  # of the light, from 4 hours to 12
        assert half >= 0
        light = abs(second % DAY / DAY - 0.5) < half
        if day > 20:
            usual = memory.usual(START + second)
            assert usual is not None and usual.floor - 0.02 <= (0.75 if light else 0.5)
        memory.add(START + second, 0.75 if light else 0.5)


def test_dusk_may_move_with_the_season_but_not_the_night() -> None:
    memory = Memory("m")
    for minute in range(40 * 1440):
        second, day = minute * 60.0, minute / 1440
        early = 60.0 * max(0.0, day - 10)  # dusk comes a minute earlier each day
        light = 0.25 * DAY <= second % DAY < 0.75 * DAY - early
        memory.add(START + second, 0.75 if light else 0.5 - 0.004 * max(0.0, day - 10))
    dusk, night = memory.usual(START + 40 * DAY + 0.74 * DAY), memory.usual(START + 40 * DAY)
    assert dusk is not None and night is not None
    assert dusk.floor < 0.55
    assert night.centre > 0.46  # the infrared light that fails is not learned


def test_a_low_score_can_fall_too() -> None:
    alarms = CameraAlarms(NORMAL, "gate", "m", now=0.0)
    for minute in range(4 * 1440):
        alarms.score(minute * 60.0, START + minute * 60.0, 0.06)
    limit = alarms.limits(START + 4 * DAY)["drop"]
    assert 0.02 < limit < 0.04
    raised = [alarms.score(4 * DAY + s * 10.0, START + 4 * DAY + s * 10.0, 0.01) for s in range(30)]
    assert [alert.kind for alerts in raised for alert in alerts] == ["drop"]


def test_a_restart_changes_nothing(tmp_path: Path) -> None:
    plain = CameraAlarms(NORMAL, "gate", "m", now=0.0)
    again = CameraAlarms(NORMAL, "gate", "m", tmp_path, now=0.0)
    assert learn(plain, 4) == learn(again, 4) == []
    again.save(4.0 * DAY)
    again = CameraAlarms(NORMAL, "gate", "m", tmp_path, now=4.0 * DAY)
    assert again.fresh == ""
    assert again.memory.to_json() == plain.memory.to_json()
    assert learn(plain, 0.5, 4.0, 1.0) == learn(again, 0.5, 4.0, 1.0) == ["drop"]
    again.save(4.5 * DAY)
    again = CameraAlarms(NORMAL, "gate", "m", tmp_path, now=4.5 * DAY)
    assert again.raised == ("drop",)  # the bad picture has not become the normal
    assert [alert.kind for alert in again.again()] == ["drop"]
    assert len(list(tmp_path.iterdir())) == 1
    assert next(tmp_path.iterdir()).stat().st_size < 16_000


def test_another_model_or_a_damaged_file_begins_anew(tmp_path: Path) -> None:
    alarms = CameraAlarms(NORMAL, "gate", "m", tmp_path, now=0.0)
    learn(alarms, 2)
    alarms.save(2.0 * DAY)
    assert "another model" in CameraAlarms(NORMAL, "gate", "other", tmp_path).fresh
    (tmp_path / "gate.before").unlink()
    (tmp_path / "gate.json").write_text('{"memory": {"version": 1, "mod')
    assert CameraAlarms(NORMAL, "gate", "m", tmp_path).fresh == "its file is damaged"


ODD: tuple[object, ...] = (
    None,
    -1,
    10**400,
    "x",
    [],
    {},
    [[]],
    True,
    float("nan"),
    float("inf"),
    1e300,
    [1, [2]],
)


def edited(data: object, rng: np.random.Generator) -> object:
    """The same with one value changed, wherever it is."""
    if not isinstance(data, (dict, list)) or not data or rng.random() < 0.1:
        return ODD[rng.integers(len(ODD))]
    if isinstance(data, dict):
        key = list(data)[rng.integers(len(data))]
        return {**data, key: edited(data[key], rng)}
    index = int(rng.integers(len(data)))
    return [*data[:index], edited(data[index], rng), *data[index + 1 :]]


def test_a_strangers_file_is_learned_anew_and_never_believed(tmp_path: Path) -> None:
    alarms = CameraAlarms(NORMAL, "gate", "m", tmp_path, Tamper(), now=0.0)
    learn(alarms, 3)
    scene = make_image(96, 160, seed=3)
    for second in range(20):
        alarms.picture(float(second), START + second, scene)
    alarms.save(3.0 * DAY)
    data = json.loads((tmp_path / "gate.json").read_text())
    rng = np.random.default_rng(0)
    for _ in range(60):
        (tmp_path / "gate.json").write_text(json.dumps(edited(data, rng)))
        found = CameraAlarms(NORMAL, "gate", "m", tmp_path, Tamper(), now=3.0 * DAY)
        for second in range(0, 160, 8):
            found.score(3.0 * DAY + second, START + 3.0 * DAY + second, 0.1)
            found.picture(3.0 * DAY + second, START + 3.0 * DAY + second, scene)
        found.again()
        # A half hour that is known is known by numbers: nothing has become blind.
        usual = found.usual(START + 3.0 * DAY)
        assert usual is None or -1.0 < usual.floor <= usual.centre <= usual.ceiling < 2.0
        found.save(4.0 * DAY)
        json.loads((tmp_path / "gate.json").read_text(), parse_constant=pytest.fail)
        (tmp_path / "gate.before").unlink(missing_ok=True)


def test_accepted_as_the_new_normal() -> None:
    alarms = CameraAlarms(NORMAL, "gate", "m", now=0.0)
    learn(alarms, 4)
    for second in range(0, 3600, 20):
        alarms.score(4 * DAY + second, START + 4.0 * DAY + second, 0.3)
    assert alarms.raised == ("drop",)
    assert [(alert.kind, alert.raised) for alert in alarms.accept(4 * DAY + 3600)] == [("drop", False)]
    noon, night = alarms.usual(START + 4.5 * DAY), alarms.usual(START + 5 * DAY - 60)
    assert noon is not None and noon.centre == pytest.approx(0.55, abs=0.02)
    assert night is not None and night.centre == pytest.approx(0.3, abs=0.02)


def test_seeded_from_past_scores() -> None:
    memory = Memory("m")
    assert memory.seed([(None, value) for value in (0.6, 0.62, 0.58, 0.61)]) == 4
    usual = memory.usual(START)
    assert usual is not None and usual.centre == pytest.approx(0.605)
    timed = Memory("m")
    timed.seed((START + minute * 60.0, usual_score(minute * 60.0)) for minute in range(4 * 1440))
    usual = timed.usual(START + 4.5 * DAY)
    assert usual is not None and usual.centre == pytest.approx(0.75, abs=0.01)


def test_the_clock_may_jump() -> None:
    memory = Memory("m")
    for jump in (0, -DAY, 3 * DAY, -7200, 0):
        for minute in range(2000):
            memory.add(START + jump + minute * 60.0, 0.6)
    usual = memory.usual(START)
    assert usual is not None and usual.centre == pytest.approx(0.6)


def test_days_of_a_clock_that_was_ahead_are_dropped() -> None:
    """They would make the file look damaged at the next start, and the trend end years ahead."""
    memory = Memory("m")
    for day in [*range(6), 3000, 3001, *range(8, 11)]:
        for minute in range(0, 1440, 2):
            memory.add(START + day * DAY + minute * 60.0, usual_score(minute * 60.0))
    assert [day - START // DAY for day, _ in memory.levels] == [2, 3, 4, 5, 8, 9]
    back = Memory.from_json(json.loads(json.dumps(memory.to_json())), "m")
    assert back is not None and back.days == memory.days


def test_slow_change_in_daily_levels() -> None:
    rng = np.random.default_rng(0)
    still = [(day, float(rng.normal(0, 0.02))) for day in range(60)]
    assert trend(still, 0.3, 6.0, 0.04) is None
    assert not shifted(still, 10.0)
    falling = [(day, level - 0.005 * max(0, day - 30)) for day, level in still]
    slope = trend(falling, 0.3, 6.0, 0.04)
    assert slope is not None and slope.per_day == pytest.approx(-0.005, abs=0.0015)
    assert slope.days_left == pytest.approx((0.3 - 0.15) / 0.005, rel=0.4)
    assert shifted([(day, level - 0.07 * (day >= 55)) for day, level in still], 10.0)
    assert not shifted([(day, level - 0.2 * (day == 55)) for day, level in still], 10.0)  # one storm


def test_states_are_alarms_one_for_each_fault() -> None:
    alarms = CameraAlarms(NORMAL, "gate", "m", now=0.0)
    seen = [
        *alarms.change(0.0, "running", "ok"), *alarms.change(10.0, "restarting", "ok", "connection refused"),
        *alarms.tick(12.0), *alarms.tick(13.1), *alarms.tick(20.0), *alarms.change(30.0, "running", "ok"),
        *alarms.tick(32.1), *alarms.change(40.0, "running", "black"), *alarms.tick(42.1),
        *alarms.score(42.2, START, 0.1), *alarms.change(50.0, "restarting", "black"), *alarms.tick(53.1),
        *alarms.change(60.0, "running", "ok"), *alarms.tick(62.1),
    ]  # fmt: skip
    assert [(alert.kind, alert.raised) for alert in seen] == [
        ("offline", True), ("offline", False), ("black", True), ("black", False), ("offline", True),
        ("offline", False),
    ]  # fmt: skip
    assert seen[0].detail == "connection refused"
    assert (seen[0].severity, seen[0].topic) == ("critical", "SignalLoss")
    blip = [*alarms.change(70.0, "restarting", "ok"), *alarms.change(72.0, "running", "ok")]
    assert blip + alarms.tick(99.0) == []


def test_limits_that_can_never_fire_or_always_do() -> None:
    assert "for ever" in AlertRule(below=0.4).doubts(0.31)[0]
    assert "hardly" in AlertRule(below=0.05).doubts(0.7)[0]
    assert "half" in AlertRule(drop=0.15).doubts(0.06)[0]
    assert AlertRule(below=0.4, drop=0.15).doubts(0.7) == []
    with pytest.raises(UsageError):
        AlertRule(preset="loud")


def scene(seed: int = 0) -> UInt8Array:
    rng = np.random.default_rng(seed)
    image = np.full((240, 400, 3), 120, np.uint8)
    for _ in range(90):
        x, y = (int(value) for value in rng.integers(0, (400, 240)))
        colour = [int(value) for value in rng.integers(30, 220, 3)]
        cv2.rectangle(image, (x, y), (x + int(rng.integers(5, 50)), y + int(rng.integers(5, 40))), colour, -1)
    return image


def watched(image: UInt8Array, faulty: UInt8Array, tamper: Tamper | None = None) -> tuple[Tamper, str | None]:
    tamper = tamper or Tamper()
    rng = np.random.default_rng(0)
    kind = None
    for index in range(60):
        picture = image if index < 40 else faulty
        noisy = np.clip(picture + rng.normal(0, 0.7, picture.shape), 0, 255).astype(np.uint8)
        kind = tamper.step(index * 0.5, START + index * 0.5, noisy)
        if index < 40:
            assert kind is None
    return tamper, kind


@pytest.mark.parametrize(
    ("name", "cause"),
    [("blurred", "blurred"), ("plain", "covered"), ("part", "covered"), ("moved", "moved"), ("cap", "dark"),
     ("lamp", "bright"), ("dusk", None), ("same", None), ("visitor", None)],
)  # fmt: skip
def test_what_happened_to_the_picture(name: str, cause: str | None) -> None:
    image = scene()
    part, visitor, lamp = image.copy(), image.copy(), image.copy()
    part[:, :270] = 90
    visitor[40:, 150:250] = 60
    lamp[:, 100:300] = 255
    faulty = {
        "blurred": cv2.GaussianBlur(image, (0, 0), 5).astype(np.uint8), "plain": np.full_like(image, 140),
        "part": part, "moved": np.roll(image, (20, 60), (0, 1)), "cap": np.full_like(image, 14),
        "lamp": lamp, "dusk": (image * 0.2).astype(np.uint8), "same": image, "visitor": visitor,
    }[name]  # fmt: skip
    assert watched(image, faulty)[1] == cause


def test_tamper_survives_a_restart_and_is_accepted() -> None:
    image, other = scene(), scene(1)
    before, kind = watched(image, other)
    assert kind == "moved"
    again = Tamper()
    again.restore(before.to_json())
    for index in range(20):
        assert again.step(index * 0.5, START + index * 0.5, other) == "moved"
    again.accept()
    assert watched(other, other, again)[1] is None
    assert len(str(before.to_json())) < 60_000


def test_a_memory_that_cannot_be_kept_is_told_once(tmp_path: Path) -> None:
    """Weeks of it would be lost at the next start, without a word."""
    (tmp_path / "file").touch()
    told: list[str] = []
    keeper = Keeper(told.append)
    for name in ("a", "b"):
        keeper(tmp_path / "file" / f"{name}.json", {})
    keeper.close()
    assert len(told) == 1 and "a.json" in told[0]


def test_a_lost_camera_is_an_alert_and_its_memory_a_file(tiny_bundle: Bundle, tmp_path: Path) -> None:
    lost = threading.Event()

    def frames(index: int) -> UInt8Array | None:
        if lost.is_set():
            raise SourceError("the cable is out")
        return np.ascontiguousarray(make_image(seed=index))

    rule = AlertRule(preset="normal", offline_s=0.2)
    camera = CameraConfig("gate", backoff_min_s=0.05, backoff_max_s=0.1, alert=rule)
    records: list[AlertRecord] = []
    with Scorer.open(tiny_bundle, threads=1) as scorer:
        live = Live(
            scorer,
            [camera],
            LiveConfig(memory=str(tmp_path / "memory")),
            opener({"gate": lambda: FakeCapture(frames)}),
        )
        with live:
            for event in live.events():
                record = to_record(event)
                if record["event"] == "score" and not records:
                    lost.set()
                if record["event"] == "alert":
                    records.append(record)
                    if record["raised"]:
                        assert live.status()[0].alerts == ("offline",)
                        lost.clear()
                    else:
                        break
    assert [(record["kind"], record["severity"], record["raised"]) for record in records] == [
        ("offline", "critical", True), ("offline", "critical", False),
    ]  # fmt: skip
    assert records[0]["topic"] == "SignalLoss" and "cable" in records[0]["detail"]
    assert {path.name for path in (tmp_path / "memory").iterdir()} == {"gate.json", ".lock"}
    with pytest.raises(KeyError):
        live.accept("nobody")
