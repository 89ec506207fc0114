"""A real RTSP server: age, death and return, a paused network, damaged packets."""

from __future__ import annotations

import signal
import time

import numpy as np
import pytest
from helpers_live import Proxy, free_port, made_at, rtsp_server, scores, take

from grmp_edge.bundle import Bundle
from grmp_edge.runtime.live.config import CameraConfig
from grmp_edge.runtime.live.events import CameraEvent, CameraState
from grmp_edge.runtime.live.live import Live, LiveEvent
from grmp_edge.runtime.scorer import Scorer

pytestmark = pytest.mark.system


def camera(port: int, **settings: object) -> CameraConfig:
    url = f"rtsp://viewer:hidden@127.0.0.1:{port}/live"
    return CameraConfig(url, "gate", read_timeout_s=2.0, backoff_min_s=0.2, backoff_max_s=1.0, **settings)  # type: ignore[arg-type]


def test_the_latest_frame_is_young_from_the_first(tiny_bundle: Bundle) -> None:
    port = free_port()
    with (
        rtsp_server(port),
        Scorer.open(tiny_bundle, threads=1) as scorer,
        Live(scorer, [camera(port)]) as live,
    ):
        ages: list[float] = []
        take(live, lambda seen: _age(seen, ages) >= 60)
        stats = live.status()[0].stats
    # Encoded, sent, parsed (FFmpeg waits for the next frame's start) and scored: 0.07 s on an idle machine.
    assert np.median(ages) < 0.5
    # FFmpeg looks at two seconds of the stream before it hands the first frame over. None is scored late.
    assert ages[0] < 1.0
    assert stats.stale > 5


def _age(seen: list[LiveEvent], ages: list[float]) -> int:
    found = scores(seen)
    if len(found) > len(ages):
        ages.append(time.monotonic() - made_at(found[-1].image))
    return len(ages)


def test_killed_and_back_with_another_size(tiny_bundle: Bundle) -> None:
    port = free_port()
    with Scorer.open(tiny_bundle, threads=1) as scorer, Live(scorer, [camera(port)]) as live:
        dead = take(live, lambda seen: len(seen) >= 1)  # not there at the start
        with rtsp_server(port) as server:
            first = take(live, lambda seen: len(scores(seen)) >= 5)
            assert scores(first)[-1].image.shape == (288, 384, 3)
            server.kill()
            lost = take(live, lambda seen: _state(seen) is CameraState.RESTARTING)
        with rtsp_server(port, 480, 320):
            back = take(live, lambda seen: len(scores(seen)) >= 5)
            stats = live.status()[0].stats
    assert scores(back)[-1].image.shape == (320, 480, 3)
    assert (stats.connects, stats.state, stats.size) == (2, CameraState.RUNNING, (480, 320))
    everything = dead + first + lost + back
    assert "hidden" not in repr([event for event in everything if isinstance(event, CameraEvent)])
    frames = [event.score.frame for event in scores(everything)]
    assert frames == sorted(set(frames))  # type: ignore[type-var]


def _state(seen: list[LiveEvent]) -> CameraState | None:
    return next((event.state for event in reversed(seen) if isinstance(event, CameraEvent)), None)


def test_a_server_that_stops_answering(tiny_bundle: Bundle) -> None:
    port = free_port()
    with (
        rtsp_server(port) as server,
        Scorer.open(tiny_bundle, threads=1) as scorer,
        Live(scorer, [camera(port)]) as live,
    ):
        take(live, lambda seen: len(scores(seen)) >= 5)
        server.send_signal(signal.SIGSTOP)
        take(live, lambda seen: _state(seen) is CameraState.RESTARTING)
        server.send_signal(signal.SIGCONT)
        back = take(live, lambda seen: len(scores(seen)) >= 5)
    assert time.monotonic() - made_at(scores(back)[-1].image) < 10


def test_what_a_paused_network_held_back_is_not_scored(tiny_bundle: Bundle) -> None:
    port = free_port()
    with rtsp_server(port), Scorer.open(tiny_bundle, threads=1) as scorer:
        proxy = Proxy(port)
        with Live(scorer, [camera(proxy.port)]) as live:
            take(live, lambda seen: len(scores(seen)) >= 10)
            before = live.status()[0].stats.stale
            proxy.flow.clear()
            time.sleep(1.5)  # less than the read timeout: the connection holds, and a backlog builds up
            proxy.flow.set()
            ages: list[float] = []
            own: list[float] = []
            take(live, lambda seen: _both(seen, ages, own) >= 30)
            stats = live.status()[0].stats
        proxy.close()
    assert stats.connects == 1
    assert stats.stale - before >= 5
    # A late frame may still come alone; most are fresh, and each knows how late it is.
    assert np.median(ages) < 0.5
    assert max(abs(age - said) for age, said in zip(ages, own, strict=True)) < 0.7


def _both(seen: list[LiveEvent], ages: list[float], own: list[float]) -> int:
    found = scores(seen)
    if len(found) > len(ages):
        ages.append(time.monotonic() - made_at(found[-1].image))
        own.append(time.monotonic() - (found[-1].score.captured_s or 0.0))
    return len(ages)


def test_damaged_packets(tiny_bundle: Bundle) -> None:
    port = free_port()
    with rtsp_server(port), Scorer.open(tiny_bundle, threads=1) as scorer:
        proxy = Proxy(port)
        with Live(scorer, [camera(proxy.port)]) as live:
            take(live, lambda seen: len(scores(seen)) >= 5)
            proxy.damage = True
            end = time.monotonic() + 2.0
            take(live, lambda seen: time.monotonic() > end and len(seen) > 0)
            proxy.damage = False
            back = take(live, lambda seen: len(scores(seen)) >= 20)
        proxy.close()
    assert abs(time.monotonic() - made_at(scores(back)[-1].image)) < 5
