"""From what the user names (files, folders, globs) to a stream of decoded pictures."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from grmp_edge.errors import GrmpError, SourceError
from grmp_edge.preprocess import IMAGE_SUFFIXES, read_image
from grmp_edge.runtime.names import safe_name
from grmp_edge.runtime.video import VIDEO_SUFFIXES, Sampling, read_video

__all__ = ["Failure", "Picture", "Sampling", "list_sources", "natural_key", "read_sources"]


@dataclass(frozen=True)
class Picture:
    """A decoded picture or video frame."""

    image: npt.NDArray[np.uint8]  # (H, W, 3) RGB
    source: str  # the path it came from, or a name
    frame: int | None = None  # index in a video, from 0
    time_s: float | None = None  # position in a video in seconds


@dataclass(frozen=True)
class Failure:
    """Something that should have been a picture; it takes the picture's place in the stream."""

    source: str
    error: GrmpError  # str(error) is one line that names the source


def read_sources(
    sources: Iterable[str | Path], sampling: Sampling | None = None
) -> Iterator[Picture | Failure]:
    """Decode everything the sources name, one picture at a time, in order.

    A source is a picture or video file, a folder (searched below, files in natural order: 2 before 10;
    hidden ones left out) or a glob (``**`` goes down). A source or file that cannot be read becomes a
    :class:`Failure` and the stream goes on.

    Args:
        sources: the names, in the order wanted.
        sampling: which frames of videos to take; default all.
    """
    for found in list_sources(sources):
        if isinstance(found, Failure):
            yield found
            continue
        name = str(found)
        try:
            if found.suffix.lower() in VIDEO_SUFFIXES:
                for frame in read_video(found, sampling):
                    yield Picture(frame.image, name, frame.index, frame.time_s)
            else:
                yield Picture(read_image(found), name)
        except GrmpError as error:
            yield Failure(name, error)


def list_sources(sources: Iterable[str | Path]) -> Iterator[Path | Failure]:
    """The files that the sources name, a folder listed at a time, without opening them."""
    for source in sources:
        try:
            yield from _expand(str(source))
        except GrmpError as error:
            yield Failure(safe_name(str(source)), error)
        except OSError as error:
            reason = SourceError(f"{source}: cannot be listed ({error.strerror})", "check its permissions")
            yield Failure(str(source), reason)


def _expand(source: str) -> Iterator[Path | Failure]:
    path = Path(source)
    if "://" in source:
        raise SourceError(
            f"{safe_name(source)}: a stream has no end to score up to",
            "use grmp-edge watch; or give files, folders or globs",
        )
    if path.is_dir():
        yield from _some(_walk(path), f"{path}: no picture or video in this folder")
    elif path.exists() or not glob.has_magic(source):
        yield path  # a missing one is told when it is read, like any other that cannot be
    else:
        # Not Path.glob: the pattern may be absolute, and names beginning with a dot stay out.
        matches = sorted(glob.glob(source, recursive=True), key=natural_key)  # noqa: PTH207
        files = [Path(match) for match in matches if _known(match) and not Path(match).is_dir()]
        yield from _some(iter(files), f"{source}: matches no picture or video")


def _some(files: Iterator[Path | Failure], otherwise: str) -> Iterator[Path | Failure]:
    empty = True
    for file in files:
        empty = False
        yield file
    if empty:
        raise SourceError(otherwise, "check the path")


def _walk(folder: Path) -> Iterator[Path | Failure]:
    unreadable: list[OSError] = []
    # Links to folders are not followed: one to a parent would never end.
    for parent, folders, files in os.walk(folder, onerror=unreadable.append):
        folders[:] = sorted((name for name in folders if not name.startswith(".")), key=natural_key)
        for name in sorted(files, key=natural_key):
            if not name.startswith(".") and _known(name):
                yield Path(parent, name)
    for error in unreadable:
        reason = f"{error.filename}: cannot be listed ({error.strerror})"
        yield Failure(str(error.filename), SourceError(reason, "check its permissions"))


def _known(name: str) -> bool:
    suffix = Path(name).suffix.lower()
    return suffix in IMAGE_SUFFIXES or suffix in VIDEO_SUFFIXES


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sort key under which frame2 comes before frame10."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if index % 2 else (0, part) for index, part in enumerate(parts)]
