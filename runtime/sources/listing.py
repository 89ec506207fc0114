"""Listing folders in natural order without holding all names in memory, however many there are."""

from __future__ import annotations

import heapq
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import IO

__all__ = ["SORT_IN_MEMORY", "natural_key", "scan", "sort_names", "walk"]

# Names sorted in memory: their keys take about 60 MB. More are sorted in runs on disk and merged.
SORT_IN_MEMORY = 100_000


def natural_key(name: str) -> list[tuple[int, str]]:
    """A sort key that puts frame2 before frame10."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if index % 2 else (0, part) for index, part in enumerate(parts)]


def sort_names(names: Iterable[str], in_memory: int = SORT_IN_MEMORY) -> Iterator[str]:
    """Sort names in natural order, holding at most ``in_memory`` of them; the rest go to temporary files.

    Equal numbers (01 and 1) are ordered by their characters, so that the result depends on the names alone
    and never on the order in which a file system lists them.
    """
    source = iter(names)
    first = sorted(islice(source, in_memory), key=_total_key)
    if len(first) < in_memory:
        yield from first
        return
    with ExitStack() as stack:
        runs: list[IO[bytes]] = []
        while first:
            # Deleted with the stack. Names may contain line breaks, but no NUL.
            run = stack.enter_context(tempfile.TemporaryFile(prefix="grmp-edge-names-"))
            run.writelines(os.fsencode(name) + b"\0" for name in first)
            run.seek(0)
            runs.append(run)
            first = sorted(islice(source, in_memory), key=_total_key)
        yield from heapq.merge(*map(_read_names, runs), key=_total_key)


def _total_key(name: str) -> tuple[list[tuple[int, str]], str]:
    return natural_key(name), name


def _read_names(run: IO[bytes]) -> Iterator[str]:
    rest = b""
    while chunk := run.read(1 << 16):
        *whole, rest = (rest + chunk).split(b"\0")
        yield from map(os.fsdecode, whole)


def walk(
    folder: Path, accepts: Callable[[str], bool], unreadable: Callable[[OSError], object]
) -> Iterator[str]:
    """Yield the files below ``folder`` whose name is accepted, in natural order, a folder's own files first.

    As :func:`scan` does, it skips names that begin with a dot and links to folders. A folder is listed when
    its turn comes; ``unreadable`` is called with the error of one that cannot be listed.
    """
    waiting = [str(folder)]  # the folders to list, the next one last
    while waiting:
        parent = waiting.pop()
        below: list[str] = []
        try:
            names = sort_names(entry.name for entry in scan(parent, accepts, below))
            yield from (os.path.join(parent, name) for name in names)  # noqa: PTH118
        except OSError as error:
            unreadable(error)
        waiting += sorted(below, key=_total_key, reverse=True)


def scan(parent: str, accepts: Callable[[str], bool], below: list[str]) -> Iterator[os.DirEntry[str]]:
    """Yield the files of one folder whose name is accepted, unsorted; its subfolders are added to ``below``.

    Names that begin with a dot are skipped, and so are links to folders: one to a parent would never end.

    Raises:
        OSError: the folder cannot be listed.
    """
    with os.scandir(parent) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if not _is_folder(entry):
                if accepts(entry.name):
                    yield entry
            elif not entry.is_symlink():
                below.append(entry.path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # deleted, or a circular link: reported when it is read as a file
        return False
