"""The report of ``score``: how the scores lie, the worst and best pictures, causes, clips over time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, groupby
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from grmp_edge.errors import GrmpError
from grmp_edge.image_files import IMAGE_SUFFIXES
from grmp_edge.preprocess import read_picture, swap_red_blue
from grmp_edge.runtime.report import printable
from grmp_edge.runtime.reports.page import data_uri, write_report
from grmp_edge.runtime.sources.sources import Failure
from grmp_edge.runtime.video.files import VIDEO_SUFFIXES, read_video
from grmp_edge.score import Score

__all__ = ["ScoreReport", "pictures_of"]

UInt8Array = npt.NDArray[np.uint8]
_Ranked: TypeAlias = "tuple[float, int, Score]"  # what is least leaves first

_BINS = 40
_WORST, _BEST = 12, 4  # pictures shown
_OF_A_CLIP = 2  # of these, at most: neighbouring frames look alike
_FAILURES = 100  # named; the others are counted
_CLIPS = 50  # drawn; the others are in the figures only
_POINTS = 400  # of a clip's line: more than a page is wide


@dataclass
class _Line:
    """A clip's scores in at most ``_POINTS`` stretches of equal length, whatever its length."""

    each: int = 1  # frames of a stretch; doubled when there are too many
    lows: list[float] = field(default_factory=list)
    sums: list[float] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    frames: int = 0
    unit: str = "s"

    def add(self, at: float, value: float) -> None:
        if self.frames % self.each == 0:
            if len(self.lows) == _POINTS:
                pairs = range(0, _POINTS, 2)
                self.lows = [min(self.lows[i : i + 2]) for i in pairs]
                self.sums = [sum(self.sums[i : i + 2]) for i in pairs]
                self.starts = self.starts[::2]
                self.each *= 2
            self.lows.append(value)
            self.sums.append(value)
            self.starts.append(at)
        else:
            self.lows[-1] = min(self.lows[-1], value)
            self.sums[-1] += value
        self.frames += 1

    def points(self) -> list[tuple[float, float, float]]:
        counts = [self.each] * len(self.lows)
        counts[-1] = self.frames - self.each * (len(self.lows) - 1)
        return [
            (at, low, total / n)
            for at, low, total, n in zip(self.starts, self.lows, self.sums, counts, strict=True)
        ]


@dataclass(frozen=True)
class _Shown:
    score: Score
    picture: str  # a data URI; empty: it could not be read again


class ScoreReport:
    """Takes in results one by one, in bounded memory, and writes them as one HTML file."""

    def __init__(self, model: str) -> None:
        """``model``: the bundle's id, and what the user calls it."""
        self._model = model
        self._counts = [0] * _BINS
        self._causes: Counter[str] = Counter()
        self._failures: list[Failure] = []
        self._failed = self._scored = 0
        self._total = 0.0
        # The number breaks ties, so that scores are never compared; of equals the earlier stays.
        self._order = count()
        self._worst: list[_Ranked] = []
        self._best: list[_Ranked] = []
        self._lines: dict[str, _Line] = {}

    def add(self, result: Score | Failure) -> None:
        """Take in one result."""
        if isinstance(result, Failure):
            self._failed += 1
            if len(self._failures) < _FAILURES:
                self._failures.append(result)
            return
        self._scored += 1
        self._total += result.value
        self._counts[min(_BINS - 1, int(result.value * _BINS))] += 1
        if result.cause is not None:
            self._causes[result.cause] += 1
        number = -next(self._order)
        _keep(self._worst, (-result.value, number, result), _WORST)
        _keep(self._best, (result.value, number, result), _BEST)
        if result.frame is not None and (result.source in self._lines or len(self._lines) < _CLIPS):
            line = self._lines.setdefault(result.source, _Line())
            if result.time_s is None:
                line.unit = "frame"
            line.add(result.frame if result.time_s is None else result.time_s, result.value)

    def __str__(self) -> str:
        """One line: how many, how good, the worst, the causes."""
        if not self._worst:
            return "nothing scored"
        worst = max(self._worst)[2]
        frame = "" if worst.frame is None else f" frame {worst.frame}"
        causes = ", ".join(f"{name} {number}" for name, number in self._causes.most_common(3))
        return (
            f"{self._scored} scored, mean {self._total / self._scored:.3f}, worst {worst.value:.3f} "
            f"({printable(worst.source)}{frame})" + (f"; causes: {causes}" if causes else "")
        )

    def write(self, path: Path) -> None:
        """Write the report; pictures that are shown are read once more.

        Raises:
            OSError: it cannot be written.
        """
        worst = [score for *_, score in sorted(self._worst, reverse=True)]
        best = [score for *_, score in sorted(self._best, reverse=True)]
        if self._scored <= _WORST:
            best = []  # all are shown already
        pictures = pictures_of([*worst, *best])
        shown = [[_Shown(score, pictures.get(_key(score), "")) for score in each] for each in (worst, best)]
        context = {
            "model": self._model,
            "scored": self._scored,
            "failed": self._failed,
            "mean": self._total / self._scored if self._scored else None,
            "counts": self._counts,
            "causes": self._causes.most_common(),
            "worst": shown[0],
            "best": shown[1],
            "lines": {name: (line.points(), line.unit) for name, line in self._lines.items()},
            "failures": [(failure.source, str(failure.error)) for failure in self._failures],
        }
        write_report(path, "scores.html.j2", context)


def _keep(extremes: list[_Ranked], item: _Ranked, most: int) -> None:
    """Add an item to a short list; what is least leaves, so that neither it nor a clip has too many."""
    if len(extremes) == most and item < min(extremes):
        return
    extremes.append(item)
    same = [own for own in extremes if own[2].source == item[2].source]
    if len(same) > _OF_A_CLIP:
        extremes.remove(min(same))
    elif len(extremes) > most:
        extremes.remove(min(extremes))


def _key(score: Score) -> tuple[str, int | None]:
    return score.source, score.frame


def pictures_of(scores: Sequence[Score]) -> dict[tuple[str, int | None], str]:
    """Small pictures of what was scored, by source and frame, as addresses of an ``img``.

    What is no file, or has gone, has none. A clip is read once.
    """
    return dict(_pictures(scores))


def _pictures(scores: Sequence[Score]) -> Iterator[tuple[tuple[str, int | None], str]]:
    def of(score: Score) -> tuple[str, int]:
        return score.source, -1 if score.frame is None else score.frame

    for source, group in groupby(sorted(scores, key=of), key=lambda score: score.source):
        path = Path(source)
        frames = {score.frame for score in group}
        try:
            if not path.is_file():
                continue
            if path.suffix.lower() in VIDEO_SUFFIXES:
                indices = {frame for frame in frames if frame is not None}
                for frame in read_video(path, after=min(indices) - 1):
                    if frame.index in indices:
                        image = frame.image if frame.bgr else swap_red_blue(frame.image)
                        yield (source, frame.index), data_uri(image)
                    if frame.index is not None and frame.index >= max(indices):
                        break
            elif path.suffix.lower() in IMAGE_SUFFIXES:
                yield (source, None), data_uri(swap_red_blue(read_picture(path).pixels))
        except (GrmpError, OSError):
            continue  # it was scored; only its picture is missing
