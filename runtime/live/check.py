"""One look at each of many cameras: is it there, does it show a scene, is it as good as usual?"""

from __future__ import annotations

import contextlib
import fcntl
import json
import queue
import statistics
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from grmp_edge.errors import GrmpError, SourceError, UsageError, first_line
from grmp_edge.files import replace_file
from grmp_edge.preprocess import fit_within, opencv_silent
from grmp_edge.redact import scrub
from grmp_edge.runtime.live.config import CameraConfig
from grmp_edge.runtime.live.no_picture import synthetic
from grmp_edge.runtime.scorer import Scorer
from grmp_edge.runtime.video.capture import DamagedFrame, open_capture
from grmp_edge.score import Origin, Score

__all__ = ["PROBLEMS", "THREADS", "CameraCheck", "CheckConfig", "History", "Past", "Verdict", "check_cameras"]

UInt8Array = npt.NDArray[np.uint8]
Verdict = Literal["offline", "black", "no_signal", "low", "worse", "ok"]

THREADS = "check"  # the name of those that look

# Worst first, which is the order of reports; all but ok make the command fail.
PROBLEMS: tuple[Verdict, ...] = ("offline", "black", "no_signal", "low", "worse")
_USUAL = 5  # checks whose median is a camera's usual score
_END_S = 1.0  # for threads to end; those that hang are left to themselves
_TICK = 0.25  # seconds between looks for a camera that never answers
_SHOWN = (480, 480)  # pixels that the picture to show fits into: what is kept of a thousand cameras
_DAMAGED = 25  # frames in a row; a stream joined in its middle has a few until the next key frame


@dataclass(frozen=True)
class CheckConfig:
    """How to look. Times are in seconds."""

    frames: int = 3  # scored of each camera; their median is the score, so that one passer-by does not decide
    apart_s: float = 0.5  # between them at least
    workers: int = 32  # cameras looked at side by side: mostly waiting for the network
    drop: float = 0.15  # below the usual score is `worse`: what a plain fault takes away
    # `low` whatever came before. The model takes plain scenes for bad ones, and a healthy camera may have
    # .25, so that this limit finds only what is ruined; streams.toml's alert.below goes before it.
    below: float = 0.15
    timeout_s: float | None = None  # to open, and for a read; None: each camera's own

    def __post_init__(self) -> None:
        if self.frames < 1 or self.workers < 1 or self.apart_s < 0:
            raise UsageError("a check needs a frame and a worker", "use 1 or more")
        if not (0 < self.drop <= 1 and 0 <= self.below < 1):
            raise UsageError(f"limits of {self.drop} and {self.below}", "use numbers between 0 and 1")


@dataclass(frozen=True)
class CameraCheck:
    """What one look found."""

    camera: str
    verdict: Verdict
    score: float | None = None  # median, 0..1; None: no picture of a scene
    cause: str | None = None  # the likeliest, of the frame in the middle
    before: float | None = None  # the last check's score by the same model
    detail: str = ""  # why it is offline, or which limit it is below
    seconds: float = 0.0  # from opening to the last frame
    image: UInt8Array | None = None  # (H, W, 3) BGR, small

    def to_json(self) -> str:
        """One JSON line, without the picture and without the fields that do not apply."""
        own = asdict(replace(self, image=None))
        fields = {name: value for name, value in own.items() if value is not None}
        for name, digits in (("score", 6), ("before", 6), ("seconds", 2)):
            if name in fields:
                fields[name] = round(fields[name], digits)
        return json.dumps(fields)


@dataclass(frozen=True)
class Past:
    """What earlier checks by the same model found of a camera; scores in 0..1."""

    usual: tuple[float, ...]  # the first good checks, at most ``_USUAL``: what adapts would follow a decay
    last: float

    @property
    def limit_from(self) -> float:
        """The score that a fall is measured from."""
        return statistics.median(self.usual)


class History:
    """The earlier checks, in one small file; another model starts anew."""

    def __init__(self, path: Path, model: str) -> None:
        """Read ``path``, if it is there.

        Raises:
            UsageError: it is no file of checks.
        """
        self._path, self._model = path, model
        self.cameras = self._read()

    def _read(self) -> dict[str, Past]:
        try:
            data = json.loads(self._path.read_text(encoding="utf-8"))
            cameras = {
                str(name): Past(tuple(map(float, own["usual"])), float(own["last"]))
                for name, own in data["cameras"].items()
                if own["usual"]
            }
            if not all(0 <= value <= 1 for past in cameras.values() for value in (*past.usual, past.last)):
                raise ValueError("a score outside 0..1")
            return cameras if data["model"] == self._model else {}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise UsageError(
                f"{self._path}: no file of checks ({first_line(error)})",
                "remove it, or give another --history",
            ) from None

    def save(self, checks: Sequence[CameraCheck], accept: bool = False) -> None:
        """Take in new checks and write the file; a camera without a score keeps what it has.

        What another check has written of other cameras meanwhile stays.

        Args:
            checks: the new ones.
            accept: their scores are the new usual, whatever was before.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_name(f".{self._path.name}.lock").open("a") as lock:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            self.cameras = self._read()
            for check in checks:
                if check.score is None:
                    continue
                past = None if accept else self.cameras.get(check.camera)
                usual = past.usual if past is not None else ()
                if accept or (check.verdict == "ok" and len(usual) < _USUAL):
                    usual = (*usual, check.score)
                if usual:
                    self.cameras[check.camera] = Past(usual, check.score)
            cameras = {name: asdict(own) for name, own in self.cameras.items()}
            with replace_file(self._path) as temporary:
                text = json.dumps({"model": self._model, "cameras": cameras}, indent=1)
                temporary.write_text(f"{text}\n", encoding="utf-8")


def check_cameras(
    scorer: Scorer,
    cameras: Sequence[CameraConfig],
    config: CheckConfig,
    past: Mapping[str, Past],
) -> Iterator[CameraCheck]:
    """Look at all cameras side by side; yields each as it is done.

    A camera whose driver or server never answers is given up, and its thread left to itself.

    Args:
        scorer: scores the frames; used by several threads.
        cameras: which; their names should differ.
        config: how to look.
        past: of each camera that was checked before.
    """
    waiting: queue.SimpleQueue[CameraConfig] = queue.SimpleQueue()
    done: queue.SimpleQueue[CameraCheck] = queue.SimpleQueue()
    running: dict[str, float] = {}
    for camera in cameras:
        waiting.put(_quick(camera, config))

    def work() -> None:
        while True:
            try:
                camera = waiting.get_nowait()
            except queue.Empty:
                return
            running[camera.label] = time.monotonic() + _limit(camera, config)
            done.put(_look(scorer, camera, config, past.get(camera.label)))

    def start() -> None:
        # Daemons: neither Ctrl-C nor the end waits for a camera that does not answer.
        threads.append(threading.Thread(target=work, daemon=True, name=THREADS))
        threads[-1].start()

    given_up: set[str] = set()
    threads: list[threading.Thread] = []
    left = len(cameras)
    with opencv_silent():
        for _ in range(min(config.workers, left)):
            start()
        while left:
            with contextlib.suppress(queue.Empty):
                check = done.get(timeout=_TICK)
                running.pop(check.camera, None)
                if check.camera not in given_up:
                    left -= 1
                    yield check
                continue
            late = [name for name, until in list(running.items()) if time.monotonic() > until]
            for name in late:
                del running[name]
                given_up.add(name)
                start()  # in its place
                left -= 1
                yield _offline(name, past.get(name), "it never answers")
    until = time.monotonic() + _END_S
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))


def _quick(camera: CameraConfig, config: CheckConfig) -> CameraConfig:
    """As one look needs it: every frame in order, read without the relay, and a file only once."""
    quick = replace(camera, policy="every", low_delay=False, loop=False)
    if config.timeout_s is not None:
        quick = replace(quick, open_timeout_s=config.timeout_s, read_timeout_s=config.timeout_s)
    return quick


def _limit(camera: CameraConfig, config: CheckConfig) -> float:
    reads = config.frames * (camera.read_timeout_s + config.apart_s)
    return camera.open_timeout_s + reads + camera.hang_grace_s


def _look(scorer: Scorer, camera: CameraConfig, config: CheckConfig, past: Past | None) -> CameraCheck:
    began = time.monotonic()
    try:
        frames = _frames(camera, config)
        shown = [frame for frame in frames if synthetic(frame) is None]
        if not shown:
            verdict = synthetic(frames[0]) or "black"
            check = CameraCheck(
                camera.label, verdict, before=_last(past), image=fit_within(frames[0], *_SHOWN)
            )
        else:
            scores = scorer.score_prepared(
                [Origin(camera.label)] * len(shown), [scorer.prepare(frame, bgr=True) for frame in shown]
            )
            check = _judge(camera, config, scores, shown, past)
    except GrmpError as error:
        detail = scrub(str(error)).removeprefix(f"{camera.label}: ")
        check = _offline(camera.label, past, detail)
    except Exception as error:  # a decoder's own: one camera must not end the check of the others
        check = _offline(camera.label, past, scrub(f"{type(error).__name__}: {first_line(error)}"))
    return replace(check, seconds=time.monotonic() - began)


def _last(past: Past | None) -> float | None:
    return None if past is None else past.last


def _offline(camera: str, past: Past | None, detail: str) -> CameraCheck:
    return CameraCheck(camera, "offline", before=_last(past), detail=detail)


def _frames(camera: CameraConfig, config: CheckConfig) -> list[UInt8Array]:
    """A few frames, some time apart; fewer if the source ends.

    Raises:
        SourceError: there is none.
    """
    frames: list[UInt8Array] = []
    capture = open_capture(camera)
    next_s, damaged = 0.0, 0
    try:
        while len(frames) < config.frames:
            try:
                capture.grab()
                if capture.passed_over() or time.monotonic() < next_s:
                    continue
                frames.append(capture.retrieve())
                next_s, damaged = time.monotonic() + config.apart_s, 0
            except DamagedFrame:
                damaged += 1
                if damaged > _DAMAGED:
                    raise
            except SourceError:
                if frames:
                    break
                raise
    finally:
        capture.close()
    return frames


def _judge(
    camera: CameraConfig,
    config: CheckConfig,
    scores: Sequence[Score],
    frames: Sequence[UInt8Array],
    past: Past | None,
) -> CameraCheck:
    middle = sorted(range(len(scores)), key=lambda index: scores[index].value)[len(scores) // 2]
    value = statistics.median(score.value for score in scores)
    below = config.below if camera.alert.below is None else camera.alert.below
    verdict: Verdict = "ok"
    detail = ""
    if value < below:
        verdict, detail = "low", f"below {below:g}"
    elif past is not None and value <= past.limit_from - config.drop:
        verdict, detail = "worse", f"{past.limit_from - value:.2f} below its usual {past.limit_from:.2f}"
    image, cause = fit_within(frames[middle], *_SHOWN), scores[middle].cause
    return CameraCheck(camera.label, verdict, value, cause, _last(past), detail, image=image)
