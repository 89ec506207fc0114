"""``grmp-edge memory``: seeded from the past, listed, accepted, forgotten."""

from __future__ import annotations

import csv
import json
import threading
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
from conftest import encode, make_image, tiny_score, until
from helpers_live import FakeCapture, opener, take
from typer.testing import CliRunner

from grmp_edge.bundle import Bundle
from grmp_edge.cli import app
from grmp_edge.cli.live_plan import CameraOptions, plan_streams
from grmp_edge.errors import UsageError
from grmp_edge.runtime.live.alert import AlertRule
from grmp_edge.runtime.live.config import CameraConfig, LiveConfig
from grmp_edge.runtime.live.events import CameraEvent
from grmp_edge.runtime.live.live import AlertEvent, Live
from grmp_edge.runtime.live.memory import memory_folder
from grmp_edge.runtime.live.seed import past_scores, time_in_name
from grmp_edge.runtime.scorer import Scorer


def run(*words: str | Path, expect: int = 0) -> str:
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == expect, done.output
    return done.output


def test_times_in_names() -> None:
    utc = datetime(2026, 1, 31, 23, 59, 58, tzinfo=timezone.utc).timestamp()
    assert time_in_name("gate-2026-01-31T23:59:58Z.jpg") == utc
    local = datetime(2026, 1, 31, 23, 59, 58).timestamp()
    for name in ("20260131235958.jpg", "gate_2026-01-31_23-59-58.png", "IMG_20260131_235958123.jpg"):
        assert time_in_name(name) == local, name
    for name in ("gate.jpg", "20261331235958.jpg", "120260131235958.jpg", "frame-000017.jpg"):
        assert time_in_name(name) is None, name


def test_past_scores_of_spreadsheets_and_in_wrong_units(tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.csv"
    sheet.write_text("\ufeffvalue;at\n0,5;1795000000\n", encoding="utf-8")
    assert past_scores([sheet], "gate", "m", lambda _: iter(())) == [(1795000000.0, 0.5)]
    for at in ("nan", "1e400", "1795000000000"):
        (tmp_path / "wrong.csv").write_text(f"value,at\n0.5,{at}\n")
        with pytest.raises(UsageError, match="seconds since 1970"):
            past_scores([tmp_path / "wrong.csv"], "gate", "m", lambda _: iter(()))


def test_seeded_from_pictures_and_from_files_of_scores(tiny_bundle: Bundle, tmp_path: Path) -> None:
    pictures, memory = tmp_path / "pictures", tmp_path / "memory"
    pictures.mkdir()
    for seed in range(5):
        (pictures / f"{seed}.png").write_bytes(encode(make_image(seed=seed), "PNG"))
    at = ("--memory", memory, "--bundle", tiny_bundle.path)
    said = run("memory", "seed", "gate", pictures, *at)
    assert "5 scores, 0 of them with a time" in said
    listed = json.loads(run("memory", "list", "--memory", memory, "--json"))["cameras"]
    expected = np.median([tiny_score(make_image(seed=seed)) for seed in range(5)])
    assert [entry["camera"] for entry in listed] == ["gate"]
    assert listed[0]["usual"] == pytest.approx(expected, abs=1e-3)
    assert "known for" in run("memory", "seed", "gate", pictures, *at, expect=2)  # nothing is overwritten
    run("memory", "forget", "gate", "--memory", memory)

    model, rows = tiny_bundle.id, tmp_path / "scores.jsonl"
    start = 1_700_006_400.0
    with rows.open("w") as stream:
        for minute in range(3 * 1440):
            value = 0.7 if 360 <= minute % 1440 < 1080 else 0.4
            record = {"event": "score", "camera": "gate", "at": start + 60.0 * minute, "model": model}
            stream.write(json.dumps({**record, "value": value}) + "\n")
            stream.write(json.dumps({**record, "camera": "yard", "value": 0.1}) + "\n")
        stream.write('{"event": "alert", "camera": "gate", "value": 0.0}\n[1]\n{"val')
    assert "4320 scores, 4320 of them with a time" in run("memory", "seed", "gate", rows, *at)
    listed = json.loads(run("memory", "list", "--memory", memory, "--json"))["cameras"]
    assert (listed[0]["days"], listed[0]["usual"]) == (3, pytest.approx(0.55))

    with (tmp_path / "old.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows([["source", "value", "model"], ["a.jpg", "0.5", "another"]])
    assert "of model another" in run("memory", "seed", "door", tmp_path / "old.csv", *at, expect=2)
    assert "no score of door" in run("memory", "seed", "door", rows, *at, expect=2)
    assert "cannot be read" in run("memory", "seed", "door", tmp_path / "none.csv", *at, expect=2)
    assert "nothing is known of 'door'" in run("memory", "accept", "door", "--memory", memory, expect=2)


def test_accepted_by_a_command_while_it_is_watched(tiny_bundle: Bundle, tmp_path: Path) -> None:
    rule = AlertRule(preset="normal", drop=0.05, for_s=0.2, warmup_s=0.1, baseline_s=5.0)
    dark = threading.Event()

    def frames(index: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        return np.ascontiguousarray(make_image(seed=index % 3) // (8 if dark.is_set() else 1))

    camera = CameraConfig("gate", alert=rule)
    with Scorer.open(tiny_bundle, threads=1) as scorer:
        live = Live(
            scorer,
            [camera],
            LiveConfig(memory=str(tmp_path)),
            opener({"gate": lambda: FakeCapture(frames, 0.02)}),
        )
        with live:
            take(live, lambda found: live.status()[0].baseline is not None)
            dark.set()  # a tenth of a second after the start: seen long enough to know it is worse
            raised = take(live, lambda found: isinstance(found[-1], AlertEvent))[-1]
            assert isinstance(raised, AlertEvent) and raised.alert.raised
            until((tmp_path / "gate.json").exists)  # written by a thread of its own
            refused = run("memory", "forget", "gate", "--memory", tmp_path, expect=2)
            assert "stop it first" in refused
            run("memory", "accept", "gate", "--memory", tmp_path)
            over = take(live, lambda found: isinstance(found[-1], AlertEvent))[-1]
            assert isinstance(over, AlertEvent) and not over.alert.raised
            assert "accepted" in over.alert.detail
    assert not list(tmp_path.glob("*.accept"))
    run("memory", "forget", "gate", "--memory", tmp_path)


def test_states_and_alerts_are_sent_again_on_request_and_by_the_clock(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    rule = AlertRule(below=0.99, for_s=0.0)
    captures = opener({"gate": lambda: FakeCapture(lambda index: make_image(seed=index), 0.02)})
    with Scorer.open(tiny_bundle, threads=1) as scorer:
        live = Live(scorer, [CameraConfig("gate", alert=rule)], LiveConfig(heartbeat_s=0.1), captures)
        with live:
            seen = take(live, lambda found: isinstance(found[-1], AlertEvent))
            assert isinstance(seen[-1], AlertEvent) and not seen[-1].alert.repeated
            live.again()
            seen = take(live, lambda found: isinstance(found[-1], AlertEvent))
            again = seen[-1]
            assert isinstance(again, AlertEvent) and again.alert.repeated and again.alert.kind == "low"
            beats = take(
                live, lambda found: sum(isinstance(e, CameraEvent) and e.repeated for e in found) == 3
            )
            assert not any(isinstance(event, AlertEvent) for event in beats)  # repeat_s is 0


def test_the_folder_of_the_memories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    folder = tmp_path / "state" / "grmp-edge" / "memory" / "cameras"
    assert memory_folder(None) == folder
    assert plan_streams(["rtsp://gate/live"], None).live.memory == str(folder)
    clip = tmp_path / "clip.mp4"
    clip.touch()
    assert plan_streams([str(clip)], None).live.memory is None  # a clip has no hours
    assert plan_streams(["rtsp://gate/live"], None, CameraOptions(memory="none")).live.memory is None
    streams = tmp_path / "streams.toml"
    streams.write_text('camera = [{ source = "rtsp://gate/live" }]')
    assert memory_folder(streams) != folder
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "systemd"))
    assert memory_folder(None) == tmp_path / "systemd" / "memory" / "cameras"
    (tmp_path / "systemd").touch()  # not a folder: watched all the same
    assert plan_streams(["rtsp://gate/live"], None).live.memory is None
    assert "nothing is remembered" in capsys.readouterr().err
