"""Frames to label: which are kept, which leave, and that nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import UInt8Array, encode, make_image, tiny_score, until, write_tiny_bundle
from helpers_live import FakeCapture, http_cameras, opener
from PIL import Image
from typer.testing import CliRunner

from grmp_edge.bundle import Bundle
from grmp_edge.cli import app
from grmp_edge.errors import UsageError
from grmp_edge.preprocess import decode_image
from grmp_edge.runtime import Scorer
from grmp_edge.runtime.labelling.answers import Answer, Answers, wanted_images
from grmp_edge.runtime.labelling.collect import Collected, collect_cameras
from grmp_edge.runtime.labelling.frames import FRAMES, CollectConfig, Frame, FrameStore, read_frames
from grmp_edge.runtime.labelling.keep import KeepWriter
from grmp_edge.runtime.labelling.looks import SAME, look
from grmp_edge.runtime.live.alert import Alert
from grmp_edge.runtime.live.config import CameraConfig
from grmp_edge.runtime.live.live import AlertEvent, Live, LiveEvent, LiveScore
from grmp_edge.runtime.sinks.queue import Message, QueuedSink, to_record
from grmp_edge.score import Score


def scene(seed: int) -> UInt8Array:
    return make_image(180, 320, seed)


def frame(value: float = 0.5, camera: str = "gate", at: float = 0.0) -> Frame:
    return Frame(".png", camera, at, value)


def names(folder: Path) -> set[str]:
    return {each.image for each in read_frames(folder)}


def test_looks_tell_scenes_and_faults_and_not_compression() -> None:
    base = scene(1)

    def apart(other: UInt8Array) -> float:
        return float(np.linalg.norm(look(base) - look(other)))

    jpeg = decode_image(encode(base[:, :, ::-1], "JPEG", quality=80))
    assert apart(jpeg[:, :, ::-1].copy()) < SAME / 2
    passer_by = base.copy()
    passer_by[60:, 140:180] = 40
    textured = np.clip(base.astype(int) + np.random.default_rng(0).normal(0, 20, base.shape), 0, 255)
    for other in (scene(2), passer_by, (base * 0.7).astype(np.uint8), textured.astype(np.uint8)):
        assert apart(other) > SAME
    # The order of channels, and the size, are not part of the looks.
    assert np.allclose(look(base), look(np.ascontiguousarray(base[:, :, ::-1]), bgr=False), atol=1e-5)
    assert apart(np.asarray(cv2.resize(base, (640, 360), interpolation=cv2.INTER_CUBIC), np.uint8)) < 2 * SAME


def test_what_is_like_a_frame_there_is_dropped_unless_its_score_differs(tmp_path: Path) -> None:
    with FrameStore(tmp_path / "f") as store:
        assert store.add(frame(), scene(1)) == "kept"
        assert store.add(frame(0.53, at=9000), scene(1)) == "same"
        assert store.add(frame(0.8), scene(1)) == "kept"
        assert store.add(frame(), scene(2)) == "kept"
        # Another process may not write there now.
        with pytest.raises(UsageError, match="another grmp-edge collect"):
            FrameStore(tmp_path / "f")
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o700
    for file in (tmp_path / "f").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with FrameStore(tmp_path / "f") as store:  # it knows them again
        assert store.add(frame(0.79), scene(1)) == "same"
        assert store.add(frame(), scene(3)) == "kept"
    assert len(read_frames(tmp_path / "f")) == 4


def test_when_full_the_most_redundant_leaves_but_no_labelled_or_own_picture(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "mine.png").write_bytes(encode(scene(50), "PNG"))
    config = CollectConfig(limit=6)
    with FrameStore(folder, config, lambda: wanted_images(folder)) as store:
        near = scene(1)
        near[60:, 140:180] = 40
        for number, image in enumerate((scene(1), near, scene(2), scene(3), scene(4))):
            assert store.add(frame(at=number), image) == "kept"
        first, second, *others = [each.image for each in store.frames[1:]]
        Answers(folder).add(Answer("scale", "me", (first,), 4.0))
        # The near one leaves: its twin is labelled.
        assert store.add(frame(at=10), scene(5)) == "kept"
        assert second not in names(folder) and {first, "mine.png", *others} <= names(folder)
        assert len(names(folder)) == 6
        before = names(folder)
        other = scene(4)
        other[80:, 140:170] = 40
        assert store.add(frame(at=11), other) == "redundant"
        assert names(folder) == before
        for number in range(20):
            store.add(frame(number / 20, at=3600 * number), scene(100 + number))
        assert {first, "mine.png"} <= names(folder) and len(names(folder)) == 6
    listed = [json.loads(line)["image"] for line in (folder / FRAMES).read_text().splitlines()]
    assert set(listed) == names(folder) - {"mine.png"}


def test_a_full_disk_leaves_no_picture_that_is_not_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would count as the user's own, and never leave."""
    with FrameStore(tmp_path / "f") as store:
        store.add(frame(), scene(0))
        monkeypatch.setattr(Frame, "to_json", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            store.add(frame(), scene(1))
    monkeypatch.undo()
    assert len(names(tmp_path / "f")) == 1


def test_a_folder_of_too_many_pictures_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The distances of all pairs are held: twenty thousand would take gigabytes."""
    monkeypatch.setattr("grmp_edge.runtime.labelling.frames._MOST", 1)
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(encode(scene(number), "PNG"))
    for _ in range(2):  # and the folder is not left locked
        with pytest.raises(UsageError, match="2 pictures are too many"):
            FrameStore(tmp_path)


def test_it_stays_within_the_disk(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 300, 500, 3), dtype=np.uint8)
    with FrameStore(tmp_path / "f", CollectConfig(disk=3_000_000)) as store:
        for number, image in enumerate(noise):
            store.add(frame(number / 20, at=number * 3600), image)
            files = [path for path in (tmp_path / "f").iterdir() if path.suffix == ".png"]
            assert sum(path.stat().st_size for path in files) <= 3_000_000
        assert len(store.frames) >= 3


def test_files_and_a_second_run(tmp_path: Path, tiny_bundle: Bundle, photos: Path, clip: Path) -> None:
    folder, runner = tmp_path / "f", CliRunner()
    (photos / "broken.jpg").write_bytes(b"\xff\xd8no")
    command = ["collect", str(tiny_bundle.path), str(photos), str(clip), "-o", str(folder), "--every", "0.2"]
    shown = runner.invoke(app, [*command, "--json"])
    assert shown.exit_code == 0, shown.output
    result = json.loads(shown.stdout)
    assert "broken.jpg" in result["failures"][0] and len(result["failures"]) == 1
    frames = read_frames(folder)
    assert result["count"] == result["added"] == len(frames) >= 5 and result["looked_at"] == 9
    assert f"next: grmp-edge label {folder}" in shown.stderr
    of_photos = [each for each in frames if each.camera == "photos"]
    contents = {path.read_bytes() for path in photos.glob("*.png")}
    assert {(folder / each.image).read_bytes() for each in of_photos} == contents  # not compressed anew
    for each in frames:
        image = np.asarray(Image.open(folder / each.image).convert("RGB"))
        assert each.value == pytest.approx(tiny_score(image), abs=1e-5)
        assert each.model == tiny_bundle.id and each.size == (image.shape[1], image.shape[0])
    assert {each.frame for each in frames if each.camera == "clip"} <= set(range(0, 12, 2))
    again = json.loads(runner.invoke(app, [*command, "--json"]).stdout)
    assert again["added"] == 0 and again["count"] == len(frames)


def test_cameras(tmp_path: Path, tiny_bundle: Bundle) -> None:
    captures = {
        name: lambda seed=seed: FakeCapture(lambda index: scene(seed + index // 10) // 2 + index % 2, 0.002)
        for name, seed in (("a", 0), ("b", 100))
    }
    cameras = [CameraConfig(name, policy="every", queue=1000) for name in captures]
    with (
        Scorer.open(tiny_bundle, threads=1) as scorer,
        FrameStore(tmp_path / "f", CollectConfig(limit=8)) as store,
        Live(scorer, cameras, opener=opener(captures)) as live,
    ):
        found: list[Collected] = []
        for step in collect_cameras(store, live, float("inf")):
            found.append(step)
            if len(found) >= 100:
                live.stop()
    assert {each.camera for each in read_frames(tmp_path / "f")} == {"a", "b"}
    assert len(read_frames(tmp_path / "f")) == 8
    assert sum(step.outcome == "same" for step in found) > 50


def test_the_time_ends_where_no_camera_gives_anything(tmp_path: Path, tiny_bundle: Bundle) -> None:
    """A dead camera says so once, and then nothing that could be waited for."""
    with (
        Scorer.open(tiny_bundle, threads=1) as scorer,
        FrameStore(tmp_path / "f") as store,
        Live(scorer, [CameraConfig("rtsp://127.0.0.1:1/", backoff_min_s=60)], opener=opener({})) as live,
    ):
        ended = threading.Event()

        def work() -> None:
            list(collect_cameras(store, live, time.monotonic() + 0.3))
            ended.set()

        threading.Thread(target=work, daemon=True).start()
        assert ended.wait(20)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_ended_at_any_moment_it_keeps_all(tmp_path: Path, number: signal.Signals) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.bundle")
    folder = tmp_path / "f"
    with http_cameras() as at:
        command = ["collect", str(bundle.path), f"{at}/mjpeg", "-o", str(folder), "--every", "0.01"]
        process = subprocess.Popen(
            [sys.executable, "-m", "grmp_edge", *command], stderr=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        try:
            until(lambda: (folder / FRAMES).is_file() and len(list(folder.glob("*.png"))) > 2)
            process.send_signal(number)
            _, told = process.communicate(timeout=40)
        finally:
            process.kill()
    if number != signal.SIGKILL:
        assert process.returncode == 0, told
        assert f"next: grmp-edge label {folder}" in told
    listed = {json.loads(line)["image"] for line in (folder / FRAMES).read_text().splitlines()}
    assert len(listed) >= 2 and all((folder / image).is_file() for image in listed)
    with FrameStore(folder) as store:  # and goes on
        assert store.add(replace(frame(), camera="new"), scene(77)) == "kept"
    assert names(folder) >= listed


def test_a_watch_keeps_frames_and_says_when_labelling_pays(tmp_path: Path) -> None:
    told: list[str] = []
    folder = tmp_path / "f"

    def event(camera: str, value: float, image: UInt8Array, alert: Alert | None = None) -> LiveEvent:
        score = Score(value, camera, "m", frame=1, captured_s=time.monotonic())
        return LiveScore(camera, score, image) if alert is None else AlertEvent(camera, alert, score, image)

    sink = QueuedSink("collect", KeepWriter(folder, told.append), room=1000)
    low = Alert("low", True, 0.3, 0.35)
    for number in range(30):
        camera = f"c{number}"
        for repeat in range(3):  # of each camera's scores the first, until a minute has passed
            given = event(camera, 0.9, scene(number + 100 * repeat))
            sink.put(given, to_record(given))
        given = event(camera, 0.3, scene(number + 500), low)
        sink.put(given, to_record(given))
        until(lambda: sink.stats().written == 2 * number + 2)  # noqa: B023
    assert sink.close().failed == 0
    assert len(read_frames(folder)) == 60 and len(told) == 1
    assert told[0].startswith("20 frames in") and told[0].endswith(f"next: grmp-edge label {folder}")
    for each in read_frames(folder):
        Answers(folder).add(Answer("scale", "me", (each.image,), 3.0))
    writer = KeepWriter(folder, told.append)
    near = event("c1", 0.33, scene(900), low)
    assert writer.wants(to_record(near))
    for number in range(25):  # scenes that no label has
        writer.write(Message(to_record(near), np.full((90, 160, 3), 10 * number, np.uint8)))
    writer.close()
    assert len(told) == 2 and "unlike all that is labelled" in told[1]


def test_bad_settings_and_lines(tmp_path: Path, tiny_bundle: Bundle, photos: Path) -> None:
    runner = CliRunner()
    command = ["collect", str(tiny_bundle.path), str(photos), "-o", str(tmp_path / "f")]
    for option in (
        ["--disk", "much"],
        ["--disk", "1"],
        ["--limit", "1"],
        ["--hours", "0"],
        ["--every", "-1"],
    ):
        shown = runner.invoke(app, [*command, *option])
        assert shown.exit_code == 2 and option[0] in shown.stderr
    assert runner.invoke(app, ["collect", str(tiny_bundle.path)]).exit_code == 2
    shown = runner.invoke(
        app, ["collect", str(tiny_bundle.path), str(tmp_path / "none"), "-o", str(tmp_path / "x")]
    )
    assert shown.exit_code == 1 and "none" in shown.stderr
    assert runner.invoke(app, command).exit_code == 0
    lines = (tmp_path / "f" / FRAMES).read_text().splitlines()
    bad = ["[]", "7", '{"image": "../x.png"}', '{"image": 3}', '{"image": "a.png", "look": "*"}', "[" * 10**5]
    odd = ({"value": "good"}, {"at": 1e999}, {"size": [1e999, 1]}, {"causes": [1]})
    bad += [json.dumps({**json.loads(lines[0]), **one}) for one in odd]
    (tmp_path / "f" / FRAMES).write_text("\n".join([*bad, *lines, lines[0][:30]]))
    assert [each.camera for each in read_frames(tmp_path / "f")] == ["photos"] * 3
