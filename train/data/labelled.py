"""Labelled pictures: a csv of images and opinion scores, how it is split, and the decoded pixels."""

from __future__ import annotations

import csv
import hashlib
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grmp_edge.errors import DataError, ImageError
from grmp_edge.preprocess import Preprocess, read_image, squash
from grmp_edge.score import MosScale
from grmp_edge.train.network.settings import BackboneSettings
from grmp_edge.views import crop, spread

__all__ = [
    "Crops",
    "Labelled",
    "Split",
    "SplitConfig",
    "content_digest",
    "data_digest",
    "load_squashed",
    "read_csv",
    "split_indices",
]

_COLUMNS = {
    "image": ("image", "img_name", "image_name", "filename", "file", "path"),
    "mos": ("mos", "score", "label"),
    "reference": ("reference", "ref", "ref_img"),
    "distortion": ("distortion", "dist_type"),
}


@dataclass(frozen=True)
class Crops:
    """The native crops of some pictures, picture by picture."""

    pixels: npt.NDArray[np.uint8]  # (m, S, S, 3)
    of: npt.NDArray[np.int64]  # (m,), the picture of each

    def take(self, index: Sequence[int]) -> Crops:
        """Those of some pictures, which are then counted from 0."""
        rows = [np.flatnonzero(self.of == picture) for picture in index]
        of = np.repeat(np.arange(len(rows)), [len(one) for one in rows])
        return Crops(self.pixels[np.concatenate(rows)] if rows else self.pixels[:0], of)


@dataclass(frozen=True)
class Labelled:
    """Pictures with mean opinion scores, higher is better."""

    name: str
    paths: tuple[Path, ...]
    mos: npt.NDArray[np.float64]  # (n,), on the labels' own scale
    references: tuple[str, ...] | None = None  # the pristine picture each was made from, where known
    distortions: tuple[str, ...] | None = None  # the type of distortion, where known
    scale: MosScale | None = None  # the labels' declared scale; None: take the observed range
    # Where what frozen networks see in the pictures is kept for the next split; None: nowhere.
    memo: dict[Any, Any] | None = field(default=None, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.paths)

    def scale_of(self, indices: Sequence[int]) -> MosScale:
        """The declared scale, or the lowest and highest label among ``indices``.

        Raises:
            DataError: the labels are all equal.
        """
        if self.scale is not None:
            return self.scale
        chosen = self.mos[list(indices)]
        if not len(chosen) or chosen.min() == chosen.max():
            raise DataError(
                f"{self.name}: all {len(chosen)} chosen labels are equal, nothing can be learned from them",
                "label pictures of different quality, or state the scale with --mos-range",
            )
        return MosScale(float(chosen.min()), float(chosen.max()))

    def picture(self, index: int) -> npt.NDArray[np.uint8]:
        """One picture as it is, decoded: uint8 (H, W, 3) RGB.

        Raises:
            DataError: it cannot be read.
        """
        try:
            return read_image(self.paths[index])
        except ImageError as error:
            raise DataError(error.message, "replace or remove the picture") from None

    def squashed(
        self, indices: Sequence[int], side: int, on_image: Callable[[], None] | None = None
    ) -> npt.NDArray[np.uint8]:
        """The chosen pictures, decoded and squashed: uint8 (n, side, side, 3) RGB.

        Overridden by sets whose pixels are not in files or are cached in memory.
        """
        return load_squashed([self.paths[i] for i in indices], side, on_image)

    def viewed(
        self,
        indices: Sequence[int],
        preprocess: Preprocess,
        on_image: Callable[[], None] | None = None,
        change: Callable[[npt.NDArray[np.uint8], int], npt.NDArray[np.uint8]] | None = None,
    ) -> tuple[npt.NDArray[np.uint8], Crops | None]:
        """The chosen pictures squashed, and their native crops where ``preprocess`` has any.

        ``change`` maps a decoded picture and its index to the one that is looked at.
        """
        if not preprocess.native and change is None:
            return self.squashed(indices, preprocess.resize, on_image), None
        pixels = np.empty((len(indices), preprocess.resize, preprocess.resize, 3), np.uint8)
        cut: list[npt.NDArray[np.uint8]] = []
        of: list[int] = []
        for place, index in enumerate(indices):
            picture = self.picture(index)
            picture = change(picture, index) if change else picture
            pixels[place] = squash(picture, preprocess.resize)
            height, width = picture.shape[:2]
            boxes = spread(height, width, preprocess.native, preprocess.crop)
            cut += [crop(picture, box, preprocess.crop) for box in boxes]
            of += [place] * len(boxes)
            if on_image:
                on_image()
        return pixels, Crops(np.stack(cut), np.array(of, np.int64)) if cut else None

    def quality(self, scale: MosScale) -> npt.NDArray[np.float32]:
        """Labels min-max scaled to 0..1 (the y of the quality loss), float32 (n,)."""
        return np.asarray([scale.to_value(float(mos)) for mos in self.mos], dtype=np.float32)


def read_csv(
    path: Path, images: Path | None = None, mos_range: tuple[float, float] | None = None
) -> Labelled:
    """Read a csv ``image,mos[,std][,reference][,distortion]`` (pyiqa's ``img_name,mos,...`` too).

    Args:
        path: the csv, UTF-8, with a header.
        images: the folder that names are relative to; by default the csv's own folder, or ``images``
            in it.
        mos_range: the scale of the labels; by default the observed range.

    Raises:
        DataError: the file, a column, an image or a score is missing or invalid; the message names the line.
    """
    header, rows = csv_rows(path, "give a csv with the columns image,mos", "save it as UTF-8 text")
    columns = {field: _column(header, names) for field, names in _COLUMNS.items()}
    for needed in ("image", "mos"):
        if columns[needed] is None:
            raise DataError(
                f"{path}: has no column {needed!r} (it has {', '.join(header) or 'no header'})",
                "the first line should read image,mos",
            )
    if not rows:
        raise DataError(f"{path}: has no labelled picture", "add one line per picture")
    folders = [images] if images else [path.parent, path.parent / "images"]
    paths, mos = [], []
    for line, row in rows:
        name = (row[columns["image"] or ""] or "").strip()
        file = next((folder / name for folder in folders if name and (folder / name).is_file()), None)
        if file is None:
            raise DataError(
                f"{path}:{line}: picture {name!r} is not in {' or '.join(map(str, folders))}",
                "correct the name, or give the folder with --images",
            )
        paths.append(file)
        mos.append(_score(f"{path}:{line}", row[columns["mos"] or ""], mos_range))
    return Labelled(
        name=str(path),
        paths=tuple(paths),
        mos=np.asarray(mos),
        references=_texts(rows, columns["reference"]),
        distortions=_texts(rows, columns["distortion"]),
        scale=MosScale(*mos_range) if mos_range else None,
    )


def csv_rows(
    path: Path, missing: str, damaged: str, columns: Sequence[str] | None = None
) -> tuple[list[str], list[tuple[int, dict[str, Any]]]]:
    """Read a csv: its column names, and its rows as (line number, cells by column).

    Args:
        path: UTF-8 text, with or without a byte order mark.
        missing: the remedy where there is no such file.
        damaged: the remedy where it cannot be read.
        columns: the names of the columns where the file has no header.

    Raises:
        DataError: the file is missing or is not a csv.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, fieldnames=columns, skipinitialspace=True)
            header = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            return header, [(reader.line_num, row) for row in reader]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file", missing) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as csv ({error})", damaged) from None


def _column(header: Sequence[str], names: Sequence[str]) -> str | None:
    lowered = {name.lower(): name for name in header}
    return next((lowered[name] for name in names if name in lowered), None)


def _texts(rows: Sequence[tuple[int, dict[str, str]]], column: str | None) -> tuple[str, ...] | None:
    return tuple((row[column] or "").strip() for _, row in rows) if column else None


def number(
    value: Any, where: str, what: str = "score", remedy: str = "check that it is the original file"
) -> float:
    """A finite number from a cell.

    Raises:
        DataError: the cell holds anything else.
    """
    try:
        result = float(value)
    except (TypeError, ValueError):
        result = math.nan
    if not math.isfinite(result):
        raise DataError(f"{where}: the {what} {value!r} is not a number", remedy)
    return result


def _score(where: str, text: str | None, mos_range: tuple[float, float] | None) -> float:
    value = number(text, where, remedy="correct or remove the line")
    if mos_range and not mos_range[0] <= value <= mos_range[1]:
        raise DataError(
            f"{where}: the score {value:g} is outside {mos_range[0]:g}..{mos_range[1]:g}",
            "correct the line or --mos-range",
        )
    return value


@dataclass(frozen=True)
class SplitConfig:
    """How labelled pictures are divided."""

    labels: int | None = None  # few-shot budget N; None: all that are not held out for testing
    test_fraction: float = 0.2  # the field's 80/20 protocol
    # The part of the N labels that chooses the epoch and drives the learning rate, so that the test part
    # never does. A fifth of 50 is ten pictures: a noisy judge, but an honest one.
    validation_fraction: float = BackboneSettings.validation_fraction
    seed: int = 0


@dataclass(frozen=True)
class Split:
    """Indices of the three parts; they share no picture, and no reference where references are known."""

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]


def split_indices(data: Labelled, config: SplitConfig) -> Split:
    """Divide a labelled set at random, reproducibly by seed.

    Raises:
        DataError: too few pictures for the requested number of labels.
    """
    rng = np.random.default_rng([config.seed, 0x5B117])
    groups: dict[str, list[int]] = {}
    for index in range(len(data)):
        key = data.references[index] if data.references else str(index)
        groups.setdefault(key, []).append(index)
    order = [list(groups)[i] for i in rng.permutation(len(groups))]
    # Whole groups go to the test part until it is full.
    test: list[int] = []
    size = round(config.test_fraction * len(data))
    for key in order:
        if len(test) >= size:
            break
        test.extend(groups[key])
    held = set(test)
    # Labels are drawn picture by picture, so that even a few come from many references.
    rest = [index for index in rng.permutation(len(data)).tolist() if index not in held]
    count = len(rest) if config.labels is None else config.labels
    if count > len(rest) or count < 4:
        raise DataError(
            f"{data.name}: {count} labels requested, {len(rest)} are left beside the {len(test)} for testing",
            "lower --labels or --test-fraction, or label more pictures (at least 4)",
        )
    drawn = set(rest[:count])
    chosen = [[index for index in groups[key] if index in drawn] for key in order]
    validation = _validation(chosen, min(round(config.validation_fraction * count), count - 2))
    train = [index for index in rest[:count] if index not in validation]
    return Split(tuple(train), tuple(sorted(validation)), tuple(sorted(held)))


def _validation(groups: Sequence[Sequence[int]], limit: int) -> set[int]:
    """Whole groups, at most ``limit`` pictures in all; empty if fewer than two are left to rank."""
    taken: set[int] = set()
    for group in groups:
        if len(taken) + len(group) <= limit:
            taken.update(group)
    return taken if len(taken) > 1 else set()


def load_squashed(
    paths: Sequence[Path], side: int, on_image: Callable[[], None] | None = None
) -> npt.NDArray[np.uint8]:
    """Decode pictures and squash each to (side, side): uint8 (n, side, side, 3) RGB.

    Raises:
        DataError: pictures cannot be read; the message names the first and counts the others.
    """
    pixels = np.empty((len(paths), side, side, 3), np.uint8)

    def load(index: int) -> ImageError | None:
        try:
            pixels[index] = squash(read_image(paths[index]), side)
        except ImageError as error:
            return error
        return None

    errors = []
    # OpenCV releases the GIL while it decodes.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for error in pool.map(load, range(len(paths))):
            if error:
                errors.append(error)
            if on_image:  # called here, not in the threads: it need not be thread-safe
                on_image()
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise DataError(f"{errors[0].message}{more}", "replace or remove the picture")
    return pixels


def data_digest(pixels: npt.NDArray[np.uint8], mos: npt.NDArray[np.float64]) -> str:
    """SHA-256 over the decoded pixels and labels: a resumed run must see the same data."""
    digest = hashlib.sha256(np.ascontiguousarray(pixels).data)
    digest.update(np.ascontiguousarray(mos, dtype=np.float64).data)
    return digest.hexdigest()


def content_digest(data: Labelled, indices: Sequence[int]) -> str:
    """As :func:`data_digest`, over the files as they are: for where they need not all be decoded."""
    digest = hashlib.sha256()
    for index in indices:
        path = data.paths[index]
        digest.update(path.read_bytes() if path.is_file() else data.picture(index).tobytes())
    digest.update(np.ascontiguousarray(data.mos[list(indices)], dtype=np.float64).data)
    return digest.hexdigest()
