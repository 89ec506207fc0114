"""What the readers of public data sets share: entries, checks of count and scale, tables in three formats."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grmp_edge.errors import DataError, MissingDependencyError
from grmp_edge.preprocess import squash
from grmp_edge.score import MosScale
from grmp_edge.train.data.labelled import Labelled

__all__ = [
    "DataSet",
    "Entry",
    "ImageIndex",
    "SetInfo",
    "build",
    "first_folder",
    "number",
    "read_table",
    "read_xlsx",
]

UInt8Array = npt.NDArray[np.uint8]
Range = tuple[float, float]


@dataclass(frozen=True)
class SetInfo:
    """What the documentation of a data set says of it; in all of these a higher score is better."""

    name: str  # as in SPEC
    title: str
    count: int  # pictures with a score
    scale: MosScale
    # A score may lie so far outside: the published extremes are rounded.
    slack: float = 0.0


@dataclass(frozen=True)
class DataSet(Labelled):
    """A labelled set as a reader found it."""

    parts: tuple[str, ...] | None = None  # the set's own division, by picture (training, validation, test)
    notes: tuple[str, ...] = ()  # what is unusual, for people: a partial copy, a choice between two files
    pixels: UInt8Array | None = (
        None  # (n, H, W, 3) RGB where the set is stored decoded; ``paths`` are names then
    )

    def squashed(
        self, indices: Sequence[int], side: int, on_image: Callable[[], None] | None = None
    ) -> UInt8Array:
        """The chosen pictures squashed to (n, side, side, 3) RGB."""
        if self.pixels is None:
            return super().squashed(indices, side, on_image)
        found = np.empty((len(indices), side, side, 3), np.uint8)
        for place, index in enumerate(indices):
            found[place] = squash(self.pixels[index], side)
            if on_image:
                on_image()
        return found


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
    """The files of some folders by name without regard to case: sets are unpacked on all kinds of disks."""

    folders: Sequence[Path]
    files: dict[str, Path] = field(init=False)

    def __post_init__(self) -> None:
        self.files = {}
        for folder in self.folders:
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                self.files.setdefault(path.name.lower(), path)

    def find(self, name: str) -> Path:
        """The file of that name; where there is none, the path it should have had."""
        return self.files.get(name.lower(), self.folders[0] / name)


def build(
    info: SetInfo,
    source: Path,
    entries: Sequence[Entry],
    mos_range: Range | None = None,
    notes: Iterable[str] = (),
    expected: int | None = None,
) -> DataSet:
    """Check the entries and make the set of them.

    A number of entries that differs from the published one becomes a note: a part of a set is still good to
    learn from. A missing picture or a score outside the scale is an error, as the copy is damaged or the
    labels are another file's.

    Args:
        info: the set's own description.
        source: the file of the labels.
        entries: one per picture.
        mos_range: overrides the declared scale.
        notes: further notes.
        expected: overrides the published count.

    Raises:
        DataError: no entry, a missing picture, or a score outside the scale; the first is named.
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
    wanted = info.count if expected is None else expected
    said = list(notes)
    if len(entries) != wanted:
        said.append(
            f"{source}: {len(entries)} pictures, {info.title} has {wanted}: a part, or another release"
        )
    return DataSet(
        name=f"{info.name}:{source}",
        paths=tuple(entry.path for entry in entries),
        mos=np.asarray([entry.mos for entry in entries], dtype=np.float64),
        references=_all(entry.reference for entry in entries),
        distortions=_all(entry.distortion for entry in entries),
        scale=scale,
        parts=_all(entry.part for entry in entries),
        notes=tuple(said),
    )


def _all(values: Iterable[str | None]) -> tuple[str, ...] | None:
    listed = list(values)
    known = tuple(value for value in listed if value is not None)
    return known if len(known) == len(listed) else None


def number(value: Any, where: str, what: str = "score") -> float:
    """A finite number from a cell.

    Raises:
        DataError: it is none.
    """
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise DataError(
            f"{where}: the {what} {value!r} is not a number", "check that it is the original file"
        )
    return found


def first_folder(root: Path, names: Sequence[str], title: str) -> Path:
    """The first of some folders (or files) that is below ``root``.

    Raises:
        DataError: none is there.
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
        path: UTF-8 text.
        columns: the columns that must be there, or the names of a headerless file's columns.
        header: whether the first line names them.

    Raises:
        DataError: the file or a column is missing, or a line is too short.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, fieldnames=None if header else columns, skipinitialspace=True)
            if header:
                reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            rows = [(reader.line_num, row) for row in reader]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file", "give the folder of the data set as downloaded") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as csv ({error})", "download it again") from None
    for name in columns:
        if name not in (reader.fieldnames or ()):
            found = ", ".join(reader.fieldnames or ()) or "no header"
            raise DataError(f"{path}: has no column {name!r} (it has {found})", "download it again")
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
    """Places of columns by the text of the first row, without regard to case and blanks.

    Raises:
        DataError: one is missing.
    """
    header = ["".join(str(cell or "").lower().split()) for cell in rows[0][1]] if rows else []
    places = []
    for name in names:
        wanted = "".join(name.lower().split())
        if wanted not in header:
            raise DataError(f"{path}: has no column {name!r}", "download it again")
        places.append(header.index(wanted))
    return places
