"""Video files by OpenCV, where PyAV is not installed: what it cannot vouch for is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from grmp_edge.errors import SourceError
from grmp_edge.install import install_line
from grmp_edge.preprocess import opencv_silent
from grmp_edge.runtime.video.decoder import FrameClock, RawFrame, ends_early

__all__ = ["OpenCvFile"]

UInt8Array = npt.NDArray[np.uint8]


def _remedy() -> str:
    return f"install PyAV, which tells: {install_line('video')}"


class OpenCvFile:
    """As :class:`grmp_edge.runtime.video.decoder.VideoFile`. Close it after use.

    OpenCV says nothing of damage, and a frame that its swscale refuses (OpenCV 5: any interlaced one) comes
    as a success with what OpenCV's own buffer held before: the frame before, or anything. So a frame that is
    the last one again in every byte is refused, and so is a file whose first two are alike.
    """

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            SourceError: OpenCV cannot.
        """
        self._path = path
        self.errors: list[str] = []
        self.count = 0  # frames decoded
        self.damaged: list[int] = []
        self._last: UInt8Array | None = None
        # OpenCV reads this when it first opens a video; without it FFmpeg prints its own lines about damage.
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
        trial = self._open()
        first, second = [trial.read()[1] for _ in range(2)]
        trial.release()
        if first is None or second is None or np.array_equal(first, second):
            raise SourceError(f"{path}: OpenCV cannot decode it, or gives its first frame twice", _remedy())
        self._capture = self._open()

    def _open(self) -> cv2.VideoCapture:
        backends = cv2.videoio_registry.getBackends()
        # FFmpeg by name: otherwise other backends try next, print, and read "shot1.mp4" as an image sequence.
        with opencv_silent():
            capture = cv2.VideoCapture(
                str(self._path), cv2.CAP_FFMPEG if cv2.CAP_FFMPEG in backends else cv2.CAP_ANY
            )
        if not capture.isOpened():
            capture.release()
            raise SourceError(
                f"{self._path}: not a video, or a damaged or truncated one, or a kind that OpenCV lacks",
                f"install PyAV ({install_line('video')}); check that a player plays it; copy it again",
            )
        return capture

    def close(self) -> None:
        """Close the file."""
        self._capture.release()

    def frames(self) -> Iterator[RawFrame]:
        """Yield the frames; each picture is to be taken before the next frame."""
        promised = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        clock, index = FrameClock(1 / rate if rate > 0 else None), 0
        while self._capture.grab():
            time_s = clock.step(self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000.0)
            yield RawFrame(index, time_s, False, lambda index=index: self._picture(index))  # type: ignore[misc]
            self.count = index = index + 1
        # Too few may be a count that was never right, or a cut: nothing here can tell.
        if ends_early(self._path) or promised - index > 1 + 0.05 * promised:
            self.errors.append(f"it ends after {index} frames of {promised:.0f} by its header; {_remedy()}")

    def _picture(self, index: int) -> UInt8Array:
        ok, decoded = self._capture.retrieve()
        if not ok or decoded is None:
            raise SourceError(f"{self._path}: frame {index} cannot be decoded", "copy the video again")
        image = np.asarray(decoded, dtype=np.uint8)
        if self._last is not None and np.array_equal(image, self._last):
            raise SourceError(
                f"{self._path}: OpenCV gives the frame before {index} again, repeated or not decoded",
                _remedy(),
            )
        self._last = image
        return image
