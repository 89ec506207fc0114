"""Faults made of real clips: which are raised, as what, and how soon?

python tests/field/composites.py CLIP...
python tests/field/composites.py CLIP... --minutes 20     # also the untouched clips, repeated, for so long

What is raised is what the picture shows; untouched clips go through all alarms, with the scores of the model
that ships.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from grmp_edge.default_bundle import DEFAULT_BUNDLE
from grmp_edge.runtime.live.alarms import CameraAlarms
from grmp_edge.runtime.live.alert import AlertRule
from grmp_edge.runtime.live.config import CameraConfig
from grmp_edge.runtime.live.no_picture import synthetic
from grmp_edge.runtime.live.rotation import Rotation
from grmp_edge.runtime.live.tamper import Tamper
from grmp_edge.runtime.scorer import Scorer
from grmp_edge.score import Origin

UInt8Array = npt.NDArray[np.uint8]
_RNG = np.random.default_rng(0)
_NORMAL_S, _FAULT_S = 45.0, 16.0
_STEP_S = 0.5


def _cloth(shape: tuple[int, ...]) -> UInt8Array:
    cell = max(1, shape[1] // 32)  # near the lens, and so out of focus
    small = _RNG.normal(90, 25, (shape[0] // cell, 32, 1)).clip(0, 255).astype(np.uint8)
    return np.repeat(cv2.resize(small, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)[..., None], 3, 2)


def _occlusion(share: float) -> Callable[[UInt8Array, float], UInt8Array]:
    kept: dict[tuple[int, ...], UInt8Array] = {}

    def cover(image: UInt8Array, since: float) -> UInt8Array:
        cloth = kept.setdefault(image.shape, _cloth(image.shape))
        out: UInt8Array = image.copy()
        width = round(share * image.shape[1])
        out[:, :width] = cloth[:, :width]
        return out

    return cover


def _noise(image: npt.NDArray[np.floating], levels: float) -> UInt8Array:
    return (image + _RNG.normal(0, levels, image.shape[:2])[..., None]).clip(0, 255).astype(np.uint8)


def _defocus(image: UInt8Array, since: float) -> UInt8Array:
    return cv2.GaussianBlur(image, (0, 0), image.shape[1] / 100).astype(np.uint8)


def _displace(image: UInt8Array, since: float) -> UInt8Array:
    height, width = image.shape[:2]
    x, y = round(0.15 * width), round(0.1 * height)
    return cv2.copyMakeBorder(image, 0, y, 0, x, cv2.BORDER_REFLECT)[y:, x:].astype(np.uint8)


def _cap(image: UInt8Array, since: float) -> UInt8Array:
    return _noise(np.full(image.shape, 14.0), 4)


def _sheet(image: UInt8Array, since: float) -> UInt8Array:
    ramp = np.linspace(200, 235, image.shape[1])[None, :, None]
    return _noise(np.broadcast_to(ramp, image.shape) * 1.0, 2)


def _glare(image: UInt8Array, since: float) -> UInt8Array:
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width]
    light = 420 * np.exp(
        -(((x - 0.6 * width) / (0.4 * width)) ** 2 + ((y - 0.4 * height) / (0.5 * height)) ** 2)
    )
    return _noise(image * 0.8 + light[..., None], 1)


def _dusk(image: UInt8Array, since: float) -> UInt8Array:
    gain = max(0.15, 1 - since / 15)
    return _noise(image * gain + 4, 4 * (1 - gain))


def _infrared(image: UInt8Array, since: float) -> UInt8Array:
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width]
    spot = np.exp(-(((x - width / 2) / (0.7 * width)) ** 2 + ((y - height / 2) / (0.7 * height)) ** 2))
    grey = 255 * (image[..., 2] / 255.0) ** 0.8
    return _noise(np.repeat((grey * spot * 0.9)[..., None], 3, 2), 4)


def _as_it_is(image: UInt8Array, since: float) -> UInt8Array:
    return image


FAULTS: dict[str, tuple[Callable[[UInt8Array, float], UInt8Array], tuple[str, ...]]] = {
    "defocus": (_defocus, ("blurred",)),
    "whole occlusion": (_occlusion(1.0), ("covered",)),
    "2/3 occlusion": (_occlusion(0.67), ("covered",)),
    "displacement": (_displace, ("moved",)),
    "lens cap": (_cap, ("dark", "black")),
    "light sheet": (_sheet, ("covered", "bright")),
    "glare": (_glare, ("bright",)),
    "dusk": (_dusk, ()),
    "infrared": (_infrared, ()),
    "untouched": (_as_it_is, ()),
}


def frames_of(clip: Path, width: int = 0) -> list[UInt8Array]:
    """Two frames a second of a clip, enlarged to a width."""
    capture = cv2.VideoCapture(str(clip))
    every = max(1, round(capture.get(cv2.CAP_PROP_FPS) * _STEP_S))
    frames: list[UInt8Array] = []
    while capture.grab():
        if len(frames) * every <= round(capture.get(cv2.CAP_PROP_POS_FRAMES)) - 1:
            frame = capture.retrieve()[1]
            if width:
                height = round(frame.shape[0] * width / frame.shape[1])
                frame = cv2.resize(frame, (width, height), interpolation=cv2.INTER_CUBIC)
            frames.append(frame.astype(np.uint8))
    return frames


def raised(
    frames: list[UInt8Array], normal: Tamper, fault: Callable[[UInt8Array, float], UInt8Array], seconds: float
) -> list[tuple[float, str]]:
    """What is raised after the normal time, and how many seconds after the fault began."""
    tamper, before, changes = copy.deepcopy(normal), None, []
    for index in range(round(seconds / _STEP_S)):
        since = index * _STEP_S
        image = fault(frames[(index + round(_NORMAL_S / _STEP_S)) % len(frames)], since)
        now = _NORMAL_S + since
        kind: str | None = synthetic(image) or tamper.step(now, 1.7e9 + now, image)
        if kind is not None and kind != before:
            changes.append((since, kind))
        before = kind
    return changes


def watched(frames: list[UInt8Array]) -> Tamper:
    """A camera that has been normal for the normal time."""
    tamper = Tamper()
    for index in range(round(_NORMAL_S / _STEP_S)):
        assert tamper.step(index * _STEP_S, 1.7e9 + index * _STEP_S, frames[index % len(frames)]) is None
    return tamper


def untouched(frames: list[UInt8Array], minutes: float) -> list[tuple[float, str]]:
    """What all alarms raise on a clip that is repeated, by simulated seconds; each frame is scored once."""
    values = []
    with Scorer.open(DEFAULT_BUNDLE, threads=1) as scorer:
        rotation = Rotation(scorer.bundle.preprocess, CameraConfig("clip").crops)
        for frame in frames:
            views = rotation.add(scorer.prepare(frame, True, ()), frame)
            places, logits = rotation.complete(views, scorer.read([views])[0])
            values.append(scorer.summarise(Origin("clip"), places, logits, tiles=True))
    alarms = CameraAlarms(AlertRule(preset="normal"), "clip", "m", None, Tamper(), now=0.0)
    changes = []
    for index in range(round(60 * minutes / _STEP_S)):
        now, frame, score = index * _STEP_S, frames[index % len(frames)], values[index % len(frames)]
        size = (frame.shape[1], frame.shape[0])
        alerts = alarms.picture(now, 1.7e9 + now, frame)
        alerts += alarms.score(now, 1.7e9 + now, score.value, score.tiles or (), size)
        changes += [(now, str(alert.kind)) for alert in alerts if alert.raised]
    return changes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", type=Path, nargs="+")
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--only", default="", help="names of faults, with commas")
    parser.add_argument("--width", type=int, default=0, help="frames are enlarged to so many pixels")
    options = parser.parse_args()
    clips = {clip.stem: frames_of(clip, options.width) for clip in options.clips}
    normal = {stem: watched(frames) for stem, frames in clips.items()}
    print(f"| fault | {' | '.join(clips)} |")
    wrong = 0
    for name, (fault, kinds) in FAULTS.items():
        if options.only and name not in options.only.split(","):
            continue
        cells = []
        for stem, frames in clips.items():
            if name == "untouched" and options.minutes:
                changes = untouched(frames, options.minutes)
            else:
                changes = raised(frames, normal[stem], fault, _FAULT_S)
            right = len(changes) == 1 and changes[0][1] in kinds and 0 <= changes[0][0] <= 10
            right = right if kinds else not changes
            wrong += not right
            cells.append(", ".join(f"{kind} {at:.1f} s" for at, kind in changes) or "none")
            cells[-1] += "" if right else " (wrong)"
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print(f"{wrong} wrong")


if __name__ == "__main__":
    main()
