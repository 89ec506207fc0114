"""From what the user names (files, folders, globs) to a stream of decoded pictures."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from grmp_edge.errors import GrmpError, SourceError
from grmp_edge.preprocess import IMAGE_SUFFIXES, decode_image, read_image
from grmp_edge.redact import safe_name
from grmp_edge.runtime.sources.http import fetch_picture
from grmp_edge.runtime.sources.listing import natural_key, sort_names, walk
from grmp_edge.runtime.sources.stdin import STDIN, RawFormat, read_raw_frames, read_stdin
from grmp_edge.runtime.video.files import VIDEO_SUFFIXES, Sampling, read_video_bgr

__all__ = [
    "Decoded",
    "Failure",
    "Listed",
    "Picture",
    "Remote",
    "Sampling",
    "Stdin",
    "decode_listed",
    "is_known",
    "list_sources",
    "natural_key",
    "read_sources",
]


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


@dataclass(frozen=True)
class Remote:
    """A picture on a web server, by its http or https address."""

    url: str

    def __str__(self) -> str:
        """The address as it may be shown."""
        return safe_name(self.url)


@dataclass(frozen=True)
class Stdin:
    """Standard input, named ``-``: raw frames if ``raw`` says which, else one encoded picture."""

    raw: RawFormat | None = None

    def __str__(self) -> str:
        """What results call it."""
        return STDIN


# What a source turns out to be, before it is opened; str() is its name in results.
Listed: TypeAlias = Path | Remote | Stdin


@dataclass(frozen=True)
class Decoded:
    """Pixels as the decoder gave them; they hold until the next are asked for."""

    image: npt.NDArray[np.uint8]  # (H, W, 3)
    bgr: bool  # the order of the channels; turning it is left until the picture is small
    frame: int | None = None
    time_s: float | None = None


def read_sources(
    sources: Iterable[str | Path], sampling: Sampling | None = None
) -> Iterator[Picture | Failure]:
    """Decode everything the sources name, one picture at a time, in order.

    A source is a picture or video file, a folder (searched below, files in natural order: 2 before 10;
    hidden ones left out), a glob (``**`` goes down), ``-`` for a picture from standard input, or the http
    address of a picture. A source or file that cannot be read becomes a :class:`Failure` and the stream
    goes on.

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
            for item in decode_listed(found, sampling or Sampling()):
                image = item.image
                if item.bgr:
                    image = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)
                yield Picture(image, name, item.frame, item.time_s)
        except GrmpError as error:
            yield Failure(name, error)


def decode_listed(found: Listed, sampling: Sampling, after: int = -1) -> Iterator[Decoded]:
    """Open and decode what :func:`list_sources` found.

    Args:
        found: the file, address or input.
        sampling: which frames of a video to take.
        after: frames of a video up to this index are passed over.

    Raises:
        GrmpError: it cannot be read; frames before the damage have been yielded.
    """
    if isinstance(found, Stdin) and found.raw is not None:
        for index, image in read_raw_frames(found.raw, sampling.every):
            yield Decoded(image, found.raw.bgr, index)
    elif isinstance(found, Stdin):
        yield Decoded(decode_image(read_stdin(), STDIN), False)
    elif isinstance(found, Remote):
        yield Decoded(decode_image(fetch_picture(found.url), str(found)), False)
    elif found.suffix.lower() in VIDEO_SUFFIXES:
        for frame in read_video_bgr(found, sampling, after):
            yield Decoded(frame.image, True, frame.index, frame.time_s)
    else:
        yield Decoded(read_image(found), False)


def list_sources(sources: Iterable[str | Path], raw: RawFormat | None = None) -> Iterator[Listed | Failure]:
    """What the sources name, without opening it and without holding the list; ``raw`` is for ``-``."""
    for source in sources:
        try:
            if str(source) == "-":
                yield Stdin(raw)
            else:
                yield from _expand(str(source))
        except GrmpError as error:
            yield Failure(safe_name(str(source)), error)
        except OSError as error:
            reason = SourceError(f"{source}: cannot be listed ({error.strerror})", "check its permissions")
            yield Failure(str(source), reason)


def _expand(source: str) -> Iterator[Listed | Failure]:
    path = Path(source)
    if source.startswith(("http://", "https://")):
        yield Remote(source)
    elif "://" in source:
        raise SourceError(
            f"{safe_name(source)}: a stream has no end to score up to",
            "use grmp-edge watch; or give files, folders or globs",
        )
    elif path.is_dir():
        yield from _some(_walk(path), f"{path}: no picture or video in this folder")
    elif path.exists() or not glob.has_magic(source):
        yield path  # a missing one is told when it is read, like any other that cannot be
    else:
        # Not Path.glob: the pattern may be absolute, and names beginning with a dot stay out.
        matches = sort_names(glob.iglob(source, recursive=True))  # noqa: PTH207
        files = (Path(match) for match in matches if is_known(match) and not Path(match).is_dir())
        yield from _some(files, f"{source}: matches no picture or video")


def _some(files: Iterable[Path | Failure], otherwise: str) -> Iterator[Path | Failure]:
    empty = True
    for file in files:
        empty = False
        yield file
    if empty:
        raise SourceError(otherwise, "check the path")


def _walk(folder: Path) -> Iterator[Path | Failure]:
    unreadable: list[OSError] = []
    yield from map(Path, walk(folder, is_known, unreadable.append))
    for error in unreadable:
        reason = f"{error.filename}: cannot be listed ({error.strerror})"
        yield Failure(str(error.filename), SourceError(reason, "check its permissions"))


def is_known(name: str) -> bool:
    """Whether a file name ends as pictures or videos do."""
    suffix = Path(name).suffix.lower()
    return suffix in IMAGE_SUFFIXES or suffix in VIDEO_SUFFIXES
