"""Damaged pictures are marked wherever a score goes; kinds that OpenCV does not read are read or named."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import Shell, UInt8Array, encode, make_image, tiny_score
from PIL import Image, ImageOps

from grmp_edge.arrays import from_pil, to_rgb8
from grmp_edge.bundle import Bundle
from grmp_edge.errors import DamagedError, GrmpError, ImageError, MissingDependencyError
from grmp_edge.preprocess import decode_image, decode_picture, read_picture
from grmp_edge.runtime import Failure, Scorer, read_sources

COMMAND = [sys.executable, "-m", "grmp_edge", "score"]
PHOTO = make_image(96, 128, seed=4)


def textured(seed: int = 0) -> UInt8Array:
    """With noise, so that its entropy-coded data is long enough to be damaged in many places."""
    rng = np.random.default_rng(seed)
    return np.clip(PHOTO + rng.normal(0, 12, PHOTO.shape), 0, 255).astype(np.uint8)


def half(data: bytes) -> bytes:
    """A JPEG that ends early, with an end marker: as some cameras and repair tools leave it."""
    return data[: len(data) // 2] + b"\xff\xd9"


def mutated(data: bytes, number: int) -> bytes:
    """Bytes changed, overwritten, lost or zeroed, behind the headers."""
    rng, copy = np.random.default_rng(number), bytearray(data)
    at = int(rng.integers(len(data) // 3, len(data) - 100))
    if number % 4 == 0:
        copy[at] ^= 1 << int(rng.integers(8))
    elif number % 4 == 1:
        copy[at : at + 60] = rng.integers(0, 256, 60, dtype=np.uint8).tobytes()
    elif number % 4 == 2:
        del copy[at : at + int(rng.integers(1, 60))]
    else:
        copy[at : at + 90] = bytes(90)
    return bytes(copy)


JPEGS = {
    "baseline": encode(textured(), "JPEG", quality=90),
    "progressive": encode(textured(), "JPEG", quality=90, progressive=True),
    "grey": encode(Image.fromarray(textured()).convert("L"), "JPEG", quality=90),
}


def libjpeg_says(tmp_path: Path, data: bytes) -> str:
    """What OpenCV's own libjpeg prints about a picture, in a process of its own."""
    (tmp_path / "a.jpg").write_bytes(data)
    code = f"import cv2; cv2.imread({str(tmp_path / 'a.jpg')!r})"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr


def test_none_of_two_hundred_mutated_jpegs_is_whole_where_libjpeg_knew_better(tmp_path: Path) -> None:
    """One process decodes them all with OpenCV alone; what it prints about each is the reference."""
    files: list[Path] = []
    for number in range(200):
        kind = list(JPEGS)[number % 3]
        files.append(tmp_path / f"{number:03d}.jpg")
        files[-1].write_bytes(mutated(JPEGS[kind], number))
    code = (
        "import cv2, os, sys\n"
        "for path in sys.argv[1:]:\n"
        "    os.write(2, b'= ' + os.fsencode(path) + b'\\n')\n"
        "    cv2.imread(path)\n"
    )
    printed = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True).stderr
    told: dict[str, list[str]] = {}
    for line in printed.splitlines():
        if line.startswith("= "):
            lines = told.setdefault(line[2:], [])
        else:
            lines.append(line)
    counts: Counter[str] = Counter()
    for path in files:
        try:
            mark = "marked" if read_picture(path).damage else "whole"
        except ImageError as error:
            assert str(error).startswith(f"{path}: ")
            mark = "refused"
        assert mark != "whole" or not told[str(path)], (path, told[str(path)])
        counts[mark] += 1
    assert counts["marked"] > 100, counts


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "I;16"])
def test_strips_of_a_tiff(compression: str, mode: str) -> None:
    """Pillow, with libtiff, refuses what OpenCV leaves out without a word."""
    image = Image.fromarray(textured())
    image = image.convert("L").convert("I;16") if mode == "I;16" else image.convert(mode)
    whole = encode(image, "TIFF", compression=compression)
    assert not decode_picture(whole).damage
    marked = 0
    for number in (0, 1, 3, 4, 5, 7, 8, 9, 11):  # the tags, at the end, stay where they are
        damaged = mutated(whole, number)
        try:
            ours = bool(decode_picture(damaged).damage)
        except ImageError:
            ours = True
        try:
            with Image.open(io.BytesIO(damaged)) as picture:
                picture.load()
        except (OSError, SyntaxError, ValueError):
            assert ours, number
        marked += ours
    assert marked or compression != "tiff_lzw"


@pytest.mark.parametrize(
    ("kind", "settings"), [("JPEG2000", {}), ("WEBP", {"quality": 85}), ("WEBP", {"lossless": True})]
)
def test_where_decoders_tell_little(kind: str, settings: dict[str, object]) -> None:
    """Their data holds no checks, so that decoders notice only what is missing; we notice as much."""
    whole = encode(textured(), kind, **settings)
    refused = 0
    for number in range(24):
        damaged = mutated(whole, number)
        try:
            with Image.open(io.BytesIO(damaged)) as picture:
                picture.load()
        except (OSError, SyntaxError, ValueError):
            refused += 1
            with pytest.raises(ImageError):
                decode_picture(damaged)
    assert refused >= 6


def test_whole_pictures_of_every_kind_are_not_marked() -> None:
    for kind, settings in (
        ("JPEG", {}), ("JPEG", {"progressive": True}), ("JPEG", {"subsampling": 0}),
        ("JPEG", {"restart_marker_rows": 1}),
        ("PNG", {}), ("WEBP", {}), ("TIFF", {}), ("TIFF", {"compression": "jpeg"}), ("BMP", {}), ("AVIF", {}),
    ):  # fmt: skip
        assert not decode_picture(encode(textured(), kind, **settings)).damage, (kind, settings)
    cmyk = Image.fromarray(textured()).convert("CMYK")
    assert not decode_picture(encode(cmyk, "JPEG")).damage


def test_zeros_before_the_end_are_padding_and_all_else_is_damage() -> None:
    data = JPEGS["baseline"]
    for zeros in (1, 2, 300):
        padded = data[:-2] + bytes(zeros) + b"\xff\xd9"
        picture = decode_picture(padded)
        assert not picture.damage
        assert np.array_equal(picture.pixels, decode_image(data))
    assert "extraneous bytes" in decode_picture(data[:-2] + b"leftover" + b"\xff\xd9").damage
    both = mutated(data, 1)
    assert decode_picture(both[:-2] + bytes(300) + b"\xff\xd9").damage
    assert not decode_picture(data + b"\0" * 50 + b"trailer of a phone").damage


def test_strict_readers_refuse(tmp_path: Path) -> None:
    (tmp_path / "half.jpg").write_bytes(half(JPEGS["baseline"]))
    with pytest.raises(DamagedError, match=r"half\.jpg: damaged \(premature end of data segment\); copy it"):
        decode_image((tmp_path / "half.jpg").read_bytes(), str(tmp_path / "half.jpg"))


def test_libpng_prints_nothing_of_its_own(tmp_path: Path) -> None:
    """A colour profile that libpng dislikes is common, and says nothing of the pixels."""
    data = encode(textured(), "PNG", icc_profile=b"no profile" * 20)
    (tmp_path / "a.png").write_bytes(data)
    assert "libpng warning" in libjpeg_says(tmp_path, data)
    code = f"from grmp_edge.preprocess import read_image; read_image({str(tmp_path / 'a.png')!r})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""
    assert np.array_equal(decode_image(data), textured())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole picture, a damaged one, a pipe and a socket."""
    place = tmp_path / "in"
    place.mkdir()
    (place / "a.png").write_bytes(encode(PHOTO, "PNG"))
    (place / "half.jpg").write_bytes(half(JPEGS["baseline"]))
    os.mkfifo(place / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(place / "socket.jpg"))
    return place


def test_a_damaged_picture_is_marked_in_every_output(
    tiny_bundle: Bundle, folder: Path, tmp_path: Path, shell: Shell
) -> None:
    outputs = {name: tmp_path / f"out.{name}" for name in ("csv", "jsonl")}
    arguments = ["score", tiny_bundle.path, folder / "a.png", folder / "half.jpg"]
    done = shell(*arguments, "--json", "--csv", outputs["csv"], "--output", outputs["jsonl"])
    assert done.returncode == 0, done.stderr
    said = "premature end of data segment"
    whole, damaged = map(json.loads, done.stdout.splitlines())
    assert "damage" not in whole and damaged["damage"] == said
    assert f"warning: {folder / 'half.jpg'}: damaged ({said}); what is left is scored" in done.stderr
    assert "1 of 2 are damaged; with --strict they are errors" in done.stderr
    assert "Corrupt JPEG" not in done.stderr
    assert [json.loads(line).get("damage") for line in outputs["jsonl"].read_text().splitlines()] == [
        None,
        said,
    ]
    assert f",{said}," in outputs["csv"].read_text().splitlines()[2]
    table = shell(*arguments).stdout
    assert table.splitlines()[2].endswith(f"half.jpg  [damaged: {said}]")
    strict = shell(*arguments, "--json", "--strict")
    assert strict.returncode == 1
    assert [json.loads(line)["source"] for line in strict.stdout.splitlines()] == [str(folder / "a.png")]
    assert f"error: {folder / 'half.jpg'}: damaged ({said}); copy it again" in strict.stderr


def test_pipes_and_sockets_in_folders_are_skipped_and_named(tiny_bundle: Bundle, folder: Path) -> None:
    for source in (str(folder), str(folder / "*.jpg")):
        failures = [item for item in read_sources([source]) if isinstance(item, Failure)]
        assert [str(failure.error) for failure in failures] == [
            f"{folder / 'pipe.jpg'}: a named pipe, skipped; remove it",
            f"{folder / 'socket.jpg'}: a socket, skipped; remove it",
        ]
    with pytest.raises(ImageError, match="/dev/zero: a device, not a picture file"):
        read_picture("/dev/zero")
    # By itself, a pipe is what the shell makes of <(command).
    pipe = folder / "pipe.jpg"
    code = f"cat {folder / 'a.png'} > {pipe} & exec {' '.join(COMMAND)} {tiny_bundle.path} --json {pipe}"
    done = subprocess.run(["sh", "-c", code], capture_output=True, text=True)
    assert json.loads(done.stdout)["value"] == pytest.approx(tiny_score(PHOTO), abs=1e-6)


def test_a_limit_on_pixels(tiny_bundle: Bundle, tmp_path: Path) -> None:
    image = np.zeros((1000, 1100, 3), np.uint8)
    for kind in ("jpg", "png", "bmp"):
        cv2.imwrite(str(tmp_path / f"large.{kind}"), image)
    cv2.imwrite(str(tmp_path / "small.png"), image[:500])
    done = subprocess.run(
        [*COMMAND, tiny_bundle.path, tmp_path, "--max-megapixels", "1", "--json"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert [json.loads(line)["source"] for line in done.stdout.splitlines()] == [str(tmp_path / "small.png")]
    for kind in ("jpg", "png", "bmp"):
        assert f"large.{kind}: 1100 x 1000 pixels are more than 1 million" in done.stderr
    subprocess.run(
        [*COMMAND, tiny_bundle.path, tmp_path, "--max-megapixels", "2"], capture_output=True, check=True
    )


def test_heic_and_jpeg_xl(tmp_path: Path) -> None:
    import pillow_heif
    import pillow_jxl  # noqa: F401

    pillow_heif.register_heif_opener()
    for kind, suffix in (("HEIF", "heic"), ("JXL", "jxl")):
        data = encode(PHOTO, kind, quality=95)
        (tmp_path / f"a.{suffix}").write_bytes(data)
        assert np.abs(decode_image(data).astype(int) - PHOTO).mean() < 4
        with pytest.raises(ImageError, match=rf"b\.{suffix}: a .* that cannot be decoded"):
            decode_picture(data[: len(data) // 2], f"b.{suffix}")
    assert [item.source for item in read_sources([tmp_path])] == [
        str(tmp_path / "a.heic"),
        str(tmp_path / "a.jxl"),
    ]
    exif = Image.Exif()
    exif[0x0112] = 6
    found = decode_image(encode(PHOTO, "HEIF", quality=95, exif=exif.tobytes()))  # it becomes an ``irot``
    assert found.shape == (128, 96, 3)
    assert np.abs(found.astype(int) - np.rot90(PHOTO, -1)).mean() < 4


def test_without_the_extra_they_are_named_in_folders_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("pillow_heif", "pillow_jxl"):
        monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50))
    (tmp_path / "b.jxl").write_bytes(b"\xff\x0a" + bytes(50))
    for item, kind in zip(read_sources([tmp_path]), ("HEIC", "JPEG XL"), strict=True):
        assert isinstance(item, Failure) and isinstance(item.error, MissingDependencyError)
        assert f"{item.source}: {kind} needs" in str(item.error)
        assert "[formats]'" in str(item.error)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["AVIF", "JPEG", "WEBP"])
def test_orientation(kind: str, orientation: int) -> None:
    """Of an AVIF it is ``irot`` and ``imir``, which Pillow writes and OpenCV ignores."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(PHOTO, kind, exif=exif, quality=95)
    with Image.open(io.BytesIO(data)) as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture).convert("RGB")).astype(int)
    found = decode_image(data)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 2


def test_twelve_bits_in_sixteen_are_told(tiny_bundle: Bundle, tmp_path: Path, shell: Shell) -> None:
    grey = (PHOTO[:, :, 0].astype(np.uint16) << 4) | 5
    cv2.imwrite(str(tmp_path / "dark.tif"), grey)
    cv2.imwrite(str(tmp_path / "full.tif"), grey << 4)
    done = shell("score", tiny_bundle.path, tmp_path, "--json")
    dark, full = map(json.loads, done.stdout.splitlines())
    most = int(grey.max())
    assert (
        dark["note"]
        == f"no value above {most} of 65535: looks like 12 bits in 16, and is scored as nearly black"
    )
    assert "note" not in full and done.returncode == 0
    assert f"warning: {tmp_path / 'dark.tif'}: no value above {most}" in done.stderr
    with Scorer.open(tiny_bundle.path) as scorer:
        right = scorer.score(grey, data_range=4095)
    assert right.value == pytest.approx(full["value"], abs=0.01)


PIL_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")


@pytest.mark.parametrize("mode", PIL_MODES)
def test_pillow_images_are_what_their_files_are(tiny_bundle: Bundle, mode: str) -> None:
    image = Image.fromarray(PHOTO).convert(
        {"La": "LA", "RGBa": "RGBA", "PA": "P", "LAB": "RGB"}.get(mode, mode)
    )
    if mode in ("La", "RGBa", "PA"):
        image = image.convert(mode)
    elif mode == "LAB":
        from PIL import ImageCms

        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        converted = ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB")
        assert converted is not None
        image = converted
    plain = image.convert("LA") if mode == "La" else image
    expected = np.asarray(
        plain.convert("L").convert("RGB") if mode[0] in "1L" and mode != "LAB" else plain.convert("RGB")
    )
    found = to_rgb8(from_pil(image))
    assert np.abs(found.astype(int) - expected).max() <= 1
    with Scorer.open(tiny_bundle.path) as scorer:
        assert scorer.score(image).value == pytest.approx(tiny_score(expected), abs=1e-3)
        assert scorer.score(image, "gate").source == "gate"


def test_a_pillow_image_with_orientation_transparency_or_depth(tiny_bundle: Bundle) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(PHOTO, "JPEG", exif=exif, quality=95)
    with Image.open(io.BytesIO(data)) as picture, Scorer.open(tiny_bundle.path) as scorer:
        assert np.abs(to_rgb8(from_pil(picture)).astype(int) - decode_image(data)).max() <= 3
        assert scorer.score(picture).value == pytest.approx(scorer.score(data).value, abs=1e-3)
    palette = Image.fromarray(PHOTO).quantize(64)
    for image, settings in (
        (palette, {"transparency": 3}),
        (Image.fromarray(PHOTO), {"transparency": (0, 0, 0)}),
    ):
        data = encode(image, "PNG", **settings)
        with Image.open(io.BytesIO(data)) as picture:
            assert np.array_equal(to_rgb8(from_pil(picture)), decode_image(data))
    deep = PHOTO[:, :, 0].astype(np.uint16) * 257
    for mode in ("I;16", "I;16B", "I"):
        raw = deep.astype({"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode])
        image = Image.frombytes(mode, (128, 96), raw.tobytes())
        assert np.array_equal(to_rgb8(from_pil(image))[:, :, 0], PHOTO[:, :, 0])
    for image in (Image.new("F", (8, 8)), Image.new("I", (8, 8), 70000)):
        with pytest.raises(ImageError):
            from_pil(image)


def test_bytes_of_every_kind_and_arrays_of_every_order(tiny_bundle: Bundle) -> None:
    data = encode(PHOTO, "PNG")
    expected = pytest.approx(tiny_score(PHOTO), abs=1e-6)
    with Scorer.open(tiny_bundle.path) as scorer:
        for same in (
            data, bytearray(data), memoryview(data), PHOTO, PHOTO.data, PHOTO.astype(">u2") * 257,
            np.asfortranarray(PHOTO), PHOTO[::-1][::-1],
        ):  # fmt: skip
            assert scorer.score(same).value == expected, type(same)
        for kind in ("f2", "f4", "f8", ">f4"):
            floats = (PHOTO / 255).astype(kind)
            assert scorer.score(floats, data_range=1.0).value == pytest.approx(tiny_score(PHOTO), abs=1e-3)
        with pytest.raises(ImageError, match=r"data_range=1\.0 for values in 0\.\.1"):
            scorer.score(PHOTO / 255)
        for wrong, limit in (
            (PHOTO / 200, 1.0),
            (PHOTO / 255 - 0.5, 1.0),
            (np.full((9, 9), np.nan), 1.0),
            (PHOTO, 0.0),
        ):
            with pytest.raises(ImageError):
                scorer.score(wrong, data_range=limit)


def test_every_failure_is_ours(tmp_path: Path) -> None:
    """Whatever the first bytes promise, an error is one of ours, and begins with the file's name."""
    heads = [
        encode(PHOTO, kind)[:64]
        for kind in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000", "PPM")
    ]
    heads += [
        b"\xff\x0a",
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        b"II*\0\x08\0\0\0\xff\xff",
        b"\xff\xd8\xff\xe1\xff\xff",
    ]
    for number in range(400):
        rng = np.random.default_rng(number)
        head = heads[number % len(heads)]
        data = (
            head[: int(rng.integers(2, len(head) + 1))] + rng.integers(0, 256, 80, dtype=np.uint8).tobytes()
        )
        try:
            decode_picture(data, "gate")
        except GrmpError as error:
            assert str(error).startswith("gate: "), error
