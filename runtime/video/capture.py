"""Opening a live source: devices, streams, pipelines, and files played like cameras."""

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

# OpenCV reads these on every opening; set here, before any threads exist: changing them later is not safe.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
# prefer_tcp is OpenCV's own default, which setting options would drop. fpsprobesize: FFmpeg would analyse two
# seconds of the stream to estimate a frame rate that is not needed, and one opening delays all others.
os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "rtsp_flags;prefer_tcp|fpsprobesize;0")

# OpenCV opens one FFmpeg stream at a time, whatever the threads (opencv issue 17057). Its own lock is not
# visible here: a camera that waited for it would seem to hang.
_TURN = threading.Lock()
_LOOK_S = 0.25  # how often a camera that waits for its turn checks whether to go on


class PermanentSourceError(SourceError):
    """Trying again cannot help: a wrong name, or a feature that OpenCV was built without."""


class EndOfStream(SourceError):  # noqa: N818 - not a fault, so not named Error
    """A file that is not looped has ended."""


class Capture(Protocol):
    """An open source. Used by one thread."""

    def grab(self) -> None:
        """Wait for the next frame and receive it, without decoding more than necessary.

        Raises:
            SourceError: the source ended, failed or timed out.
        """

    def stamp_s(self) -> float | None:
        """The grabbed frame's time stamp in seconds; None if the source has none."""

    def overtaken(self) -> bool:
        """Whether a newer frame has already arrived; for sources without time stamps."""

    def retrieve(self) -> UInt8Array:
        """The frame of the last :meth:`grab`, uint8 (H, W, 3) BGR.

        Raises:
            SourceError: it cannot be decoded.
        """

    def close(self) -> None:
        """Release the source; never raises."""


def is_live(source: str) -> bool:
    """Whether a command-line argument names a live source, not a file or folder."""
    prefixes = ("gst:", "file:", "rtsp://", "rtsps://", "http://", "https://", "/dev/video")
    return source.isdigit() or source.startswith(prefixes)


def open_capture(config: CaptureConfig, calling: Callable[[bool], bool] | None = None) -> Capture:
    """Open ``config.source`` and wait until it answers.

    Args:
        config: the source and its timeouts.
        calling: called with False while the source waits for its turn among others, and with True before
            it is contacted itself; returns whether to go on.

    Raises:
        PermanentSourceError: it can never work as written.
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
            # Only now: the relay waits for FFmpeg no longer than a camera may take to open.
            relay = RtspRelay(config) if RtspRelay.helps(config) else None
            try:
                return OpenCvCapture(config, relay.url if relay else source, cv2.CAP_FFMPEG, relay)
            except BaseException:
                if relay is not None:
                    relay.close()
                raise
    if source.startswith(("http://", "https://")):
        from grmp_edge.runtime.video.capture_http import open_http

        if (capture := open_http(config)) is not None:
            return capture
        with _turn(config, calling):
            return OpenCvCapture(config, source, cv2.CAP_FFMPEG)
    if source.isdigit() or re.fullmatch(r"/dev/video[0-9]+", source):
        device = source if source.startswith("/") else f"/dev/video{source}"
        if not Path(device).exists():
            # Not permanent: a USB camera may be plugged back in.
            raise SourceError(
                f"{config.label}: no device {device}", "plug the camera in, or check its number"
            )
        return OpenCvCapture(config, int(device.removeprefix("/dev/video")), cv2.CAP_V4L2)
    raise PermanentSourceError(
        f"{config.label}: not a camera", "give 0, /dev/video0, rtsp://, http://, gst:PIPELINE or file:PATH"
    )


@contextlib.contextmanager
def _turn(config: CaptureConfig, calling: Callable[[bool], bool] | None) -> Iterator[None]:
    """Hold the right to open a stream with FFmpeg."""
    calling = calling or (lambda now: True)
    calling(False)
    while not _TURN.acquire(timeout=_LOOK_S):
        if not calling(False):
            raise SourceError(f"{config.label}: not opened, since it is being stopped")
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
        """``relay`` is the relay it is read through; closed with it."""
        self._label, self._relay = config.label, relay
        self._stamped = backend == cv2.CAP_FFMPEG
        options: list[int] = []
        if backend == cv2.CAP_FFMPEG:
            options = [
                cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, round(config.open_timeout_s * 1000),
                cv2.CAP_PROP_READ_TIMEOUT_MSEC, round(config.read_timeout_s * 1000),
                # More threads decode ahead: each delays by a frame, and cameras outnumber cores anyway.
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
        if backend == cv2.CAP_V4L2:  # the driver's queue holds old frames; not every driver obeys
            self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)

    def grab(self) -> None:
        """Wait for the next frame."""
        if not self._capture.grab():
            raise SourceError(f"{self._label}: the stream ended or timed out", "it is opened again")

    def stamp_s(self) -> float | None:
        """The frame's time in a network stream, in seconds."""
        return self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000.0 if self._stamped else None

    def overtaken(self) -> bool:
        """False: frames waiting inside OpenCV are not visible."""
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
        """Release the stream."""
        if self._relay is not None:  # first: a release that waits for the camera then returns
            self._relay.close()
        self._capture.release()


class FileCapture:
    """A video file played in real time: a camera for trials and tests."""

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
        """Wait until the next frame is due."""
        delay = self._due - time.monotonic()
        if delay > 0:
            time.sleep(min(delay, 1.0))
        # No camera is behind it: after a stall it continues at its own pace, without catching up.
        self._due = max(self._due + self._period, time.monotonic() - self._period)
        if self._inner._capture.grab():
            return
        if not self._loop:
            raise EndOfStream(f"{self._label}: the file has ended")
        self._inner._capture.set(cv2.CAP_PROP_POS_FRAMES, 0)
        if not self._inner._capture.grab():
            raise SourceError(f"{self._label}: no frame can be decoded", "copy the file again")

    def stamp_s(self) -> float | None:
        """None: the file is played by the local clock."""
        return None

    def overtaken(self) -> bool:
        """False: a file has no frame newer than the one that is due."""
        return False

    def retrieve(self) -> UInt8Array:
        """The frame, uint8 (H, W, 3) BGR."""
        return self._inner.retrieve()

    def close(self) -> None:
        """Close the file."""
        self._inner.close()


def _need_gstreamer() -> None:
    support = re.search(r"GStreamer:\s*(\w+)", cv2.getBuildInformation())
    if support is None or support[1].upper() != "YES":
        raise PermanentSourceError(
            "gst: pipelines need an OpenCV built with GStreamer, and this one is not",
            "use the system's OpenCV (JetPack: python3-opencv), or give an rtsp:// address",
        )
