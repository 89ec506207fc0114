"""A small labelled set, sample pictures and a clip, all computer-made, to try everything offline.

The labels are computed from the strength of the distortion, in place of people's opinions.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from grmp_edge.errors import DataError
from grmp_edge.files import replace_folder
from grmp_edge.preprocess import swap_red_blue
from grmp_edge.train.pictures.distort import distort
from grmp_edge.train.pictures.procedural import procedural_image

__all__ = ["SampleConfig", "write_samples"]

UInt8Array = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class SampleConfig:
    """What to generate."""

    pictures: int = 64  # fifty labels, and a fifth held out to test on
    size: int = 320  # larger than the network's input, as a camera's frames are
    # The usual faults of cameras: focus, motion, night noise, compression, darkness.
    distortions: tuple[str, ...] = ("gaussian_blur", "motion_blur", "white_noise", "jpeg", "darken")
    clip_frames: int = 48
    clip_fps: float = 12.0
    seed: int = 0


def write_samples(output: Path, config: SampleConfig, on_step: Callable[[], None] | None = None) -> None:
    """Write ``labels.csv`` and ``images/`` to learn from, ``samples/`` and ``clip.mp4`` to score.

    Each labelled picture shows different content and has one distortion at level 0 (pristine) to 5; its
    label is 5 - 0.8 * level plus a little noise, on a scale of 1 to 5. ``samples`` has pristine and distorted
    pictures of other contents. The clip gradually loses focus.

    Raises:
        DataError: the output exists and is not empty, or the clip cannot be written.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DataError(f"{output}: exists already", "choose another folder with -o, or remove it")
    with replace_folder(output) as folder:
        (folder / "images").mkdir()
        (folder / "samples").mkdir()
        rows = []
        for index in range(config.pictures):
            rng = np.random.default_rng([config.seed, 1, index])
            level = index % 6
            kind = config.distortions[int(rng.integers(len(config.distortions)))]
            picture = procedural_image(rng, config.size)
            if level:
                picture = distort(picture, kind, level, rng)
            name = f"{index:03d}.png"
            _write(folder / "images" / name, picture)
            mos = float(np.clip(5 - 0.8 * level + rng.normal(0, 0.15), 1, 5))
            rows.append((name, f"{mos:.2f}", "0.15", kind if level else "pristine"))
            if on_step:
                on_step()
        with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([("image", "mos", "std", "distortion"), *rows])
        for number, name in enumerate(("street", "harbour", "room")):
            rng = np.random.default_rng([config.seed, 2, number])
            clean = procedural_image(rng, config.size)
            _write(folder / "samples" / f"{name}_clean.png", clean)
            for kind in ("gaussian_blur", "white_noise", "jpeg"):
                _write(folder / "samples" / f"{name}_{kind}.png", distort(clean, kind, 5, rng))
        _write_clip(folder / "clip.mp4", config)


def _write_clip(path: Path, config: SampleConfig) -> None:
    """A slow pan over one scene that drifts out of focus from halfway on."""
    size = 2 * (config.size // 2)
    scene = procedural_image(np.random.default_rng([config.seed, 3]), size + config.clip_frames)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), config.clip_fps, (size, size))
    if not writer.isOpened():
        raise DataError(f"{path}: this OpenCV cannot write mp4", "install opencv-python-headless")
    for frame in range(config.clip_frames):
        view = np.ascontiguousarray(scene[frame // 2 : frame // 2 + size, frame : frame + size])
        drift = max(0.0, frame - config.clip_frames / 2) / (config.clip_frames / 2)
        if drift > 0:
            view = np.asarray(cv2.GaussianBlur(view, (0, 0), 0.5 + 5 * drift), dtype=np.uint8)
        writer.write(swap_red_blue(view))
    writer.release()


def _write(path: Path, picture: UInt8Array) -> None:
    if not cv2.imwrite(str(path), swap_red_blue(picture)):
        raise DataError(f"{path}: cannot be written", "check the disk and the permissions")
