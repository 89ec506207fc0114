"""Which way up a picture file is to be shown, by EXIF or by the properties of an AVIF, and turning it so."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, TypeVar, cast

import cv2
import numpy as np
import numpy.typing as npt

from grmp_edge.image_files import is_avif, is_jpeg, is_webp

__all__ = ["orientation_of", "upright"]

_Depth = TypeVar("_Depth", bound=np.generic)

# By EXIF orientation: whether rows and columns change places, and what is mirrored then, as cv2.flip counts.
_TURNS: tuple[tuple[bool, int | None], ...] = (
    (False, None), (False, 1), (False, -1), (False, 0), (True, None), (True, 1), (True, -1), (True, 0)
)  # fmt: skip

# What EXIF calls an AVIF's rotation (quarters against the clock) and mirroring after it (0: top and bottom).
_AVIF = {
    (0, None): 1, (1, None): 8, (2, None): 3, (3, None): 6, (0, 0): 4, (1, 0): 5, (2, 0): 2, (3, 0): 7,
    (0, 1): 2, (1, 1): 7, (2, 1): 4, (3, 1): 5,
}  # fmt: skip


def upright(image: npt.NDArray[_Depth], orientation: int) -> npt.NDArray[_Depth]:
    """Turn (H, W) or (H, W, C) of 8 or 16 bits as EXIF's ``orientation`` 1..8 asks; unchanged for 1."""
    swap, mirrored = _TURNS[orientation - 1]
    turned: Any = image
    if swap:
        turned = cv2.transpose(turned)
    if mirrored is not None:
        turned = cv2.flip(turned, mirrored)
    return cast("npt.NDArray[_Depth]", turned)


def orientation_of(data: bytes) -> int:
    """EXIF's orientation 1..8 of a JPEG, WebP or AVIF; 1 where it has none."""
    try:
        if is_jpeg(data):
            return _jpeg(data)
        if is_webp(data):
            return _webp(data)
        if is_avif(data):
            return _avif(data)
    except (struct.error, IndexError):  # truncated: other readers ignore it too
        pass
    return 1


def _jpeg(data: bytes) -> int:
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker in (0xD9, 0xDA):
            break
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            return _exif(data[at + 10 : end])
        at = end
    return 1


def _webp(data: bytes) -> int:
    at = 12
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"EXIF":
            return _exif(data[at + 8 : at + 8 + length].removeprefix(b"Exif\0\0"))
        at += 8 + length + length % 2
    return 1


def _exif(exif: bytes) -> int:
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    (at,) = struct.unpack_from(order + "I", exif, 4)
    (count,) = struct.unpack_from(order + "H", exif, at)
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind, _, value = struct.unpack_from(order + "HHIH", exif, entry)
        if (tag, kind) == (0x0112, 3) and 1 <= value <= 8:
            return int(value)
    return 1


def _avif(data: bytes) -> int:
    """By ``irot`` and ``imir`` of the primary item, in that order (ISO/IEC 23008-12, 6.5.10 and 6.5.12)."""
    meta = next((box for box in _boxes(data, 0, len(data)) if box[0] == b"meta"), None)
    if meta is None:
        return 1
    inside = {kind: (start, end) for kind, start, end in _boxes(data, meta[1] + 4, meta[2])}
    if b"pitm" not in inside or b"iprp" not in inside:
        return 1
    at = inside[b"pitm"][0]
    primary = int.from_bytes(data[at + 4 : at + (8 if data[at] else 6)], "big")
    properties: list[tuple[bytes, int]] = []
    wanted: list[int] = []
    for kind, start, end in _boxes(data, *inside[b"iprp"]):
        if kind == b"ipco":
            properties = [
                (name, data[first]) for name, first, last in _boxes(data, start, end) if first < last
            ]
        elif kind == b"ipma":
            wanted = _associated(data, start, primary) or wanted
    named = dict(properties[index - 1] for index in wanted if 0 < index <= len(properties))
    mirror = named[b"imir"] & 1 if b"imir" in named else None
    return _AVIF[named.get(b"irot", 0) & 3, mirror]


def _associated(data: bytes, at: int, item: int) -> list[int]:
    """The properties of an item in a box ``ipma``, counted from 1."""
    version, wide = data[at], data[at + 3] & 1
    (entries,) = struct.unpack_from(">I", data, at + 4)
    at += 8
    for _ in range(entries):
        (number,) = struct.unpack_from(">I" if version else ">H", data, at)
        at += 4 if version else 2
        count = data[at]
        indices = struct.unpack_from(f">{count}{'H' if wide else 'B'}", data, at + 1)
        at += 1 + count * (2 if wide else 1)
        if number == item:
            return [index & (0x7FFF if wide else 0x7F) for index in indices]
    return []


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(type, first byte of the content, end) of each box."""
    while at + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, at + 8)
            head = 16
        if size == 0 or at + size > end:  # to the end of the file, or beyond it
            size = end - at
        if size < head:
            return
        yield kind, at + head, at + size
        at += size
