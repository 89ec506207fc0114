"""Tables as text: csv as spreadsheets and Windows programs write it, and numbers in them."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grmp_edge.errors import DataError
from grmp_edge.files import read_text

__all__ = ["Columns", "Lines", "csv_lines", "csv_rows", "number", "read_columns", "with_points"]

Lines = list[tuple[int, list[str]]]  # line number, cells without surrounding blanks

# In the order of preference: a line with a decimal comma has as many commas as semicolons.
_DELIMITERS = "\t;|,"

_SAMPLE = 50  # lines that a guess of a column's meaning rests on
# Numbers beside a score that are none.
_NOT = frozenset(
    {"", "count", "height", "id", "index", "n", "no", "nr", "sd", "std", "var", "variance", "votes", "width"}
)


def csv_lines(path: Path, missing: str, damaged: str, known: Collection[str] = ()) -> Lines:
    """The lines of a csv that are not blank.

    Text is UTF-8, UTF-16 or Windows' code page 1252; cells are parted by commas, semicolons, tabs or bars,
    whichever the first line has, or by what Excel's line ``sep=;`` says.

    Args:
        path: the file.
        missing: the remedy where there is no such file.
        damaged: the remedy where it cannot be read.
        known: names of columns in lower case; the delimiter that gives most of them is right.

    Raises:
        DataError: the file is missing or is not a csv.
    """
    try:
        text = read_text(path, "cp1252")
        if text.startswith("PK\x03\x04"):
            raise DataError(f"{path}: an Excel workbook, not a csv", "save it as CSV from there")
        if "\0" in text:
            raise DataError(f"{path}: cannot be read as csv (not a text)", damaged)
        first = next((line for line in text.splitlines() if line.strip()), "")
        declared = re.fullmatch(r"\s*\"?sep=(.)\"?\s*", first)
        delimiter = declared[1] if declared else _delimiter(first, known)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
        lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file", missing) from None
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as csv ({error})", damaged) from None
    return [(line, cells) for line, cells in lines if any(cells)][1 if declared else 0 :]


def _delimiter(line: str, known: Collection[str]) -> str:
    def fit(delimiter: str) -> tuple[int, int]:
        (cells,) = csv.reader([line], delimiter=delimiter, skipinitialspace=True)
        return sum(cell.strip().lower() in known for cell in cells), len(cells)

    return max(_DELIMITERS, key=fit) if line else ","


def csv_rows(
    path: Path, missing: str, damaged: str, columns: Sequence[str] | None = None
) -> tuple[list[str], list[tuple[int, dict[str, Any]]]]:
    """A csv as its column names and its rows, (line number, cells by column); a missing cell is None.

    Args:
        path: as for :func:`csv_lines`, as are the remedies.
        missing: where there is no such file.
        damaged: where it cannot be read.
        columns: the names of the columns where the file has no header.

    Raises:
        DataError: the file is missing or is not a csv.
    """
    lines = csv_lines(path, missing, damaged)
    header = list(columns or (lines.pop(0)[1] if lines else ()))
    short = [None] * len(header)
    return header, [(line, dict(zip(header, [*cells, *short], strict=False))) for line, cells in lines]


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


def with_points(cells: Sequence[tuple[str, str]]) -> list[str]:
    """A column of numbers with decimal points, whichever sign it uses: 1.234,5 becomes 1234.5.

    Args:
        cells: where each stands, for messages, and its text.

    Raises:
        DataError: some have decimal points, others decimal commas.
    """
    signs: dict[str, tuple[str, str]] = {}
    for where, text in cells:
        if marks := re.findall(r"[.,]", text):
            signs.setdefault(marks[-1], (where, text))
    if len(signs) == 2:
        (one, other) = signs.values()
        raise DataError(
            f"{other[0]}: the score {other[1]!r} has another decimal sign than {one[1]!r} ({one[0]})",
            "write all scores with decimal points",
        )
    if "," not in signs:
        return [text.replace(",", "") for _, text in cells]
    return [text.replace(".", "").replace(",", ".") for _, text in cells]


@dataclass(frozen=True)
class Columns:
    """The columns of a labelled set, as texts."""

    lines: tuple[int, ...]  # the line number of each row
    texts: Mapping[str, list[str]]  # by field; one without a column is missing
    notes: tuple[str, ...]  # what was guessed


def read_columns(
    path: Path,
    fields: Mapping[str, Sequence[str]],
    asked: Mapping[str, str | None],
    is_image: Callable[[str], bool],
) -> Columns:
    """Read the columns ``image`` and ``mos`` of a csv, and those of the other ``fields`` that it has.

    The two are found by the name that was ``asked`` for, by the usual names, or guessed: the only column of
    file names, and the only one of numbers. A file whose first line names a picture has no header.

    Args:
        path: the csv.
        fields: the usual names of each field's column, in lower case, the likeliest first.
        asked: the name of a field's column.
        is_image: whether a text names a picture.

    Raises:
        DataError: the file is not a csv, a column is missing, or a line has too few or too many cells.
    """
    known = {name for names in fields.values() for name in names}
    rows = csv_lines(path, "give a csv with the columns image,mos", "save it as UTF-8 text", known)
    header = rows[0][1] if rows else []
    notes: list[str] = []
    if any(map(is_image, header)):
        header = [f"column {index + 1}" for index in range(len(header))]
        notes.append(f"{path}: no header, the first line names a picture")
    else:
        rows = rows[1:]
    places = {name: _place(path, header, names, asked.get(name)) for name, names in fields.items()}
    sample = [cells + [""] * len(header) for _, cells in rows[:_SAMPLE]]
    for name, fits in (("image", is_image), ("mos", _is_number)):
        if places[name] is not None:
            continue
        free = [
            at for at, title in enumerate(header) if at not in places.values() and title.lower() not in _NOT
        ]
        likely = [at for at in free if _all_are([row[at] for row in sample], fits)]
        if len(likely) != 1:
            raise DataError(
                f"{path}: has no column {name!r} (it has {', '.join(header) or 'no header'})",
                f"the first line should read image,mos; or name the column with --{name}-column",
            )
        places[name] = likely[0]
        notes.append(f"{path}: column {header[likely[0]]!r} is taken for the {name} (--{name}-column)")
    for line, cells in rows:
        _check_cells(f"{path}:{line}", cells, header, places)
    texts = {
        name: [cells[at] if at < len(cells) else "" for _, cells in rows]
        for name, at in places.items()
        if at is not None
    }
    return Columns(tuple(line for line, _ in rows), texts, tuple(notes))


def _place(path: Path, header: Sequence[str], names: Sequence[str], asked: str | None) -> int | None:
    titles = [title.lower() for title in header]
    title = next((name for name in ([asked.lower()] if asked else names) if name in titles), None)
    if asked and title is None:
        raise DataError(f"{path}: has no column {asked!r} (it has {', '.join(header)})", "correct its name")
    if title is not None and titles.count(title) > 1:
        raise DataError(f"{path}: has two columns {title!r}", "rename one of them")
    return None if title is None else titles.index(title)


def _check_cells(
    where: str, cells: Sequence[str], header: Sequence[str], places: Mapping[str, int | None]
) -> None:
    if any(cells[len(header) :]):
        raise DataError(
            f"{where}: {len(cells)} cells, and the header has {len(header)}",
            "put a text that holds the delimiter in quotes",
        )
    for name in ("image", "mos"):
        at = places[name] or 0
        if at >= len(cells) or not cells[at]:
            raise DataError(
                f"{where}: nothing in column {header[at]!r} ({len(cells)} of {len(header)} cells)",
                "complete or remove the line",
            )


def _all_are(cells: Sequence[str], fits: Callable[[str], bool]) -> bool:
    return any(cells) and all(fits(cell) for cell in cells if cell)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?[0-9.,]+([eE][-+]?[0-9]+)?", text) is not None
