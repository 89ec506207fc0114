"""How large a picture will be, from its header: asked before decoding what a stranger sent."""

from __future__ import annotations

import re
import struct

__all__ = ["image_size"]


def image_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) in pixels that the header of an encoded picture promises.

    Known are PNG, JPEG, WebP, GIF, BMP, TIFF and PNM. None: another kind, or a header that cannot be read.
    """
    try:
        if data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR":
            return _unpack(">II", data, 16)
        if data[:2] == b"\xff\xd8":
            return _jpeg(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp(data)
        if data[:6] in (b"GIF87a", b"GIF89a"):
            return _gif(data)
        if data[:2] == b"BM":
            if _unpack("<I", data, 14)[0] == 12:
                return _unpack("<HH", data, 18)
            width, height = _unpack("<ii", data, 18)
            return abs(width), abs(height)  # a negative height: rows from the top
        if data[:4] in (b"II*\0", b"MM\0*"):
            return _tiff(data)
        if data[:1] == b"P" and data[1:2] in b"123456":
            return _pnm(data)
    except (struct.error, ValueError, IndexError):
        pass
    return None


def _unpack(form: str, data: bytes, offset: int) -> tuple[int, int]:
    values = struct.unpack_from(form, data, offset)
    return values[0], values[-1]


def _jpeg(data: bytes) -> tuple[int, int] | None:
    position = 2
    while True:
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == 0xFF:  # padding
            position += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:  # without content
            position += 2
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = _unpack(">HH", data, position + 5)
            return width, height
        elif marker in (0xD9, 0xDA):
            return None
        else:
            position += 2 + _unpack(">H", data, position + 2)[0]


def _webp(data: bytes) -> tuple[int, int] | None:
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


def _gif(data: bytes) -> tuple[int, int]:
    return _unpack("<HH", data, 6)


def _tiff(data: bytes) -> tuple[int, int] | None:
    order = "<" if data[:2] == b"II" else ">"
    start = _unpack(f"{order}I", data, 4)[0]
    found = {}
    for index in range(_unpack(f"{order}H", data, start)[0]):
        tag, kind, _ = struct.unpack_from(f"{order}HHI", data, start + 2 + 12 * index)
        if tag in (256, 257):
            form = {3: "H", 4: "I"}[kind] if kind in (3, 4) else ""
            if not form:
                return None
            found[tag] = _unpack(order + form, data, start + 10 + 12 * index)[0]
    return (found[256], found[257]) if len(found) == 2 else None


def _pnm(data: bytes) -> tuple[int, int] | None:
    text = re.sub(rb"#[^\n]*\n", b"\n", data[2:1024])
    found = re.match(rb"\s+(\d+)\s+(\d+)\s", text)
    return (int(found.group(1)), int(found.group(2))) if found else None
