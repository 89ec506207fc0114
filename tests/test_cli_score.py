"""``grmp-edge score`` and ``doctor`` as a shell sees them."""

from __future__ import annotations

import csv
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Shell, encode, make_image, tiny_score, write_tiny_bundle
from typer.testing import CliRunner, Result

from grmp_edge import __version__
from grmp_edge.bundle import Bundle
from grmp_edge.cli import app

COMMAND = [sys.executable, "-m", "grmp_edge"]


def call(*arguments: str | Path) -> Result:
    before_click_8_2: dict[str, Any] = {"mix_stderr": False}  # since then they are apart in any case
    try:
        runner = CliRunner(**before_click_8_2)
    except TypeError:
        runner = CliRunner()
    return runner.invoke(app, [str(argument) for argument in arguments])


def lines(text: str) -> list[str]:
    return text.splitlines()


def test_a_table_for_pipes(tiny_bundle: Bundle, photos: Path) -> None:
    result = call("score", tiny_bundle.path, photos)
    assert result.exit_code == 0
    header, *rows = lines(result.stdout)
    assert header.split() == ["score", "mos", "frame", "time", "source"]
    assert len(rows) == 3
    for row, seed in zip(rows, (1, 2, 10), strict=True):
        value, mos, frame, at, source = row.split(maxsplit=4)
        expected = tiny_score(make_image(seed=seed))
        assert float(value) == pytest.approx(expected, abs=6e-5)
        assert float(mos) == pytest.approx(1 + 4 * expected, abs=6e-3)
        assert (frame, at, source) == ("-", "-", str(photos / f"{seed}.png"))
    assert "\x1b" not in result.output
    done, following = lines(result.stderr)
    assert done == f"3 scored with {tiny_bundle.path} (model {tiny_bundle.id})"
    assert following.startswith("next: grmp-edge score ")
    assert call("score", "-q", tiny_bundle.path, photos).stderr == ""


def test_json_lines_and_nothing_else_on_stdout(tiny_bundle: Bundle, photos: Path, clip: Path) -> None:
    (photos / "11.png").touch()
    result = call("score", tiny_bundle.path, photos, clip, "--json", "--every", "5", "--batch", "2")
    assert result.exit_code == 1
    rows = [json.loads(line) for line in lines(result.stdout)]
    assert [(Path(row["source"]).name, row.get("frame")) for row in rows] == [
        ("1.png", None), ("2.png", None), ("10.png", None),
        ("clip.mp4", 0), ("clip.mp4", 5), ("clip.mp4", 10),
    ]  # fmt: skip
    assert rows[0]["value"] == pytest.approx(tiny_score(make_image(seed=1)), abs=1e-6)
    assert rows[0]["model"] == tiny_bundle.id
    errors = [line for line in lines(result.stderr) if line.startswith("error: ")]
    assert len(errors) == 2
    assert "11.png: the file is empty" in errors[0]
    assert errors[1] == "error: 1 of 7 could not be scored"


def test_a_video_is_summed_up(tiny_bundle: Bundle, clip: Path) -> None:
    rows = [json.loads(line) for line in lines(call("score", tiny_bundle.path, clip, "--json").stdout)]
    values = [row["value"] for row in rows]
    assert values == sorted(values, reverse=True)
    result = call("score", tiny_bundle.path, clip)
    assert result.exit_code == 0
    assert len(lines(result.stdout)) == 1 + 12 + 1
    found = re.fullmatch(
        r".*clip\.mp4: 12 frames, mean ([\d.]+), median ([\d.]+), min ([\d.]+), max ([\d.]+), "
        r"worst frame 11 at 1\.10 s",
        lines(result.stdout)[-1],
    )
    assert found is not None
    expected = [sum(values) / 12, (values[5] + values[6]) / 2, values[11], values[0]]
    assert [float(group) for group in found.groups()] == pytest.approx(expected, abs=6e-5)


def test_csv(tiny_bundle: Bundle, photos: Path, clip: Path, tmp_path: Path) -> None:
    odd = photos / 'a "comma", here.png'
    odd.write_bytes(encode(make_image(seed=3), "PNG"))
    target = tmp_path / "out" / "scores.csv"
    result = call("score", tiny_bundle.path, odd, clip, "--csv", target, "--fps", "2")
    assert result.exit_code == 0
    with target.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["source"] for row in rows] == [str(odd), *[str(clip)] * 3]
    assert [row["frame"] for row in rows] == ["", "0", "5", "10"]
    assert float(rows[0]["value"]) == pytest.approx(tiny_score(make_image(seed=3)), abs=1e-5)
    assert {row["model"] for row in rows} == {tiny_bundle.id}
    assert list(target.parent.iterdir()) == [target]


def test_csv_that_cannot_be_written(tiny_bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for target in (tmp_path, tmp_path / "file" / "scores.csv"):
        result = call("score", tiny_bundle.path, photos, "--csv", target)
        assert result.exit_code == 2
        assert len(lines(result.stderr)) == 1
        assert result.stderr.startswith(f"error: {target}")


BAD = {
    "truncated.jpg": (encode(make_image(240, 320), "JPEG")[:4000], "cut short"),
    "zero.jpg": (b"", "empty"),
    "text.png": (b"a text file\n" * 20, "not a picture"),
    "missing.png": (None, "no such file"),
    "*.jpg": (None, "matches no picture"),
    "text.mp4": (b"a text file\n" * 20, "not a video"),
    "cut.mp4": (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2mp41\0\0\0\x08free\0\0\0\x40mdat", "not a video"),
}


@pytest.mark.parametrize("name", BAD)
def test_one_bad_source_is_one_line(tiny_bundle: Bundle, tmp_path: Path, name: str, shell: Shell) -> None:
    """With no library's line on the real stderr beside it."""
    data, words = BAD[name]
    path = tmp_path / "in" / name
    path.parent.mkdir()
    if data is not None:
        path.write_bytes(data)
    run = shell("score", tiny_bundle.path, path)
    assert run.returncode == 1
    assert run.stdout == ""
    (line,) = lines(run.stderr)
    assert line.startswith(f"error: {path}: ")
    assert words in line


def test_an_empty_folder(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = call("score", tiny_bundle.path, tmp_path / "empty")
    assert result.exit_code == 1
    assert lines(result.stderr) == [
        f"error: {tmp_path / 'empty'}: no picture or video in this folder; check the path"
    ]


def test_a_corrupted_bundle(tiny_bundle: Bundle, photos: Path) -> None:
    for name in ("model.onnx", "bundle.json"):
        file = tiny_bundle.path / name
        good = file.read_bytes()
        file.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
        result = call("score", tiny_bundle.path, photos)
        assert result.exit_code == 1
        assert result.stdout == ""
        (line,) = lines(result.stderr)
        assert line.startswith(f"error: {file}: damaged")
        file.write_bytes(good)
    result = call("score", "bundles/missing", photos)
    assert "bundles/missing: no such bundle" in result.stderr
    assert (result.exit_code, len(lines(result.stderr))) == (1, 1)


def test_wrong_options(tiny_bundle: Bundle, photos: Path) -> None:
    for wrong in (["--batch", "0"], ["--provider", "gpu"], ["--precision", "fp4"], ["--every", "x"]):
        result = call("score", tiny_bundle.path, photos, *wrong)
        assert result.exit_code == 2
        assert wrong[0] in result.stderr
    result = call("score", tiny_bundle.path, photos, "--fps", "-1")
    assert (result.exit_code, len(lines(result.stderr))) == (2, 1)
    assert call("score", tiny_bundle.path, photos, "--precision", "int8").exit_code == 1
    result = call("score", tiny_bundle.path)
    assert result.exit_code == 2
    assert lines(result.stderr) == [
        "error: nothing to score; name pictures, videos or folders after the bundle"
    ]


def test_a_name_cannot_speak_to_the_terminal(tiny_bundle: Bundle, photos: Path) -> None:
    evil = photos / "\x1b[2J\n[red].png"
    evil.write_bytes(encode(make_image(), "PNG"))
    broken = Path(os.fsdecode(os.fsencode(photos) + b"/\xff\x1b[1m.png"))
    broken.write_bytes(b"")
    result = call("score", tiny_bundle.path, evil, broken)
    assert "\x1b" not in result.output
    assert len(lines(result.stdout)) == 2
    assert r"\x1b[2J\n[red].png" in result.stdout
    run = subprocess.run(
        [*COMMAND, "score", tiny_bundle.path, "--json", evil, broken], capture_output=True, text=True
    )
    assert json.loads(run.stdout)["source"] == str(evil)
    assert run.returncode == 1
    assert "Traceback" not in run.stderr


def in_terminal(arguments: list[str | Path], interrupt_at: str = "") -> tuple[int, str]:
    """Run a command on a terminal of its own; send Ctrl-C once its output holds ``interrupt_at``."""
    pid, handle = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm-256color", COLUMNS="200")
        os.environ.pop("NO_COLOR", None)
        os.execv(COMMAND[0], [*COMMAND, *map(str, arguments)])
    output = b""
    while True:
        try:
            ready, _, _ = select.select([handle], [], [], 60)
            if not ready:  # it hangs: end it, so that the test fails instead of hanging too
                os.kill(pid, signal.SIGKILL)
            chunk = os.read(handle, 65536) if ready else b""
        except OSError:  # Linux: the other side is closed
            chunk = b""
        if not chunk:
            break
        output += chunk
        if interrupt_at and interrupt_at.encode() in output:
            os.write(handle, b"\x03")
            interrupt_at = ""
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), output.decode()


def test_a_table_on_a_terminal(tiny_bundle: Bundle, photos: Path) -> None:
    (photos / "3.png").touch()
    status, output = in_terminal(["score", tiny_bundle.path, photos])
    assert status == 1
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", output)
    assert "\x1b[" in output
    for seed in (1, 2, 10):
        row = next(line for line in lines(plain) if line.startswith("│") and f"{seed}.png" in line)
        assert f" {tiny_score(make_image(seed=seed)):.4f} " in row
    assert "frame" not in next(line for line in lines(plain) if "source" in line)  # no column without use
    assert "error: 1 of 4 could not be scored" in plain


def test_ctrl_c_keeps_what_was_scored(tiny_bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    target, hang = tmp_path / "scores.csv", tmp_path / "hang.png"
    target.write_text("old\n")
    os.mkfifo(hang)  # reading it waits for ever
    arguments: list[str | Path] = ["score", "--batch", "1", tiny_bundle.path, photos, hang, "--csv", target]
    status, output = in_terminal([*arguments, "--json"], interrupt_at="10.png")
    assert status == 130
    assert "error: interrupted" in output
    assert "Traceback" not in output
    assert target.read_text() == "old\n"
    with (tmp_path / "scores.partial.csv").open(newline="") as stream:
        kept = [Path(row["source"]).name for row in csv.DictReader(stream)]
    assert kept == ["1.png", "2.png", "10.png"]
    assert not list(tmp_path.glob(".*"))

    (tmp_path / "scores.partial.csv").unlink()
    run = subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    shown = [run.stdout.readline() for _ in range(4)]
    with hang.open("wb"):  # opens once the command reads it, and closes after the command has ended
        run.send_signal(signal.SIGINT)
        rest, errors = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "10.png" in shown[3]
    assert rest == ""
    assert lines(errors)[-1] == "error: interrupted"
    assert f"3 scores kept in {tmp_path / 'scores.partial.csv'}" in errors


def test_a_closed_pipe_is_quiet(tiny_bundle: Bundle, photos: Path) -> None:
    sources = [str(photos)] * 300
    run = subprocess.Popen(
        [*COMMAND, "score", str(tiny_bundle.path), *sources], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert run.stdout is not None
    assert run.stdout.readline()
    run.stdout.close()
    assert run.stderr is not None
    with run.stderr:
        assert run.stderr.read() == b""
    assert run.wait(60) == 141


def test_an_unexpected_error_is_one_line_and_debug_shows_it_all(
    tiny_bundle: Bundle, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from grmp_edge.runtime import Scorer

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr(Scorer, "open", broken)
    result = call("score", tiny_bundle.path, photos)
    assert result.exit_code == 1
    (line,) = lines(result.stderr)
    assert line.startswith("error: unexpected ZeroDivisionError: two lines; ")
    assert "--debug" in line
    result = call("--debug", "score", tiny_bundle.path, photos)
    assert isinstance(result.exception, ZeroDivisionError)


def test_version_and_help() -> None:
    assert call("--version").stdout == f"grmp-edge {__version__}\n"
    text = call("--help").stdout
    for command in ("score", "doctor"):
        assert re.search(rf"^ +{command} ", text, re.MULTILINE)
    assert "--provider" in call("score", "--help").stdout
    result = call("scroe")
    assert result.exit_code == 2
    assert "scroe" in result.stderr


def test_doctor(tmp_path: Path) -> None:
    import onnxruntime

    result = call("doctor", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    parts = {part["name"]: part for part in found["parts"]}
    assert found["can_score"] is True
    assert parts["provider cpu"]["status"] == "ok"
    assert onnxruntime.__version__ in parts["onnxruntime"]["detail"]
    assert parts["pyav"]["status"] == "ok" and "with FFmpeg" in parts["pyav"]["detail"]
    plain = call("doctor").stdout
    assert re.search(r"^ok +provider cpu +a session was created and run$", plain, re.MULTILINE)
    assert lines(plain)[-1] == "scoring works here"


def test_python_m_is_the_same_program(tmp_path: Path, photos: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    run = subprocess.run(
        [*COMMAND, "score", bundle.path, photos / "1.png", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(run.stdout)["value"] == pytest.approx(tiny_score(make_image(seed=1)), abs=1e-6)
