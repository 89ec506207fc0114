"""What a picture file tells before it is decoded: its kind, whether it is whole, whether it has alpha."""

from __future__ import annotations

import re
import struct
import zlib

__all__ = [
    "is_jpeg",
    "is_png",
    "is_tiff",
    "is_webp",
    "jpeg_is_complete",
    "may_have_alpha",
    "png_is_complete",
    "webp_orientation",
]


def is_jpeg(data: bytes) -> bool:
    """Whether ``data`` begins as a JPEG does."""
    return data[:2] == b"\xff\xd8"


def is_png(data: bytes) -> bool:
    """Whether ``data`` begins as a PNG does."""
    return data[:8] == b"\x89PNG\r\n\x1a\n"


def is_tiff(data: bytes) -> bool:
    """Whether ``data`` begins as a TIFF does."""
    return data[:4] in (b"II*\x00", b"MM\x00*")


def is_webp(data: bytes) -> bool:
    """Whether ``data`` begins as a WebP does."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


# A marker that ends entropy-coded data: not a stuffed zero, a restart marker or a fill byte.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def jpeg_is_complete(data: bytes) -> bool:
    """Walk the segments of a JPEG up to its end-of-image marker (an EXIF thumbnail has one of its own)."""
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return True  # not a marker where one is due: damaged, not short; the decoder judges
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == 0xD9:
            return True
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:
            found = _JPEG_MARKER.search(data, at)
            if found is None:
                return False
            at = found.start()
    return data[at : at + 2] == b"\xff\xd9"


def png_is_complete(data: bytes) -> bool:
    """Whether a PNG reaches its IEND chunk with every checksum right.

    Looked at before decoding because libpng, unlike the other decoders, prints to stderr itself.
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
    """Whether the file might hold transparency, so that a second decoding is worth its time."""
    if is_png(data):
        return data[25:26] in (b"\x04", b"\x06") or b"tRNS" in _png_chunks(data)
    if data[:6] == b"GIF89a":
        return True
    if is_webp(data):
        return data[12:16] == b"VP8L" or (data[12:16] == b"VP8X" and bool(data[20] & 0x10))
    return is_tiff(data) or data[4:12] == b"ftypavif"


def webp_orientation(data: bytes) -> int:
    """The EXIF orientation of a WebP, 1..8; 1 where it has none. OpenCV 4 does not read it."""
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
    except struct.error:  # cut off: other readers ignore it too
        pass
    return 1
