"""The folder of frames to label: pictures, and ``frames.jsonl`` with what is known of each.

Any folder of pictures will do; a picture that frames.jsonl does not list has no camera and no score.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import math
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from grmp_edge.errors import GrmpError, SourceError, UsageError
from grmp_edge.files import Closing, as_typed, is_text, replace_file
from grmp_edge.image_files import IMAGE_SUFFIXES
from grmp_edge.redact import slug
from grmp_edge.runtime.labelling.looks import LOOK_SIZE, SAME, look

__all__ = [
    "FRAMES",
    "SHOWN_BY_BROWSERS",
    "CollectConfig",
    "Frame",
    "FrameStore",
    "Outcome",
    "is_picture",
    "json_lines",
    "private_folder",
    "read_frames",
]

UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]
Outcome = Literal["kept", "same", "redundant"]

FRAMES = "frames.jsonl"
SHOWN_BY_BROWSERS = frozenset({".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp"})
# A tenth of a score makes a frame new where its looks do not: compression and noise hardly show in them.
_SCORE = SAME / 0.1
_HOUR = SAME  # radius of the clock's circle: midnight and noon are two of it apart
_CAMERA = SAME
# A frame must be so much farther from the others than the most redundant one, or the disk would never rest.
_GAIN = 1.1
_MOST = 5000  # pictures in a folder: the distances of all pairs take 100 MB


@dataclass(frozen=True)
class CollectConfig:
    """How much to keep."""

    limit: int = 500  # frames: ten sittings of fifty
    disk: int = 1_000_000_000  # bytes of pictures; a 1080p frame is about 1.3 MB

    def __post_init__(self) -> None:
        if not 2 <= self.limit <= 2000:  # distances of all pairs are held
            raise UsageError(f"--limit {self.limit}", "use 2 to 2000 frames")
        if self.disk < 1 << 20:
            raise UsageError(f"--disk {self.disk} bytes", "use 1MB or more")


@dataclass(frozen=True)
class Frame:
    """One picture to label, and what was known when it was taken."""

    image: str  # name of the file in the folder
    camera: str | None = None
    at: float | None = None  # seconds since 1970
    value: float | None = None  # score, 0..1
    cause: str | None = None
    causes: Mapping[str, float] | None = None
    model: str | None = None  # id of the bundle that scored it
    source: str | None = None  # file that it came from
    frame: int | None = None  # index in the stream or video
    time_s: float | None = None  # position in a video
    size: tuple[int, int] | None = None  # (width, height)
    look: Float32Array | None = None  # (LOOK_SIZE,)

    def to_json(self) -> str:
        """One line of frames.jsonl."""
        fields = {name: value for name, value in vars(self).items() if value is not None}
        for name, digits in (("at", 3), ("value", 6), ("time_s", 4)):
            if name in fields:
                fields[name] = round(fields[name], digits)
        if self.causes is not None:
            fields["causes"] = {name: round(value, 3) for name, value in self.causes.items()}
        if self.look is not None:
            fields["look"] = base64.b64encode(self.look.astype("<f2").tobytes()).decode()
        return json.dumps(fields)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Frame:
        """The frame of a line; unknown keys are ignored.

        Raises:
            ValueError: not a frame, or one outside its folder.
        """
        image = data.get("image")
        if not isinstance(image, str) or Path(image).name != image or image.startswith("."):
            raise ValueError(f"no name of a picture: {image!r}")
        known = {name: data[name] for name in cls.__dataclass_fields__ if name in data and name != "look"}
        for name, value in known.items():
            if name in ("at", "value", "time_s") and value is not None and not math.isfinite(value):
                raise ValueError(f"{name} is {value}")
        if known.get("causes") is not None:
            known["causes"] = {str(name): float(value) for name, value in known["causes"].items()}
        if "size" in known:
            width, height = map(int, known["size"])
            known["size"] = (width, height)
        raw = np.frombuffer(base64.b64decode(data.get("look", "")), "<f2").astype(np.float32)
        return cls(**known, look=raw if len(raw) == LOOK_SIZE and np.isfinite(raw).all() else None)


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, value) of each whole line of a file; one that a power failure cut is passed over.

    Raises:
        SourceError: the file is there and cannot be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})", "check its permissions") from None
    for number, line in enumerate(data.split(b"\n"), 1):
        with contextlib.suppress(ValueError, RecursionError):
            yield number, json.loads(line)


def read_frames(folder: Path) -> list[Frame]:
    """The pictures of a folder in the order of their names, with what frames.jsonl says of them.

    Those whose names are not UTF-8 are left out: no page can ask for them.

    Raises:
        SourceError: there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise SourceError(
            f"{folder}: no such folder", f"collect frames: grmp-edge collect CAMERA -o {as_typed(folder)}"
        )
    known = {frame.image: frame for frame in _listed(folder)}
    names = sorted(
        path.name
        for path in folder.iterdir()
        if is_picture(path.name) and is_text(path.name) and path.is_file()
    )
    if not names:
        raise SourceError(f"{folder}: no picture in it", f"grmp-edge collect CAMERA -o {as_typed(folder)}")
    return [known.get(name, Frame(name)) for name in names]


def is_picture(name: str) -> bool:
    """Whether a file is one to label, by its name."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")


def _listed(folder: Path) -> Iterator[Frame]:
    for _, data in json_lines(folder / FRAMES):
        with contextlib.suppress(ValueError, TypeError, AttributeError, OverflowError):
            yield Frame.from_json(data)


def private_folder(folder: Path) -> None:
    """Make a folder that only its owner can enter; one that is there stays as it is."""
    if not folder.is_dir():
        folder.mkdir(parents=True)
        folder.chmod(0o700)


class FrameStore(Closing):
    """A bounded set of frames that differ: in looks, in score, in the hour, in the camera.

    Frames like one that is there are dropped. Once it is full, the most redundant frame leaves, which may be
    the new one. Frames that ``keep`` names (labelled ones) never leave.
    """

    def __init__(
        self,
        folder: Path,
        config: CollectConfig | None = None,
        keep: Callable[[], frozenset[str]] = frozenset,
    ) -> None:
        """Open or make the folder.

        Raises:
            UsageError: another process collects into it.
            SourceError: it cannot be read.
        """
        self.folder, self.config, self._keep = folder, config or CollectConfig(), keep
        private_folder(folder)
        self._lock = _lock(folder)
        # Pictures that no collect has put here are the user's: they count, and never leave.
        self._own = {frame.image for frame in _listed(folder)}
        self.frames: list[Frame] = []
        with contextlib.suppress(SourceError):  # no picture yet
            self.frames = read_frames(folder)
        if len(self.frames) > _MOST:
            self._lock.close()
            raise UsageError(
                f"{folder}: {len(self.frames)} pictures are too many", "collect into a folder of their own"
            )
        self._sizes = [(folder / frame.image).stat().st_size for frame in self.frames]
        for index, frame in enumerate(self.frames):
            if frame.look is None:
                self.frames[index] = replace(frame, look=_look_of(folder / frame.image))
        room = self.config.limit + 1 + len(self.frames)
        self._places = np.zeros((room, LOOK_SIZE + 1), np.float32)
        self._apart = np.full((room, room), np.inf, np.float32)  # between all pairs, hours and cameras too
        for index, frame in enumerate(self.frames):
            self._put(index, frame)

    def add(self, frame: Frame, image: UInt8Array, data: bytes | None = None) -> Outcome:
        """Take in a frame if it adds something.

        Args:
            frame: what is known of it; ``image`` is only the ending of its file, and ``look`` is worked out.
            image: uint8 (H, W, 3) BGR.
            data: the bytes of its file, if it is one already; None: a PNG is made.

        Raises:
            OSError: it cannot be written; the set is as before.
        """
        frame = replace(frame, look=look(image), size=(image.shape[1], image.shape[0]))
        count = len(self.frames)
        self._put(count, frame)
        near = np.linalg.norm(self._places[:count] - self._places[count], axis=1)
        if count and float(near.min()) < SAME:
            return self._forget(count, "same")
        kept = self._keep()
        if count >= self.config.limit and self._victim(count + 1, kept) == count:
            return self._forget(count, "redundant")
        if data is None:
            data = _encode(image)
        frame = replace(frame, image=self._name(frame))
        leaving: list[int] = []
        while count + 1 - len(leaving) > self.config.limit or (
            sum(self._sizes) + len(data) - sum(self._sizes[index] for index in leaving) > self.config.disk
        ):
            victim = self._victim(count + 1, kept, leaving)
            if victim == count:
                return self._forget(count, "redundant")
            leaving.append(victim)
        self._write(frame, data, leaving)
        return "kept"

    def unlike(self, names: Collection[str], least: float) -> int:
        """How many frames are at least ``least`` away, in looks and score, from all those that are named."""
        among = np.array([frame.image in names for frame in self.frames], bool)
        places = self._places[: len(self.frames)]
        if not among.any():
            return len(self.frames)
        apart = np.linalg.norm(places[~among][:, None] - places[among][None], axis=2)
        return int((apart.min(axis=1) >= least).sum()) if apart.size else 0

    def close(self) -> None:
        """Let another process collect here."""
        self._lock.close()

    def _put(self, index: int, frame: Frame) -> None:
        assert frame.look is not None
        self._places[index, :-1] = frame.look
        self._places[index, -1] = _SCORE * (frame.value if frame.value is not None else 0.5)
        squares = ((self._places[:index] - self._places[index]) ** 2).sum(axis=1)
        for other, earlier in enumerate(self.frames[:index]):
            if frame.at is not None and earlier.at is not None:
                squares[other] += (2 * _HOUR * math.sin(math.pi * (frame.at - earlier.at) / 86400)) ** 2
            squares[other] += _CAMERA**2 * (frame.camera != earlier.camera)
        self._apart[index, :index] = self._apart[:index, index] = np.sqrt(squares)
        self._apart[index, index] = np.inf

    def _forget(self, index: int, outcome: Outcome) -> Outcome:
        self._apart[index, :] = self._apart[:, index] = np.inf
        return outcome

    def _victim(self, count: int, kept: frozenset[str], leaving: Sequence[int] = ()) -> int:
        """The most redundant of the first ``count``, of which the last is new."""
        apart = self._apart[:count, :count].copy()
        apart[list(leaving), :] = apart[:, list(leaving)] = np.inf
        two = np.partition(apart, min(1, count - 1), axis=1)[:, :2]
        new, free = count - 1, self._own - kept
        victim = next(
            index
            for index in np.lexsort((two[:, -1], two[:, 0])).tolist()
            if index == new or (index not in leaving and self.frames[index].image in free)
        )
        return new if two[new, 0] < _GAIN * two[victim, 0] else int(victim)

    def _name(self, frame: Frame) -> str:
        at = time.strftime("%Y%m%dT%H%M%S", time.gmtime(frame.at if frame.at is not None else time.time()))
        stem = f"{at}-{slug(frame.camera or 'frame')[-60:]}"
        number, name = 1, f"{stem}{frame.image}"
        while (self.folder / name).exists():
            number += 1
            name = f"{stem}-{number}{frame.image}"
        return name

    def _write(self, frame: Frame, data: bytes, leaving: Sequence[int]) -> None:
        """The picture first, then the list, then what leaves: at any moment each listed file is there."""
        with replace_file(self.folder / frame.image, private=True) as file:
            file.write_bytes(data)
        stays = [index for index in range(len(self.frames)) if index not in leaving]
        frames = [*(self.frames[index] for index in stays), frame]
        own = self._own | {frame.image}
        try:
            with replace_file(self.folder / FRAMES, private=True) as file:
                lines = (f"{each.to_json()}\n" for each in frames if each.image in own)
                file.write_text("".join(lines), encoding="utf-8")
        except BaseException:  # a picture that is not listed would count as the user's own, for ever
            (self.folder / frame.image).unlink(missing_ok=True)
            raise
        for index in leaving:
            (self.folder / self.frames[index].image).unlink(missing_ok=True)
        rows = [*stays, len(self.frames)]
        self._places[: len(rows)] = self._places[rows]
        apart = self._apart[np.ix_(rows, rows)].copy()
        self._apart[:] = np.inf
        self._apart[: len(rows), : len(rows)] = apart
        self._sizes = [*(self._sizes[index] for index in stays), len(data)]
        self.frames, self._own = frames, own


def _encode(image: UInt8Array) -> bytes:
    # Without loss: a JPEG of quality 95 moves scores by .04, of 98 by .03 (tests/field/saving.py).
    ok, data = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 3])
    if not ok:
        raise GrmpError("a frame cannot be encoded as PNG")
    return data.tobytes()


def _look_of(path: Path) -> Float32Array:
    from grmp_edge.preprocess import read_image

    try:
        return look(read_image(path), bgr=False)
    except GrmpError:  # a file of the user's own that is no picture: far from all others
        return np.full(LOOK_SIZE, 10.0, np.float32)


def _lock(folder: Path) -> IO[str]:
    stream = (folder / ".collect.lock").open("a", encoding="utf-8")
    os.fchmod(stream.fileno(), 0o600)
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        stream.close()
        raise UsageError(
            f"{folder}: another grmp-edge collect writes into it", "end that one, or give another folder"
        ) from None
    return stream
