"""The live dashboard's parts: what it remembers, what it hands out, and what that may cost."""

from __future__ import annotations

import io
import json
import socket
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import UInt8Array, make_image, until
from helpers_dashboard import InThread, ask
from helpers_live import FakeCapture
from PIL import Image

from grmp_edge.bundle import Bundle
from grmp_edge.runtime import Scorer
from grmp_edge.runtime.live.config import CameraConfig
from grmp_edge.runtime.live.events import CameraEvent, CameraState
from grmp_edge.runtime.live.live import Live, LiveScore
from grmp_edge.runtime.sinks.queue import to_record
from grmp_edge.runtime.web import guard
from grmp_edge.runtime.web import history as dashboard_history
from grmp_edge.runtime.web import score_app as serve
from grmp_edge.runtime.web.dashboard import Dashboard
from grmp_edge.runtime.web.event_stream import EventsConfig, Followers
from grmp_edge.runtime.web.guard import Guard, ServeConfig, session_cookie, session_valid
from grmp_edge.runtime.web.history import History, Ring, WallClock
from grmp_edge.runtime.web.server import Server
from grmp_edge.runtime.web.thumbnails import ThumbnailConfig, Thumbnails


def test_history_is_means_and_minima_within_its_memory() -> None:
    ring = Ring(5, 40)
    size = ring.nbytes
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.exponential(2.0, 3000)) + 1e5
    values = rng.random(3000)
    expected: dict[int, list[float]] = defaultdict(list)
    for at, value in zip(times, values, strict=True):
        ring.add(float(at), float(value))
        expected[int(at) // 5].append(float(value))
    now = float(times[-1])
    newest = int(now) // 5
    points = ring.points(-1, now)
    wanted = sorted(step for step in expected if newest - 40 <= step < newest)  # the one being filled is not
    assert 20 < len(wanted) < 40  # some steps are empty
    assert [step for step, _, _ in points] == wanted
    for step, mean, low in points:
        assert mean == pytest.approx(np.mean(expected[step]), abs=1e-4)
        assert low == pytest.approx(min(expected[step]), abs=1e-4)
    assert ring.points(wanted[5], now) == points[6:]
    assert ring.points(-1, now + 5)[-1][0] == newest
    assert ring.points(-1, now + 5 * 41) == []
    assert ring.nbytes == size
    history = History()
    for value in (0.5, float("nan"), float("inf")):
        history.add(value)
    assert history.nbytes == 80_640
    until(lambda: bool(history.points(1, 0)))
    assert history.points(1, 0)[0][1:] == (0.5, 0.5)


def test_a_clock_that_is_set_begins_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0, 0.0]  # wall, monotonic
    monkeypatch.setattr(
        dashboard_history, "time", SimpleNamespace(time=lambda: now[0], monotonic=lambda: now[1])
    )
    clock = WallClock()
    run, offset = clock.read()
    assert offset == 1000.0
    now[:] = [1010.02, 10.0]  # slewed
    assert clock.read() == (run, 1000.0)
    now[:] = [1.7e9, 20.0]  # set
    other, offset = clock.read()
    assert other != run and offset == 1.7e9 - 20.0


def test_thumbnails_are_the_latest_small_and_made_only_for_who_looks() -> None:
    thumbnails = Thumbnails(["a", "b"], ThumbnailConfig(width=160, height=120, period_s=0.0, idle_s=1000.0))
    frames: list[UInt8Array] = [make_image(360, 640, seed) for seed in range(4)]
    thumbnails.offer("a", frames[0], 10.0)
    thumbnails.shrink("a")
    thumbnails.offer("a", frames[1], 11.0)  # nobody looks: not due
    thumbnails.shrink("a")
    assert thumbnails.latest("a") == (1, 10.0)
    assert thumbnails.encoded == 0
    found = thumbnails.get("a")
    assert found is not None and (found.number, found.captured_s) == (1, 10.0)
    picture = Image.open(io.BytesIO(found.jpeg))
    assert picture.size == (160, 90)
    expected = Image.fromarray(frames[0][:, :, ::-1]).resize((160, 90), Image.Resampling.BOX)
    assert np.abs(np.asarray(picture, float) - np.asarray(expected, float)).mean() < 4
    # Somebody looks now: of two frames only the newer is made small, and encoded once for all.
    thumbnails.offer("a", frames[2], 12.0)
    thumbnails.offer("a", frames[3], 13.0)
    thumbnails.shrink("a")
    assert thumbnails.encoded == 1
    assert {thumbnails.get("a").number for _ in range(5)} == {2}  # type: ignore[union-attr]
    assert thumbnails.encoded == 2
    assert thumbnails.get("b") is None
    thumbnails.offer("b", np.zeros((2000, 10, 3), np.uint8), 1.0)
    thumbnails.shrink("b")
    tall = thumbnails.get("b")
    assert tall is not None and Image.open(io.BytesIO(tall.jpeg)).size == (1, 120)


def test_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    cookie = session_cookie("secret", secure=True)
    pair = cookie.partition(";")[0]
    assert "secret" not in cookie
    assert {"HttpOnly", "SameSite=Strict", "Path=/", "Secure"} <= set(cookie.split("; "))
    assert session_valid("secret", f"other=1; {pair}")
    assert not session_valid("secre", pair)
    name, _, value = pair.partition("=")
    expires, _, signature = value.partition(".")
    for wrong in (
        "", name, f"{name}=", f"{name}=.{signature}", f"{name}={int(expires) + 1}.{signature}",
        f"{name}={expires}.{signature[:-1]}", f"x{pair}", f"{name}={expires}.\u00e9",
    ):  # fmt: skip
        assert not session_valid("secret", wrong)
    monkeypatch.setattr(guard, "time", SimpleNamespace(time=lambda: float(expires) + 1))
    assert not session_valid("secret", pair)


def fake_live(scorer: Scorer, *names: str) -> Live:
    captures = {name: FakeCapture(lambda index: make_image(seed=index)) for name in names}
    cameras = [CameraConfig(name, name=name) for name in names]
    return Live(scorer, cameras, opener=lambda config: captures[config.name])


def test_handing_over_never_waits(tiny_bundle: Bundle) -> None:
    with Scorer.open(tiny_bundle, threads=1) as scorer:
        live = fake_live(scorer, "a")
        board = Dashboard(live)
        event = CameraEvent("a", CameraState.RUNNING, "ok")
        with board._lock:  # its thread is stuck
            for _ in range(1500):
                board.sink.put(event, to_record(event))
        until(lambda: board.sink.stats().written + board.sink.stats().lost == 1500)
        assert 1500 - 1001 <= board.sink.stats().lost <= 500
        lost = board.sink.stats().lost
        assert board.metrics is not None
        assert f'grmp_edge_sink_lost_total{{sink="dashboard"}} {float(lost)}' in board.metrics.text()
        with live:
            for number, happened in enumerate(live.events()):
                board.sink.put(happened, to_record(happened))
                if number == 60:
                    break
        until(lambda: board.thumbnails.latest("a") is not None)
        board.sink.close()
        assert board.thumbnails.encoded == 0  # nobody looked
        assert len(board.update(board.cursor())["events"]) == 100  # the last ones, and no more


def test_ids_are_plain_and_nobody_elses() -> None:
    names = ["a b", "a-b", "a/b", "<script>", "é", "rtsp://h/x?channel=1", ".."]
    live: Any = SimpleNamespace(cameras=[CameraConfig("0", name=name) for name in names])
    board = Dashboard(live)
    board.sink.close()
    assert len(set(board.ids.values())) == len(names)
    for name, identity in board.ids.items():
        assert identity and not set(identity) - set("abcdefghijklmnopqrstuvwxyz0123456789-"), identity
        assert board.find(identity) == board.find(name) == name
    assert board.find("nothing") is None


def test_followers_are_bounded_and_a_silent_one_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastapi import FastAPI

    monkeypatch.setattr(serve, "SILENT_MS", 90_000)  # longer than reading takes on a busy machine
    followers = Followers(EventsConfig(max_followers=3, period_s=0.001))
    made: list[int] = []  # messages for each follower
    app = FastAPI()

    @app.get("/v1/events")
    async def events() -> Any:
        number = len(made)
        made.append(0)

        def message() -> dict[str, Any]:
            made[number] += 1
            return {"text": "x" * 200_000}

        return followers.follow(message)

    config = ServeConfig(port=0)
    door = serve.listen(config)
    with InThread(Server(Guard(app, config, lambda *_: None), followers), door) as served:
        silent = ask(served.port, room=4096)
        until(lambda: bool(made) and made[0] > 0)
        reader = ask(served.port)
        size = 0
        while size < 250 * 200_000:
            data = reader.recv(1 << 20)
            assert data
            size += len(data)
        assert made[1] >= 250
        # The silent one got what fits into the system's buffers, and nothing is made for it since.
        stuck = made[0]
        assert stuck < 150
        third = ask(served.port)
        assert b"200 OK" in third.recv(1000)
        refused = httpx.get(f"http://127.0.0.1:{served.port}/v1/events", trust_env=False)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert followers.count == 3
        third.close()
        until(lambda: followers.count == 2)  # who goes frees its place
        reader.close()
        until(lambda: followers.count == 1)
        assert made[0] == stuck
        (connection,) = served.server.server_state.connections
        limit = (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        server_side = connection.transport.get_extra_info("socket")
        assert server_side.getsockopt(*limit) == 90_000  # from the socket that listens
        server_side.setsockopt(*limit, 1000)
        until(lambda: followers.count == 0, 120)  # the system gives the silent one up
        silent.close()


def test_scores_that_are_no_numbers_are_json(tiny_bundle: Bundle) -> None:
    with Scorer.open(tiny_bundle, threads=1) as scorer, fake_live(scorer, "a") as live:
        board = Dashboard(live)
        event = next(event for event in live.events() if isinstance(event, LiveScore))
        record = to_record(event)
        assert record["event"] == "score"
        board.sink.put(event, {**record, "value": float("nan")})
        live._last["a"] = replace(event.score, value=float("nan"))
        update = board.update(board.cursor())
        board.sink.close()
    assert json.loads(json.dumps(update, allow_nan=False))["cameras"][0]["score"] is None
