"""Watching folders for new files: each is yielded once it is complete."""

from __future__ import annotations

import os
import stat
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from grmp_edge.errors import SourceError
from grmp_edge.image_files import is_jpeg, is_png, jpeg_is_complete, png_is_complete
from grmp_edge.runtime.sources.listing import natural_key, scan
from grmp_edge.runtime.sources.name_set import Keys, name_key
from grmp_edge.runtime.sources.sources import Failure, is_known, regular

__all__ = ["FollowConfig", "follow"]


@dataclass(frozen=True)
class FollowConfig:
    """How often folders are scanned, and when a file in them counts as complete.

    Polling, not inotify: that misses changes on network shares, and events when many files arrive at once.
    """

    interval_s: float = 0.5  # between scans; longer if a scan itself takes longer
    settle_s: float = 1.0  # size and modification time unchanged for this long: the writer has finished
    # A JPEG or PNG without its end is given more time, since a transfer may stall for longer than settle_s;
    # after this long it is yielded as it is, and reported as cut short.
    patience_s: float = 30.0


@dataclass
class _Pending:
    """A file seen but not yielded yet."""

    key: int
    modified: float  # by the file system's clock: only to sort files
    since: float  # time.monotonic() when it was first seen in this state
    old: bool  # unchanged since the first scan


def follow(
    folders: Sequence[Path],
    stop: threading.Event,
    config: FollowConfig | None = None,
    skip: Callable[[str], bool] = lambda _: False,
) -> Iterator[Path | Failure | None]:
    """Yield the files in ``folders`` and below, existing and new ones, until ``stop``.

    A file is yielded once it has stopped changing, and again after it is rewritten. The files of one scan
    come in the order of their time stamps. Needs 8 bytes of memory per file in the folders.

    Args:
        folders: hidden files and folders in them, and links to folders, are skipped.
        stop: set it to end the iteration; from any thread or a signal handler.
        config: the times.
        skip: which of the files that exist at the start (by path) are to be left out.

    Yields:
        Paths; a Failure when a folder can no longer be listed; None before each wait.
    """
    config = config or FollowConfig()
    seen, pending, lost = Keys(), dict[str, _Pending](), set[str]()
    first = True
    while not stop.is_set():
        began = time.monotonic()
        here, ready, missing = array("Q"), list[tuple[float, str]](), set[str]()
        unsettled: dict[str, _Pending] = {}
        for path, status in _files(folders, missing):
            key = name_key(f"{status.st_size} {status.st_mtime_ns} {path}")
            if key in seen:
                here.append(key)
                continue
            file = pending.get(path)
            if file is None or file.key != key:
                file = _Pending(key, status.st_mtime, time.monotonic(), first)
            special = not stat.S_ISREG(status.st_mode)
            if special or _settled(path, time.monotonic() - file.since, status.st_size, config):
                here.append(key)
                if not (file.old and skip(path)):
                    ready.append((file.modified, path))
            else:
                unsettled[path] = file
        seen, pending, first = Keys(here), unsettled, False
        yield from (Failure(path, _gone(path)) for path in sorted(missing - lost))
        lost = missing
        yield from (
            regular(Path(path))
            for _, path in sorted(ready, key=lambda entry: (entry[0], natural_key(entry[1])))
        )
        yield None
        # Scanning a million files takes seconds: at most half of the time is spent on it.
        stop.wait(max(config.interval_s, time.monotonic() - began))


def _settled(path: str, age_s: float, size: int, config: FollowConfig) -> bool:
    if age_s < config.settle_s or size == 0:
        # An empty file is one that its writer has only just created.
        return size == 0 and age_s >= config.patience_s
    return age_s >= config.patience_s or _has_its_end(path)


def _has_its_end(path: str) -> bool:
    try:
        with open(path, "rb") as stream:  # noqa: PTH123
            head = stream.read(16)
            if is_jpeg(head):
                return jpeg_is_complete(head + stream.read())
            return not is_png(head) or png_is_complete(head + stream.read())
    except OSError:
        return True  # what is wrong with it is reported when it is read


def _files(folders: Sequence[Path], missing: set[str]) -> Iterator[tuple[str, os.stat_result]]:
    waiting = [str(folder) for folder in folders]
    while waiting:
        parent = waiting.pop()
        try:
            for entry in scan(parent, is_known, waiting):
                try:
                    status = entry.stat()
                except OSError:
                    continue  # deleted since it was listed
                yield entry.path, status
        except OSError:
            missing.add(parent)


def _gone(folder: str) -> SourceError:
    return SourceError(f"{folder}: cannot be listed", "it is tried again; check the path and permissions")
