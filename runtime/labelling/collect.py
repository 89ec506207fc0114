"""From cameras, clips and folders to a folder of frames worth labelling."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from grmp_edge.errors import GrmpError
from grmp_edge.preprocess import swap_red_blue
from grmp_edge.redact import safe_name
from grmp_edge.runtime.labelling.frames import SHOWN_BY_BROWSERS, Frame, FrameStore, Outcome
from grmp_edge.runtime.live.live import Live, LiveScore
from grmp_edge.runtime.scorer import Scorer
from grmp_edge.runtime.sources.sources import Failure, Picture, Sampling, read_sources
from grmp_edge.score import Score

__all__ = ["Collected", "collect_cameras", "collect_files"]

_BATCH = 4  # decoded pictures held at once: 100 MB at 4K


@dataclass(frozen=True)
class Collected:
    """What became of one frame."""

    camera: str
    outcome: Outcome


Step: TypeAlias = Collected | Failure


def collect_files(
    scorer: Scorer, store: FrameStore, sources: Iterable[str], every_s: float, stopped: Callable[[], bool]
) -> Iterator[Step]:
    """Take frames from pictures, folders and clips; of a clip, one every ``every_s`` seconds.

    Yields:
        Each frame's outcome, and a Failure for what cannot be read.
    """
    waiting: list[Picture] = []
    for item in read_sources(sources, Sampling(fps=1 / every_s)):
        if stopped():
            break
        if isinstance(item, Failure):
            yield item
            continue
        waiting.append(item)
        if len(waiting) == _BATCH:
            yield from _finish(scorer, store, waiting)
            waiting = []
    yield from _finish(scorer, store, waiting)


def _finish(scorer: Scorer, store: FrameStore, pictures: list[Picture]) -> Iterator[Step]:
    views = [scorer.prepare(picture.image) for picture in pictures]
    scores = scorer.score_prepared([picture.origin for picture in pictures], views)
    for picture, score in zip(pictures, scores, strict=True):
        path = Path(picture.source)
        clip = picture.frame is not None
        # Of a picture file its own bytes, for its pixels must not be compressed twice.
        data = path.read_bytes() if not clip and path.suffix.lower() in SHOWN_BY_BROWSERS else None
        at = path.stat().st_mtime if path.is_file() else time.time()
        camera = path.stem if clip else path.absolute().parent.name
        frame = _frame(score, camera, at, path.suffix.lower() if data else ".png", safe_name(picture.source))
        try:
            yield Collected(camera, store.add(frame, swap_red_blue(picture.image), data))
        except GrmpError as error:
            yield Failure(picture.source, error)


def collect_cameras(store: FrameStore, live: Live, until_s: float) -> Iterator[Collected]:
    """Take frames from cameras until ``until_s`` (monotonic), or until :meth:`Live.stop`.

    Yields:
        Each frame's outcome.
    """
    live.until_s = until_s  # dead cameras give no events to look at the clock by
    for event in live.events():
        if not isinstance(event, LiveScore):
            continue
        captured_s = event.score.captured_s or time.monotonic()
        frame = _frame(event.score, event.camera, time.time() - (time.monotonic() - captured_s), ".png")
        yield Collected(event.camera, store.add(frame, event.image))


def _frame(score: Score, camera: str, at: float, suffix: str, source: str | None = None) -> Frame:
    return Frame(
        suffix, safe_name(camera), at, score.value, score.cause, score.causes, score.model, source,
        score.frame, score.time_s,
    )  # fmt: skip
