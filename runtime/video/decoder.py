"""Video decoded by PyAV, which brings FFmpeg's own libraries: the pieces that files and cameras share."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import cv2
import numpy as np
import numpy.typing as npt

from grmp_edge.errors import SourceError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

__all__ = [
    "Converter",
    "FrameClock",
    "RawFrame",
    "VideoFile",
    "ends_early",
    "has_pyav",
    "open_decoder",
    "pick_stream",
]

UInt8Array = npt.NDArray[np.uint8]

MAX_PIXELS = 1 << 27  # 16K video has 133 million; a header that claims more would only fill the memory
_DEFAULT_PERIOD_S = 0.04  # 25 frames a second, for a stream that gives neither time stamps nor a rate
# The steps in time that the ffmpeg program believes: in formats whose clock may be set anew (MPEG-TS,
# MPEG-PS), and in all others.
_MAX_STEP_S, _MAX_STEP_ELSEWHERE_S = 10.0, 30 * 3600.0
_TS_DISCONT = 0x0200  # AVFMT_TS_DISCONT
_MAX_ERRORS = 100  # kept of one file
_UNREADABLE = "check that a player plays it; copy it again"


def has_pyav() -> bool:
    """Whether PyAV is installed and loads."""
    try:
        importlib.import_module("av")
    except ImportError:
        return False
    return True


def pick_stream(container: InputContainer, name: str) -> VideoStream:
    """The stream that a player would show: the default one, else the largest. Covers do not count.

    Raises:
        SourceError: there is none, or no decoder for it.
    """
    from av.stream import Disposition

    streams = [each for each in container.streams.video if not each.disposition & Disposition.attached_pic]
    if not streams:
        sound, cover = len(container.streams.audio), len(container.streams.video)
        if sound:
            what = "sound and a cover picture, but no video" if cover else "only sound, no picture"
            raise SourceError(f"{name}: it holds {what}", "give a video or a picture")
        raise SourceError(f"{name}: not a video, or a damaged or truncated one", _UNREADABLE)

    def weight(stream: VideoStream) -> int:  # as the ffmpeg program chooses
        default = bool(stream.disposition & Disposition.default)
        return 5_000_000 * default + (stream.width or 0) * (stream.height or 0)

    stream = max(streams, key=weight)
    if stream.codec_context is None:
        raise SourceError(
            f"{name}: no decoder for its video in this PyAV (codec tag {stream.codec_tag!r})",
            "the file may be sound; convert it to H.264",
        )
    return stream


def open_decoder(stream: VideoStream, name: str, threads: int | None = None) -> None:
    """Open the stream's decoder.

    Args:
        stream: as :func:`pick_stream` gives it.
        name: for errors.
        threads: None: one for each core, several frames at once. A number: so many within a frame, none of
            which holds a frame back.

    Raises:
        SourceError: the decoder does not open.
    """
    import av

    context = stream.codec_context
    context.options = {"max_pixels": str(MAX_PIXELS)}
    context.thread_type = "AUTO" if threads is None else "SLICE"
    context.thread_count = threads or 0
    try:
        context.open(strict=False)
    except (av.error.FFmpegError, ValueError) as error:
        reason = f"the {context.name} decoder does not open ({describe(error)})"
        raise SourceError(f"{name}: {reason}", _UNREADABLE) from None


def describe(error: BaseException) -> str:
    """What an error of FFmpeg's says, without the address that it names."""
    text: str = getattr(error, "strerror", None) or str(error)
    return text[:1].lower() + text[1:]


class Converter:
    """Turns decoded frames into BGR pictures. Used by one thread."""

    def __init__(self) -> None:
        self._kind: tuple[object, ...] = ()  # of the frames that the graph below takes
        self._push: Callable[[VideoFrame], object]
        self._pull: Callable[[], VideoFrame]

    def __call__(self, frame: VideoFrame) -> UInt8Array:
        """The frame as uint8 (H, W, 3) BGR, in memory of its own, upright.

        Matrix, range and depth are those that the stream states. Interlaced frames are taken whole.
        """
        kind = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        if kind != self._kind:
            self._build(frame)
            self._kind = kind
        self._push(frame)
        converted = self._pull()
        plane = converted.planes[0]
        pixels: Any = plane  # a buffer, which its type does not say
        rows = np.frombuffer(pixels, np.uint8).reshape(converted.height, plane.line_size)
        image = rows[:, : 3 * converted.width].reshape(converted.height, converted.width, 3)
        return _upright(image, frame)

    def _build(self, frame: VideoFrame) -> None:
        """The filters that the ffmpeg program puts between a decoder and ``-pix_fmt bgr24``.

        Not VideoFrame.reformat: it takes other places for the chroma samples, between interlaced rows and
        of 10-bit video, which moves coloured edges by as much as 8 levels on average.
        """
        from av.filter import Graph

        graph = Graph()
        graph.threads = 1  # frames and cameras are many, and the cores busy with them
        unit = frame.time_base or Fraction(1, 1000)
        source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=unit)
        scale, to_bgr = graph.add("scale", "flags=bicubic"), graph.add("format", "bgr24")
        sink = graph.add("buffersink")
        graph.link_nodes(source, scale, to_bgr, sink).configure()
        self._push, self._pull = source.push, cast("Callable[[], VideoFrame]", sink.pull)
        self._graph = graph  # which the two hold only weakly


def _upright(image: UInt8Array, frame: VideoFrame) -> UInt8Array:
    """Turned and mirrored as the display matrix says, where that is by quarter turns."""
    from av.sidedata.sidedata import SideDataContainer

    # Not frame.side_data, which makes a circle of references: frames would wait for the collector.
    container: Any = SideDataContainer  # whose argument its types leave out
    data = container(frame).get("DISPLAYMATRIX")
    if data is None:
        return image
    matrix = np.frombuffer(bytes(data), np.int32).reshape(3, 3)[:2, :2]
    # Where the two axes of the stored picture point: (right, down) is as stored.
    (a, b), (c, d) = (np.sign(row) * (abs(row) > abs(matrix).max() / 2) for row in matrix.astype(np.int64))
    if a and d:
        if a > 0 and d > 0:
            return image
        return np.asarray(cv2.flip(image, -1 if a < 0 and d < 0 else 1 if a < 0 else 0), dtype=np.uint8)
    if not (b and c):
        return image
    turned = cv2.transpose(image)  # right becomes down, down becomes right
    if b > 0 and c > 0:
        return np.asarray(turned, dtype=np.uint8)
    return np.asarray(cv2.flip(turned, -1 if b < 0 and c < 0 else 0 if b < 0 else 1), dtype=np.uint8)


class FrameClock:
    """The time of each frame, which only runs on: stamps that jump, repeat or restart are bridged."""

    def __init__(self, period_s: float | None, max_step_s: float = _MAX_STEP_ELSEWHERE_S) -> None:
        """``period_s`` bridges what ``max_step_s`` refuses to believe; None: the last step, else 0.04."""
        self._period_s, self._max_step_s = period_s, max_step_s
        self._stamp_s: float | None = None
        self._time_s: float | None = None

    def step(self, stamp_s: float | None) -> float:
        """The seconds from the first frame to this one, whose stamp is ``stamp_s`` seconds (None: none)."""
        last, self._stamp_s = self._stamp_s, stamp_s
        if self._time_s is None:
            self._time_s = 0.0
            return 0.0
        step = None if stamp_s is None or last is None else stamp_s - last
        if step is None or not 0 < step <= self._max_step_s:
            step = self._period_s or _DEFAULT_PERIOD_S
        elif self._period_s is None:
            self._period_s = step
        self._time_s += step
        return self._time_s


@dataclass(frozen=True)
class RawFrame:
    """A decoded frame that is not converted yet."""

    index: int  # from 0, of those that the decoder gives
    time_s: float  # from the first frame
    damaged: bool  # itself, or built on a damaged one
    convert: Callable[[], UInt8Array]  # uint8 (H, W, 3) BGR


class VideoFile:
    """A video file: its frames in order, and what is wrong with it. Close it after use."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            SourceError: it is no video, or cannot be opened.
        """
        self._path = path
        self.errors: list[str] = []  # of the decoder and the demuxer
        self.count = 0  # frames decoded
        self.damaged: list[int] = []  # indexes of frames that are not whole
        self._container, self._stream = self._open(None)

    def _open(self, threads: int | None) -> tuple[InputContainer, VideoStream]:
        import av

        name = str(self._path)
        try:
            # "file:", as a name such as a:b.mp4 would be taken for a protocol.
            container = av.open(f"file:{self._path}", metadata_errors="replace")
        except av.error.PermissionError:
            raise SourceError(f"{name}: permission denied", "check its permissions") from None
        except (av.error.FFmpegError, ValueError):
            raise SourceError(f"{name}: not a video, or a damaged or truncated one", _UNREADABLE) from None
        try:
            stream = pick_stream(container, name)
            open_decoder(stream, name, threads)
        except BaseException:
            container.close()
            raise
        return container, stream

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def frames(self) -> Iterator[RawFrame]:
        """Yield the frames, damaged ones too; what is wrong is in ``errors`` and ``damaged`` afterwards.

        A frame after a damaged one is built on it, up to the next key frame: it counts as damaged itself.
        """
        for raw in self._decode(several=True):
            if raw is None:
                break
            self.count = raw.index + 1
            yield raw
        else:
            self._check_end()
            return
        # With several frames decoded at once, PyAV keeps some errors to itself, and the frames behind them.
        # At the first sign the file is read again, one frame at a time, up to where it was.
        self.close()
        self.errors, self.damaged = [], []
        self._container, self._stream = self._open(1)
        for raw in self._decode(several=False):
            if raw is not None and raw.index >= self.count:
                self.count = raw.index + 1
                yield raw
        self._check_end()

    def _decode(self, several: bool) -> Iterator[RawFrame | None]:
        """The frames; None, once, where ``several`` at once no longer go without loss."""
        import av

        rate = self._stream.average_rate
        discontinuous = bool(int(self._container.format.flags) & _TS_DISCONT)
        limit = _MAX_STEP_S if discontinuous else _MAX_STEP_ELSEWHERE_S
        clock = FrameClock(float(1 / rate) if rate else None, limit)
        context, unit = self._stream.codec_context, float(self._stream.time_base or 0)
        index, broken, begun, convert = 0, False, False, Converter()
        pending: set[int] = set()  # time stamps of packets whose frames have not come
        for packet in self._packets():
            begun = begun or packet.is_keyframe
            if several and packet.size and not packet.is_discard:
                if packet.pts is None:
                    yield None
                    return
                pending.add(packet.pts)
            try:
                frames = context.decode(packet if packet.size else None)
            except av.error.FFmpegError as error:
                if several:
                    yield None
                    return
                if begun:  # what begins between two key frames lacks what its first frames are built on
                    self._note(f"a frame after {index} others cannot be decoded ({describe(error)})")
                    broken = True
                continue
            for frame in frames:
                pending.discard(frame.pts)
                if several and (frame.pts is None or any(stamp < frame.pts for stamp in pending)):
                    yield None
                    return
                broken = frame.is_corrupt or (broken and not frame.key_frame)
                if broken:
                    self.damaged.append(index)
                time_s = clock.step(None if frame.pts is None else frame.pts * unit)
                yield RawFrame(index, time_s, broken, partial(convert, frame))
                index += 1
        if several and pending:
            yield None

    def _packets(self) -> Iterator[Packet[VideoStream]]:
        import av

        demuxer = self._container.demux(self._stream)
        while True:
            try:
                packet = next(demuxer)
            except StopIteration:
                return
            except av.error.FFmpegError as error:
                self._note(f"it cannot be read further ({describe(error)})")
                return
            yield packet

    def _check_end(self) -> None:
        if ends_early(self._path):
            self._note(f"it ends after {self.count} frames, in the middle of its data")

    def _note(self, text: str) -> None:
        if len(self.errors) < _MAX_ERRORS:
            self.errors.append(text)


def ends_early(path: Path) -> bool:
    """Whether a Matroska or AVI file is shorter than its outermost element says.

    FFmpeg's demuxers take the end of such a file for the end of the video, and say so in their log alone.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(4096)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        length = int.from_bytes(head[4:8], "little")
        return 8 + length > size > 12 and length > 0
    if head[:4] != b"\x1aE\xdf\xa3":
        return False
    header, at = _ebml_size(head, 4)
    at += header or 0
    if header is None or head[at : at + 4] != b"\x18S\x80g":
        return False
    segment, at = _ebml_size(head, at + 4)
    return segment is not None and at + segment > size


def _ebml_size(data: bytes, at: int) -> tuple[int | None, int]:
    """An EBML size (RFC 8794, 4) and where it ends; None: unknown, as of what was written live."""
    if at >= len(data) or data[at] == 0:
        return None, at
    width = 9 - data[at].bit_length()
    value = int.from_bytes(data[at : at + width], "big") & ((1 << 7 * width) - 1)
    return (None if value == (1 << 7 * width) - 1 else value), at + width
