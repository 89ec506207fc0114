"""Scores as people and programs read them: tables, JSON lines, CSV, a summary per video."""

from __future__ import annotations

import contextlib
import csv
import math
import shutil
import statistics
from array import array
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TextIO

from grmp_edge.errors import UsageError
from grmp_edge.files import replace_file
from grmp_edge.score import Score

__all__ = ["CSV_FIELDS", "CsvFile", "PlainTable", "RichTable", "VideoSummary", "printable"]

CSV_FIELDS = ("source", "value", "mos", "frame", "time_s", "latency_ms", "model")


class CsvFile:
    """A CSV of scores (columns :data:`CSV_FIELDS`) that appears whole or not at all.

    When the ``with`` block ends by an exception, Ctrl-C included, what was written so far is kept as
    ``NAME.partial.csv`` and a file that stood at ``path`` stays as it was.

    Raises:
        UsageError: on entering, if nothing can be written there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.partial = path.with_name(f"{path.stem}.partial{path.suffix}")
        self.rows = 0
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> CsvFile:
        if self.path.is_dir():
            raise UsageError(f"{self.path}: is a folder", "give --csv the name of a file")
        try:
            self._temporary = self._stack.enter_context(replace_file(self.path))
            # surrogateescape: a file name that is no UTF-8 is written as the bytes it has.
            self._stream = self._stack.enter_context(
                self._temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="")
            )
        except OSError as error:
            self._stack.close()
            raise UsageError(f"{self.path}: cannot be written ({error.strerror})", "check --csv") from None
        self._writer = csv.writer(self._stream, lineterminator="\n")
        self._writer.writerow(CSV_FIELDS)
        return self

    def write(self, score: Score) -> None:
        """Add one row; a field that does not apply is left empty."""
        row = [getattr(score, name) for name in CSV_FIELDS]
        self._writer.writerow([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row])
        self.rows += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is not None and self.rows:
                self._stream.flush()
                with replace_file(self.partial) as copy:
                    shutil.copyfile(self._temporary, copy)
        finally:
            self._stack.__exit__(kind, error, traceback)


class VideoSummary:
    """Mean, median, extremes and the worst frame of one video; holds 8 bytes a frame."""

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
    """A table for pipes and files: one line a score as it comes, the name last since its width is free."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._header = False

    def add(self, score: Score) -> None:
        """Print one row, after the header if it is the first."""
        if not self._header:
            self._header = True
            print(f"{'score':>6}  {'mos':>7}  {'frame':>6}  {'time':>8}  source", file=self._out)
        cells = _cells(score)
        row = f"{cells[0]:>6}  {cells[1]:>7}  {cells[2]:>6}  {cells[3]:>8}  {cells[4]}"
        print(row, file=self._out, flush=True)

    def close(self) -> None:
        """Nothing is held back."""


class RichTable:
    """A table for a terminal, printed a page at a time so that a long run shows and holds little."""

    PAGE = 500

    def __init__(self, out: TextIO, around: Callable[[], AbstractContextManager[None]]) -> None:
        """``around()`` is entered while a page is printed, so that a progress line can step aside."""
        self._out = out
        self._around = around
        self._rows: list[Score] = []

    def add(self, score: Score) -> None:
        """Take in one row; every :attr:`PAGE` rows are printed."""
        self._rows.append(score)
        if len(self._rows) >= self.PAGE:
            self.close()

    def close(self) -> None:
        """Print the rows not printed yet, without the columns that apply to none of them."""
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        if not self._rows:
            return
        rows = [_cells(score) for score in self._rows]
        colours = [_colour(score.value) for score in self._rows]
        self._rows = []
        used = [index for index in range(4) if any(row[index] != "-" for row in rows)]
        table = Table()
        for index in used:
            table.add_column(("score", "mos", "frame", "time")[index], justify="right", no_wrap=True)
        table.add_column("source", overflow="fold")
        for row, colour in zip(rows, colours, strict=True):
            numbers = [Text(row[index], style=colour if index == 0 else "") for index in used]
            table.add_row(*numbers, Text(row[4]))  # Text: a name may hold [brackets]
        with self._around():
            Console(file=self._out).print(table)


def _cells(score: Score) -> Sequence[str]:
    return (
        f"{score.value:.4f}",
        "-" if score.mos is None else f"{score.mos:.2f}",
        "-" if score.frame is None else str(score.frame),
        "-" if score.time_s is None else f"{score.time_s:.2f}s",
        printable(score.source),
    )


def printable(name: str) -> str:
    """A file's name for a terminal: line breaks, escape codes and bytes that are no text made visible."""
    text = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def _colour(value: float) -> str:
    return ("red", "yellow", "green")[min(2, math.floor(value * 3))]
