"""Opening a live source: something that gives one frame after another and can be closed."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from grmp_edge.errors import SourceError
from grmp_edge.preprocess import opencv_silent
from grmp_edge.redact import scrub
from grmp_edge.runtime.video.config import CaptureConfig
from grmp_edge.runtime.video.rtsp import RtspRelay, wait_for_rtsp

__all__ = ["Capture", "EndOfStream", "PermanentSourceError", "is_live", "open_capture"]

UInt8Array = npt.NDArray[np.uint8]

# Read by OpenCV at each opening; set here, before there are threads, as setting them is not safe later.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
# prefer_tcp is OpenCV's own choice, which any options of ours replace. fpsprobesize: FFmpeg would look at two
# seconds of the stream to guess a frame rate that nobody asks for, and opening holds up all other openings.
os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "rtsp_flags;prefer_tcp|fpsprobesize;0")

# OpenCV opens one FFmpeg stream at a time, whatever the threads (opencv issue 17057). Its own lock cannot be
# seen from here: whoever waited in it would look as if the camera hung.
_TURN = threading.Lock()
_LOOK_S = 0.25  # how often one that waits for its turn looks whether it is still wanted


class PermanentSourceError(SourceError):
    """Trying again cannot help: a wrong name, or something OpenCV was built without."""


class EndOfStream(SourceError):  # noqa: N818 - the name says that it is no fault
    """A file that is not to be looped has ended."""


class Capture(Protocol):
    """An open source. Used by one thread."""

    def grab(self) -> None:
        """Wait for the next frame and take it in, as cheaply as can be.

        Raises:
            SourceError: the source ended, failed or timed out.
        """

    def stamp_s(self) -> float | None:
        """The grabbed frame's time in the stream in seconds, where a network stream has one."""

    def overtaken(self) -> bool:
        """Whether a newer frame has come already, where there is no time stamp to tell it by."""

    def retrieve(self) -> UInt8Array:
        """The frame of the last :meth:`grab`, uint8 (H, W, 3) BGR.

        Raises:
            SourceError: it cannot be decoded.
        """

    def close(self) -> None:
        """Let go of the source; never raises."""


def is_live(source: str) -> bool:
    """Whether a word on the command line names a live source, and not a file or folder."""
    known = ("gst:", "file:", "rtsp://", "rtsps://", "http://", "https://", "/dev/video")
    return source.isdigit() or source.startswith(known)


def open_capture(config: CaptureConfig, calling: Callable[[bool], bool] | None = None) -> Capture:
    """Open what ``config.source`` names and wait until it answers.

    Args:
        config: the camera.
        calling: told with False when it begins to wait for its turn among other cameras, and with True
            before the source itself is called; its answer is whether to go on.

    Raises:
        PermanentSourceError: it can never work as it is written.
        SourceError: it does not work now.
    """
    source = config.source
    if source.startswith("file:"):
        with _turn(config, calling):
            return FileCapture(config)
    if source.startswith("gst:"):
        _need_gstreamer()
        return OpenCvCapture(config, source[4:], cv2.CAP_GSTREAMER)
    if source.startswith(("rtsp://", "rtsps://")):
        wait_for_rtsp(config)
        with _turn(config, calling):
            # Not before its turn: it waits for FFmpeg no longer than a camera may take to open.
            relay = RtspRelay(config) if RtspRelay.helps(config) else None
            try:
                return OpenCvCapture(config, relay.url if relay else source, cv2.CAP_FFMPEG, relay)
            except BaseException:
                if relay is not None:
                    relay.close()
                raise
    if source.startswith(("http://", "https://")):
        from grmp_edge.runtime.video.capture_http import open_http

        if (found := open_http(config)) is not None:
            return found
        with _turn(config, calling):
            return OpenCvCapture(config, source, cv2.CAP_FFMPEG)
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


@contextlib.contextmanager
def _turn(config: CaptureConfig, calling: Callable[[bool], bool] | None) -> Iterator[None]:
    """The right to open a stream by FFmpeg."""
    calling = calling or (lambda now: True)
    calling(False)
    while not _TURN.acquire(timeout=_LOOK_S):
        if not calling(False):
            raise SourceError(f"{config.label}: not opened, as it is to end")
    try:
        calling(True)
        yield
    finally:
        _TURN.release()


class OpenCvCapture:
    """A device, network stream or pipeline read by OpenCV."""

    def __init__(
        self, config: CaptureConfig, target: Any, backend: int, relay: RtspRelay | None = None
    ) -> None:
        """``relay`` is what it is read through; closed with it."""
        self._label, self._relay = config.label, relay
        self._stamped = backend == cv2.CAP_FFMPEG
        options: list[int] = []
        if backend == cv2.CAP_FFMPEG:
            options = [
                cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, round(config.open_timeout_s * 1000),
                cv2.CAP_PROP_READ_TIMEOUT_MSEC, round(config.read_timeout_s * 1000),
                # More threads decode ahead: each holds a frame back, and cameras outnumber cores anyway.
                cv2.CAP_PROP_N_THREADS, 1,
            ]  # fmt: skip
        started = time.monotonic()
        with opencv_silent():
            self._capture: cv2.VideoCapture = cv2.VideoCapture(target, backend, options)
        if not self._capture.isOpened():
            self._capture.release()
            waited = time.monotonic() - started
            how = "no answer" if waited >= 0.9 * config.open_timeout_s else "cannot be opened"
            raise SourceError(
                f"{self._label}: {how} after {waited:.1f} s",
                "check that the camera is on, its address, and its user and password",
            )
        if backend == cv2.CAP_V4L2:  # the driver's queue is old frames; not every driver obeys
            self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)

    def grab(self) -> None:
        """Wait for the next frame and take it in."""
        if not self._capture.grab():
            raise SourceError(f"{self._label}: the stream ended or timed out", "it is opened again")

    def stamp_s(self) -> float | None:
        """The frame's time in a network stream, in seconds."""
        return self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000.0 if self._stamped else None

    def overtaken(self) -> bool:
        """False: what waits inside of OpenCV cannot be seen."""
        return False

    def retrieve(self) -> UInt8Array:
        """The frame, uint8 (H, W, 3) BGR."""
        try:
            ok, image = self._capture.retrieve()
        except cv2.error as error:
            raise SourceError(f"{self._label}: a frame cannot be decoded ({scrub(str(error))})") from None
        if not ok or image is None or image.size == 0:
            raise SourceError(f"{self._label}: a frame cannot be decoded", "it is opened again")
        if image.ndim == 2 or image.shape[2] == 1:
            image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
        return np.asarray(image, dtype=np.uint8)

    def close(self) -> None:
        """Let go of the stream."""
        if self._relay is not None:  # first: a release that waits for the camera then ends
            self._relay.close()
        self._capture.release()


class FileCapture:
    """A video file played at its own speed, as a camera for trials and tests."""

    def __init__(self, config: CaptureConfig) -> None:
        self._label, self._loop = config.label, config.loop
        self._path = Path(config.source.removeprefix("file:"))
        if not self._path.is_file():
            raise PermanentSourceError(f"{self._label}: no such file", "check the path after file:")
        self._inner = OpenCvCapture(config, str(self._path), cv2.CAP_FFMPEG)
        rate = self._inner._capture.get(cv2.CAP_PROP_FPS)
        self._period = 1.0 / rate if 0 < rate <= 1000 else 0.04
        self._due = time.monotonic()

    def grab(self) -> None:
        """Wait until the next frame is due and take it in."""
        delay = self._due - time.monotonic()
        if delay > 0:
            time.sleep(min(delay, 1.0))
        # A file has no camera behind it: after a stall it goes on, and does not hurry after the clock.
        self._due = max(self._due + self._period, time.monotonic() - self._period)
        if self._inner._capture.grab():
            return
        if not self._loop:
            raise EndOfStream(f"{self._label}: the file has ended")
        self._inner._capture.set(cv2.CAP_PROP_POS_FRAMES, 0)
        if not self._inner._capture.grab():
            raise SourceError(f"{self._label}: no frame can be decoded", "copy the file again")

    def stamp_s(self) -> float | None:
        """None: the file is played by our own clock."""
        return None

    def overtaken(self) -> bool:
        """False: a file has no newer frame than the one that is due."""
        return False

    def retrieve(self) -> UInt8Array:
        """The frame, uint8 (H, W, 3) BGR."""
        return self._inner.retrieve()

    def close(self) -> None:
        """Close the file."""
        self._inner.close()


def _need_gstreamer() -> None:
    found = re.search(r"GStreamer:\s*(\w+)", cv2.getBuildInformation())
    if found is None or found.group(1).upper() != "YES":
        raise PermanentSourceError(
            "gst: pipelines need an OpenCV built with GStreamer, and this one is not",
            "use the system's OpenCV (JetPack: python3-opencv), or give an rtsp:// address",
        )
