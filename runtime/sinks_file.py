"""Sinks on disk: JSON lines with rotation, CSV, SQLite, and saved frames."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import sqlite3
import time
from pathlib import Path

import cv2

from grmp_edge.errors import GrmpError
from grmp_edge.files import replace_file
from grmp_edge.runtime.sinks import Message, Record

__all__ = ["CsvWriter", "FrameWriter", "JsonlWriter", "SqliteWriter"]

_COLUMNS = (
    "at", "event", "camera", "value", "mos", "age_ms", "latency_ms", "frame", "model", "state", "picture",
    "kind", "raised", "limit", "detail",
)  # fmt: skip


class JsonlWriter:
    """One JSON line an event, each flushed; rotated by size: FILE, FILE.1 (newest) ... FILE.keep."""

    def __init__(self, path: Path, max_bytes: int = 64 << 20, keep: int = 5) -> None:
        """64 MB five times: a month of one score a second, and small enough to open."""
        self._path, self._max_bytes, self._keep = path, max_bytes, max(1, keep)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("ab", buffering=0)
        _end_line(path)

    def wants(self, record: Record) -> bool:
        """All of them."""
        return True

    def write(self, message: Message) -> None:
        """Append a line."""
        line = json.dumps(message.record).encode("ascii") + b"\n"
        if self._stream.closed:  # a rotation failed
            self._stream = self._path.open("ab", buffering=0)
        size = self._path.stat().st_size
        if size and size + len(line) > self._max_bytes:
            self._rotate()
            size = 0
        if self._stream.write(line) != len(line):
            self._stream.truncate(size)  # no half line stays
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def _rotate(self) -> None:
        self._stream.close()
        for number in range(self._keep - 1, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number}")
            if older.exists():
                older.replace(self._path.with_name(f"{self._path.name}.{number + 1}"))
        self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        self._stream = self._path.open("ab", buffering=0)

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def _end_line(path: Path) -> None:
    """A line cut by a power failure gets its end, so that only it is lost and not the next."""
    with path.open("r+b") as stream:
        size = stream.seek(0, 2)
        if size:
            stream.seek(size - 1)
            if stream.read(1) != b"\n":
                stream.write(b"\n")


class CsvWriter:
    """One row an event, each flushed; a file that exists is continued."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("a", encoding="utf-8", newline="")
        self._writer = csv.writer(self._stream, lineterminator="\n")
        if self._stream.tell() == 0:
            self._writer.writerow(_COLUMNS)
        else:
            _end_line(path)

    def wants(self, record: Record) -> bool:
        """All of them."""
        return True

    def write(self, message: Message) -> None:
        """Append a row."""
        self._writer.writerow([message.record.get(name) for name in _COLUMNS])
        self._stream.flush()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


class SqliteWriter:
    """A table ``events``, one row an event; rows older than ``keep_days`` are deleted."""

    _COMMIT_S = 1.0  # each commit waits for the disk, and flash wears by it

    def __init__(self, path: Path, keep_days: float = 90.0) -> None:
        """90 days of one score a second are 8 million rows, about 1 GB."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._keep_s = keep_days * 86400.0
        try:
            # Opened here, so that a wrong path is told at once; used by the sink's thread alone.
            self._base = sqlite3.connect(path, check_same_thread=False)
            self._base.execute("PRAGMA journal_mode=WAL")  # readers do not stop the writer
            columns = ", ".join(f'"{name}"' for name in _COLUMNS)
            self._base.execute(f"CREATE TABLE IF NOT EXISTS events ({columns})")
            self._base.execute('CREATE INDEX IF NOT EXISTS events_at ON events ("at")')
            self._base.commit()
        except sqlite3.Error as error:
            raise GrmpError(f"{path}: not usable as a database ({error})", "check the path") from None
        self._insert = f"INSERT INTO events VALUES ({', '.join('?' * len(_COLUMNS))})"
        self._committed = self._cleaned = 0.0

    def wants(self, record: Record) -> bool:
        """All of them."""
        return True

    def write(self, message: Message) -> None:
        """Insert a row; committed at most once a second."""
        self._base.execute(self._insert, [message.record.get(name) for name in _COLUMNS])
        self.idle()

    def idle(self) -> None:
        """Commit what has waited for a second."""
        now = time.monotonic()
        if now - self._committed >= self._COMMIT_S:
            if now - self._cleaned >= 3600.0:
                self._base.execute('DELETE FROM events WHERE "at" < ?', [time.time() - self._keep_s])
                self._cleaned = now
            self._base.commit()
            self._committed = now

    def close(self) -> None:
        """Commit and close."""
        self._base.commit()
        self._base.close()


class FrameWriter:
    """Saves the frame of each raised alert as a JPEG, the newest ``keep`` of them."""

    needs_image = True

    def __init__(self, path: Path, keep: int = 500, quality: int = 90) -> None:
        """``path`` is a folder; 500 frames at 1080p are some 200 MB."""
        path.mkdir(parents=True, exist_ok=True)
        self._folder, self._keep, self._quality = path, max(1, keep), quality

    def wants(self, record: Record) -> bool:
        """Raised alerts."""
        return record["event"] == "alert" and bool(record["raised"])

    def write(self, message: Message) -> None:
        """Save the frame, whole or not at all."""
        if message.image is None:
            return
        camera = re.sub(r"[^A-Za-z0-9.-]+", "_", message.record["camera"]).strip("._") or "camera"
        at = time.strftime("%Y%m%dT%H%M%S", time.gmtime(message.record["at"]))
        ok, data = cv2.imencode(".jpg", message.image, [cv2.IMWRITE_JPEG_QUALITY, self._quality])
        if not ok:
            raise GrmpError(f"a frame of {message.record['camera']} cannot be encoded")
        name = f"alert-{at}-{message.record['frame']}-{camera[-80:]}-{message.record['kind']}.jpg"
        with replace_file(self._folder / name) as file:
            file.write_bytes(data.tobytes())
        for old in sorted(self._folder.glob("alert-*.jpg"))[: -self._keep]:
            old.unlink(missing_ok=True)

    def close(self) -> None:
        """Nothing is open."""
