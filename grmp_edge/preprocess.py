"""The one way a picture becomes network input, shared by training, export and scoring.

Decode to 8-bit RGB, squash to a square with OpenCV's bicubic filter (no antialiasing, the aspect ratio
is not kept: the preprocessing of the GRMP-IQA reference), cut out the centre. Casting, normalising and
transposing belong to the graph.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from grmp_edge.errors import ImageError
from grmp_edge.image_files import (
    is_jpeg,
    is_png,
    is_tiff,
    is_webp,
    jpeg_is_complete,
    may_have_alpha,
    png_is_complete,
    webp_orientation,
)

__all__ = [
    "IMAGE_SUFFIXES",
    "NORMALIZATIONS",
    "Normalization",
    "Preprocess",
    "decode_image",
    "opencv_silent",
    "read_image",
    "squash",
    "to_rgb8",
]

UInt8Array = npt.NDArray[np.uint8]

IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jpe", ".jpeg", ".jpg", ".jp2", ".pgm", ".png", ".pnm", ".ppm", ".tif",
     ".tiff", ".webp"}
)  # fmt: skip


@dataclass(frozen=True)
class Normalization:
    """Per-channel mean and standard deviation (RGB, of values in 0..1) that the graph applies."""

    name: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


NORMALIZATIONS = {
    # What the reference uses for prompts and fine-tuning; its released checkpoints need it.
    "imagenet": Normalization("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # What CLIP itself was trained with.
    "clip": Normalization("clip", (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}


@dataclass(frozen=True)
class Preprocess:
    """Squash to ``resize`` x ``resize`` by bicubic, then cut the central ``crop`` x ``crop``."""

    resize: int = 244  # the reference's side: 224 and a margin of 20 for random crops in training
    crop: int = 224  # what CLIP's towers read

    def __post_init__(self) -> None:
        if not 0 < self.crop <= self.resize:
            raise ImageError(f"preprocessing cannot cut {self.crop} pixels out of {self.resize}")

    @classmethod
    def for_size(cls, crop: int) -> Preprocess:
        """The same margin (20 pixels at 224) for a network that reads ``crop`` x ``crop``."""
        return cls(resize=round(crop * 244 / 224), crop=crop)

    def __call__(self, image: UInt8Array) -> UInt8Array:
        """Turn a decoded picture, uint8 (H, W, 3) RGB, into uint8 (crop, crop, 3) RGB."""
        return self.centre(squash(image, self.resize))

    def centre(self, squashed: UInt8Array) -> UInt8Array:
        """Cut the centre (rows and columns 10:234 at 244/224) out of uint8 (resize, resize, 3)."""
        start = (self.resize - self.crop) // 2
        return squashed[start : start + self.crop, start : start + self.crop]


def squash(image: UInt8Array, side: int) -> UInt8Array:
    """Resize uint8 (H, W, 3) to (side, side, 3) by OpenCV's bicubic filter, ignoring the aspect ratio."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ImageError(
            f"expected a uint8 array of shape (height, width, 3), got {image.dtype} {image.shape}",
            "convert it with grmp_edge.preprocess.to_rgb8",
        )
    return np.asarray(cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


def to_rgb8(array: npt.NDArray[np.generic]) -> UInt8Array:
    """Make any picture in RGB order uint8 (H, W, 3).

    Grey (H, W) or (H, W, 1) is repeated in the three channels; RGBA is laid over white, as viewers show
    it, since the colour under a transparent pixel means nothing; uint16 is scaled from 0..65535 to 0..255
    and rounded. Floating point has no agreed range and is refused.

    Raises:
        ImageError: another dtype or shape.
    """
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise ImageError(
            f"an array of shape {array.shape} is no picture", "give (height, width, 3) in RGB order"
        )
    if array.dtype == np.uint16:
        array = ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if array.dtype != np.uint8:
        raise ImageError(
            f"pixels of type {array.dtype} are not supported", "convert to 8 or 16 bits a channel"
        )
    pixels = np.asarray(array, dtype=np.uint8)
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    if pixels.shape[2] == 4:
        alpha = pixels[:, :, 3:].astype(np.uint16)
        over_white = pixels[:, :, :3] * alpha + 255 * (255 - alpha)
        pixels = ((over_white + 127) // 255).astype(np.uint8)
    return np.ascontiguousarray(pixels)


def read_image(path: str | Path) -> UInt8Array:
    """Read a picture file into uint8 (H, W, 3) RGB; see :func:`decode_image`.

    Raises:
        ImageError: the file is missing, empty, cut short, or no picture.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file", "check the path") from None
    except OSError as error:
        raise ImageError(
            f"{path}: cannot be read ({error.strerror})", "check the path and permissions"
        ) from None
    return decode_image(data, name=str(path))


def decode_image(data: bytes, name: str = "image") -> UInt8Array:
    """Decode an encoded picture (JPEG, PNG, WebP, TIFF, BMP, ...) into uint8 (H, W, 3) RGB.

    EXIF orientation is applied, palettes are expanded, and grey, alpha and 16 bits are treated as in
    :func:`to_rgb8`. A JPEG that ends early is refused: decoders fill the rest with grey, which would be
    scored as if the camera had seen it. Of an animation the first picture is taken. A grey PNG's single
    transparent shade (tRNS) is ignored.

    Raises:
        ImageError: ``data`` is empty, cut short, or no picture; the message begins with ``name``.
    """
    if not data:
        raise ImageError(f"{name}: the file is empty (0 bytes)", "copy it again")
    if is_jpeg(data) and not jpeg_is_complete(data):
        raise ImageError(f"{name}: the JPEG is cut short (no end marker)", "copy it again")
    if is_png(data) and not png_is_complete(data):
        raise ImageError(
            f"{name}: the PNG is cut short or damaged (its checksums do not hold)", "copy it again"
        )
    buffer = np.frombuffer(data, np.uint8)
    # IMREAD_COLOR applies EXIF orientation and expands grey and palettes, but drops alpha.
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
    # A JPEG's decoder gives RGB as readily as BGR: the one kind where asking for it saves a pass. A
    # system's own OpenCV (on a Jetson) may be too old to be asked.
    if is_jpeg(data) and hasattr(cv2, "IMREAD_COLOR_RGB"):
        pixels = _imdecode(buffer, cv2.IMREAD_COLOR_RGB)
        if pixels is None:
            raise ImageError(f"{name}: {_DAMAGED}", _LOOK)
        return np.asarray(pixels, dtype=np.uint8)
    # Except that of a WebP by OpenCV 4: done here, so that a score depends on no version.
    turned = is_webp(data) and webp_orientation(data) != 1
    pixels = _imdecode(buffer, flags | cv2.IMREAD_IGNORE_ORIENTATION if turned else flags)
    if pixels is None:
        raise ImageError(f"{name}: {_DAMAGED}", _LOOK)
    # By OpenCV: numpy takes ten times as long to turn the channels of a large picture.
    rgb: npt.NDArray[np.generic] = _turned(pixels)
    if may_have_alpha(data):
        raw = _imdecode(buffer, cv2.IMREAD_UNCHANGED)
        if raw is not None and raw.ndim == 3 and raw.shape[2] == 4:
            alpha = _oriented_alpha(raw, pixels)
            if is_tiff(data) and pixels.dtype == np.uint8:
                # OpenCV has multiplied 8-bit TIFFs by their alpha already: only the white is missing.
                rgb = np.minimum(np.asarray(rgb, np.uint8) + (255 - alpha[:, :, None].astype(np.uint16)), 255)
                rgb = rgb.astype(np.uint8)
            else:
                rgb = np.dstack([rgb, alpha])
    if turned:
        rgb = _ORIENTATIONS[webp_orientation(data) - 1](rgb)
    try:
        return to_rgb8(rgb)
    except ImageError as error:
        raise ImageError(f"{name}: {error.message}", error.remedy) from None


_DAMAGED, _LOOK = "not a picture, or a damaged one", "check the file with an image viewer"


def _turned(bgr: Any) -> npt.NDArray[np.generic]:
    """BGR to RGB, any depth."""
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))


def _imdecode(buffer: UInt8Array, flags: int) -> npt.NDArray[np.generic] | None:
    with opencv_silent():
        try:
            decoded: npt.NDArray[np.generic] | None = cv2.imdecode(buffer, flags)
            return decoded
        except cv2.error:
            return None


class _Silence:
    """How many threads want OpenCV silent now, and the log level to go back to after the last."""

    lock = threading.Lock()
    depth = 0
    level = 0


@contextmanager
def opencv_silent() -> Iterator[None]:
    """Keep OpenCV from printing its own lines about a damaged file; ours says it once, with the name."""
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


_ORIENTATIONS: tuple[Callable[[npt.NDArray[np.generic]], npt.NDArray[np.generic]], ...] = (
    lambda a: a,
    lambda a: a[:, ::-1],
    lambda a: a[::-1, ::-1],
    lambda a: a[::-1],
    lambda a: a.swapaxes(0, 1),
    lambda a: a.swapaxes(0, 1)[:, ::-1],
    lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    lambda a: a.swapaxes(0, 1)[::-1],
)


def _oriented_alpha(
    raw: npt.NDArray[np.generic], upright: npt.NDArray[np.generic]
) -> npt.NDArray[np.generic]:
    """Turn the alpha channel of ``raw`` (stored order) the way EXIF turned ``upright`` (both BGR)."""
    for turn in _ORIENTATIONS:
        if np.array_equal(turn(raw[:, :, :3]), upright):
            return turn(raw[:, :, 3])
    # The decoder premultiplied or converted the colours: orientation is the identity in practice.
    if raw.shape[:2] == upright.shape[:2]:
        return raw[:, :, 3]
    raise ImageError("a picture with both transparency and rotation cannot be read", "save it without either")
