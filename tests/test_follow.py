"""Watched folders: real files that come slowly, all at once, again, or never whole."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import encode, make_image, tiny_score

from grmp_edge.bundle import Bundle
from grmp_edge.runtime import Failure
from grmp_edge.runtime.sources.follow import FollowConfig, follow

COMMAND = [sys.executable, "-m", "grmp_edge", "score"]


class Follower:
    """A watched folder, its answers in a queue."""

    def __init__(self, folder: Path, settle_s: float = 0.6, **options: object) -> None:
        self.stop = threading.Event()
        self.found: queue.Queue[Path | Failure] = queue.Queue()
        config = FollowConfig(interval_s=0.02, settle_s=settle_s, patience_s=max(2.0, 2 * settle_s))
        stream = follow([folder], self.stop, config, **options)  # type: ignore[arg-type]

        def work() -> None:
            for item in stream:
                if item is not None:
                    self.found.put(item)

        self.thread = threading.Thread(target=work)
        self.thread.start()

    def names(self, count: int) -> list[str]:
        found = []
        for _ in range(count):
            item = self.found.get(timeout=60)
            assert isinstance(item, Path), item
            found.append(item.name)
        return found

    def nothing_more(self, seconds: float = 1.2) -> bool:
        try:
            return self.found.get(timeout=seconds) is None
        except queue.Empty:
            return True

    def close(self) -> None:
        self.stop.set()
        self.thread.join(60)
        assert not self.thread.is_alive()


@pytest.fixture
def follower(photos: Path) -> Iterator[Follower]:
    found = Follower(photos)
    yield found
    found.close()


def test_files_that_are_there_and_files_that_come(follower: Follower, photos: Path) -> None:
    assert sorted(follower.names(3)) == ["1.png", "10.png", "2.png"]
    below = photos / "later"
    below.mkdir()
    data = encode(make_image(seed=7), "PNG")
    for name, at in (("b.png", 100), ("a.png", 200)):  # by time, not by name
        (photos / f".{name}").write_bytes(data)
        os.utime(photos / f".{name}", (at, at))
    for name in ("a.png", "b.png"):
        (photos / f".{name}").rename(below / name)
    (photos / "notes.txt").write_text("no picture")
    assert sorted(follower.names(2)) == ["a.png", "b.png"]
    assert follower.nothing_more()
    (below / "b.png").write_bytes(encode(make_image(seed=8), "PNG"))  # written anew
    assert follower.names(1) == ["b.png"]
    assert follower.nothing_more()


def test_a_file_still_being_written_is_waited_for(photos: Path) -> None:
    """A kind whose end cannot be told from its bytes: only that nobody writes any more."""
    follower = Follower(photos, settle_s=2.0)
    try:
        follower.names(3)
        data = encode(make_image(seed=9), "BMP")
        with (photos / "slow.bmp").open("wb") as stream:
            for part in range(6):
                stream.write(data[part * len(data) // 6 : (part + 1) * len(data) // 6])
                stream.flush()
                time.sleep(0.1)
            written = time.monotonic()
            assert follower.found.empty()
        assert follower.names(1) == ["slow.bmp"]
        assert time.monotonic() - written > 1.5
        assert follower.nothing_more()
    finally:
        follower.close()


def test_a_transfer_that_stalls_is_waited_for_and_then_told(follower: Follower, photos: Path) -> None:
    follower.names(3)
    data = encode(make_image(seed=9), "JPEG")
    (photos / "stalled.jpg").write_bytes(data[:-100])
    assert follower.nothing_more(1.2)  # longer than settle_s: its end is missing
    (photos / "stalled.jpg").write_bytes(data)
    assert follower.names(1) == ["stalled.jpg"]
    (photos / "never.jpg").write_bytes(data[:-100])
    begin = time.monotonic()
    assert follower.names(1) == ["never.jpg"]
    assert time.monotonic() - begin >= 1.9


def test_a_folder_that_goes_and_comes_back(follower: Follower, photos: Path, tmp_path: Path) -> None:
    follower.names(3)
    photos.rename(tmp_path / "aside")
    item = follower.found.get(timeout=60)
    assert isinstance(item, Failure) and "cannot be listed" in str(item.error)
    (tmp_path / "aside").rename(photos)
    assert sorted(follower.names(3)) == ["1.png", "10.png", "2.png"]


def test_what_was_dealt_with_is_left_out_until_it_changes(photos: Path) -> None:
    found = Follower(photos, skip=lambda path: path.endswith("2.png"))
    try:
        assert sorted(found.names(2)) == ["1.png", "10.png"]
        assert found.nothing_more()
        (photos / "2.png").write_bytes(encode(make_image(seed=3), "PNG"))
        assert found.names(1) == ["2.png"]
    finally:
        found.close()


def test_the_command_follows_a_folder(tiny_bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "scores.jsonl"
    process = subprocess.Popen(
        [*COMMAND, str(tiny_bundle.path), str(photos), "--follow", "--output", str(output), "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    rows = [json.loads(process.stdout.readline()) for _ in range(3)]
    with (photos / ".new").open("wb") as stream:
        stream.write(encode(make_image(seed=11), "PNG"))
    (photos / ".new").rename(photos / "new.png")
    rows.append(json.loads(process.stdout.readline()))
    process.send_signal(signal.SIGHUP)  # the terminal was closed; as SIGTERM, which is tested with watch
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert rest == ""
    assert f"4 scores written to {output}" in errors
    seeds = {"1.png": 1, "2.png": 2, "10.png": 10, "new.png": 11}
    assert {Path(row["source"]).name for row in rows} == set(seeds)
    for row in rows:
        expected = tiny_score(make_image(seed=seeds[Path(row["source"]).name]))
        assert row["value"] == pytest.approx(expected, abs=2e-6)
    assert [json.loads(line) for line in output.read_text().splitlines()] == rows
