"""The header of an encoded picture, read strictly before a stranger's bytes reach a decoder.

A few hundred bytes can decode to gigabytes. Where a file is ambiguous, a decoder may find another header in
it than we do, and with it another size: what is not plainly one picture of a known format is refused, as too
large if any reading of it is.
"""

from __future__ import annotations

import contextlib
import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from grmp_edge.errors import ImageError
from grmp_edge.image_files import is_jpeg, is_png, is_tiff, is_webp

__all__ = ["Header", "PictureLimits", "TooLargeError", "UnknownKindError", "read_header"]

# Bytes for each pixel at the peak of decode_image, measured with OpenCV 5: of 8 bits, of 8 bits with alpha,
# of 16 bits, of 16 bits with alpha; of animations, and of what a TIFF takes to be looked at for alpha.
_PLAIN, _ALPHA, _DEEP, _DEEP_ALPHA = 6, 14, 16, 28
_ANIMATED, _GIF, _AVIF, _TIFF = 12, 10, 16, 6

_MAX_TAGS = 512  # of a TIFF; cameras write some forty


@dataclass(frozen=True)
class Header:
    """How large a picture is, and what decoding it takes."""

    width: int
    height: int
    pixel_bytes: float  # memory for each pixel at the peak of decode_image
    buffer: int = 0  # pixels that the decoder holds at once, where the file can make it more than there are
    plain: bool = True  # whether all decoders find this header; else it is the largest that one may find

    @property
    def memory(self) -> int:
        """Bytes that decoding takes, the encoded picture aside."""
        return int(max(self.width * self.height, self.buffer) * self.pixel_bytes)


class TooLargeError(ImageError):
    """A picture beyond the limits."""


class UnknownKindError(ImageError):
    """A picture whose header cannot be read."""


@dataclass(frozen=True)
class PictureLimits:
    """What a picture from elsewhere may take."""

    pixels: int = 50_000_000  # an 8K frame is 33 million
    # Bytes while it is decoded, most of it for two copies of the pixels. A JPEG of 48 megapixels, as phones
    # make them, takes 277 MB; a PNG of as many with alpha and 16 bits would take four times that.
    memory: int = 280 << 20

    def check(self, data: bytes, name: str = "") -> Header:
        """The header of ``data``, if it keeps to the limits; messages begin with ``name``.

        Raises:
            ImageError: it is empty.
            UnknownKindError: it has no header that can be read.
            TooLargeError: it has more pixels, or takes more memory.
        """
        prefix = f"{name}: " if name else ""
        if not data:
            raise ImageError(f"{prefix}empty (0 bytes)", "send the bytes of a picture file")
        header = _read(data)
        if header is None:
            raise _unknown(prefix)
        size = f"{prefix}{header.width} x {header.height} pixels"
        if header.width * header.height > self.pixels:
            raise TooLargeError(f"{size} are more than {self.pixels}", "make the picture smaller")
        if header.memory > self.memory:
            raise TooLargeError(
                f"{size} of this kind take {-(-header.memory >> 20)} MB to decode, "
                f"more than {self.memory >> 20}",
                "make the picture smaller, or save it as an 8-bit JPEG",
            )
        if not header.plain:
            raise _unknown(prefix)
        return header


def _unknown(prefix: str) -> UnknownKindError:
    return UnknownKindError(
        f"{prefix}not a supported format, or damaged at its beginning",
        "send JPEG, PNG, WebP, GIF, BMP, TIFF or PNM",
    )


def read_header(data: bytes) -> Header | None:
    """The header of a JPEG, PNG, WebP, GIF, BMP, TIFF or PNM; None: another format, or not plainly one."""
    header = _read(data)
    return header if header is not None and header.plain else None


def _read(data: bytes) -> Header | None:
    """As :func:`read_header`, but where decoders may differ, the largest picture that one may find."""
    header = None
    with contextlib.suppress(struct.error, ValueError, IndexError, KeyError):
        header = _of_kind(data)
    if header is None and is_jpeg(data):
        header = _largest_frame(data)
    return header if header is not None and header.width > 0 and header.height > 0 else None


def _of_kind(data: bytes) -> Header | None:
    if is_jpeg(data):
        return _jpeg(data)
    if is_png(data):
        return _png(data)
    if is_webp(data):
        return _webp(data)
    if data[:6] in (b"GIF87a", b"GIF89a"):
        width, height = struct.unpack_from("<HH", data, 6)
        return Header(width, height, _GIF)
    if data[:2] == b"BM":
        return _bmp(data)
    if is_tiff(data):
        return _tiff(data)
    if data[:1] == b"P":
        return _pnm(data)
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        return _avif(data)
    if data[4:12] == b"jP  \r\n\x87\n":
        return _jp2(data)
    return None


def _of(depth: int, alpha: bool) -> int:
    """Bytes for each pixel of samples of ``depth`` bytes."""
    if depth <= 1:
        return _ALPHA if alpha else _PLAIN
    return (_DEEP_ALPHA if alpha else _DEEP) * depth // 2


def _jpeg(data: bytes) -> Header | None:
    """Up to the first scan. Between segments decoders skip whatever is no marker; here nothing may be."""
    found: tuple[int, int, int, float, bool] | None = None
    at = 2
    while data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # filling
            at += 1
            continue
        if marker in (0x00, 0x01, 0xD8, 0xD9) or 0xD0 <= marker <= 0xD7:
            return None
        (length,) = struct.unpack_from(">H", data, at + 2)
        if length < 2:
            return None
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if found is not None:
                return None
            height, width, count = struct.unpack_from(">HHB", data, at + 5)
            sampling = data[at + 11 : at + 10 + 3 * count : 3]
            sides = [(byte >> 4, byte & 15) for byte in sampling]
            if (
                len(sides) != count
                or not 1 <= count <= 4
                or not all(1 <= side <= 4 for both in sides for side in both)
            ):
                return None
            widest = max(across for across, _ in sides) * max(down for _, down in sides)
            # Of all coefficients, 16 bits each, relative to the number of pixels.
            whole = 2 * sum(across * down for across, down in sides) / widest
            found = width, height, count, whole, marker not in (0xC0, 0xC1, 0xC9)
        elif marker == 0xDA:
            if found is None:
                return None
            width, height, count, whole, scans = found
            # All coefficients are held if they come in several scans: progressive, or a scan a channel.
            held = whole if scans or data[at + 4] < count else 0.0
            return Header(width, height, max(_PLAIN, 3 + held))
        at += 2 + length
    return None


_FRAME = re.compile(rb"(?s)\xff[\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf]\0[\x0b\x0e\x11\x14]\x08(..)(..)[\1-\4]")


def _largest_frame(data: bytes) -> Header | None:
    """The largest of all that looks like the header of a frame, wherever it stands."""
    sides = [(int.from_bytes(w, "big"), int.from_bytes(h, "big")) for h, w in _FRAME.findall(data)]
    width, height = max(sides, key=math.prod, default=(0, 0))
    return Header(width, height, _PLAIN, plain=False)


def _png(data: bytes) -> Header | None:
    length, kind, width, height, depth, colour = struct.unpack_from(">I4sIIBB", data, 8)
    if (length, kind) != (13, b"IHDR"):
        return None
    alpha = colour in (4, 6) or b"tRNS" in data
    return Header(width, height, _of(2 if depth == 16 else 1, alpha))


def _webp(data: bytes) -> Header | None:
    kind = data[12:16]
    if kind == b"VP8X":
        flags, width, height = data[20], data[24:27], data[27:30]
        across, down = (1 + int.from_bytes(side, "little") for side in (width, height))
        return Header(across, down, _ANIMATED if flags & 0x02 else _of(1, bool(flags & 0x10)))
    if kind == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return Header((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, _of(1, True))
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return Header(width & 0x3FFF, height & 0x3FFF, _PLAIN)
    return None


def _bmp(data: bytes) -> Header | None:
    (size,) = struct.unpack_from("<I", data, 14)
    if size == 12:
        width, height = struct.unpack_from("<HH", data, 18)
        return Header(width, height, _PLAIN)
    if size < 36:
        return None
    width, height = struct.unpack_from("<ii", data, 18)
    return Header(width, abs(height), _of(1, True))  # a negative height means rows from the top


_TIFF_TYPES = {1: "B", 3: "H", 4: "I"}
_WIDTH, _HEIGHT, _BITS, _SAMPLES, _ROWS, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 258, 277, 278, 322, 323


def _tiff(data: bytes) -> Header | None:
    """The first picture of the file. Of a tag given twice, decoders read the one or the other."""
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, start)
    tags: dict[int, int] = {}
    plain = True
    if not 0 < count <= _MAX_TAGS:
        return None
    for at in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, number = struct.unpack_from(f"{order}HHI", data, at)
        plain = plain and tag not in tags
        before = tags.setdefault(tag, 0)
        if tag in (_WIDTH, _HEIGHT, _BITS, _SAMPLES, _ROWS, _TILE_WIDTH, _TILE_HEIGHT):
            form = _TIFF_TYPES[kind]
            size = struct.calcsize(form) * number
            # Values of more than four bytes lie elsewhere: those of the bits of several channels, all alike.
            place = at + 8 if size <= 4 else struct.unpack_from(f"{order}I", data, at + 8)[0]
            if not 1 <= number <= (64 if tag == _BITS else 1):
                return None
            tags[tag] = max(before, *struct.unpack_from(f"{order}{number}{form}", data, place))
    width, height = tags[_WIDTH], tags[_HEIGHT]
    bits, samples = tags.get(_BITS, 1), tags.get(_SAMPLES, 1)
    buffer = width * min(tags.get(_ROWS, height), height)
    if _TILE_WIDTH in tags or _TILE_HEIGHT in tags:
        buffer = tags[_TILE_WIDTH] * tags[_TILE_HEIGHT]
    if samples > 64 or bits > 64:
        return None
    peak = _of(-(-bits // 8), samples in (2, 4)) + _TIFF + samples * -(-bits // 8)
    return Header(width, height, peak, buffer, plain)


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """The kind of each box of an ISO file, and where its content begins and ends."""
    while start < end:
        size, kind = struct.unpack_from(">I4s", data, start)
        head = 8
        if size == 1:
            (size,), head = struct.unpack_from(">Q", data, start + 8), 16
        stop = end if size == 0 else start + size
        if not start + head <= stop <= end:
            raise ValueError("a box that leaves the one around it")
        yield kind, start + head, stop
        start = stop


def _inside(data: bytes, *path: bytes) -> Iterator[tuple[int, int]]:
    """Where the content of all boxes of a path lies; ``meta`` has four bytes before its own boxes."""
    places = [(0, len(data))]
    for step in path:
        places = [
            (begin + (4 if kind == b"meta" else 0), stop)
            for place in places
            for kind, begin, stop in _boxes(data, *place)
            if kind == step
        ]
    return iter(places)


def _avif(data: bytes) -> Header | None:
    """The largest of all pictures in it: other boxes say which of them is shown."""
    sides = [
        struct.unpack_from(">4xII", data, at) for at, _ in _inside(data, b"meta", b"iprp", b"ipco", b"ispe")
    ]
    return Header(max(w for w, _ in sides), max(h for _, h in sides), _AVIF) if sides else None


def _jp2(data: bytes) -> Header | None:
    """By the code stream, which decoders follow, not by the header of the file around it."""
    ((at, _),) = _inside(data, b"jp2c")
    start, _, _, right, bottom, left, top = struct.unpack_from(">IHHIIII", data, at)
    (count,) = struct.unpack_from(">H", data, at + 40)
    return Header(right - left, bottom - top, _PLAIN + 4 * count) if start == 0xFF4FFF51 else None


# Decoders end a comment at a carriage return too: there, one with such would end elsewhere than for viewers.
_PNM = re.compile(
    rb"P([1-6])(?:\s|#[^\r\n]*\n)+(\d{1,6})\s(?:\s|#[^\r\n]*\n)*(\d{1,6})\s(?:(?:\s|#[^\r\n]*\n)*(\d{1,5})\s)?"
)


def _pnm(data: bytes) -> Header | None:
    match = _PNM.match(data[:4096])
    if match is None:
        return None
    deep = match[1] not in (b"1", b"4") and (match[4] is None or int(match[4]) > 255)
    return Header(int(match[2]), int(match[3]), _of(2 if deep else 1, False))
