"""Clean pictures to learn from, and the views of their states: sharp, healthy, at their own size."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypedDict

import cv2
import numpy as np

from grmp_edge.errors import DataError
from grmp_edge.preprocess import Preprocess, read_image
from grmp_edge.train.data.labelled import read_csv
from grmp_edge.train.network.hybrid import NATIVE, SIZE
from grmp_edge.train.pictures.procedural import procedural_image
from grmp_edge.train.recipe.faults import FAULTS, HEALTHY, Picture, Random, apply, video
from grmp_edge.train.recipe.light_and_lens import vary
from grmp_edge.train.recipe.scene_quality import appeal, statistics
from grmp_edge.views import Box

__all__ = [
    "SETS",
    "SURFACE",
    "Record",
    "Source",
    "fault_views",
    "labelled_views",
    "photographs",
    "plain_surface",
    "scene_views",
    "sources",
]

SETS = ("clic2025", "kodak", "cid22")  # folders of clean photographs below DATA/pristine
SURFACE = "surface/"  # what the names of plain scenes begin with
HELD_OUT = 7  # every 7th of each sorted set is never trained on
_PREPROCESS = Preprocess.for_size(SIZE, NATIVE)
# Also shown at a mild severity: what a camera's own resolution hides best.
_TWICE = (
    "gaussian_blur", "defocus", "white_noise", "sensor_noise", "jpeg", "h264", "haze",
    "under_exposure", "over_exposure",
)  # fmt: skip
_SLOW = ("hevc", "lost_packets", "dark_noise", "denoised", "smear", "glare")  # seconds on a large picture
_LARGE = 3_000_000  # values; of larger pictures the slow faults are left out
_PLAIN, _MILD, _HEALTHY = 8, 4, 2  # states of a source in one round, beside the clean one
_DRAWN = ("fractal", "gradient", "asphalt", "landscape", "street", "room", "wall", "dead_leaves")
_SURFACES = ("asphalt", "wall")  # drawn here; the others by procedural_image
_DRAWN_COUNT, _SURFACE_COUNT = 48, 60

Kind = Literal["photo", "drawn"]


class Record(TypedDict, total=False):
    """What is known of a view."""

    source: str
    kind: str  # the state: clean, a fault's or healthy change's name
    level: float  # severity 0..1
    view: int  # 0: the whole; 1..: native crops
    change: float  # mean difference to the clean view, grey values
    set: str  # photo or drawn
    appeal: float  # see scene_quality.py
    mos: float  # 0..1
    cell: int  # where a local fault is


@dataclass(frozen=True)
class Source:
    """A clean picture, made or read when it is needed."""

    name: str
    make: Callable[[], Picture]
    kind: Kind


def photographs(root: Path, held_out: bool) -> list[tuple[str, Path]]:
    """The photographs of ``SETS`` below ``root``/pristine by set, sorted: those held out, or the others.

    Raises:
        DataError: there are none.
    """
    chosen = []
    for name in SETS:
        paths = sorted((root / "pristine" / name).glob("*.webp"))
        chosen += [(name, path) for index, path in enumerate(paths) if (index % HELD_OUT == 0) == held_out]
    if not chosen:
        raise DataError(f"no photographs below {root / 'pristine'}", f"put {', '.join(SETS)} there")
    return chosen


def sources(root: Path) -> list[Source]:
    """Photographs at their own size, parts and reductions of large ones, and drawn pictures."""
    listed: list[Source] = []
    for name, path in photographs(root, held_out=False):
        own = f"{name}/{path.stem}"
        if name == "clic2025":
            listed += [
                Source(f"{own}/part", partial(_part, path), "photo"),
                Source(f"{own}/small", partial(_reduced, path), "photo"),
                Source(f"{own}/full", partial(read_image, path), "photo"),
            ]
        else:
            listed.append(Source(own, partial(read_image, path), "photo"))
    for index in range(_DRAWN_COUNT):
        kind = _DRAWN[index % len(_DRAWN)]
        listed.append(Source(f"drawn/{kind}{index}", partial(_drawn, kind, index), "drawn"))
    return listed


def fault_views(root: Path, turn: int) -> Iterator[tuple[Record, Picture]]:
    """Views of clean, healthy and faulty states, a source after the other.

    Of each state the whole and two native crops, at the same two places for all states of a source. Sources
    come in a random order, so that any part of them is a fair sample; other turns draw other states.
    """
    for source in _shuffled(sources(root), turn):
        yield from _states_of(source, turn)


def surface_views(root: Path, turn: int) -> Iterator[tuple[Record, Picture]]:
    """As :func:`fault_views`, of what fixed cameras see: plain surfaces with something on them."""
    for index in range(_SURFACE_COUNT):
        make = partial(_surface, root, index)
        yield from _states_of(Source(f"{SURFACE}{index}", make, "photo"), turn)


def scene_views(root: Path, turns: int = 5) -> Iterator[tuple[Record, Picture]]:
    """Views of sources in other light, colours, air and focus, with their appeal; no person scored them."""
    for turn in range(turns):
        for source in _shuffled(sources(root), 100 + turn):
            rng = np.random.default_rng([turn, zlib.crc32(source.name.encode()), 7])
            shown = vary(rng, source.make())
            views = _PREPROCESS.views(shown, boxes=_places(shown, rng, 1)).pixels
            for index, view in enumerate(views):
                worth = round(appeal(statistics(view)), 4)
                yield (
                    Record(source=source.name, kind="scene", view=index, set=source.kind, appeal=worth),
                    view,
                )


def labelled_views(labels: Path) -> Iterator[tuple[Record, Picture]]:
    """The whole and the native crops of scored pictures; scores are scaled from 0..100 to 0..1."""
    data = read_csv(labels, mos_range=(0, 100))
    for path, score in zip(data.paths, data.mos, strict=True):
        for index, view in enumerate(_views(read_image(path))):
            yield Record(source=path.stem, kind="labelled", view=index, mos=float(score) / 100), view


def plain_surface(rng: Random, kind: str, side: int = 512) -> Picture:
    """Draw asphalt or a wall: fine, weak grain, lit unevenly, with a few lines; sharp and healthy."""
    ground = np.full((side, side), rng.uniform(70, 190), np.float32)
    for octave, weight in ((3, 14.0), (8, 8.0), (32, 4.0)):
        coarse = rng.standard_normal((octave, octave)).astype(np.float32)
        ground += weight * cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
    if kind == "asphalt":
        grain = rng.standard_normal((side, side)).astype(np.float32)
        grain = np.asarray(cv2.GaussianBlur(grain, (0, 0), rng.uniform(0.8, 1.6)), np.float32)
        ground += grain / grain.std() * rng.uniform(2, 7)
    for _ in range(int(rng.integers(2, 7))):
        ends = [tuple(int(v) for v in rng.integers(-100, side + 100, 2)) for _ in range(2)]
        canvas, thick = np.zeros((side, side), np.float32), int(rng.integers(2, 14))
        line = cv2.line(canvas, ends[0], ends[1], 1.0, thick, cv2.LINE_AA)
        ground += line * (rng.uniform(20, 90) if rng.random() < 0.7 else -rng.uniform(20, 50))
    tint = 1 + rng.uniform(-0.06, 0.06, 3)
    return np.asarray(np.clip(ground[:, :, None] * tint + 0.5, 0, 255), np.uint8)


def _views(picture: Picture) -> Picture:
    return _PREPROCESS.views(picture).pixels


def _shuffled(listed: list[Source], seed: int) -> list[Source]:
    return [listed[index] for index in np.random.default_rng(seed).permutation(len(listed))]


def _states_of(source: Source, turn: int) -> Iterator[tuple[Record, Picture]]:
    picture = source.make()
    rng = np.random.default_rng([turn, zlib.crc32(source.name.encode())])
    boxes = _places(picture, rng, 2)
    clean = _PREPROCESS.views(picture, boxes=boxes).pixels
    for state, severity in [("clean", 0.0), *_states(source.kind, picture.size > _LARGE, rng)]:
        shown = picture if state == "clean" else apply(state, picture, severity, rng)
        for index, view in enumerate(_PREPROCESS.views(shown, boxes=boxes).pixels):
            change = float(np.abs(view.astype(np.int16) - clean[index]).mean())
            yield (
                Record(
                    source=f"{source.name}#{turn}",
                    kind=state,
                    level=round(severity, 4),
                    view=index,
                    change=round(change, 3),
                    set=source.kind,
                ),
                view,
            )


def _states(kind: Kind, large: bool, rng: Random) -> list[tuple[str, float]]:
    """Which faults and healthy changes a source is shown with in one round, each with its severity."""
    names = [name for name in FAULTS if not (large and name in _SLOW)]
    plain = rng.choice(names, _PLAIN, replace=False)
    mild = rng.choice(_TWICE, 0 if kind == "drawn" else _MILD, replace=False)
    healthy = rng.choice(list(HEALTHY), _HEALTHY, replace=False)
    return [
        *((str(name), float(rng.uniform(0.3, 1.0))) for name in plain),
        *((str(name), float(rng.uniform(0.0, 0.3))) for name in mild),
        *((str(name), float(rng.uniform(0, 1))) for name in healthy),
    ]


def _places(picture: Picture, rng: Random, count: int) -> list[Box]:
    """Random native crops."""
    height, width = picture.shape[:2]
    tops = [int(rng.integers(0, max(height - SIZE, 0) + 1)) for _ in range(count)]
    lefts = [int(rng.integers(0, max(width - SIZE, 0) + 1)) for _ in range(count)]
    size = min(width, SIZE), min(height, SIZE)
    return [Box(left, top, *size) for left, top in zip(lefts, tops, strict=True)]


def _part(path: Path) -> Picture:
    """960 x 720 pixels of a large photograph."""
    picture, rng = read_image(path), _rng_of(path)
    height, width = picture.shape[:2]
    top, left = int(rng.integers(0, height - 720)), int(rng.integers(0, width - 960))
    return np.ascontiguousarray(picture[top : top + 720, left : left + 960])


def _reduced(path: Path) -> Picture:
    """All of a large photograph at .3 to .6 of its size."""
    scale = _rng_of(path).uniform(0.3, 0.6)
    reduced = cv2.resize(read_image(path), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return np.asarray(reduced, np.uint8)


def _rng_of(path: Path) -> Random:
    return np.random.default_rng(zlib.crc32(path.stem.encode()))


def _drawn(kind: str, index: int) -> Picture:
    rng = np.random.default_rng(1000 + index)
    return plain_surface(rng, kind) if kind in _SURFACES else procedural_image(rng, 512, kind)


def _surface(root: Path, index: int) -> Picture:
    """A plain surface with a piece of a photograph on it, every other one in a good stream."""
    rng = np.random.default_rng(5000 + index)
    height, width = 432, 768
    drawn = plain_surface(rng, "asphalt" if index % 3 else "wall")
    ground = cv2.resize(drawn, (width, height), interpolation=cv2.INTER_AREA)
    shade = np.linspace(rng.uniform(0.7, 1.0), rng.uniform(0.7, 1.0), width)[None, :, None]
    picture = np.clip(ground * shade * rng.uniform(0.45, 1.15), 0, 255).astype(np.uint8)
    if index % 4:
        chosen = photographs(root, held_out=False)
        _paste(picture, read_image(chosen[int(rng.integers(len(chosen)))][1]), rng)
    return video(picture, "h264", int(rng.integers(18, 25)))[0] if index % 2 else picture


def _paste(ground: Picture, photo: Picture, rng: Random) -> None:
    """Put a piece of a photograph into a picture, in place: a rectangle or an ellipse."""
    scale = rng.uniform(0.5, 0.8) * ground.shape[0] / min(photo.shape[:2])
    photo = np.asarray(cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
    height, width = (int(rng.uniform(0.3, 0.9) * side) for side in photo.shape[:2])
    height, width = min(height, ground.shape[0] - 32), min(width, ground.shape[1] - 268)
    top = int(rng.integers(0, ground.shape[0] - height))
    left = int(rng.integers(0, ground.shape[1] - width))
    mask = np.ones((height, width), np.float32)
    if rng.random() < 0.5:
        middle, axes = (width // 2, height // 2), (width // 2 - 2, height // 2 - 2)
        mask = cv2.ellipse(mask * 0, middle, axes, 0, 0, 360, 1.0, -1, cv2.LINE_AA)
    part, weight = ground[top : top + height, left : left + width], mask[:, :, None]
    part[:] = (part * (1 - weight) + photo[:height, :width] * weight).astype(np.uint8)
