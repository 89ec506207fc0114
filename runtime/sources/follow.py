"""Folders watched for new files, each given out once it is whole."""

from __future__ import annotations

import os
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from grmp_edge.errors import SourceError
from grmp_edge.image_files import is_jpeg, is_png, jpeg_is_complete, png_is_complete
from grmp_edge.runtime.sources.listing import natural_key
from grmp_edge.runtime.sources.name_set import Keys, name_key
from grmp_edge.runtime.sources.sources import Failure, is_known

__all__ = ["FollowConfig", "follow"]


@dataclass(frozen=True)
class FollowConfig:
    """When folders are looked at, and when a file in them counts as whole.

    By looking, not by the kernel's notices: those do not come from network shares, and get lost when
    many files arrive at once.
    """

    interval_s: float = 0.5  # between looks; longer by itself where a look takes long
    settle_s: float = 1.0  # neither size nor time may have changed for so long: nobody writes any more
    # A JPEG or PNG without its end is waited for, since a transfer may stall longer than settle_s; after
    # so long it is given out as it is, and told as cut short.
    patience_s: float = 30.0


@dataclass
class _Pending:
    """A file seen and not given out yet."""

    key: int
    modified: float  # of the file system's clock: only to put files in order
    since: float  # time.monotonic() when it was first seen in this state
    old: bool  # there, as it is, since the first look


def follow(
    folders: Sequence[Path],
    stop: threading.Event,
    config: FollowConfig | None = None,
    skip: Callable[[str], bool] = lambda _: False,
) -> Iterator[Path | Failure | None]:
    """Yield the files in and below ``folders``, those that are there and those that come, until ``stop``.

    A file is given out when it has stopped changing, and again when it is written anew. Files found in
    one look come in the order of their time stamps. Holds 8 bytes for each file that is there.

    Args:
        folders: hidden files and folders in them, and links to folders, are left out.
        stop: set it to end the iteration; from any thread or a signal handler.
        config: the times.
        skip: of the files that are there from the beginning, which (by path) were dealt with earlier.

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
            known = pending.get(path)
            if known is None or known.key != key:
                known = _Pending(key, status.st_mtime, time.monotonic(), first)
            if _settled(path, time.monotonic() - known.since, status.st_size, config):
                here.append(key)
                if not (known.old and skip(path)):
                    ready.append((known.modified, path))
            else:
                unsettled[path] = known
        seen, pending, first = Keys(here), unsettled, False
        yield from (Failure(path, _gone(path)) for path in sorted(missing - lost))
        lost = missing
        yield from (
            Path(path) for _, path in sorted(ready, key=lambda entry: (entry[0], natural_key(entry[1])))
        )
        yield None
        # A look at a million files takes seconds: never more than half of the time.
        stop.wait(max(config.interval_s, time.monotonic() - began))


def _settled(path: str, age_s: float, size: int, config: FollowConfig) -> bool:
    if age_s < config.settle_s or size == 0:
        # An empty file is one whose writing has not begun.
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
        return True  # what is wrong with it is told when it is read


def _files(folders: Sequence[Path], missing: set[str]) -> Iterator[tuple[str, os.stat_result]]:
    waiting = [str(folder) for folder in folders]
    while waiting:
        parent = waiting.pop()
        try:
            with os.scandir(parent) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    try:
                        if entry.is_dir():
                            if not entry.is_symlink():
                                waiting.append(entry.path)
                        elif is_known(entry.name):
                            yield entry.path, entry.stat()
                    except OSError:
                        continue  # gone since it was listed
        except OSError:
            missing.add(parent)


def _gone(folder: str) -> SourceError:
    return SourceError(
        f"{folder}: cannot be listed", "it is looked for again; check the path and permissions"
    )
