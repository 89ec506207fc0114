"""The field measurements' own arithmetic, and one of the faults as it is measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FIELD = Path(__file__).parent / "field"
sys.path.insert(0, str(FIELD))

from parts import FPS, Seen, draw_stamp, slope, stamp  # noqa: E402
from soak import problems, undecided  # noqa: E402


def test_a_slope_and_how_sure_it_is() -> None:
    rng = np.random.default_rng(0)
    times = np.arange(200) / 10.0
    for true in (0.0, 3.0, -0.5):
        values = 100.0 + true * times + rng.normal(0.0, 1.0, 200)
        found, error = slope(list(times), list(values))
        (expected, _), covariance = np.polyfit(times, values, 1, cov=True)
        assert found == pytest.approx(expected)
        assert error == pytest.approx(
            covariance[0, 0] ** 0.5, rel=0.35
        )  # more, by the residuals' correlation
        assert abs(found - true) < 4 * error
    # A walk without a drift: plain least squares would call nearly every one of them a trend.
    sure = 0
    for seed in range(40):
        walk = np.cumsum(np.random.default_rng(seed).normal(0.0, 1.0, 200))
        found, error = slope(list(times), list(walk))
        _, covariance = np.polyfit(times, walk, 1, cov=True)
        assert error > 3 * covariance[0, 0] ** 0.5
        sure += abs(found) > 2 * error
    assert sure < 20
    assert slope(list(times), [5.0] * 200) == (0.0, 0.0)


def test_lost_frames_are_counted_by_their_numbers() -> None:
    def shot(*numbers: int) -> list[tuple[float, float, int]]:
        return [(0.0, number / FPS, number) for number in numbers]

    assert Seen(shot(*range(100))).lost(2.0, 5.0) == 0
    assert Seen(shot(*range(30), *range(40, 100))).lost(1.0, 6.0) == 10
    assert Seen(shot(*range(30), *range(40, 100))).lost(3.0, 6.0) == 0  # before it
    # A new connection counts from 0: two seconds without anything are 29 frames and the one it began with.
    again = [(0.0, 29 / FPS + 2.0 + number / FPS, number) for number in range(30)]
    assert Seen(shot(*range(30)) + again).lost(1.0, 6.0) == 29


def test_what_is_drawn_is_read() -> None:
    image = np.full((288, 384, 3), 128, np.uint8)
    assert stamp(image) is None
    draw_stamp(image, 123456)
    found = stamp(image)
    assert found is not None and found[1] == 123456
    image[-20:, 100:200] = 128  # a damaged part
    assert stamp(image) is None


def test_a_soak_is_judged() -> None:
    good = {
        "rss_mb_per_hour": 1.9, "standard_error": 1.0, "hours": 0.7, "levels_mb": [90.0, 91.3],
        "threads": [25, 25], "descriptors": [40, 41],
        "false": 0, "running_at_the_end": 8, "cameras": 8,
    }  # fmt: skip
    assert problems(good) == []
    assert problems({**good, "rss_mb_per_hour": -30.0}) == []
    for wrong in (
        {"rss_mb_per_hour": 2.1}, {"threads": [25, 26]}, {"descriptors": [40, 44]}, {"false": 1},
        {"running_at_the_end": 7},
    ):  # fmt: skip
        assert len(problems({**good, **wrong})) == 1
    assert problems({**good, "rss_mb_per_hour": 2.1, "hours": 0.1}) == []  # a fifth of a megabyte
    assert not undecided(good) and undecided({**good, "standard_error": 1.4})


@pytest.mark.system
def test_a_fault_as_it_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "faults.json"
    subprocess.run(
        [sys.executable, FIELD / "faults.py", "--quick", "--only", "resized", "--json", out],
        timeout=250, capture_output=True,
    )  # fmt: skip
    (result,) = json.loads(out.read_text())
    assert result["recovered_s"] is not None, result
    assert result["false"] == 0
    assert result["threads"][0] == result["threads"][1]
    assert result["lasted_s"] > 5.0 and result["torn"] == 0
