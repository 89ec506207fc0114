"""Textures and abstract procedural pictures: float32 RGB in 0..1, shape (size, size, 3)."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["Float", "Image", "dead_leaves", "fractal", "gradient", "noise_map", "palette", "to_image"]

Image = NDArray[np.uint8]
Float = NDArray[np.float32]


def to_image(picture: Float) -> Image:
    """Round a float picture in 0..1 to uint8, clipping what lies outside."""
    rounded: Image = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    return rounded


def noise_map(rng: np.random.Generator, size: int, slope: float = 2.0, stretch: float = 1.0) -> Float:
    """Draw (size, size) noise of zero mean, unit variance and power spectrum 1 / f ** slope.

    ``stretch`` above 1 draws the noise out along x, as in wood, water or brushed metal.
    """
    y = np.fft.fftfreq(size)[:, None]
    x = np.fft.rfftfreq(size)[None, :] * stretch
    frequency = np.hypot(y, x)
    frequency[0, 0] = np.inf
    shape = frequency.shape
    spectrum = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) * frequency ** (-slope / 2)
    field = np.fft.irfft2(spectrum, s=(size, size))
    normal: Float = ((field - field.mean()) / (field.std() + 1e-12)).astype(np.float32)
    return normal


def palette(rng: np.random.Generator, count: int) -> Float:
    """Draw ``count`` colours of related hue, (count, 3) in 0..1, as one scene's colours are related."""
    hue = (rng.random() * 360 + rng.normal(0, 45, count)) % 360
    saturation = np.clip(rng.beta(1.6, 2.2) + rng.normal(0, 0.15, count), 0.02, 0.95)
    value = np.clip(rng.beta(2.2, 1.8, count), 0.05, 1)
    hsv = np.stack([hue, saturation, value], axis=-1).astype(np.float32)[None]
    rgb: Float = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.float32)[0]
    return rgb


def gradient(rng: np.random.Generator, size: int) -> Float:
    """Smooth changes between a few colours, with a faint texture."""
    grid = int(rng.integers(2, 5))
    corners = palette(rng, grid * grid).reshape(grid, grid, 3)
    smooth = cv2.resize(corners, (size, size), interpolation=cv2.INTER_CUBIC)
    grain = noise_map(rng, size, rng.uniform(1.6, 2.6)) * rng.uniform(0.005, 0.04)
    return np.asarray(smooth + grain[..., None], np.float32)


def fractal(rng: np.random.Generator, size: int) -> Float:
    """1/f texture mapped through a colour ramp: stone, clouds, wood, water."""
    bands = rng.random() < 0.3
    # Bands multiply the detail, so that they need a smoother field not to turn into noise.
    slope = rng.uniform(3.0, 3.6) if bands else rng.uniform(2.6, 3.2)
    field = noise_map(rng, size, slope, float(rng.choice([1, 1, 3, 8])))
    if not bands and rng.random() < 0.4:  # ridges
        field = np.abs(field)
    if bands:
        field = np.sin(field * rng.uniform(2, 5)).astype(np.float32)
    ranks = (field - field.min()) / (np.ptp(field) + 1e-6)
    ramp = cv2.resize(palette(rng, 5)[None], (256, 1), interpolation=cv2.INTER_LINEAR)[0]
    return np.asarray(ramp[(ranks * 255).astype(np.int32)], np.float32)


def dead_leaves(rng: np.random.Generator, size: int) -> Float:
    """Occluding discs, ellipses and polygons of power-law size, textured and shaded."""
    colours = palette(rng, int(rng.integers(6, 20)))
    canvas: Float = np.tile(colours[0], (size, size, 1)).astype(np.float32)
    grain = np.zeros((size, size), np.float32)
    shade = np.zeros((size, size), np.float32)
    count = int(rng.integers(400, 1000))
    # P(r) ~ r^-3 between the two radii, which makes the picture scale invariant
    small, large = size / rng.uniform(25, 60), size / rng.uniform(2.5, 6)
    uniform = rng.random(count)
    radii = 1 / np.sqrt(uniform / small**2 + (1 - uniform) / large**2)
    for radius in radii:
        tint = colours[rng.integers(len(colours))] * (1 + rng.normal(0, 0.12))
        centre = rng.random(2) * size
        angle = rng.random() * 360
        corners = int(rng.choice([0, 0, 3, 4, 4, 6]))
        if corners == 0:
            turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
            ring = np.stack([np.cos(turn), np.sin(turn) * rng.uniform(0.35, 1)], axis=-1)
        else:
            turn = np.sort(rng.random(corners) * 0.7 + np.arange(corners)) * 2 * np.pi / corners
            ring = np.stack([np.cos(turn), np.sin(turn)], axis=-1)
        cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
        outline = ring @ np.array([[cos, sin], [-sin, cos]]) * radius + centre
        points = [np.rint(outline * 16).astype(np.int32)]
        cv2.fillPoly(canvas, points, tint.tolist(), cv2.LINE_AA, 4)
        cv2.fillPoly(grain, points, float(rng.choice([0, rng.uniform(0, 0.25)])), cv2.LINE_8, 4)
        cv2.fillPoly(shade, points, float(rng.uniform(-1, 1)), cv2.LINE_8, 4)
    relief = noise_map(rng, size, rng.uniform(1.5, 2.4))
    light = np.linspace(-1, 1, size, dtype=np.float32)[None, :] * shade
    return np.asarray(canvas * (1 + (grain * relief + 0.25 * light)[..., None]), np.float32)
