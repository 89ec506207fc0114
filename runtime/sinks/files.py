"""Sinks on disk: JSON lines with rotation, CSV, SQLite, and saved frames."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sqlite3
import stat
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import cv2

from grmp_edge.errors import GrmpError, UsageError
from grmp_edge.files import csv_row, replace_file, umask
from grmp_edge.redact import slug
from grmp_edge.runtime.sinks.queue import EarlierLostError, Message, Record, Writer

__all__ = ["CsvWriter", "FrameWriter", "JsonlWriter", "SqliteWriter"]

_COLUMNS = (
    "at", "event", "camera", "value", "mos", "age_ms", "latency_ms", "frame", "model", "state", "picture",
    "kind", "raised", "limit", "detail", "cause", "causes",
)  # fmt: skip


_FEWEST = 15  # columns of the first version


def _cell(record: Record, name: str) -> object:
    value = record.get(name)
    return json.dumps(value) if isinstance(value, dict) else value


_PRIVATE = 0o600  # what a camera saw, and when somebody was there, is nobody else's on the machine


def _mode(mode: int | str) -> int:
    """Permissions as a number, or as octal digits.

    Raises:
        UsageError: they are neither, or the owner could not write.
    """
    try:
        number = int(mode, 8) if isinstance(mode, str) else mode
    except ValueError:
        number = 0
    if not 0o600 <= number <= 0o666:
        raise UsageError(f"mode is {mode!r}", 'use "0600" (the owner alone), "0640" or "0644"')
    return number


class _Lines:
    """A file to which lines are appended, each whole or not at all, even on a full disk."""

    def __init__(self, path: Path, first: bytes = b"", mode: int | str = _PRIVATE) -> None:
        """``first``: the first line of a new file; ``mode``: its permissions."""
        self._path, self._first, self._mode = path, first, _mode(mode)
        self._stream = self._open()
        self._cut = _ends_within_a_line(path)
        self._sized = path.is_file()  # a pipe or a device has no size
        self._begun = False

    def _open(self) -> IO[bytes]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return open(
            self._path, "ab", buffering=0, opener=lambda path, flags: os.open(path, flags, self._mode)
        )

    def size(self) -> int:
        """Bytes in the file; reopens it if it was moved or deleted, as logrotate does."""
        if not self._stream.closed:
            ours = os.fstat(self._stream.fileno())
            try:
                there = self._path.stat()
            except FileNotFoundError:
                self._stream.close()
            else:
                if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                    return ours.st_size
                self._stream.close()
        self._stream = self._open()
        self._cut = _ends_within_a_line(self._path)
        return os.fstat(self._stream.fileno()).st_size

    def append(self, line: bytes) -> None:
        """Append a line, newline included.

        Raises:
            OSError: no part of the line is in the file.
        """
        size = self.size()
        # A line cut by a power failure is ended first, so that only that line is lost.
        first = b"" if size or (self._begun and not self._sized) else self._first
        data = (b"\n" if self._cut else first) + line
        written = self._stream.write(data)
        if written != len(data):
            self._cut = True
            self._stream.truncate(size)
            self._cut = _ends_within_a_line(self._path)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        self._cut, self._begun = False, True

    def close(self) -> None:
        """Close the file; the next line reopens it."""
        self._stream.close()


def _ends_within_a_line(path: Path) -> bool:
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe or a device cannot be read back
        return False
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        if not size:
            return False
        stream.seek(size - 1)
        return stream.read(1) != b"\n"


class JsonlWriter(Writer):
    """One JSON line per event, not buffered; rotated by size: FILE, FILE.1 (newest) ... FILE.keep."""

    def __init__(
        self, path: Path, max_bytes: int = 64 << 20, keep: int = 5, mode: int | str = _PRIVATE
    ) -> None:
        """64 MB five times: a month at one score a second, in files small enough to open."""
        self._path, self._max_bytes, self._keep = path, max_bytes, max(1, keep)
        self._lines = _Lines(path, mode=mode)

    def write(self, message: Message) -> None:
        """Append a line."""
        line = json.dumps(message.record).encode("ascii") + b"\n"
        size = self._lines.size()
        if size and size + len(line) > self._max_bytes:
            self._rotate()
        self._lines.append(line)

    def _rotate(self) -> None:
        self._lines.close()
        for number in range(self._keep - 1, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number}")
            if older.exists():
                older.replace(self._path.with_name(f"{self._path.name}.{number + 1}"))
        self._path.replace(self._path.with_name(f"{self._path.name}.1"))

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


class CsvWriter(Writer):
    """One row per event, not buffered; appends to an existing file, with the columns that it has."""

    def __init__(self, path: Path, mode: int | str = _PRIVATE) -> None:
        self._columns = _columns_of(path)
        self._lines = _Lines(path, csv_row(self._columns, "backslashreplace"), mode)

    def write(self, message: Message) -> None:
        """Append a row."""
        self._lines.append(
            csv_row([_cell(message.record, name) for name in self._columns], "backslashreplace")
        )

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


def _columns_of(path: Path) -> tuple[str, ...]:
    """The columns of a CSV of events; those of an older version lack the last ones.

    Raises:
        UsageError: it is another CSV.
    """
    if path.is_file():  # a pipe cannot be read back
        with path.open("rb") as stream:
            first = stream.readline(1000)
        for count in range(len(_COLUMNS), 0, -1):
            if first == csv_row(_COLUMNS[:count]):
                return _COLUMNS[:count]
        # One whose first lines were cut off, or whose header a power failure cut, is still one.
        if first.endswith(b"\n") and first.count(b",") + 1 < _FEWEST:
            raise UsageError(f"{path}: a CSV of something else, and no events", "name another file")
    return _COLUMNS


class SqliteWriter(Writer):
    """A table ``events`` with one row per event; rows older than ``keep_days`` are deleted."""

    _COMMIT_S = 1.0  # each commit waits for the disk, and wears out flash

    def __init__(self, path: Path, keep_days: float = 90.0, mode: int | str = _PRIVATE) -> None:
        """90 days at one score a second are 8 million rows, about 1 GB."""
        path.parent.mkdir(parents=True, exist_ok=True)
        permissions = _mode(mode)
        with contextlib.suppress(OSError):  # SQLite's own message is the better one
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, permissions))  # its journals get the same
        self._keep_s = keep_days * 86400.0
        try:
            # Opened here, so that a wrong path fails at once; only the sink's thread uses it.
            self._base = sqlite3.connect(path, check_same_thread=False)
            self._base.execute("PRAGMA journal_mode=WAL")  # readers do not block the writer
            columns = ", ".join(f'"{name}"' for name in _COLUMNS)
            self._base.execute(f"CREATE TABLE IF NOT EXISTS events ({columns})")
            there = {str(row[1]) for row in self._base.execute("PRAGMA table_info(events)")}
            for name in _COLUMNS:  # a table of an older version lacks the last ones
                if name not in there:
                    self._base.execute(f'ALTER TABLE events ADD COLUMN "{name}"')
            self._base.execute('CREATE INDEX IF NOT EXISTS events_at ON events ("at")')
            self._base.commit()
        except sqlite3.Error as error:
            raise GrmpError(f"{path}: not usable as a database ({error})", "check the path") from None
        self._insert = f"INSERT INTO events ({columns}) VALUES ({', '.join('?' * len(_COLUMNS))})"
        self._committed = self._cleaned = -1e9
        self._pending = 0  # rows in the open transaction

    def write(self, message: Message) -> None:
        """Insert a row; commits at most once a second."""
        with self._transaction(current=1):
            self._pending += 1
            self._base.execute(self._insert, [_cell(message.record, name) for name in _COLUMNS])
            self._commit_due()

    def idle(self) -> None:
        """Commit what is older than a second."""
        with self._transaction():
            self._commit_due()

    def _commit_due(self) -> None:
        now = time.monotonic()
        if now - self._committed < self._COMMIT_S:
            return
        if now - self._cleaned >= 3600.0:
            self._base.execute('DELETE FROM events WHERE "at" < ?', [time.time() - self._keep_s])
            self._cleaned = now
        self._commit()

    def _commit(self) -> None:
        self._base.commit()
        self._committed, self._pending = time.monotonic(), 0

    @contextlib.contextmanager
    def _transaction(self, current: int = 0) -> Iterator[None]:
        """On failure, such as a full disk, the whole open transaction is lost, and is reported as lost."""
        try:
            yield
        except sqlite3.Error as error:
            earlier, self._pending = self._pending - current, 0
            with contextlib.suppress(sqlite3.Error):
                self._base.rollback()
            raise EarlierLostError(f"{type(error).__name__}: {error}", earlier) from None

    def close(self) -> None:
        """Commit and close."""
        try:
            with self._transaction():
                self._commit()
        finally:
            self._base.close()


class FrameWriter(Writer):
    """Saves the frame of each raised alert as a JPEG, the newest ``keep`` of them."""

    needs_image = True

    def __init__(self, path: Path, keep: int = 500, quality: int = 90, mode: int | str = _PRIVATE) -> None:
        """``path`` is a folder; 500 frames at 1080p are about 200 MB."""
        path.mkdir(parents=True, exist_ok=True)
        self._folder, self._keep, self._quality = path, max(1, keep), quality
        self._mode = _mode(mode)
        # In the order of saving: names would mislead once the clock has been set back.
        self._saved = deque(sorted(path.glob("alert-*.jpg")))

    def wants(self, record: Record) -> bool:
        """Alerts that are raised."""
        return record["event"] == "alert" and record["raised"]

    def write(self, message: Message) -> None:
        """Save the frame, whole or not at all."""
        record = message.record
        if message.image is None or record["event"] != "alert" or "frame" not in record:
            return
        at = time.strftime("%Y%m%dT%H%M%S", time.gmtime(record["at"]))
        ok, data = cv2.imencode(".jpg", message.image, [cv2.IMWRITE_JPEG_QUALITY, self._quality])
        if not ok:
            raise GrmpError(f"a frame of {record['camera']} cannot be encoded")
        name = f"alert-{at}-{record['frame']}-{slug(record['camera'])[-80:]}-{record['kind']}.jpg"
        with replace_file(self._folder / name, private=True) as file:
            file.write_bytes(data.tobytes())
            file.chmod(self._mode & ~umask())
        if self._folder / name not in self._saved:
            self._saved.append(self._folder / name)
        while len(self._saved) > self._keep:
            self._saved.popleft().unlink(missing_ok=True)
