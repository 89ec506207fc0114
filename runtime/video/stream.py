"""Network streams, and files in the place of cameras, read by PyAV."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from grmp_edge.errors import SourceError
from grmp_edge.install import install_line
from grmp_edge.redact import split_credentials
from grmp_edge.runtime.video.base import Capture, DamagedFrame, EndOfStream, PermanentSourceError
from grmp_edge.runtime.video.config import CaptureConfig
from grmp_edge.runtime.video.decoder import (
    Converter,
    FrameClock,
    describe,
    has_pyav,
    open_decoder,
    pick_stream,
)
from grmp_edge.runtime.video.rtsp import RtspRelay, escaped
from grmp_edge.runtime.video.rtsp_login import SHA256, challenges

if TYPE_CHECKING:
    from av.codec.hwaccel import HWAccel
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

__all__ = ["FileCapture", "KeyFrames", "StreamCapture", "open_stream"]

UInt8Array = npt.NDArray[np.uint8]

# prefer_tcp: UDP only from a camera that refuses TCP. fpsprobesize: FFmpeg would look at two seconds of the
# stream to guess a frame rate that nobody asks for. live_start_index: of HLS, the newest piece.
_OPTIONS = {
    "rtsp_flags": "prefer_tcp",
    "fpsprobesize": "0",
    "user_agent": "grmp-edge",
    "live_start_index": "-1",
}
_KEYLESS_S = 10.0  # a stream without a key frame for so long has none (intra refresh), and is decoded anyway
_USUAL_GAP_S = 2.1  # 50 frames at 25 a second, as most cameras send, and a little
_GAPS = 4  # between key frames, of which their rate is the mean


def open_stream(config: CaptureConfig, within_s: float | None = None) -> Capture:
    """Open a network stream.

    Args:
        config: the camera.
        within_s: the time that is left of ``open_timeout_s``.

    Raises:
        PermanentSourceError: PyAV is missing.
        SourceError: it cannot be opened now.
    """
    need_pyav(config)
    started = time.monotonic()
    relay = RtspRelay(config) if RtspRelay.helps(config) else None
    try:
        if relay is not None:
            relay.connect()
        target = relay.url if relay else escaped(config.source)
        left = (within_s or config.open_timeout_s) - (time.monotonic() - started)
        return StreamCapture(config, target, _options(), relay, left)
    except BaseException as error:
        if relay is not None:
            relay.close()
        if not isinstance(error, LoginRefused):
            raise
        refused = error
    left = max(1.0, (within_s or config.open_timeout_s) - (time.monotonic() - started))
    asked = challenges(config.source, left)
    # The last one is the one that FFmpeg would have answered. A wrong password is not tried twice.
    if asked[-1:] == [SHA256] and relay is None and RtspRelay.log_in(config):
        return open_stream(config, left)
    raise SourceError(refused.message, _login_remedy(config.source, asked)) from None


def _login_remedy(source: str, asked: list[str]) -> str:
    """What to do about a camera that lets nobody in; ``asked``: what it wants to be answered by."""
    known = {"MD5", SHA256, "BASIC"} - ({SHA256} if source.startswith("rtsps://") else set())
    if asked and not known & set(map(str.upper, asked)):
        ways = " and ".join(dict.fromkeys(asked))
        return f"it asks for {ways}, which FFmpeg cannot answer: set it to digest by MD5"
    if not split_credentials(source)[1]:
        return f"it asks for a user and password: {source.partition('://')[0]}://USER:PASSWORD@..."
    return "check its user and password"


def need_pyav(config: CaptureConfig) -> None:
    """Raise PermanentSourceError where PyAV is missing."""
    if not has_pyav():
        raise PermanentSourceError(f"{config.label}: streams need PyAV", f"run: {install_line('video')}")


def _options() -> dict[str, str]:
    """The options for FFmpeg, with those of the environment as OpenCV reads them: ``key;value|key;value``."""
    pairs = (pair.partition(";") for pair in os.environ.get("OPENCV_FFMPEG_CAPTURE_OPTIONS", "").split("|"))
    return {**_OPTIONS, **{key: value for key, _, value in pairs if key}}


class LoginRefused(SourceError):  # noqa: N818 - the name says that it is the camera's answer
    """The camera lets nobody in; why, is found out apart."""


class KeyFrames:
    """Whether only key frames are to be decoded, by the setting ``decode``."""

    def __init__(self, config: CaptureConfig) -> None:
        self._decode, self._max_fps = config.decode, config.max_fps
        self._stamps: deque[float] = deque(maxlen=_GAPS + 1)

    def step(self, stamp_s: float | None) -> None:
        """Take in the time stamp of a key frame."""
        if stamp_s is None or (self._stamps and not 0 < stamp_s - self._stamps[-1] < 60):
            self._stamps.clear()
        if stamp_s is not None:
            self._stamps.append(stamp_s)

    @property
    def enough(self) -> bool:
        """Whether key frames alone are wanted; by ``auto`` where ``max_fps`` is reached with them.

        Whoever scores a frame a second at most is content with the usual key frame every two seconds.
        """
        if self._decode != "auto":
            return self._decode == "key"
        if self._max_fps is None or len(self._stamps) < 3:
            return False
        return self._scored(self._max_fps) >= 0.9 * self._max_fps or (
            self._max_fps <= 1.0 and 1.0 / self._rate <= _USUAL_GAP_S
        )

    @property
    def notice(self) -> str:
        """That fewer frames are scored than ``max_fps`` allows, if so; else empty."""
        if self._decode != "auto" or self._max_fps is None or not self.enough:
            return ""
        scored = self._scored(self._max_fps)
        if scored >= 0.9 * self._max_fps:
            return ""
        return f'key frames alone, one every {1.0 / scored:.1f} s (decode = "all" for max_fps)'

    @property
    def _rate(self) -> float:
        """Key frames a second."""
        return (len(self._stamps) - 1) / (self._stamps[-1] - self._stamps[0])

    def _scored(self, max_fps: float) -> float:
        """How many key frames a second would be scored."""
        # One of so many is scored; a key frame may come a quarter of the interval early.
        return self._rate / max(1, math.ceil(self._rate / max_fps - 0.25))

    def give_up(self) -> None:
        """Decode all from now on."""
        self._decode = "all"


class StreamCapture:
    """A network stream or file, packet by packet."""

    def __init__(
        self,
        config: CaptureConfig,
        target: str,
        options: dict[str, str],
        relay: RtspRelay | None = None,
        within_s: float | None = None,
    ) -> None:
        """``relay`` is what it is read through; closed with it."""
        self._config, self._label, self._relay = config, config.label, relay
        self._is_file = target.startswith("file:")
        self._keys = KeyFrames(config)
        self._convert = Converter()
        self._notice = ""
        limit = max(1.0, within_s or config.open_timeout_s)
        self._container, self._stream = self._open(target, options, limit)
        self._context = self._stream.codec_context
        self._unit = float(self._stream.time_base or 0)
        self._demuxer = self._container.demux(self._stream)
        self._opened = time.monotonic()
        self._begun = False  # a key frame has come, on which the others build
        self._key_only = False
        self._queue: deque[VideoFrame] = deque()
        self._packet: Packet[VideoStream] | None = None  # a key frame that is decoded if it is retrieved
        self._frame: VideoFrame | None = None
        self._stamp_s: float | None = None
        self._broken: float | None = None  # since when frames are damaged

    def _open(self, target: str, options: dict[str, str], limit: float) -> tuple[InputContainer, VideoStream]:
        import av

        hardware = self._hardware()
        started = time.monotonic()
        while True:
            try:
                container = av.open(
                    target,
                    options=options,
                    timeout=(limit, self._config.read_timeout_s),
                    hwaccel=hardware,
                    metadata_errors="replace",
                )
                break
            except (av.error.FFmpegError, ValueError, RuntimeError, NotImplementedError) as error:
                waited = time.monotonic() - started
                late = waited >= 0.9 * limit  # an open that is interrupted may call it invalid data
                if hardware is None or late:
                    raise self._refused(error, waited, late) from None
                # Opened once more without it: which of the two failed, an error does not say.
                hardware, self._notice = None, f"decoded in software: {self._config.hardware} does not open"
        try:
            stream = pick_stream(container, self._label)
            if hardware is not None and not stream.codec_context.is_hwaccel:
                name = stream.codec_context.name
                self._notice = f"decoded in software: {self._config.hardware} does not decode {name}"
            # More threads decode ahead: each holds a frame back, and cameras outnumber cores anyway.
            open_decoder(stream, self._label, threads=1)
        except BaseException:
            container.close()
            raise
        return container, stream

    def _hardware(self) -> HWAccel | None:
        name = self._config.hardware
        if not name:
            return None
        from av.codec.hwaccel import HWAccel, hwdevices_available

        if name not in hwdevices_available():
            self._notice = f"decoded in software: this FFmpeg has no {name}"
            return None
        return HWAccel(name, allow_software_fallback=True)

    def _refused(self, error: Exception, waited: float, late: bool) -> SourceError:
        import av

        remedy = "check that the camera is on, its address, and its user and password"
        if late or isinstance(error, av.error.ExitError):
            return SourceError(f"{self._label}: no answer after {waited:.1f} s", remedy)
        said = f"{self._label}: it cannot be opened ({describe(error)})"
        if isinstance(error, av.error.HTTPUnauthorizedError) and self._config.source.startswith("rtsp"):
            return LoginRefused(said)
        if isinstance(error, (av.error.HTTPUnauthorizedError, av.error.HTTPForbiddenError)):
            remedy = "check its user and password"
        return SourceError(said, remedy)

    def grab(self) -> None:
        """Wait for the next frame and take it in; of a file, EndOfStream at its end."""
        self._frame, self._packet = None, None
        while not self._queue:
            packet = self._next()
            if packet.size and not self._begin(packet):
                return
            try:
                self._queue.extend(self._context.decode(packet if packet.size else None))
            except self._error:
                self._mark(True)
                return
            if not packet.size and not self._queue:
                raise self._ended()
        self._frame = self._queue.popleft()
        self._stamp_s = None if self._frame.pts is None else self._frame.pts * self._unit
        self._mark(self._frame.is_corrupt or (self._broken is not None and not self._frame.key_frame))

    def _begin(self, packet: Packet[VideoStream]) -> bool:
        """Whether a packet is to be decoded now; else it is passed over, or kept until it is retrieved."""
        # Of packets, the time of decoding: that of showing goes to and fro where there are B frames.
        at = packet.dts if packet.dts is not None else packet.pts
        self._stamp_s = None if at is None else at * self._unit
        if packet.is_keyframe:
            self._keys.step(self._stamp_s)
            if self._keys.enough != self._key_only:
                self._key_only = not self._key_only
                self._context.flush_buffers()
            if self._key_only:
                self._packet = packet
                return False
            self._begun = True
        elif not self._begun and not self._key_only:
            self._begun = time.monotonic() - self._opened > _KEYLESS_S
        return self._begun and not self._key_only

    def _next(self) -> Packet[VideoStream]:
        import av

        self._error = av.error.FFmpegError
        try:
            return next(self._demuxer)
        except StopIteration:
            raise self._ended() from None
        except av.error.ExitError:
            reason = f"nothing came for {self._config.read_timeout_s:.0f} s"
            raise SourceError(f"{self._label}: {reason}", "it is opened again") from None
        except av.error.FFmpegError as error:
            raise SourceError(
                f"{self._label}: the stream broke ({describe(error)})", "it is opened again"
            ) from None

    def _ended(self) -> SourceError:
        """A file ends for good; a camera may be back."""
        end = EndOfStream if self._is_file else SourceError
        return end(f"{self._label}: the stream has ended", "it is opened again")

    def _mark(self, damaged: bool) -> None:
        now = time.monotonic()
        if not damaged:
            self._broken = None
        elif self._broken is None:
            self._broken = now
        elif now - self._broken > self._config.read_timeout_s and not self._config.score_damaged:
            waited = now - self._broken
            raise SourceError(f"{self._label}: nothing but damaged frames for {waited:.0f} s")

    def passed_over(self) -> bool:
        """Whether the packet was neither decoded nor kept."""
        return self._frame is None and self._packet is None and self._broken is None

    def stamp_s(self) -> float | None:
        """The frame's time in the stream, in seconds."""
        return self._stamp_s

    def overtaken(self) -> bool:
        """False: the time stamps tell."""
        return False

    def retrieve(self) -> UInt8Array:
        """The frame, uint8 (H, W, 3) BGR."""
        frame = self._frame if self._packet is None else self._decode_key(self._packet)
        if frame is None or (self._broken is not None and not self._config.score_damaged):
            raise DamagedFrame(f"{self._label}: a damaged frame")
        return self._convert(frame)

    def damage(self) -> str:
        """Whether the decoder knows the frame, or one that it is built on, not to be whole."""
        return "it, or a frame that it is built on, is not whole" if self._broken is not None else ""

    def _decode_key(self, packet: Packet[VideoStream]) -> VideoFrame | None:
        """A key frame by itself: drained, as the decoder would wait for those that may come before it."""
        frames = []
        with contextlib.suppress(self._error):
            frames = self._context.decode(packet)
            frames += self._context.decode(None)
        self._context.flush_buffers()
        frame = frames[-1] if frames else None
        if frame is not None and frame.interlaced_frame:
            # Of two fields only the first may be a key frame: half of a picture.
            self._keys.give_up()
            return None
        self._mark(frame is None or frame.is_corrupt)
        return frame

    def notice(self) -> str:
        """Where it is decoded, if not where that was asked for; whether fewer are scored than ``max_fps``."""
        return "; ".join(filter(None, [self._notice, self._keys.notice]))

    def close(self) -> None:
        """Let go of the stream."""
        if self._relay is not None:  # first: closing then does not wait for the camera
            self._relay.close()
        self._container.close()


class FileCapture:
    """A video file played at its own speed, as a camera for trials and tests."""

    def __init__(self, config: CaptureConfig) -> None:
        need_pyav(config)
        self._config, self._label = config, config.label
        self._path = Path(config.source.removeprefix("file:"))
        if not self._path.is_file():
            raise PermanentSourceError(f"{self._label}: no such file", "check the path after file:")
        self._clock, self._began = FrameClock(None), time.monotonic()
        self._start()

    def _start(self) -> None:
        self._inner = StreamCapture(self._config, f"file:{self._path}", {})
        self._frames = 0

    def grab(self) -> None:
        """Take in the next frame and wait until it is due."""
        try:
            self._inner.grab()
        except EndOfStream:
            if not self._config.loop:
                raise EndOfStream(f"{self._label}: the file has ended") from None
            if not self._frames:
                raise SourceError(f"{self._label}: no frame can be decoded", "copy the file again") from None
            self._inner.close()
            self._start()
            self._inner.grab()
        self._frames += 1
        due = self._began + self._clock.step(self._inner.stamp_s())
        now = time.monotonic()
        # A file has no camera behind it: after a stall it goes on, and does not hurry after the clock.
        self._began += max(0.0, now - due)
        time.sleep(min(max(0.0, due - now), 1.0))

    def passed_over(self) -> bool:
        """As of the stream."""
        return self._inner.passed_over()

    def stamp_s(self) -> float | None:
        """None: the file is played by our own clock."""
        return None

    def overtaken(self) -> bool:
        """False: a file has no newer frame than the one that is due."""
        return False

    def retrieve(self) -> UInt8Array:
        """The frame, uint8 (H, W, 3) BGR."""
        return self._inner.retrieve()

    def damage(self) -> str:
        """As of the stream."""
        return self._inner.damage()

    def notice(self) -> str:
        """As of the stream."""
        return self._inner.notice()

    def close(self) -> None:
        """Close the file."""
        self._inner.close()
