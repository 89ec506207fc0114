"""Small pictures that ask a decoder for a lot of memory, or hide what they are. Made here, byte by byte."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
from conftest import encode, make_image
from PIL import Image

__all__ = ["hostile", "png"]


def png(width: int, height: int, depth: int = 8, colour: int = 2, interlaced: bool = False) -> bytes:
    """A PNG that declares width x height pixels and has a megabyte of zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    pixels = zlib.compress(b"\0" * 1_000_000, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _sized(data: bytes, width: int, height: int) -> bytes:
    """A JPEG with another size in its frame header."""
    at = next(data.index(bytes([0xFF, kind])) for kind in (0xC0, 0xC2) if bytes([0xFF, kind]) in data)
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def _entry(tag: int, kind: int, value: int) -> bytes:
    packed = struct.pack("<HH", value, 0) if kind == 3 else struct.pack("<I", value)
    return struct.pack("<HHI", tag, kind, 1) + packed


def _tiff(*more: bytes, width: int = 10, height: int = 10, bits: int = 8, samples: int = 1) -> bytes:
    entries = sorted(
        [
            _entry(256, 4, width), _entry(257, 4, height), _entry(258, 3, bits), _entry(259, 3, 1),
            _entry(262, 3, 1), _entry(273, 4, 8), _entry(277, 3, samples), _entry(279, 4, 1000), *more,
        ],
        key=lambda entry: struct.unpack("<H", entry[:2])[0],
    )  # fmt: skip
    table = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 1008) + bytes(1000) + table


def _bmp(width: int, height: int, bits: int) -> bytes:
    """A BMP without its pixels; those of 8 bits are run lengths."""
    packed = int(bits == 8)
    return struct.pack("<2sIIIIiiHHI20x", b"BM", 99, 0, 54, 40, width, height, 1, bits, packed) + bytes(99)


def hostile() -> dict[str, bytes]:
    """By name; none of them is a picture that should be scored."""
    small = make_image(40, 40)
    jpeg = encode(small, "JPEG")
    progressive = encode(
        Image.fromarray(np.dstack([small, small[:, :, :1]]), "CMYK"), "JPEG", progressive=True
    )
    webp = encode(small, "WEBP")
    alpha = encode(Image.fromarray(small).convert("RGBA"), "WEBP", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0")
    animated = encode(
        Image.fromarray(small), "WEBP", save_all=True, append_images=[Image.fromarray(255 - small)]
    )
    avif = encode(small, "AVIF", speed=10)
    jp2 = bytes(cv2.imencode(".jp2", small)[1])
    ispe, siz = avif.index(b"ispe") + 8, jp2.index(b"\xff\x4f\xff\x51") + 8
    canvas = (6999).to_bytes(3, "little") * 2
    bits = struct.pack("<I", 6999 | 6999 << 14)
    side = struct.pack(">II", 7000, 7000)
    return {
        "jpeg declares a gigapixel": _sized(jpeg, 32000, 32000),
        "jpeg hides one behind FF 00": b"\xff\xd8\xff\x00\x02\xb1" + _sized(jpeg, 32000, 32000)[2:],
        "jpeg hides one behind a thumbnail": b"\xff\xd8" + _sized(jpeg, 32000, 32000)[2:] + jpeg,
        "jpeg with two frames": jpeg[: jpeg.index(b"\xff\xc4")] + _sized(jpeg, 7000, 7000)[2:],
        "jpeg of 49 megapixels": _sized(jpeg, 7000, 7000),
        "jpeg progressive, four channels": _sized(progressive, 7000, 7000),
        "jpeg a narrow one": _sized(jpeg, 65500, 760),
        "png declares a gigapixel": png(32000, 32000),
        "png of 49 megapixels": png(7000, 7000),
        "png of 16 bits with alpha": png(7000, 7000, 16, 6),
        "png interlaced": png(6500, 6500, 8, 6, interlaced=True),
        "png one row": png(49_000_000, 1),
        "png of one bit": png(7000, 7000, 1, 0),
        "tiff with doubled tags": _tiff(_entry(256, 4, 30000), _entry(257, 4, 30000)),
        "tiff with a huge tile": _tiff(_entry(322, 4, 30000), _entry(323, 4, 30000), _entry(324, 4, 8)),
        "tiff with a huge strip": _tiff(_entry(278, 4, 0xFFFFFFFF), width=7000, height=7000),
        "tiff of 64-bit samples": _tiff(_entry(339, 3, 3), width=7000, height=7000, bits=64),
        "tiff of 60 channels": _tiff(width=7000, height=7000, samples=60),
        "bmp declares a gigapixel": _bmp(32000, -32000, 24),
        "bmp of 49 megapixels": _bmp(7000, 7000, 8),
        "gif of the largest size": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0xF7, 0, 0) + bytes(900),
        "gif of 49 megapixels": b"GIF89a" + struct.pack("<HHBBB", 7000, 7000, 0xF7, 0, 0) + bytes(900),
        "webp lossless": webp[:12] + b"VP8L" + webp[16:20] + b"\x2f" + bits + webp[25:],
        "webp with a canvas": alpha[:24] + canvas + alpha[30:],
        "webp animated with a canvas": animated[:24] + canvas + animated[30:],
        "pnm with a carriage return": b"P6\n#\r30000 30000\r255\n \n10 10\n255\n" + bytes(300),
        "pnm with letters": b"P6 1#1 30000\n30000 255\n" + bytes(300),
        "pnm of 16 bits": b"P6\n7000 7000\n65535\n" + bytes(300),
        "pnm of text": b"P3\n7000 7000\n255\n" + b"1 " * 300,
        "pam": b"P7\nWIDTH 30000\nHEIGHT 30000\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n" + bytes(99),
        "pfm": b"PF\n30000 30000\n-1.0\n" + bytes(99),
        "radiance": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 30000 +X 30000\n" + bytes(99),
        "sun raster": struct.pack(">8I", 0x59A66A95, 30000, 30000, 24, 99, 1, 0, 0) + bytes(99),
        "openexr": b"\x76\x2f\x31\x01\x02\0\0\0" + bytes(300),
        "avif declares more than it has": avif[:ispe] + side + avif[ispe + 8 :],
        "jpeg 2000": jp2[:siz] + side + jp2[siz + 8 :],
        "nothing known": bytes(range(256)) * 4,
    }  # fmt: skip
