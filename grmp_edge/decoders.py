"""What OpenCV's decoders cannot do: tell that a JPEG or TIFF is damaged, and read HEIC and JPEG XL."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import struct

import numpy as np
import numpy.typing as npt

from grmp_edge.errors import ImageError, MissingDependencyError
from grmp_edge.image_files import other_kind
from grmp_edge.orientation import orientation_of, upright

__all__ = ["check_pixels", "decode_jpeg", "decode_other", "tiff_damage"]

_KNOWN_TAGS = frozenset({256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 317})
_UNSUPPORTED = re.compile("(?i)support|subsampling|colorspace|precision")
_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0xd9")


def check_pixels(width: int, height: int, name: str) -> None:
    """Refuse a picture with more pixels than OpenCV may decode.

    Raises:
        ImageError: it has more.
    """
    most = int(os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"])  # grmp_edge sets it
    if width * height > most:
        raise ImageError(
            f"{name}: {width} x {height} pixels are more than {most / 1e6:g} million",
            "make it smaller, or score it with --max-megapixels",
        )


def decode_jpeg(data: bytes, name: str) -> tuple[npt.NDArray[np.uint8], str] | None:
    """A JPEG as uint8 (H, W, 3) RGB, upright, and what libjpeg says is wrong with it: "" if it is whole.

    libjpeg-turbo makes up what is missing, and warns; OpenCV, which has the same library, prints the warning
    and says nothing. The pixels are the same bits, and take no longer.

    Returns:
        None: simplejpeg is not installed or does not know this kind; OpenCV may.

    Raises:
        ImageError: libjpeg cannot decode it.
    """
    try:
        import simplejpeg
    except ImportError:  # installed without dependencies, where there is no wheel
        return None
    damage = ""
    try:
        with contextlib.suppress(ValueError):  # told below
            height, width, *_ = simplejpeg.decode_jpeg_header(data, strict=False)
            check_pixels(width, height, name)
        pixels = simplejpeg.decode_jpeg(data)
    except KeyError:  # an unusual subsampling, for which it has no name
        return None
    except ValueError as error:
        damage = str(error).removeprefix("Corrupt JPEG data: ")
        try:
            pixels = simplejpeg.decode_jpeg(data, strict=False)
        except ValueError as fatal:
            if _UNSUPPORTED.search(str(fatal)):
                return None
            raise ImageError(f"{name}: not a picture, or a damaged one ({fatal})", "copy it again") from None
    if damage and _is_harmless(simplejpeg.decode_jpeg, data, damage):
        damage = ""
    return upright(pixels, orientation_of(data)), damage


def _is_harmless(decode: object, data: bytes, damage: str) -> bool:
    """Whether a warning is of no account: zeros before the end, with which cameras fill up their buffers."""
    assert callable(decode)
    if "JFIF revision" in damage:
        return True
    end = data.rfind(b"\xff\xd9")
    body = data[:end].rstrip(b"\0")
    padding = end - len(body)
    if not _EXTRANEOUS.fullmatch(damage) or not padding:
        return False
    try:  # without them, as an earlier warning is not told when there is a later one
        decode(body + b"\0" * body.endswith(b"\xff") + b"\xff\xd9")
    except ValueError:
        return False
    return True


def tiff_damage(data: bytes) -> str:
    """What is wrong with a compressed TIFF; "": nothing is known. OpenCV leaves out damaged strips silently.

    The common kinds (strips of LZW, deflate or PackBits; 8 or 16 bits; grey, RGB or RGBA) are decoded a
    second time, by FFmpeg, which is strict if asked.
    """
    try:
        common = _common_tiff(data)
        import av
    except (struct.error, ImportError):
        return ""
    if not common:
        return ""
    decoder = av.CodecContext.create("tiff", "r")
    decoder.options = {"err_detect": "explode"}
    decoder.thread_count = 1
    try:
        decoder.decode(av.Packet(common))
    except (av.error.InvalidDataError, av.error.UnknownError):  # the second is zlib's
        return "a strip cannot be decompressed"
    except (av.error.FFmpegError, ValueError):
        pass
    return ""


def _common_tiff(data: bytes) -> bytes:
    """A TIFF of a common kind without the tags that FFmpeg does not know, which it would refuse; else b""."""
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, start)
    entries: dict[int, bytes] = {}
    for at in range(start + 2, start + 2 + 12 * count, 12):
        (tag,) = struct.unpack_from(f"{order}H", data, at)
        entries[tag] = data[at : at + 12]

    def values(tag: int, default: int) -> set[int]:
        """The different values of a tag of type SHORT."""
        entry = entries.get(tag)
        if entry is None:
            return {default}
        (number,) = struct.unpack_from(f"{order}I", entry, 4)
        (where,) = struct.unpack_from(f"{order}I", entry, 8)
        number = min(number, 8)
        return set(struct.unpack_from(f"{order}{number}H", *((entry, 8) if number <= 2 else (data, where))))

    if (
        not values(259, 1) <= {5, 8, 32946, 32773}
        or not values(277, 1) <= {1, 3, 4}
        or values(258, 1) not in ({8}, {16})
        or not values(262, 0) <= {1, 2}
        or values(284, 1) != {1}
        or not values(317, 1) <= {1, 2}
        or values(339, 1) != {1}
        or 273 not in entries
    ):
        return b""
    known = b"".join(entries[tag] for tag in sorted(entries) if tag in _KNOWN_TAGS)
    head = struct.pack(f"{order}H", len(known) // 12) + known + bytes(4)
    return data[:start] + head + data[start + len(head) :]


def decode_other(data: bytes, name: str) -> npt.NDArray[np.uint8] | None:
    """HEIC or JPEG XL as uint8 (H, W, 3) RGB, upright, by Pillow and its plugins; None: neither of them.

    Raises:
        MissingDependencyError: the plugin is not installed.
        ImageError: it is damaged.
    """
    kind = other_kind(data)
    if not kind:
        return None
    module = {"HEIC": "pillow_heif", "JPEG XL": "pillow_jxl"}[kind]
    try:
        from PIL import Image

        plugin = importlib.import_module(module)
    except ImportError:
        raise MissingDependencyError(module, "formats", f"{name}: {kind}") from None
    from grmp_edge.arrays import from_pil, to_rgb8

    try:
        if kind == "HEIC":
            heif = plugin.open_heif(io.BytesIO(data))
            check_pixels(heif.size[0], heif.size[1], "")
            return to_rgb8(from_pil(heif.to_pillow()))
        with Image.open(io.BytesIO(data)) as picture:
            check_pixels(picture.width, picture.height, "")
            return to_rgb8(from_pil(picture))
    except ImageError as error:
        raise ImageError(f"{name}: {error.message.removeprefix(': ')}", error.remedy) from None
    except Exception as error:  # the plugins raise many kinds for a damaged file
        reason = str(error).strip() or type(error).__name__
        raise ImageError(f"{name}: a {kind} that cannot be decoded ({reason})", "copy it again") from None
