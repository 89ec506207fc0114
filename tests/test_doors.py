"""Names, files and neighbours that mean no good: spreadsheets, locks, redirects, permissions, tokens."""

from __future__ import annotations

import contextlib
import csv
import http.server
import json
import os
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import encode, make_image, tiny_score, until
from typer.testing import CliRunner

from grmp_edge.bundle import Bundle, manifest_digest, write_bundle
from grmp_edge.cli import app
from grmp_edge.errors import BackendError, BundleError, GrmpError, SourceError, UsageError
from grmp_edge.files import csv_plain, csv_row, csv_text
from grmp_edge.onnx_wire import has_control_flow
from grmp_edge.preprocess import NORMALIZATIONS, Preprocess
from grmp_edge.runtime import backends, http_get, within
from grmp_edge.runtime.score_file import ScoreFile
from grmp_edge.runtime.scorer import Scorer
from grmp_edge.runtime.sinks.files import CsvWriter, FrameWriter, JsonlWriter, SqliteWriter
from grmp_edge.runtime.sinks.queue import Message, QueuedSink, Writer
from grmp_edge.runtime.sources.http import FetchConfig, fetch_picture
from grmp_edge.runtime.sources.sources import Failure
from grmp_edge.runtime.tensorrt.engine_cache import EngineCache, EngineKey, Profile
from grmp_edge.runtime.video.rtsp import _own
from grmp_edge.runtime.web.guard import Guard, ServeConfig

FORMULAS = ("=HYPERLINK(1)", "+1", "-1", "@SUM(A1)", "\tx", "=\x1b]0;x\x07")


def test_cells_of_a_csv_are_texts() -> None:
    row = csv_row([*FORMULAS, -1.5, None, "a\nb", "plain"]).decode()
    (cells,) = csv.reader(row.splitlines(keepends=True))
    assert all(cell.startswith("'") for cell in cells[: len(FORMULAS)])
    assert cells[len(FORMULAS) :] == ["-1.5", "", "a\nb", "plain"]
    assert "\x1b" not in row and "\\x1b]0;x\\x07" in row
    assert all(csv_text(csv_text(text)) == csv_text(text) for text in FORMULAS)
    assert [csv_plain(cell) for cell in cells[: len(FORMULAS)]] == list(FORMULAS)
    assert [csv_plain(cell) for cell in ("'quoted'", "plain", r"a\x41")] == ["'quoted'", "plain", r"a\x41"]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_one_writer_at_a_time_who_knows_his_rows(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"scores.{suffix}"
    with ScoreFile(path, "m") as rows:
        for name in FORMULAS:
            rows.write(Failure(name, GrmpError("x")))
        with (
            pytest.raises(UsageError, match="another grmp-edge writes to it"),
            ScoreFile(path, "m", resume=True),
        ):
            pass
    with ScoreFile(path, "m", resume=True) as rows:
        assert rows.done.rows == len(FORMULAS)
        assert all(name in rows.done for name in FORMULAS) and "other" not in rows.done


@contextlib.contextmanager
def redirecting(to: Callable[[str], str]) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(302)
            self.send_header("Location", to(f"http://127.0.0.1:{self.connection.getsockname()[1]}"))
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    asked: list[str] = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            assert len(asked) <= 6


@pytest.mark.parametrize("to", ["ftp://127.0.0.1/x", "file:///etc/passwd", "data:,x", "{}/again"])
def test_redirects_stay_on_the_web_and_end(to: str) -> None:
    with redirecting(to.format) as url, pytest.raises(GrmpError) as error, http_get.http_errors("x"):
        http_get.open_url(url, 10.0)
    assert str(error.value).startswith("x: ")


@pytest.fixture
def neighbours(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str, str]]:
    """Addresses of a picture on a public and on a private machine, and of one that leads from there to here.

    127.0.0.2 plays the public one.
    """
    picture = encode(make_image(), "PNG")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302 if self.path == "/away" else 200)
            self.send_header("Location", f"http://127.0.0.1:{port}/a.png")
            self.send_header("Content-Type", "image/png")
            self.end_headers()
            self.wfile.write(picture if self.path != "/away" else b"")

        def log_message(self, *_: Any) -> None:
            pass

    real = http_get._is_public
    monkeypatch.setattr(http_get, "_is_public", lambda address: address == "127.0.0.2" or real(address))
    with http.server.ThreadingHTTPServer(("0.0.0.0", 0), Handler) as server:
        port = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        public, private = f"http://127.0.0.2:{port}", f"http://127.0.0.1:{port}"
        yield f"{public}/a.png", f"{private}/a.png", f"{public}/away"
        server.shutdown()


@pytest.mark.parametrize(
    ("private", "fetched"),
    [("named", (True, True, False)), ("never", (True, False, False)), ("always", (True, True, True))],
)
def test_private_addresses(
    neighbours: tuple[str, str, str], private: str, fetched: tuple[bool, bool, bool]
) -> None:
    for url, expected in zip(neighbours, fetched, strict=True):
        if expected:
            assert fetch_picture(url, FetchConfig(private=private)).startswith(b"\x89PNG")
        else:
            with pytest.raises(SourceError, match=f"{url}: cannot be fetched .*private address"):
                fetch_picture(url, FetchConfig(private=private))


def test_a_name_that_is_private_once_it_is_connected_to(
    neighbours: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the check is of the connection, not of what the name meant before."""
    public, private, _ = neighbours
    monkeypatch.setattr(http_get, "_private", lambda url: False)
    assert fetch_picture(public)
    with pytest.raises(SourceError, match="private address"):
        fetch_picture(private)


def test_private_addresses_of_score(
    tiny_bundle: Bundle, neighbours: tuple[str, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["score", str(tiny_bundle.path), neighbours[1], "--json"]
    assert CliRunner().invoke(app, command).exit_code == 0
    refused = CliRunner().invoke(app, [*command, "--private-addresses", "never"])
    assert refused.exit_code == 1 and "--private-addresses" in refused.stderr
    with pytest.raises(UsageError, match="use named, never, always"):
        FetchConfig(private="maybe")


@pytest.mark.parametrize("answer", [b"X: ", b"Content-Type: image/png\r\n\r\n"])
def test_a_server_that_sends_a_byte_now_and_then(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its header or its picture: no single read takes too long."""
    monkeypatch.setattr(within, "_GRACE_S", 0.0)
    over = threading.Event()

    def serve(door: socket.socket) -> None:
        with contextlib.suppress(OSError), door.accept()[0] as client:
            client.sendall(b"HTTP/1.1 200 OK\r\n" + answer)
            while not over.wait(0.02):
                client.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as door:
        thread = threading.Thread(target=serve, args=(door,))
        thread.start()
        url = f"http://127.0.0.1:{door.getsockname()[1]}/a.png"
        with pytest.raises(SourceError, match=f"{url}: not complete after 0 s; try again"):
            fetch_picture(url, FetchConfig(timeout_s=5.0, total_s=0.3))
        over.set()
        thread.join()
    until(lambda: not [one for one in threading.enumerate() if one.name == "bounded call"])


def test_what_is_private() -> None:
    for url in (
        "http://127.0.0.1/", "http://10.1.2.3", "http://[::1]:80/", "http://169.254.1.1/", "http://100.64.1.1/",
        "http://[::ffff:10.0.0.1]/", "http://[fd00::1]/", "http://0.0.0.0/",
    ):  # fmt: skip
        assert http_get._private(url), url
    assert not http_get._private("http://8.8.8.8/") and not http_get._private("http://[::ffff:8.8.8.8]/")


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_files_of_a_site_are_the_owner_s(tmp_path: Path) -> None:
    record: Any = {
        "event": "alert", "camera": "gate", "at": time.time(), "raised": True, "kind": "low", "frame": 1,
        "value": 0.5,
    }  # fmt: skip
    message = Message(record, np.zeros((8, 8, 3), np.uint8))
    ways: list[tuple[int, Any]] = [(0o600, {}), (0o640, {"mode": "0640"}), (0o640, {"mode": 0o640})]
    for wanted, options in ways:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        writers = [
            JsonlWriter(folder / "a.jsonl", max_bytes=10, **options),
            CsvWriter(folder / "a.csv", **options),
            SqliteWriter(folder / "a.db", **options),
            FrameWriter(folder / "frames", **options),
        ]
        for _ in range(2):  # so that the lines are rotated
            for writer in writers:
                writer.write(message)
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert {path.suffix for path in files} >= {".jsonl", ".1", ".csv", ".db", ".db-wal", ".jpg"}
        assert {mode_of(path) for path in files} == {wanted}
        for writer in writers:
            writer.close()
        with contextlib.closing(sqlite3.connect(folder / "a.db")) as base:
            assert base.execute("SELECT count(*) FROM events").fetchone() == (2,)
    for wrong in ("rw", "0777", 0, "0400"):
        with pytest.raises(UsageError, match="mode is"):
            CsvWriter(tmp_path / "x.csv", mode=wrong)


def test_a_sink_that_fails_says_so_while_it_does() -> None:
    class Broken(Writer):
        def write(self, message: Message) -> None:
            raise OSError(28, "No space left on device")

    said: list[str] = []
    sink = QueuedSink("jsonl", Broken(), tell=said.append)
    event: Any = object()
    record: Any = {"event": "score", "camera": "a"}
    for _ in range(5):
        sink.put(event, record)
    until(lambda: sink.stats().failed == 5)
    assert len(said) == 1 and "sink jsonl: 1 failed" in said[0] and "No space left" in said[0]
    sink.close()


def test_an_engine_that_others_may_change_is_not_run(tmp_path: Path) -> None:
    key = EngineKey("ab" * 32, "10.3", "gpu", "8.7", "fp16", "images", 32, Profile(), 64)
    cache = EngineCache(tmp_path)
    path = cache.store(key, b"engine", {})
    assert cache.lookup(key).engine == path and mode_of(path) == 0o600 and mode_of(cache.folder) == 0o700
    for place in (path, cache.folder):
        before = mode_of(place)
        place.chmod(0o777)
        assert cache.lookup(key).engine is None and "chmod" in cache.lookup(key).reasons[0]
        assert cache.latest(key) is None
        place.chmod(before)
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
        assert cache.lookup(key).reasons == [f"{path}: belongs to another user"]


def test_the_relay_takes_its_own_process_only() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        at = listener.getsockname()
        with socket.create_connection(at), listener.accept()[0] as ours:
            assert _own(ours)
        code = f"import socket; socket.create_connection({at!r}).recv(1)"
        other = subprocess.Popen([sys.executable, "-c", code])
        with listener.accept()[0] as theirs:
            assert not _own(theirs)
        other.wait(20)


def test_tokens_are_tried_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    token = "a long and secret token"
    guard = Guard(answer, ServeConfig(host="0.0.0.0", token=token), lambda *_: None)

    async def ask(peer: str, given: str) -> int:
        transport = httpx.ASGITransport(app=guard, client=(peer, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return (await client.get("/metrics", headers={"Authorization": given})).status_code

    import anyio

    wrong = [anyio.run(ask, "10.0.0.1", f"Bearer {number}") for number in range(8)]
    assert wrong == [401] * 6 + [429] * 2
    assert anyio.run(ask, "10.0.0.1", f"Bearer {token}") == 429
    for kind in ("Bearer", "bearer", "BEARER "):
        assert anyio.run(ask, "10.0.0.2", f"{kind} {token}") == 200
    monkeypatch.setattr("time.monotonic", lambda: 1e9)
    assert anyio.run(ask, "10.0.0.1", f"Bearer {token}") == 200


def changed(bundle: Bundle, change: Callable[[dict[str, Any]], object]) -> None:
    path = bundle.path / "bundle.json"
    data = json.loads(path.read_text())
    change(data)
    data["manifest_sha256"] = manifest_digest(data)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.update(id="x" * 3_000_000),
        lambda data: data.update(id=""),
        lambda data: data.update(schema_version=float("inf")),
        lambda data: data["preprocess"].update(resize=10**9),
        lambda data: data["preprocess"].update(crop=32.5),
        lambda data: data["graphs"].update({"y" * 1000: next(iter(data["graphs"].values()))}),
        lambda data: data.update(provenance="z" * 5_000_000),
    ],
)
def test_manifests_out_of_all_proportion(
    tiny_bundle: Bundle, change: Callable[[dict[str, Any]], object]
) -> None:
    changed(tiny_bundle, change)
    with pytest.raises(BundleError) as error:
        Bundle.load(tiny_bundle.path)
    assert len(str(error.value)) < 600 and "bundle.json" in str(error.value)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"schema_version": 1e999}', '{"schema_version": NaN}', "1"])
def test_manifests_that_are_none(tiny_bundle: Bundle, text: str) -> None:
    (tiny_bundle.path / "bundle.json").write_text(text)
    with pytest.raises(BundleError, match="damaged"):
        Bundle.load(tiny_bundle.path)


def test_a_graph_that_may_run_for_ever(tmp_path: Path) -> None:
    from onnx import TensorProto, helper, save

    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["still"])],
        "body",
        [
            helper.make_tensor_value_info("n", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("still", TensorProto.BOOL, [])],
    )
    for name, nodes in (
        ("loop", [helper.make_node("Loop", ["", "go"], [], body=body)]),
        ("plain", [helper.make_node("Identity", ["go"], ["out"])]),
    ):
        inputs = [helper.make_tensor_value_info("go", TensorProto.BOOL, [])]
        save(helper.make_model(helper.make_graph(nodes, name, inputs, [])), tmp_path / f"{name}.onnx")
    assert has_control_flow(tmp_path / "loop.onnx") and not has_control_flow(tmp_path / "plain.onnx")


def endless_bundle(folder: Path, constant: bool) -> Bundle:
    """Of a graph of a few hundred kB that multiplies for hours; of a constant, when it is loaded already."""
    from onnx import TensorProto, helper, save

    count = 150 if constant else 2000  # folding a constant is not interrupted
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("ReduceMean", ["mean"], ["one"], keepdims=0),
        helper.make_node("Expand", ["two" if constant else "one", "shape"], ["m0"]),
        *(helper.make_node("MatMul", [f"m{i}", "m0"], [f"m{i + 1}"]) for i in range(count)),
        helper.make_node("ReduceMean", [f"m{count}"], ["large"], keepdims=0),
        helper.make_node("Add", ["mean", "large"], ["sum"]),
        helper.make_node("Sigmoid", ["sum"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "endless",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 32, 32, 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch"])],
        [
            helper.make_tensor("shape", TensorProto.INT64, [2], [700, 700]),
            helper.make_tensor("two", TensorProto.FLOAT, [], [2.0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    save(model, str(folder / "endless.onnx"))
    return write_bundle(
        folder / "endless.bundle",
        {"fp32": (folder / "endless.onnx", 17)},
        backbone={"name": "endless"},
        preprocess=Preprocess(40, 32),
        normalization=NORMALIZATIONS["clip"],
        mos=None,
        parity={"images": "pictures: none"},
        provenance={},
    )


@pytest.mark.parametrize("constant", [False, True])
def test_a_graph_without_an_end_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, constant: bool
) -> None:
    monkeypatch.setattr(backends, "_FIRST_S", 0.3)
    monkeypatch.setattr(backends, "_FOR_EACH_S", 0.0)
    monkeypatch.setattr(backends, "_LOAD_S", 0.3 if constant else 60.0)
    bundle = endless_bundle(tmp_path, constant)
    said = "is not loaded after" if constant else "first run, on a batch of 1, has not ended after"
    with (
        pytest.raises(BackendError, match=f"{said} 0 s, and may never"),
        Scorer.open(bundle, threads=1) as scorer,
    ):
        scorer.score(np.zeros((48, 64, 3), np.uint8))
    # What was abandoned ends by itself: it was asked to.
    until(lambda: not [one for one in threading.enumerate() if one.name == "bounded call"], 60.0)


def test_a_first_run_that_ends_is_as_any_other(tiny_bundle: Bundle) -> None:
    image = make_image()
    with Scorer.open(tiny_bundle) as scorer:
        values = [scorer.score(image).value for _ in range(3)]
    assert values == pytest.approx([tiny_score(image)] * 3, abs=1e-6)
    with pytest.raises(BackendError, match="closed"):
        scorer.score(image)
