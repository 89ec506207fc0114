"""Training groups for the backbone: one picture in several states, with labels and captions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from grmp_edge.errors import DataError
from grmp_edge.image_files import images_below
from grmp_edge.preprocess import squash
from grmp_edge.train.network.embedded import WEIGHTS
from grmp_edge.train.network.words import SCENES
from grmp_edge.train.pictures.distort import Image
from grmp_edge.train.pictures.procedural import PROCEDURAL, procedural_image
from grmp_edge.train.recipe.captions import Statistics, caption
from grmp_edge.train.recipe.faults import (
    CAMERA_KINDS,
    HARD_KINDS,
    KINDS,
    apply_fault,
    draw_chain,
    quality_of,
)
from grmp_edge.train.recipe.light_and_lens import vary
from grmp_edge.train.recipe.scene_quality import FAULTS, appeal, perceived_quality

__all__ = [
    "SHOWN",
    "SQUASHED",
    "VARIANTS",
    "Batch",
    "Source",
    "graded_group",
    "load_photos",
    "make_batch",
    "procedural_sources",
    "statistics",
]

VARIANTS = 4  # states of one picture: clean, one fault, the same fault worse, a chain of faults

SHOWN = 224
SQUASHED = 244


@dataclass(frozen=True)
class Source:
    """A clean picture, (H, W, 3) uint8 RGB, its scene word and how often it is drawn."""

    name: str
    image: Image
    scene: str
    weight: float


@dataclass(frozen=True)
class Batch:
    """B = groups x VARIANTS pictures; those of one group are neighbours.

    Everything is known of the first K; the rest, if any, are real photographs: see real_photos.py.
    """

    images: NDArray[np.uint8]  # (B, 224, 224, 3) RGB
    severity: NDArray[np.float32]  # (K, len(KINDS)) 0..1, level / 5 of each kind
    quality: NDArray[np.float32]  # (K,) 0..1, of faults and, if scenes differ, of the scene
    remaining: NDArray[np.float32]  # (B,) 0..1, what faults alone leave of it; 1: none were added
    statistics: NDArray[np.float32]  # (B, 6) about -1..1, the fields of Statistics
    scene: NDArray[np.int64]  # (K,) index in SCENES
    captions: list[str]  # K


def load_photos(folders: Sequence[Path], held_out: int = 7) -> tuple[list[Source], list[Source]]:
    """Read all pictures below folders.

    Args:
        folders: searched one level deep for webp, png and jpg.
        held_out: each picture whose place in the sorted list is a multiple of this is withheld from training;
            0 keeps none.

    Returns:
        (for training, held out). Scenes are those of weights/photo_scenes.json, else "others".

    Raises:
        DataError: there is no picture, or one cannot be read.
    """
    labels = json.loads((WEIGHTS / "photo_scenes.json").read_text())
    train: list[Source] = []
    held: list[Source] = []
    types = (".webp", ".png", ".jpg", ".jpeg")
    paths = sorted(path for folder in folders for path in images_below(folder, types))
    if not paths:
        raise DataError(f"no picture below {', '.join(map(str, folders))}", "name a folder of photographs")
    for place, path in enumerate(paths):
        decoded = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if decoded is None:
            raise DataError(f"cannot read {path}", "remove it or convert it to PNG")
        image = np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), np.uint8)
        label = labels.get(f"{path.parent.name}/{path.stem}", {"scene": "others", "graphic": False})
        # Charts and drawings are clean without looking like photographs: few of them are enough.
        source = Source(
            f"{path.parent.name}/{path.stem}", image, label["scene"], 0.25 if label["graphic"] else 1.0
        )
        (held if held_out and place % held_out == 0 else train).append(source)
    return train, held


def procedural_sources(rng: np.random.Generator, count: int, size: int = 448) -> list[Source]:
    """Draw ``count`` procedural pictures."""
    kinds = list(PROCEDURAL)
    weights = np.array([weight for _, _, weight in PROCEDURAL.values()])
    chosen = rng.choice(len(kinds), count, p=weights / weights.sum())
    made = []
    for i in chosen:
        scene = PROCEDURAL[kinds[i]][1]
        made.append(Source(kinds[i], procedural_image(rng, size, kinds[i]), scene, 1.0))
    return made


def statistics(image: Image) -> Statistics:
    """Measure an (H, W, 3) uint8 RGB picture; the constants centre and scale ordinary photographs."""
    values = image.astype(np.float32)
    grey = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.float32)
    red_green = values[..., 0] - values[..., 1]
    yellow_blue = (values[..., 0] + values[..., 1]) / 2 - values[..., 2]
    # colourfulness of Hasler and Suesstrunk 2003
    colour = np.hypot(red_green.std(), yellow_blue.std()) + 0.3 * np.hypot(
        red_green.mean(), yellow_blue.mean()
    )
    half = cv2.resize(grey, (grey.shape[1] // 2, grey.shape[0] // 2), interpolation=cv2.INTER_AREA)
    # The usual measure of focus; taken of the halved picture too, what of it is content falls out.
    detail, coarse = (np.log(cv2.Laplacian(at, cv2.CV_32F).var() + 1) for at in (grey, half))
    raw = (
        (grey.mean() - 118) / 50,
        (grey.std() - 58) / 22,
        (colour - 38) / 22,
        (detail - 6.55) / 1.5,
        (detail - coarse) / 0.45,
        (np.sqrt((grey > 245).mean()) - 0.1) / 0.15,
    )
    return Statistics(*(float(np.clip(value, -2, 2)) for value in raw))


def _crop(rng: np.random.Generator, image: Image, unshrunk: float) -> Image:
    """Take the whole picture or a part of it, mirrored at random, never enlarged."""
    height, width = image.shape[:2]
    if rng.random() < 0.65:
        least = min(height, width, 256)
        h, w = int(rng.integers(least, height + 1)), int(rng.integers(least, width + 1))
        y, x = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
        image = image[y : y + h, x : x + w]
    if rng.random() < 0.5:
        image = image[:, ::-1]
    # Left as it is, the squash to the network's size makes it alias, as it does any large photograph.
    if unshrunk > 0 and rng.random() < unshrunk:
        return image
    # The camera's own resolution: faults arise there, before the squash.
    side = int(rng.choice([SQUASHED, SQUASHED, 288, 336, 400]))
    side = min(side, max(SQUASHED, min(image.shape[:2])))
    return np.asarray(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def graded_group(
    rng: np.random.Generator, source: Source, unshrunk: float, hard: float = 0.2, varied: float = 0.0
) -> tuple[Image, list[Image], list[list[tuple[str, int]]]]:
    """Make VARIANTS states of one picture: clean or nearly, one fault, the same worse, a chain of faults.

    Args:
        rng: the only source of chance.
        source: the clean picture.
        unshrunk: chance that it is squashed straight from its own size rather than shrunk smoothly before.
        hard: chance that the one fault is of those ranked worst.
        varied: chance that the picture is first changed as ``light_and_lens.vary`` does.

    Returns:
        (the picture without faults, its states, for each of these its faults as (kind, level 1..5)); pictures
        are (244, 244, 3) uint8 RGB.
    """
    base = _crop(rng, source.image, unshrunk)
    if varied > 0 and rng.random() < varied:
        base = vary(rng, base)
    shared = draw_chain(rng)[:1] if rng.random() < 0.25 else []
    pool = (KINDS, CAMERA_KINDS, HARD_KINDS)[int(rng.choice(3, p=((1 - hard) / 2, (1 - hard) / 2, hard)))]
    kind = str(rng.choice(pool))
    low, high = np.sort(rng.choice(5, 2, replace=False) + 1)
    plans = [shared, [*shared, (kind, int(low))], [*shared, (kind, int(high))], draw_chain(rng)]
    seed = int(rng.integers(2**31))
    pictures = []
    for plan in plans:
        chance = np.random.default_rng(seed)  # the levels of one fault share their random part
        image = base
        for name, level in plan:
            image = apply_fault(image, name, level, chance)
        pictures.append(squash(image, SQUASHED))
    return squash(base, SQUASHED), pictures, plans


def make_batch(
    rng: np.random.Generator,
    sources: Sequence[Source],
    groups: int,
    unshrunk: float = 0.0,
    scenes_differ: bool = False,
    varied: float = 0.0,
    fault_logits: float = FAULTS,
) -> Batch:
    """Draw ``groups`` sources by weight and make VARIANTS states of each.

    Args:
        rng: the only source of chance.
        sources: at least ``groups`` pictures.
        groups: how many different pictures.
        unshrunk: share of them squashed straight from their own size rather than shrunk smoothly before.
        scenes_differ: whether a picture without faults is as good as its scene is appealing, or always 1.
        varied: share of them first changed as ``light_and_lens.vary`` does.
        fault_logits: what the worst faults weigh where scenes differ.

    Returns:
        The pictures with their labels.
    """
    weights = np.array([source.weight for source in sources])
    chosen = rng.choice(len(sources), groups, replace=False, p=weights / weights.sum())
    count = groups * VARIANTS
    images = np.empty((count, SHOWN, SHOWN, 3), np.uint8)
    severity = np.zeros((count, len(KINDS)), np.float32)
    quality = np.empty(count, np.float32)
    remaining = np.empty(count, np.float32)
    measured = np.empty((count, len(fields(Statistics))), np.float32)
    scene = np.empty(count, np.int64)
    captions = []
    for g, index in enumerate(chosen):
        source = sources[int(index)]
        # Where the scene counts too, the faults ranked worst need showing twice as often to keep their place.
        base, pictures, plans = graded_group(rng, source, unshrunk, 0.4 if scenes_differ else 0.2, varied)
        y, x = rng.integers(0, SQUASHED - SHOWN + 1, 2)
        clean = statistics(base[y : y + SHOWN, x : x + SHOWN]) if scenes_differ else None
        for v, (picture, faults) in enumerate(zip(pictures, plans, strict=True)):
            i = g * VARIANTS + v
            image = images[i] = picture[y : y + SHOWN, x : x + SHOWN]
            for kind, level in faults:
                severity[i, KINDS.index(kind)] = level / 5
            shown = statistics(image)
            quality[i] = remaining[i] = quality_of(faults)
            if clean is not None:
                quality[i] = perceived_quality(remaining[i], appeal(clean, shown), fault_logits)
            measured[i] = astuple(shown)
            scene[i] = SCENES.index(source.scene)
            worst_first = sorted(faults, key=lambda fault: quality_of([fault]))
            captions.append(caption(rng, source.scene, float(quality[i]), worst_first, shown))
    return Batch(images, severity, quality, remaining, measured, scene, captions)
