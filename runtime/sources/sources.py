"""From names (files, folders, globs, addresses) to a stream of decoded pictures."""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from grmp_edge.errors import GrmpError, SourceError
from grmp_edge.image_files import IMAGE_SUFFIXES, special_kind
from grmp_edge.preprocess import Decoded, decode_picture, read_picture
from grmp_edge.redact import safe_name
from grmp_edge.runtime.sources.http import FetchConfig, fetch_picture
from grmp_edge.runtime.sources.listing import natural_key, sort_names, walk
from grmp_edge.runtime.sources.stdin import STDIN, RawFormat, read_raw_frames, read_stdin
from grmp_edge.runtime.video.files import VIDEO_SUFFIXES, Frame, Sampling, read_video
from grmp_edge.score import Origin

__all__ = [
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
    "regular",
]


@dataclass(frozen=True)
class Picture:
    """A decoded picture or video frame."""

    image: npt.NDArray[np.uint8]  # (H, W, 3) RGB
    source: str  # its path, or a name
    frame: int | None = None  # index in a video, from 0
    time_s: float | None = None  # position in a video in seconds
    damage: str = ""  # what the decoder says is wrong with it
    note: str = ""  # what else makes a score of it doubtful

    @property
    def origin(self) -> Origin:
        """Where it came from."""
        return Origin(self.source, self.frame, self.time_s, self.damage, self.note)


@dataclass(frozen=True)
class Failure:
    """A source that could not be read; it takes the picture's place in the stream."""

    source: str
    error: GrmpError  # str(error) is one line that names the source


@dataclass(frozen=True)
class Remote:
    """A picture on a web server, by its http or https address."""

    url: str
    private: str = "named"  # as of FetchConfig

    def __str__(self) -> str:
        """The address without its credentials."""
        return safe_name(self.url)


@dataclass(frozen=True)
class Stdin:
    """Standard input, given as ``-``: raw frames in the format ``raw``, else one encoded picture."""

    raw: RawFormat | None = None

    def __str__(self) -> str:
        """Its name in results."""
        return STDIN


# One input, not opened yet; str() is its name in results.
Listed: TypeAlias = Path | Remote | Stdin


def read_sources(
    sources: Iterable[str | Path], sampling: Sampling | None = None
) -> Iterator[Picture | Failure]:
    """Decode everything the sources name, one picture at a time, in order.

    A source is a picture or video file, a folder (searched recursively in natural order, 2 before 10, hidden
    files skipped), a glob (``**`` matches any depth), ``-`` for a picture on standard input, or the http
    address of a picture. One that cannot be read becomes a :class:`Failure`, and the stream continues.

    Args:
        sources: the names.
        sampling: which frames of videos to take; default all.
    """
    for item in list_sources(sources):
        if isinstance(item, Failure):
            yield item
            continue
        try:
            for frame in decode_listed(item, sampling or Sampling()):
                image = frame.rgb()
                yield Picture(image, str(item), frame.index, frame.time_s, frame.damage, frame.note)
        except GrmpError as error:
            yield Failure(str(item), error)


def decode_listed(item: Listed, sampling: Sampling, after: int = -1) -> Iterator[Frame]:
    """Open and decode one input from :func:`list_sources`.

    Args:
        item: the file, address or standard input.
        sampling: which frames of a video to take.
        after: skip frames of a video up to this index.

    Raises:
        GrmpError: it cannot be read; frames before the damage have been yielded.
    """
    if isinstance(item, Stdin) and item.raw is not None:
        for index, image in read_raw_frames(item.raw, sampling.every):
            yield Frame(image, item.raw.bgr, index)
    elif isinstance(item, Stdin):
        yield _frame(decode_picture(read_stdin(), STDIN))
    elif isinstance(item, Remote):
        yield _frame(decode_picture(fetch_picture(item.url, FetchConfig(private=item.private)), str(item)))
    elif item.suffix.lower() in VIDEO_SUFFIXES:
        yield from read_video(item, sampling, after)
    else:
        yield _frame(read_picture(item))


def _frame(picture: Decoded) -> Frame:
    return Frame(picture.pixels, bgr=False, damage=picture.damage, note=picture.note)


def list_sources(
    sources: Iterable[str | Path], raw: RawFormat | None = None, private: str = "named"
) -> Iterator[Listed | Failure]:
    """List what the sources name, lazily and without opening it.

    Args:
        sources: the names.
        raw: the format of ``-``.
        private: which private addresses are fetched from, as of FetchConfig.
    """
    for source in sources:
        try:
            if str(source) == "-":
                yield Stdin(raw)
            else:
                yield from _expand(str(source), private)
        except GrmpError as error:
            yield Failure(safe_name(str(source)), error)
        except OSError as error:
            reason = SourceError(f"{source}: cannot be listed ({error.strerror})", "check its permissions")
            yield Failure(str(source), reason)


def _expand(source: str, private: str) -> Iterator[Listed | Failure]:
    path = Path(source)
    if not source:  # as of a variable that is not set; a Path would be the working directory
        raise SourceError("an empty source", "give a file, a folder, a glob or -")
    if source.startswith(("http://", "https://")):
        yield Remote(source, private)
    elif "://" in source:
        raise SourceError(
            f"{safe_name(source)}: a live stream never ends",
            "use grmp-edge watch; or give files, folders or globs",
        )
    elif path.is_dir():
        yield from _some(_walk(path), f"{path}: no picture or video in this folder")
    elif safe_name(source) != source and not path.exists():
        raise SourceError(
            f"{safe_name(source)}: no such file", "check the path; an address begins with http://"
        )
    elif path.exists() or not glob.has_magic(source):
        yield path  # if missing, reported on reading, like any other that is unreadable
    else:
        # Not Path.glob: the pattern may be absolute, and must not match names that begin with a dot.
        matches = sort_names(glob.iglob(source, recursive=True))  # noqa: PTH207
        files = (Path(match) for match in matches if is_known(match) and not Path(match).is_dir())
        yield from _some(map(regular, files), f"{source}: matches no picture or video")


def _some(files: Iterable[Path | Failure], if_none: str) -> Iterator[Path | Failure]:
    empty = True
    for file in files:
        empty = False
        yield file
    if empty:
        raise SourceError(if_none, "check the path")


def _walk(folder: Path) -> Iterator[Path | Failure]:
    unreadable: list[OSError] = []
    yield from map(regular, map(Path, walk(folder, is_known, unreadable.append)))
    for error in unreadable:
        reason = f"{error.filename}: cannot be listed ({error.strerror})"
        yield Failure(str(error.filename), SourceError(reason, "check its permissions"))


def regular(path: Path) -> Path | Failure:
    """A file that was found, not named: reading a pipe, device or socket among others would never end."""
    with contextlib.suppress(OSError):  # reported on reading
        if kind := special_kind(path):
            return Failure(str(path), SourceError(f"{path}: a {kind}, skipped", "remove it"))
    return path


def is_known(name: str) -> bool:
    """Whether a file name has the suffix of a picture or video."""
    suffix = Path(name).suffix.lower()
    return suffix in IMAGE_SUFFIXES or suffix in VIDEO_SUFFIXES
