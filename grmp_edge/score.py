"""What the model says about one picture, and where that picture came from."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

__all__ = ["CERTAIN", "Interval", "MosScale", "Origin", "Score", "Tile"]

# From this value on, a cause is named; below it is a guess.
CERTAIN = 0.5


@dataclass(frozen=True)
class MosScale:
    """The scale of the training labels: a value of 0 is ``low``, a value of 1 is ``high``."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"a MOS scale needs low < high, got {self.low} and {self.high}")

    def to_mos(self, value: float) -> float:
        """Map a score in 0..1 to the scale of the labels."""
        return self.low + value * (self.high - self.low)

    def to_value(self, mos: float) -> float:
        """Map a label to 0..1 (min-max scaling); labels outside the scale are clipped."""
        return min(1.0, max(0.0, (mos - self.low) / (self.high - self.low)))


@dataclass(frozen=True)
class Interval:
    """How sure a calibrated bundle's scores are: people's opinion lies this near in ``coverage`` of cases."""

    half_width: float  # in values of 0..1
    coverage: float  # 0..1
    labels: int  # that it was measured on

    def around(self, value: float) -> tuple[float, float]:
        """The interval of a score, within 0..1."""
        return max(0.0, value - self.half_width), min(1.0, value + self.half_width)


@dataclass(frozen=True)
class Origin:
    """Where a picture came from: all that is needed of it once its pixels are prepared."""

    source: str  # path, safe address, or name of the camera
    frame: int | None = None  # index in a video or stream, from 0
    time_s: float | None = None  # position in a video file in seconds
    damage: str = ""  # what the decoder says is wrong with it
    note: str = ""  # what else makes a score of it doubtful


@dataclass(frozen=True)
class Tile:
    """The score of one native crop of a picture: its place in pixels, and its value in 0..1."""

    left: int
    top: int
    width: int
    height: int
    value: float


@dataclass(frozen=True)
class Score:
    """The quality of one picture or video frame; higher is better. Flat, as its JSON line is."""

    value: float  # 0..1: the probability of "high quality" against "low quality"
    source: str  # path, or name of the camera
    model: str  # id of the bundle
    mos: float | None = None  # the value on the scale of the training labels, if the bundle has one
    frame: int | None = None  # index in a video, from 0
    time_s: float | None = None  # position in a video file in seconds
    captured_s: float | None = None  # time.monotonic() when a live frame arrived
    age_ms: float | None = None  # from capture to result, live frames only
    latency_ms: float | None = None  # share of the batch's inference time, per picture
    causes: Mapping[str, float] | None = None  # what is wrong, each 0..1 on its own, if the model tells
    tiles: tuple[Tile, ...] | None = None  # of the native crops, on request
    damage: str | None = None  # parts of the picture are missing or wrong, in the decoder's words
    note: str | None = None  # what else makes the score doubtful, such as twelve bits stored in sixteen
    # Where people's opinion lies in most cases, by the bundle's calibration; scores whose intervals overlap
    # are not known to differ. On the scale of ``value``.
    interval: tuple[float, float] | None = None

    @property
    def origin(self) -> Origin:
        """Where the picture came from."""
        return Origin(self.source, self.frame, self.time_s, self.damage or "", self.note or "")

    @property
    def cause(self) -> str | None:
        """The likeliest cause, such as ``blur``, if any is likelier than not."""
        if not self.causes:
            return None
        name = max(self.causes, key=self.causes.__getitem__)
        return name if self.causes[name] >= CERTAIN else None

    def to_json(self) -> str:
        """One JSON line without the fields that do not apply."""
        fields = {name: value for name, value in asdict(self).items() if value is not None}
        for name, digits in (("value", 6), ("mos", 4), ("time_s", 4), ("age_ms", 2), ("latency_ms", 3)):
            if name in fields:
                fields[name] = round(fields[name], digits)
        if self.causes is not None:
            fields["causes"] = {name: round(value, 3) for name, value in self.causes.items()}
        if self.interval is not None:
            fields["interval"] = [round(end, 4) for end in self.interval]
        if self.tiles is not None:
            fields["tiles"] = [{**asdict(tile), "value": round(tile.value, 4)} for tile in self.tiles]
        return json.dumps(fields)  # ASCII: a file name that is not UTF-8 would break a UTF-8 line


class _Callable(ModuleType):
    """``from grmp_edge import score`` is the function, though the package has a module of that name."""

    def __call__(self, pictures: Any, data_range: float | None = None) -> Any:
        import grmp_edge

        function: Any = grmp_edge.__getattr__("score")
        return function(pictures, data_range)


sys.modules[__name__].__class__ = _Callable
