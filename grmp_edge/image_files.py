"""Picture files before decoding: which ones a folder holds, their format, size, alpha and completeness."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Collection
from pathlib import Path

__all__ = [
    "IMAGE_SUFFIXES",
    "image_size",
    "images_below",
    "is_jpeg",
    "is_png",
    "is_tiff",
    "is_webp",
    "jpeg_is_complete",
    "may_have_alpha",
    "png_is_complete",
    "webp_orientation",
]


IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jpe", ".jpeg", ".jpg", ".jp2", ".pgm", ".png", ".pnm", ".ppm", ".tif",
     ".tiff", ".webp"}
)  # fmt: skip


def images_below(folder: Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> list[Path]:
    """All picture files in ``folder`` and its subfolders, sorted by path."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())


def is_jpeg(data: bytes) -> bool:
    """Whether ``data`` starts like a JPEG file."""
    return data[:2] == b"\xff\xd8"


def is_png(data: bytes) -> bool:
    """Whether ``data`` starts like a PNG file."""
    return data[:8] == b"\x89PNG\r\n\x1a\n"


def is_tiff(data: bytes) -> bool:
    """Whether ``data`` starts like a TIFF file."""
    return data[:4] in (b"II*\x00", b"MM\x00*")


def is_webp(data: bytes) -> bool:
    """Whether ``data`` starts like a WebP file."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


# A marker that ends entropy-coded data: no stuffed zero, restart marker or fill byte.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def jpeg_is_complete(data: bytes) -> bool:
    """Walk the segments of a JPEG to its end-of-image marker (an EXIF thumbnail has its own, inside)."""
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return True  # no marker where one is due: damaged, not truncated; left to the decoder
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == 0xD9:
            return True
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:
            marker_after = _JPEG_MARKER.search(data, at)
            if marker_after is None:
                return False
            at = marker_after.start()
    return data[at : at + 2] == b"\xff\xd9"


def png_is_complete(data: bytes) -> bool:
    """Whether a PNG reaches its IEND chunk with every checksum correct.

    Checked before decoding because libpng, unlike the other decoders, prints to stderr itself.
    """
    return bool(_png_chunks(data))


def _png_chunks(data: bytes) -> frozenset[bytes]:
    """The types of a PNG's chunks; none if it ends before IEND or a checksum fails."""
    view, at, types = memoryview(data), 8, set()
    while at + 12 <= len(data):
        length = int.from_bytes(view[at : at + 4], "big")
        end = at + 8 + length
        if zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            return frozenset()
        types.add(bytes(view[at + 4 : at + 8]))
        if b"IEND" in types:
            return frozenset(types)
        at = end + 4
    return frozenset()


def may_have_alpha(data: bytes) -> bool:
    """Whether the file may be transparent, so that decoding it again with alpha is worth the time."""
    if is_png(data):
        return data[25:26] in (b"\x04", b"\x06") or b"tRNS" in _png_chunks(data)
    if data[:6] == b"GIF89a":
        return True
    if is_webp(data):
        return data[12:16] == b"VP8L" or (data[12:16] == b"VP8X" and bool(data[20] & 0x10))
    return is_tiff(data) or data[4:12] == b"ftypavif"


def webp_orientation(data: bytes) -> int:
    """The EXIF orientation of a WebP, 1..8; 1 if it has none. OpenCV 4 does not read it."""
    at = 12
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"EXIF":
            return _exif_orientation(data[at + 8 : at + 8 + length].removeprefix(b"Exif\0\0"))
        at += 8 + length + length % 2
    return 1


def _exif_orientation(exif: bytes) -> int:
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", exif, entry)
            if (tag, kind) == (0x0112, 3) and 1 <= value <= 8:
                return int(value)
    except struct.error:  # truncated: other readers ignore it too
        pass
    return 1


def image_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) in pixels from the header of an encoded picture: checked before decoding an upload.

    Reads PNG, JPEG, WebP, GIF, BMP, TIFF and PNM. None: another format, or an unreadable header.
    """
    try:
        if is_png(data) and data[12:16] == b"IHDR":
            return _unpack(">II", data, 16)
        if is_jpeg(data):
            return _jpeg_size(data)
        if is_webp(data):
            return _webp_size(data)
        if data[:6] in (b"GIF87a", b"GIF89a"):
            return _unpack("<HH", data, 6)
        if data[:2] == b"BM":
            if _unpack("<I", data, 14)[0] == 12:
                return _unpack("<HH", data, 18)
            width, height = _unpack("<ii", data, 18)
            return abs(width), abs(height)  # a negative height means rows from the top
        if is_tiff(data):
            return _tiff_size(data)
        if data[:1] == b"P" and data[1:2] in b"123456":
            return _pnm_size(data)
    except (struct.error, ValueError, IndexError):
        pass
    return None


def _unpack(form: str, data: bytes, offset: int) -> tuple[int, int]:
    values = struct.unpack_from(form, data, offset)
    return values[0], values[-1]


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    position = 2
    while True:
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == 0xFF:  # padding
            position += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:  # no payload
            position += 2
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = _unpack(">HH", data, position + 5)
            return width, height
        elif marker in (0xD9, 0xDA):
            return None
        else:
            position += 2 + _unpack(">H", data, position + 2)[0]


def _webp_size(data: bytes) -> tuple[int, int] | None:
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = _unpack("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _tiff_size(data: bytes) -> tuple[int, int] | None:
    order = "<" if data[:2] == b"II" else ">"
    start = _unpack(f"{order}I", data, 4)[0]
    sides: dict[int, int] = {}  # by tag: 256 is the width, 257 the height
    for index in range(_unpack(f"{order}H", data, start)[0]):
        tag, kind, _ = struct.unpack_from(f"{order}HHI", data, start + 2 + 12 * index)
        if tag in (256, 257):
            form = {3: "H", 4: "I"}[kind] if kind in (3, 4) else ""
            if not form:
                return None
            sides[tag] = _unpack(order + form, data, start + 10 + 12 * index)[0]
    return (sides[256], sides[257]) if len(sides) == 2 else None


def _pnm_size(data: bytes) -> tuple[int, int] | None:
    text = re.sub(rb"#[^\n]*\n", b"\n", data[2:1024])
    match = re.match(rb"\s+(\d+)\s+(\d+)\s", text)
    return (int(match[1]), int(match[2])) if match else None
