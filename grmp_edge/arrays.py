"""Decoded pictures of any kind (arrays, Pillow's images) to uint8 (H, W, 3) RGB."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from grmp_edge.errors import ImageError

__all__ = ["from_pil", "is_pil", "to_rgb8"]

UInt8Array = npt.NDArray[np.uint8]

_STRIP = 1 << 18  # pixels converted at a time: of a whole picture, the intermediate values take gigabytes


def to_rgb8(array: npt.NDArray[np.generic], data_range: float | None = None) -> UInt8Array:
    """Convert any picture in RGB order to uint8 (H, W, 3).

    Grey (H, W) or (H, W, 1) is repeated in the three channels; RGBA is composited over white, as viewers
    do, since the colour of a transparent pixel means nothing; uint16 is scaled from 0..65535 to 0..255 and
    rounded.

    Args:
        array: its bytes may be in either order.
        data_range: what white is, where that is not the largest value of the type: 1.0 for floating point in
            0..1, which is rejected without it, 4095 for twelve bits in uint16.

    Raises:
        ImageError: another dtype or shape, or values outside 0..``data_range``.
    """
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise ImageError(
            f"an array of shape {array.shape} is not a picture", "give (height, width, 3) in RGB order"
        )
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if data_range is not None:
        array = _scaled(array, data_range)
    if array.dtype not in (np.uint8, np.uint16):
        remedy = "convert to 8 or 16 bits a channel"
        if array.dtype.kind == "f":
            remedy = "say what white is: data_range=1.0 for values in 0..1"
        raise ImageError(f"pixels of type {array.dtype} are not supported", remedy)
    if array.dtype == np.uint8 and array.shape[2] == 3:
        return np.ascontiguousarray(array, dtype=np.uint8)
    rgb = np.empty((*array.shape[:2], 3), np.uint8)
    rows = max(1, _STRIP // array.shape[1])
    for top in range(0, len(array), rows):
        rgb[top : top + rows] = _rgb8(array[top : top + rows])
    return rgb


def _rgb8(array: npt.NDArray[np.generic]) -> UInt8Array:
    """Uint8 or uint16 (H, W, 1, 3 or 4) as uint8, grey as one channel."""
    if array.dtype == np.uint16:
        array = ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    pixels = np.asarray(array, dtype=np.uint8)
    if pixels.shape[2] == 4:
        alpha = pixels[:, :, 3:].astype(np.uint16)
        over_white = pixels[:, :, :3] * alpha + 255 * (255 - alpha)
        pixels = ((over_white + 127) // 255).astype(np.uint8)
    return pixels


def _scaled(array: npt.NDArray[Any], data_range: float) -> UInt8Array:
    """Numbers in 0..``data_range`` to uint8."""
    if array.dtype.kind not in "fiu" or not data_range > 0:
        raise ImageError(
            f"{array.dtype} with a data_range of {data_range:g} is not a picture", "give numbers"
        )
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= data_range):  # also where one is NaN
        raise ImageError(
            f"values from {low:g} to {high:g} are outside 0..{data_range:g}",
            "clip them, or correct data_range",
        )
    kind = np.float64 if array.dtype.itemsize > 4 else np.float32
    return np.asarray(np.rint(array.astype(kind) * kind(255 / data_range)), dtype=np.uint8)


def is_pil(image: object) -> bool:
    """Whether an object is one of Pillow's images, without loading Pillow."""
    pil = sys.modules.get("PIL.Image")
    return pil is not None and isinstance(image, pil.Image)


def from_pil(image: Any) -> npt.NDArray[np.generic]:
    """One of Pillow's images of any mode, upright, for :func:`to_rgb8`: as its file would be read.

    Raises:
        ImageError: a mode that Pillow cannot convert, or values of no agreed range (mode ``F``, and ``I``
            beyond sixteen bits).
    """
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    mode = image.mode
    if mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if mode == "I":  # what older versions make of a grey PNG of sixteen bits
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError("an image of 32 bits a channel is not supported", "convert to 8 or 16 bits")
        return values.astype(np.uint16)
    if mode == "F":
        raise ImageError(
            "an image of floating point has no agreed range", "give np.asarray(image) and data_range"
        )
    if mode in ("RGBA", "LA", "La", "PA", "RGBa") or (mode in ("P", "RGB") and "transparency" in image.info):
        return np.asarray((image.convert("LA") if mode == "La" else image).convert("RGBA"))
    try:
        return np.asarray(image.convert("L" if mode in ("1", "L") else "RGB"))
    except ValueError:
        raise ImageError(f"an image of mode {mode} is not supported", "convert it to RGB") from None
