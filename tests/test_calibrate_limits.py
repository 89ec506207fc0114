"""``watch --calibrate``: what is proposed, worked out by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers_dashboard import write_video

from grmp_edge.bundle import Bundle
from grmp_edge.errors import UsageError
from grmp_edge.runtime.live.calibrate import Calibration, Proposal, seconds


def proposal(values: list[float]) -> Proposal:
    calibration = Calibration()
    for minute, value in enumerate(values):
        for part in (-0.2, 0.0, 0.0):  # a lorry
            calibration.add("gate", 1_700_000_040.0 + 60.0 * minute, value + part, "m")
    (one,) = calibration.proposals()
    return one


def test_what_is_proposed() -> None:
    quiet = proposal([0.6] * 200)
    assert (quiet.preset, quiet.drop, quiet.usual, quiet.fall) == ("sensitive", None, 0.6, 0.0)
    assert quiet.alert() == 'alert = { preset = "sensitive", below = 0.55 }'
    assert proposal([0.6] * 100 + [0.51] * 10 + [0.6] * 90).preset == "normal"
    rough = proposal([0.6] * 100 + [0.36] * 5 + [0.6] * 95)
    assert rough.preset == "calm" and rough.drop == pytest.approx(0.3)
    assert proposal([0.6] * 100 + [0.3] + [0.6] * 99).preset == "sensitive"  # one minute is a lorry
    few = Calibration()
    few.add("gate", 0.0, 0.5, "m")
    assert few.proposals() == []
    changed = Calibration()  # to another model, in the middle
    for minute in range(60):
        changed.add("gate", 60.0 * minute, 0.3 + 0.4 * (minute > 30), "old" if minute <= 30 else "new")
    assert changed.proposals()[0].low == pytest.approx(0.7)


def test_durations() -> None:
    assert [seconds(text) for text in ("24h", "30min", "2d", "1.5s")] == [86400, 1800, 172800, 1.5]
    for text in ("24", "h", "-1h", "0h", "1 week"):
        with pytest.raises(UsageError, match="not a duration"):
            seconds(text)


def test_it_ends_by_itself(tiny_bundle: Bundle, tmp_path: Path) -> None:
    write_video(tmp_path / "v.avi")
    done = subprocess.run(
        [sys.executable, "-m", "grmp_edge", "watch", str(tiny_bundle.path), str(tmp_path / "v.avi"),
         "--calibrate", "1s", "--threads", "1"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and "too few scores" in done.stderr
