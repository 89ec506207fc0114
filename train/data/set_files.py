"""Shared by the readers of public data sets: entries, checks of count and scale, and tables in four formats.

MATLAB files of version 5 are read through scipy, those of version 7.3 (HDF5) through h5py; nothing is
unpickled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grmp_edge.errors import DataError, MissingDependencyError
from grmp_edge.preprocess import squash
from grmp_edge.score import MosScale
from grmp_edge.train.data.labelled import PARTS, Labelled
from grmp_edge.train.data.tables import csv_rows

__all__ = [
    "DataSet",
    "Entry",
    "ImageIndex",
    "SetInfo",
    "build",
    "first_folder",
    "load_mat",
    "read_reference_mat",
    "read_table",
    "read_xlsx",
]

UInt8Array = npt.NDArray[np.uint8]
Range = tuple[float, float]


@dataclass(frozen=True)
class SetInfo:
    """A data set as its documentation describes it; in all of these a higher score is better."""

    name: str  # as in SPEC
    title: str
    count: int  # pictures with a score
    scale: MosScale
    # How far a score may lie outside the scale, where the published extremes are rounded.
    slack: float = 0.0


@dataclass(frozen=True)
class DataSet(Labelled):
    """A labelled set read from its published files."""

    parts: tuple[str, ...] | None = None  # the set's own division, by picture (training, validation, test)
    # (n, H, W, 3) RGB where the set is stored decoded; ``paths`` are then only names.
    pixels: UInt8Array | None = None

    def picture(self, index: int) -> UInt8Array:
        """One picture as it is stored."""
        return super().picture(index) if self.pixels is None else np.asarray(self.pixels[index], np.uint8)

    def squashed(
        self, indices: Sequence[int], side: int, on_image: Callable[[], None] | None = None
    ) -> UInt8Array:
        """The chosen pictures squashed to (n, side, side, 3) RGB."""
        if self.pixels is None:
            return super().squashed(indices, side, on_image)
        squashed = np.empty((len(indices), side, side, 3), np.uint8)
        for place, index in enumerate(indices):
            squashed[place] = squash(self.pixels[index], side)
            if on_image:
                on_image()
        return squashed


@dataclass(frozen=True)
class Entry:
    """One line of a set's labels."""

    where: str  # file:line, or file:row, for messages
    path: Path
    mos: float
    reference: str | None = None
    distortion: str | None = None
    part: str | None = None


@dataclass
class ImageIndex:
    """The files of some folders by name, ignoring case: file systems differ in how they treat it."""

    folders: Sequence[Path]
    files: dict[str, Path] = field(init=False)

    def __post_init__(self) -> None:
        self.files = {}
        for folder in self.folders:
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                self.files.setdefault(path.name.lower(), path)

    def find(self, name: str) -> Path:
        """The file of that name, or the path where it was expected."""
        return self.files.get(name.lower(), self.folders[0] / name)


def build(
    info: SetInfo,
    source: Path,
    entries: Sequence[Entry],
    mos_range: Range | None = None,
    notes: Iterable[str] = (),
    expected: int | None = None,
) -> DataSet:
    """Check the entries and make a data set of them.

    A count that differs from the published one becomes a note: a part of a set is still good to learn from.
    A missing picture or a score outside the scale is an error: the copy is damaged, or the labels belong to
    another file.

    Args:
        info: the set's own description.
        source: the file of the labels.
        entries: one per picture.
        mos_range: overrides the declared scale.
        notes: further notes.
        expected: overrides the published count.

    Raises:
        DataError: no entry, a missing picture, or a score outside the scale; the message names the first.
    """
    scale = MosScale(*mos_range) if mos_range else info.scale
    if not entries:
        raise DataError(f"{source}: has no labelled picture", f"download {info.title} again")
    missing = [entry for entry in entries if not entry.path.is_file()]
    if missing:
        first = missing[0]
        more = f" (and {len(missing) - 1} more of {len(entries)})" if len(missing) > 1 else ""
        raise DataError(
            f"{first.where}: the picture {first.path} is missing{more}",
            f"unpack all pictures of {info.title}, or give their folder with --images",
        )
    for entry in entries:
        if not scale.low - info.slack <= entry.mos <= scale.high + info.slack:
            raise DataError(
                f"{entry.where}: the score {entry.mos:g} is outside {scale.low:g}..{scale.high:g}, "
                f"the scale of {info.title}",
                "check that it is the original file, or state the scale with --mos-range",
            )
    published = info.count if expected is None else expected
    remarks = list(notes)
    if len(entries) != published:
        remarks.append(
            f"{source}: {len(entries)} pictures, {info.title} has {published}: a part, or another release"
        )
    return DataSet(
        name=f"{info.name}:{source}",
        paths=tuple(entry.path for entry in entries),
        mos=np.asarray([entry.mos for entry in entries], dtype=np.float64),
        references=_all(entry.reference for entry in entries),
        distortions=_all(entry.distortion for entry in entries),
        scale=scale,
        parts=_all(entry.part for entry in entries),
        notes=tuple(remarks),
    )


def _all(values: Iterable[str | None]) -> tuple[str, ...] | None:
    listed = list(values)
    known = tuple(value for value in listed if value is not None)
    return known if len(known) == len(listed) else None


def first_folder(root: Path, names: Sequence[str], title: str) -> Path:
    """The first of several folders (or files) that exists below ``root``.

    Raises:
        DataError: none exists.
    """
    for name in names:
        if (root / name).exists():
            return root / name
    raise DataError(
        f"{root}: has no {' or '.join(names)}",
        f"give the folder that {title} was unpacked into, as downloaded",
    )


def read_table(
    path: Path, columns: Sequence[str], header: bool = True
) -> Sequence[tuple[int, Mapping[str, Any]]]:
    """Read a csv: (line number, cells by column).

    Args:
        path: the file.
        columns: the columns that must be there, or the names of a headerless file's columns.
        header: whether the first line names them.

    Raises:
        DataError: the file or a column is missing, or a line is too short.
    """
    names, rows = csv_rows(
        path,
        "give the folder of the data set as downloaded",
        "download it again",
        None if header else columns,
    )
    for name in columns:
        if name not in names:
            raise DataError(
                f"{path}: has no column {name!r} (it has {', '.join(names) or 'no header'})",
                "download it again",
            )
    for line, row in rows:
        if any(row.get(name) is None for name in columns):
            raise DataError(f"{path}:{line}: the line has too few cells", "download the file again")
    return rows


def read_xlsx(path: Path, sheet: str | None = None) -> list[tuple[int, tuple[Any, ...]]]:
    """Read a spreadsheet's sheet (the first by default): (row number, cells), empty rows left out.

    Raises:
        DataError: the file or sheet is missing or damaged.
        MissingDependencyError: openpyxl is not installed.
    """
    try:
        import openpyxl
    except ImportError:
        raise MissingDependencyError("openpyxl", "data", f"reading {path.name}") from None
    if not path.is_file():
        raise DataError(f"{path}: no such file", "give the folder of the data set as downloaded")
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except Exception as error:  # a zip, xml or key error, whichever part is damaged
        raise DataError(f"{path}: cannot be read as xlsx ({error})", "download it again") from None
    try:
        if sheet is not None and sheet not in book.sheetnames:
            raise DataError(f"{path}: has no sheet {sheet!r}", "download it again")
        chosen = book[sheet] if sheet is not None else book[book.sheetnames[0]]
        rows = enumerate(chosen.iter_rows(values_only=True), start=1)
        return [(line, cells) for line, cells in rows if any(cell is not None for cell in cells)]
    finally:
        book.close()


def xlsx_columns(path: Path, rows: Sequence[tuple[int, tuple[Any, ...]]], names: Sequence[str]) -> list[int]:
    """Indices of columns by the text of the first row, ignoring case and blanks.

    Raises:
        DataError: one is missing.
    """
    header = ["".join(str(cell or "").lower().split()) for cell in rows[0][1]] if rows else []
    places = []
    for name in names:
        plain = "".join(name.lower().split())
        if plain not in header:
            raise DataError(f"{path}: has no column {name!r}", "download it again")
        places.append(header.index(plain))
    return places


def load_mat(path: Path, *names: str) -> Any:
    """Read variables of a .mat file of either version: an array, or a tuple of them for several names.

    Version 7.3 stores arrays column-major, so h5py shows their axes reversed; that is undone here.

    Raises:
        DataError: the file is missing or damaged, or lacks a variable.
        MissingDependencyError: scipy or h5py is not installed.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(520)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})", "check the path") from None
    try:
        # A 7.3 file is HDF5, whose signature comes first or after MATLAB's header of 512 bytes.
        arrays = (_read_hdf5 if b"\x89HDF\r\n" in head else _read_v5)(path, names)
    except (DataError, MissingDependencyError):
        raise
    except Exception as error:  # scipy and h5py raise many kinds for a damaged file
        raise DataError(f"{path}: cannot be read as a .mat file ({error})", "copy it again") from None
    return arrays[0] if len(names) == 1 else arrays


def _read_v5(path: Path, names: tuple[str, ...]) -> tuple[Any, ...]:
    try:
        import scipy.io
    except ImportError:
        raise MissingDependencyError("scipy", "data", f"reading {path.name}") from None
    content = scipy.io.loadmat(str(path), variable_names=list(names))
    content |= {name: None for name, _, _ in scipy.io.whosmat(str(path)) if name not in content}
    return tuple(_variable(path, content, name) for name in names)


def _read_hdf5(path: Path, names: tuple[str, ...]) -> tuple[Any, ...]:
    try:
        import h5py
    except ImportError:
        raise MissingDependencyError("h5py", "data", f"reading {path.name}") from None
    with h5py.File(path, "r") as file:
        arrays = []
        for name in names:
            stored = _variable(path, file, name)
            if not isinstance(stored, h5py.Dataset) or stored.dtype.hasobject:
                raise DataError(f"{path}: {name!r} is not a numeric array", "save it as numbers")
            arrays.append(np.asarray(stored).T)
    return tuple(arrays)


def _variable(path: Path, content: Any, name: str) -> Any:
    if name not in content:
        known = ", ".join(sorted(key for key in content if not key.startswith(("__", "#")))) or "nothing"
        raise DataError(f"{path}: has no variable {name!r} (it has {known})", "give the right file")
    return content[name]


def read_reference_mat(path: Path, images: Path | None = None, mos_range: Range | None = None) -> DataSet:
    """Read a .mat of the GRMP-IQA reference: X, Y (training) and Xtest, Ytest, one split of a set.

    X and Xtest are (n, 3, 244, 244) uint8 RGB; Y and Ytest have n scores. The pictures stay in memory
    (178,608 bytes each); ``parts`` says which were X ("training") and which Xtest ("test").

    Raises:
        DataError: a variable is missing or has another shape or type, or a score is not finite.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file", "give a .mat with X, Y, Xtest and Ytest")
    x, y, x_test, y_test = load_mat(path, "X", "Y", "Xtest", "Ytest")
    pixels, mos, parts = [], [], []
    for name, stored, scores, part in (("X", x, y, "training"), ("Xtest", x_test, y_test, "test")):
        pixels.append(_pictures(path, name, np.asarray(stored)))
        values = np.asarray(scores, dtype=np.float64).ravel()
        if len(values) != len(pixels[-1]):
            raise DataError(
                f"{path}: {len(values)} scores for the {len(pixels[-1])} pictures of {name}",
                "make the file again",
            )
        if not np.isfinite(values).all():
            raise DataError(f"{path}: a score of {name} is not a number", "make the file again")
        mos.append(values)
        parts += [part] * len(values)
    both = np.concatenate(mos)
    low, high = mos_range or (-np.inf, np.inf)
    if both.min() < low or both.max() > high:
        raise DataError(
            f"{path}: scores of {both.min():g}..{both.max():g} are outside {low:g}..{high:g}",
            "correct --mos-range",
        )
    return DataSet(
        name=f"mat:{path}",
        paths=tuple(path / f"{part}-{index}" for index, part in enumerate(parts)),
        mos=both,
        scale=MosScale(*mos_range) if mos_range else None,
        parts=tuple(parts),
        fixed=tuple(PARTS[part] for part in parts),
        pixels=np.concatenate(pixels),
    )


def _pictures(path: Path, name: str, stored: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    # A 7.3 file written from Python is row-major, so load_mat has reversed axes that were right.
    if stored.ndim == 4 and stored.shape[1] != 3 and stored.shape[2] == 3:
        stored = stored.T
    if stored.ndim != 4 or stored.dtype != np.uint8 or stored.shape[1] != 3:
        raise DataError(
            f"{path}: {name} is {stored.dtype} {stored.shape}, not uint8 (n, 3, height, width)",
            "make the file again as the reference's readme says",
        )
    return np.ascontiguousarray(stored.transpose(0, 2, 3, 1))
