"""The image transform: pinned by hash, and against numpy and PIL."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from conftest import UInt8Array, encode, make_image
from PIL import Image, ImageOps

from grmp_edge.errors import ImageError
from grmp_edge.image_files import images_below
from grmp_edge.preprocess import (
    Preprocess,
    decode_image,
    opencv_silent,
    read_image,
    squash,
    swap_red_blue,
    to_rgb8,
)


def pattern(height: int, width: int) -> UInt8Array:
    """A picture by integer arithmetic alone: the same on every machine and library version."""
    y, x, channel = np.ogrid[:height, :width, :3]
    values = (x * x // 7 + 5 * y * (channel + 1) + x * y // 11 + 40 * channel) % 256
    return np.asarray(values, dtype=np.uint8)


def bicubic(image: UInt8Array, side: int) -> npt.NDArray[np.float64]:
    """INTER_CUBIC in plain numpy: a = -0.75, half-pixel centres, border repeated, no antialiasing."""

    def weight(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        a, d = -0.75, np.abs(distance)
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
        return np.where(d <= 1, near, np.where(d < 2, far, 0.0))

    def matrix(length: int) -> npt.NDArray[np.float64]:
        centre = (np.arange(side) + 0.5) * length / side - 0.5
        result = np.zeros((side, length))
        for offset in (-1, 0, 1, 2):
            tap = np.floor(centre).astype(int) + offset
            np.add.at(result, (np.arange(side), tap.clip(0, length - 1)), weight(centre - tap))
        return result

    height, width, _ = image.shape
    rows = np.tensordot(matrix(height), image.astype(np.float64), axes=(1, 0))
    squashed: npt.NDArray[np.float64] = np.tensordot(rows, matrix(width), axes=(1, 1))
    return np.asarray(squashed.swapaxes(1, 2).clip(0, 255))


GOLDEN = {
    (180, 320): "b71ed00f69b4b7a9",
    (601, 403): "6a50e63bdf6ffab2",
    (244, 244): "7ee1128b62d8fb90",
}


@pytest.mark.parametrize("shape", GOLDEN)
def test_the_output_is_pinned(shape: tuple[int, int]) -> None:
    result = Preprocess()(pattern(*shape))
    assert result.shape == (224, 224, 3) and result.dtype == np.uint8
    assert hashlib.sha256(result.tobytes()).hexdigest()[:16] == GOLDEN[shape]


@pytest.mark.parametrize("shape", [*GOLDEN, (1080, 1920), (37, 500), (2, 3)])
def test_squash_is_opencvs_bicubic(shape: tuple[int, int]) -> None:
    image = pattern(*shape)
    difference = np.abs(squash(image, 244).astype(float) - bicubic(image, 244))
    assert difference.max() <= 1.0  # OpenCV counts in fixed point
    assert difference.mean() < 0.3  # rounding alone gives 0.25


def test_the_centre_is_rows_and_columns_10_to_234() -> None:
    image = pattern(244, 244)  # squashing leaves a picture of that size alone
    assert np.array_equal(Preprocess()(image), image[10:234, 10:234])


def test_another_network_size_keeps_the_margin() -> None:
    assert Preprocess.for_size(224) == Preprocess(244, 224)
    assert Preprocess.for_size(336) == Preprocess(366, 336)
    with pytest.raises(ImageError):
        Preprocess(200, 224)


def over_white(image: Image.Image) -> UInt8Array:
    image = image.convert("RGBA")
    paper = Image.new("RGBA", image.size, (255, 255, 255, 255))
    paper.alpha_composite(image)
    return np.asarray(paper.convert("RGB"))


def difference(data: bytes, expected: UInt8Array | Image.Image) -> int:
    found, wanted = decode_image(data), np.asarray(expected)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    assert found.shape == wanted.shape
    return int(np.abs(found.astype(int) - wanted.astype(int)).max())


def reopened(data: bytes) -> Image.Image:
    import io

    return Image.open(io.BytesIO(data))


LOSSLESS = [("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 95}), *LOSSLESS])
def test_exif_orientation(kind: str, options: dict[str, object], orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    data = encode(make_image(), kind, exif=exif, **options)
    expected = np.asarray(ImageOps.exif_transpose(reopened(data)).convert("RGB"))
    assert expected.shape == ((48, 64, 3) if orientation < 5 else (64, 48, 3))
    # Chroma upsampling differs by a step or two between builds of libjpeg.
    assert difference(data, expected) <= (3 if kind == "JPEG" else 0)


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize(("kind", "options"), LOSSLESS)
def test_transparency_shows_white(kind: str, options: dict[str, object], orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    alpha = np.linspace(0, 255, 48 * 64).reshape(48, 64).astype(np.uint8)
    data = encode(np.dstack([make_image(), alpha]), kind, exif=exif, **options)
    assert difference(data, over_white(ImageOps.exif_transpose(reopened(data)))) <= 1


def test_lossy_webp_with_alpha() -> None:
    alpha = np.linspace(0, 255, 48 * 64).reshape(48, 64).astype(np.uint8)
    data = encode(np.dstack([make_image(), alpha]), "WEBP", quality=90)
    assert difference(data, over_white(reopened(data))) <= 1


def test_grey_with_alpha_and_palettes() -> None:
    picture = Image.fromarray(make_image())
    grey_alpha = picture.convert("L").convert("LA")
    grey_alpha.putalpha(Image.linear_gradient("L").resize(picture.size))
    data = encode(grey_alpha, "PNG")
    assert difference(data, over_white(reopened(data))) <= 1

    palette = picture.quantize(32)
    for kind in ("PNG", "GIF"):
        assert difference(encode(palette, kind), palette.convert("RGB")) == 0
    for transparency in (3, bytes(range(0, 256, 8))):
        data = encode(palette, "PNG", transparency=transparency)
        assert difference(data, over_white(reopened(data))) <= 1
        assert difference(data, palette.convert("RGB")) > 50  # the transparency is really there
    data = encode(palette, "GIF", transparency=3)
    assert difference(data, over_white(reopened(data))) == 0


def test_a_transparency_chunk_behind_a_large_profile() -> None:
    profile = np.random.default_rng(0).bytes(20_000)
    data = encode(Image.fromarray(make_image()).quantize(32), "PNG", transparency=3, icc_profile=profile)
    assert data.index(b"tRNS") > 4096
    assert difference(data, over_white(reopened(data))) == 0


def test_grey_one_bit_and_cmyk() -> None:
    picture = Image.fromarray(make_image())
    for mode in ("L", "1"):
        data = encode(picture.convert(mode), "PNG")
        assert difference(data, picture.convert(mode).convert("RGB")) == 0
    data = encode(picture.convert("L"), "JPEG")
    assert difference(data, reopened(data).convert("RGB")) <= 1
    data = encode(picture.convert("CMYK"), "JPEG", quality=95)
    assert difference(data, reopened(data).convert("RGB")) <= 3


def test_16_bits_are_scaled_not_cut() -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (48, 64, 3)).astype(np.uint16)
    expected = np.rint(deep / 257).astype(np.uint8)
    assert not np.array_equal(expected, (deep >> 8).astype(np.uint8))
    for suffix in (".png", ".tiff"):
        data = cv2.imencode(suffix, deep[:, :, ::-1])[1].tobytes()
        assert difference(data, expected) == 0
    grey = encode(Image.fromarray(deep[:, :, 0]), "PNG")
    assert difference(grey, np.repeat(expected[:, :, :1], 3, axis=2)) == 0


def test_arrays() -> None:
    image = make_image()
    assert np.array_equal(to_rgb8(image), image)
    assert np.array_equal(to_rgb8(image[:, :, 0]), np.repeat(image[:, :, :1], 3, axis=2))
    assert np.array_equal(to_rgb8(image.astype(np.uint16) * 257), image)
    half = to_rgb8(np.dstack([image, np.full((48, 64), 128, np.uint8)]))
    assert np.abs(half - (image * (128 / 255) + 127)).max() <= 0.51
    for wrong in (image.astype(np.float32), image[None], np.zeros((0, 4, 3), np.uint8), image[:, :, :2]):
        with pytest.raises(ImageError):
            to_rgb8(wrong)
    with pytest.raises(ImageError):
        squash(image[:, :, 0], 244)


DAMAGE = [
    ("JPEG", {"quality": 90}, "cut short"),
    ("JPEG", {"quality": 90, "progressive": True}, "cut short"),
    ("PNG", {}, "cut short or damaged"),
    ("WEBP", {"quality": 90}, "damaged"),
    ("WEBP", {"lossless": True}, "damaged"),
    ("BMP", {}, "damaged"),
    ("TIFF", {}, "damaged"),
]


@pytest.mark.parametrize(("kind", "options", "words"), DAMAGE)
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9, 0.995])
def test_a_truncated_picture_is_refused(
    kind: str, options: dict[str, object], words: str, share: float, capfd: pytest.CaptureFixture[str]
) -> None:
    data = encode(make_image(240, 320), kind, **options)
    assert decode_image(data).shape == (240, 320, 3)
    with pytest.raises(ImageError, match=f"^shot: .*{words}"):
        decode_image(data[: int(len(data) * share)], name="shot")
    assert capfd.readouterr().err == ""  # no decoder's own lines beside ours


def test_a_jpeg_without_its_last_two_bytes_is_refused() -> None:
    with pytest.raises(ImageError, match="cut short"):
        decode_image(encode(make_image(), "JPEG")[:-2])


def test_a_jpeg_cut_after_its_thumbnail_is_refused() -> None:
    thumbnail = encode(make_image(12, 16), "JPEG")
    whole = encode(make_image(240, 320), "JPEG")
    # An APP1 segment holding a whole small JPEG, with an end marker of its own.
    payload = b"Exif\0\0" + thumbnail
    data = whole[:2] + b"\xff\xe1" + (len(payload) + 2).to_bytes(2, "big") + payload + whole[2:]
    assert decode_image(data).shape == (240, 320, 3)
    assert decode_image(data + b"trailing bytes are not ours").shape == (240, 320, 3)
    for cut in (len(payload) + 40, len(data) * 3 // 4, len(data) - 1):
        with pytest.raises(ImageError, match="cut short"):
            decode_image(data[:cut])


def test_one_flipped_byte_in_a_png_is_seen(capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(encode(make_image(), "PNG"))
    data[len(data) // 2] ^= 1
    with pytest.raises(ImageError, match="damaged"):
        decode_image(bytes(data))
    assert capfd.readouterr().err == ""


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("this is a text file\n" * 10)
    empty = tmp_path / "empty.jpg"
    empty.touch()
    for path, words in ((text, "not a picture"), (empty, "empty"), (tmp_path / "no.png", "no such file")):
        with pytest.raises(ImageError, match=words) as caught:
            read_image(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
    with pytest.raises(ImageError, match="cannot be read"):
        read_image(tmp_path)


def test_opencvs_log_level_is_left_as_it_was() -> None:
    log = cv2 if hasattr(cv2, "getLogLevel") else cv2.utils.logging
    before = log.getLogLevel()
    with opencv_silent():
        with pytest.raises(ImageError):
            decode_image(b"BM nonsense")
        assert log.getLogLevel() == 0 != before
    assert log.getLogLevel() == before


def test_the_order_of_the_channels() -> None:
    rgb = make_image()
    bgr = swap_red_blue(rgb)
    assert np.array_equal(bgr, rgb[:, :, ::-1]) and np.array_equal(swap_red_blue(bgr), rgb)
    deep = rgb.astype(np.uint16) * 257
    assert swap_red_blue(deep).dtype == np.uint16
    preprocess = Preprocess(36, 32)
    assert np.array_equal(preprocess(bgr, bgr=True), preprocess(rgb))


def test_the_pictures_below_a_folder(photos: Path) -> None:
    (photos / "sub.jpg").mkdir()  # a folder is no picture, whatever its name
    (photos / "sub.jpg" / "a.JPG").touch()
    (photos / "notes.txt").touch()
    paths = [photos / name for name in ("1.png", "10.png", "2.png", "sub.jpg/a.JPG")]
    assert images_below(photos) == paths
    assert images_below(photos, {".jpg"}) == paths[3:]
