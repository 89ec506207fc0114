"""One live camera: a thread that decodes, reconnects, and queues only frames worth scoring."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from grmp_edge.errors import GrmpError, SourceError
from grmp_edge.redact import scrub
from grmp_edge.runtime.live.config import CameraConfig
from grmp_edge.runtime.live.events import CameraEvent, CameraState, CameraStats, LiveFrame, backoff
from grmp_edge.runtime.live.no_picture import PictureCheck, Verdict
from grmp_edge.runtime.live.staleness import ArrivalClock
from grmp_edge.runtime.video.capture import (
    Capture,
    DamagedFrame,
    EndOfStream,
    PermanentSourceError,
    open_capture,
)
from grmp_edge.views import Views

__all__ = ["Camera"]

UInt8Array = npt.NDArray[np.uint8]

_MAX_HANGING = 3  # abandoned threads of one camera; beyond this, a new one waits until one of them returns
_MAX_DAMAGED = 10  # undecodable frames in a row before the stream is reopened


class Camera:
    """Reads one source on its own thread.

    ``ready`` is shared with the consumer: frames and stats change only while it is held.
    """

    def __init__(
        self,
        config: CameraConfig,
        prepare: Callable[[UInt8Array], Views],
        ready: threading.Condition,
        emit: Callable[[CameraEvent], None],
        opener: Callable[[CameraConfig], Capture] = open_capture,
    ) -> None:
        """``prepare`` turns a BGR frame into its whole view; ``emit`` is called under ``ready``."""
        self.config = config
        self.label = config.label
        self._prepare, self._ready, self._emit, self._opener = prepare, ready, emit, opener
        self._stats = CameraStats()
        self._frames: deque[LiveFrame] = deque()
        self._stop = threading.Event()
        self._generation = 0  # of the thread that counts; older threads are abandoned
        self._threads: list[threading.Thread] = []
        self._deadline: float | None = None  # when the call in progress counts as hanging
        self._starved = False  # no thread is reading, because too many hang
        self._failures = 0
        self._notice = ""  # of how it is read
        self._arrivals: deque[float] = deque(maxlen=30)

    # For the consumer, which holds `ready` where the docstring says so.

    def start(self) -> None:
        """Start reading."""
        self._launch(0.0)

    def stop(self, until: float) -> None:
        """Ask the threads to end and wait for them, at most until a monotonic time."""
        self._stop.set()
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    @property
    def alive(self) -> bool:
        """Whether any of its threads still runs."""
        return any(thread.is_alive() for thread in self._threads)

    @property
    def waiting(self) -> int:
        """Frames waiting to be scored (hold ``ready``)."""
        return len(self._frames)

    @property
    def running(self) -> bool:
        """Whether frames arrive (hold ``ready``)."""
        return self._stats.state is CameraState.RUNNING

    @property
    def finished(self) -> bool:
        """Whether no frame will ever arrive again (hold ``ready``)."""
        over = self._stats.state in (CameraState.STOPPED, CameraState.ERROR) and not self._starved
        return over and not self._frames

    def take(self) -> LiveFrame | None:
        """The next frame to score, or None (hold ``ready``)."""
        limit = self.config.max_age_s
        while self._frames:
            frame = self._frames.popleft()
            if limit is None or time.monotonic() - frame.captured_s <= limit:
                return frame
            self._stats.expired += 1
        return None

    def stats(self) -> CameraStats:
        """A copy of the counters (hold ``ready``)."""
        copy = CameraStats(**vars(self._stats))
        copy.skipped = Counter(self._stats.skipped)
        if len(self._arrivals) > 1:
            # Up to now, so that a stalled camera's rate falls.
            span = max(self._arrivals[-1], time.monotonic() - 1.0) - self._arrivals[0]
            copy.fps = (len(self._arrivals) - 1) / span if span > 0 else 0.0
        return copy

    def watch_over(self, now: float) -> None:
        """Abandon a call that hangs, and start another thread (hold ``ready``)."""
        if self._stop.is_set():
            return
        if self._deadline is not None and now >= self._deadline:
            self._deadline = None
            self._generation += 1
            self._stats.hangs += 1
            self._failures += 1
            self._starved = True
        if not self._starved:
            return
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        if len(self._threads) < _MAX_HANGING:
            delay = backoff(self.config, self._failures)
            try:
                self._launch(delay)
            except RuntimeError as error:  # the system has no thread to spare now; tried again soon
                self._change(CameraState.ERROR, detail=f"no thread to read with: {error}")
                return
            self._starved = False
            self._change(CameraState.RESTARTING, detail="a read hung and was abandoned", retry_s=delay)
        else:
            self._change(CameraState.ERROR, detail=f"{len(self._threads)} reads hang, waiting for one to end")

    # The reading thread.

    def _launch(self, delay: float) -> None:
        thread = threading.Thread(
            target=self._run, args=(self._generation, delay), name=f"camera {self.label}", daemon=True
        )
        thread.start()
        self._threads.append(thread)

    def _mine(self, generation: int) -> bool:
        return generation == self._generation and not self._stop.is_set()

    def _run(self, generation: int, delay: float) -> None:
        while not self._stop.wait(delay) and self._mine(generation):
            try:
                self._session(generation)
                return
            except EndOfStream as error:
                self._over(generation, CameraState.STOPPED, error)
                return
            except PermanentSourceError as error:
                self._over(generation, CameraState.ERROR, error)
                return
            except GrmpError as error:
                delay = self._failed(generation, error)
            except Exception as error:  # OpenCV's own, out of memory: the other cameras continue
                reason = SourceError(f"{self.label}: {type(error).__name__}: {scrub(str(error))}")
                delay = self._failed(generation, reason)

    def _session(self, generation: int) -> None:
        """Open the source and read it until it fails or this thread must end."""
        config = self.config
        self._guard(generation, 2 * config.open_timeout_s)  # its connection, and its first frames
        capture: Capture | None = None
        try:
            capture = self._opener(config)
            with self._ready:
                if self._mine(generation):
                    self._stats.connects += 1
            self._read(capture, generation)
        finally:
            if capture is not None:
                self._guard(generation, config.read_timeout_s)
                capture.close()
            self._guard(generation, None)

    def _guard(self, generation: int, seconds: float | None) -> None:
        """Set how long the next call may take; None: no call is in progress."""
        with self._ready:
            if generation == self._generation:
                limit = None if seconds is None else time.monotonic() + seconds + self.config.hang_grace_s
                self._deadline = limit

    def _read(self, capture: Capture, generation: int) -> None:
        config = self.config
        check, clock = PictureCheck(config.freeze_after_s), ArrivalClock()
        period = 1.0 / config.max_fps if config.max_fps else 0.0
        opened, due, damaged = time.monotonic(), 0.0, 0
        while self._mine(generation):
            self._guard(generation, config.read_timeout_s + period)
            capture.grab()
            now = time.monotonic()
            captured, stale = clock.step(now, capture.stamp_s())
            stale = stale or capture.overtaken()
            with self._ready:
                if not self._mine(generation):
                    return
                index = self._stats.frames
                self._stats.frames += 1
                self._arrivals.append(now)
                if now - opened >= config.stable_s:
                    self._failures = 0
                if stale and config.policy == "latest":
                    self._stats.stale += 1
                    continue
                if capture.passed_over():
                    self._stats.thinned += 1
                    continue
                if now < due - 0.25 * period:  # a frame that is slightly early is not skipped
                    self._stats.thinned += 1
                    continue
            due, before = max(due + period, now + 0.75 * period), due
            try:
                image = capture.retrieve()
            except DamagedFrame:  # the next may be whole, and takes its place
                due = before
                with self._ready:
                    self._stats.damaged += 1
                continue
            except SourceError:
                damaged += 1
                with self._ready:
                    self._stats.damaged += 1
                if damaged >= _MAX_DAMAGED:
                    raise
                continue
            damaged = 0
            self._notice = capture.notice()
            verdict = check(image, now)
            frame = None
            if verdict == "ok":
                frame = LiveFrame(self.label, image, self._prepare(image), captured, index, capture.damage())
            self._post(generation, (image.shape[1], image.shape[0]), frame, verdict)

    def _post(
        self, generation: int, size: tuple[int, int], frame: LiveFrame | None, verdict: Verdict
    ) -> None:
        """Note a frame of ``size`` (width, height); ``frame`` is None unless it is worth scoring."""
        stats = self._stats
        with self._ready:
            if not self._mine(generation):
                return
            stats.size = size
            # A repeated frame only counts; the state of the picture stays.
            shown = stats.picture if verdict == "repeated" else verdict
            self._change(CameraState.RUNNING, shown, self._notice)
            if frame is None:
                stats.skipped[verdict] += 1
                return
            room = 1 if self.config.policy == "latest" else self.config.queue
            while len(self._frames) >= room:
                self._frames.popleft()
                stats.dropped += 1
            self._frames.append(frame)
            self._ready.notify_all()

    def _failed(self, generation: int, error: GrmpError) -> float:
        """Record a failure; return the seconds to wait before the next attempt."""
        with self._ready:
            if not self._mine(generation):
                return 0.0
            self._failures += 1
            delay = backoff(self.config, self._failures)
            self._change(CameraState.RESTARTING, detail=scrub(str(error)), retry_s=delay)
        return delay

    def _over(self, generation: int, state: CameraState, error: GrmpError) -> None:
        with self._ready:
            if generation == self._generation:
                self._change(state, detail=scrub(str(error)))

    def _change(
        self,
        state: CameraState,
        picture: Verdict | None = None,
        detail: str = "",
        retry_s: float | None = None,
    ) -> None:
        """Set the state and emit an event if it differs from before (hold ``ready``)."""
        stats = self._stats
        picture = picture or stats.picture
        if (state, picture, detail) == (stats.state, stats.picture, stats.detail):
            return
        stats.state, stats.picture, stats.detail = state, picture, detail
        self._emit(CameraEvent(self.label, state, picture, detail, retry_s))
        self._ready.notify_all()
