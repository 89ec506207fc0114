"""Bytes from outside, changed at random: each reader gives a result or an error of its own, and ends.

A few seconds of it in every run, always the same; `make fuzz` takes other examples, as many as it is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import tempfile
from collections.abc import Callable, MutableMapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import encode, make_image, write_tiny_bundle, write_tiny_graph
from helpers_hostile import hostile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grmp_edge.bundle import Bundle, manifest_digest
from grmp_edge.errors import GrmpError
from grmp_edge.files import csv_row, csv_text
from grmp_edge.image_files import jpeg_is_complete, may_have_alpha, other_kind, png_is_complete
from grmp_edge.onnx_wire import external_files, has_control_flow
from grmp_edge.picture_header import read_header
from grmp_edge.preprocess import decode_image
from grmp_edge.redact import scrub
from grmp_edge.runtime.live.config import read_streams
from grmp_edge.runtime.video.capture_http import MjpegCapture, _Body, jpeg_end
from grmp_edge.runtime.video.rtsp import _Connection, with_delimiters
from grmp_edge.runtime.video.rtsp_login import Login
from grmp_edge.runtime.web.event_stream import Followers
from grmp_edge.train.data.tables import csv_lines
from grmp_edge.train.network.backbone import read_state_dict
from grmp_edge.train.network.embedded import load_prompts
from grmp_edge.train.session.checkpoint import WEIGHTS, read_state

MORE = int(os.environ.get("GRMP_EDGE_FUZZ", "0"))  # examples of each reader
JPEG = encode(make_image(16, 16), "JPEG")
PICTURES = [
    *(encode(make_image(16, 16), kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")),
    *(data for data in hostile().values() if len(data) < 3000),
]
RTSP = (
    b'RTSP/1.0 401 No\r\nWWW-Authenticate: Digest realm="a", nonce="b", algorithm=SHA-256, qop="auth"\r\n\r\n'
    b"RTSP/1.0 200 OK\r\nContent-Length: 40\r\n\r\na=rtpmap:96 H264/90000\r\na=control:track1\r\n"
    b"$\0\0\x10\x80\xe0\0\1\0\0\0\1abcd\x65\xff\xff\xff$\0\0\x10\x80\xe0\0\2\0\0\0\2abcd\x65\xff\xff\xff"
)
PARTS = b"--b\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n--b\r\n\r\n%s\r\n--b--\r\n" % (
    len(JPEG), JPEG, JPEG,
)  # fmt: skip
STREAMS = b"""[[camera]]
name = "gate"
source = "rtsp://u:p@10.0.0.1/live"
max_fps = 2.5
alert = { below = 0.4, for_s = 3 }
[[sink]]
kind = "jsonl"
path = "a.jsonl"
"""
TABLE = 'image;mos\n"a ""b"".jpg";3,5\n\nc.jpg;4\n'.encode("utf-16")


@st.composite
def changed(draw: st.DrawFn, samples: list[bytes]) -> bytes:
    """A sample with some bytes replaced, put in, cut out or doubled."""
    data = bytearray(draw(st.sampled_from(samples)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(data)))
        piece = draw(
            st.one_of(st.binary(max_size=8), st.sampled_from([b"\xff", b"\0" * 4, b"\xff" * 4, b"\r\n"]))
        )
        how = draw(st.integers(0, 3))
        if how == 0:
            data[at : at + len(piece)] = piece
        elif how == 1:
            data[at:at] = piece
        elif how == 2:
            del data[at : at + draw(st.integers(1, 64))]
        else:
            data[at:at] = data[at : at + draw(st.integers(1, 64))]
    return bytes(data)


def picture(data: bytes) -> None:
    header = read_header(data)
    assert header is None or (header.width > 0 and header.height > 0 and header.memory > 0)
    jpeg_is_complete(data), png_is_complete(data), may_have_alpha(data), other_kind(data)
    end = jpeg_end(data)
    assert end is None or 0 < end <= len(data)
    if header is not None and header.memory < 16 << 20:
        image = decode_image(data)
        # Where both understand it, the header has told the size; or the orientation has turned it.
        assert sorted(image.shape[:2]) == sorted((header.width, header.height))


def rtsp(data: bytes) -> None:
    login = Login("rtsp://u:p@h/")
    passed, rest, state = b"", bytearray(), _Connection(trial=0, login=login)
    for at in range(0, len(data), 13):
        rest += data[at : at + 13]
        passed += with_delimiters(rest, state)
        login.request(data[at:])
    assert len(rest) < 1 << 17


def mjpeg(data: bytes) -> None:
    rest = [data[at : at + 50] for at in range(0, len(data), 50)]
    response: Any = SimpleNamespace(
        read1=lambda _: rest.pop(0) if rest else b"",
        headers=SimpleNamespace(get_param=lambda _: "b"),
        close=lambda: None,
    )
    capture = MjpegCapture(SimpleNamespace(label="x"), response, _Body(response, "x", 10.0))  # type: ignore[arg-type]
    for _ in range(len(data)):
        capture.grab()


def on_disk(read: Callable[[Path], object], name: str) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(data)
            read(path)

    return run


def text(data: bytes) -> None:
    words = data.decode("utf-8", "replace")
    scrub(words)
    assert csv_text(csv_text(words)) == csv_text(words) and csv_row([words]).endswith(b"\n")


def table(path: Path) -> None:
    csv_lines(path, "is not there", "is damaged")


READERS: dict[str, tuple[list[bytes], Callable[[bytes], None], tuple[type[Exception], ...]]] = {
    "picture": (PICTURES, picture, ()),
    "rtsp": ([RTSP], rtsp, (ValueError,)),
    "mjpeg": ([PARTS, JPEG * 3], mjpeg, ()),
    "streams": ([STREAMS], on_disk(read_streams, "streams.toml"), ()),
    "csv": ([TABLE, b"image,mos\na.jpg,1\n"], on_disk(table, "labels.csv"), ()),
    "text": ([b"rtsp://u:p@h/x?token=1 password='a b'", b"=1+1\x1b"], text, ()),
}


@pytest.mark.parametrize("name", READERS)
def test_any_bytes(name: str) -> None:
    samples, read, own = READERS[name]

    @settings(
        max_examples=MORE or 60, deadline=None, database=None, derandomize=not MORE,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(changed(samples))
    def run(data: bytes) -> None:
        with contextlib.suppress(GrmpError, *own):
            read(data)

    run()


def test_any_weights(tmp_path: Path) -> None:
    """Changed within the header of safetensors, its length and its JSON, and behind it."""
    from safetensors.torch import save_file

    weights = {"head.weight": torch.zeros(2, 3), "resume.step": torch.ones((), dtype=torch.int64)}
    path = tmp_path / WEIGHTS
    save_file(weights, path, {"progress": '{"epoch": 1, "complete": true}'})
    sound = path.read_bytes()
    read_state(tmp_path)

    @settings(max_examples=MORE or 60, deadline=None, database=None, derandomize=not MORE)
    @given(changed([sound]))
    def run(data: bytes) -> None:
        path.write_bytes(data)
        with contextlib.suppress(GrmpError):
            state = read_state(tmp_path)
            assert isinstance(state.progress, dict)
        with contextlib.suppress(GrmpError):
            read_state_dict(path)
        with contextlib.suppress(GrmpError):
            load_prompts(path)

    run()


def events(body: bytes) -> list[str]:
    """The data of each message, as the HTML standard (9.2.6) reads an event stream."""
    found: list[str] = []
    lines: list[str] = []
    for line in re.split("\r\n|\r|\n", body.decode()):
        name, _, value = line.partition(":")
        if line.startswith("data"):
            assert name == "data"
            lines.append(value.removeprefix(" "))
        elif not line and lines:
            found.append("\n".join(lines))
            lines = []
    return found


def test_any_name_in_an_event_stream() -> None:
    """What cameras are called, and what went wrong with them, stays within its own message."""
    ends = ["\r\ndata: {}\r\n\r\n", "\n\n", "\x85", "\u2028", "\ud800"]
    texts = st.text(max_size=30) | st.sampled_from(ends)

    @settings(max_examples=MORE or 60, deadline=None, database=None, derandomize=not MORE)
    @given(st.dictionaries(texts, texts | st.floats(allow_nan=False, allow_infinity=False), max_size=4))
    def run(state: dict[str, object]) -> None:
        sent: list[bytes] = []

        async def follow() -> None:
            followers = Followers()
            forever = asyncio.Event()

            async def send(message: MutableMapping[str, Any]) -> None:
                sent.append(message["body"])
                followers.close()

            async def receive() -> MutableMapping[str, Any]:
                await forever.wait()
                return {"type": "http.disconnect"}

            await followers.run(lambda: state, receive, send)

        asyncio.run(follow())
        assert [json.loads(text) for text in events(b"".join(sent))] == [state]

    run()


def test_any_graph(tmp_path: Path) -> None:
    write_tiny_graph(tmp_path / "model.onnx")
    path = tmp_path / "changed.onnx"

    @settings(max_examples=MORE or 60, deadline=None, database=None, derandomize=not MORE)
    @given(changed([(tmp_path / "model.onnx").read_bytes()]))
    def run(data: bytes) -> None:
        path.write_bytes(data)
        for read in (external_files, has_control_flow):
            with contextlib.suppress(ValueError):
                read(path)

    run()


def test_any_manifest(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.bundle")
    path = bundle.path / "bundle.json"
    sound = json.loads(path.read_text())
    values = st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    )

    @settings(max_examples=MORE or 60, deadline=None, database=None, derandomize=not MORE)
    @given(
        st.sampled_from(sorted(sound)), st.sampled_from(["", *sound["preprocess"], *sound["graphs"]]), values
    )
    def run(key: str, inner: str, value: object) -> None:
        data = json.loads(json.dumps(sound))
        if inner and isinstance(data[key], dict):
            data[key][inner] = value
        else:
            data[key] = value
        data["manifest_sha256"] = manifest_digest(data)
        path.write_text(json.dumps(data))
        with contextlib.suppress(GrmpError):
            Bundle.load(bundle.path)

    run()
