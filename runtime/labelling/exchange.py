"""Ratings from and for other tools: Label Studio (csv, json), CVAT (csv), and plain image,mos."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from grmp_edge.errors import DataError
from grmp_edge.files import csv_plain, csv_row, read_text, replace_file
from grmp_edge.runtime.labelling.answers import SCALE, Answer

__all__ = ["export_answers", "import_answers"]

# Names of columns in lower case, the likeliest first. ImageID and LabelName are of CVAT's Open Images csv.
_IMAGE = ("image", "img", "image_name", "img_name", "filename", "file", "imageid", "path")
_VALUE = ("rating", "quality", "choice", "mos", "score", "label", "labelname")
_RATER = ("annotator", "rater", "completed_by", "user", "assignee")
_COLUMNS = ("image", "rating", "choice", "annotator", "created_at", "better", "worse")


def import_answers(path: Path, frames: Sequence[str]) -> list[Answer]:
    """Ratings of another tool; rows without one are passed over.

    Args:
        path: a csv, or Label Studio's json (also its JSON_MIN).
        frames: the names that are known; a name is found behind a path, an address, or the eight characters
            that Label Studio puts before it, and without its suffix.

    Raises:
        DataError: not such a file, an image that is not known, or a rating that is none of 1..5.
    """
    try:
        text = read_text(path)
        given = _json_rows(json.loads(text)) if text.lstrip()[:1] in ("[", "{") else _csv_rows(text)
        rows = [(where, row, _rating(_cell(row, _VALUE), f"{path}: {where}")) for where, row in given]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file", "check the path") from None
    except (OSError, ValueError, TypeError, AttributeError, csv.Error, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({error})", "export it as csv or json again") from None
    stems = Counter(Path(name).stem for name in frames)
    names = {Path(name).stem: name for name in frames if stems[Path(name).stem] == 1}
    names |= {name: name for name in frames}
    answers = []
    for where, row, value in rows:
        if value is None:
            continue
        given = _cell(row, _IMAGE)
        image = _known(str(given or ""), names)
        if image is None:
            raise DataError(
                f"{path}: {where}: picture {given!r} is not in the folder",
                "give the folder that was labelled",
            )
        rater = " ".join(str(_cell(row, _RATER) or path.stem).split())[:60]
        key = hashlib.sha256(f"{rater}\0{image}\0{value}\0{where}".encode()).hexdigest()[:24]
        answers.append(Answer("scale", rater, (image,), value, round(time.time(), 3), f"import-{key}"))
    if not answers:
        raise DataError(
            f"{path}: no rating in it",
            f"it needs a column {' or '.join(_IMAGE[:2])} and one of {', '.join(_VALUE)}",
        )
    return answers


def export_answers(path: Path, answers: Sequence[Answer]) -> int:
    """Write all ratings and pairs, a row each, with Label Studio's names of columns; returns how many."""
    rows: list[Sequence[object]] = [_COLUMNS]
    for one in answers:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(one.at))
        if one.kind == "scale" and one.value is not None:
            rows.append((one.images[0], f"{one.value:g}", SCALE[round(one.value) - 1], one.rater, at, "", ""))
        elif one.kind == "pair" and one.value in (0.0, 1.0):
            better, worse = one.images if one.value else one.images[::-1]
            rows.append(("", "", "", one.rater, at, better, worse))
    with replace_file(path) as file:
        file.write_bytes(b"".join(map(csv_row, rows)))
    return len(rows) - 1


def _csv_rows(text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    for number, row in enumerate(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter), 2):
        yield f"line {number}", {str(name).strip().lower(): cell for name, cell in row.items()}


def _json_rows(data: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, task in enumerate(data if isinstance(data, list) else [data], 1):
        if not isinstance(task, dict):
            raise ValueError("no list of tasks")
        where = f"task {number}"
        if "annotations" not in task:  # JSON_MIN
            yield where, {str(name).lower(): value for name, value in task.items()}
            continue
        own = {str(name).lower(): value for name, value in (task.get("data") or {}).items()}
        for annotation in task["annotations"]:
            if annotation.get("was_cancelled"):
                continue
            by = annotation.get("completed_by")
            rater = by.get("email") if isinstance(by, dict) else by
            for result in annotation.get("result", ()):
                yield where, {**own, "rating": result.get("value"), "annotator": rater}


def _cell(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)


def _rating(cell: Any, where: str) -> float | None:
    """1..5 of a number, a word of the scale, or Label Studio's own ways of saying either."""
    if isinstance(cell, str) and cell.lstrip()[:1] in ("[", "{"):
        cell = json.loads(cell)
    while isinstance(cell, (list, dict)):
        inner = cell[:1] if isinstance(cell, list) else [cell.get("rating", cell.get("choices"))]
        cell = inner[0] if inner else None
    if cell is None:
        return None
    words = {word.lower(): float(index) for index, word in enumerate(SCALE, 1)}
    text = str(cell).strip().lower()
    if text in words:
        return words[text]
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value <= len(SCALE):
        raise DataError(
            f"{where}: the rating {cell!r} is none", f"use 1 to {len(SCALE)}, or {', '.join(SCALE)}"
        )
    return value


def _known(given: str, names: Mapping[str, str]) -> str | None:
    name = re.split(r"[/\\=]", unquote(given))[-1]
    for each in (given, csv_plain(given), name, re.sub(r"^[0-9a-f]{8}-", "", name)):
        found = names.get(each) or names.get(Path(each).stem)
        if found:
            return found
    return None
