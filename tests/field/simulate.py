"""Plays weeks of scores in seconds through the real alarms: how soon is a fault raised?

python tests/field/simulate.py                                        # the table
python tests/field/simulate.py --only none --presets sensitive,calm   # false alarms of other presets
python tests/field/simulate.py --parts 4                              # one of 24 parts decays; 4 cameras

Each camera has day and night, weather (days alike, rain of up to .08 for hours), traffic (lorries of seconds,
a van of minutes) and noise. Faults begin at a random hour after three weeks. Parts of a picture have shadows
and a season of their own, and cars that park for hours or up to three days.
"""

from __future__ import annotations

import argparse
import copy
import functools
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from grmp_edge.runtime.live.alarms import CameraAlarms
from grmp_edge.runtime.live.alert import AlertRule, AlertTracker
from grmp_edge.runtime.live.memory import write_json
from grmp_edge.runtime.live.parts import Parts
from grmp_edge.score import Tile

FloatArray = npt.NDArray[np.float64]

DAY = 86400
START = 1_700_006_400  # midnight in UTC
_WARM = 21  # days before a fault
_KINDS: dict[str, tuple[float, float, float]] = {  # score by day, by night, noise of one score
    "day and night": (0.75, 0.50, 0.03),
    "car park": (0.45, 0.42, 0.03),
    "noisy": (0.70, 0.60, 0.06),
}


@dataclass(frozen=True)
class Fault:
    """A fall of the score by ``depth`` within ``lasts_s``, which then stays."""

    lasts_s: float
    depth: float = 0.3


class World:
    """A camera's scores, a day at a time."""

    def __init__(self, kind: str, seed: int, step_s: int) -> None:
        self.day, self.night, self.noise = _KINDS[kind]
        self.rng = np.random.default_rng([seed, len(kind)])
        self.step_s, self.weather = step_s, 0.0
        self.phase = self.rng.uniform(0, 365)

    def one_day(self, number: int) -> FloatArray:
        """The scores of a day without a fault."""
        rng, count = self.rng, DAY // self.step_s
        hours = np.arange(count) * self.step_s / 3600.0
        # Dusk moves by up to two minutes a day through the year.
        light = 6.0 + 2.0 * np.sin(2 * np.pi * (number + self.phase) / 365)
        lit = (hours > 12 - light) & (hours < 12 + light + rng.uniform(-0.1, 0.1))
        scores = np.where(lit, self.day, self.night)
        self.weather = 0.6 * self.weather + rng.normal(0, 0.012)
        scores = scores + self.weather
        if rng.random() < 0.35:  # rain: comes within 20 minutes, stays for hours
            begin, hours_long, depth = rng.uniform(0, 20), rng.uniform(1, 8), rng.uniform(0.02, 0.08)
            scores -= depth * np.clip(np.minimum(hours - begin, begin + hours_long - hours) * 3, 0, 1)
        minutes = rng.normal(0, 0.02, DAY // 60)
        minutes = np.convolve(minutes, np.ones(5) / 5, "same")
        scores += np.interp(hours * 60, np.arange(DAY // 60), minutes)
        for _ in range(rng.poisson(40)):  # lorries
            at = rng.integers(count)
            scores[at : at + max(1, int(rng.uniform(3, 12) / self.step_s))] -= rng.uniform(0.1, 0.4)
        for _ in range(rng.poisson(1)):  # a van stops
            at = rng.integers(count)
            scores[at : at + int(rng.uniform(60, 600) / self.step_s)] -= rng.uniform(0.02, 0.1)
        return np.clip(scores + rng.normal(0, self.noise, count), 0.01, 0.99)


class Patchwork:
    """The scores of the parts of a picture, a minute at a time."""

    ROWS, COLUMNS = 4, 6
    SIZE = (224 * COLUMNS, 224 * ROWS)

    def __init__(self, seed: int) -> None:
        self.rng = rng = np.random.default_rng([seed, 24])
        count = self.ROWS * self.COLUMNS
        self.phase = rng.uniform(0, 365)
        self.day, self.night = rng.uniform(0.4, 0.8, count), rng.uniform(0.3, 0.6, count)
        self.season, self.shadow = rng.uniform(0, 0.05, count), rng.uniform(0, 0.06, count)
        self.phases = rng.uniform(0, 2 * np.pi, (2, count))
        self.weather, self.parked, self.depth = np.zeros(count), np.zeros(count, int), np.zeros(count)

    def one_day(self, number: int) -> FloatArray:
        """(1440, 24), without a fault."""
        rng, hours, count = self.rng, np.arange(1440)[:, None] / 60, len(self.day)
        light = 6 + 2 * np.sin(2 * np.pi * (number + self.phase) / 365)
        lit = np.abs(hours - 12) < light
        values = np.where(lit, self.day, self.night)
        values = values + self.season * np.sin(2 * np.pi * number / 365 + self.phases[0])
        values += lit * self.shadow * np.sin(2 * np.pi * hours / 12 + self.phases[1])
        self.weather = 0.6 * self.weather + rng.normal(0, 0.015, count)
        values += self.weather + rng.normal(0, 0.02)
        for part in range(count):
            for _ in range(rng.poisson(0.5)):
                begin, lasts = rng.uniform(0, 24), rng.exponential(3)
                values[(hours[:, 0] > begin) & (hours[:, 0] < begin + lasts), part] -= rng.uniform(0.05, 0.25)
            if not self.parked[part] and rng.random() < 1 / 60:
                self.parked[part], self.depth[part] = rng.integers(1, 4), rng.uniform(0.05, 0.2)
            values[:, part] -= self.depth[part] * (self.parked[part] > 0)
            self.parked[part] = max(0, self.parked[part] - 1)
        return np.asarray(np.clip(values + rng.normal(0, 0.08, values.shape), 0.01, 0.99))


def parts_raised(seed: int, days: int, lasts: float = 0.0, where: int = 5) -> list[tuple[float, bool]]:
    """Days (since a fault of ``lasts`` days began; 0: none) of each alarm, and whether it names the part."""
    world, parts, raised = Patchwork(seed), Parts(), None
    found: list[tuple[float, bool]] = []
    preset = AlertRule(preset="normal").settings
    for number in range(days):
        values = world.one_day(number)
        if lasts:
            times = number + np.arange(1440) / 1440 - _WARM
            values[:, where] = np.clip(values[:, where] - 0.3 * np.clip(times / lasts, 0, 1), 0.01, 1)
        for minute in range(0, 1440, 4):
            tiles = [
                Tile(224 * (part % 6), 224 * (part // 6), 224, 224, value)
                for part, value in enumerate(values[minute].tolist())
            ]
            at = START + number * DAY + 60.0 * minute
            if parts.add(at, tiles, Patchwork.SIZE, learn=raised is None):
                if raised is not None:
                    raised = None if parts.over(raised) else raised
                else:
                    raised = parts.worst(0.5, preset)
                    if raised is not None:
                        found.append(
                            (number - _WARM * bool(lasts), (raised.row, raised.column) == (0, where))
                        )
    return found


def show_parts(seeds: int) -> None:
    """How soon a part that falls by .3 is raised, and the false alarms of parts that do not."""
    false = sum(len(parts_raised(seed, 90)) for seed in range(seeds))
    print(f"| parts: false alarms a camera-month | {false / seeds / 3:.2f} |")
    for lasts in (1 / 24, 1.0, 7.0, 14.0, 30.0, 60.0):
        days = []
        for seed in range(100, 100 + seeds):
            right = [
                day
                for day, named in parts_raised(seed, round(_WARM + 8 + lasts), lasts)
                if named and day >= 0
            ]
            days.append(right[0] if right else float("inf"))
        print(f"| a part falls within {lasts:.2g} days | raised on day {min(days):g} to {max(days):g} |")


class Before:
    """The alerts as they were: a rolling median of ten minutes and nothing else."""

    def __init__(self) -> None:
        self.tracker = AlertTracker(AlertRule(preset="off", drop=0.15, for_s=5.0))

    def score(self, now: float, at: float, value: float) -> list[tuple[str, bool]]:
        return [(alert.kind, alert.raised) for alert in self.tracker.step(now, value)]


class After:
    """The alarms as they are, optionally restarted in the middle of a fault."""

    def __init__(self, preset: str, folder: Path) -> None:
        self.rule, self.folder = AlertRule(preset=preset), folder
        self.written: dict[str, object] = {}
        self.alarms = self.start(0.0)

    def start(self, now: float) -> CameraAlarms:
        return CameraAlarms(self.rule, "camera", "model", self.folder, now=now, write=self.write)

    def write(self, path: Path, data: Mapping[str, object]) -> None:
        self.written[path.name] = data  # in memory: the disk of a test machine is slower than the weeks pass

    def restart(self, now: float) -> None:
        self.alarms.save(now)
        for name, data in self.written.items():
            write_json(self.folder / name, data)  # type: ignore[arg-type]
        self.alarms = self.start(now)

    def score(self, now: float, at: float, value: float) -> list[tuple[str, bool]]:
        return [(alert.kind, alert.raised) for alert in self.alarms.score(now, at, value)]


def play(
    world: World, system: Before | After, first: int, days: int, fault: tuple[float, Fault] | None = None
) -> Iterator[tuple[float, str]]:
    """Yield (seconds since START, kind) for each alert raised from day ``first`` on."""
    for number in range(first, first + days):
        scores = world.one_day(number)
        times = number * DAY + np.arange(len(scores)) * float(world.step_s)
        if fault is not None:
            begin, what = fault
            scores = np.clip(
                scores - what.depth * np.clip((times - begin) / max(what.lasts_s, 1), 0, 1), 0.01, 1
            )
        for now, value in zip(times.tolist(), scores.tolist(), strict=True):
            for kind, raised in system.score(now, START + now, value):
                if raised:
                    yield now, kind


@functools.cache
def warmed(kind: str, preset: str, seed: int) -> tuple[World, Before | After]:
    """A camera that has been watched for three weeks."""
    world = World(kind, seed, 20)
    system: Before | After = Before() if preset == "before" else After(preset, Path(tempfile.mkdtemp()))
    for _ in play(world, system, 0, _WARM):
        pass
    return world, system


def detect(kind: str, fault: Fault, preset: str, seed: int, restart: bool) -> tuple[str, float] | None:
    """The first alert after the fault began: its kind, and the share of the fault that had happened."""
    world, system = copy.deepcopy(warmed(kind, preset, seed))
    begin = _WARM * DAY + float(np.random.default_rng([seed, int(fault.lasts_s)]).uniform(0, DAY))
    world.step_s = 5 if fault.lasts_s <= 4 * 3600 else 20 if fault.lasts_s <= DAY else 60
    middle = begin + fault.lasts_s / 4  # before it can have been noticed
    for number in range(_WARM, int((begin + fault.lasts_s) // DAY) + 2):
        for now, what in play(world, system, number, 1, (begin, fault)):
            if now >= begin:
                return what, (now - begin) / max(fault.lasts_s, 1.0)
        if restart and isinstance(system, After) and (number + 1) * DAY > middle:
            system.restart((number + 1) * DAY - 1.0)
            restart = False
    return None


def false_alarms(kind: str, preset: str, seed: int, days: int) -> dict[str, int]:
    """How many alerts a healthy camera raises, from its first hour on."""
    world, count = World(kind, seed, 10), {"drop": 0, "trend": 0}
    system: Before | After = Before() if preset == "before" else After(preset, Path(tempfile.mkdtemp()))
    for _, what in play(world, system, 0, days):
        count[what] += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--months", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--presets", default="before,sensitive,normal,calm")
    parser.add_argument(
        "--parts", type=int, default=0, help="cameras of which a part decays, and nothing else"
    )
    parser.add_argument("--only", default="", help="faults, with commas; none: only false alarms")
    parser.add_argument("--kinds", default=",".join(_KINDS), help="cameras, with commas")
    options = parser.parse_args()
    if options.parts:
        show_parts(options.parts)
        return
    presets, names = options.presets.split(","), options.kinds.split(",")
    hour = 3600.0
    faults = {
        "a step": 1.0,
        "30 min": hour / 2,
        "1 h": hour,
        "4 h": 4 * hour,
        "1 day": DAY,
        "3 days": 3 * DAY,
    }
    faults |= {f"{days} days": float(days * DAY) for days in (7, 14, 30, 60)}
    print(f"| a fall of 0.3 within | {' | '.join(f'{kind}, {p}' for kind in names for p in presets)} |")
    for name, seconds in faults.items():
        if options.only and name not in options.only.split(","):
            continue
        cells = []
        for kind in names:
            for preset in presets:
                results = [
                    detect(kind, Fault(seconds), preset, seed, bool(seed % 2))
                    for seed in range(options.seeds)
                ]
                missed = sum(result is None for result in results)
                # Seconds for a step, otherwise the share that had happened: in the middle, and at worst.
                shares = [result[1] for result in results if result] or [0.0]
                kinds = "/".join(sorted({result[0] for result in results if result}))
                median, worst = float(np.median(shares)), max(shares)
                share = f"{worst:.0f} s" if seconds <= 1 else f"{100 * median:.0f}-{100 * worst:.0f} %"
                cells.append(f"missed {missed} of {len(results)}" if missed else f"{share} {kinds}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    if not options.months:
        return
    cells = []
    for kind in names:
        for preset in presets:
            counts = [false_alarms(kind, preset, seed, 30 * options.months) for seed in range(options.seeds)]
            months = options.seeds * options.months
            cells.append(
                ", ".join(f"{sum(c[k] for c in counts) / months:.2f} {k}" for k in ("drop", "trend"))
            )
    print(f"| false alarms a camera-month | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
