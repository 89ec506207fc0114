"""Picture files before decoding: which ones a folder holds, their format, alpha and completeness."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Collection
from pathlib import Path

__all__ = [
    "IMAGE_SUFFIXES",
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
