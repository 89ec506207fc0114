"""What is known of a frame's way here from its time stamp."""

from __future__ import annotations

import pytest

from grmp_edge.runtime.live.staleness import ArrivalClock


def play(arrivals: list[float], stamps: list[float | None]) -> list[tuple[float, bool]]:
    clock = ArrivalClock()
    return [clock.step(now, stamp) for now, stamp in zip(arrivals, stamps, strict=True)]


def test_a_burst_at_the_start_is_stale() -> None:
    stamps: list[float | None] = [0.0, 0.0, *(0.1 * i for i in range(1, 20))]
    arrivals = [5.0 + 0.001 * i for i in range(10)] + [5.01 + 0.1 * i for i in range(1, 12)]
    found = play(arrivals, stamps)
    assert [stale for _, stale in found] == [True] * 10 + [False] * 11
    assert [at for at, _ in found[10:]] == pytest.approx(arrivals[10:])


def test_after_a_pause_each_frame_knows_how_long_it_waited() -> None:
    stamps = [0.1 * i for i in range(60)]
    # Frames 30 to 49 come together at 5.0 s: frame 30 waited 2.0 s, frame 49 0.1 s.
    arrivals = [max(0.1 * i, 5.0 + 0.001 * (i - 30)) if 30 <= i < 50 else 0.1 * i for i in range(60)]
    found = play(arrivals, list(stamps))
    for i, (at, _) in enumerate(found[2:], 2):
        assert at == pytest.approx(0.1 * i, abs=0.01)
    stale = [i for i, (_, old) in enumerate(found) if old and i > 1]
    assert stale == list(range(31, 48))  # the last two are late by no more than jitter may be


def test_jitter_is_not_stale() -> None:
    arrivals = [0.1 * i + (0.04 if i % 3 == 0 else 0.0) for i in range(100)]
    found = play(arrivals, [0.1 * i for i in range(100)])
    assert not any(stale for _, stale in found[3:])


def test_without_time_stamps_it_came_when_it_came() -> None:
    assert play([1.0, 1.001, 1.002], [None, None, None]) == [(1.0, False), (1.001, False), (1.002, False)]
    found = play([0.1 * i for i in range(20)], [0.0] * 20)
    assert found[-1][0] == pytest.approx(1.9) and not found[-1][1]
    assert sum(stale for _, stale in found) <= 5


def test_a_jump_of_the_cameras_clock_is_forgotten() -> None:
    stamps = [0.1 * i for i in range(50)] + [1000 + 0.1 * i for i in range(50)] + [0.1 * i for i in range(50)]
    found = play([0.1 * i for i in range(150)], list(stamps))
    for i, (at, stale) in enumerate(found[2:], 2):
        assert at == pytest.approx(0.1 * i) and not stale


def test_a_drifting_clock() -> None:
    # One part in ten thousand: 36 s a day and far more than cameras drift.
    found = play([0.1 * i * 1.0001 for i in range(6000)], [0.1 * i for i in range(6000)])
    for i, (at, stale) in enumerate(found[2:], 2):
        assert abs(at - 0.1 * i * 1.0001) < 0.005
        assert not stale
