"""Picture files before decoding: which ones a folder holds, their format, alpha and completeness."""

from __future__ import annotations

import re
import stat
import zlib
from collections.abc import Collection
from pathlib import Path

from grmp_edge.errors import ImageError

__all__ = [
    "IMAGE_SUFFIXES",
    "images_below",
    "is_avif",
    "is_jpeg",
    "is_png",
    "is_tiff",
    "is_webp",
    "jpeg_is_complete",
    "may_have_alpha",
    "other_kind",
    "png_essential",
    "png_is_complete",
    "read_file",
    "special_kind",
]


IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".heif", ".hif", ".jpe", ".jpeg", ".jpg", ".jp2", ".jxl", ".pgm",
     ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)  # fmt: skip


_MAX_PIPE = 1 << 30  # bytes: an endless one must not fill the memory


def images_below(folder: Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> list[Path]:
    """All picture files in ``folder`` and its subfolders, sorted by path."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())


def special_kind(path: Path) -> str:
    """What a path is if neither file nor folder: a named pipe, device or socket; else "".

    Raises:
        OSError: there is nothing, or it cannot be looked at.
    """
    mode = path.stat().st_mode
    kinds = {
        stat.S_IFIFO: "named pipe",
        stat.S_IFSOCK: "socket",
        stat.S_IFCHR: "device",
        stat.S_IFBLK: "device",
    }
    return kinds.get(stat.S_IFMT(mode), "")


def read_file(path: Path) -> bytes:
    """All of a file, or of a pipe up to its end, as the shell makes for ``<(command)``.

    Raises:
        ImageError: a device or socket, which has no end, or a pipe with too much in it.
        OSError: it cannot be read.
    """
    kind = special_kind(path)
    if kind in ("socket", "device"):
        raise ImageError(f"{path}: a {kind}, not a picture file", "give a file")
    with path.open("rb") as stream:
        data = stream.read(_MAX_PIPE + 1 if kind else -1)
    if kind and len(data) > _MAX_PIPE:
        raise ImageError(f"{path}: a pipe with more than {_MAX_PIPE >> 20} MB", "give a file")
    return data


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


def png_essential(data: bytes) -> bytes:
    """A PNG without the chunks that change no pixel, of which libpng prints warnings; b"" if incomplete."""
    chunks = _png_chunks(data)
    if not chunks:
        return b""
    if all(kind[0] < 0x60 or kind in _PNG_SHOWN for kind, _ in chunks):
        return data
    view = memoryview(data)
    parts = [view[part] for kind, part in chunks if kind[0] < 0x60 or kind in _PNG_SHOWN]
    return b"".join([view[:8], *parts])


# Transparency, orientation, and the frames of an animation; of the others' names, the first letter is small.
_PNG_SHOWN = frozenset({b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT"})


def _png_chunks(data: bytes) -> list[tuple[bytes, slice]]:
    """(type, place) of a PNG's chunks; none if it ends before IEND or a checksum fails."""
    view, at = memoryview(data), 8
    chunks: list[tuple[bytes, slice]] = []
    while at + 12 <= len(data):
        length = int.from_bytes(view[at : at + 4], "big")
        end = at + 8 + length
        if zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            return []
        chunks.append((bytes(view[at + 4 : at + 8]), slice(at, end + 4)))
        if chunks[-1][0] == b"IEND":
            return chunks
        at = end + 4
    return []


def may_have_alpha(data: bytes) -> bool:
    """Whether the file may be transparent, so that decoding it again with alpha is worth the time."""
    if is_png(data):
        return data[25:26] in (b"\x04", b"\x06") or b"tRNS" in dict(_png_chunks(data))
    if data[:6] == b"GIF89a":
        return True
    if is_webp(data):
        return data[12:16] == b"VP8L" or (data[12:16] == b"VP8X" and bool(data[20] & 0x10))
    return is_tiff(data) or is_avif(data)


def is_avif(data: bytes) -> bool:
    """Whether ``data`` starts like an AVIF file."""
    return bool({b"avif", b"avis"} & _brands(data))


def other_kind(data: bytes) -> str:
    """``HEIC`` or ``JPEG XL`` where ``data`` starts like that, which OpenCV does not read; else ""."""
    if data[:2] == b"\xff\x0a" or data[:12] == b"\0\0\0\x0cJXL \r\n\x87\n":
        return "JPEG XL"
    return "HEIC" if _HEIF_BRANDS & _brands(data) and not is_avif(data) else ""


_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1"})


def _brands(data: bytes) -> set[bytes]:
    """The four-letter names that a file of ISO's base media format gives itself."""
    if data[4:8] != b"ftyp":
        return set()
    size = min(int.from_bytes(data[:4], "big"), 256)
    return {data[at : at + 4] for at in (8, *range(16, size, 4))}
