"""Faults of real cameras at a picture's own resolution, with numpy, OpenCV and the ffmpeg program.

A fault maps (picture, severity, generator) to a picture of the same size; severity runs from 0 (hardly there)
to 1 (ruins), .5 is plain to see. Pictures are uint8 (H, W, 3) RGB. ``HEALTHY`` are changes that are none.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from grmp_edge.errors import DataError
from grmp_edge.train.network.words import CAUSES

__all__ = ["FAULTS", "HEALTHY", "LOCAL", "Fault", "Picture", "Random", "apply", "disk", "jpeg_at", "video"]

Picture = NDArray[np.uint8]
Random = np.random.Generator
_LIGHT = np.power(np.arange(256, dtype=np.float32) / 255, 2.2)  # linear light of each value
_FFMPEG = ("ffmpeg", "-v", "quiet", "-nostdin", "-threads", "1")
_SHAKEN, _SLICES, _TRIES = 4, 8, 5  # frames before the one that is shown; parts of each; tries of losses
_HEADER, _PACKET = 12, 1400  # bytes of a slice that are kept, and of a packet
_SEEN = 8  # grey values: a block that is off by so much is seen to be wrong
_DIMMEST = 0.02  # linear light: what is darker is not burnt out
_SITE = 0.6  # sigma in pixels of interpolation between the sensor's sites


def _clip(x: NDArray[np.floating]) -> Picture:
    return np.asarray(np.clip(x + 0.5, 0, 255), np.uint8)


def _between(severity: float, low: float, high: float) -> float:
    """Geometric: each step of severity multiplies the strength."""
    return float(low * (high / low) ** severity)


def _blurred(x: Picture, sigma: float) -> Picture:
    return np.asarray(cv2.GaussianBlur(x, (0, 0), sigma), np.uint8)


def _filtered(x: Picture, kernel: NDArray[np.float32]) -> Picture:
    return np.asarray(cv2.filter2D(x, -1, kernel, borderType=cv2.BORDER_REFLECT_101), np.uint8)


def _linear(picture: Picture) -> NDArray[np.float32]:
    light: NDArray[np.float32] = _LIGHT[picture]
    return light


def _encoded(light: NDArray[np.floating]) -> Picture:
    return _clip(cv2.pow(np.clip(light, 0, 1).astype(np.float32), 1 / 2.2) * 255)


# Blur


def gaussian_blur(x: Picture, s: float, rng: Random) -> Picture:
    """A soft lens: sigma .8 to 6 pixels."""
    return _blurred(x, _between(s, 0.8, 6.0))


def disk(radius: float) -> NDArray[np.float32]:
    """A kernel (n, n) that blurs as a lens out of focus does."""
    reach = int(np.ceil(radius))
    big = 8 * (2 * reach + 1)
    y, x = np.mgrid[:big, :big] - (big - 1) / 2
    inside = (x * x + y * y <= (8 * radius) ** 2).astype(np.float32)
    kernel = np.asarray(cv2.resize(inside, (2 * reach + 1, 2 * reach + 1), interpolation=cv2.INTER_AREA))
    return np.asarray(kernel / kernel.sum(), np.float32)


def defocus(x: Picture, s: float, rng: Random) -> Picture:
    """A disk of radius 1.4 to 9 pixels."""
    return _filtered(x, disk(_between(s, 1.4, 9.0)))


def motion_blur(x: Picture, s: float, rng: Random) -> Picture:
    """A straight streak of 4 to 30 pixels."""
    length, angle = _between(s, 4, 30), rng.uniform(0, np.pi)
    side = 2 * int(np.ceil(length / 2)) + 3
    kernel = np.zeros((side * 4, side * 4), np.float32)
    middle = np.array([side * 2, side * 2])
    step = np.array([np.cos(angle), np.sin(angle)]) * length * 2
    ends = [tuple(int(v) for v in np.round(middle + sign * step)) for sign in (-1, 1)]
    cv2.line(kernel, ends[0], ends[1], 1.0, 4)
    small = np.asarray(cv2.resize(kernel, (side, side), interpolation=cv2.INTER_AREA), np.float32)
    return _filtered(x, small / small.sum())


def low_resolution(x: Picture, s: float, rng: Random) -> Picture:
    """Shrunk by 1.5 to 7 and enlarged again."""
    height, width = x.shape[:2]
    factor = _between(s, 1.5, 7.0)
    small = cv2.resize(
        x, (max(8, int(width / factor)), max(8, int(height / factor))), interpolation=cv2.INTER_AREA
    )
    return np.asarray(
        cv2.resize(
            small, (width, height), interpolation=cv2.INTER_CUBIC if rng.random() < 0.5 else cv2.INTER_LINEAR
        ),
        np.uint8,
    )


# Noise


def _normal(shape: tuple[int, ...], rng: Random) -> NDArray[np.float32]:
    return rng.standard_normal(shape, dtype=np.float32)


def white_noise(x: Picture, s: float, rng: Random) -> Picture:
    """Gaussian, sigma 4 to 40 grey values; of three channels or of one."""
    sigma = _between(s, 4, 40)
    noise = (
        _normal(x.shape, rng)
        if rng.random() < 0.7
        else np.repeat(_normal(x.shape[:2], rng)[:, :, None], 3, 2)
    )
    return _clip(x + sigma * noise)


def sensor_noise(x: Picture, s: float, rng: Random) -> Picture:
    """Shot and read noise on linear light; sites are interpolated, so the grain is a little wide."""
    light = _linear(x)
    gain = _between(s, 0.0004, 0.03)
    noise = np.sqrt(gain * light + (gain * 0.8) ** 2 * 4) * _normal(x.shape, rng)
    if rng.random() < 0.5:
        noise = cv2.GaussianBlur(noise, (0, 0), _SITE) * 1.7
    return _encoded(light + noise)


def dark_noise(x: Picture, s: float, rng: Random) -> Picture:
    """A night: little light, raised again by gain."""
    return sensor_noise(_encoded(_linear(x) * rng.uniform(0.12, 0.35)), 0.25 + 0.75 * s, rng)


def denoised(x: Picture, s: float, rng: Random) -> Picture:
    """Noise after a camera's denoising: detail is smeared, blotches stay."""
    noisy = sensor_noise(x, 0.3 + 0.6 * s, rng)
    sigma = _between(s, 20, 90)
    for _ in range(2 if s > 0.5 else 1):
        noisy = np.asarray(cv2.bilateralFilter(noisy, 5, sigma, 3), np.uint8)
    return noisy if s < 0.6 else np.asarray(cv2.medianBlur(noisy, 5), np.uint8)


# Compression


def jpeg(x: Picture, s: float, rng: Random) -> Picture:
    """Quality 50 to 4."""
    quality = int(np.clip(round(_between(s, 50, 4)), 2, 60))
    return jpeg_at(x, quality)


def jpeg_at(x: Picture, quality: int) -> Picture:
    """Encode and decode at one quality."""
    data = cv2.imencode(".jpg", x[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    decoded = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
    return np.ascontiguousarray(decoded[:, :, ::-1])


def video(x: Picture, codec: str, crf: int, frames: int = 1) -> tuple[Picture, int]:
    """Encode a slow pan over the picture and decode its last frame.

    Args:
        x: the picture.
        codec: ``h264`` or ``hevc``.
        crf: the encoder's constant rate factor.
        frames: of the pan, three pixels a frame.

    Returns:
        The frame, and the stream's size in bytes.

    Raises:
        DataError: there is no ffmpeg program.
        RuntimeError: it did not decode every frame.
    """
    stream = _encode(x, codec, crf, [(0, 3 * (frames - 1 - i)) for i in range(frames)])
    return _decode(x, codec, stream, frames), len(stream)


def _encode(x: Picture, codec: str, crf: int, shifts: Sequence[tuple[int, int]], slices: int = 1) -> bytes:
    """The elementary stream of a picture moved by (rows, columns), a frame for each; ``slices``: H.264's."""
    if shutil.which("ffmpeg") is None:
        raise DataError(
            "faults of video streams need the program ffmpeg, which is not installed",
            "install it, for instance with: apt install ffmpeg",
        )
    height, width = x.shape[0] & ~1, x.shape[1] & ~1
    raw = b"".join(np.roll(x[:height, :width], shift, axis=(0, 1)).tobytes() for shift in shifts)
    options = ["-c:v", "libx264", "-slices", str(slices)]
    if codec == "hevc":
        options = ["-c:v", "libx265", "-x265-params", "log-level=none:pools=none:frame-threads=1"]
    given = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", "12", "-i", "-"]
    options += ["-preset", "veryfast", "-bf", "0", "-crf", str(crf), "-pix_fmt", "yuv420p"]
    command = [*_FFMPEG, *given, *options, "-f", codec, "-"]
    return subprocess.run(command, input=raw, stdout=subprocess.PIPE, check=True).stdout


def _decode(x: Picture, codec: str, stream: bytes, frames: int) -> Picture:
    """The last of so many frames of an elementary stream, in place of ``x``."""
    options = ["-ec", "guess_mvs+deblock", "-flags", "+output_corrupt", "-f", codec, "-i", "-"]
    command = [*_FFMPEG, *options, "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    out = subprocess.run(command, input=stream, stdout=subprocess.PIPE, check=False).stdout
    height, width = x.shape[0] & ~1, x.shape[1] & ~1
    size = height * width * 3
    if len(out) != frames * size:
        raise RuntimeError(f"ffmpeg decoded {len(out) / size:g} frames, not {frames}")
    made: Picture = x.copy()
    made[:height, :width] = np.frombuffer(out[-size:], np.uint8).reshape(height, width, 3)
    return made


def h264(x: Picture, s: float, rng: Random) -> Picture:
    """H.264 at crf 28 to 48: an intra frame, or one predicted from it."""
    return video(x, "h264", round(28 + 20 * s), 1 if rng.random() < 0.5 else 2)[0]


def hevc(x: Picture, s: float, rng: Random) -> Picture:
    """HEVC at crf 29 to 49."""
    return video(x, "hevc", round(29 + 20 * s))[0]


def lost_packets(x: Picture, s: float, rng: Random) -> Picture:
    """H.264 of an unsteady camera without some of its packets: 5 to 60 % of all blocks are wrong.

    How much of a loss shows is a matter of luck, as decoders fill what is missing from the frame before: so
    it is looked at, and of several tries the one nearest to that share is taken.
    """
    shifts = [*((int(a), int(b)) for a, b in rng.integers(-24, 25, (_SHAKEN, 2))), (0, 0)]
    stream, aim = _encode(x, "h264", 26, shifts, _SLICES), _between(s, 0.05, 0.6)
    made, whole = x, _decode(x, "h264", stream, len(shifts))
    nearest = np.inf
    for _ in range(_TRIES):
        with contextlib.suppress(RuntimeError):  # lost altogether
            tried = _decode(x, "h264", _without_packets(stream, rng.uniform(0, 1.5 * aim), rng), len(shifts))
            share = _wrong(tried, whole)
            away = abs(np.log((share + 0.01) / aim))
            if away < nearest:
                made, nearest = tried, away
    return made


def _without_packets(stream: bytes, share: float, rng: Random) -> bytes:
    """An H.264 stream (Annex B) of which a ``share`` of the slices, by chance, lacks a packet's bytes."""
    units = stream.split(b"\0\0\1")
    for index, unit in enumerate(units):
        if unit and unit[0] & 31 in (1, 5) and len(unit) > _HEADER and rng.random() < share:
            at = int(rng.integers(_HEADER, len(unit)))
            units[index] = unit[:at] + unit[at + _PACKET :]
    return b"\0\0\1".join(units)


def _wrong(shown: Picture, whole: Picture) -> float:
    """Share of blocks of 16 x 16 pixels that are not what they should be."""
    change = cv2.absdiff(shown, whole).mean(axis=2)
    height, width = change.shape
    blocks = cv2.resize(change, (max(1, width // 16), max(1, height // 16)), interpolation=cv2.INTER_AREA)
    return float((blocks > _SEEN).mean())


# Light and air


def under_exposure(x: Picture, s: float, rng: Random) -> Picture:
    """Linear light times .3 to .015."""
    return _encoded(_linear(x) * _between(s, 0.3, 0.015))


def over_exposure(x: Picture, s: float, rng: Random) -> Picture:
    """Linear light times 1.9 to 14, and enough to burn out 5 to 60 % of the picture.

    A dim scene bears more light than a bright one, and may be the better for it.
    """
    light = _linear(x)
    burns = 1 / max(float(np.quantile(light.max(axis=2), 1 - _between(s, 0.05, 0.6))), _DIMMEST)
    return _encoded(light * max(_between(s, 1.9, 14.0), burns) + 0.02 * s)


def glare(x: Picture, s: float, rng: Random) -> Picture:
    """The sun on the lens: a burnt-out disk, its halo and a veil over all."""
    height, width = x.shape[:2]
    y, z = np.mgrid[:height, :width].astype(np.float32)
    cy, cx = rng.uniform(0.1, 0.8) * height, rng.uniform(0.1, 0.9) * width
    far = np.hypot(y - cy, z - cx) / np.hypot(height, width)
    halo = np.exp(-far / _between(s, 0.07, 0.3)) * 1.6 + np.exp(-((far / _between(s, 0.03, 0.12)) ** 2)) * 3
    veil = (halo + 0.25 * s).astype(np.float32)
    return _encoded(
        _linear(x) + veil[:, :, None] * np.array([1.0, 0.95, 0.85], np.float32) * np.float32(0.3 + 0.7 * s)
    )


def haze(x: Picture, s: float, rng: Random) -> Picture:
    """Koschmieder: what is far (above) is lost first."""
    height = x.shape[0]
    through = 1 - np.clip(0.32 + 0.62 * s, 0, 0.95) * np.linspace(
        1.08, rng.uniform(0.75, 1.0), height, dtype=np.float32
    )
    air = rng.uniform(150, 235) + rng.uniform(-8, 8, 3)
    through = np.clip(through, 0.02, 1)[:, None, None]
    return _clip(x * through + air * (1 - through))


def low_contrast(x: Picture, s: float, rng: Random) -> Picture:
    """Contrast times .55 to .1 about a mid grey."""
    share = np.float32(_between(s, 0.55, 0.1))
    return _clip((x - np.float32(128)) * share + rng.uniform(95, 165))


# On the lens


def _blobs(shape: tuple[int, int], count: int, radius: float, rng: Random) -> NDArray[np.float32]:
    """Soft irregular spots, 0..1."""
    height, width = shape
    scale = 400 / max(height, width)
    mask = np.zeros((max(8, int(height * scale)), max(8, int(width * scale))), np.float32)
    for _ in range(count):
        centre = (int(rng.integers(mask.shape[1])), int(rng.integers(mask.shape[0])))
        axes = tuple(max(1, int(400 * radius * rng.uniform(0.5, 1.5))) for _ in range(2))
        cv2.ellipse(mask, centre, axes, float(rng.uniform(0, 180)), 0, 360, float(rng.uniform(0.6, 1.0)), -1)
    return np.asarray(
        cv2.resize(cv2.GaussianBlur(mask, (0, 0), 400 * radius * 0.25 + 0.5), (width, height)), np.float32
    )


def drops(x: Picture, s: float, rng: Random) -> Picture:
    """Drops on the lens: each shows the scene upside down, small and out of focus."""
    side = max(x.shape[:2])
    blurred = cv2.GaussianBlur(cv2.resize(x, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA), (0, 0), 3)
    turned = cv2.resize(blurred[::-1, ::-1], (x.shape[1], x.shape[0])).astype(np.float32)
    mask = _blobs(x.shape[:2], int(_between(s, 6, 45)), _between(s, 0.022, 0.06), rng)
    mask = np.clip(mask * 1.6, 0, 1)[:, :, None]
    rim = cv2.GaussianBlur(mask, (0, 0), side / 150)[:, :, None] - mask
    return _clip(x * (1 - mask) + (turned * 0.75 + 45) * mask + 60 * np.abs(rim))


def rain(x: Picture, s: float, rng: Random) -> Picture:
    """Streaks in the air, and the veil of those too far to be seen."""
    height, width = x.shape[:2]
    streaks = np.zeros((height, width), np.float32)
    angle, unit = rng.uniform(-0.35, 0.35), max(height, width) / 1000
    for _ in range(int(_between(s, 250, 3500))):
        x0, y0 = int(rng.integers(width)), int(rng.integers(height))
        length = rng.uniform(12, 55) * unit
        end = (int(x0 + length * np.sin(angle)), int(y0 + length * np.cos(angle)))
        cv2.line(
            streaks,
            (x0, y0),
            end,
            float(rng.uniform(0.25, 0.8)),
            max(1, int(rng.integers(1, 3) * unit)),
            cv2.LINE_AA,
        )
    soft = np.asarray(cv2.GaussianBlur(streaks, (0, 0), 0.8), np.float32)[:, :, None]
    veil = 0.1 + 0.25 * s
    return _clip((x * (1 - veil) + 170 * veil) * (1 - 0.6 * soft) + 215 * 0.6 * soft)


def dirt(x: Picture, s: float, rng: Random) -> Picture:
    """Soft dark spots, and what is behind them out of focus."""
    mask = _blobs(x.shape[:2], int(_between(s, 6, 50)), _between(s, 0.03, 0.08), rng)[:, :, None] * (
        0.65 + 0.35 * s
    )
    colour = rng.uniform(20, 90) * np.array([1.0, 0.85, 0.65])
    blurred = cv2.GaussianBlur(x, (0, 0), max(x.shape[:2]) / 200)
    return _clip((x * (1 - mask) + blurred * mask) * (1 - 0.85 * mask) + colour * 0.85 * mask)


def smear(x: Picture, s: float, rng: Random) -> Picture:
    """Grease wiped over a part of the lens, two thirds at a plain level: light is spread along and across."""
    height, width = x.shape[:2]
    share = np.clip(0.35 + 0.6 * s, 0, 0.95)
    small = cv2.resize(x, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    unit = max(height, width) / 2000
    spread = cv2.GaussianBlur(
        small, (0, 0), sigmaX=_between(s, 6, 28) * unit + 1, sigmaY=_between(s, 3, 12) * unit + 1
    )
    spread = cv2.resize(spread, (width, height)).astype(np.float32)
    spread = spread * 0.8 + rng.uniform(120, 190) * 0.2
    turn = rng.uniform(0, 2 * np.pi)
    y, z = np.mgrid[:height, :width].astype(np.float32)
    along = (z / width - 0.5) * np.cos(turn) + (y / height - 0.5) * np.sin(turn)
    reach = np.abs(np.cos(turn)) / 2 + np.abs(np.sin(turn)) / 2
    edge = (share - 0.5) * 2 * reach
    mask = 1 / (1 + np.exp(np.clip((along - edge) / 0.02, -30, 30)))[:, :, None]
    return _clip(x * (1 - mask) + spread * mask)


def obstruction(x: Picture, s: float, rng: Random) -> Picture:
    """Something close to the lens: dark or pale, out of focus, over a quarter to most of the frame."""
    height, width = x.shape[:2]
    share = 0.25 + 0.6 * s
    turn = rng.uniform(0, 2 * np.pi)
    y, z = np.mgrid[:height, :width].astype(np.float32)
    along = (z / width - 0.5) * np.cos(turn) + (y / height - 0.5) * np.sin(turn)
    wave = 0.05 * np.sin(8 * ((y / height) * np.cos(turn) - (z / width) * np.sin(turn)) + rng.uniform(0, 6))
    edge = (share - 0.5) * (np.abs(np.cos(turn)) + np.abs(np.sin(turn)))
    mask = 1 / (1 + np.exp(np.clip((along + wave - edge) / 0.012, -30, 30)))[:, :, None]
    colour = rng.uniform(5, 60) if rng.random() < 0.6 else rng.uniform(60, 190)
    tint = np.array([1.0, 1.0, 1.0]) + rng.uniform(-0.15, 0.15, 3)
    texture = cv2.resize(_normal((6, 8), rng), (width, height), interpolation=cv2.INTER_CUBIC)[:, :, None] * 6
    return _clip(x * (1 - mask) + (colour * tint + texture) * mask)


@dataclass(frozen=True)
class Fault:
    """What it does, and which causes are then true."""

    apply: Callable[[Picture, float, Random], Picture]
    causes: tuple[str, ...]


FAULTS: Mapping[str, Fault] = {
    "gaussian_blur": Fault(gaussian_blur, ("blur",)),
    "defocus": Fault(defocus, ("blur",)),
    "motion_blur": Fault(motion_blur, ("blur",)),
    "low_resolution": Fault(low_resolution, ("blur",)),
    "white_noise": Fault(white_noise, ("noise",)),
    "sensor_noise": Fault(sensor_noise, ("noise",)),
    "dark_noise": Fault(dark_noise, ("noise", "dark")),
    "denoised": Fault(denoised, ("noise", "blur")),
    "jpeg": Fault(jpeg, ("compression",)),
    "h264": Fault(h264, ("compression",)),
    "hevc": Fault(hevc, ("compression",)),
    "lost_packets": Fault(lost_packets, ("compression",)),
    "under_exposure": Fault(under_exposure, ("dark",)),
    "over_exposure": Fault(over_exposure, ("bright",)),
    "glare": Fault(glare, ("bright",)),
    "haze": Fault(haze, ("low_contrast",)),
    "low_contrast": Fault(low_contrast, ("low_contrast",)),
    "drops": Fault(drops, ("obstructed",)),
    "rain": Fault(rain, ("obstructed",)),
    "dirt": Fault(dirt, ("obstructed",)),
    "smear": Fault(smear, ("obstructed", "blur")),
    "obstruction": Fault(obstruction, ("obstructed",)),
}


# What acts here and there: it shows in a view by how much of the view changed.
LOCAL = frozenset({"drops", "dirt", "smear", "obstruction", "lost_packets", "glare"})
if any(cause not in CAUSES for fault in FAULTS.values() for cause in fault.causes):
    raise ValueError("a fault with a cause that is not asked for")


# Healthy


def infrared(x: Picture, s: float, rng: Random) -> Picture:
    """A camera at night under its own lamp: grey, leaves bright, corners a little darker."""
    weights = np.array([0.45, 0.45, 0.1]) + rng.uniform(-0.1, 0.1, 3)
    grey = x.astype(np.float32) @ (weights / weights.sum()).astype(np.float32)
    height, width = grey.shape
    y, z = np.mgrid[:height, :width].astype(np.float32)
    far = np.hypot(y / height - 0.5, z / width - 0.5)
    grey = grey * (1 - 0.35 * s * far)
    return np.repeat(_clip(grey)[:, :, None], 3, 2)


def dusk(x: Picture, s: float, rng: Random) -> Picture:
    """Less light, bluer or warmer: nothing is lost."""
    shift = np.array([0.85, 0.95, 1.15]) if rng.random() < 0.6 else np.array([1.12, 0.97, 0.8])
    return _encoded(_linear(x) * ((0.75 - 0.3 * s) * (1 + (shift - 1) * (0.4 + 0.6 * s))).astype(np.float32))


def mild(x: Picture, s: float, rng: Random) -> Picture:
    """What every camera does: a good JPEG, a slight tone curve."""
    light = x.astype(np.float32)
    light = (light - 128) * rng.uniform(0.9, 1.1) + 128 + rng.uniform(-10, 10)
    return jpeg_at(_clip(light), int(rng.integers(88, 97)))


HEALTHY: Mapping[str, Fault] = {
    "infrared": Fault(infrared, ()),
    "dusk": Fault(dusk, ()),
    "mild": Fault(mild, ()),
}


def apply(name: str, picture: Picture, severity: float, rng: Random) -> Picture:
    """Apply one fault or healthy change, by name; severity 0..1."""
    return {**FAULTS, **HEALTHY}[name].apply(picture, severity, rng)
