"""Opening a live source: something that gives one frame after another and can be closed."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from grmp_edge.errors import SourceError
from grmp_edge.preprocess import opencv_silent
from grmp_edge.redact import scrub
from grmp_edge.runtime.video.base import Capture, DamagedFrame, EndOfStream, PermanentSourceError
from grmp_edge.runtime.video.config import CaptureConfig
from grmp_edge.runtime.video.stream import FileCapture, open_stream

__all__ = ["Capture", "DamagedFrame", "EndOfStream", "PermanentSourceError", "is_live", "open_capture"]

UInt8Array = npt.NDArray[np.uint8]

# Read by OpenCV at each opening; set here, before there are threads, as setting it is not safe later.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

_POISON = np.random.default_rng(0).integers(0, 256, 64, dtype=np.uint8)  # no picture begins its rows with it


def is_live(source: str) -> bool:
    """Whether a word on the command line names a live source, and not a file or folder."""
    known = ("gst:", "file:", "rtsp://", "rtsps://", "http://", "https://", "/dev/video")
    return source.isdigit() or source.startswith(known)


def open_capture(config: CaptureConfig) -> Capture:
    """Open what ``config.source`` names and wait until it answers.

    Raises:
        PermanentSourceError: it can never work as it is written.
        SourceError: it does not work now.
    """
    source = config.source
    if source.startswith("file:"):
        return FileCapture(config)
    if source.startswith("gst:"):
        _need_gstreamer()
        return OpenCvCapture(config, source[4:], cv2.CAP_GSTREAMER)
    if source.startswith(("rtsp://", "rtsps://")):
        return open_stream(config)
    if source.startswith(("http://", "https://")):
        from grmp_edge.runtime.video.capture_http import open_http

        started = time.monotonic()
        if (capture := open_http(config)) is not None:
            return capture
        return open_stream(config, config.open_timeout_s - (time.monotonic() - started))
    if source.isdigit() or re.fullmatch(r"/dev/video[0-9]+", source):
        device = source if source.startswith("/") else f"/dev/video{source}"
        if not Path(device).exists():
            # Not permanent: a USB camera may be plugged in again.
            raise SourceError(
                f"{config.label}: no device {device}", "plug the camera in, or check its number"
            )
        return OpenCvCapture(config, int(device.removeprefix("/dev/video")), cv2.CAP_V4L2)
    raise PermanentSourceError(
        f"{config.label}: not a camera", "give 0, /dev/video0, rtsp://, http://, gst:PIPELINE or file:PATH"
    )


class OpenCvCapture:
    """A device or pipeline read by OpenCV."""

    def __init__(self, config: CaptureConfig, target: Any, backend: int) -> None:
        self._label = config.label
        self._shape: tuple[int, ...] = ()
        with opencv_silent():
            self._capture: cv2.VideoCapture = cv2.VideoCapture(target, backend)
        if not self._capture.isOpened():
            self._capture.release()
            raise SourceError(f"{self._label}: it cannot be opened", "check that the camera is on, and free")
        if backend == cv2.CAP_V4L2:  # the driver's queue is old frames; not every driver obeys
            self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)

    def grab(self) -> None:
        """Wait for the next frame and take it in."""
        if not self._capture.grab():
            raise SourceError(f"{self._label}: the stream ended or timed out", "it is opened again")

    def passed_over(self) -> bool:
        """False: every frame is decoded."""
        return False

    def stamp_s(self) -> float | None:
        """None: its time stamps are not those of the frames' arrival."""
        return None

    def overtaken(self) -> bool:
        """False: what waits inside of OpenCV cannot be seen."""
        return False

    def retrieve(self) -> UInt8Array:
        """The frame, uint8 (H, W, 3) BGR."""
        try:
            for _ in range(2):  # once more into a buffer of the right shape, where it has changed
                buffer = np.empty(self._shape, np.uint8) if self._shape else None
                if buffer is not None:
                    _poisoned(buffer)[:] = _POISON[: buffer.shape[1]].reshape(1, -1, 1)
                ok, image = self._capture.retrieve(buffer)
                if not ok or image is None or image.size == 0:
                    raise SourceError(f"{self._label}: a frame cannot be decoded", "it is opened again")
                if image is buffer:
                    break
                self._shape = image.shape if image.ndim == 3 else ()
        except cv2.error as error:
            raise SourceError(f"{self._label}: a frame cannot be decoded ({scrub(str(error))})") from None
        if image is buffer and (_poisoned(image) == _POISON[: image.shape[1]].reshape(1, -1, 1)).all():
            raise SourceError(f"{self._label}: OpenCV says that it wrote a frame, and did not")
        if image.ndim == 2 or image.shape[2] == 1:
            image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
        return np.asarray(image, dtype=np.uint8)

    def damage(self) -> str:
        """Empty: OpenCV does not tell."""
        return ""

    def notice(self) -> str:
        """Nothing."""
        return ""

    def close(self) -> None:
        """Let go of the stream."""
        self._capture.release()


def _poisoned(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The places by which an unwritten buffer is known: the beginning of some rows."""
    return image[:: max(1, len(image) // 4), : len(_POISON)]


def _need_gstreamer() -> None:
    found = re.search(r"GStreamer:\s*(\w+)", cv2.getBuildInformation())
    if found is None or found.group(1).upper() != "YES":
        raise PermanentSourceError(
            "gst: pipelines need an OpenCV built with GStreamer, and this one is not",
            "use the system's OpenCV (JetPack: python3-opencv), or give an rtsp:// address",
        )
