"""The one way a picture becomes network input, shared by training, export and scoring.

Decode to 8-bit RGB, squash to a square with OpenCV's bicubic filter (no antialiasing, aspect ratio ignored,
as in the GRMP-IQA reference), crop the centre. The graph itself casts, normalises and transposes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import cv2
import numpy as np
import numpy.typing as npt

from grmp_edge.arrays import to_rgb8
from grmp_edge.decoders import check_pixels, decode_jpeg, decode_other, tiff_damage
from grmp_edge.errors import DamagedError, ImageError
from grmp_edge.image_files import (
    is_avif,
    is_jpeg,
    is_png,
    is_tiff,
    is_webp,
    jpeg_is_complete,
    may_have_alpha,
    png_essential,
    read_file,
)
from grmp_edge.orientation import orientation_of, upright
from grmp_edge.picture_header import read_header
from grmp_edge.views import Box, Views, crop, spread

__all__ = [
    "NORMALIZATIONS",
    "Decoded",
    "Normalization",
    "Preprocess",
    "decode_image",
    "decode_picture",
    "fit_within",
    "opencv_silent",
    "read_image",
    "read_picture",
    "squash",
    "swap_red_blue",
    "to_rgb8",
]

UInt8Array = npt.NDArray[np.uint8]
_Depth = TypeVar("_Depth", bound=np.generic)

# More cost more than they tell: nine are 3 x 3.
_MOST_NATIVE = 64


@dataclass(frozen=True)
class Normalization:
    """Per-channel mean and standard deviation (RGB, for values in 0..1) that the graph applies."""

    name: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


NORMALIZATIONS = {
    # What the reference uses for prompts and fine-tuning; its released checkpoints need it.
    "imagenet": Normalization("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # What CLIP itself was trained with.
    "clip": Normalization("clip", (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    # (pixel - 127) / 128, as EfficientNet-Lite was trained.
    "lite": Normalization("lite", (127 / 255, 127 / 255, 127 / 255), (128 / 255, 128 / 255, 128 / 255)),
}


@dataclass(frozen=True)
class Preprocess:
    """Squash to ``resize`` x ``resize`` bicubically, then crop the central ``crop`` x ``crop``."""

    resize: int = 244  # the reference's side: 224 and a margin of 20 for random crops in training
    crop: int = 224  # what CLIP's towers read
    native: int = 0  # crops of the picture's own pixels that are scored beside the whole; 0: as the reference

    def __post_init__(self) -> None:
        if not 0 < self.crop <= self.resize:
            raise ImageError(f"preprocessing cannot crop {self.crop} pixels from {self.resize}")
        if not 0 <= self.native <= _MOST_NATIVE:
            raise ImageError(f"{self.native} native crops of a picture", f"use 0 to {_MOST_NATIVE}")

    @classmethod
    def for_size(cls, crop: int, native: int = 0) -> Preprocess:
        """The same relative margin (20 pixels at 224) for a network that reads ``crop`` x ``crop``."""
        return cls(resize=round(crop * 244 / 224), crop=crop, native=native)

    def views(self, image: UInt8Array, bgr: bool = False, boxes: Sequence[Box] | None = None) -> Views:
        """Turn uint8 (H, W, 3), RGB or (with ``bgr``) BGR, into the network's views of it, RGB.

        Args:
            image: the decoded picture, of any size.
            bgr: its order of channels.
            boxes: the native crops; by default ``native`` of them, spread over the picture.

        Raises:
            ImageError: ``image`` has another type or shape.
        """
        whole = self(image, bgr)
        if boxes is None:
            height, width = image.shape[:2]
            boxes = spread(height, width, self.native, self.crop)
        pixels = np.empty((1 + len(boxes), *whole.shape), np.uint8)
        pixels[0] = whole
        for index, box in enumerate(boxes, 1):
            cut = crop(image, box, self.crop)
            pixels[index] = cut[:, :, ::-1] if bgr else cut
        return Views(pixels, tuple(boxes))

    def __call__(self, image: UInt8Array, bgr: bool = False) -> UInt8Array:
        """Turn uint8 (H, W, 3), RGB or (with ``bgr``) BGR, into network input, uint8 (crop, crop, 3) RGB."""
        prepared = self.centre(squash(image, self.resize))
        # Squashing treats each channel alone, so the order is reversed where the picture is small: a view.
        return prepared[:, :, ::-1] if bgr else prepared

    def centre(self, squashed: UInt8Array) -> UInt8Array:
        """Crop the centre (rows and columns 10:234 at 244/224) of uint8 (resize, resize, 3)."""
        start = (self.resize - self.crop) // 2
        return squashed[start : start + self.crop, start : start + self.crop]


def squash(image: UInt8Array, side: int) -> UInt8Array:
    """Resize uint8 (H, W, 3) to (side, side, 3) by OpenCV's bicubic filter, ignoring the aspect ratio."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ImageError(
            f"expected a uint8 array of shape (height, width, 3), got {image.dtype} {image.shape}",
            "convert it with grmp_edge.arrays.to_rgb8",
        )
    return np.asarray(cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


def fit_within(image: npt.NDArray[np.uint8], width: int, height: int) -> npt.NDArray[np.uint8]:
    """Shrink a picture, uint8 (H, W, 3), to fit into a box of pixels; one that fits is returned as it is."""
    scale = min(width / image.shape[1], height / image.shape[0])
    if scale >= 1:
        return image
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def swap_red_blue(image: npt.NDArray[_Depth]) -> npt.NDArray[_Depth]:
    """BGR to RGB or back, (H, W, 3) of any depth: a new array.

    By OpenCV: numpy takes ten times as long on a large picture.
    """
    swapped: Any = cv2.cvtColor(cast(Any, image), cv2.COLOR_BGR2RGB)
    return np.asarray(swapped, dtype=image.dtype)


@dataclass(frozen=True)
class Decoded:
    """A decoded picture, and what makes a score of it doubtful."""

    pixels: UInt8Array  # (H, W, 3) RGB, upright
    damage: str = ""  # what the decoder says is wrong; ""; nothing that it knows of
    note: str = ""  # what else a viewer would ask: values that use few of their bits


def read_image(path: str | Path) -> UInt8Array:
    """Read a picture file into uint8 (H, W, 3) RGB; see :func:`decode_image`.

    Raises:
        ImageError: the file is missing, empty, damaged, or not a picture.
    """
    return _whole(str(path), read_picture(path))


def read_picture(path: str | Path) -> Decoded:
    """Read a picture file; see :func:`decode_picture`. A pipe is read to its end.

    Raises:
        ImageError: the file is missing, empty, cut short, a device or socket, or not a picture.
    """
    try:
        data = read_file(Path(path))
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file", "check the path") from None
    except OSError as error:
        raise ImageError(
            f"{path}: cannot be read ({error.strerror})", "check the path and permissions"
        ) from None
    return decode_picture(data, name=str(path))


def decode_image(data: bytes, name: str = "image") -> UInt8Array:
    """Decode an encoded picture that is whole into uint8 (H, W, 3) RGB; see :func:`decode_picture`.

    Raises:
        DamagedError: it is known to be damaged.
        ImageError: ``data`` is empty, cut short, or not a picture; the message begins with ``name``.
    """
    return _whole(name, decode_picture(data, name))


def _whole(name: str, picture: Decoded) -> UInt8Array:
    if picture.damage:
        raise DamagedError(f"{name}: damaged ({picture.damage})", "copy it again")
    return picture.pixels


def decode_picture(data: bytes, name: str = "image") -> Decoded:
    """Decode an encoded picture (JPEG, PNG, WebP, TIFF, BMP, AVIF, ...).

    EXIF orientation is applied, palettes are expanded, and grey, alpha and 16 bits are converted as by
    :func:`to_rgb8`. What ends too early is rejected: decoders fill the rest with grey, which would be scored
    as if the camera had seen it. Other damage is marked where the decoder knows of it. An animation gives its
    first picture. A grey PNG's single transparent shade (tRNS) is ignored.

    Raises:
        ImageError: ``data`` is empty, cut short, or not a picture; the message begins with ``name``.
        MissingDependencyError: it is HEIC or JPEG XL, and the extra ``formats`` is not installed.
    """
    if not data:
        raise ImageError(f"{name}: the file is empty (0 bytes)", "copy it again")
    if is_jpeg(data) and not jpeg_is_complete(data):
        raise ImageError(f"{name}: the JPEG is cut short (no end marker)", "copy it again")
    if is_png(data) and not (data := png_essential(data)):
        raise ImageError(
            f"{name}: the PNG is cut short or damaged (its checksums do not hold)", "copy it again"
        )
    if (other := decode_other(data, name)) is not None:
        return Decoded(other)
    if is_jpeg(data) and (decoded := decode_jpeg(data, name)) is not None:
        return Decoded(*decoded)
    # Turned here, so that no score depends on OpenCV's version: 4 ignores a WebP's, and both an AVIF's.
    turn = orientation_of(data) if is_webp(data) or is_avif(data) else 1
    buffer = np.frombuffer(data, np.uint8)
    # IMREAD_COLOR applies EXIF orientation and expands grey and palettes, but drops alpha.
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
    if is_webp(data) or is_avif(data):
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
    pixels = _imdecode(buffer, flags)
    if pixels is None:
        if header := read_header(data):
            check_pixels(header.width, header.height, name)
        raise ImageError(f"{name}: not a picture, or a damaged one", "check the file with an image viewer")
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ImageError(
            f"{name}: pixels of type {pixels.dtype} are not supported", "save it with 8 or 16 bits a channel"
        )
    note = _few_bits(pixels)
    rgb = swap_red_blue(pixels)
    if may_have_alpha(data):
        raw = _imdecode(buffer, cv2.IMREAD_UNCHANGED)
        if raw is not None and raw.ndim == 3 and raw.shape[2] == 4:
            alpha = _oriented_alpha(raw, pixels)
            if is_tiff(data) and pixels.dtype == np.uint8:
                # OpenCV has already multiplied 8-bit TIFFs by their alpha: only the white is missing.
                missing: Any = 255 - alpha.astype(np.uint8)
                rgb = np.asarray(cv2.add(cast(Any, rgb), cv2.cvtColor(missing, cv2.COLOR_GRAY2RGB)))
            else:
                rgb = np.dstack([rgb, alpha])
        del raw
    del pixels  # large ones are converted next, and that is the peak
    try:
        return Decoded(to_rgb8(upright(rgb, turn)), tiff_damage(data) if is_tiff(data) else "", note)
    except ImageError as error:
        raise ImageError(f"{name}: {error.message}", error.remedy) from None


def _few_bits(pixels: npt.NDArray[np.generic]) -> str:
    """A remark on sixteen bits of which so few are used that the picture is nearly black."""
    most = int(cast(Any, pixels).max()) if pixels.dtype == np.uint16 else 0
    if not 0 < most < 4096:
        return ""
    bits = max(8, most.bit_length())
    return f"no value above {most} of 65535: looks like {bits} bits in 16, and is scored as nearly black"


def _imdecode(buffer: UInt8Array, flags: int) -> npt.NDArray[np.generic] | None:
    with opencv_silent():
        try:
            decoded: npt.NDArray[np.generic] | None = cv2.imdecode(buffer, flags)
            return decoded
        except cv2.error:
            return None


class _Silence:
    """How many threads keep OpenCV silent now, and the log level to restore after the last of them."""

    lock = threading.Lock()
    depth = 0
    level = 0


@contextmanager
def opencv_silent() -> Iterator[None]:
    """Keep OpenCV from printing its own lines about a damaged file; our error names the file, once."""
    log: Any = cv2 if hasattr(cv2, "setLogLevel") else cv2.utils.logging  # OpenCV 4, OpenCV 5
    with _Silence.lock:
        if _Silence.depth == 0:
            _Silence.level = log.getLogLevel()
            log.setLogLevel(0)  # LOG_LEVEL_SILENT
        _Silence.depth += 1
    try:
        yield
    finally:
        with _Silence.lock:
            _Silence.depth -= 1
            if _Silence.depth == 0:
                log.setLogLevel(_Silence.level)


def _oriented_alpha(raw: npt.NDArray[np.generic], shown: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Rotate the alpha channel of ``raw`` (as stored) the way EXIF rotated ``shown`` (both BGR)."""
    for turn in range(1, 9):
        turned = upright(raw, turn)
        if np.array_equal(turned[:, :, :3], shown):
            return turned[:, :, 3]
    # The decoder premultiplied or converted the colours: orientation is the identity in practice.
    if raw.shape[:2] == shown.shape[:2]:
        return raw[:, :, 3]
    raise ImageError("a picture with both transparency and rotation cannot be read", "save it without either")
