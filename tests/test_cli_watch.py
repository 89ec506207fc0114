"""``grmp-edge watch`` as a shell sees it, and the streams.toml it reads."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import Shell, encode, make_image, until
from helpers_live import free_port, http_cameras

from grmp_edge.bundle import Bundle
from grmp_edge.errors import UsageError
from grmp_edge.runtime.live.config import read_streams

COMMAND = [sys.executable, "-m", "grmp_edge", "watch"]


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """12 textured frames at 40 a second, the second half dark."""
    path = tmp_path / "v.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 40.0, (64, 48))
    for seed in range(12):
        writer.write(make_image(seed=seed) // (1 if seed < 6 else 4))
    writer.release()
    return path


def run(*arguments: str | Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert done.returncode == expect, done.stderr
    return done


def test_a_file_to_its_end_with_every_sink(tiny_bundle: Bundle, video: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(
        tiny_bundle.path, video, "--json", "--no-loop", "--policy", "every", "--below", "0.4", "--for", "0",
        "--jsonl", out / "a.jsonl", "--csv", out / "a.csv", "--sqlite", out / "a.db",
        "--save-frames", out / "f",
    )  # fmt: skip
    assert done.stderr == ""
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["frame"] for record in records if record["event"] == "score"] == list(range(12))
    alerts = [record for record in records if record["event"] == "alert"]
    values = [record["value"] for record in records if record["event"] == "score"]
    assert alerts[0]["raised"] and alerts[0]["frame"] == next(i for i, v in enumerate(values) if v < 0.4)
    states = [record["state"] for record in records if record["event"] == "camera"]
    assert states == ["running", "stopped"]
    assert (out / "a.jsonl").read_text() == done.stdout
    assert len((out / "a.csv").read_text().splitlines()) == 1 + len(records)
    raised = sum(record["raised"] for record in alerts)
    assert len(list((out / "f").iterdir())) == raised > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_it_cleanly(
    tiny_bundle: Bundle, video: Path, number: signal.Signals, tmp_path: Path
) -> None:
    dead = f"rtsp://me:SECRET@127.0.0.1:{free_port()}/x"
    command = [
        *COMMAND,
        str(tiny_bundle.path),
        str(video),
        dead,
        "--json",
        "--jsonl",
        str(tmp_path / "a.jsonl"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    seen = ""
    while seen.count('"score"') < 3 or '"restarting"' not in seen:
        line = process.stdout.readline()
        assert line, process.communicate()
        seen += line
    process.send_signal(number)
    rest, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    warned, memory = errors.splitlines()
    address = dead.replace("me:SECRET@", "")
    assert warned.startswith(f"warning: {address}: other users of this machine see its password")
    assert memory.startswith("memory: 0 of 2 cameras known, in ")
    assert "SECRET" not in seen + rest + errors
    assert seen + rest == (tmp_path / "a.jsonl").read_text()
    assert all(json.loads(line)["event"] for line in (seen + rest).splitlines())


def test_readers_of_stdout(tiny_bundle: Bundle, tmp_path: Path) -> None:
    path, fast = tmp_path / "a.jsonl", tmp_path / "fast.avi"
    writer = cv2.VideoWriter(str(fast), cv2.VideoWriter.fourcc(*"MJPG"), 300.0, (64, 48))
    for seed in range(12):
        writer.write(make_image(seed=seed))
    writer.release()
    command = [*COMMAND, str(tiny_bundle.path), str(fast), "--json", "--jsonl", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    # A reader that stops reading holds up nothing: a pipe takes 64 KB, and the file grows past that.
    # One that goes ends it.
    until(lambda: process.poll() is not None or (path.exists() and path.stat().st_size > 100_000), 120)
    assert process.poll() is None, process.stderr.read()
    process.stdout.close()
    assert process.wait(30) == 141
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()


def test_plain_lines(tiny_bundle: Bundle, video: Path) -> None:
    done = run(tiny_bundle.path, video, "--no-loop", "--below", "0.4", "--for", "0")
    lines = done.stdout.splitlines()
    assert re.fullmatch(rf"\d\d:\d\d:\d\d  running  file:{re.escape(str(video))}", lines[0])
    assert any(re.search(r"  0\.\d{4}  age +[\d.]+ ms  file:", line) for line in lines)
    assert any("  ALERT  score 0." in line for line in lines)
    assert "\x1b" not in done.stdout


def test_a_table_on_a_terminal(tiny_bundle: Bundle, video: Path) -> None:
    dead = f"http://me:SECRET@127.0.0.1:{free_port()}/x"
    pid, handle = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm-256color", COLUMNS="200", LINES="50")
        os.execv(COMMAND[0], [*COMMAND, str(tiny_bundle.path), str(video), dead])
    output, asked = b"", False
    while True:
        try:
            ready, _, _ = select.select([handle], [], [], 60)
            chunk = os.read(handle, 65536) if ready else b""
        except OSError:  # Linux: the other side is closed
            chunk = b""
        if not chunk:
            break
        output += chunk
        if not asked and b"running" in output and b"restarting" in output and "▁".encode()[:2] in output:
            os.write(handle, b"\x03")
            asked = True
    _, status = os.waitpid(pid, 0)
    text = output.decode(errors="replace")  # the terminal's echo of Ctrl-C may fall into a character
    assert os.waitstatus_to_exitcode(status) == 0, text
    assert "SECRET" not in text
    for word in ("score", "trend", "age", "dropped", f"file:{video}"):
        assert word in text
    assert "\x1b[?25h" in text  # the cursor is back


def test_nothing_to_watch(tiny_bundle: Bundle, tmp_path: Path, shell: Shell) -> None:
    picture = tmp_path / "photo.jpg"
    picture.write_bytes(encode(make_image(), "JPEG"))
    model = f"watching with {tiny_bundle.path} (model {tiny_bundle.id})"
    for arguments, words, status in (
        ([], "nothing to watch", 2),
        (["photo.jpg"], "photo.jpg: not a camera", 1),
        ([picture], "a picture, not a camera; score it with: grmp-edge score ", 1),
        ([f"file:{picture}"], "a picture, not a camera; score it with: grmp-edge score ", 1),
        ([tmp_path], "grmp-edge score --follow ", 1),
        (["0", "--policy", "newest"], "unknown policy 'newest'", 2),
        (["0", "--below", "40"], "between 0 and 1", 2),
        (["file:/nowhere.mp4"], "no such file", 1),
        (["0", "--mqtt", "localhost"], "not an MQTT address", 2),
        (["--streams", tmp_path / "no.toml"], "cannot be read", 2),
    ):
        done = shell("watch", tiny_bundle.path, *arguments)
        assert done.returncode == status
        (line,) = (line for line in done.stderr.splitlines() if line != model)
        assert line.startswith("error: ") and words in line


STREAMS = """
[defaults]
max_fps = 5
alert = { below = 0.4, for_s = 2 }
[[camera]]
name = "gate"
source = "rtsp://viewer:${GATE_PASSWORD}@10.0.0.5/live"
max_fps = 2.5
alert = { drop = 0.15 }
[[camera]]
source = 0
[live]
batch = 4
[[sink]]
kind = "jsonl"
path = "a.jsonl"
"""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    """With the byte order marks of Windows' editors, too."""
    path = tmp_path / "streams.toml"
    path.write_text(STREAMS, encoding=encoding)
    with pytest.raises(UsageError, match=r"\$\{GATE_PASSWORD\} is not set"):
        read_streams(path)
    monkeypatch.setenv("GATE_PASSWORD", "SECRET")
    plan = read_streams(path)
    gate, device = plan.cameras
    assert gate.source == "rtsp://viewer:SECRET@10.0.0.5/live"
    assert (gate.label, gate.max_fps, gate.alert.below, gate.alert.drop) == ("gate", 2.5, 0.4, 0.15)
    assert (device.source, device.label, device.max_fps) == ("0", "0", 5)
    assert (device.alert.drop, device.alert.for_s) == (None, 2)
    assert plan.live.batch == 4
    assert plan.sinks == ({"kind": "jsonl", "path": "a.jsonl"},)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[camera]]\nsource = '0'\nfps = 3", "camera 1: unknown setting 'fps'"),
        ("[[camera]]\nname = 'a'", "camera 1: it has no source"),
        ("[[camera]]\nsource = '0'\nmax_fps = 'five'", "max_fps is not a float"),
        ("[[camera]]\nsource = '0'\nqueue = true", "queue is not a int"),
        ("[[camera]]\nsource = '0'\nalert = 3", "alert is not a table"),
        ("[[camera]]\nsource = '0'\nmax_fps = -1", "use a positive number"),
        ("[camera]\nsource = '0'", r"write \[\[camera\]\]"),
        ("[cameras]", "unknown section 'cameras'"),
        ("", "no camera"),
        ("[[camera", "not valid TOML"),
        ("[defaults]\nname = 'a'\n[[camera]]\nsource = '0'", "cannot name a camera"),
        ("[[camera]]\nsource = '0'\n[live]\nbatch = 0", "a batch of 0"),
    ],
)
def test_wrong_streams(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "streams.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=words) as caught:
        read_streams(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_streams_on_the_command_line(tiny_bundle: Bundle, tmp_path: Path, video: Path) -> None:
    with http_cameras() as base:
        (tmp_path / "streams.toml").write_text(
            f"[[camera]]\nname = 'web'\nsource = '{base}/mjpeg'\nmax_fps = 10\n"
            f"[[camera]]\nname = 'file'\nsource = 'file:{video}'\n"
            f"[[sink]]\nkind = 'jsonl'\npath = '{tmp_path / 'a.jsonl'}'\n"
        )
        process = subprocess.Popen(
            [*COMMAND, str(tiny_bundle.path), "--streams", str(tmp_path / "streams.toml"), "--json"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        seen: set[tuple[str, str]] = set()
        while not {("score", "web"), ("score", "file")} <= seen:
            record = json.loads(process.stdout.readline())
            seen.add((record["event"], record["camera"]))
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode == 0
    assert np.all([json.loads(line)["at"] > 1e9 for line in (tmp_path / "a.jsonl").read_text().splitlines()])
