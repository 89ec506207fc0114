"""One look at many cameras: real HTTP cameras, files, a dead port and a server that never answers."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import make_image, tiny_score, write_tiny_bundle
from helpers_live import free_port, http_cameras
from test_reports import Page
from typer.testing import CliRunner

from grmp_edge.cli import app
from grmp_edge.errors import UsageError
from grmp_edge.runtime.live.check import CameraCheck, History


def flat_clip(path: Path, image: np.ndarray, frames: int = 6) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, image.shape[1::-1])
    for _ in range(frames):
        writer.write(image)
    writer.release()
    return path


def check(bundle: Path, history: Path, *arguments: object) -> tuple[int, dict[str, dict[str, Any]]]:
    command = ["check", str(bundle), *map(str, arguments), "--json", "--history", str(history)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code in (0, 1), result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    return result.exit_code, {row["camera"]: row for row in rows}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "bundle").path


def test_every_kind_of_camera_in_one_check(tmp_path: Path, bundle: Path) -> None:
    black = flat_clip(tmp_path / "black.avi", np.zeros((48, 64, 3), np.uint8))
    silent = socket.create_server(("127.0.0.1", 0))  # accepts, and never says a word
    with http_cameras() as cameras, silent:
        (tmp_path / "streams.toml").write_text(
            f"""
[[camera]]
name = "live"
source = "{cameras}/mjpeg"
[[camera]]
name = "a <b>camera</b>"
source = "{cameras}/private"
[[camera]]
name = "dead"
source = "rtsp://user:s3cret@127.0.0.1:{free_port()}/live"
[[camera]]
name = "silent"
source = "http://127.0.0.1:{silent.getsockname()[1]}/x"
[[camera]]
name = "covered"
source = "file:{black}"
"""
        )
        report = tmp_path / "report.html"
        code, rows = check(
            bundle, tmp_path / "h.json", "--streams", tmp_path / "streams.toml",
            "--timeout", 2, "--below", 0, "--report", report,
        )  # fmt: skip
    assert code == 1
    assert {name: row["verdict"] for name, row in rows.items()} == {
        "live": "ok", "a <b>camera</b>": "offline", "dead": "offline", "silent": "offline",
        "covered": "black",
    }  # fmt: skip
    assert "refused" in rows["dead"]["detail"] and "score" not in rows["covered"]
    page = Page(report)
    assert "s3cret" not in page.html + json.dumps(rows)
    # Worst first; and a name is text.
    places = [page.text.index(name) for name in ("silent", "covered", "live")]
    assert places == sorted(places) and "a <b>camera</b>" in page.text and "b" not in page.tags
    assert [alt for alt, _ in page.images] == ["What covered shows", "What live shows"]


def test_worse_than_usual_until_it_is_accepted(tmp_path: Path, bundle: Path) -> None:
    history, clip = tmp_path / "h.json", tmp_path / "camera.avi"
    good, bad = make_image(48, 64, 1), make_image(48, 64, 1) // 2
    assert tiny_score(good) - tiny_score(bad) > 0.15
    source = f"file:{clip}"

    def look(image: np.ndarray, *more: str) -> tuple[int, dict[str, Any]]:
        flat_clip(clip, image)
        code, rows = check(bundle, history, source, "--below", 0, *more)
        return code, rows[source]

    code, first = look(good)
    assert code == 0 and "before" not in first
    assert first["score"] == pytest.approx(tiny_score(good[:, :, ::-1]), abs=0.05)
    for _ in range(2):  # the bad one does not become what is usual by being looked at
        code, row = look(bad)
        assert code == 1 and row["verdict"] == "worse" and "usual" in row["detail"]
    assert row["before"] < first["score"]
    assert look(bad, "--accept")[0] == 1  # still told this once
    assert look(bad)[0] == 0
    assert look(good)[0] == 0


def test_a_slow_decay_does_not_take_the_usual_score_with_it(tmp_path: Path, bundle: Path) -> None:
    history, clip = tmp_path / "h.json", tmp_path / "camera.avi"
    image = make_image(48, 64, 2)
    verdicts = []
    for step in range(12):
        flat_clip(clip, (image * (1 - 0.06 * step)).astype(np.uint8))
        verdicts.append(check(bundle, history, f"file:{clip}", "--below", 0, "--frames", 1)[1])
    assert "worse" in [next(iter(rows.values()))["verdict"] for rows in verdicts]


def test_two_checks_at_once_keep_what_both_found(tmp_path: Path) -> None:
    """As of two lines of a crontab; and a number that nothing is below is no usual score."""
    one, other = (History(tmp_path / "h.json", "m") for _ in range(2))
    one.save([CameraCheck("a", "ok", 0.5)])
    other.save([CameraCheck("b", "ok", 0.6)])
    assert set(History(tmp_path / "h.json", "m").cameras) == {"a", "b"}
    text = (tmp_path / "h.json").read_text()
    (tmp_path / "h.json").write_text(text.replace("0.6", "NaN"))
    with pytest.raises(UsageError, match="outside"):
        History(tmp_path / "h.json", "m")


def test_another_model_starts_anew_and_a_wrong_history_is_refused(tmp_path: Path, bundle: Path) -> None:
    clip = flat_clip(tmp_path / "camera.avi", make_image(48, 64, 3))
    history, source = tmp_path / "h.json", f"file:{clip}"
    first = check(bundle, history, source, "--below", 0)[1][source]
    assert check(bundle, history, source, "--below", 0)[1][source]["before"] == first["score"]
    data = json.loads(history.read_text())
    history.write_text(json.dumps({**data, "model": "another"}))
    assert "before" not in check(bundle, history, source, "--below", 0)[1][source]
    for damage in ("[1]", "{", json.dumps({**data, "cameras": []})):
        history.write_text(damage)
        result = CliRunner().invoke(app, ["check", str(bundle), source, "--history", str(history)])
        assert result.exit_code == 2 and "no file of checks" in result.stderr
        assert history.read_text() == damage
