"""Distortions of colour and tone. Each takes and gives (H, W, 3) uint8 RGB."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from grmp_edge.train.pictures.distort_signal import Image, to_uint8

__all__ = [
    "brighten",
    "color_diffusion",
    "color_quantization",
    "color_shift",
    "contrast_change",
    "darken",
    "mean_shift",
    "quantization",
    "scale_chroma",
    "tone_curve",
]


def tone_curve(image: Image, curve: NDArray[Any]) -> Image:
    """Apply a tone curve of 256 values in 0..255 to every channel."""
    return np.asarray(cv2.LUT(image, to_uint8(curve)), np.uint8)


def color_diffusion(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Blur the two colour axes by sigma ``strength`` and keep the lightness."""
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    height, width = image.shape[:2]
    # A wide blur is cheaper, and as smooth, on a smaller picture.
    shrink = max(1, min(int(strength // 4), min(height, width) // 8))
    small = cv2.resize(lab, (width // shrink, height // shrink), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), strength / shrink)
    blurred = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    lab[..., 1:] = blurred[..., 1:]
    return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), np.uint8)


def color_shift(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Move green against red and blue by ``strength`` pixels in a random direction."""
    height, width = image.shape[:2]
    angle = rng.uniform(0, 2 * np.pi)
    move = np.array([[1, 0, strength * np.cos(angle)], [0, 1, strength * np.sin(angle)]], np.float32)
    result: Image = image.copy()
    green = np.ascontiguousarray(image[..., 1])
    result[..., 1] = cv2.warpAffine(green, move, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    return result


def color_quantization(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Reduce to a palette of ``strength`` colours found by splitting the widest cluster at its mean."""
    pixels = image.reshape(-1, 3).astype(np.float32)
    sample = pixels[rng.integers(0, len(pixels), 2048)]
    clusters = [sample]
    spread = [sample.var(axis=0) * len(sample)]
    while len(clusters) < int(strength):
        widest = int(np.argmax([s.max() for s in spread]))
        axis = int(np.argmax(spread[widest]))
        cluster = clusters[widest]
        above = cluster[:, axis] > cluster[:, axis].mean()
        if not above.any():  # every sampled pixel of it has the same colour
            break
        parts = [cluster[~above], cluster[above]]
        clusters[widest : widest + 1] = parts
        spread[widest : widest + 1] = [part.var(axis=0) * len(part) for part in parts]
    palette = np.stack([cluster.mean(axis=0) for cluster in clusters])
    # |p - c|^2 without |p|^2, which does not change the nearest
    nearest = np.argmin((palette**2).sum(axis=1) - 2 * pixels @ palette.T, axis=1)
    colours: Image = to_uint8(palette)[nearest].reshape(image.shape)
    return colours


def scale_chroma(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Multiply the colour difference from grey by ``strength``: 0 is grey, above 1 oversaturates."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
    return to_uint8(grey + (image - grey) * np.float32(strength))


def brighten(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Lift the tones: 1 - (1 - x) ** strength; highlights wash out."""
    x = np.linspace(0, 1, 256)
    return tone_curve(image, 255 * (1 - (1 - x) ** strength))


def darken(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Lower the tones: x ** strength; shadows drown."""
    x = np.linspace(0, 1, 256)
    return tone_curve(image, 255 * x**strength)


def mean_shift(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Add or take away ``strength`` grey values, with a random sign."""
    sign = 1 if rng.random() < 0.5 else -1
    return tone_curve(image, np.arange(256) + sign * strength)


def quantization(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Leave ``strength`` evenly spaced levels in each channel."""
    steps = strength - 1
    return tone_curve(image, np.rint(np.arange(256) / 255 * steps) / steps * 255)


def contrast_change(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Lower the contrast about the mean by the share ``strength``, or raise it likewise, at random."""
    gain = 1 - strength if rng.random() < 0.5 else 1 / (1 - 0.9 * strength)
    mean = float(image.mean())
    return tone_curve(image, mean + (np.arange(256) - mean) * gain)
