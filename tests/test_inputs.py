"""Standard input and pictures from web servers: real pipes and servers."""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import UInt8Array, encode, make_image, tiny_score

from grmp_edge.bundle import Bundle
from grmp_edge.errors import SourceError, UsageError
from grmp_edge.runtime import Failure, Picture, read_sources
from grmp_edge.runtime.sources.http import FetchConfig, fetch_picture
from grmp_edge.runtime.sources.stdin import RawFormat, read_raw_frames

COMMAND = [sys.executable, "-m", "grmp_edge", "score"]


def raw_frame(image: UInt8Array, pixels: str) -> bytes:
    """A frame as FFmpeg would send it; nv12 of a grey picture, where chroma is 128 by definition."""
    if pixels == "gray":
        return image[:, :, 0].tobytes()
    if pixels == "nv12":
        luma = np.round(16 + image[:, :, 0] * (219 / 255)).astype(np.uint8)
        return luma.tobytes() + bytes([128]) * (luma.size // 2)
    return (image if pixels == "rgb24" else image[:, :, ::-1]).tobytes()


def pipe_of(data: bytes) -> int:
    read, write = os.pipe()

    def feed() -> None:
        with os.fdopen(write, "wb") as stream:
            stream.write(data)

    threading.Thread(target=feed, daemon=True).start()
    return read


@pytest.mark.parametrize("pixels", ["rgb24", "bgr24", "gray", "nv12"])
def test_raw_frames(pixels: str) -> None:
    images = [make_image(48, 64, seed) for seed in range(3)]
    if pixels in ("gray", "nv12"):
        images = [np.repeat(image[:, :, :1], 3, axis=2) for image in images]
    handle = pipe_of(b"".join(raw_frame(image, pixels) for image in images))
    raw = RawFormat.parse(f"64x48:{pixels}")
    try:
        found = [(index, frame.copy()) for index, frame in read_raw_frames(raw, 2, handle)]
    finally:
        os.close(handle)
    assert [index for index, _ in found] == [0, 2]
    for index, frame in found:
        rgb = frame[:, :, ::-1] if raw.bgr else frame
        difference = np.abs(rgb.astype(int) - images[index]).max()
        assert difference <= (1 if pixels == "nv12" else 0)


def test_raw_frames_that_end_early() -> None:
    image = make_image(48, 64)
    handle = pipe_of(image.tobytes() + image.tobytes()[:5000])
    frames = read_raw_frames(RawFormat(64, 48, "rgb24"), handle=handle)
    assert np.array_equal(next(frames)[1], image)
    with pytest.raises(SourceError, match=r"frame 1 is cut short \(5000 of 9216 bytes\)"):
        next(frames)
    os.close(handle)
    handle = pipe_of(b"")
    with pytest.raises(SourceError, match="no frame came"):
        next(read_raw_frames(RawFormat(64, 48, "rgb24"), handle=handle))
    os.close(handle)


@pytest.mark.parametrize("text", ["64x48", "64x48:rgb", "0x48:gray", "64x-1:gray", "63x48:nv12", "axb:gray"])
def test_raw_formats_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="--raw"):
        RawFormat.parse(text)


def test_the_command_scores_standard_input(tiny_bundle: Bundle) -> None:
    images = [make_image(48, 64, seed) for seed in range(5)]
    data = b"".join(raw_frame(image, "bgr24") for image in images) + b"half"
    run = subprocess.run(
        [*COMMAND, tiny_bundle.path, "-", "--raw", "64x48:bgr24", "--json", "-q"],
        input=data,
        capture_output=True,
    )
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    assert [(row["source"], row["frame"]) for row in rows] == [("stdin", index) for index in range(5)]
    assert [row["value"] for row in rows] == pytest.approx([tiny_score(image) for image in images], abs=2e-6)
    assert run.returncode == 1
    assert b"stdin: frame 5 is cut short (4 of 9216 bytes)" in run.stderr

    run = subprocess.run(
        [*COMMAND, tiny_bundle.path, "-", "--json"], input=encode(images[1], "PNG"), capture_output=True
    )
    assert run.returncode == 0
    assert json.loads(run.stdout)["value"] == pytest.approx(tiny_score(images[1]), abs=2e-6)


def test_frames_are_scored_as_they_come_and_ctrl_c_ends_a_silent_pipe(tiny_bundle: Bundle) -> None:
    process = subprocess.Popen(
        [*COMMAND, str(tiny_bundle.path), "-", "--raw", "64x48:rgb24", "--json", "-q"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    image = make_image(48, 64)
    process.stdin.write(image.tobytes())
    process.stdin.flush()
    # One of a batch of eight, and the pipe stays open.
    assert json.loads(process.stdout.readline())["value"] == pytest.approx(tiny_score(image), abs=2e-6)
    process.send_signal(signal.SIGINT)
    # wait, not communicate: that would close the pipe.
    assert process.wait(60) == 130
    assert process.stderr is not None
    assert process.stderr.read().splitlines()[-1] == b"error: interrupted"
    process.stdin.close()
    process.stdout.close()
    process.stderr.close()


def test_the_sender_is_not_kept_waiting_when_the_reader_of_scores_has_gone(tiny_bundle: Bundle) -> None:
    sender = subprocess.Popen(
        [sys.executable, "-c", "import sys\nwhile True: sys.stdout.buffer.write(bytes(64 * 48 * 3))"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    scorer = subprocess.Popen(
        [*COMMAND, str(tiny_bundle.path), "-", "--raw", "64x48:rgb24", "--json", "-q"],
        stdin=sender.stdout, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert sender.stdout is not None and scorer.stdout is not None and scorer.stderr is not None
    sender.stdout.close()
    assert scorer.stdout.readline()
    scorer.stdout.close()
    assert b"rror" not in scorer.stderr.read()
    assert scorer.wait(60) == 141
    assert sender.wait(60) != 0  # ended by SIGPIPE, or by Python's error about it
    scorer.stderr.close()


class Handler(http.server.BaseHTTPRequestHandler):
    """A picture, other things, and a picture for those who know the password."""

    def do_GET(self) -> None:
        data, kind, status, length = encode(make_image(seed=4), "PNG"), "image/png", 200, -1
        if self.path == "/page":
            data, kind = b"<html>", "text/html"
        elif self.path == "/none":
            status = 404
        elif self.path == "/bytes":
            kind = "application/octet-stream"
        elif self.path == "/cut":
            data, length = data[:500], len(data)
        elif self.path == "/bomb":
            data = encode(make_image(8, 8), "BMP")
            data = data[:18] + (30_000).to_bytes(4, "little") * 2 + data[26:]
        elif self.path == "/private" and self.headers.get("Authorization") != "Basic dXNlcjpzM2NyZXQ=":
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="camera"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data) if length < 0 else length))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield f"127.0.0.1:{found.server_address[1]}"
        found.shutdown()
        thread.join()


def test_a_picture_from_a_server(server: str, photos: Path) -> None:
    urls = [f"http://{server}/a.png", f"http://user:s3cret@{server}/private", f"http://{server}/bytes"]
    found = list(read_sources([*urls, photos / "1.png"]))
    assert [type(item) for item in found] == [Picture] * 4
    assert [item.source for item in found[:2]] == [urls[0], f"http://{server}/private"]
    for item in found[:3]:
        assert isinstance(item, Picture)
        assert np.array_equal(item.image, make_image(seed=4))


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("page", "text/html, not a picture"), ("none", "404"), ("cut", "broke off"),
        ("bomb", "30000 x 30000 pixels"), ("private", "401"),
    ],
)  # fmt: skip
def test_what_a_server_may_answer_instead(server: str, path: str, words: str) -> None:
    (item,) = read_sources([f"http://other:s3cret@{server}/{path}"])
    assert isinstance(item, Failure)
    assert words in str(item.error)
    assert "s3cret" not in f"{item.source} {item.error}"


def test_limits_of_a_download(server: str) -> None:
    with pytest.raises(SourceError, match="more than 0 MB"):
        fetch_picture(f"http://{server}/a.png", FetchConfig(max_bytes=100))
    with pytest.raises(SourceError, match="cannot be fetched"):
        fetch_picture("http://127.0.0.1:1/a.png")


def test_opencv_and_the_tests_agree_on_nv12() -> None:
    """BT.601, limited range: white is 235, black 16."""
    planes = np.full((6, 4), 128, np.uint8)
    planes[:2], planes[2:4] = 235, 16
    found = cv2.cvtColor(planes, cv2.COLOR_YUV2BGR_NV12)
    assert found[:2].min() >= 254 and found[2:].max() <= 1
