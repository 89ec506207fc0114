"""Meta-learning tasks: one per distortion type, from labelled sets or made from pristine photographs.

Paper section 3.2: each task is the quality assessment of one distortion, split into a support and a query
set at every visit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from grmp_edge.errors import DataError, ImageError
from grmp_edge.image_files import images_below
from grmp_edge.preprocess import read_image, squash
from grmp_edge.train.data.labelled import Labelled
from grmp_edge.train.pictures.distort import DISTORTIONS, distort
from grmp_edge.train.pictures.smooth import smooth_squash

__all__ = [
    "Batch",
    "PictureCache",
    "Squash",
    "SyntheticConfig",
    "Task",
    "labelled_tasks",
    "load_photographs",
    "synthetic_tasks",
]

UInt8Array = npt.NDArray[np.uint8]
Pixels = npt.NDArray[Any]  # uint8, or float32 in 0..255 where a squash keeps fractions
Squash = Literal["bicubic", "antialiased"]


@dataclass(frozen=True)
class Task:
    """The pictures of one distortion type and their quality."""

    name: str
    references: tuple[str, ...]  # by picture: its pristine picture; never on both sides of a split
    quality: npt.NDArray[np.float32]  # (n,) in 0..1
    read: Callable[[int], UInt8Array]  # picture i, uint8 (H, W, 3) RGB; thread-safe

    def split(self, fraction: float, rng: np.random.Generator) -> tuple[list[int], list[int]]:
        """Draw support (about ``fraction`` of the references) and query indices, disjoint in content."""
        names = list(dict.fromkeys(self.references))
        order = rng.permutation(len(names))
        count = min(max(round(fraction * len(names)), 1), len(names) - 1)
        chosen = {names[i] for i in order[:count]}
        support = [i for i, name in enumerate(self.references) if name in chosen]
        query = [i for i, name in enumerate(self.references) if name not in chosen]
        return rng.permutation(support).tolist(), rng.permutation(query).tolist()


@dataclass(frozen=True)
class Batch:
    """Network-sized pictures, (B, S, S, 3) in 0..255, and their quality, float32 (B,)."""

    images: Pixels
    quality: npt.NDArray[np.float32]


class PictureCache:
    """Reads tasks' pictures squashed to a square, and caches as many as fit into ``budget`` bytes.

    What is cached stays: every picture is equally likely to be needed again, so evicting one gains nothing.
    A budget of 0 caches none. Of 24 photographs, 25 distortions and 6 levels, the
    squares of 256 (support) and 224 pixels (query) are 1.25 GB; four times that where ``squash`` is
    ``antialiased`` and keeps floats.
    """

    def __init__(self, budget: int = 0, squash: Squash = "bicubic") -> None:
        self.budget, self.used, self.squash = budget, 0, squash
        # By the reader's identity: tasks of two sets may share a name, and a task may get other labels.
        # Holding the readers keeps their identities from being reused.
        self.cached: dict[tuple[int, int, int], Pixels] = {}
        self.readers: dict[int, Callable[[int], UInt8Array]] = {}

    def squashed(self, task: Task, indices: Sequence[int], side: int) -> list[Pixels]:
        """Pictures of a task, each (side, side, 3) RGB in 0..255, read-only by convention."""
        source = id(task.read)
        self.readers[source] = task.read
        missing = [index for index in indices if (source, index, side) not in self.cached]
        fresh: dict[int, Pixels] = {}
        resize: Callable[[UInt8Array, int], Pixels] = squash if self.squash == "bicubic" else smooth_squash
        if missing:
            read: Callable[[int], Pixels] = lambda index: resize(task.read(index), side)  # noqa: E731
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
                fresh = dict(zip(missing, pool.map(read, missing), strict=True))
        pictures = [fresh[i] if i in fresh else self.cached[source, i, side] for i in indices]
        for index, pixels in fresh.items():
            if self.used + pixels.nbytes <= self.budget:
                self.cached[source, index, side] = pixels
                self.used += pixels.nbytes
        return pictures


def support_batches(
    task: Task,
    indices: Sequence[int],
    size: int,
    batch: int,
    rng: np.random.Generator,
    cache: PictureCache | None = None,
) -> Iterator[Batch]:
    """Squash to 8/7 of ``size`` (256 for 224), flip half of them, cut at random.

    Offsets are 0..31 at 224: the released code leaves out the last one, too.
    """
    side = round(size * 256 / 224)
    cache = cache or PictureCache()

    def augment(pixels: Pixels) -> Pixels:
        top, left = rng.integers(0, max(1, side - size), 2)
        cut = pixels[top : top + size, left : left + size]
        return cut[:, ::-1] if rng.random() < 0.5 else cut

    for chunk in _chunks(indices, batch):
        squashed = cache.squashed(task, chunk, side)
        yield Batch(np.stack([augment(pixels) for pixels in squashed]), task.quality[chunk])


def query_batches(
    task: Task, indices: Sequence[int], size: int, batch: int, cache: PictureCache | None = None
) -> Iterator[Batch]:
    """Squash to ``size`` without augmentation."""
    cache = cache or PictureCache()
    for chunk in _chunks(indices, batch):
        yield Batch(np.stack(cache.squashed(task, chunk, size)), task.quality[chunk])


def ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Read each batch in a thread while the network works on the previous one."""
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(next, batches, None)
        while (batch := pending.result()) is not None:
            pending = pool.submit(next, batches, None)
            yield batch


def _chunks(indices: Sequence[int], batch: int) -> Iterator[list[int]]:
    for start in range(0, len(indices), batch):
        yield list(indices[start : start + batch])


def labelled_tasks(data: Labelled, min_pictures: int = 10) -> list[Task]:
    """One task per distortion type of a labelled set (TID2013, KADID-10k or a csv in their form).

    The labels of each type fill 0..1, so that all tasks ask for the whole scale, as in the released code; a
    type whose labels are all equal is left out.

    Raises:
        DataError: the set has no column ``distortion``, or no type with enough pictures.
    """
    if data.distortions is None:
        raise DataError(
            f"{data.name}: meta-learning tasks need a column 'distortion'",
            "add it, or make tasks from photographs with --photos",
        )
    tasks = []
    for name in sorted(set(data.distortions)):
        members = [i for i, kind in enumerate(data.distortions) if kind == name]
        references = tuple(data.references[i] if data.references else str(i) for i in members)
        mos = data.mos[members]
        if len(members) >= min_pictures and len(set(references)) > 1 and np.ptp(mos) > 0:
            reader = _file_reader([data.paths[i] for i in members])
            tasks.append(Task(name, references, spread_labels(mos), reader))
    if not tasks:
        raise DataError(
            f"{data.name}: no distortion type has {min_pictures} pictures of two references",
            "label more, or use --photos",
        )
    return tasks


def spread_labels(labels: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Labels (n,) min-max scaled to 0..1; all 0 where they are equal."""
    values = np.asarray(labels, np.float64)
    return np.asarray((values - values.min()) / (np.ptp(values) or 1.0), np.float32)


def whole_set_task(data: Labelled, quality: npt.NDArray[np.float32]) -> Task:
    """A labelled set as one task, to be judged by."""
    return Task(data.name, tuple(str(i) for i in range(len(data))), quality, data.picture)


def _file_reader(paths: Sequence[Path]) -> Callable[[int], UInt8Array]:
    return lambda index: read_image(paths[index])


_LEAST_SIDE = 32  # smaller pictures give a distortion nothing to act on
_LEVELS = 5  # of every distortion, as in KADID-10k and TID2013


@dataclass(frozen=True)
class SyntheticConfig:
    """Distortion tasks made on the fly from pristine photographs."""

    distortions: tuple[str, ...] = tuple(DISTORTIONS)  # KADID-10k's 25 types
    # Larger photographs are reduced first: the networks read 224 pixels, and time goes into distorting.
    max_side: int = 512
    seed: int = 0


def load_photographs(
    folder: Path, max_side: int = 512, most: int | None = None
) -> list[tuple[str, UInt8Array]]:
    """Read the pictures below a folder (at most ``most``, evenly spread), reduced to ``max_side``.

    Raises:
        DataError: there are fewer than two readable pictures.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of photographs", "give a folder with --photos")
    paths = images_below(folder)
    if most is not None and len(paths) > most:
        paths = [paths[i * len(paths) // most] for i in range(most)]
    photographs = []
    for path in paths:
        try:
            photograph = _reduce(read_image(path), max_side)
        except ImageError as error:
            raise DataError(error.message, "replace or remove the picture") from None
        if min(photograph.shape[:2]) < _LEAST_SIDE:
            raise DataError(
                f"{path}: too small or too narrow to distort", f"use pictures of {_LEAST_SIDE} pixels or more"
            )
        photographs.append((str(path.relative_to(folder)), photograph))
    if len(photographs) < 2:
        raise DataError(f"{folder}: {len(photographs)} photographs, but tasks need at least 2", "add more")
    return photographs


def procedural_photographs(count: int, side: int = 384, seed: int = 0) -> list[tuple[str, UInt8Array]]:
    """Computer-made stand-ins for photographs: names and uint8 (side, side, 3) RGB pictures."""
    from grmp_edge.train.pictures.procedural import procedural_image

    return [
        (f"procedural-{index}", procedural_image(np.random.default_rng([seed, index]), side))
        for index in range(count)
    ]


def synthetic_tasks(photographs: Sequence[tuple[str, UInt8Array]], config: SyntheticConfig) -> list[Task]:
    """One task per distortion: every photograph pristine and at each level.

    Quality falls evenly from 1 (pristine) to 0 (worst level): the order is certain, the distances are a
    convention. Every picture is a function of the seed, its photograph, type and level.

    Raises:
        DataError: an unknown distortion.
    """
    known = list(DISTORTIONS)
    for kind in config.distortions:
        if kind not in DISTORTIONS:
            raise DataError(f"unknown distortion {kind!r}", f"known: {', '.join(known)}")
    steps = 1 + _LEVELS
    references = tuple(name for name, _ in photographs for _ in range(steps))
    quality = np.tile(np.linspace(1.0, 0.0, steps, dtype=np.float32), len(photographs))

    def reader(kind: str, number: int) -> Callable[[int], UInt8Array]:
        def read(index: int) -> UInt8Array:
            photograph, level = divmod(index, steps)
            pixels = photographs[photograph][1]
            if level == 0:
                return pixels
            rng = np.random.default_rng([config.seed, number, photograph, level])
            return distort(pixels, kind, level, rng)

        return read

    return [Task(kind, references, quality, reader(kind, known.index(kind))) for kind in config.distortions]


def _reduce(pixels: UInt8Array, max_side: int) -> UInt8Array:
    height, width = pixels.shape[:2]
    if max(height, width) <= max_side:
        return pixels
    ratio = max_side / max(height, width)
    size = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
