"""A file of scores that grows row by row and can be resumed after any kind of interruption."""

from __future__ import annotations

import csv
import io
import json
import os
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from grmp_edge.errors import UsageError
from grmp_edge.files import Closing, csv_row, csv_text, hold, naming
from grmp_edge.runtime.report import CSV_FIELDS, csv_cells
from grmp_edge.runtime.sources.name_set import Keys, name_key
from grmp_edge.runtime.sources.sources import Failure
from grmp_edge.score import Score

__all__ = ["RECORD_FIELDS", "Done", "ScoreFile"]

RECORD_FIELDS = (*CSV_FIELDS, "error")  # columns of a CSV; a JSON line has only those that apply

# What a CSV needs to be resumed: one of an earlier version has fewer columns than now, and keeps those.
_NEEDED = frozenset({"source", "value", "frame", "model", "error"})

_SYNC_ROWS = 1000  # rows between two fsyncs: what a power cut may lose
# The largest torn row: a longer damaged end is not ours to cut off. A name has at most 4096 bytes; JSON may
# take six for each, a CSV two, and an error message repeats it. Names with line breaks are rare.
_LONGEST_JSON, _LONGEST_CSV, _LINES_IN_ROW = 60_000, 20_000, 8


class Done:
    """The sources a file already has: 8 bytes each (8 MB per million), a video counting once."""

    def __init__(self, written: Callable[[str], str] = str) -> None:
        """``written``: how the file spells a source."""
        self._written = written
        self.rows = self.failed = 0
        self._last: str | None = None  # the source of the last row
        self._frame: int | None = None  # its frame: a video that may be unfinished
        self._adding = array("Q")
        self._keys = Keys()

    def add(self, source: str, frame: int | None, failed: bool) -> None:
        """Take in the next row."""
        source = self._written(source)  # older files have it as it is
        self.rows += 1
        self.failed += failed
        if source != self._last and self._last is not None:
            self._adding.append(name_key(self._last))
        # A failure ends a source, also that of a video after its readable frames.
        self._last, self._frame = source, None if failed else frame

    def seal(self) -> None:
        """Finish adding; only then can the set be queried."""
        if self._last is not None and self._frame is None:
            self._adding.append(name_key(self._last))
        self._keys, self._adding = Keys(self._adding), array("Q")

    def __contains__(self, source: str) -> bool:
        """Whether a source is finished."""
        return name_key(self._written(source)) in self._keys

    def last_frame(self, source: str) -> int:
        """The index of the last frame of an unfinished video; -1 for any other source."""
        same = self._frame is not None and self._written(source) == self._last
        return self._frame if same and self._frame is not None else -1


class _Row(NamedTuple):
    """What resuming needs of a row."""

    source: str
    model: str
    frame: int | None
    failed: bool


class ScoreFile(Closing):
    """JSON lines, or a CSV if the name ends in .csv: a row for each picture, frame and failure.

    Rows are appended in place, not to a temporary file: the file is valid after each row, and the next run
    resumes from whatever an interrupted one left.
    """

    def __init__(self, path: Path, model: str, resume: bool = False) -> None:
        """``model`` is the id of the bundle; a file from another one cannot be resumed.

        Raises:
            UsageError: the suffix is none of .csv, .jsonl and .ndjson. On entering: the file exists and is
                not to be resumed, comes from another model or holds something else, or cannot be written.
        """
        self.path, self.done = path, Done(csv_text if path.suffix.lower() == ".csv" else str)
        self._model, self._resume = model, resume
        self._csv = path.suffix.lower() == ".csv"
        if path.suffix.lower() not in (".csv", ".jsonl", ".ndjson"):
            raise UsageError(f"{path}: --output is a .jsonl or a .csv file", "name it scores.jsonl")
        self._columns: tuple[str, ...] = RECORD_FIELDS  # of a CSV
        self.rows = 0  # written by this run
        self._stream: IO[bytes] | None = None

    def __enter__(self) -> ScoreFile:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self.path.open("ab" if self._resume else "xb", buffering=0)
            try:
                if not hold(self._stream):  # two would write each row twice
                    raise UsageError(
                        f"{self.path}: another grmp-edge writes to it",
                        "wait for it, or name another --output",
                    )
                self._mend()
            except BaseException:
                self._stream.close()
                raise
        except FileExistsError:
            raise UsageError(
                f"{self.path}: exists", "add --resume to continue it, or name another --output"
            ) from None
        except OSError as error:
            raise UsageError(f"{self.path}: cannot be written ({error.strerror})", "check --output") from None
        if self._csv and self._stream.seek(0, os.SEEK_END) == 0:
            self._stream.write(csv_row(self._columns))
        self.done.seal()
        return self

    def write(self, result: Score | Failure) -> None:
        """Append one row, in one write."""
        assert self._stream is not None
        rest = memoryview(self._row(result))
        with naming(self.path):
            while rest:  # a nearly full disk takes a part, and reports the error for the rest
                rest = rest[self._stream.write(rest) :]
            self.rows += 1
            if self.rows % _SYNC_ROWS == 0:
                os.fsync(self._stream.fileno())

    def _row(self, result: Score | Failure) -> bytes:
        if isinstance(result, Score) and not self._csv:
            return result.to_json().encode() + b"\n"
        row: dict[str, object] = {"source": result.source, "model": self._model}
        if isinstance(result, Score):
            row = dict(zip(CSV_FIELDS, csv_cells(result), strict=True))
        else:
            row["error"] = str(result.error)
        return csv_row(map(row.get, self._columns)) if self._csv else json.dumps(row).encode() + b"\n"

    def _mend(self) -> None:
        """Read the existing rows, and cut off the torn one that a crash may have left."""
        with self.path.open("r+b") as stream:
            whole = 0
            for number, end, raw in _records(stream, quoted=self._csv):
                if number == 1 and self._csv:
                    self._columns = _header(raw) or self._columns
                row = self._parse(raw)
                if row is None and number == 1 and self._csv and raw == csv_row(self._columns):
                    pass
                elif row is None:
                    if stream.read(1):
                        raise UsageError(
                            f"{self.path}: line {number} is not a score",
                            "name another --output, or repair it",
                        )
                    break  # its end never reached the disk
                elif row.model != self._model:
                    raise UsageError(
                        f"{self.path}: scored by the model {row.model}, and this is {self._model}",
                        "give the bundle it was started with, or another --output",
                    )
                else:
                    self.done.add(row.source, row.frame, row.failed)
                whole = end
            stream.seek(whole)
            longest = _LONGEST_CSV if self._csv else _LONGEST_JSON
            torn = stream.read(longest + 1)
            if len(torn) > longest or torn.count(b"\n") > _LINES_IN_ROW:
                raise UsageError(
                    f"{self.path}: damaged after its first {whole} bytes",
                    "name another --output, or repair it",
                )
            stream.truncate(whole)

    def _parse(self, raw: bytes) -> _Row | None:
        try:
            if self._csv:
                (cells,) = csv.reader(io.StringIO(raw.decode("utf-8", "surrogateescape"), newline=""))
                row = dict(zip(self._columns, cells, strict=True))
                if not row["error"]:
                    float(row["value"])
                frame = int(row["frame"]) if row["frame"] else None
            else:
                row = json.loads(raw)
                frame = row.get("frame")
            return _Row(str(row["source"]), row["model"], frame, bool(row.get("error")))
        except (ValueError, KeyError, TypeError, AttributeError, csv.Error):
            return None

    def close(self) -> None:
        """Flush the rows to the disk."""
        if self._stream is not None:
            os.fsync(self._stream.fileno())
            self._stream.close()


def _header(raw: bytes) -> tuple[str, ...] | None:
    """The columns that a CSV of this or an earlier version begins with."""
    names = tuple(raw.decode("utf-8", "replace").rstrip("\r\n").split(","))
    return names if _NEEDED <= set(names) <= set(RECORD_FIELDS) and raw == csv_row(names) else None


def _records(stream: IO[bytes], quoted: bool) -> Iterator[tuple[int, int, bytes]]:
    """(line number, offset of its end, bytes) of each complete record; an incomplete last one is left out."""
    end, number, record = 0, 1, b""
    for count, line in enumerate(iter(stream.readline, b""), 1):
        record += line
        # In a CSV, a quoted name may contain a line break.
        if not line.endswith(b"\n") or (quoted and record.count(b'"') % 2):
            continue
        end += len(record)
        yield number, end, record
        number, record = count + 1, b""
