"""Frames of a video file, one at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from grmp_edge.errors import SourceError, UsageError
from grmp_edge.preprocess import opencv_silent, swap_red_blue

__all__ = ["VIDEO_SUFFIXES", "Frame", "Sampling", "read_video"]

VIDEO_SUFFIXES = frozenset(
    {".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg",
     ".mts", ".ogv", ".ts", ".webm", ".wmv"}
)  # fmt: skip

# A container may promise a few frames more than it holds (edit lists, a count estimated from the duration);
# a file that lacks more than this share has been cut short.
_MISSING_SHARE = 0.05


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

    image: npt.NDArray[np.uint8]  # (H, W, 3); a video's is valid only until the next frame is read
    bgr: bool  # the channel order, which is cheaper to reverse once the picture is small
    index: int | None = None  # in its video, from 0
    time_s: float | None = None  # position in its video in seconds

    def rgb(self) -> npt.NDArray[np.uint8]:
        """uint8 (H, W, 3) RGB; a new array if the order had to be reversed."""
        return swap_red_blue(self.image) if self.bgr else self.image


def read_video(path: Path, sampling: Sampling | None = None, after: int = -1) -> Iterator[Frame]:
    """Yield frames of a video file, BGR, all in one buffer: allocating each 1080p frame would cost more
    than squashing it.

    Args:
        path: the video file.
        sampling: which frames to take (default all), counted from the beginning whatever ``after`` is.
        after: skip frames up to this index: they are decoded, since later ones depend on them, but not
            converted.

    Raises:
        SourceError: the file is missing, empty, not a video, or ends early (after its readable frames).
    """
    sampling = sampling or Sampling()
    if not path.is_file():
        raise SourceError(f"{path}: no such file", "check the path")
    if path.stat().st_size == 0:
        raise SourceError(f"{path}: the file is empty (0 bytes)", "copy it again")
    capture = _open(path)
    try:
        if not capture.isOpened():
            raise SourceError(
                f"{path}: not a video, or a damaged or truncated one",
                "check that a player plays it; copy it again",
            )
        yield from _frames(capture, path, sampling, after)
    finally:
        capture.release()


def _open(path: Path) -> cv2.VideoCapture:
    # OpenCV reads this when it first opens a video; without it FFmpeg prints its own lines about damage.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    backends = cv2.videoio_registry.getBackends()
    # FFmpeg by name: otherwise other backends try next, print, and read "shot1.mp4" as an image sequence.
    with opencv_silent():
        return cv2.VideoCapture(str(path), cv2.CAP_FFMPEG if cv2.CAP_FFMPEG in backends else cv2.CAP_ANY)


def _frames(capture: cv2.VideoCapture, path: Path, sampling: Sampling, after: int) -> Iterator[Frame]:
    promised = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    rate = capture.get(cv2.CAP_PROP_FPS)
    index, slot = 0, -1
    buffer: npt.NDArray[np.uint8] | None = None
    while capture.grab():
        time_s = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000.0
        if time_s <= 0 < index and rate > 0:  # a container without time stamps
            time_s = index / rate
        sampled = index % sampling.every == 0
        if sampled and sampling.fps is not None:
            # The first frame in each slot of 1/fps seconds.
            now = int(time_s * sampling.fps + 1e-6)
            sampled, slot = now > slot, max(now, slot)
        if sampled and index > after:
            ok, decoded = capture.retrieve(buffer)
            if not ok:
                raise SourceError(f"{path}: frame {index} cannot be decoded", "copy the video again")
            buffer = np.asarray(decoded, dtype=np.uint8)
            yield Frame(buffer, True, index, time_s)
        index += 1
    if index == 0:
        raise SourceError(
            f"{path}: none of its frames can be decoded", "check that a player plays it; copy it again"
        )
    if promised > 0 and promised - index > 1 + _MISSING_SHARE * promised:
        raise SourceError(
            f"{path}: cut short or damaged, it ends after {index} of {promised:.0f} frames", "copy it again"
        )
