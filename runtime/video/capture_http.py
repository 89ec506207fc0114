"""MJPEG streams and snapshots over HTTP, read against deadlines."""

from __future__ import annotations

import array
import contextlib
import http.client
import re
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from grmp_edge.errors import GrmpError, SourceError
from grmp_edge.picture_header import PictureLimits
from grmp_edge.preprocess import decode_picture, swap_red_blue
from grmp_edge.redact import scrub
from grmp_edge.runtime.http_get import http_errors, open_url
from grmp_edge.runtime.video.config import CaptureConfig

__all__ = ["MjpegCapture", "SnapshotCapture", "jpeg_end", "open_http"]

UInt8Array = npt.NDArray[np.uint8]

_MAX_PICTURE = 64 << 20  # bytes of one JPEG: an endless one must not fill the memory
_LIMITS = PictureLimits()  # no camera sends more, and a few kB can declare it
_MAX_LINE = 4096
_UNTYPED = frozenset({"application/octet-stream", "binary/octet-stream", "text/plain"})  # the last: no type
_SOI = b"\xff\xd8\xff"  # how each JPEG begins
_PICTURES = (b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*")
# In the entropy-coded data of a JPEG: a marker that ends it (not a stuffed byte, a restart or filling).
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_SNAPSHOT_PERIOD = 1.0  # seconds between snapshots if max_fps is not set: their servers are slow


def open_http(config: CaptureConfig) -> MjpegCapture | SnapshotCapture | None:
    """Open an HTTP source according to its content type; None: neither MJPEG nor a picture, so for FFmpeg.

    Raises:
        SourceError: no answer, or an error status.
    """
    response = _request(config)
    kind = response.headers.get_content_type()
    body = _Body(response, config.label, config.read_timeout_s)
    if kind.startswith("multipart/"):
        return MjpegCapture(config, response, body)
    if kind in _UNTYPED:
        kind = _sniffed(response, body)
        if kind == "multipart/x-mixed-replace":
            return MjpegCapture(config, response, body)
    response.close()
    if kind.startswith("image/"):
        return SnapshotCapture(config)
    return None


def _sniffed(response: Any, body: _Body) -> str:
    """What an answer of no particular type holds, by its first bytes; "" if neither pictures nor parts."""
    body.begin()
    try:
        head = body.some()
        while len(head) < 16 and (more := body.some()):
            head += more
    except (SourceError, OSError, http.client.HTTPException):
        return ""
    body.unread(head)
    if head.lstrip(b"\r\n").startswith(b"--"):
        return "multipart/x-mixed-replace"
    if head.startswith(_SOI):  # one picture has a length; without, more follow
        return "image/jpeg" if response.headers.get("Content-Length") else "multipart/x-mixed-replace"
    return "image/*" if head.startswith(_PICTURES) or head[8:12] == b"WEBP" else ""


def _request(config: CaptureConfig) -> Any:
    with http_errors(config.label):
        # The same limit for connecting and each read: the longer of the two would hide a dead connection.
        return open_url(config.source, min(config.open_timeout_s, config.read_timeout_s))


def jpeg_end(data: bytes | bytearray) -> int | None:
    """Where the JPEG at the beginning of ``data`` ends; None: it goes on.

    Segments are skipped by their lengths, so that a thumbnail within one does not count.
    """
    at = 2
    while at + 2 <= len(data):
        if data[at] != 0xFF:  # damaged: the next marker will do
            marker = _MARKER.search(data, at)
            if marker is None:
                return None
            at = marker.start()
        kind = data[at + 1]
        if kind == 0xD9:
            return at + 2
        if kind == 0xFF:
            at += 1
        elif kind <= 0x01 or 0xD0 <= kind <= 0xD8:  # markers without a segment
            at += 2
        elif at + 4 > len(data):
            return None
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
            if kind == 0xDA:  # the scan behind this header
                marker = _MARKER.search(data, at)
                if marker is None:
                    return None
                at = marker.start()
    return None


def _decode(data: bytes, config: CaptureConfig) -> tuple[UInt8Array, str]:
    """A picture, BGR, and what is wrong with it, where such are wanted."""
    label = config.label
    try:
        _LIMITS.check(data, label)
        picture = decode_picture(data, label)
    except GrmpError as error:
        raise SourceError(error.message, error.remedy) from None
    if picture.damage and not config.score_damaged:
        raise SourceError(f"{label}: damaged ({picture.damage})", "the next may be whole")
    return swap_red_blue(picture.pixels), picture.damage


class _Body:
    """The body of an answer, read against a deadline: one that trickles in would never time out."""

    def __init__(self, response: Any, label: str, timeout_s: float) -> None:
        self._response, self._label, self._timeout_s = response, label, timeout_s
        self._until = 0.0
        self._rest = b""

    def begin(self) -> None:
        """Allow ``timeout_s`` for all reads from now on; the last read may take as long again."""
        self._until = time.monotonic() + self._timeout_s

    def some(self) -> bytes:
        """Whatever has arrived, at least one byte; b"" at the end."""
        if self._rest:
            data, self._rest = self._rest, b""
            return data
        if time.monotonic() > self._until:
            raise SourceError(f"{self._label}: too slow, nothing complete in {self._timeout_s:.0f} s")
        return bytes(self._response.read1(1 << 16))

    def unread(self, data: bytes) -> None:
        """Put ``data`` back, to be read next."""
        self._rest = data + self._rest

    def waiting(self) -> int:
        """How many bytes have arrived but are not read yet."""
        unread = array.array("i", [0])
        with contextlib.suppress(ImportError, OSError, ValueError):
            import fcntl  # missing on Windows, where only bytes already read count
            import termios

            fcntl.ioctl(self._response.fileno(), termios.FIONREAD, unread)
        return len(self._rest) + unread[0]

    def line(self, most: int) -> bytes:
        """The rest of the line, but at most ``most`` bytes; b"" at the end."""
        parts, size = [], 0
        while size < most and (data := self.some()):
            end = data.find(b"\n", 0, most - size) + 1 or min(len(data), most - size)
            self._rest = data[end:]
            parts.append(data[:end])
            size += end
            if data[end - 1 : end] == b"\n":
                break
        return b"".join(parts)

    def exactly(self, size: int) -> bytes:
        """``size`` bytes; fewer only at the end."""
        parts, got = [], 0
        while got < size and (data := self.some()):
            take = min(len(data), size - got)
            self._rest = data[take:]
            parts.append(data[:take])
            got += take
        return b"".join(parts)


class SnapshotCapture:
    """One picture per request, ``max_fps`` times a second, or once."""

    def __init__(self, config: CaptureConfig) -> None:
        self._config = config
        self._period = 1.0 / config.max_fps if config.max_fps else _SNAPSHOT_PERIOD
        self._due = time.monotonic()
        self._data, self._damage = b"", ""

    def grab(self) -> None:
        """Wait until the next picture is due and fetch it."""
        time.sleep(max(0.0, self._due - time.monotonic()))
        self._due = time.monotonic() + self._period
        with contextlib.closing(_request(self._config)) as response:
            try:
                body = _Body(response, self._config.label, self._config.read_timeout_s)
                body.begin()
                self._data = body.exactly(_MAX_PICTURE)
            except (OSError, http.client.HTTPException) as error:
                raise SourceError(f"{self._config.label}: {scrub(str(error))}", "it is tried again") from None

    def passed_over(self) -> bool:
        """False: every picture can be had."""
        return False

    def stamp_s(self) -> float | None:
        """None: there are no time stamps."""
        return None

    def overtaken(self) -> bool:
        """False: each picture is requested when it is due."""
        return False

    def retrieve(self) -> UInt8Array:
        """The picture, uint8 (H, W, 3) BGR."""
        image, self._damage = _decode(self._data, self._config)
        return image

    def damage(self) -> str:
        """In the decoder's words."""
        return self._damage

    def notice(self) -> str:
        """Nothing."""
        return ""

    def close(self) -> None:
        """Nothing to do: no connection stays open between pictures."""


class MjpegCapture:
    """An MJPEG stream: the parts of a multipart/x-mixed-replace answer, one JPEG each."""

    def __init__(self, config: CaptureConfig, response: Any, body: _Body) -> None:
        """``body`` reads ``response``."""
        self._config, self._label, self._response, self._body = config, config.label, response, body
        self._boundary = (response.headers.get_param("boundary") or "").strip('"').lstrip("-").encode()
        self._data, self._damage = b"", ""
        self._at_part = False  # the boundary before the next part has already been read

    def grab(self) -> None:
        """Read the next part."""
        self._body.begin()
        try:
            self._data = self._part()
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise SourceError(
                f"{self._label}: {scrub(str(error)) or 'the stream broke'}", "it is opened again"
            ) from None

    def _part(self) -> bytes:
        length = None
        began, self._at_part = self._at_part, False
        # The boundary and headers of the part, up to an empty line; blank lines before them are skipped.
        while True:
            line = self._body.line(_MAX_LINE)
            if not line:
                raise SourceError(f"{self._label}: the stream ended", "it is opened again")
            if (at := line.find(_SOI)) >= 0:  # a picture without headers, or without their end
                self._body.unread(line[at:])
                break
            line = line.strip(b"\0\t\r\n ")
            if not line and began:
                break
            key, _, value = line.partition(b":")
            if key.strip().lower() == b"content-length":
                length = int(value)
            began = began or bool(line)
        if length is not None:
            if not 0 < length <= _MAX_PICTURE:
                raise SourceError(f"{self._label}: a part of {length} bytes", "it is opened again")
            data = self._body.exactly(length)
            if len(data) < length:
                raise SourceError(f"{self._label}: the stream ended", "it is opened again")
            return data
        head = b""
        while len(head) < len(_SOI) and (more := self._body.some()):
            head += more
        self._body.unread(head)
        return self._until_end() if head.startswith(_SOI) else self._until_boundary()

    def _until_end(self) -> bytes:
        """A JPEG without a length: up to where it ends, not to the next one, which is yet to come."""
        data = bytearray()
        while len(data) <= _MAX_PICTURE:
            piece = self._body.some()
            if not piece:
                raise SourceError(f"{self._label}: the stream ended", "it is opened again")
            data += piece
            if (end := jpeg_end(data)) is not None:
                self._body.unread(bytes(data[end:]))
                return bytes(data[:end])
        raise SourceError(f"{self._label}: a picture that never ends", "it is opened again")

    def _until_boundary(self) -> bytes:
        """Another kind of picture without a length: everything up to the line with the boundary."""
        parts: list[bytes] = []
        size = 0
        while size <= _MAX_PICTURE:
            line = self._body.line(_MAX_LINE)
            if not line:
                raise SourceError(f"{self._label}: the stream ended", "it is opened again")
            if line.startswith(b"--") and self._boundary and self._boundary in line:
                self._at_part = True
                return b"".join(parts).rstrip(b"\r\n")
            parts.append(line)
            size += len(line)
        raise SourceError(f"{self._label}: a picture that never ends", "it is opened again")

    def passed_over(self) -> bool:
        """False: every picture can be had."""
        return False

    def stamp_s(self) -> float | None:
        """None: there are no time stamps."""
        return None

    def overtaken(self) -> bool:
        """Whether as many bytes as two such parts are waiting behind it, as after a network stall.

        One part is no sign: it may have come while this one was being decoded.
        """
        return self._body.waiting() >= 2 * len(self._data)

    def retrieve(self) -> UInt8Array:
        """The picture, uint8 (H, W, 3) BGR."""
        image, self._damage = _decode(self._data, self._config)
        return image

    def damage(self) -> str:
        """In the decoder's words."""
        return self._damage

    def notice(self) -> str:
        """Nothing."""
        return ""

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            self._response.close()
