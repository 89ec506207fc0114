"""Files, folders, globs and videos become a stream of pictures and failures."""

from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from conftest import encode, make_image, write_clip

from grmp_edge.errors import SourceError, UsageError
from grmp_edge.runtime import Failure, Picture, Sampling, read_sources
from grmp_edge.runtime.sources.sources import list_sources, natural_key
from grmp_edge.runtime.video.files import read_video


def names(*sources: str | Path) -> list[str]:
    found = list(list_sources(sources))
    assert all(isinstance(item, Path) for item in found), found
    return [str(item) for item in found]


def failure(*sources: str | Path) -> str:
    """The one failure, on one line, of sources that name nothing else."""
    (item,) = read_sources(sources)
    assert isinstance(item, Failure)
    assert "\n" not in str(item.error)
    return str(item.error)


def test_natural_order() -> None:
    wanted = ["a", "a2", "a02b", "a10", "b1/x9", "b1/x10", "b11", "b١"]
    shuffled = wanted[::-1]
    assert sorted(shuffled, key=natural_key) == wanted


def test_a_folder_is_searched_below_in_order(photos: Path) -> None:
    (photos / "notes.txt").write_text("no picture")
    (photos / ".hidden.png").write_bytes(b"")
    below = photos / "sub"
    below.mkdir()
    (below / "A.JPG").write_bytes(encode(make_image(), "JPEG"))
    (photos / ".cache").mkdir()
    shutil.copy(photos / "1.png", photos / ".cache" / "thumb.png")
    (below / "loop").symlink_to(photos)
    wanted = [photos / "1.png", photos / "2.png", photos / "10.png", below / "A.JPG"]
    assert names(photos) == [str(path) for path in wanted]
    pictures = list(read_sources([photos]))
    assert [picture.source for picture in pictures] == [str(path) for path in wanted]
    assert isinstance(pictures[1], Picture)
    assert np.array_equal(pictures[1].image, make_image(seed=2))
    assert (pictures[1].frame, pictures[1].time_s) == (None, None)


def test_globs(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    below = photos / "sub"
    below.mkdir()
    shutil.copy(photos / "1.png", below / "7.png")
    (photos / "3.txt").write_text("no picture")
    assert names(f"{photos}/*") == [str(photos / f"{n}.png") for n in (1, 2, 10)]
    assert names(f"{photos}/**/*.png") == [
        *(str(photos / f"{n}.png") for n in (1, 2, 10)),
        str(below / "7.png"),
    ]
    monkeypatch.chdir(photos)
    assert names("[12].png", "1.png") == ["1.png", "2.png", "1.png"]
    (photos / "odd[1].png").write_bytes((photos / "1.png").read_bytes())
    assert names("odd[1].png") == ["odd[1].png"]  # a file of that very name goes first


def test_what_names_nothing(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    assert "an empty source" in failure("")  # not the working directory
    assert "no such file" in failure(tmp_path / "no.png")
    assert "no such file" in failure(tmp_path / "no.mp4")
    assert "no picture or video in this folder" in failure(tmp_path)
    assert "matches no picture or video" in failure(f"{tmp_path}/*.jpg")


def test_a_stream_is_refused_without_its_password() -> None:
    (item,) = read_sources(["rtsp://admin:secret@10.0.0.7/live"])
    assert isinstance(item, Failure)
    assert "10.0.0.7" in str(item.error)
    assert "secret" not in f"{item.error} {item.source}"


def test_the_stream_goes_on_past_bad_files(photos: Path) -> None:
    (photos / "2.png").write_bytes((photos / "2.png").read_bytes()[:300])
    (photos / "3.png").touch()
    items = list(read_sources([photos / "no.png", photos]))
    assert [type(item) for item in items] == [Failure, Picture, Failure, Failure, Picture]
    for item, word in ((items[0], "no such file"), (items[2], "cut short"), (items[3], "empty")):
        assert isinstance(item, Failure)
        assert str(item.error).startswith(item.source)
        assert word in str(item.error)


def test_a_folder_that_cannot_be_listed(photos: Path) -> None:
    below = photos / "sub"
    below.mkdir()
    (photos / "tail").mkdir()
    shutil.copy(photos / "1.png", photos / "tail" / "9.png")
    stream = read_sources([photos])
    first = next(stream)
    below.rmdir()  # seen already, entered next
    items = [first, *stream]
    assert [type(item) for item in items] == [Picture, Picture, Picture, Picture, Failure]
    assert items[-1].source == str(below)
    assert "cannot be listed" in str(items[-1].error)  # type: ignore[union-attr]


def test_nothing_is_read_ahead(photos: Path) -> None:
    stream = read_sources([photos])
    assert len(list(islice(stream, 1))) == 1
    (photos / "10.png").unlink()  # not read yet, so its absence is met on the way
    rest = list(stream)
    assert [type(item) for item in rest] == [Picture, Failure]


def test_video_frames(clip: Path, tmp_path: Path) -> None:
    levels = write_clip(tmp_path / "again.mp4")
    frames = list(read_sources([clip]))
    assert len(frames) == 12
    for index, (frame, level) in enumerate(zip(frames, levels, strict=True)):
        assert isinstance(frame, Picture)
        assert (frame.source, frame.frame) == (str(clip), index)
        assert frame.time_s == pytest.approx(index / 10, abs=1e-3)
        assert frame.image.shape == (48, 64, 3)
        assert frame.image.mean() == pytest.approx(level, abs=4)  # the codec is lossy


def test_frames_are_rgb(tmp_path: Path) -> None:
    import cv2

    path = tmp_path / "red.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for _ in range(3):
        writer.write(np.full((48, 64, 3), (0, 0, 255), np.uint8))  # OpenCV writes BGR
    writer.release()
    frame = next(read_video(path))
    assert frame.rgb().reshape(-1, 3).mean(axis=0) == pytest.approx([255, 0, 0], abs=6)


@pytest.mark.parametrize(
    ("sampling", "wanted"),
    [
        (Sampling(every=5), [0, 5, 10]),
        (Sampling(every=100), [0]),
        (Sampling(fps=2.0), [0, 5, 10]),
        (Sampling(fps=4.0), [0, 3, 5, 8, 10]),
        (Sampling(fps=100.0), list(range(12))),
    ],
)
def test_sampling(clip: Path, sampling: Sampling, wanted: list[int]) -> None:
    assert [frame.index for frame in read_video(clip, sampling)] == wanted


def test_senseless_sampling() -> None:
    for wrong in ({"every": 0}, {"fps": 0.0}, {"fps": float("nan")}):
        with pytest.raises(UsageError):
            Sampling(**wrong)


def test_bad_videos(tmp_path: Path, clip: Path) -> None:
    empty, text, cut = tmp_path / "empty.mp4", tmp_path / "text.mp4", tmp_path / "cut.mp4"
    empty.touch()
    text.write_text("this is a text file\n" * 50)
    cut.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])  # the index at its end is gone
    assert "empty (0 bytes)" in failure(empty)
    assert "not a video, or a damaged" in failure(text)
    assert "not a video, or a damaged" in failure(cut)


def test_a_video_that_ends_early_gives_its_frames_then_the_error(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.mkv", tmp_path / "cut.mkv"
    write_clip(whole, frames=12, fourcc="MJPG")
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    assert len(list(read_video(whole))) == 12
    frames = read_video(cut)
    taken = []
    with pytest.raises(SourceError, match=r"cut short or damaged, it ends after \d+ frames"):
        for frame in frames:
            taken.append(frame.index)
    assert taken == list(range(len(taken)))
    assert 3 <= len(taken) < 11
