"""MJPEG and snapshot cameras as they are: without lengths, boundaries, or a type that says what they send."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator

import cv2
import numpy as np
import pytest
from conftest import UInt8Array, encode, make_image
from helpers_hostile import hostile
from helpers_live import scores, take

from grmp_edge.bundle import Bundle
from grmp_edge.errors import SourceError
from grmp_edge.preprocess import decode_picture
from grmp_edge.runtime.live.config import CameraConfig
from grmp_edge.runtime.live.events import CameraEvent, CameraState
from grmp_edge.runtime.live.live import Live, LiveEvent
from grmp_edge.runtime.scorer import Scorer
from grmp_edge.runtime.sinks.queue import to_record
from grmp_edge.runtime.video.capture import Capture, open_capture
from grmp_edge.runtime.video.capture_http import MjpegCapture, SnapshotCapture, jpeg_end
from grmp_edge.runtime.video.config import CaptureConfig


def jpeg(seed: int, **settings: object) -> bytes:
    return encode(make_image(48, 64, seed), "JPEG", quality=90, **settings)


def cut(data: bytes) -> bytes:
    """A JPEG without the end of its scan."""
    return data[:-150] + b"\xff\xd9"


def off(image: UInt8Array, seed: int) -> float:
    return float(np.abs(image[:, :, ::-1].astype(int) - make_image(48, 64, seed)).mean())


@contextlib.contextmanager
def serving(kind: str, pieces: list[bytes], pause_s: float = 0.0, length: int | None = None) -> Iterator[str]:
    """Answers each request with the pieces, one after another; its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    said = f"Content-Type: {kind}\r\n" if kind else ""
    said += f"Content-Length: {length}\r\n" if length is not None else ""

    def answer(client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.recv(65536)
            client.sendall(f"HTTP/1.0 200 OK\r\n{said}\r\n".encode())
            for piece in pieces:
                client.sendall(piece)
                time.sleep(pause_s)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/x"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@contextlib.contextmanager
def camera(
    kind: str,
    pieces: list[bytes],
    pause_s: float = 0.0,
    length: int | None = None,
    score_damaged: bool = False,
) -> Iterator[Capture]:
    """What :func:`serving` gives, opened."""
    with serving(kind, pieces, pause_s, length) as url:
        config = CaptureConfig(url, "gate", max_fps=1000.0, score_damaged=score_damaged)
        with contextlib.closing(open_capture(config)) as capture:
            yield capture


MIXED = "multipart/x-mixed-replace; boundary=frame"
HEAD = b"Content-Type: image/jpeg\r\n\r\n"
STREAMS = {  # content type, before each picture, behind it
    "no length": (MIXED, b"--frame\r\n" + HEAD, b"\r\n"),
    "no blank line behind a picture": (MIXED, b"--frame\r\n" + HEAD, b""),
    "no boundary named": ("multipart/x-mixed-replace", b"--frame\r\n" + HEAD, b"\r\n"),
    "another boundary": (MIXED, b"--myboundary\r\n" + HEAD, b"\r\n"),
    "no boundary at all": (MIXED, HEAD, b"\r\n"),
    "no headers": (MIXED, b"--frame\r\n\r\n", b"\r\n"),
    "pictures alone": (MIXED, b"", b""),
    "padded with zeros": (MIXED, b"--frame\r\n" + HEAD, b"\0" * 700 + b"\r\n"),
    "octets, pictures alone": ("application/octet-stream", b"", b""),
    "octets, in parts": ("application/octet-stream", b"\r\n--frame\r\n" + HEAD, b"\r\n"),
    "no type at all": ("", b"", b""),
}


@pytest.mark.parametrize("name", STREAMS)
def test_streams_without_lengths(name: str) -> None:
    kind, before, behind = STREAMS[name]
    with camera(kind, [before + jpeg(seed) + behind for seed in range(8)]) as capture:
        assert isinstance(capture, MjpegCapture)
        for seed in range(8):
            capture.grab()
            assert off(capture.retrieve(), seed) < 6
        with pytest.raises(SourceError, match="gate: the stream ended"):
            capture.grab()


def test_a_picture_does_not_wait_for_the_next() -> None:
    pieces = [b"--frame\r\n" + HEAD + jpeg(seed) + b"\r\n" for seed in range(3)]
    with camera(MIXED, pieces, pause_s=1.0) as capture:
        for _ in range(2):
            capture.grab()
            began = time.monotonic()
        capture.grab()
        assert 0.5 < time.monotonic() - began < 3.0
        assert off(capture.retrieve(), 2) < 6  # has come, though the stream is still open


@pytest.mark.parametrize("length", [True, False])
def test_one_part_behind_is_not_stale(length: bool) -> None:
    """Four pictures at once: the first two have two or more behind them."""
    parts = []
    for _ in range(4):
        data = encode(make_image(48, 64, 1), "JPEG", quality=90)
        said = b"Content-Length: %d\r\n" % len(data) if length else b""
        parts.append(b"--frame\r\n" + said + HEAD + data + b"\r\n")
    with camera(MIXED, [b"".join(parts)]) as capture:
        capture.grab()
        time.sleep(0.3)  # until the rest has come
        stale = [capture.overtaken()]
        for _ in range(3):
            capture.grab()
            stale.append(capture.overtaken())
    assert stale == [True, True, False, False]


def test_a_snapshot_of_no_type() -> None:
    data = jpeg(5)
    with camera("application/octet-stream", [data], length=len(data)) as capture:
        assert isinstance(capture, SnapshotCapture)
        for _ in range(2):
            capture.grab()
            assert off(capture.retrieve(), 5) < 6


def test_more_pixels_than_any_camera_has() -> None:
    """A few hundred bytes that would decode to gigabytes."""
    data = bytearray(jpeg(0))
    at = data.index(b"\xff\xc0") + 5
    assert struct.unpack_from(">HH", data, at) == (48, 64)
    struct.pack_into(">HH", data, at, 32000, 32000)
    part = b"--frame\r\n" + HEAD + bytes(data) + b"\r\n"
    with camera(MIXED, [part, b"--frame\r\n" + HEAD + jpeg(1)]) as capture:
        capture.grab()
        with pytest.raises(SourceError, match="gate: 32000 x 32000 pixels are more than 50000000"):
            capture.retrieve()
        capture.grab()
        assert off(capture.retrieve(), 1) < 6
    with camera("image/jpeg", [bytes(data)]) as capture:
        capture.grab()
        with pytest.raises(SourceError, match="32000 x 32000"):
            capture.retrieve()


def test_a_damaged_picture_is_left_out_or_marked() -> None:
    """With ``score_damaged`` its score says what is wrong, and the event has it, too."""
    broken = cut(jpeg(1))
    libjpegs = {decode_picture(broken).damage}
    assert "" not in libjpegs
    for kind, pieces in (
        ("image/jpeg", [broken]),
        (MIXED, [b"--frame\r\n" + HEAD + data + b"\r\n" for data in (broken, jpeg(0))]),
    ):
        with camera(kind, pieces) as capture:
            capture.grab()
            with pytest.raises(SourceError, match=r"gate: damaged \("):
                capture.retrieve()
        with camera(kind, pieces, score_damaged=True) as capture:
            capture.grab()
            assert capture.retrieve().shape == (48, 64, 3)
            assert capture.damage() in libjpegs
            if kind == MIXED:
                capture.grab()
                capture.retrieve()
                assert capture.damage() == ""


def lost(events: list[LiveEvent]) -> list[CameraEvent]:
    """What cameras were lost for."""
    changes = [event for event in events if isinstance(event, CameraEvent)]
    return [event for event in changes if event.state == CameraState.RESTARTING]


@pytest.mark.parametrize("score_damaged", [False, True])
def test_damage_reaches_the_score(tiny_bundle: Bundle, score_damaged: bool) -> None:
    broken = cut(jpeg(1))
    with (
        serving("image/jpeg", [broken]) as bad,
        serving("image/jpeg", [jpeg(2)]) as good,
        Scorer.open(tiny_bundle, provider="cpu", threads=1) as scorer,
    ):
        cameras = [
            CameraConfig(url, name, max_fps=50.0, score_damaged=score_damaged)
            for url, name in ((bad, "bad"), (good, "good"))
        ]

        def enough(events: list[LiveEvent]) -> bool:
            told = scores(events, "bad") if score_damaged else lost(events)
            return bool(told and scores(events, "good"))

        with Live(scorer, cameras) as live:
            events = take(live, enough)
    assert scores(events, "good")[0].score.damage is None
    if not score_damaged:
        assert not scores(events, "bad") and "bad: damaged (" in lost(events)[0].detail
        return
    (marked,) = scores(events, "bad")
    assert marked.score.damage == decode_picture(broken).damage != ""
    assert json.loads(json.dumps(to_record(marked)))["damage"] == marked.score.damage


def test_a_hostile_snapshot_is_its_own_camera_s_fault(tiny_bundle: Bundle) -> None:
    with (
        serving("image/jpeg", [hostile()["jpeg declares a gigapixel"]]) as bad,
        serving("image/jpeg", [jpeg(2)]) as good,
        Scorer.open(tiny_bundle, provider="cpu", threads=1) as scorer,
    ):
        cameras = [CameraConfig(url, name, max_fps=50.0) for url, name in ((bad, "bad"), (good, "good"))]
        with Live(scorer, cameras) as live:
            events = take(live, lambda seen: bool(scores(seen, "good") and lost(seen)))
    assert not scores(events, "bad")
    assert {event.camera for event in lost(events)} == {"bad"}
    assert "32000 x 32000 pixels" in lost(events)[0].detail


def test_where_a_jpeg_ends() -> None:
    thumbnail = jpeg(3)
    exif = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    for data in (jpeg(0), jpeg(1, progressive=True), jpeg(2)[:2] + exif + jpeg(2)[2:]):
        assert jpeg_end(data) == len(data)
        assert jpeg_end(data + b"\r\n--frame" + data) == len(data)
        assert [jpeg_end(data[:size]) for size in range(2, len(data), 7)] == [None] * len(
            range(2, len(data), 7)
        )
    restarts = cv2.imencode(".jpg", make_image(64, 64), [cv2.IMWRITE_JPEG_RST_INTERVAL, 2])[1].tobytes()
    assert b"\xff\xd3" in restarts
    assert jpeg_end(restarts) == len(restarts)
