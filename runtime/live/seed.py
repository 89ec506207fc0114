"""Past scores of a camera, for its memory: from files of scores, or from pictures that are scored now."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path

from grmp_edge.errors import UsageError

__all__ = ["PastScore", "past_scores", "time_in_name"]

PastScore = tuple[float | None, float]  # seconds since 1970, if known; the score, 0..1
_SCORES = frozenset({".jsonl", ".csv"})
# 20260131-235959, 2026-01-31T23:59:59Z, 20260131235959: as cameras and recorders name their pictures.
_TIME = re.compile(
    r"(?<!\d)(20\d\d)[-_.]?(\d\d)[-_.]?(\d\d)[T_ .-]?(\d\d)[-_:.]?(\d\d)[-_:.]?(\d\d)"
    r"(?:[.,]?\d{3})?(Z?)(?!\d)"
)


def past_scores(
    paths: Sequence[Path],
    camera: str,
    model: str,
    score: Callable[[Iterable[Path]], Iterator[tuple[str, float]]],
) -> list[PastScore]:
    """The scores in files, and those of pictures, in the order of time; those without a time come last.

    Args:
        paths: ``.jsonl`` or ``.csv`` of ``score --output`` or of ``watch``, and pictures or folders of them.
        camera: whose scores; rows of other cameras are left out.
        model: id of the bundle; rows of another model are left out.
        score: gives the names and scores of pictures.

    Raises:
        UsageError: a file cannot be read, or holds scores of other models only.
    """
    scores: list[PastScore] = []
    pictures = [path for path in paths if path.suffix.lower() not in _SCORES]
    for path in paths:
        if path not in pictures:
            scores += _from_file(path, camera, model)
    if pictures:
        scores += [(time_in_name(Path(name).name), value) for name, value in score(pictures)]
    return sorted(scores, key=lambda past: float("inf") if past[0] is None else past[0])


def time_in_name(name: str) -> float | None:
    """The time in a file's name, in seconds since 1970: local time, or UTC if ``Z`` follows; None: none."""
    match = _TIME.search(name)
    if match is None:
        return None
    year, month, day, hour, minute, second = (int(match[number]) for number in range(1, 7))
    try:
        return datetime(
            year, month, day, hour, minute, second, tzinfo=timezone.utc if match[7] else None
        ).timestamp()
    except ValueError:  # such as a 13th month
        return None


def _from_file(path: Path, camera: str, model: str) -> list[PastScore]:
    scores, others = [], set()
    for row in _rows(path):
        if row.get("event") not in (None, "score") or row.get("camera") not in (None, camera):
            continue
        try:
            value = float(str(row["value"]).replace(",", "."))
            at = float(str(row["at"]).replace(",", ".")) if row.get("at") not in (None, "") else None
        except (KeyError, ValueError):  # a failure, or a line cut by a power failure
            continue
        if at is not None and not 0 <= at < 1e11:
            reason = f"{path}: {at:g} is no time in seconds since 1970"
            raise UsageError(reason, "divide milliseconds by 1000")
        if not 0.0 <= value <= 1.0:
            continue
        if row.get("model") not in (None, "", model):
            others.add(str(row["model"]))
            continue
        source = row.get("source")
        scores.append((time_in_name(Path(str(source)).name) if at is None and source else at, value))
    if not scores and others:
        raise UsageError(
            f"{path}: its scores are of model {', '.join(sorted(others))}, not {model}",
            "score the pictures again, or name that bundle with --bundle",
        )
    return scores


def _rows(path: Path) -> Iterator[dict[str, object]]:
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
            if path.suffix.lower() == ".csv":  # as spreadsheets write them, too
                header = stream.readline()
                stream.seek(0)
                yield from csv.DictReader(stream, delimiter=max(",;\t", key=header.count))
                return
            for line in stream:
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if isinstance(row, dict):
                    yield row
    except (OSError, csv.Error) as error:
        raise UsageError(f"{path}: cannot be read ({error})", "check its path") from None
