"""Labelled pictures: a csv of images and opinion scores, how it is split, and the decoded pixels."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import numpy.typing as npt

from grmp_edge.errors import DataError, ImageError, UsageError
from grmp_edge.files import csv_plain
from grmp_edge.image_files import IMAGE_SUFFIXES
from grmp_edge.preprocess import Preprocess, read_image, squash
from grmp_edge.score import MosScale
from grmp_edge.train.data.copies import same_files
from grmp_edge.train.data.tables import number, read_columns, with_points
from grmp_edge.train.network.settings import BackboneSettings
from grmp_edge.views import crop, spread

__all__ = [
    "Crops",
    "CsvConfig",
    "PARTS",
    "Labelled",
    "Split",
    "SplitConfig",
    "content_digest",
    "data_digest",
    "load_squashed",
    "read_csv",
    "refuse_no_test_part",
    "split_indices",
]

_COLUMNS = {
    "image": ("image", "img_name", "image_name", "filename", "file", "path"),
    "mos": ("mos", "score", "label"),
    "reference": ("reference", "ref", "ref_img"),
    "distortion": ("distortion", "dist_type"),
    "split": ("split",),
}

# By what people write in a column "split".
PARTS = {
    "train": "train", "training": "train",
    "validation": "validation", "val": "validation", "valid": "validation", "dev": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip


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
    # By picture "train", "validation" or "test", where its owner has divided it; None: at random.
    fixed: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()  # remarks for the user: a guess, a partial copy, a choice between two files
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


@dataclass(frozen=True)
class CsvConfig:
    """What a csv's columns mean, and what to do with pictures that are named more than once."""

    image: str | None = None  # the column of file names; None: by its name, or the only one that can be it
    mos: str | None = None  # the column of scores; None: likewise
    average: bool = False  # one line per rating instead of per picture; else a mistake, and refused


def read_csv(
    path: Path,
    images: Path | None = None,
    mos_range: tuple[float, float] | None = None,
    config: CsvConfig | None = None,
) -> Labelled:
    """Read a csv ``image,mos[,std][,reference][,distortion]`` (pyiqa's ``img_name,mos,...`` too).

    Semicolons, tabs, decimal commas, UTF-16 and backslashes are read as spreadsheets and Windows write them.
    Columns of other names are guessed if only one can be meant; ``notes`` say so.

    Args:
        path: the csv.
        images: the folder that names are relative to; by default the csv's own folder, or ``images``
            in it.
        mos_range: the scale of the labels; by default the observed range.
        config: its columns.

    Raises:
        DataError: the file, a column, an image or a score is missing or invalid, or a picture is named twice;
            the message names the line.
    """
    config = config or CsvConfig()
    table = read_columns(path, _COLUMNS, {"image": config.image, "mos": config.mos}, _is_picture)
    if not table.lines:
        raise DataError(f"{path}: has no labelled picture", "add one line per picture")
    folders = [images] if images else [path.parent, path.parent / "images"]
    places = [f"{path}:{line}" for line in table.lines]
    texts = with_points(list(zip(places, table.texts["mos"], strict=True)))
    notes = list(table.notes)
    changed = next((pair for pair in zip(table.texts["mos"], texts, strict=True) if pair[0] != pair[1]), None)
    if changed is not None:
        notes.append(f"{path}: numbers with commas, {changed[0]} is read as {changed[1]}")
    index = _CaseIndex()
    scores: dict[Path, list[float]] = {}
    first: dict[Path, tuple[int, Path]] = {}  # the row and the path as it is written
    for row, (where, name, text) in enumerate(zip(places, table.texts["image"], texts, strict=True)):
        file = _find(where, name, folders, index)
        same = scores.setdefault(file.resolve(), [])
        if same and not config.average:
            raise DataError(
                f"{where}: picture {name!r} is on line {table.lines[first[file.resolve()][0]]}, too",
                "remove one of them, or take the mean of their scores with --average",
            )
        same.append(_score(where, text, mos_range))
        first.setdefault(file.resolve(), (row, file))
    parts = _fixed(places, table.texts.get("split"), [row for row, _ in first.values()])
    if "split" in table.texts and parts is None:
        notes.append(
            f"{path}: the column split says neither train nor test, so pictures are divided at random"
        )
    if index.used:
        wanted, got = index.used[0]
        others = f" and {len(index.used) - 1} more names" if len(index.used) > 1 else ""
        notes.append(f"{path}: without regard to case, {wanted} is taken to be {got}{others}")
    if many := sum(len(given) > 1 for given in scores.values()):
        notes.append(f"{path}: on several lines {many} of the pictures, the mean of whose scores is taken")

    def column(field: str) -> tuple[str, ...] | None:
        given = table.texts.get(field)
        return None if given is None else tuple(given[row] for row, _ in first.values())

    return Labelled(
        name=str(path),
        paths=tuple(file for _, file in first.values()),
        mos=np.asarray([np.mean(given) for given in scores.values()]),
        references=column("reference"),
        distortions=column("distortion"),
        scale=MosScale(*mos_range) if mos_range else None,
        fixed=parts,
        notes=tuple(notes),
    )


def _fixed(places: Sequence[str], texts: Sequence[str] | None, rows: Sequence[int]) -> tuple[str, ...] | None:
    # Other codes, such as the numbers of several splits, are not guessed at: read_csv tells.
    if texts is None or not any(text.lower() in PARTS for text in texts):
        return None
    for where, text in zip(places, texts, strict=True):
        if text.lower() not in PARTS:
            raise DataError(f"{where}: the split {text!r} is unknown", "write train, validation or test")
    return tuple(PARTS[texts[row].lower()] for row in rows)


def _is_picture(text: str) -> bool:
    return PureWindowsPath(text).suffix.lower() in IMAGE_SUFFIXES


class _CaseIndex:
    """Files by names in whatever case: file systems differ in how they treat it."""

    def __init__(self) -> None:
        self.listed: dict[Path, dict[str, list[Path]]] = {}
        self.used: list[tuple[str, str]] = []  # name in the table, and in the file system

    def find(self, folder: Path, name: str) -> Path | None:
        """The only file whose name differs in case at most; None if there is none, or more than one."""
        at = folder
        for part in PurePosixPath(name).parts:
            if at not in self.listed:
                self.listed[at] = {}
                for path in sorted(at.iterdir()) if at.is_dir() else ():
                    self.listed[at].setdefault(path.name.casefold(), []).append(path)
            found = self.listed[at].get(part.casefold(), [])
            if len(found) != 1:
                return None
            at = found[0]
        if not at.is_file():
            return None
        self.used.append((name, str(at.relative_to(folder))))
        return at


def _find(where: str, name: str, folders: Sequence[Path], index: _CaseIndex) -> Path:
    """The file of a picture.

    A name from Windows may have backslashes, or a drive and folders of its own; one that begins like a
    formula was written with an apostrophe before it.
    """
    windows = PureWindowsPath(name)
    names = [name, csv_plain(name), windows.as_posix(), *([windows.name] if windows.drive else [])]
    for candidate in names:
        for folder in folders:
            if (folder / candidate).is_file():
                return folder / candidate
    for candidate in names:
        for folder in folders:
            if file := index.find(folder, candidate):
                return file
    raise DataError(
        f"{where}: picture {name!r} is not in {' or '.join(map(str, folders))}",
        "correct the name, or give the folder with --images",
    )


def _score(where: str, text: str, mos_range: tuple[float, float] | None) -> float:
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


def refuse_no_test_part(select_on: str, tested: float) -> None:
    """Raise UsageError if the test part is to choose the epoch and there is none.

    The run would silently become one of a fixed schedule. ``tested``: how many pictures, or their share.
    """
    if select_on == "test" and not tested:
        raise UsageError(
            "the epoch cannot be chosen on the test part: there is none, as with --test-fraction 0",
            "keep a test part, or drop --select-on-test (and --preset reference)",
        )


def split_indices(data: Labelled, config: SplitConfig) -> Split:
    """Divide a labelled set as its owner did, or at random, reproducibly by seed.

    Raises:
        DataError: too few pictures for the requested number of labels.
    """
    rng = np.random.default_rng([config.seed, 0x5B117])
    groups: dict[str, list[int]] = {}
    # The same picture under two names, and pictures made from the same one, stay on one side.
    for index, key in enumerate(data.references or same_files(data.paths)):
        groups.setdefault(key, []).append(index)
    order = [list(groups)[i] for i in rng.permutation(len(groups))]
    judged: set[int] = set()
    if data.fixed is not None:
        held, judged = _fixed_sides(data, data.fixed)
    else:
        # Whole groups go to the test part until it is full.
        held = set()
        size = round(config.test_fraction * len(data))
        for key in order:
            if len(held) >= size:
                break
            held.update(groups[key])
    # Labels are drawn picture by picture, so that even a few come from many references.
    rest = [index for index in rng.permutation(len(data)).tolist() if index not in held | judged]
    count = len(rest) if config.labels is None else config.labels
    if count > len(rest) or count < 4:
        raise DataError(
            f"{data.name}: {count} labels requested, {len(rest)} are left beside the {len(held)} for testing",
            "lower --labels or --test-fraction, or label more pictures (at least 4)",
        )
    if judged:
        return Split(tuple(sorted(rest[:count])), tuple(sorted(judged)), tuple(sorted(held)))
    drawn = set(rest[:count])
    chosen = [[index for index in groups[key] if index in drawn] for key in order]
    validation = _validation(chosen, min(round(config.validation_fraction * count), count - 2))
    return Split(tuple(sorted(drawn - validation)), tuple(sorted(validation)), tuple(sorted(held)))


def _fixed_sides(data: Labelled, fixed: Sequence[str]) -> tuple[set[int], set[int]]:
    """The test and the validation part that a set's owner chose.

    Raises:
        DataError: the same picture, or pictures of one reference, are learned from and tested on.
    """
    for what, keys in (("picture", same_files(data.paths)), ("reference", data.references or ())):
        seen: dict[str, int] = {}
        for index, key in enumerate(keys):
            first = seen.setdefault(key, index)
            if fixed[first] != fixed[index] and "test" in (fixed[first], fixed[index]):
                raise DataError(
                    f"{data.name}: {data.paths[first]} ({fixed[first]}) and {data.paths[index]} "
                    f"({fixed[index]}) are of the same {what}",
                    "put both on one side",
                )
    parts = [{index for index, part in enumerate(fixed) if part == name} for name in ("test", "validation")]
    return parts[0], parts[1]


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
