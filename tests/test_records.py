"""A file of scores that grows line by line, and the command that goes on with it."""

from __future__ import annotations

import csv
import json
import os
import resource
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import Shell, encode, make_image, tiny_score, until, write_clip

from grmp_edge.bundle import Bundle
from grmp_edge.errors import ImageError, UsageError
from grmp_edge.runtime import Failure, Score
from grmp_edge.runtime.score_file import ScoreFile
from grmp_edge.runtime.sources.listing import natural_key
from grmp_edge.runtime.sources.name_set import Keys, name_key

COMMAND = [sys.executable, "-m", "grmp_edge", "score"]
ODD = 'a "quoted", name\nof two lines \udcff.png'


def results() -> list[Score | Failure]:
    return [
        Score(0.25, "a.png", "id", mos=2.0, latency_ms=1.5),
        Score(0.5, ODD, "id"),
        Failure("b.png", ImageError('b.png: "empty", it is', "copy it")),
        Score(0.125, "c.mp4", "id", frame=0, time_s=0.0),
        Score(0.25, "c.mp4", "id", frame=4, time_s=0.4),
    ]


@pytest.fixture(params=["jsonl", "csv"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / "out" / f"scores.{request.param}"


def rows(path: Path) -> list[dict[str, object]]:
    """The file as another program reads it."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text("ascii").splitlines()]
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
        return list(csv.DictReader(stream))


def write(path: Path, items: list[Score | Failure], resume: bool = False) -> ScoreFile:
    with ScoreFile(path, "id", resume) as file:
        for item in items:
            file.write(item)
    return file


def test_what_is_written(path: Path) -> None:
    write(path, results())
    found = rows(path)
    assert [row["source"] for row in found] == ["a.png", ODD, "b.png", "c.mp4", "c.mp4"]
    assert [float(str(row["value"])) for row in found if row.get("value")] == [0.25, 0.5, 0.125, 0.25]
    assert [str(row.get("frame") or "") for row in found][-1] == "4"
    assert "error" not in found[0] or found[0]["error"] == ""
    assert found[2]["error"] == 'b.png: "empty", it is; copy it'
    assert {row["model"] for row in found} == {"id"}


@pytest.mark.parametrize("end", range(1, 700, 7))
def test_every_end_can_be_gone_on_from(path: Path, end: int) -> None:
    """Cut anywhere, as a kill or a power cut would: whole rows stay, and no source is counted falsely."""
    write(path, results())
    whole = path.read_bytes()
    if end >= len(whole):
        end = len(whole)
    path.write_bytes(whole[:end])
    with ScoreFile(path, "id", resume=True) as file:
        done = file.done
        for item in results():
            frame = item.frame if isinstance(item, Score) else None
            if item.source not in done and (frame is None or frame > done.last_frame(item.source)):
                file.write(item)
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "columns",
    [
        ("source", "value", "mos", "frame", "time_s", "latency_ms", "model", "error"),
        ("source", "value", "mos", "frame", "time_s", "latency_ms", "model", "cause", "error"),
    ],
)
def test_a_csv_of_an_earlier_version_is_resumed_with_its_own_columns(
    tmp_path: Path, columns: tuple[str, ...]
) -> None:
    """One from before models named causes, and one from before pictures were marked as damaged."""
    path = tmp_path / "scores.csv"
    values = {"source": "a.png", "value": "0.25", "model": "id", "cause": "blur"}
    header, row = ",".join(columns), ",".join(values.get(name, "") for name in columns)
    path.write_text(f"{header}\n{row}\n{row[:9]}")
    after: list[Score | Failure] = [
        Score(0.5, "b.png", "id", causes={"noise": 0.9}, damage="half of it"),
        Failure("c.png", ImageError("c.png: no such file")),
    ]
    file = write(path, after, resume=True)
    assert "a.png" in file.done and file.done.rows == 1
    with path.open(newline="") as stream:
        reader = csv.DictReader(stream)
        found = list(reader)
    assert tuple(reader.fieldnames or ()) == columns
    assert [row["source"] for row in found] == ["a.png", "b.png", "c.png"]
    assert all(None not in row and None not in row.values() for row in found)
    assert found[1]["value"] == "0.5" and found[1].get("cause", "noise") == "noise"
    assert found[2]["error"] == "c.png: no such file"


def test_what_is_done(path: Path) -> None:
    write(path, results())
    done = write(path, [], resume=True).done
    assert all(name in done for name in ("a.png", ODD, "b.png"))
    assert not any(name in done for name in ("c.mp4", "d.png", "", "a"))
    assert (done.last_frame("c.mp4"), done.last_frame("a.png")) == (4, -1)
    assert (done.rows, done.failed) == (5, 1)
    # A video is through when another source, or its own failure, follows.
    write(path, [Failure("c.mp4", ImageError("cut short"))], resume=True)
    done = write(path, [], resume=True).done
    assert "c.mp4" in done
    assert done.last_frame("c.mp4") == -1


def test_a_file_is_never_overwritten(path: Path) -> None:
    write(path, results())
    before = path.read_bytes()
    with pytest.raises(UsageError, match="add --resume"):
        write(path, [])
    with (
        pytest.raises(UsageError, match="scored by the model id, and this is other"),
        ScoreFile(path, "other", True),
    ):
        pass
    assert path.read_bytes() == before


def test_damage_within_is_not_cut_off(path: Path, tmp_path: Path) -> None:
    write(path, results()[:1] * 1500)
    whole = path.read_bytes()
    lines = whole.split(b"\n")
    for damaged in (
        b"\n".join([*lines[:5], b'{"half": ', *lines[6:]]),
        b"\n".join([*lines[:5], b'x,"y', *lines[6:]]),
        b"PK\x03\x04" + whole,
        whole.replace(b"\n", b" "),
        b"\0" * 100_000,
    ):
        path.write_bytes(damaged)
        with pytest.raises(UsageError, match=r"is not a score|damaged after"):
            write(path, [], resume=True)
        assert path.read_bytes() == damaged
    (tmp_path / "folder.csv").mkdir()
    for wrong in ("scores.txt", "scores"):
        with pytest.raises(UsageError, match=r"a \.jsonl or a \.csv"):
            ScoreFile(tmp_path / wrong, "id")
    with pytest.raises(UsageError, match="cannot be written"), ScoreFile(tmp_path / "folder.csv", "id", True):
        pass


def test_zeros_after_a_power_cut_are_cut_off(path: Path) -> None:
    write(path, results())
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0" * 512)
    assert write(path, [], resume=True).done.rows == 5
    assert path.read_bytes() == whole


def test_keys_take_8_bytes_each() -> None:
    import tracemalloc
    from array import array

    names = [f"/data/camera{number % 7}/{number}.png" for number in range(50_000)]
    tracemalloc.start()
    keys = Keys(array("Q", map(name_key, names)))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 50_000 * 9.5  # the array grows by an eighth at a time
    assert len(keys) == 50_000
    assert all(name_key(name) in keys for name in names[::97])
    assert not any(name_key(f"{name}x") in keys for name in names[::97])
    assert name_key("x") not in Keys()


def test_resuming_a_killed_run_gives_the_same_file(tiny_bundle: Bundle, tmp_path: Path, shell: Shell) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number}.png").write_bytes(encode(make_image(seed=number), "PNG"))
    (folder / "7.png").write_bytes(b"")
    write_clip(folder / "clip.mp4", frames=13)
    once, twice = tmp_path / "once.jsonl", tmp_path / "twice.jsonl"
    named = sorted(folder.iterdir(), key=lambda path: natural_key(path.name))  # a pipe in a folder is skipped
    arguments = ["--batch", "2", "--quiet", tiny_bundle.path, *named]
    assert shell("score", *arguments, "--output", once).returncode == 1  # one could not be scored
    assert len(rows(once)) == 60 + 13

    for signal_, stop, kept in ((signal.SIGKILL, 20, 15), (signal.SIGINT, 45, 35)):
        pipe = folder / f"{stop}.png"
        good = pipe.read_bytes()
        pipe.unlink()
        os.mkfifo(pipe)  # here it waits, so that it is met in the middle
        process = subprocess.Popen(
            [*COMMAND, *map(str, [*arguments, "--output", twice, "--resume"])],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

        def enough(rows: int = kept) -> bool:
            return twice.exists() and len(twice.read_bytes().splitlines()) >= rows

        until(enough, 60)
        assert process.poll() is None
        process.send_signal(signal_)
        _, errors = process.communicate(timeout=60)
        if signal_ == signal.SIGINT:
            assert process.returncode == 130
            assert f"rows in {twice}; to go on: the same command with --resume" in errors
            assert errors.splitlines()[-1] == "error: interrupted"
        else:
            with twice.open("ab") as stream:
                stream.write(b'{"value": 0.1, "sour')  # half a line
        pipe.unlink()
        pipe.write_bytes(good)
    result = shell("score", *arguments, "--output", twice, "--resume", "--threads", "1")
    assert result.returncode in (0, 1)

    def content(path: Path) -> list[dict[str, object]]:
        return [{key: value for key, value in row.items() if key != "latency_ms"} for row in rows(path)]

    assert content(twice) == content(once)
    assert shell("score", *arguments, "--output", twice, "--resume").returncode == 0
    assert content(twice) == content(once)


def test_resuming_in_the_middle_of_a_video(
    tiny_bundle: Bundle, clip: Path, photos: Path, tmp_path: Path, shell: Shell
) -> None:
    output = tmp_path / "scores.csv"
    arguments = ["score", tiny_bundle.path, photos, clip, "--every", "2", "--output", output]
    assert shell(*arguments).returncode == 0
    whole = rows(output)
    assert [row["frame"] for row in whole] == ["", "", "", "0", "2", "4", "6", "8", "10"]
    output.write_bytes(b"\n".join(output.read_bytes().split(b"\n")[:6]) + b"\n0.5,")
    result = shell(*arguments, "--resume")
    assert result.returncode == 0
    assert f"{output}: 5 rows are there already" in result.stderr
    assert f"4 scores written to {output}" in result.stderr
    assert result.stdout == ""
    assert [(row["source"], row["frame"], row["value"]) for row in rows(output)] == [
        (row["source"], row["frame"], row["value"]) for row in whole
    ]


def test_files_that_came_later_are_scored_too(
    tiny_bundle: Bundle, photos: Path, tmp_path: Path, shell: Shell
) -> None:
    output = tmp_path / "scores.jsonl"
    words = ["score", tiny_bundle.path, photos, "--output", output]
    assert shell(*words).returncode == 0
    (photos / "1.5.png").write_bytes(encode(make_image(seed=15), "PNG"))
    (photos / "2.png").unlink()
    assert shell(*words, "--resume", "--json").returncode == 0
    found = rows(output)
    assert [Path(str(row["source"])).name for row in found] == ["1.png", "2.png", "10.png", "1.5.png"]
    assert found[-1]["value"] == pytest.approx(tiny_score(make_image(seed=15)), abs=1e-6)


def test_resident_memory_does_not_grow_with_the_number_of_files(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """The slope over many small files; docs/deploy.md tells how to watch it on real data."""
    folder = tmp_path / "in"
    folder.mkdir()
    data = encode(make_image(8, 8), "BMP")
    for number in range(1500):
        (folder / f"{number}.bmp").write_bytes(data)
    script = (
        "import sys\n"
        "from grmp_edge.runtime import Scorer\n"
        "from grmp_edge.runtime.bulk import score_bulk\n"
        "from grmp_edge.runtime.sources.sources import list_sources\n"
        "def resident():\n"
        "    return int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        "with Scorer.open(sys.argv[1], threads=1) as scorer:\n"
        "    sources = [sys.argv[2]] * 4\n"
        "    for count, _ in enumerate(score_bulk(scorer, list_sources(sources)), 1):\n"
        "        if count % 1500 == 0:\n"
        "            print(resident())\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, str(tiny_bundle.path), str(folder)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    sizes = [int(line) for line in found.split()]
    assert len(sizes) == 4
    # Decoded pictures and their results, if they were held, would take 1.5 MB for each 1500.
    assert sizes[3] - sizes[1] < 1.5e6, [later - earlier for earlier, later in pairwise(sizes)]


def test_options_that_do_not_fit(tiny_bundle: Bundle, photos: Path, tmp_path: Path, shell: Shell) -> None:
    for wrong, words in (
        (["--resume"], "--output"),
        (["--raw", "4x4:rgb24"], "add - to the sources"),
        (["--output", tmp_path / "x.txt"], ".jsonl or a .csv"),
        (["-", "--resume", "--output", tmp_path / "x.csv"], "exclude each other"),
        (["--follow", photos / "1.png"], "is not one"),
        (["-", "-"], "once"),
    ):
        result = shell("score", tiny_bundle.path, photos, *wrong)
        assert result.returncode == 2, wrong
        assert len(result.stderr.splitlines()) == 1
        assert words in result.stderr


@pytest.mark.parametrize("option", ["--output", "--csv"])
def test_a_full_disk_is_named_and_what_was_written_is_kept(
    tiny_bundle: Bundle, photos: Path, tmp_path: Path, option: str
) -> None:
    """A limit on the size of files stands for the disk: the same error of the same call."""
    target = tmp_path / "scores.csv"
    room = 20_000
    done = subprocess.run(
        [*COMMAND, tiny_bundle.path, *[photos] * 100, "-q", option, target],
        capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    kept, error = done.stderr.splitlines()
    assert error.startswith(f"error: {target}: File too large")
    file = target if option == "--output" else tmp_path / "scores.partial.csv"
    assert str(file) in kept
    whole = file.read_bytes()
    assert 15_000 < len(whole) <= room
    assert whole.decode().splitlines()[100].startswith(str(photos))
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_ended_keeps_its_rows(
    tiny_bundle: Bundle, photos: Path, tmp_path: Path, number: signal.Signals
) -> None:
    hang = tmp_path / "hang.png"
    os.mkfifo(hang)  # reading it waits for ever
    target = tmp_path / "scores.csv"
    process = subprocess.Popen(
        [*COMMAND, tiny_bundle.path, photos, hang, "--csv", target, "--batch", "1", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert errors.splitlines()[-1] == "error: interrupted"
    assert len(rows(tmp_path / "scores.partial.csv")) == 3


def test_streams_closed_by_the_shell(tiny_bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    """No output, no error, and no file that the text of a library ends up in."""
    target = tmp_path / "scores.jsonl"
    command = " ".join(map(str, [*COMMAND, tiny_bundle.path, photos, "--output", target]))
    done = subprocess.run(["sh", "-c", f"{command} <&- >&- 2>&-"], capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert len(rows(target)) == 3
    done = subprocess.run(
        ["sh", "-c", f"{command.rpartition(' --output')[0]} > /dev/full"], capture_output=True
    )
    assert done.returncode == 1
    assert b"error: standard output: No space left on device; make room on the disk" in done.stderr
