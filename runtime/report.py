"""Scores for people and programs: tables, CSV, a summary per video."""

from __future__ import annotations

import contextlib
import math
import statistics
from array import array
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Literal, TextIO

from grmp_edge.errors import UsageError
from grmp_edge.files import csv_row, naming, replace_file, umask
from grmp_edge.score import Score

__all__ = [
    "CSV_FIELDS",
    "CsvFile",
    "PlainTable",
    "RichTable",
    "VideoSummary",
    "csv_cells",
    "open_csv",
    "printable",
]

CSV_FIELDS = ("source", "value", "mos", "frame", "time_s", "latency_ms", "model", "cause", "damage", "note")


def csv_cells(score: Score) -> list[object]:
    """A score in the columns :data:`CSV_FIELDS`; a field that does not apply is None."""
    cells = [getattr(score, name) for name in CSV_FIELDS]
    return [f"{cell:.6g}" if isinstance(cell, float) else cell for cell in cells]


class CsvFile:
    """A CSV of scores, columns :data:`CSV_FIELDS`; opened by :func:`open_csv`."""

    def __init__(self, stream: IO[bytes], path: Path) -> None:
        """``path`` is where the rows go at the end."""
        self._stream, self.path = stream, path
        self.partial = path.with_name(f"{path.stem}.partial{path.suffix}")  # if the run is interrupted
        self.rows = 0
        stream.write(csv_row(CSV_FIELDS))

    def write(self, score: Score) -> None:
        """Add one row; a field that does not apply is left empty."""
        with naming(self.path):
            self._stream.write(csv_row(csv_cells(score)))
        self.rows += 1


@contextlib.contextmanager
def open_csv(path: Path) -> Iterator[CsvFile]:
    """Write a CSV of scores that appears whole or not at all.

    If the ``with`` block ends in an exception, Ctrl-C included, the rows so far are saved as
    ``NAME.partial.csv``, and an existing file at ``path`` is left alone.

    Raises:
        UsageError: nothing can be written there.
    """
    if path.is_dir():
        raise UsageError(f"{path}: is a folder", "give --csv the name of a file")
    with contextlib.ExitStack() as stack:
        try:
            temporary = stack.enter_context(replace_file(path))
            stream = stack.enter_context(temporary.open("wb"))
        except OSError as error:
            raise UsageError(f"{path}: cannot be written ({error.strerror})", "check --csv") from None
        file = CsvFile(stream, path)
        try:
            yield file
        except BaseException:
            if file.rows:
                with contextlib.suppress(OSError):  # the disk is full: what is written is kept
                    stream.flush()
                temporary.chmod(0o666 & ~umask())
                temporary.replace(file.partial)  # not copied: a full disk has no room for that
            raise


class VideoSummary:
    """Mean, median, extremes and the worst frame of one video, from 8 bytes per frame."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.worst: Score | None = None
        self._values = array("d")

    def add(self, score: Score) -> None:
        """Take in the score of one frame."""
        self._values.append(score.value)
        if self.worst is None or score.value < self.worst.value:
            self.worst = score

    def __str__(self) -> str:
        """One line."""
        if self.worst is None:
            return f"{printable(self.source)}: no frame scored"
        values = self._values
        time_s = "" if self.worst.time_s is None else f" at {self.worst.time_s:.2f} s"
        return (
            f"{printable(self.source)}: {len(values)} frames, mean {statistics.fmean(values):.4f}, "
            f"median {statistics.median(values):.4f}, min {min(values):.4f}, "
            f"max {max(values):.4f}, worst frame {self.worst.frame}{time_s}"
        )


class PlainTable:
    """A table for pipes and files: a line per score at once, the name last because its width varies."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._header = self._causes = False

    def add(self, score: Score) -> None:
        """Print one row, preceded by the header if it is the first."""
        if not self._header:
            self._header = True
            self._causes = score.causes is not None  # whether the model names any: the same in all rows
            self._print("score", "mos", "frame", "time", "cause", "source")
        self._print(*_cells(score))

    def _print(self, value: str, mos: str, frame: str, time: str, cause: str, source: str) -> None:
        named = f"{cause:12}  " if self._causes else ""
        print(f"{value:>6}  {mos:>7}  {frame:>6}  {time:>8}  {named}{source}", file=self._out, flush=True)

    def close(self) -> None:
        """Nothing to do: every row has been printed."""


class RichTable:
    """A table for a terminal, printed a page at a time: a long run shows progress and uses little memory."""

    PAGE = 500

    def __init__(self, out: TextIO, around: Callable[[], AbstractContextManager[None]]) -> None:
        """``around()`` is entered while a page is printed, so that a progress line can be hidden."""
        self._out = out
        self._around = around
        self._rows: list[Score] = []

    def add(self, score: Score) -> None:
        """Take in one row; every :attr:`PAGE` rows are printed."""
        self._rows.append(score)
        if len(self._rows) >= self.PAGE:
            self.close()

    def close(self) -> None:
        """Print the remaining rows, without the columns that are empty in all of them."""
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        if not self._rows:
            return
        rows = [_cells(score) for score in self._rows]
        colours = [_colour(score.value) for score in self._rows]
        self._rows = []
        used = [index for index in range(5) if any(row[index] != "-" for row in rows)]
        table = Table()
        for index in used:
            justify: Literal["left", "right"] = "left" if index == 4 else "right"
            table.add_column(_COLUMNS[index], justify=justify, no_wrap=True)
        table.add_column("source", overflow="fold")
        for row, colour in zip(rows, colours, strict=True):
            numbers = [Text(row[index], style=colour if index == 0 else "") for index in used]
            table.add_row(*numbers, Text(row[5]))  # Text: a name may hold [brackets]
        with self._around():
            Console(file=self._out).print(table)


_COLUMNS = ("score", "mos", "frame", "time", "cause", "source")


def _cells(score: Score) -> tuple[str, str, str, str, str, str]:
    """A score in ``_COLUMNS``."""
    return (
        f"{score.value:.4f}",
        "-" if score.mos is None else f"{score.mos:.2f}",
        "-" if score.frame is None else str(score.frame),
        "-" if score.time_s is None else f"{score.time_s:.2f}s",
        "-" if score.cause is None else printable(score.cause),
        printable(score.source) + (f"  [damaged: {score.damage}]" if score.damage else ""),
    )


def printable(name: str) -> str:
    """A file name for a terminal: line breaks, escape codes and undecodable bytes are made visible."""
    text = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def _colour(value: float) -> str:
    return ("red", "yellow", "green")[min(2, math.floor(value * 3))]
