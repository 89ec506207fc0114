"""Sources that accept and then say nothing, or nearly: told, given up, and no obstacle to the end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import UInt8Array, make_image, until
from helpers_live import FakeCapture, frame_bytes, http_cameras, opener, scores, take

from grmp_edge.bundle import Bundle
from grmp_edge.errors import SourceError
from grmp_edge.runtime.live.config import CameraConfig
from grmp_edge.runtime.live.events import CameraEvent, CameraState
from grmp_edge.runtime.live.live import Live, LiveEvent
from grmp_edge.runtime.scorer import Scorer
from grmp_edge.runtime.video.capture import open_capture

OPTIONS_ONLY = b"RTSP/1.0 200 OK\r\nCSeq: 1\r\nPublic: DESCRIBE, SETUP, PLAY\r\n\r\n"
MULTIPART = b'HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary="frame"\r\n\r\n'
PICTURE = b"HTTP/1.0 200 OK\r\nContent-Type: image/jpeg\r\n\r\n"


@contextlib.contextmanager
def slow_server(
    at_once: bytes, drip: bytes = b"", accepted: threading.Semaphore | None = None
) -> Iterator[int]:
    """Accepts all, sends ``at_once``, then ``drip`` a byte every 50 ms, over and over; never closes.

    ``accepted`` is released once for each connection.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.1)
    over = threading.Event()
    clients: list[socket.socket] = []

    def talk(client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            client.sendall(at_once)
            end = time.monotonic() + 30.0  # long after what any test waits for
            while drip and time.monotonic() < end:
                for value in drip:
                    client.sendall(bytes([value]))
                    if over.wait(0.05):
                        return
            if drip:
                client.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                clients.append(listener.accept()[0])
                threading.Thread(target=talk, args=(clients[-1],), daemon=True).start()
                if accepted is not None:
                    accepted.release()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        over.set()
        thread.join()
        for open_socket in (listener, *clients):
            open_socket.close()


def bgr(seed: int) -> UInt8Array:
    return np.ascontiguousarray(make_image(seed=seed)[:, :, ::-1])


CASES = {
    "rtsp silent": ("rtsp", b"", b""),
    "rtsp that only greets": ("rtsp", OPTIONS_ONLY, b""),
    "no rtsp at all": ("rtsp", PICTURE, b""),
    "http silent": ("http", b"", b""),
    "rtsp byte by byte": ("rtsp", b"", b"RTSP/1.0 200 OK\r\nX: y\r\n"),
    "header byte by byte": ("http", b"", b"HTTP/1.0 200 OK\r\nX-Long: "),
    "mjpeg without a frame": ("http", MULTIPART, b""),
    "mjpeg byte by byte": ("http", MULTIPART + b"--frame\r\nContent-Length: 100000\r\n\r\n", b"\xff"),
    "mjpeg header byte by byte": ("http", MULTIPART, b"-"),
    "snapshot byte by byte": ("http", PICTURE, b"\xff"),
}


def test_each_is_told_and_none_holds_up_the_rest_or_the_end(tiny_bundle: Bundle) -> None:
    with contextlib.ExitStack() as stack:
        cameras = [CameraConfig("good")]
        for name, (scheme, at_once, drip) in CASES.items():
            port = stack.enter_context(slow_server(at_once, drip))
            url = f"{scheme}://me:hidden@127.0.0.1:{port}/x"
            cameras.append(CameraConfig(url, name, open_timeout_s=0.4, read_timeout_s=0.4, hang_grace_s=0.4))
        fake = opener({"good": lambda: FakeCapture(bgr)})
        scorer = stack.enter_context(Scorer.open(tiny_bundle, threads=1))
        live = Live(
            scorer, cameras, opener=lambda config: (fake if config.source == "good" else open_capture)(config)
        )
        with live:
            failed: set[str] = set()

            def all_failed(seen: list[object]) -> bool:
                event = seen[-1]
                if isinstance(event, CameraEvent):
                    assert "hidden" not in repr(event)
                    if event.state in (CameraState.RESTARTING, CameraState.ERROR):
                        assert event.detail
                        failed.add(event.camera)
                return failed >= set(CASES)

            take(live, all_failed)  # type: ignore[arg-type]
            assert len(scores(take(live, lambda seen: len(scores(seen)) >= 5))) == 5
            start = time.monotonic()
        # Three seconds for all of them together; one after the other would be many times that.
        assert time.monotonic() - start < 9.0


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "v.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 20.0, (64, 48))
    for seed in range(6):
        writer.write(bgr(seed))
    writer.release()
    return path


def test_a_silent_server_does_not_keep_others_from_being_opened(tiny_bundle: Bundle, video: Path) -> None:
    """Streams are opened side by side."""
    accepted = threading.Semaphore(0)
    with slow_server(b"", accepted=accepted) as port, Scorer.open(tiny_bundle, threads=1) as scorer:
        silent = [
            CameraConfig(f"rtsp://127.0.0.1:{port}/x", f"silent {i}", open_timeout_s=60.0) for i in range(3)
        ]
        with Live(scorer, silent) as live:  # they are first
            assert all(accepted.acquire(timeout=30) for _ in silent)
            with Live(scorer, [CameraConfig(f"file:{video}")]) as other:
                assert scores(take(other, lambda seen: len(scores(seen)) >= 3))
            assert [status.stats.state for status in live.status()] == [CameraState.NOT_STARTED] * 3


def test_waiting_for_ones_turn_is_no_hanging(tiny_bundle: Bundle) -> None:
    with slow_server(OPTIONS_ONLY) as port, Scorer.open(tiny_bundle, threads=1) as scorer:
        cameras = [
            CameraConfig(f"rtsp://127.0.0.1:{port}/x", f"{i}", open_timeout_s=1.2, hang_grace_s=2.0)
            for i in range(4)  # the last has its answer after 4.8 s: more than what counts as hanging
        ]
        told: set[str] = set()
        with Live(scorer, cameras) as live:

            def all_told(seen: list[LiveEvent]) -> bool:
                event = seen[-1]
                assert isinstance(event, CameraEvent) and "no answer after" in event.detail
                told.add(event.camera)
                return len(told) == 4

            take(live, all_told)
            assert [status.stats.hangs for status in live.status()] == [0] * 4


@pytest.mark.parametrize("name", ["mjpeg byte by byte", "mjpeg header byte by byte", "snapshot byte by byte"])
def test_a_body_byte_by_byte_ends_by_itself(name: str) -> None:
    """So that its thread need not be given up: the socket's own limit is begun anew by each byte."""
    scheme, at_once, drip = CASES[name]
    with slow_server(at_once, drip) as port:
        capture = open_capture(CameraConfig(f"{scheme}://127.0.0.1:{port}/x", "slow", read_timeout_s=1.0))
        with contextlib.closing(capture), pytest.raises(SourceError, match=r"slow: (too slow|timed out)"):
            capture.grab()


def test_a_body_in_pieces_is_put_together(tiny_bundle: Bundle) -> None:
    """Lines and pictures cut anywhere by the network."""
    picture = frame_bytes(3)
    for length in (f"Content-Length: {len(picture)}\r\n".encode(), b""):
        part = b"--frame\r\nContent-Type: image/jpeg\r\n" + length + b"\r\n" + picture + b"\r\n"
        pieces = [part[i : i + 97] for i in range(0, len(part), 97)] * 3
        listener = socket.create_server(("127.0.0.1", 0))

        def serve(listener: socket.socket = listener, pieces: list[bytes] = pieces) -> None:
            client, _ = listener.accept()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.recv(65536)
            client.sendall(MULTIPART)
            for piece in pieces:
                client.sendall(piece)
                time.sleep(0.001)
            client.sendall(b"--frame--\r\n")
            client.close()

        thread = threading.Thread(target=serve)
        thread.start()
        capture = open_capture(CameraConfig(f"http://127.0.0.1:{listener.getsockname()[1]}/x"))
        with contextlib.closing(capture):
            for _ in range(3):
                capture.grab()
                assert np.abs(capture.retrieve().astype(int) - bgr(3)).mean() < 6
            with pytest.raises(SourceError):
                for _ in range(2):
                    capture.grab()
                    capture.retrieve()
        thread.join()
        listener.close()


def test_no_room_for_a_thread_is_told_and_passes(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[FakeCapture] = []

    def open_one() -> FakeCapture:
        first = not made
        made.append(FakeCapture(lambda index: None if first and index == 3 else bgr(index)))
        return made[-1]

    real = threading.Thread.start
    refused: list[threading.Thread] = []

    def start(thread: threading.Thread) -> None:
        if thread.name == "camera a" and made and len(refused) < 3:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    camera = CameraConfig("a", backoff_min_s=0.05, read_timeout_s=0.2, hang_grace_s=0.2)
    with (
        Scorer.open(tiny_bundle, threads=1) as scorer,
        Live(scorer, [camera], opener=opener({"a": open_one})) as live,
    ):
        events = take(live, lambda seen: len(made) == 2 and len(scores(seen)) >= 10)
        made[0].release.set()
    assert len(refused) == 3
    assert any(isinstance(e, CameraEvent) and "can't start new thread" in e.detail for e in events)


# Ends slowly, as a large program does: what it holds takes seconds to go.
SLOW_END = """
import builtins, sys, time
class Slow:
    def __del__(self, sleep=time.sleep):
        sleep(4.0)
builtins.slow = Slow()
sys.argv = ["grmp-edge", *sys.argv[1:]]
from grmp_edge.cli import main
main()
"""


def test_the_end_while_opencv_waits_for_a_camera(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """A thread that comes back from C++ while Python ends aborts the process: exit code 134 and a core."""
    with slow_server(OPTIONS_ONLY) as port, http_cameras() as base:
        streams = tmp_path / "streams.toml"
        streams.write_text(
            f"[[camera]]\nsource = 'rtsp://127.0.0.1:{port}/x'\nopen_timeout_s = 6\n"
            f"[[camera]]\nsource = '{base}/mjpeg'\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", SLOW_END, "watch", tiny_bundle.path, "--streams", streams, "--json",
             "--memory", "none"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        )  # fmt: skip
        assert process.stdout is not None
        while '"score"' not in process.stdout.readline():
            assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")


def test_opencv_says_nothing_itself(tiny_bundle: Bundle, capfd: pytest.CaptureFixture[str]) -> None:
    """Its warnings about a stream that timed out would be drawn into the table."""
    with slow_server(OPTIONS_ONLY) as port, Scorer.open(tiny_bundle, threads=1) as scorer:
        camera = CameraConfig(f"rtsp://127.0.0.1:{port}/x", open_timeout_s=0.3, backoff_min_s=0.1)
        with Live(scorer, [camera]) as live:
            until(lambda: live.status()[0].stats.state is CameraState.RESTARTING)
    assert capfd.readouterr().err == ""
