"""Live parts for tests: an RTSP server, a TCP proxy in front of it, MJPEG servers, cameras of one's own."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from conftest import UInt8Array, encode, make_image

from grmp_edge.errors import SourceError
from grmp_edge.runtime.live.config import CameraConfig
from grmp_edge.runtime.live.live import Live, LiveEvent, LiveScore

SYSTEM = "apt-get install mosquitto gstreamer1.0-plugins-ugly gir1.2-gst-rtsp-server-1.0 python3-gi"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def take(live: Live, enough: Callable[[list[LiveEvent]], bool], seconds: float = 40.0) -> list[LiveEvent]:
    """Events up to the first moment when they are enough; fails after ``seconds``."""
    found: list[LiveEvent] = []
    timer = threading.Timer(seconds, live.stop)
    timer.start()
    try:
        for event in live.events():
            found.append(event)
            if enough(found):
                return found
    finally:
        timer.cancel()
    raise AssertionError(f"not enough in {seconds} s: {[e for e in found if not isinstance(e, LiveScore)]}")


def scores(events: list[LiveEvent], camera: str | None = None) -> list[LiveScore]:
    return [e for e in events if isinstance(e, LiveScore) and camera in (None, e.camera)]


@contextlib.contextmanager
def rtsp_server(
    port: int, *arguments: int | str, prefix: Sequence[str] = ()
) -> Iterator[subprocess.Popen[str]]:
    """A real server at rtsp://127.0.0.1:port/live; arguments: those of rtsp_server.py after the port."""
    script = Path(__file__).with_name("rtsp_server.py")
    command = [*prefix, "/usr/bin/python3", str(script), str(port), *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    try:
        if process.stdout.readline() != "ready\n":
            raise AssertionError(f"no RTSP server ({process.stderr.read().strip()}); {SYSTEM}")
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def made_at(image: UInt8Array) -> float:
    """The monotonic time in seconds that rtsp_server.py drew into a frame."""
    block = image.shape[1] // 48
    bits = image[-16, block // 2 : 48 * block : block, 1] > 128
    return int("".join("01"[int(bit)] for bit in bits), 2) / 1000.0


class Proxy:
    """Passes TCP on to a port; can hold back or damage what the server sends."""

    def __init__(self, target: int) -> None:
        self.flow = threading.Event()
        self.flow.set()
        self.damage = False
        self._target = target
        self._clients: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._target))
                except OSError:  # the server is away: so is what stands before it
                    client.close()
                    continue
                self._clients.add(client)
                for pair, slow in (((client, server), False), ((server, client), True)):
                    threading.Thread(target=self._pass, args=(*pair, slow), daemon=True).start()
                del client, server, pair  # or the last pair would stay open for as long as this waits

    def _pass(self, source: socket.socket, target: socket.socket, slow: bool) -> None:
        rng = np.random.default_rng(0)
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if slow:
                    self.flow.wait()
                    if self.damage and len(data) > 500:
                        broken = bytearray(data)
                        for position in rng.integers(100, len(data), 5):
                            broken[position] ^= 0x55
                        data = bytes(broken)
                target.sendall(data)
        for side in (source, target):
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
        source.close()  # each direction closes the side it reads

    def cut(self) -> None:
        """End all connections."""
        for client in tuple(self._clients):
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept(), which close() alone does not
        self._listener.close()
        self.flow.set()


STALL = 30  # frames


class Cameras(BaseHTTPRequestHandler):
    """/mjpeg (parts with lengths), /plain (without), /snapshot.jpg, /private (basic password), /broken.

    /stalled gives STALL frames at once after its third, as a network does that was gone for a while.
    """

    over: threading.Event  # set when the server ends

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/private" and self.headers.get("Authorization") != "Basic dTpwQHNz":  # u:p@ss
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="camera"')
            self.end_headers()
            return
        if self.path in ("/snapshot.jpg", "/private"):
            self.send_response(200)
            self.send_header("Content-Type", "image/jpeg")
            self.end_headers()
            self.wfile.write(frame_bytes(time.monotonic_ns() % 1000))
            return
        if self.path not in ("/mjpeg", "/plain", "/broken", "/stalled"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", 'multipart/x-mixed-replace; boundary="frame"')
        self.end_headers()
        with contextlib.suppress(OSError):
            for seed in (*range(4), *range(4 + STALL * (self.path == "/stalled"), 1000)):
                data = frame_bytes(seed)
                if self.path == "/broken" and seed % 3 == 1:
                    data = data[: len(data) // 2]
                length = f"Content-Length: {len(data)}\r\n" if self.path != "/plain" else ""
                self.wfile.write(f"--frame\r\nContent-Type: image/jpeg\r\n{length}\r\n".encode())
                self.wfile.write(data + b"\r\n")
                if self.path == "/stalled" and seed == 3:  # one write, so that all have come at once
                    parts = [
                        b"--frame\r\nContent-Length: %d\r\n\r\n%b\r\n" % (len(data), data)
                        for data in map(frame_bytes, range(4, 4 + STALL))
                    ]
                    self.wfile.write(b"".join(parts))
                if self.over.wait(0.03):
                    return


def frame_bytes(seed: int) -> bytes:
    return encode(make_image(48, 64, seed), "JPEG", quality=90)


@contextlib.contextmanager
def http_cameras() -> Iterator[str]:
    class Handler(Cameras):
        over = threading.Event()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        Handler.over.set()
        server.shutdown()
        server.server_close()


class FakeCapture:
    """A camera whose frames are given by a function of their number; None hangs until released."""

    def __init__(self, frame: Callable[[int], UInt8Array | None], period_s: float = 0.005) -> None:
        self.frame, self.period_s = frame, period_s
        self.count = 0
        self.release = threading.Event()
        self.closed = False
        self._image: UInt8Array = np.zeros((1, 1, 3), np.uint8)

    def grab(self) -> None:
        self.release.wait(self.period_s)
        image = self.frame(self.count)
        self.count += 1
        if image is None:
            self.release.wait()
            raise SourceError("the hanging read came back")
        self._image = image

    def passed_over(self) -> bool:
        return False

    def notice(self) -> str:
        return ""

    def damage(self) -> str:
        return ""

    def stamp_s(self) -> float | None:
        return None

    def overtaken(self) -> bool:
        return False

    def retrieve(self) -> UInt8Array:
        return self._image

    def close(self) -> None:
        self.closed = True


def opener(captures: Mapping[str, Callable[[], FakeCapture]]) -> Callable[[CameraConfig], FakeCapture]:
    """Opens fake captures by the source's name."""
    return lambda config: captures[config.source]()
