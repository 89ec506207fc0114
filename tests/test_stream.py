"""Streams by PyAV: key frames alone, damage, hardware, addresses; and devices by OpenCV."""

from __future__ import annotations

import base64
import contextlib
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import UInt8Array, make_image, until
from test_video_files import HEIGHT, WIDTH, damaged, encode, off, picture

from grmp_edge.errors import SourceError, UsageError
from grmp_edge.runtime.video import stream
from grmp_edge.runtime.video.base import DamagedFrame, EndOfStream, PermanentSourceError
from grmp_edge.runtime.video.capture import OpenCvCapture, open_capture
from grmp_edge.runtime.video.config import CaptureConfig
from grmp_edge.runtime.video.rtsp import escaped
from grmp_edge.runtime.video.stream import KeyFrames, StreamCapture


def opened(path: Path, **settings: Any) -> StreamCapture:
    return StreamCapture(CaptureConfig(f"file:{path}", "gate", **settings), f"file:{path}", {})


def played(source: StreamCapture) -> Iterator[UInt8Array | None]:
    """Each picture; None for what is passed over or damaged."""
    with contextlib.closing(source), contextlib.suppress(EndOfStream):
        while True:
            source.grab()
            if source.passed_over():
                yield None
                continue
            try:
                yield source.retrieve()
            except DamagedFrame:
                yield None


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """20 pictures at 10 a second, a key frame every half second."""
    options = {"x264-params": "scenecut=0"}
    return encode(tmp_path / "v.ts", [picture(seed) for seed in range(20)], options=options)


def test_all_frames(video: Path) -> None:
    pictures = list(played(opened(video, decode="all")))
    assert len(pictures) == 20
    for seed, image in enumerate(pictures):
        assert image is not None and off(image[:, :, ::-1], seed) < 4


def test_key_frames_alone(video: Path) -> None:
    pictures = list(played(opened(video, decode="key")))
    assert [index for index, image in enumerate(pictures) if image is not None] == [0, 5, 10, 15]
    assert len(pictures) == 20
    for seed in (0, 5, 10, 15):
        image = pictures[seed]
        assert image is not None and off(image[:, :, ::-1], seed) < 4


@pytest.mark.parametrize(
    ("max_fps", "gap_s", "enough"),
    [(None, 0.5, False), (1.0, 2.0, True), (1.0, 2.5, False), (1.0, 1.0, True), (1.0, 1.04, True),
     (1.0, 0.5, True), (1.0, 0.667, True), (2.0, 0.667, False), (2.0, 0.5, True), (0.1, 2.0, True),
     (5.0, 0.04, True), (5.0, 1.0, False)],
)  # fmt: skip
def test_auto_takes_key_frames_where_they_are_enough(
    max_fps: float | None, gap_s: float, enough: bool
) -> None:
    keys = KeyFrames(CaptureConfig("rtsp://a", max_fps=max_fps))
    for index in range(6):
        assert not keys.enough or index >= 3
        keys.step(100.0 + index * gap_s)
    assert keys.enough is enough
    told = {(1.0, 2.0): "2.0", (1.0, 0.667): "1.3"}.get((max_fps or 0.0, gap_s))  # the others reach max_fps
    assert keys.notice == (
        f'key frames alone, one every {told} s (decode = "all" for max_fps)' if told else ""
    )
    keys.give_up()
    assert not keys.enough


def test_auto_changes_over_and_back(tmp_path: Path) -> None:
    path = encode(
        tmp_path / "v.mkv", [picture(seed) for seed in range(40)], options={"x264-params": "scenecut=0"}
    )
    source = opened(path, max_fps=2.0)  # decode = "auto"
    pictures = list(played(source))
    taken = [index for index, image in enumerate(pictures) if image is not None]
    assert taken == [*range(10), 10, 15, 20, 25, 30, 35]


def test_key_frames_of_interlaced_video_are_not_enough(tmp_path: Path) -> None:
    options = {"flags": "+ildct+ilme", "x264-params": "tff=1"}
    frames = [picture(seed) for seed in range(20)]
    path = encode(tmp_path / "i.mp4", frames, rate=25, options=options, interlaced=True)
    pictures = list(played(opened(path, decode="key")))
    assert sum(image is not None for image in pictures) >= 10
    assert pictures[0] is None


def test_damaged_frames_are_not_given_out(tmp_path: Path) -> None:
    noise = [make_image(HEIGHT, WIDTH, seed) for seed in range(20)]
    options = {"x264-params": "scenecut=0"}
    path = encode(tmp_path / "bad.mp4", noise, options=options, container={"movflags": "faststart"})
    whole = list(played(opened(path, decode="all")))
    damaged(path, [0.6])
    pictures = list(played(opened(path, decode="all")))
    lost = [index for index, image in enumerate(pictures) if image is None]
    assert 1 <= len(lost) <= 5 and lost[-1] % 5 == 4
    for index, image in enumerate(pictures):
        if image is not None:
            np.testing.assert_array_equal(image, whole[index])
    marks = []
    source = opened(path, decode="all", score_damaged=True)
    for image in played(source):
        assert image is not None
        marks.append(source.damage())
    assert [index for index, mark in enumerate(marks) if mark] == lost
    assert {marks[index] for index in lost} == {"it, or a frame that it is built on, is not whole"}


def test_nothing_but_damaged_frames(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    source = opened(video, read_timeout_s=10.0)
    monkeypatch.setattr("grmp_edge.runtime.video.stream.time.monotonic", lambda: now[0])
    source._mark(True)
    now[0] = 9.0
    source._mark(True)
    now[0] = 11.0
    with pytest.raises(SourceError, match="gate: nothing but damaged frames for 11 s"):
        source._mark(True)


@pytest.mark.parametrize("name", ["vaapi", "cuda"])
def test_hardware_that_is_not_there_is_said(video: Path, name: str) -> None:
    source = opened(video, hardware=name, decode="all")
    if not source.notice() and name == "cuda":
        pytest.skip("a GPU decodes here")
    assert source.notice().startswith("decoded in software: ")
    assert name in source.notice()
    assert len(list(played(source))) == 20


def test_settings() -> None:
    with pytest.raises(UsageError, match="unknown decode 'some'; use auto, all, key"):
        CaptureConfig("a", decode="some")
    with pytest.raises(UsageError, match="unknown hardware 'gpu'; use cuda, qsv, vaapi, drm"):
        CaptureConfig("a", hardware="gpu")


def test_without_pyav(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "has_pyav", lambda: False)
    for source in ("rtsp://127.0.0.1:1/x", f"file:{video}"):
        with pytest.raises(PermanentSourceError, match=r"need PyAV; run: .* install -e '\S+\[video\]'$"):
            open_capture(CaptureConfig(source))


def test_user_and_password_are_escaped() -> None:
    assert escaped("rtsp://admin:Secret!1@host:554/live") == "rtsp://admin:Secret%211@host:554/live"
    assert escaped("rtsp://me:p%40ss@host/a?b=c") == "rtsp://me:p%40ss@host/a?b=c"
    assert escaped("rtsp://me@host/a") == "rtsp://me@host/a"
    assert escaped("rtsp://host/a") == "rtsp://host/a"


@contextlib.contextmanager
def web(folder: Path, password: str = "") -> Iterator[int]:
    """A web server of a folder; with a password, for the user me alone. Its port."""
    allowed = f"Basic {base64.b64encode(f'me:{password}'.encode()).decode()}"

    class Quiet(SimpleHTTPRequestHandler):
        extensions_map = {  # noqa: RUF012 - as its base class has it
            ".ts": "video/mp2t", ".m3u8": "application/vnd.apple.mpegurl",
        }  # fmt: skip

        def do_GET(self) -> None:
            if not password or self.headers.get("Authorization") == allowed:
                super().do_GET()
                return
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="cam"')
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def test_a_video_over_http(video: Path) -> None:
    with web(video.parent) as port:
        source = open_capture(CaptureConfig(f"http://me:x@127.0.0.1:{port}/{video.name}"))
        assert isinstance(source, StreamCapture)
        pictures: list[UInt8Array | None] = []
        with pytest.raises(SourceError, match="the stream has ended; it is opened again") as ended:
            for image in played(source):
                pictures.append(image)
        assert len(pictures) == 20 and all(image is not None for image in pictures)
        assert not isinstance(ended.value, EndOfStream)  # which would be for good


@pytest.mark.system
def test_hls_of_a_recording(video: Path, tmp_path: Path) -> None:
    """Every piece is fetched with the password, and all pictures are those of the file."""
    cut = ["-c", "copy", "-f", "hls", "-hls_time", "0.5", "-hls_list_size", "0", str(tmp_path / "a.m3u8")]
    subprocess.run(["ffmpeg", "-v", "error", "-i", str(video), *cut], check=True)
    assert (tmp_path / "a3.ts").exists()
    with web(tmp_path, "p@ss w") as port:
        source = open_capture(CaptureConfig(f"http://me:p@ss w@127.0.0.1:{port}/a.m3u8", decode="all"))
        pictures: list[UInt8Array | None] = []
        with pytest.raises(SourceError, match="the stream has ended"):
            assert isinstance(source, StreamCapture)
            pictures.extend(played(source))
        assert len(pictures) == 20
        for seed, image in enumerate(pictures):
            assert image is not None and off(image[:, :, ::-1], seed) < 4
        with pytest.raises(SourceError, match=r"401.*check its user and password"):
            open_capture(CaptureConfig(f"http://me:wrong@127.0.0.1:{port}/a.m3u8"))


@pytest.mark.system
def test_hls_as_it_is_made(tmp_path: Path) -> None:
    """From the newest piece on, into pieces that did not exist when it was opened."""
    test_card = ["-re", "-f", "lavfi", "-i", "testsrc2=s=128x96:r=10"]
    encoder = ["-c:v", "libx264", "-preset", "ultrafast", "-g", "5", "-pix_fmt", "yuv420p"]
    pieces = ["-f", "hls", "-hls_time", "0.5", "-hls_list_size", "20", "-hls_flags", "delete_segments"]
    command = ["ffmpeg", "-v", "error", *test_card, *encoder, *pieces, str(tmp_path / "live.m3u8")]
    with web(tmp_path) as port, subprocess.Popen(command) as ffmpeg:
        try:
            until(lambda: (tmp_path / "live3.ts").exists())
            newest = max(int(path.stem[4:]) for path in tmp_path.glob("live*.ts"))
            source = open_capture(CaptureConfig(f"http://127.0.0.1:{port}/live.m3u8"))
            pictures, stamps = 0, list[float]()
            with contextlib.closing(source):
                while len(stamps) < 25:  # two seconds and a half, five pieces
                    source.grab()
                    stamp = source.stamp_s()
                    assert stamp is not None
                    stamps.append(stamp)
                    pictures += not source.passed_over() and source.retrieve().shape == (96, 128, 3)
        finally:
            ffmpeg.kill()
    assert pictures >= 24
    assert np.diff(stamps) == pytest.approx(0.1, abs=1e-3)
    assert stamps[0] - 1.4 >= 0.5 * (newest - 3) - 1e-3  # MPEG-TS begins at 1.4 s


class Lying:
    """As OpenCV's capture: says that it gave a frame; ``writes`` says whether it did."""

    def __init__(self, *_: Any) -> None:
        self.writes = True

    def isOpened(self) -> bool:  # noqa: N802
        return True

    def set(self, *_: Any) -> bool:
        return True

    def release(self) -> None:
        pass

    def grab(self) -> bool:
        return True

    def retrieve(self, buffer: UInt8Array | None = None) -> tuple[bool, UInt8Array]:
        image = make_image(48, 64)
        if buffer is None or buffer.shape != image.shape:
            return True, image
        if self.writes:
            buffer[:] = image
        return True, buffer


def test_a_frame_that_opencv_did_not_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", Lying)
    source = OpenCvCapture(CaptureConfig("0"), 0, cv2.CAP_V4L2)
    for _ in range(3):
        source.grab()
        np.testing.assert_array_equal(source.retrieve(), make_image(48, 64))
    source._capture.writes = False  # type: ignore[attr-defined]
    with pytest.raises(SourceError, match="says that it wrote a frame, and did not"):
        source.retrieve()
