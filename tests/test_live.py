"""Cameras and batching: states, reconnects, hangs, what is scored and what is not."""

from __future__ import annotations

import random
import socket
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import Float64Array, UInt8Array, make_image, tiny_score, until
from helpers_live import STALL, FakeCapture, free_port, http_cameras, opener, scores, take

from grmp_edge.bundle import Bundle
from grmp_edge.errors import SourceError, UsageError
from grmp_edge.runtime.live import camera as live_camera
from grmp_edge.runtime.live.camera import Camera
from grmp_edge.runtime.live.config import CameraConfig, LiveConfig
from grmp_edge.runtime.live.events import CameraEvent, CameraState, backoff
from grmp_edge.runtime.live.live import Live, LiveScore
from grmp_edge.runtime.scorer import Scorer
from grmp_edge.runtime.video.capture import EndOfStream, PermanentSourceError, is_live, open_capture
from grmp_edge.views import Views


def bgr(seed: int) -> UInt8Array:
    return np.ascontiguousarray(make_image(seed=seed)[:, :, ::-1])


def quick(source: str, **settings: object) -> CameraConfig:
    """A camera that reconnects at once, so that tests need not wait."""
    return CameraConfig(source, backoff_min_s=0.05, backoff_max_s=0.1, **settings)  # type: ignore[arg-type]


def states(events: list[object], camera: str) -> list[CameraState]:
    return [e.state for e in events if isinstance(e, CameraEvent) and e.camera == camera]


def test_a_score_is_of_its_frame_and_knows_its_age(tiny_bundle: Bundle) -> None:
    with Scorer.open(tiny_bundle, threads=1) as scorer:
        live = Live(scorer, [quick("a")], opener=opener({"a": lambda: FakeCapture(bgr)}))
        with live:
            events = take(live, lambda found: len(scores(found)) >= 20)
        alone = {e.score.frame: scorer.score(e.image[:, :, ::-1]).value for e in scores(events)}
    found = scores(events)
    for event in found:
        assert event.score.frame is not None
        assert event.score.value == pytest.approx(tiny_score(make_image(seed=event.score.frame)), abs=1e-6)
        assert event.score.value == pytest.approx(alone[event.score.frame], abs=1e-6)
        assert event.score.captured_s is not None and event.score.age_ms is not None
        assert 0 < event.score.age_ms < 5000
    frames = [event.score.frame for event in found if event.score.frame is not None]
    assert frames == sorted(set(frames))  # none twice, none out of order
    times = [event.score.captured_s for event in found if event.score.captured_s is not None]
    assert times == sorted(times)


class SlowScorer:
    """A real scorer that holds each run until it is let go."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer, self.bundle, self.gate = scorer, scorer.bundle, threading.Semaphore(0)
        self.batches: list[Sequence[Views]] = []
        self.entered = threading.Event()
        self.prepare, self.summarise = scorer.prepare, scorer.summarise
        self.before: Callable[[], object] = lambda: None

    def read(self, batch: Sequence[Views]) -> list[Float64Array]:
        self.entered.set()
        self.gate.acquire()
        self.before()
        self.batches.append(batch)
        return self.scorer.read(batch)


@pytest.mark.parametrize(("policy", "expected"), [("latest", [0, 49]), ("every", [0, 42, 43, 44])])
def test_policies(tiny_bundle: Bundle, policy: str, expected: list[int]) -> None:
    stop = threading.Event()

    def frames(index: int) -> UInt8Array | None:
        if index == 1:
            slow.entered.wait(20)  # the first frame is being scored
        if index == 50:
            stop.set()
            return None
        return bgr(index)

    with Scorer.open(tiny_bundle, threads=1) as plain:
        slow = SlowScorer(plain)
        config = quick("a", policy=policy, queue=8)
        capture = FakeCapture(frames, 0.002)
        live = Live(slow, [config], LiveConfig(batch=1), opener({"a": lambda: capture}))  # type: ignore[arg-type]

        def release() -> None:
            stop.wait(20)
            slow.gate.release(100)

        with live:
            threading.Thread(target=release).start()
            found = scores(take(live, lambda seen: len(scores(seen)) >= len(expected)))
            stats = live.status()[0].stats
            capture.release.set()
    assert [event.score.frame for event in found] == expected
    if policy == "every":
        assert stats.dropped == 50 - 1 - 8
    else:
        assert stats.dropped == 50 - 2
    assert stats.frames == 50


def test_cameras_share_batches_fairly(tiny_bundle: Bundle) -> None:
    names = [f"cam{index}" for index in range(5)]
    sources = {name: lambda: FakeCapture(bgr, 0.001) for name in names}
    with Scorer.open(tiny_bundle, threads=1) as plain:
        slow = SlowScorer(plain)
        live = Live(slow, [quick(name) for name in names], LiveConfig(batch=2), opener(sources))  # type: ignore[arg-type]
        with live:
            until(lambda: all(status.stats.frames > 5 for status in live.status()))
            # A turn is only fair among cameras that have a frame: on a busy machine one may have none yet.
            slow.before = lambda: until(lambda: all(camera.waiting > 0 for camera in live._cameras))
            slow.gate.release(1000)
            found = scores(take(live, lambda seen: len(scores(seen)) >= 100))
    assert all(len(batch) <= 2 for batch in slow.batches)
    assert max(len(batch) for batch in slow.batches) == 2
    served = Counter(event.camera for event in found)
    assert set(served) == set(names)
    assert max(served.values()) - min(served.values()) <= 10


def test_frames_that_are_no_picture_are_told_and_not_scored(tiny_bundle: Bundle) -> None:
    bars = np.repeat(
        np.array([[191, 191, 191], [0, 191, 191], [191, 191, 0], [0, 191, 0], [191, 0, 191], [0, 0, 191],
                  [191, 0, 0]], np.uint8), 10, axis=0,
    )  # fmt: skip
    black, blue = np.full((48, 64, 3), 3, np.uint8), np.zeros((48, 64, 3), np.uint8)
    blue[:] = (200, 20, 20)
    kinds: dict[str, Callable[[int], UInt8Array]] = {
        "black": lambda index: black,
        "blue": lambda index: blue if index % 2 else blue + 1,
        "bars": lambda index: np.tile(bars, (60, 1, 1)) + np.uint8(index % 2),
        "still": lambda index: bgr(0),
        "good": bgr,
    }
    sources = {name: partial(FakeCapture, make) for name, make in kinds.items()}
    cameras = [quick(name, freeze_after_s=0.3) for name in kinds]
    with Scorer.open(tiny_bundle, threads=1) as scorer, Live(scorer, cameras, opener=opener(sources)) as live:
        events = take(
            live, lambda seen: any(isinstance(e, CameraEvent) and e.picture == "frozen" for e in seen)
        )
        stats = {status.camera: status.stats for status in live.status()}
    assert [stats[name].picture for name in kinds] == ["black", "no_signal", "no_signal", "frozen", "ok"]
    assert {event.camera for event in scores(events)} == {"still", "good"}
    assert len(scores(events, "still")) == 1
    assert stats["still"].skipped["repeated"] > 5
    assert stats["black"].skipped == {"black": stats["black"].frames}


def test_a_dead_camera_does_not_stop_the_rest_and_comes_back(tiny_bundle: Bundle) -> None:
    alive = threading.Event()

    def late() -> FakeCapture:
        if not alive.is_set():
            raise SourceError("late: no answer")
        return FakeCapture(lambda index: np.asarray(cv2.resize(bgr(index), (80, 60)), np.uint8))

    sources = {"late": late, "good": lambda: FakeCapture(bgr)}
    with Scorer.open(tiny_bundle, threads=1) as scorer:
        cameras = [quick("late"), quick("good")]
        with Live(scorer, cameras, opener=opener(sources)) as live:
            first = take(live, lambda seen: len(scores(seen, "good")) >= 30)
            assert live.status()[0].stats.state is CameraState.RESTARTING
            alive.set()
            take(live, lambda seen: len(scores(seen, "late")) >= 3)
            assert live.status()[0].stats.size == (80, 60)
    assert states(first, "late") == [CameraState.RESTARTING]  # type: ignore[arg-type]
    assert not scores(first, "late")


def test_a_read_that_hangs_is_given_up(tiny_bundle: Bundle) -> None:
    made: list[FakeCapture] = []

    def open_one() -> FakeCapture:
        first = not made
        made.append(FakeCapture(lambda index: None if first and index == 3 else bgr(index)))
        return made[-1]

    camera = quick("a", read_timeout_s=0.2, hang_grace_s=0.2, open_timeout_s=5)
    with (
        Scorer.open(tiny_bundle, threads=1) as scorer,
        Live(scorer, [camera], opener=opener({"a": open_one})) as live,
    ):
        take(live, lambda seen: len(made) == 2 and len(scores(seen)) >= 10)
        stats = live.status()[0].stats
        assert (stats.hangs, stats.connects, stats.state) == (1, 2, CameraState.RUNNING)
        made[0].release.set()  # the lost thread comes back, closes its capture, and says nothing
        until(lambda: made[0].closed)
        take(live, lambda seen: len(scores(seen)) >= 3)
        assert live.status()[0].stats.state is CameraState.RUNNING
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("camera")]


def test_hanging_reads_do_not_pile_up(tiny_bundle: Bundle) -> None:
    made: list[FakeCapture] = []

    def open_one() -> FakeCapture:
        made.append(FakeCapture(lambda index: None if len(made) <= 3 else bgr(index)))
        return made[-1]

    camera = quick("a", read_timeout_s=0.1, hang_grace_s=0.1)
    with (
        Scorer.open(tiny_bundle, threads=1) as scorer,
        Live(scorer, [camera], opener=opener({"a": open_one})) as live,
    ):
        events = take(live, lambda seen: CameraState.ERROR in states(seen, "a"))  # type: ignore[arg-type]
        assert len(made) == 3
        made[0].release.set()
        take(live, lambda seen: len(scores(seen)) >= 2)
        for capture in made:
            capture.release.set()
    assert not scores(events)
    assert len(made) == 4


def test_all_ended_ends(tiny_bundle: Bundle, tmp_path: Path) -> None:
    video = tmp_path / "v.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 100.0, (64, 48))
    for seed in range(12):
        writer.write(bgr(seed))
    writer.release()
    cameras = [
        CameraConfig(f"file:{video}", loop=False, policy="every"),
        CameraConfig(f"file:{tmp_path / 'no.avi'}"),
        CameraConfig("nonsense"),
    ]
    with Scorer.open(tiny_bundle, threads=1) as scorer, Live(scorer, cameras) as live:
        events = list(live.events())
        last = [status.stats for status in live.status()]
    assert [event.score.frame for event in scores(events)] == list(range(12))
    assert [stats.state for stats in last] == [CameraState.STOPPED, CameraState.ERROR, CameraState.ERROR]
    assert "no such file" in last[1].detail
    assert "not a camera" in last[2].detail


def test_a_file_plays_at_its_own_speed_and_again(tiny_bundle: Bundle, tmp_path: Path) -> None:
    video = tmp_path / "v.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 20.0, (64, 48))
    for seed in range(5):
        writer.write(bgr(seed))
    writer.release()
    with Scorer.open(tiny_bundle, threads=1) as scorer, Live(scorer, [CameraConfig(f"file:{video}")]) as live:
        found = scores(take(live, lambda seen: len(scores(seen)) >= 12))
    first, last = found[0].score, found[-1].score
    assert first.captured_s is not None and last.captured_s is not None
    assert first.frame is not None and last.frame is not None
    # Never faster than its 20 a second, but for the one period by which it may catch up.
    assert last.captured_s - first.captured_s >= (last.frame - first.frame - 1.5) / 20.0


@pytest.mark.parametrize("path", ["/mjpeg", "/plain", "/snapshot.jpg"])
def test_http_cameras(tiny_bundle: Bundle, path: str) -> None:
    with (
        http_cameras() as base,
        Scorer.open(tiny_bundle, threads=1) as scorer,
        Live(scorer, [quick(base + path, max_fps=20.0)]) as live,
    ):
        found = scores(take(live, lambda seen: len(scores(seen)) >= 5))
        stats = live.status()[0].stats
    assert stats.damaged == 0
    assert stats.connects == 1
    if path != "/snapshot.jpg":
        for event in found:
            assert event.score.frame is not None
            expected = tiny_score(make_image(seed=event.score.frame))
            assert event.score.value == pytest.approx(expected, abs=0.02)  # JPEG


@pytest.mark.parametrize("policy", ["latest", "every"])
def test_mjpeg_that_comes_in_a_burst_after_a_stall(tiny_bundle: Bundle, policy: str) -> None:
    last = 4 + STALL + 3
    with (
        http_cameras() as base,
        Scorer.open(tiny_bundle, threads=1) as scorer,
        Live(scorer, [quick(f"{base}/stalled", policy=policy, queue=STALL + 10)]) as live,
    ):
        found = scores(take(live, lambda seen: any((s.score.frame or 0) >= last for s in scores(seen))))
        stats = live.status()[0].stats
    frames = [event.score.frame for event in found]
    if policy == "every":
        assert frames == list(range(len(frames)))
    else:
        assert stats.stale >= STALL - 2
        assert sum(4 <= (frame or 0) < 4 + STALL for frame in frames) <= 2


def test_a_damaged_picture_is_passed_over(tiny_bundle: Bundle) -> None:
    with (
        http_cameras() as base,
        Scorer.open(tiny_bundle, threads=1) as scorer,
        Live(scorer, [quick(f"{base}/broken", policy="every")]) as live,
    ):
        found = scores(take(live, lambda seen: len(scores(seen)) >= 8))
        stats = live.status()[0].stats
    assert all(event.score.frame is not None and event.score.frame % 3 != 1 for event in found)
    assert stats.damaged >= 3
    assert stats.connects == 1


def test_a_password_is_used_and_never_shown(tiny_bundle: Bundle) -> None:
    with http_cameras() as base, Scorer.open(tiny_bundle, threads=1) as scorer:
        url = base.replace("http://", "http://u:p%40ss@") + "/private"
        with Live(scorer, [quick(url, max_fps=20.0)]) as live:
            events = take(live, lambda seen: len(scores(seen)) >= 2)
        assert all("p%40ss" not in repr(e.score) for e in scores(events))
        assert {e.camera for e in scores(events)} == {f"{base}/private"}
        wrong = quick(base.replace("http://", "http://u:nonsense@") + "/private")
        with Live(scorer, [wrong]) as live:
            (event,) = take(live, lambda seen: len(seen) == 1)
    assert isinstance(event, CameraEvent)
    assert "401" in event.detail and "password" in event.detail
    assert "nonsense" not in event.detail


def test_a_server_that_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        for scheme in ("rtsp", "http"):
            config = CameraConfig(f"{scheme}://me:hidden@127.0.0.1:{port}/x", open_timeout_s=0.5)
            with pytest.raises(SourceError) as caught:
                open_capture(config)
            assert not isinstance(caught.value, PermanentSourceError)
            assert "hidden" not in str(caught.value)
            assert f"127.0.0.1:{port}" in str(caught.value)


def test_nobody_there() -> None:
    for source in (f"rtsp://127.0.0.1:{free_port()}/x", f"http://127.0.0.1:{free_port()}/x", "/dev/video99"):
        with pytest.raises(SourceError) as caught:
            open_capture(CameraConfig(source))
        assert not isinstance(caught.value, PermanentSourceError)
    if "GStreamer:                   YES" not in cv2.getBuildInformation():
        with pytest.raises(PermanentSourceError, match="built with GStreamer"):
            open_capture(CameraConfig("gst:videotestsrc ! appsink"))


class ClockedCapture(FakeCapture):
    """Each grab moves a clock of the test by ``period_s``; the stream ends after ``length`` frames."""

    def __init__(self, now: list[float], period_s: float, length: int) -> None:
        super().__init__(bgr, period_s)
        self.now, self.length = now, length

    def grab(self) -> None:
        if self.count == self.length:
            raise EndOfStream("it is over")
        self.now[0] += self.period_s
        self._image = bgr(self.count)
        self.count += 1


def test_max_fps_and_max_age(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(live_camera, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def play(capture: ClockedCapture, **settings: Any) -> Camera:
        ready = threading.Condition()
        config = quick("a", policy="every", queue=1000, **settings)
        camera = Camera(
            config, lambda image: Views(image[None]), ready, lambda event: None, lambda config: capture
        )
        camera.start()
        with ready:
            assert ready.wait_for(lambda: camera.stats().state is CameraState.STOPPED, 60)
        return camera

    thin = play(ClockedCapture(now, 0.005, 400), max_fps=20.0)  # 200 frames a second
    frames = list(iter(thin.take, None))
    times = [frame.captured_s for frame in frames]
    stats = thin.stats()
    assert len(frames) in (39, 40, 41)
    assert times[19] - times[0] >= 0.8 * 19 / 20.0
    assert stats.thinned == stats.frames - len(frames) > stats.frames / 3

    old = play(ClockedCapture(now, 0.01, 50), max_age_s=0.1)
    ages = [now[0] - frame.captured_s for frame in iter(old.take, None)]
    assert ages == pytest.approx([0.01 * i for i in range(len(ages) - 1, -1, -1)], abs=1e-6)
    assert 0.09 < ages[0] < 0.101 and old.stats().expired == 50 - len(ages)


def test_backoff_grows_with_jitter_within_its_limits() -> None:
    random.seed(0)
    config = CameraConfig("a")
    for failures, low, high in ((1, 1, 1), (2, 1, 2), (4, 4, 8), (7, 30, 60), (10_000, 30, 60)):
        delays = [backoff(config, failures) for _ in range(200)]
        assert low <= min(delays) and max(delays) <= high
        assert failures == 1 or len(set(delays)) > 100


def test_names_and_options() -> None:
    for source in ("0", "/dev/video1", "rtsp://a", "https://a", "gst:x", "file:y"):
        assert is_live(source)
    for source in ("photo.jpg", "folder", "*.png", "video0"):
        assert not is_live(source)
    for wrong in ({"policy": "newest"}, {"max_fps": 0.0}, {"source": ""}, {"read_timeout_s": -1.0}):
        with pytest.raises(UsageError):
            CameraConfig(**{"source": "0", **wrong})  # type: ignore[arg-type]


def test_two_cameras_of_one_name_are_told_apart(tiny_bundle: Bundle) -> None:
    with Scorer.open(tiny_bundle, threads=1) as scorer:
        live = Live(scorer, [CameraConfig("rtsp://u:a@h/x"), CameraConfig("rtsp://u:b@h/x")])
    assert [status.camera for status in live.status()] == ["rtsp://h/x", "rtsp://h/x #2"]


def test_the_frame_is_there_for_alerts(tiny_bundle: Bundle) -> None:
    with (
        Scorer.open(tiny_bundle, threads=1) as scorer,
        Live(scorer, [quick("a")], opener=opener({"a": lambda: FakeCapture(bgr)})) as live,
    ):
        (event,) = scores(take(live, lambda seen: len(scores(seen)) == 1))
    assert isinstance(event, LiveScore)
    assert np.array_equal(event.image, bgr(event.score.frame or 0))
