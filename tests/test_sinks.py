"""Sinks write what they are given, and never hold up who gives it."""

from __future__ import annotations

import base64
import contextlib
import csv
import dataclasses
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
from conftest import make_image, until
from helpers_live import free_port

from grmp_edge.errors import GrmpError, UsageError
from grmp_edge.runtime.live.alert import Alert
from grmp_edge.runtime.live.events import CameraEvent, CameraState
from grmp_edge.runtime.live.live import AlertEvent, LiveScore
from grmp_edge.runtime.sinks.make import make_sink
from grmp_edge.runtime.sinks.queue import Message, QueuedSink, Writer, close_all, to_record
from grmp_edge.score import Score


def score_event(index: int = 0, camera: str = "gate") -> LiveScore:
    score = Score(
        0.5 + index / 1000, camera, "id", 3.0, index, captured_s=time.monotonic() - 2.0, age_ms=12.5
    )
    return LiveScore(camera, score, make_image(seed=index))


def alert_event(index: int = 0, raised: bool = True) -> AlertEvent:
    event = score_event(index)
    return AlertEvent("gate", Alert("low", raised, event.score.value, 0.6, 5.0), event.score, event.image)


LOST = CameraEvent("gate", CameraState.RESTARTING, "ok", "gate: no answer", 1.5)


def put(sink: QueuedSink, *events: Any) -> None:
    for event in events:
        sink.put(event, to_record(event))


def test_records() -> None:
    record: dict[str, Any] = {**to_record(score_event(3))}
    assert abs(record.pop("at") - (time.time() - 2.0)) < 1.0  # when it was captured, not when it was written
    captured = record.pop("captured_s")
    assert abs(time.monotonic() - captured - 2.0) < 1.0
    assert record == {
        "event": "score", "camera": "gate", "value": 0.503, "mos": 3.0, "age_ms": 12.5, "frame": 3,
        "model": "id",
    }  # fmt: skip
    alert = to_record(alert_event())
    assert alert["event"] == "alert"
    assert (alert["kind"], alert["raised"], alert["limit"]) == ("low", True, 0.6)
    lost: dict[str, Any] = {**to_record(LOST)}
    assert abs(lost.pop("at") - time.time()) < 1.0
    assert lost == {"event": "camera", "camera": "gate", "state": "restarting", "picture": "ok",
                    "detail": "gate: no answer", "retry_s": 1.5}  # fmt: skip


def test_jsonl_rotates_between_lines(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "scores.jsonl"
    sink = make_sink({"kind": "jsonl", "path": str(path), "max_bytes": 2000, "keep": 3})
    put(sink, *(score_event(index) for index in range(40)))
    stats = sink.close()
    assert (stats.written, stats.failed, stats.lost) == (40, 0, 0)
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == [f"scores.jsonl{end}" for end in ("", ".1", ".2", ".3")]
    assert all(file.stat().st_size <= 2000 for file in files)
    order = [files[3], files[2], files[1], files[0]]
    frames = [json.loads(line)["frame"] for file in order for line in file.read_text().splitlines()]
    assert frames == list(range(40 - len(frames), 40))


def test_jsonl_goes_on_after_a_cut_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"event": "score"}\n{"event": "sc')
    sink = make_sink({"kind": "jsonl", "path": path})
    put(sink, score_event(1))
    sink.close()
    lines = path.read_text().splitlines()
    assert lines[:2] == ['{"event": "score"}', '{"event": "sc']
    assert json.loads(lines[2])["frame"] == 1


def test_a_full_disk_is_counted_and_told() -> None:
    sink = make_sink({"kind": "csv", "path": "/dev/full"})
    put(sink, score_event(1), score_event(2))
    stats = sink.close()
    assert (stats.written, stats.failed) == (0, 2)
    assert "No space left" in stats.error


def test_another_csv_is_not_added_to(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("image,mos\na.png,3\n")
    with pytest.raises(UsageError, match="something else"):
        make_sink({"kind": "csv", "path": path})
    assert path.read_text() == "image,mos\na.png,3\n"
    for ours in ("", "at,event,cam", "1.0,score" + "," * 15 + "\n"):  # new, cut, without its first lines
        path.write_text(ours)
        make_sink({"kind": "csv", "path": path}).close()


def test_csv_is_continued(tmp_path: Path) -> None:
    for index in (1, 2):
        sink = make_sink({"kind": "csv", "path": tmp_path / "a.csv"})
        put(sink, score_event(index, 'a "quoted", name'), LOST)
        assert sink.close().written == 2
    with (tmp_path / "a.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["event"], row["frame"], row["state"]) for row in rows] == [
        ("score", "1", ""), ("camera", "", "restarting"), ("score", "2", ""), ("camera", "", "restarting"),
    ]  # fmt: skip
    assert rows[0]["camera"] == 'a "quoted", name'


def test_sqlite(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    sink = make_sink({"kind": "sqlite", "path": path, "keep_days": 1})
    put(sink, *(score_event(index) for index in range(5)))

    def seen() -> int:
        with sqlite3.connect(path) as base:
            return int(base.execute("SELECT count(*) FROM events").fetchone()[0])

    until(lambda: seen() == 5)  # while it is open, without another event to push it
    old = to_record(score_event(9)) | {"at": time.time() - 2 * 86400}
    sink.put(score_event(9), old)
    sink.close()
    assert seen() == 6
    sink = make_sink({"kind": "sqlite", "path": path, "keep_days": 1})
    put(sink, alert_event(10))
    sink.close()
    with sqlite3.connect(path) as base:
        rows = base.execute("SELECT frame, event, value, raised FROM events ORDER BY frame").fetchall()
    assert [row[0] for row in rows] == [0, 1, 2, 3, 4, 10]  # the one of two days ago is gone
    assert rows[-1] == (10, "alert", 0.51, 1)


def test_saved_frames(tmp_path: Path) -> None:
    sink = make_sink({"kind": "frames", "path": tmp_path / "f", "keep": 3})
    put(sink, score_event(1), alert_event(1, raised=False), LOST)
    put(sink, *(alert_event(index) for index in range(2, 7)))
    assert sink.close().written == 5
    files = sorted((tmp_path / "f").iterdir())
    assert len(files) == 3
    assert all(file.suffix == ".jpg" and "gate" in file.name for file in files)
    found = cv2.imread(str(files[-1]))
    assert found is not None
    assert np.abs(found.astype(int) - make_image(seed=6)).mean() < 6  # stored as BGR, as it was given


class Stuck(Writer):
    """A writer that is stuck until released."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.seen: list[int | None] = []

    def write(self, message: Message) -> None:
        self.go.wait()
        assert message.record["event"] == "score"
        if message.record["frame"] == 3:
            raise GrmpError("no: rtsp://u:SECRET@cam/")
        self.seen.append(message.record["frame"])
        assert message.image is None


def test_a_stuck_sink_never_blocks_and_loss_is_counted() -> None:
    writer = Stuck()
    sink = QueuedSink("stuck", writer, room=10)
    put(sink, score_event(0))
    until(lambda: sink._queue.empty())
    put(sink, *(score_event(index) for index in range(1, 101)))  # returns, though nothing is written
    assert sink.stats().lost == 90
    writer.go.set()
    stats = sink.close()
    assert writer.seen == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]
    assert (stats.written, stats.failed, stats.lost) == (10, 1, 90)
    assert stats.error == "no: rtsp://cam/"


def test_what_is_left_at_the_end_is_lost() -> None:
    writer = Stuck()
    sink = QueuedSink("stuck", writer)
    put(sink, *(score_event(index) for index in range(5)))
    stats = sink.close(timeout_s=0.2)
    assert (stats.written, stats.lost) == (0, 5)
    writer.go.set()


class Hook(BaseHTTPRequestHandler):
    answers: ClassVar[list[int]] = []
    got: ClassVar[list[tuple[dict[str, str], Any]]] = []

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        data = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Hook.got.append((dict(self.headers), data))
        self.send_response(Hook.answers.pop(0) if Hook.answers else 200)
        self.end_headers()


def test_webhook_tries_again_what_may_pass() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Hook.answers, Hook.got = [503, 200, 400, 200], []
    url = f"http://me:SECRET@127.0.0.1:{server.server_port}/hook"
    sink = make_sink({"kind": "webhook", "url": url, "events": ["alert", "camera"]})
    put(sink, score_event(1), alert_event(2), alert_event(3), LOST)
    until(lambda: len(Hook.got) == 4)
    stats = sink.close()
    server.shutdown()
    server.server_close()
    assert [data.get("frame") for _, data in Hook.got] == [2, 2, 3, None]
    keys = [headers["Idempotency-Key"] for headers, _ in Hook.got]
    assert keys[0] == keys[1] and len(set(keys)) == 3
    assert Hook.got[0][0]["Authorization"] == "Basic bWU6U0VDUkVU"
    assert (stats.written, stats.failed) == (2, 1)
    assert "says 400" in stats.error and "SECRET" not in stats.error


def test_a_dead_webhook_is_told() -> None:
    sink = make_sink({"kind": "webhook", "url": f"http://127.0.0.1:{free_port()}/", "attempts": 1})
    put(sink, alert_event(1))
    stats = sink.close()
    assert (stats.written, stats.failed) == (0, 1)
    assert "refused" in stats.error


def test_a_dead_webhook_with_a_backlog_closes_in_time() -> None:
    """The pause before the fourth attempt alone is longer than what closing may take here."""
    sink = make_sink({"kind": "webhook", "url": f"http://127.0.0.1:{free_port()}/"})
    put(sink, *(alert_event(index) for index in range(200)))
    until(lambda: sink._queue.qsize() == 199)
    start = time.monotonic()
    stats = sink.close(timeout_s=30.0)
    assert time.monotonic() - start < 15.0  # of 30 allowed; without a cut, 7 s for each
    assert (stats.written, stats.failed, stats.lost) == (0, 200, 0)
    assert not sink._thread.is_alive()


def test_a_webhook_that_hangs_does_not_hold_up_the_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        sinks = [make_sink({"kind": "webhook", "url": url, "timeout_s": 60.0}) for _ in range(3)]
        for sink in sinks:
            put(sink, alert_event(1), alert_event(2))
            until(lambda sink=sink: sink._busy)  # type: ignore[misc]
        start = time.monotonic()
        told = close_all(sinks, timeout_s=0.5)
        assert time.monotonic() - start < 10.0  # all three together; the answer would take 60 s
        assert [(stats.written, stats.failed, stats.lost) for stats in told] == [(0, 0, 2)] * 3
        assert sinks[0].close() == told[0]  # asked again, nothing is counted twice


def test_a_webhook_follows_no_redirect() -> None:
    """urllib would repeat it as a GET, token and all, wherever the server points."""
    seen: list[str] = []

    class Redirect(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(302)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def do_GET(self) -> None:
            seen.append(self.headers["Authorization"])
            self.send_response(200)
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Redirect)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/"
    sink = make_sink({"kind": "webhook", "url": url, "token": "SECRET", "attempts": 1})
    put(sink, alert_event(1))
    stats = sink.close()
    server.shutdown()
    server.server_close()
    assert seen == []
    assert (stats.written, stats.failed) == (0, 1)
    assert "says 302" in stats.error


# Stands for a disk: files of this process may grow to 20 KB, then to as much as they like.
FULL = """
import json, resource, signal, sys
from grmp_edge.runtime.sinks.make import make_sink
from grmp_edge.runtime.sinks.queue import QueuedSink
from grmp_edge.runtime.sinks.lines import LineWriter
from test_sinks import put, score_event
from conftest import until
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
kind, path = sys.argv[1:]
if kind == "stdout":
    stream = open(path, "ab", buffering=0)
    sink = QueuedSink(kind, LineWriter(json.dumps, sys.exit, stream.fileno()), 10_000)
else:
    sink = make_sink({"kind": kind, "path": path, "room": 10_000})
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
def settled():  # nothing waits: neither in the queue nor, in a database, for its commit
    stats = sink.stats()
    return stats.written + stats.failed == count and not getattr(sink._writer, "_pending", 0)
count = 0
for index in range(600):  # more than 20 KB of each kind
    count += 1
    put(sink, score_event(index))
until(settled)
full = sink.stats()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
for index in range(1000, 1020):
    count += 1
    put(sink, score_event(index))
until(settled)
sink.close()
last = sink.stats()
print(json.dumps([full.written, full.failed, last.written, last.failed, last.lost]))
"""


def _frames_in(kind: str, path: Path) -> list[int]:
    """The frame numbers that a sink has stored; fails on anything that is not whole."""
    if kind == "jsonl":
        return [json.loads(line)["frame"] for line in path.read_text().splitlines()]
    if kind == "csv":
        with path.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert all(row["event"] == "score" and row["model"] == "id" for row in rows)
        return [int(row["frame"]) for row in rows]
    with contextlib.closing(sqlite3.connect(path)) as base:
        assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return [row[0] for row in base.execute("SELECT frame FROM events ORDER BY rowid")]


def _fill(kind: str, path: Path) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", FULL, kind, path], capture_output=True, text=True, timeout=100,
        cwd=Path(__file__).parent, check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    return [int(number) for number in json.loads(done.stdout)]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "sqlite"])
def test_a_disk_that_fills_up_and_has_room_again(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    full_written, full_failed, written, failed, lost = _fill(kind, path)
    assert full_failed > 0 and full_written + full_failed == 600
    assert (written - full_written, failed, lost) == (20, full_failed, 0)  # every one after there was room
    frames = _frames_in(kind, path)
    assert len(frames) == written  # what is counted as written is there, and nothing else
    assert frames[-20:] == list(range(1000, 1020))
    assert frames == sorted(set(frames))


def test_stdout_on_a_disk_that_fills_up(tmp_path: Path) -> None:
    """`watch --json > file`: what is there cannot be taken back, but the next line begins on its own."""
    path = tmp_path / "out"
    full_written, _, written, _, _ = _fill("stdout", path)
    assert written - full_written == 20
    lines = path.read_text().splitlines()
    assert [json.loads(line)["frame"] for line in lines[-20:]] == list(range(1000, 1020))
    assert len(lines) == written + 1  # the one that was cut


def test_files_that_are_moved_away_are_begun_anew(tmp_path: Path) -> None:
    """As logrotate does, and who empties a folder by hand."""
    for kind, header in (("jsonl", 0), ("csv", 1)):
        path = tmp_path / kind / "a"
        sink = make_sink({"kind": kind, "path": path})
        put(sink, score_event(1))
        until(lambda sink=sink: sink.stats().written == 1)  # type: ignore[misc]
        path.rename(path.with_name("old"))
        put(sink, score_event(2))
        until(lambda sink=sink: sink.stats().written == 2)  # type: ignore[misc]
        shutil.rmtree(path.parent)
        put(sink, score_event(3))
        stats = sink.close()
        assert (stats.written, stats.failed) == (3, 0)
        assert len(path.read_text().splitlines()) == header + 1
        assert '"frame": 3' in path.read_text() or ",3,id," in path.read_text()


def test_saved_frames_when_the_clock_has_been_set_back(tmp_path: Path) -> None:
    for index in range(3):  # of a run whose clock was ahead
        (tmp_path / f"alert-20990101T00000{index}-1-gate-low.jpg").write_bytes(b"old")
    sink = make_sink({"kind": "frames", "path": tmp_path, "keep": 3})
    put(sink, alert_event(1), alert_event(2))
    sink.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 3
    assert sum("2099" in name for name in names) == 1  # the new ones stay, the oldest go


def test_frames_of_two_cameras_of_nearly_one_name_are_two(tmp_path: Path) -> None:
    sink = make_sink({"kind": "frames", "path": tmp_path})
    for name in ("gate 1", "gate.1"):
        event = dataclasses.replace(alert_event(1), camera=name)
        sink.put(event, to_record(event) | {"at": 1e9})
    assert sink.close().written == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_ages_do_not_follow_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    true = time.time
    event = score_event(1)
    for step in (-86400.0, 0.0, 86400.0 * 365):
        monkeypatch.setattr(time, "time", lambda step=step: true() + step)
        record = to_record(event)
        assert record["event"] == "score" and record["age_ms"] == 12.5
        assert abs(record["at"] - (true() + step - 2.0)) < 2.0  # by the clock as it is set now


def test_wrong_settings(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for wrong in (
        {"kind": "smoke"}, {}, {"kind": "jsonl"}, {"kind": "jsonl", "path": "x", "colour": "red"},
        {"kind": "csv", "path": tmp_path / "file" / "a.csv"}, {"kind": "jsonl", "path": tmp_path},
        {"kind": "jsonl", "path": tmp_path / "a", "room": "many"},
        {"kind": "webhook", "url": "ftp://x"}, {"kind": "webhook", "url": "http://x", "events": ["all"]},
        {"kind": "mqtt", "url": "http://x"}, {"kind": "mqtt", "url": "mqtt://x", "discovery": "home/#"},
    ):  # fmt: skip
        with pytest.raises(UsageError):
            make_sink(wrong)
    (tmp_path / "no.db").write_text("no database " * 100)
    with pytest.raises(GrmpError, match=r"no\.db: not usable as a database"):
        make_sink({"kind": "sqlite", "path": tmp_path / "no.db"})


@pytest.mark.filterwarnings("ignore:'(imghdr|cgi|telnetlib)' is deprecated:DeprecationWarning")
def test_alerts_go_to_people_through_apprise() -> None:
    pytest.importorskip("apprise")
    Hook.answers, Hook.got = [200] * 9, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"json://me:SECRET@127.0.0.1:{server.server_port}/"
        sink = make_sink({"kind": "apprise", "url": url, "least": "warning"})
        trend = Alert("trend", True, detail="at this rate unusable on 12 March 2027")
        put(sink, score_event(1), LOST, alert_event(1), AlertEvent("gate", trend, None, None))
        put(sink, alert_event(2, raised=False))
        stats = sink.close()
        assert (stats.written, stats.failed) == (2, 0)
        raised, cleared = (body for _, body in Hook.got)
        assert (raised["title"], raised["type"]) == ("gate: low", "warning")
        assert "score 0.50, limit 0.60" in raised["message"]
        picture = base64.b64decode(raised["attachments"][0]["base64"])
        found = cv2.imdecode(np.frombuffer(picture, np.uint8), 1)
        assert found is not None and np.abs(found.astype(int) - make_image(seed=1)).mean() < 8
        assert (cleared["title"], cleared["type"], cleared["attachments"]) == (
            "gate: low is over",
            "success",
            [],
        )
    finally:
        server.shutdown()
        server.server_close()
    gone = make_sink({"kind": "apprise", "url": url})
    put(gone, alert_event(1))
    stats = gone.close()
    assert stats.failed == 1 and "SECRET" not in stats.error
    with pytest.raises(UsageError, match="nonsense: not an address"):
        make_sink({"kind": "apprise", "url": "nonsense://me:SECRET@x"})
    with pytest.raises(UsageError, match="least"):
        make_sink({"kind": "apprise", "url": url, "least": "loud"})
