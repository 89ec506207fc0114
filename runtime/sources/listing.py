"""Folders listed in natural order without a list of all names in memory, however many there are."""

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

__all__ = ["SORT_IN_MEMORY", "natural_key", "sort_names", "walk"]

# Names sorted at a time: their keys take about 60 MB. More are sorted in runs on disk and merged.
SORT_IN_MEMORY = 100_000


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sort key under which frame2 comes before frame10."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if index % 2 else (0, part) for index, part in enumerate(parts)]


def sort_names(names: Iterable[str], in_memory: int = SORT_IN_MEMORY) -> Iterator[str]:
    """Names in natural order; at most ``in_memory`` of them are held, the rest waits in temporary files.

    Names that compare equal (01 and 1) keep the order of their characters, so that the result depends on
    the names alone and never on the order in which a file system lists them.
    """
    source = iter(names)
    first = sorted(islice(source, in_memory), key=_total_key)
    if len(first) < in_memory:
        yield from first
        return
    with ExitStack() as stack:
        runs: list[IO[bytes]] = []
        while first:
            # Removed with the stack. A NUL cannot be part of a name, a line break can.
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
    folder: Path, wanted: Callable[[str], bool], unreadable: Callable[[OSError], object]
) -> Iterator[str]:
    """The files below ``folder`` whose name is ``wanted``, in natural order, a folder's own files first.

    Names beginning with a dot are left out, and links to folders are not followed: one to a parent would
    never end. A folder is listed when its turn comes; one that cannot be is told to ``unreadable``.
    """
    # Deepest last: what is still to be listed, each level in reverse order.
    waiting = [str(folder)]
    while waiting:
        parent = waiting.pop()
        below: list[str] = []
        try:
            yield from (os.path.join(parent, name) for name in sort_names(_files(parent, wanted, below)))  # noqa: PTH118
        except OSError as error:
            unreadable(error)
        waiting += [os.path.join(parent, name) for name in sorted(below, key=_total_key, reverse=True)]  # noqa: PTH118


def _files(parent: str, wanted: Callable[[str], bool], below: list[str]) -> Iterator[str]:
    with os.scandir(parent) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if not _is_folder(entry):
                if wanted(entry.name):
                    yield entry.name
            elif not entry.is_symlink():
                below.append(entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # gone, or a link in a circle: told when it is read as a file
        return False
