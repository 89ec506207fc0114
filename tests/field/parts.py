"""What the field measurements share: the cameras' truth in their pictures, and this process's weight."""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from grmp_edge.runtime.live.events import CameraEvent
from grmp_edge.runtime.live.live import Live, LiveScore

UInt8Array = npt.NDArray[np.uint8]
Float64Array = npt.NDArray[np.float64]

BITS = 48
FPS = 15


@contextlib.contextmanager
def bundle_or_tiny(path: Path | None) -> Iterator[Path]:
    """The bundle given, or one with a network of a few operators: the figures are then of all the rest."""
    if path is not None:
        yield path
        return
    from conftest import write_tiny_bundle

    with tempfile.TemporaryDirectory() as folder:
        yield write_tiny_bundle(Path(folder) / "tiny.bundle").path


def _drawn(image: UInt8Array, row: int) -> int | None:
    block = image.shape[1] // BITS
    levels = image[row, block // 2 : BITS * block : block, 1].astype(int)
    if block == 0 or len(levels) != BITS or np.any((levels > 80) & (levels < 170)):
        return None
    return int("".join("01"[int(level > 128)] for level in levels), 2)


def stamp(image: UInt8Array) -> tuple[float, int] | None:
    """The monotonic time in seconds and the number that rtsp_server.py drew; None: they cannot be read."""
    at, number = _drawn(image, -16), _drawn(image, -48)
    return None if at is None or number is None else (at / 1000.0, number)


def draw_stamp(image: UInt8Array, number: int) -> None:
    """As rtsp_server.py does, into uint8 (H, W, 3) BGR."""
    block = image.shape[1] // BITS
    image[-64:] = 16
    for rows, value in ((slice(-32, None), round(time.monotonic() * 1000)), (slice(-64, -32), number)):
        for bit in range(BITS):
            if value >> (BITS - 1 - bit) & 1:
                image[rows, bit * block : (bit + 1) * block] = 235


@dataclass(frozen=True)
class Usage:
    """This process now."""

    rss_mb: float
    threads: int
    descriptors: int


def usage() -> Usage:
    """From /proc."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Usage(
        pages * 4096 / 2**20,
        len(list(Path("/proc/self/task").iterdir())),
        len(list(Path("/proc/self/fd").iterdir())),
    )


@dataclass
class Seen:
    """What was scored of one camera: (when the result came, time drawn into the frame, its number)."""

    frames: list[tuple[float, float, int]] = field(default_factory=list)
    torn: int = 0  # a damaged picture: the drawn time cannot be read, or is one of before in a new picture
    repeated: int = 0  # a picture scored a second time
    synthetic: int = 0  # a picture that no camera took: one flat colour
    last: UInt8Array | None = None  # the picture scored last

    def lost(self, since: float, until: float) -> int:
        """Frames drawn between two times and never scored.

        Within a connection their numbers tell. A new connection begins at 0, so that what was not drawn for
        anybody in between is counted by the time it took.
        """
        before = [(at, number) for _, at, number in self.frames if at < since][-1:]
        inside = before + [(at, number) for _, at, number in self.frames if since <= at <= until]
        found = 0
        for (a, first), (b, second) in pairwise(inside):
            # A server short of time draws late, and does not count what it has not drawn.
            found += second - first - 1 if second > first else max(0, round((b - a) * FPS) - 1)
        return found


class Watcher:
    """Consumes a Live's events on a thread of its own, and judges every scored picture by what it shows."""

    def __init__(self, live: Live) -> None:
        self.seen: dict[str, Seen] = {}
        self.changes: list[tuple[float, CameraEvent]] = []
        self.sinks: list[Any] = []
        self.error: BaseException | None = None
        self.keep: int | None = None  # how much of each list is kept
        self._live = live
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watcher:
        self._live.__enter__()
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._live.stop()
        self._thread.join(20)
        self._live.__exit__(None, None, None)
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        from grmp_edge.runtime.sinks.queue import to_record

        try:
            for event in self._live.events():
                if self.sinks:
                    record = to_record(event)
                    for sink in self.sinks:
                        sink.put(event, record)
                if isinstance(event, CameraEvent):
                    self.changes.append((time.monotonic(), event))
                elif isinstance(event, LiveScore):
                    self._judge(event)
        except BaseException as error:
            self.error = error

    def _judge(self, event: LiveScore) -> None:
        seen, image = self.seen.setdefault(event.camera, Seen()), event.image
        if float(image.std()) < 3.0:  # the texture's is 40 and more
            seen.synthetic += 1
            return
        drawn = stamp(image)
        last, seen.last = seen.last, image
        if last is not None and np.array_equal(last, image):
            seen.repeated += 1
            return
        if drawn is None or not time.monotonic() - 120 < drawn[0] <= time.monotonic():
            seen.torn += 1
            return
        if seen.frames and drawn[0] <= seen.frames[-1][1]:
            seen.torn += 1  # a decoder fills what it lost from the frame before
            return
        seen.frames.append((time.monotonic(), *drawn))
        if self.keep is not None:
            del seen.frames[: -self.keep], self.changes[: -self.keep]

    def count(self, camera: str) -> int:
        return len(self.seen[camera].frames) if camera in self.seen else 0

    def wait(self, camera: str, frames: int, seconds: float = 60.0, drawn_after: float = 0.0) -> float | None:
        """When so many frames of a camera, drawn after a time, had been scored; None: not within the time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.error is not None:
                raise self.error
            found = [
                at for at, drawn, _ in list(self.seen.get(camera, Seen()).frames) if drawn >= drawn_after
            ]
            if len(found) >= frames:
                return found[frames - 1]
            time.sleep(0.02)
        return None


class _Mjpeg(BaseHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        rng = np.random.default_rng(0)
        texture = cv2.resize(rng.integers(40, 200, (40, 60, 3), dtype=np.uint8), (1600, 288))
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        due, count = time.monotonic(), 0
        with contextlib.suppress(OSError):
            while True:
                image = texture[:, count * 8 % 1200 : count * 8 % 1200 + 384].copy()
                draw_stamp(image, count)
                data = cv2.imencode(".jpg", image)[1].tobytes()
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                self.wfile.write(head.encode() + data + b"\r\n")
                count, due = count + 1, due + 1.0 / FPS
                time.sleep(max(0.0, due - time.monotonic()))


@contextlib.contextmanager
def mjpeg_server() -> Iterator[str]:
    """An MJPEG camera whose pictures carry the time they were made at."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Mjpeg)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/mjpeg"
    finally:
        server.shutdown()
        server.server_close()


def slope(times: list[float], values: list[float]) -> tuple[float, float]:
    """Least squares: the slope and its standard error, in units of ``values`` a unit of ``times``.

    The error takes the residuals' correlation from one sample to the next into account (AR(1): the samples
    count as n (1 - r) / (1 + r)), as memory that wanders does not give independent samples.
    """
    n = len(times)
    if n < 4:
        raise ValueError("too few samples for a slope")
    fitted, error = statistics.linear_regression(times, values), 0.0
    rest = [y - fitted.slope * x - fitted.intercept for x, y in zip(times, values, strict=True)]
    power = sum(value * value for value in rest)
    if power > 0:
        mean = statistics.fmean(times)
        spread = sum((x - mean) ** 2 for x in times)
        r = sum(a * b for a, b in pairwise(rest)) / power
        r = min(max(r, 0.0), 0.99)
        error = (power / (n - 2) / spread * (1 + r) / (1 - r)) ** 0.5
    return fitted.slope, error
