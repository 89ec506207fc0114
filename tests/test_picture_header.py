"""Headers against Pillow's reading of them, and against small files that ask for gigabytes."""

from __future__ import annotations

import subprocess
import sys

import cv2
import pytest
from conftest import encode, make_image
from helpers_hostile import hostile
from PIL import Image

from grmp_edge.picture_header import PictureLimits, TooLargeError, UnknownKindError, read_header

KINDS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")


def size(data: bytes) -> tuple[int, int] | None:
    header = read_header(data)
    return None if header is None else (header.width, header.height)


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_are_known_from_the_header(kind: str) -> None:
    image = Image.fromarray(make_image(37, 91))
    found = {size(encode(image, kind))}
    if kind == "WEBP":
        found |= {size(encode(image, kind, lossless=True))}
        found |= {size(encode(image.convert("RGBA"), kind, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0"))}
        found |= {size(encode(image, kind, save_all=True, append_images=[image.rotate(180)]))}
    if kind == "JPEG":
        found |= {size(encode(image, kind, progressive=True, comment=b"\xff\xc0" * 99))}
        found |= {size(encode(image.convert(mode), kind)) for mode in ("L", "CMYK")}
    if kind == "PPM":
        found |= {
            size(b"P5\n# 7 7\n91 37\n255\n"),
            size(b"P4 91 37\n"),
            size(encode(image.convert("1"), kind)),
        }
    if kind == "TIFF":
        found |= {size(encode(image.convert(mode), kind)) for mode in ("1", "L", "RGBA", "I;16")}
        found |= {
            size(encode(image, kind, compression="tiff_lzw", tiffinfo={700: b"x" * 99}, big_tiff=False))
        }
    if kind in ("PNG", "BMP"):
        found |= {size(encode(image.convert(mode), kind)) for mode in ("1", "L", "P", "RGBA")}
    assert found == {(91, 37)}
    data = encode(image, kind)
    for length in range(60):  # cut headers are no crash
        assert size(data[:length]) in (None, (91, 37))


def test_jpeg_2000_by_its_code_stream() -> None:
    assert size(bytes(cv2.imencode(".jp2", make_image(37, 91))[1])) == (91, 37)


def test_hostile_pictures_are_refused_or_small() -> None:
    refused = 0
    for name, data in hostile().items():
        try:
            header = PictureLimits().check(data, "x")
        except (TooLargeError, UnknownKindError) as error:
            refused += 1
            assert str(error).startswith("x: ") and error.remedy
        else:
            assert header.memory <= 280 << 20, name
    assert refused > 25


@pytest.mark.parametrize(
    "name", ["jpeg hides one behind FF 00", "jpeg with two frames", "tiff with doubled tags"]
)
def test_where_decoders_may_differ_the_largest_reading_counts(name: str) -> None:
    data = hostile()[name]
    assert read_header(data) is None
    with pytest.raises(TooLargeError, match=r"\d{4,5} x \d{4,5} pixels"):
        PictureLimits().check(data)
    with pytest.raises(UnknownKindError):  # small enough by all readings, but not plainly a picture
        PictureLimits(pixels=10**10, memory=10**12).check(data)


def test_what_decoding_takes_is_known() -> None:
    plain = make_image(40, 40)
    coarse, fine = (read_header(encode(plain, "JPEG", progressive=True, subsampling=way)) for way in (2, 0))
    flat = read_header(encode(plain, "JPEG"))
    assert coarse is not None and fine is not None and flat is not None
    assert (flat.pixel_bytes, coarse.pixel_bytes, fine.pixel_bytes) == (6, 6, 9)
    deep, rgba = read_header(hostile()["png of 16 bits with alpha"]), read_header(encode(plain, "PNG"))
    assert deep is not None and rgba is not None and deep.pixel_bytes > 4 * rgba.pixel_bytes


def test_opencv_is_limited_before_it_is_imported() -> None:
    """Whatever reads the first module of ours; and a decoder asked directly refuses a gigapixel."""
    code = (
        "import sys, numpy; from grmp_edge.views import crop; import cv2\n"
        "try: print(cv2.imdecode(numpy.frombuffer(sys.stdin.buffer.read(), 'u1'), 1) is None)\n"
        "except cv2.error as error: print('pixels' in str(error).lower())"
    )
    data = hostile()["jpeg hides one behind FF 00"]
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, timeout=60)
    assert done.stdout == b"True\n", done.stderr
