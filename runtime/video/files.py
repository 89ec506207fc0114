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
from grmp_edge.preprocess import opencv_silent

__all__ = ["VIDEO_SUFFIXES", "Frame", "Sampling", "read_video", "read_video_bgr"]

VIDEO_SUFFIXES = frozenset(
    {".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg",
     ".mts", ".ogv", ".ts", ".webm", ".wmv"}
)  # fmt: skip

# A container may promise a few frames more than it holds (edit lists, an estimate from the duration);
# a file missing more than this share has been cut.
_MISSING_SHARE = 0.05


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video to take."""

    every: int = 1  # each one: what was asked is not thinned out in silence
    fps: float | None = None  # at most so many a second of the video's time; None: as many as there are

    def __post_init__(self) -> None:
        if self.every < 1 or (self.fps is not None and not self.fps > 0):
            raise UsageError(
                f"cannot take every {self.every} frames at {self.fps} a second", "use positive numbers"
            )


@dataclass(frozen=True)
class Frame:
    """One frame: uint8 (H, W, 3), its index from 0 and its time in the video in seconds."""

    image: npt.NDArray[np.uint8]
    index: int
    time_s: float


def read_video(path: Path, sampling: Sampling | None = None) -> Iterator[Frame]:
    """Yield the frames that ``sampling`` (default: all) takes, RGB; one frame is held at a time.

    Raises:
        SourceError: the file is missing, empty, no video, or ends early (after its readable frames).
    """
    for frame in read_video_bgr(path, sampling):
        rgb = np.asarray(cv2.cvtColor(frame.image, cv2.COLOR_BGR2RGB), dtype=np.uint8)
        yield Frame(rgb, frame.index, frame.time_s)


def read_video_bgr(path: Path, sampling: Sampling | None = None, after: int = -1) -> Iterator[Frame]:
    """As :func:`read_video`, but BGR and in one buffer: an image holds until the next is asked for.

    A fresh array for each 1080p frame costs more than the squashing that follows, and the order of the
    channels is turned faster when the picture is small.

    Args:
        path: the video file.
        sampling: which frames to take, counted from the beginning whatever ``after`` is.
        after: frames up to this index are passed over: decoded, since others build on them, but not
            converted.
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
    # Read once by OpenCV when it first opens a video: FFmpeg would print its own lines about damage.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    backends = cv2.videoio_registry.getBackends()
    # By name, since after a failure the others try, print, and read "shot1.mp4" as a series of pictures.
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
        wanted = index % sampling.every == 0
        if wanted and sampling.fps is not None:
            # The first frame in each slot of 1/fps seconds.
            now = int(time_s * sampling.fps + 1e-6)
            wanted, slot = now > slot, max(now, slot)
        if wanted and index > after:
            ok, found = capture.retrieve(buffer)
            if not ok:
                raise SourceError(f"{path}: frame {index} cannot be decoded", "copy the video again")
            buffer = np.asarray(found, dtype=np.uint8)
            yield Frame(buffer, index, time_s)
        index += 1
    if index == 0:
        raise SourceError(
            f"{path}: no frame of it can be decoded", "check that a player plays it; copy it again"
        )
    if promised > 0 and promised - index > 1 + _MISSING_SHARE * promised:
        raise SourceError(
            f"{path}: cut short or damaged, it ends after {index} of {promised:.0f} frames", "copy it again"
        )
