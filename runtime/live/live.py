"""Many cameras, one network: frames are batched fairly, and scores and changes arrive as events."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from grmp_edge.preprocess import opencv_silent
from grmp_edge.runtime.live.alarms import CameraAlarms, Keeper
from grmp_edge.runtime.live.alert import Alert
from grmp_edge.runtime.live.camera import Camera
from grmp_edge.runtime.live.config import CameraConfig, LiveConfig, distinct
from grmp_edge.runtime.live.events import CameraEvent, CameraStats, LiveFrame
from grmp_edge.runtime.live.memory import Memory, in_use
from grmp_edge.runtime.live.rotation import Rotation
from grmp_edge.runtime.live.tamper import Tamper
from grmp_edge.runtime.scorer import Scorer
from grmp_edge.runtime.video.capture import Capture, open_capture
from grmp_edge.score import Origin, Score
from grmp_edge.views import Views

__all__ = ["AlertEvent", "CameraStatus", "Live", "LiveEvent", "LiveScore"]

UInt8Array = npt.NDArray[np.uint8]

_TICK = 0.25  # seconds between checks for hanging reads and for stop()
_LOOK_S = 1.0  # seconds between looks for requests in the memory's folder
_STOP_S = 3.0  # how long closing waits for reading threads; one that hangs is abandoned


@dataclass(frozen=True)
class LiveScore:
    """The score of one live frame."""

    camera: str
    score: Score
    image: UInt8Array  # (H, W, 3) BGR, the frame that was scored


@dataclass(frozen=True)
class AlertEvent:
    """An alert raised or cleared by a score, by the picture, or by the camera's state."""

    camera: str
    alert: Alert
    score: Score | None  # None: the camera has none now
    image: UInt8Array | None  # (H, W, 3) BGR


LiveEvent: TypeAlias = LiveScore | CameraEvent | AlertEvent


@dataclass(frozen=True)
class CameraStatus:
    """The present state of one camera."""

    camera: str
    stats: CameraStats
    scored: int
    last: Score | None
    alerts: tuple[str, ...]  # kinds raised now
    baseline: float | None  # its usual score; None without a relative alert, or until it is known
    limits: Mapping[str, float]  # by kind of alert
    doubts: tuple[str, ...] = ()  # what is wrong with its limits, as lines to read
    days: int = 0  # for which its usual scores are known
    trend: str = ""  # what a slow fall leads to, while it is raised
    part: tuple[float, float, float, float] | None = None  # of the picture that is worse, as shares
    fresh: str = ""  # why nothing was known of it at the start


class Live:
    """Scores live cameras. Use it as a context manager, and iterate over :meth:`events`."""

    def __init__(
        self,
        scorer: Scorer,
        cameras: Sequence[CameraConfig],
        config: LiveConfig | None = None,
        opener: Callable[[CameraConfig], Capture] = open_capture,
        tell: Callable[[str], object] = lambda _: None,
    ) -> None:
        """Nothing is opened yet.

        Args:
            scorer: scores the frames.
            cameras: which.
            config: how they share the network.
            opener: opens the sources; pass another for custom sources or tests.
            tell: called, on any thread, with what an operator should know.
        """
        self.scorer = scorer
        self.config = config or LiveConfig()
        self._ready = threading.Condition()
        self._changes: deque[CameraEvent] = deque()
        self._stopping = False
        self.until_s = float("inf")  # when events() ends by itself, in monotonic seconds
        self.beat_s = time.monotonic()  # when events() last made progress; if seconds ago, it hangs
        self._turn = 0  # which camera comes first in the next batch
        self._rotations: dict[str, Rotation] = {}
        self._cameras = [self._camera(camera, opener) for camera in distinct(cameras)]
        self._keeper = Keeper(tell)
        self._alarms = {camera.label: self._alarms_of(camera.config) for camera in self._cameras}
        self._accepted: deque[str] = deque()
        self._next: deque[Scorer] = deque()
        self._asked = False  # to send states and alerts again
        self._looked = self._beat = self._repeated = time.monotonic()
        self._scored = dict.fromkeys(self._alarms, 0)
        self._last: dict[str, Score] = {}
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Live:
        self._open.enter_context(opencv_silent())  # failures are reported by events, once
        if self.config.memory is not None:
            self._open.enter_context(in_use(Path(self.config.memory)))
        for camera in self._cameras:
            camera.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        for camera in self._cameras:  # all begin to stop before the first is waited for
            camera.stop(0.0)
        until = time.monotonic() + _STOP_S
        for camera in self._cameras:
            camera.stop(until)
        for alarms in self._alarms.values():
            alarms.save(time.monotonic())
        self._keeper.close()
        self._open.close()

    def accept(self, camera: str) -> None:
        """Make a camera's present scores and picture its normal. Safe on any thread; takes effect soon.

        Raises:
            KeyError: no such camera.
        """
        if camera not in self._alarms:
            raise KeyError(camera)
        self._accepted.append(camera)

    def take_over(self, scorer: Scorer) -> None:
        """Score with another bundle from the next batch on; the old scorer is closed. Safe on any thread.

        Its preprocessing must be that of the old one: frames that wait are prepared already. What is usual
        for the cameras is learned anew, since its scores mean something else, or comes back with their model.

        Raises:
            ValueError: it prepares pictures in another way.
        """
        if scorer.bundle.preprocess != self.scorer.bundle.preprocess:
            raise ValueError("the bundle prepares pictures in another way")
        self._next.append(scorer)

    def again(self) -> None:
        """Send every camera's state and raised alerts again, marked as repeated. Safe on any thread."""
        self._asked = True

    @property
    def hanging(self) -> tuple[str, ...]:
        """After the end: cameras whose reading thread has not returned.

        It is a daemon thread, most likely inside OpenCV, and ends at its timeout. If the process ends first,
        by ``sys.exit``, C++ may abort it (Python 3.13 and older); ``os._exit`` is safe.
        """
        return tuple(camera.label for camera in self._cameras if camera.alive)

    @property
    def cameras(self) -> list[CameraConfig]:
        """The cameras' settings with their unique names, in the order given."""
        return [camera.config for camera in self._cameras]

    def stop(self) -> None:
        """End :meth:`events`. Safe on any thread and in a signal handler."""
        self._stopping = True  # without the lock: a signal may arrive while this thread holds it

    def events(self) -> Iterator[LiveEvent]:
        """Yield scores, changes and alerts until :meth:`stop`, ``until_s``, or every camera has ended.

        Raises:
            BackendError: the network failed.
        """
        while not self._stopping and time.monotonic() < self.until_s:
            self.beat_s = time.monotonic()
            changes, frames, over = self._gather()
            for change in changes:
                yield change
                alarms = self._alarms[change.camera]
                yield from self._alerts(
                    change.camera,
                    alarms.change(time.monotonic(), change.state, change.picture, change.detail),
                )
            for camera, alarms in self._alarms.items():
                yield from self._alerts(camera, alarms.tick(time.monotonic()))
            self._look_for_requests()
            while self._accepted:
                camera = self._accepted.popleft()
                yield from self._alerts(camera, self._alarms[camera].accept(time.monotonic()))
            yield from self._again()
            yield from self._change_model()
            if frames:
                yield from self._score(frames)
            elif over and not changes:
                return

    def status(self) -> list[CameraStatus]:
        """A snapshot of all cameras, in the order given."""
        with self._ready:
            stats = [camera.stats() for camera in self._cameras]
        return [
            CameraStatus(
                camera=camera.label,
                stats=camera_stats,
                scored=self._scored[camera.label],
                last=self._last.get(camera.label),
                alerts=self._alarms[camera.label].raised,
                baseline=self._alarms[camera.label].baseline(time.time()),
                limits=self._alarms[camera.label].limits(time.time()),
                doubts=self._alarms[camera.label].doubts,
                days=self._alarms[camera.label].memory.days,
                trend=self._alarms[camera.label].trend,
                part=self._alarms[camera.label].part,
                fresh=self._alarms[camera.label].fresh,
            )
            for camera, camera_stats in zip(self._cameras, stats, strict=True)
        ]

    def memory(self, camera: str) -> Memory:
        """What is usual for a camera. Read it only: the scoring thread writes to it.

        Raises:
            KeyError: no such camera.
        """
        return self._alarms[camera].memory

    def _look_for_requests(self) -> None:
        """Take what ``grmp-edge memory accept`` has left in the memory's folder."""
        now = time.monotonic()
        if self.config.memory is None or now - self._looked < _LOOK_S:
            return
        self._looked = now
        for camera, alarms in self._alarms.items():
            if alarms.requested():
                self._accepted.append(camera)

    def _again(self) -> Iterator[LiveEvent]:
        """The heartbeat, and what was asked for."""
        now, asked, config = time.monotonic(), self._asked, self.config
        if asked or (config.heartbeat_s and now - self._beat >= config.heartbeat_s):
            self._asked, self._beat = False, now
            with self._ready:
                stats = {camera.label: camera.stats() for camera in self._cameras}
            for label, camera in stats.items():
                yield CameraEvent(label, camera.state, camera.picture, camera.detail, repeated=True)
        if asked or (config.repeat_s and now - self._repeated >= config.repeat_s):
            self._repeated = now
            for label, alarms in self._alarms.items():
                yield from self._alerts(label, alarms.again())

    def _change_model(self) -> Iterator[LiveEvent]:
        while self._next:
            old, self.scorer = self.scorer, self._next.popleft()
            for camera in self.cameras:
                self._rotations[camera.label] = Rotation(self.scorer.bundle.preprocess, camera.crops)
            old.close()
            for label, alarms in self._alarms.items():
                yield from self._alerts(label, alarms.new_model(time.monotonic(), self.scorer.bundle.id))

    def _alarms_of(self, config: CameraConfig) -> CameraAlarms:
        folder = None if self.config.memory is None else Path(self.config.memory)
        tamper = Tamper() if config.alert.states else None
        return CameraAlarms(
            config.alert, config.label, self.scorer.bundle.id, folder, tamper, write=self._keeper
        )

    def _alerts(self, camera: str, alerts: Sequence[Alert]) -> Iterator[LiveEvent]:
        for alert in alerts:
            yield AlertEvent(camera, alert, None, None)

    def _camera(self, config: CameraConfig, opener: Callable[[CameraConfig], Capture]) -> Camera:
        self._rotations[config.label] = Rotation(self.scorer.bundle.preprocess, config.crops)

        def whole(image: UInt8Array) -> Views:
            return self.scorer.prepare(image, True, ())

        return Camera(config, whole, self._ready, self._changes.append, opener)

    def _gather(self) -> tuple[list[CameraEvent], list[LiveFrame], bool]:
        """Wait for events; return changes, the frames of one batch, and whether all cameras have ended."""
        with self._ready:
            if not self._changes and not self._waiting():
                self._ready.wait(_TICK)
            now = time.monotonic()
            for camera in self._cameras:
                camera.watch_over(now)
            if self._waiting():
                self._wait_for_others(now + self.config.max_wait_s)
            changes = list(self._changes)
            self._changes.clear()
            frames = self._take()
            over = all(camera.finished for camera in self._cameras)
        return changes, frames, over

    def _waiting(self) -> int:
        return sum(camera.waiting > 0 for camera in self._cameras)

    def _wait_for_others(self, until: float) -> None:
        running = sum(camera.running for camera in self._cameras)
        while self._waiting() < min(self.config.batch, running):
            rest = until - time.monotonic()
            if rest <= 0 or not self._ready.wait(rest):
                return

    def _take(self) -> list[LiveFrame]:
        """One frame of each camera in turn, then a second of each, until the batch is full.

        The next batch begins with the camera after the last one served, so that none starves.
        """
        frames: list[LiveFrame] = []
        count, empty = len(self._cameras), 0
        while len(frames) < self.config.batch and empty < count:
            frame = self._cameras[self._turn % count].take()
            self._turn = (self._turn + 1) % count
            if frame is None:
                empty += 1
            else:
                empty = 0
                frames.append(frame)
        return frames

    def _score(self, frames: Sequence[LiveFrame]) -> Iterator[LiveEvent]:
        began = time.monotonic()
        batch = [self._rotations[frame.camera].add(frame.views, frame.image) for frame in frames]
        readings = self.scorer.read(batch)
        now = time.monotonic()
        latency_ms = (now - began) * 1000.0 / len(frames)
        for frame, views, logits in zip(frames, batch, readings, strict=True):
            places, known = self._rotations[frame.camera].complete(views, logits)
            origin = Origin(frame.camera, frame.index, damage=frame.damage)
            plain = self.scorer.summarise(origin, places, known, latency_ms, tiles=True)
            age_ms = (now - frame.captured_s) * 1000.0
            score = replace(plain, captured_s=frame.captured_s, age_ms=age_ms)
            self._scored[frame.camera] += 1
            self._last[frame.camera] = score
            yield LiveScore(frame.camera, score, frame.image)
            alarms, at = self._alarms[frame.camera], time.time() - (now - frame.captured_s)
            alerts = alarms.picture(frame.captured_s, at, frame.image)
            size = (frame.image.shape[1], frame.image.shape[0])
            for alert in alerts + alarms.score(frame.captured_s, at, score.value, score.tiles or (), size):
                yield AlertEvent(frame.camera, alert, score, frame.image)
