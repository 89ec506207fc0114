"""Cameras of a model with views: what a frame costs, and that a fault shows at once; and where causes go."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY_CAUSES, TINY_SIDE, UInt8Array, make_image, tiny_logits
from helpers_live import FakeCapture, opener, scores, take
from test_sinks import LOST, alert_event, put, score_event

from grmp_edge.bundle import Bundle
from grmp_edge.cli.live_plan import CameraOptions, plan_streams
from grmp_edge.cli.watch_view import Trends, plain_line, status_table
from grmp_edge.errors import UsageError
from grmp_edge.preprocess import Preprocess
from grmp_edge.runtime import Scorer
from grmp_edge.runtime.live.config import CameraConfig, LiveConfig, read_streams
from grmp_edge.runtime.live.live import AlertEvent, Live, LiveScore
from grmp_edge.runtime.sinks import files
from grmp_edge.runtime.sinks.make import make_sink
from grmp_edge.runtime.sinks.queue import to_record
from grmp_edge.views import cover

HEIGHT, WIDTH = 90, 130  # 3 x 5 places of 32 pixels
PLACES = cover(HEIGHT, WIDTH, TINY_SIDE)


def scene(index: int) -> UInt8Array:
    """A healthy BGR frame, a little different each time."""
    base = make_image(HEIGHT, WIDTH, seed=3).astype(np.float32) * 0.4 + 140
    noise = np.random.default_rng(index).normal(0, 2, base.shape)
    return np.asarray(np.clip(base + noise, 0, 255), np.uint8)


def covered(image: UInt8Array) -> UInt8Array:
    """Something dark before the lens, with a rim of light."""
    dark = image * 0.15
    dark[:, -8:] = image[:, -8:]
    return np.asarray(dark, np.uint8)


def squeeze(values: Any) -> Any:
    return 1 / (1 + np.exp(-values))


def whole(frame: UInt8Array) -> UInt8Array:
    return Preprocess(40, TINY_SIDE)(frame[:, :, ::-1])


def watched(
    bundle: Bundle, frames: dict[int, UInt8Array], count: int, crops: int
) -> tuple[list[LiveScore], list[int]]:
    """The scores of ``count`` frames in order, and how many views each run read."""
    sizes: list[int] = []
    with Scorer.open(bundle, threads=1) as scorer:
        read = scorer.backend.read

        def counted(batch: UInt8Array) -> Any:
            sizes.append(len(batch))
            return read(batch)

        scorer.backend.read = counted  # type: ignore[method-assign]
        # At most one frame in a run, and none is lost.
        camera = CameraConfig("a", policy="every", queue=1000, crops=crops)
        captures = {"a": lambda: FakeCapture(lambda index: frames.get(index, scene(index)), 0.002)}
        with Live(scorer, [camera], LiveConfig(batch=1), opener(captures)) as live:
            events = take(live, lambda seen: len(scores(seen)) >= count)
    return scores(events)[:count], sizes[:count]


@pytest.mark.parametrize("crops", [0, 1, 2, 5, 99])
def test_a_frame_costs_the_whole_and_its_crops(views_bundle: Bundle, crops: int) -> None:
    events, sizes = watched(views_bundle, {}, 20, crops)
    assert sizes == [1 + min(crops, len(PLACES))] * 20
    seen = [event.score.tiles or () for event in events]
    # One more turn of places with each frame, until all are known.
    assert [len(tiles) for tiles in seen] == [min(crops * (index + 1), len(PLACES)) for index in range(20)]
    if crops:
        turn = -(-len(PLACES) // crops)
        if turn <= 20:
            assert {(tile.left, tile.top) for tile in seen[turn - 1]} == {(b.left, b.top) for b in PLACES}


def test_a_score_is_of_this_whole_and_the_last_reading_of_each_place(views_bundle: Bundle) -> None:
    events, _ = watched(views_bundle, {}, 12, 4)
    last: dict[tuple[int, int], Any] = {}
    by_frame = {}
    for event in events:
        assert event.score.frame is not None
        frame = event.image
        logits = tiny_logits(whole(frame)[None])[0]
        for tile in event.score.tiles or ():
            cut = frame[tile.top : tile.top + TINY_SIDE, tile.left : tile.left + TINY_SIDE, ::-1]
            now = tiny_logits(cut[None])[0]
            place = (tile.left, tile.top)
            if tile.value == pytest.approx(squeeze(now[0]), abs=1e-6):
                last[place] = now  # read in this frame
            assert tile.value == pytest.approx(squeeze(last[place][0]), abs=1e-6)
        native = np.mean(list(last.values()), axis=0)
        value = squeeze(0.7 * logits[0] + 0.2 * native[0] + 0.1)
        assert event.score.value == pytest.approx(value, abs=1e-5)
        causes = squeeze(0.5 * logits[1:] + 0.5 * native[1:])
        assert event.score.causes == pytest.approx(
            dict(zip(TINY_CAUSES, causes.tolist(), strict=True)), abs=1e-5
        )
        by_frame[event.score.frame] = event
    assert list(by_frame) == list(range(12)) and len(last) == len(PLACES)


def test_a_covered_lens_shows_in_its_first_frame_and_goes_with_it(views_bundle: Bundle) -> None:
    frames = {index: covered(scene(index)) for index in range(15, 20)}
    events, _ = watched(views_bundle, frames, 26, 2)
    values = np.array([event.score.value for event in events])
    assert values[10:15].min() - values[15:20].max() > 0.4
    assert values[20:].min() == pytest.approx(values[:15].min(), abs=0.05)
    # Readings from before count no longer, neither when it comes nor when it goes.
    assert [len(events[index].score.tiles or ()) for index in (14, 15, 16, 20, 21)] == [15, 2, 4, 2, 4]
    named = [event.score.cause for event in events]
    assert named[15:20] == ["dark"] * 5 and "dark" not in named[:15] + named[20:]


def test_a_fault_that_the_squash_does_not_see_is_known_after_one_turn(views_bundle: Bundle) -> None:
    """A dark part in one place moves its tile; the others keep theirs."""
    place = PLACES[7]
    frames = {}
    for index in range(10, 40):
        frames[index] = scene(index)
        frames[index][place.top : place.top + TINY_SIDE, place.left : place.left + TINY_SIDE] //= 4
    events, _ = watched(views_bundle, frames, 40, 2)

    def tile(index: int) -> dict[tuple[int, int], float]:
        return {(tile.left, tile.top): tile.value for tile in events[index].score.tiles or ()}

    before, after = tile(9), tile(10 + 8)  # 15 places, 2 at a time
    falls = {key: before[key] - after[key] for key in before}
    assert max(falls, key=falls.__getitem__) == (place.left, place.top)
    assert falls[place.left, place.top] > 0.3
    assert events[18].score.value < events[9].score.value


def test_cameras_keep_their_places_apart(views_bundle: Bundle) -> None:
    bright, dark = scene(0), np.asarray(scene(0) // 3, np.uint8)
    kinds = {"bright": bright, "dark": dark}
    captures = {
        name: (lambda image=image: FakeCapture(lambda index: np.roll(image, index, 1), 0.002))
        for name, image in kinds.items()
    }
    with Scorer.open(views_bundle, threads=1) as scorer:
        configs = [CameraConfig(name) for name in kinds]
        with Live(scorer, configs, opener=opener(captures)) as live:
            events = take(live, lambda seen: all(len(scores(seen, name)) >= 10 for name in kinds))
    for name in kinds:
        tiles = [tile.value for event in scores(events, name) for tile in event.score.tiles or ()]
        assert (np.array(tiles) > 0.5).all() if name == "bright" else (np.array(tiles) < 0.5).all()


def test_every_place_is_read_however_many_frames_are_replaced(views_bundle: Bundle) -> None:
    """Under `latest`, the crops' turn goes on with the frames that are scored, not with those that come."""
    with Scorer.open(views_bundle, threads=1) as scorer:
        captures = {"a": lambda: FakeCapture(scene, 0.0005)}
        with Live(scorer, [CameraConfig("a", crops=1)], opener=opener(captures)) as live:
            events = scores(take(live, lambda seen: len(scores(seen)) >= len(PLACES)))
    assert len(events[len(PLACES) - 1].score.tiles or ()) == len(PLACES)


# Where causes go


def caused(event: Any, **causes: float) -> Any:
    return replace(event, score=replace(event.score, causes=causes))


def test_records_carry_causes() -> None:
    record: dict[str, Any] = {**to_record(caused(score_event(), blur=0.81239, dark=0.1))}
    assert (record["cause"], record["causes"]) == ("blur", {"blur": 0.812, "dark": 0.1})
    record = {**to_record(caused(alert_event(), blur=0.2, dark=0.4))}
    assert record["causes"] == {"blur": 0.2, "dark": 0.4} and "cause" not in record
    assert {"cause", "causes"}.isdisjoint(to_record(score_event()))


def test_files_and_databases_have_them(tmp_path: Path) -> None:
    events = [caused(score_event(1), blur=0.8), score_event(2), LOST]
    for kind in ("csv", "jsonl", "sqlite"):
        sink = make_sink({"kind": kind, "path": str(tmp_path / f"a.{kind}")})
        put(sink, *events)
        assert sink.close().failed == 0
    with (tmp_path / "a.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["cause"], row["causes"]) for row in rows] == [("blur", '{"blur": 0.8}'), ("", ""), ("", "")]
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert lines[0]["cause"] == "blur" and "cause" not in lines[1]
    with sqlite3.connect(tmp_path / "a.sqlite") as base:
        assert base.execute("SELECT cause, causes FROM events").fetchall() == [
            ("blur", '{"blur": 0.8}'), (None, None), (None, None)
        ]  # fmt: skip
    base.close()


def test_files_of_older_versions_are_continued(tmp_path: Path) -> None:
    older = files._COLUMNS[:-2]
    (tmp_path / "a.csv").write_text(",".join(older) + "\n")
    base = sqlite3.connect(tmp_path / "a.sqlite")
    base.execute(f"CREATE TABLE events ({', '.join(f'{chr(34)}{name}{chr(34)}' for name in older)})")
    base.execute("INSERT INTO events (camera) VALUES ('before')")
    base.commit()
    base.close()
    for kind in ("csv", "sqlite"):
        sink = make_sink({"kind": kind, "path": str(tmp_path / f"a.{kind}")})
        put(sink, caused(score_event(1), blur=0.8))
        stats = sink.close()
        assert (stats.written, stats.failed) == (1, 0), stats
    with (tmp_path / "a.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    assert list(row) == list(older) and row["camera"] == "gate" and None not in row.values()
    base = sqlite3.connect(tmp_path / "a.sqlite")
    assert base.execute("SELECT camera, cause FROM events").fetchall() == [("before", None), ("gate", "blur")]
    base.close()


def test_lines_the_table_metrics_and_the_page_show_the_cause(views_bundle: Bundle) -> None:
    from rich.console import Console

    from grmp_edge.runtime.web.dashboard import Dashboard

    line = plain_line(to_record(caused(score_event(), blur=0.8)))
    assert line.endswith("gate: blur") and plain_line(to_record(score_event())).endswith("gate")
    assert plain_line(to_record(caused(alert_event(), dark=0.9))).endswith("gate: dark")
    captures = {"a": lambda: FakeCapture(lambda index: covered(scene(index)), 0.002)}
    with Scorer.open(views_bundle, threads=1) as scorer:
        with Live(scorer, [CameraConfig("a")], opener=opener(captures)) as live:
            board = Dashboard(live)
            for event in take(live, lambda seen: len(scores(seen)) >= 3):
                board.sink.put(event, to_record(event))
        console = Console(width=200, record=True, file=io.StringIO())
        console.print(status_table(live.status(), Trends(), 0))
        shown = console.export_text()
        (camera,) = board.cameras()
        stats = board.sink.close()
        assert stats.failed == 0
        assert board.metrics is not None
        text = board.metrics.text()
    last = live.status()[0].last
    assert last is not None and last.causes is not None and last.tiles
    assert "cause" in shown and "dark" in shown
    assert camera["cause"] == "dark" and camera["causes"] == pytest.approx(last.causes, abs=1e-3)
    assert camera["tiles"][0][:4] == [last.tiles[0].left, last.tiles[0].top, TINY_SIDE, TINY_SIDE]
    for name in TINY_CAUSES:
        (row,) = [
            row
            for row in text.splitlines()
            if row.startswith(f'grmp_edge_camera_cause{{camera="a",cause="{name}"')
        ]
        assert float(row.split()[-1]) == pytest.approx(last.causes[name], abs=1e-6)


def test_crops_are_set_in_the_file_or_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "streams.toml"
    file.write_text("[defaults]\ncrops = 3\n[[camera]]\nsource = 0\n[[camera]]\nsource = 1\ncrops = 0\n")
    assert [camera.crops for camera in plan_streams([], file).cameras] == [3, 0]
    assert [camera.crops for camera in plan_streams(["2"], file, CameraOptions(crops=5)).cameras] == [5, 5, 5]
    assert plan_streams(["2"], None).cameras[0].crops == 2
    file.write_text("[[camera]]\nsource = 0\ncrops = -1\n")
    with pytest.raises(UsageError, match="crops"):
        read_streams(file)


def test_alerts_carry_the_cause(views_bundle: Bundle) -> None:
    from grmp_edge.runtime.live.alert import AlertRule

    captures = {"a": lambda: FakeCapture(lambda index: covered(scene(index)), 0.002)}
    camera = CameraConfig("a", alert=AlertRule(below=0.5, for_s=0.05))
    with (
        Scorer.open(views_bundle, threads=1) as scorer,
        Live(scorer, [camera], opener=opener(captures)) as live,
    ):
        events = take(live, lambda seen: isinstance(seen[-1], AlertEvent))
    record: dict[str, Any] = {**to_record(events[-1])}
    assert record["event"] == "alert" and record["cause"] == "dark"
