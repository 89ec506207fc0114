"""Frames of a video file, one at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from grmp_edge.errors import SourceError, UsageError
from grmp_edge.preprocess import swap_red_blue
from grmp_edge.runtime.video.decoder import VideoFile, has_pyav
from grmp_edge.runtime.video.opencv_file import OpenCvFile

__all__ = ["VIDEO_SUFFIXES", "Frame", "Sampling", "read_video"]

VIDEO_SUFFIXES = frozenset(
    {".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg",
     ".mts", ".ogv", ".ts", ".webm", ".wmv"}
)  # fmt: skip


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video to take."""

    every: int = 1  # all of them: nothing is skipped unasked
    fps: float | None = None  # at most this many per second of video; None: all

    def __post_init__(self) -> None:
        if self.every < 1 or (self.fps is not None and not self.fps > 0):
            raise UsageError(
                f"cannot take every {self.every} frames at {self.fps} a second", "use positive numbers"
            )


@dataclass(frozen=True)
class Frame:
    """A decoded frame or picture, before its colour channels are put in order."""

    image: npt.NDArray[np.uint8]  # (H, W, 3)
    bgr: bool  # the channel order, which is cheaper to reverse once the picture is small
    index: int | None = None  # in its video, from 0
    time_s: float | None = None  # position in its video in seconds
    damage: str = ""  # of a picture: what the decoder says is wrong
    note: str = ""  # what else makes a score of it doubtful

    def rgb(self) -> npt.NDArray[np.uint8]:
        """uint8 (H, W, 3) RGB; a new array if the order had to be reversed."""
        return swap_red_blue(self.image) if self.bgr else self.image


def read_video(path: Path, sampling: Sampling | None = None, after: int = -1) -> Iterator[Frame]:
    """Yield frames of a video file, BGR, upright.

    Frames that the decoder knows to be damaged are left out, and so are those built on them, up to the next
    key frame.

    Args:
        path: the video file.
        sampling: which frames to take (default all), counted from the beginning whatever ``after`` is.
        after: skip frames up to this index: they are decoded, since later ones depend on them, but not
            converted.

    Raises:
        SourceError: the file is missing, empty, no video, or cut short or damaged (after its whole frames).
    """
    sampling = sampling or Sampling()
    if not path.is_file():
        raise SourceError(f"{path}: no such file", "check the path")
    if path.stat().st_size == 0:
        raise SourceError(f"{path}: the file is empty (0 bytes)", "copy it again")
    with contextlib.closing(VideoFile(path) if has_pyav() else OpenCvFile(path)) as video:
        yield from _sampled(video, sampling, after)
        _report(path, video)


def _sampled(video: VideoFile | OpenCvFile, sampling: Sampling, after: int) -> Iterator[Frame]:
    slot = -1
    for raw in video.frames():
        sampled = raw.index % sampling.every == 0 and not raw.damaged
        if sampled and sampling.fps is not None:
            # The first frame in each slot of 1/fps seconds.
            now = int(raw.time_s * sampling.fps + 1e-6)
            sampled, slot = now > slot, max(now, slot)
        if sampled and raw.index > after:
            yield Frame(raw.convert(), True, raw.index, raw.time_s)


def _report(path: Path, video: VideoFile | OpenCvFile) -> None:
    """Say at the end what was wrong, so that the frames that are whole have been scored."""
    problems = list(video.errors[:1])
    if video.damaged:
        which = _ranges(video.damaged)
        problems.append(f"{len(video.damaged)} of {video.count} frames are damaged and left out ({which})")
    if video.count == 0:
        reason = "".join(f" ({problem})" for problem in problems)
        remedy = "check that a player plays it; copy it again"
        raise SourceError(f"{path}: none of its frames can be decoded{reason}", remedy)
    if problems:
        raise SourceError(f"{path}: cut short or damaged, {' and '.join(problems)}", "copy it again")


def _ranges(numbers: list[int]) -> str:
    """Rising numbers in short: 3, 7 to 12, and so on."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    words = [f"{first}" if first == last else f"{first} to {last}" for first, last in runs]
    return ", ".join(words[:5] + ["..."] * (len(words) > 5))
