"""Procedural scenes: float32 RGB in 0..1, shape (size, size, 3)."""

from __future__ import annotations

import cv2
import numpy as np

from grmp_edge.train.pictures.procedural_texture import Float, Image, noise_map, palette

__all__ = ["landscape", "page", "room", "still_life", "street"]

_TEXT = "light river stone paper green camera window market signal morning quality bridge 1927 48% north"


def _blend(canvas: Float, mask: Float, paint: Float) -> None:
    """Lay paint, (H, W, 3) or (3,), over the canvas where the (H, W) mask is 1."""
    canvas += mask[..., None] * (paint - canvas)


def _sky(rng: np.random.Generator, size: int) -> Float:
    """A vertical gradient with clouds: day, dusk or night."""
    tops = {
        "day": (0.25, 0.5, 0.85),
        "dusk": (0.35, 0.3, 0.5),
        "grey": (0.6, 0.65, 0.7),
        "night": (0.02, 0.03, 0.1),
    }
    lows = {
        "day": (0.75, 0.87, 0.97),
        "dusk": (0.98, 0.65, 0.4),
        "grey": (0.85, 0.87, 0.88),
        "night": (0.1, 0.1, 0.22),
    }
    time = str(rng.choice(list(tops), p=[0.5, 0.2, 0.2, 0.1]))
    down = np.linspace(0, 1, size, dtype=np.float32)[:, None, None] ** rng.uniform(0.6, 1.5)
    sky = np.array(tops[time], np.float32) * (1 - down) + np.array(lows[time], np.float32) * down
    cloud = np.clip(noise_map(rng, size, 2.4, 0.6) * 0.45 + rng.uniform(-0.4, 0.2), 0, 1)
    paint = np.array(lows[time], np.float32) * 0.3 + 0.7 * (0.25 if time == "night" else 1.0)
    canvas: Float = np.tile(sky, (1, size, 1)).astype(np.float32)
    _blend(canvas, cloud.astype(np.float32), paint.astype(np.float32))
    return canvas


def landscape(rng: np.random.Generator, size: int) -> Float:
    """Sky, ridges fading with distance, and grass or water in front."""
    canvas = _sky(rng, size)
    haze = canvas[size // 2, 0].copy()
    near = np.array([rng.uniform(0.05, 0.4), rng.uniform(0.15, 0.45), rng.uniform(0.05, 0.25)], np.float32)
    rows = np.arange(size, dtype=np.float32)[:, None]
    ridges = int(rng.integers(2, 5))
    for i in range(ridges):
        depth = (i + 1) / ridges
        profile = np.cumsum(noise_map(rng, size, 1.2)[0])
        profile = (profile - profile.mean()) / (np.ptp(profile) + 1e-6)
        horizon = size * (0.35 + 0.3 * depth) + profile * size * rng.uniform(0.15, 0.35)
        mask = np.clip(rows - horizon[None, :], 0, 1).astype(np.float32)
        grain = noise_map(rng, size, rng.uniform(1.7, 2.3), float(rng.choice([0.5, 1, 1])))
        tint = haze * (1 - depth) + near * depth
        _blend(canvas, mask, (tint * (1 + 0.3 * depth * grain[..., None])).astype(np.float32))
    shore = int(size * rng.uniform(0.72, 0.9))
    if rng.random() < 0.5:  # water mirrors what is above it
        above = canvas[shore - (size - shore) : shore][::-1]
        ripple = noise_map(rng, size, 1.8, 0.15)[: size - shore, :, None]
        canvas[shore:] = above * 0.8 * (1 + 0.12 * ripple)
    for _ in range(int(rng.integers(0, 7))):
        _tree(rng, canvas, int(rng.uniform(0.6, 0.85) * size), rng.uniform(0.08, 0.3) * size)
    return canvas


def _tree(rng: np.random.Generator, canvas: Float, foot: int, height: float) -> None:
    """A trunk and a crown of many small leaves, standing at row ``foot``."""
    size = len(canvas)
    x = int(rng.uniform(0, size))
    trunk = (0.25 * rng.uniform(0.5, 1.3), 0.17, 0.1)
    cv2.line(canvas, (x, foot), (x, int(foot - height * 0.6)), trunk, max(1, int(height * 0.08)), cv2.LINE_AA)
    leaf = np.array([rng.uniform(0.05, 0.4), rng.uniform(0.25, 0.5), rng.uniform(0.02, 0.15)])
    for _ in range(120):
        dx, dy = rng.normal(0, height * 0.18, 2)
        bright = rng.uniform(0.5, 1.3) - 0.5 * dy / height
        centre = (int(x + dx), int(foot - height * 0.75 + dy))
        cv2.circle(canvas, centre, max(1, int(height * 0.035)), (leaf * bright).tolist(), -1, cv2.LINE_AA)


def street(rng: np.random.Generator, size: int) -> Float:
    """Houses with rows of windows on both sides of a road under a sky."""
    canvas = _sky(rng, size)
    horizon = int(size * rng.uniform(0.5, 0.68))
    canvas[horizon:] = 0.35 + 0.03 * noise_map(rng, size, 1.8)[horizon:, :, None]
    middle = int(size * rng.uniform(0.35, 0.65))
    road = np.array([[middle, horizon], [int(size * 1.1), size], [int(-size * 0.1), size]], np.int32)
    cv2.fillConvexPoly(canvas, road, (0.22, 0.22, 0.24), cv2.LINE_AA)
    for t in np.linspace(0.05, 0.9, 7) ** 2:  # the dashes of the middle line, longer the nearer
        y = horizon + t * (size - horizon)
        start, end = (middle, int(y)), (middle, int(y + 0.06 * size * t + 1))
        cv2.line(canvas, start, end, (0.9, 0.9, 0.8), max(1, int(0.012 * size * t)))
    x = -int(rng.uniform(0, 0.1) * size)
    grain = noise_map(rng, size, 1.6)[..., None]
    while x < size:
        width = int(size * rng.uniform(0.1, 0.26))
        near = min(1.0, abs(x + width / 2 - middle) / (size * 0.5))
        top = int(horizon - size * rng.uniform(0.12, 0.3) * (0.5 + 1.1 * near))
        foot = int(horizon + size * 0.1 * near)
        left, right = max(0, x), min(size, x + width)
        wall = palette(rng, 1)[0] * 0.6 + 0.3
        canvas[max(0, top) : foot, left:right] = wall * (1 + 0.06 * grain[max(0, top) : foot, left:right])
        step = max(6, int(width / rng.integers(3, 7)))
        lit = rng.random() < 0.3
        for wy in range(top + step // 2, foot - step, step):
            for wx in range(x + step // 3, x + width - step // 2, step):
                glass = (0.95, 0.85, 0.5) if lit and rng.random() < 0.5 else (0.12, 0.16, 0.22)
                cv2.rectangle(canvas, (wx, wy), (wx + step // 2, wy + int(step * 0.65)), glass, -1)
        cv2.line(canvas, (x, top), (x + width, top), (wall * 0.5).tolist(), max(1, size // 150))
        x += width
    for _ in range(int(rng.integers(0, 4))):
        _tree(rng, canvas, int(horizon + size * 0.1), rng.uniform(0.2, 0.4) * size)
    return canvas


def room(rng: np.random.Generator, size: int) -> Float:
    """Walls and floor in perspective, a window, pictures, a table and a lamp."""
    colours = palette(rng, 8) * 0.7 + 0.25
    left, right = int(size * rng.uniform(0.12, 0.3)), int(size * rng.uniform(0.7, 0.88))
    top, foot = int(size * rng.uniform(0.08, 0.2)), int(size * rng.uniform(0.62, 0.78))
    canvas: Float = np.empty((size, size, 3), np.float32)
    canvas[:] = colours[0]
    faces = (
        ([[0, 0], [left, top], [left, foot], [0, size]], colours[0] * 0.8),
        ([[size, 0], [right, top], [right, foot], [size, size]], colours[0] * 0.7),
        ([[0, 0], [size, 0], [right, top], [left, top]], colours[0] * 0.4 + 0.58),
        ([[0, size], [size, size], [right, foot], [left, foot]], colours[1] * 0.8),
    )
    for corners, paint in faces:
        cv2.fillConvexPoly(canvas, np.array(corners, np.int32), paint.tolist(), cv2.LINE_AA)
    for t in np.linspace(0, 1, 12):  # floor boards
        near, far = (int((t * 1.6 - 0.3) * size), size), (int(left + t * (right - left)), foot)
        cv2.line(canvas, near, far, (colours[1] * 0.55).tolist(), max(1, size // 300), cv2.LINE_AA)
    for i in range(int(rng.integers(1, 4))):
        x, y = int(rng.uniform(left, right - 0.15 * size)), int(rng.uniform(top + 4, foot - 0.25 * size))
        w, h = int(size * rng.uniform(0.08, 0.2)), int(size * rng.uniform(0.1, 0.2))
        w, h = min(w, size - x), min(h, size - y)
        if i == 0:
            canvas[y : y + h, x : x + w] = cv2.resize(_sky(rng, max(w, h, 8)) * 1.1, (w, h))
            cv2.line(canvas, (x + w // 2, y), (x + w // 2, y + h), (0.9, 0.9, 0.9), max(1, size // 120))
        else:
            inner = palette(rng, 6).reshape(2, 3, 3)
            canvas[y : y + h, x : x + w] = cv2.resize(inner, (w, h), interpolation=cv2.INTER_CUBIC)
        cv2.rectangle(canvas, (x, y), (x + w, y + h), (colours[2] * 0.4).tolist(), max(1, size // 100))
    x, y = int(size * rng.uniform(0.2, 0.5)), int(size * rng.uniform(0.68, 0.8))
    wide, wood = int(size * rng.uniform(0.2, 0.4)), colours[3] * rng.uniform(0.3, 0.8)
    cv2.rectangle(canvas, (x, y), (x + wide, y + int(size * 0.04)), wood.tolist(), -1)
    for leg in (x + wide // 12, x + wide - wide // 12):
        cv2.line(canvas, (leg, y), (leg, min(size, y + size // 4)), (wood * 0.7).tolist(), max(1, size // 60))
    _ball(rng, canvas, x + wide / 2, y - 0.05 * size, 0.05 * size, colours[4])
    grid_y, grid_x = np.mgrid[0:size, 0:size] / size
    lamp = np.exp(
        -((grid_x - rng.random()) ** 2 + (grid_y - rng.uniform(0, 0.5)) ** 2) / rng.uniform(0.1, 0.5)
    )
    lit = canvas * (0.55 + 0.6 * lamp[..., None]) * (1 + 0.02 * noise_map(rng, size, 1.4)[..., None])
    return np.asarray(lit, np.float32)


def _ball(rng: np.random.Generator, canvas: Float, x: float, y: float, radius: float, tint: Float) -> None:
    """A shaded ball with a highlight, textured or plain."""
    size = len(canvas)
    grid_y, grid_x = np.mgrid[0:size, 0:size].astype(np.float32)
    dx, dy = (grid_x - x) / radius, (grid_y - y) / radius
    inside = np.clip((1 - np.hypot(dx, dy)) * radius, 0, 1).astype(np.float32)
    z = np.sqrt(np.clip(1 - dx**2 - dy**2, 0, 1))
    shine = np.clip(-0.45 * dx - 0.6 * dy + 0.66 * z, 0, 1)
    grain = 1 + rng.choice([0, 0.15]) * noise_map(rng, size, 1.5)
    paint = tint * (0.2 + 0.85 * shine * grain)[..., None] + 0.6 * (shine**24)[..., None]
    _blend(canvas, inside, paint.astype(np.float32))


def still_life(rng: np.random.Generator, size: int) -> Float:
    """Balls and boxes on a table before a plain wall."""
    colours = palette(rng, 8)
    canvas: Float = np.empty((size, size, 3), np.float32)
    edge = int(size * rng.uniform(0.45, 0.65))
    wall = np.linspace(1.1, 0.7, size, dtype=np.float32)[None, :, None] * (colours[0] * 0.6 + 0.3)
    canvas[:] = wall * (1 + 0.02 * noise_map(rng, size, 2.0)[..., None])
    wood = (colours[1] * 0.6 + 0.2) * (1 + 0.15 * noise_map(rng, size, 1.8, 0.08)[..., None])
    canvas[edge:] = wood[edge:]
    for i in range(int(rng.integers(2, 6))):
        x, radius = rng.uniform(0.1, 0.9) * size, rng.uniform(0.07, 0.17) * size
        foot = rng.uniform(edge + 0.05 * size, 0.95 * size)
        shadow = (int(x + radius * 0.4), int(foot)), (int(radius * 1.1), int(radius * 0.3))
        dark = np.zeros((size, size), np.float32)
        cv2.ellipse(dark, *shadow, 0, 0, 360, 1.0, -1)
        canvas *= 1 - 0.5 * cv2.GaussianBlur(dark, (0, 0), size / 60)[..., None]
        tint = colours[2 + i]
        if rng.random() < 0.65:
            _ball(rng, canvas, x, foot - radius, radius, tint)
        else:
            a, b = (int(x - radius), int(foot - 2 * radius)), (int(x + radius * 0.5), int(foot))
            cv2.rectangle(canvas, a, b, tint.tolist(), -1)
            side = [[b[0], a[1]], [int(b[0] + radius * 0.5), int(a[1] - radius * 0.3)]]
            side += [[side[1][0], int(b[1] - radius * 0.3)], [b[0], b[1]]]
            cv2.fillConvexPoly(canvas, np.array(side, np.int32), (tint * 0.55).tolist(), cv2.LINE_AA)
    return canvas


def page(rng: np.random.Generator, size: int) -> Float:
    """Lines of text and a chart on light or dark paper."""
    dark = rng.random() < 0.25
    paper, ink = (30, (230, 230, 230)) if dark else (int(rng.integers(230, 256)), (20, 20, 25))
    # OpenCV draws text on uint8 only
    canvas: Image = np.full((size, size, 3), paper, np.uint8)
    scale = size / 512
    y = int(size * 0.08)
    chart = int(size * rng.uniform(0.35, 0.7))
    while y < chart:
        height = scale * rng.choice([0.45, 0.6, 0.6, 1.1])
        line = " ".join(rng.choice(_TEXT.split(), 9))
        face = cv2.FONT_HERSHEY_SIMPLEX if rng.random() < 0.7 else cv2.FONT_HERSHEY_COMPLEX
        cv2.putText(canvas, line, (int(size * 0.05), y), face, height, ink, max(1, round(scale)), cv2.LINE_AA)
        y += int(height * 38) + 2
    colours, count = palette(rng, 8).astype(float) * 255, int(rng.integers(4, 9))
    left, right, low = int(size * 0.1), int(size * 0.92), int(size * 0.94)
    heights = rng.uniform(0.1, 0.95, count) * (low - chart - 4)
    xs = np.linspace(left, right, count + 1)
    if rng.random() < 0.6:
        for i in range(count):
            a, b = (int(xs[i]) + 3, int(low - heights[i])), (int(xs[i + 1]) - 3, low)
            cv2.rectangle(canvas, a, b, colours[i % 8].tolist(), -1)
    else:
        points = np.stack([xs[:-1], low - heights], axis=-1).astype(np.int32)
        cv2.polylines(canvas, [points], False, colours[0].tolist(), max(1, round(2 * scale)), cv2.LINE_AA)
    cv2.line(canvas, (left, chart), (left, low), ink, max(1, round(scale)))
    cv2.line(canvas, (left, low), (right, low), ink, max(1, round(scale)))
    return np.asarray(canvas / 255, np.float32)
