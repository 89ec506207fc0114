"""Distortions of the signal: compression and noise. Each takes and gives (H, W, 3) uint8 RGB."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from grmp_edge.errors import DataError
from grmp_edge.preprocess import swap_red_blue

__all__ = [
    "Image",
    "color_component_noise",
    "denoise",
    "impulse_noise",
    "jpeg",
    "jpeg2000",
    "multiplicative_noise",
    "to_uint8",
    "white_noise",
]

Image = NDArray[np.uint8]
Float = NDArray[np.float32]
_REMEDY = "install the wheel opencv-python-headless, which brings both JPEG codecs"


def to_uint8(values: NDArray[Any]) -> Image:
    """Round and clip float grey values of any shape to 0..255."""
    clipped: Image = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return clipped


def _normal(image: Image, rng: np.random.Generator) -> Float:
    """Draw standard normal float32 values of the picture's shape."""
    return rng.standard_normal(image.shape, dtype=np.float32)


def _through_codec(image: Image, extension: str, options: list[int]) -> Image:
    """Encode and decode again with OpenCV's codec for the extension."""
    try:
        ok, coded = cv2.imencode(extension, swap_red_blue(image), options)
        decoded = cv2.imdecode(coded, cv2.IMREAD_COLOR) if ok else None
    except cv2.error as error:
        raise DataError(f"OpenCV cannot code {extension}: {error}", _REMEDY) from error
    if decoded is None or decoded.shape != image.shape:
        raise DataError(f"OpenCV cannot code {extension}", _REMEDY)
    return swap_red_blue(np.asarray(decoded, np.uint8))


def jpeg(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """JPEG at libjpeg quality ``strength``."""
    return _through_codec(image, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, int(strength)])


def jpeg2000(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """JPEG 2000 at ``strength`` : 1 against the raw size."""
    # OpenJPEG needs about 32 pixels a side for its five wavelet levels.
    height, width = image.shape[:2]
    bottom, right = max(0, 32 - height), max(0, 32 - width)
    padded = np.pad(image, ((0, bottom), (0, right), (0, 0)), mode="edge") if bottom or right else image
    per_mille = max(1, round(1000 / strength))
    coded = _through_codec(padded, ".jp2", [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, per_mille])
    return coded[:height, :width]


def white_noise(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Add independent Gaussian noise of sigma ``strength`` to R, G and B."""
    return to_uint8(image + _normal(image, rng) * np.float32(strength))


def color_component_noise(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Gaussian noise in YCbCr, of sigma ``strength`` on Cb and Cr and a third of it on Y."""
    ycc = cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb)
    noisy = to_uint8(ycc + _normal(image, rng) * np.array([strength / 3, strength, strength], np.float32))
    return np.asarray(cv2.cvtColor(noisy, cv2.COLOR_YCrCb2RGB), np.uint8)


def impulse_noise(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Salt and pepper on a share ``strength`` of the pixels."""
    chance = rng.random(image.shape[:2], dtype=np.float32)
    white = rng.random(image.shape[:2], dtype=np.float32) < 0.5
    result: Image = image.copy()
    hit = chance < strength
    result[hit] = np.where(white[hit], 255, 0).astype(np.uint8)[:, None]
    return result


def multiplicative_noise(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Speckle: each value times (1 + strength * normal)."""
    return to_uint8(image * (1 + _normal(image, rng) * np.float32(strength)))


def denoise(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Gaussian noise of sigma ``strength`` taken out by Gaussian and bilateral filters: smears, blotches."""
    rough = cv2.GaussianBlur(white_noise(image, strength, rng), (5, 5), strength / 55)
    return np.asarray(cv2.bilateralFilter(rough, 7, 2.4 * strength, 2.5), np.uint8)
