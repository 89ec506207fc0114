"""Limits for the alarms of a camera, proposed from what it showed for a while."""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass

import numpy as np

from grmp_edge.errors import UsageError

__all__ = ["Calibration", "Proposal", "seconds"]

_FEWEST = 10  # minutes with scores, below which nothing is proposed
_QUIET, _USUAL, _ROUGH = 0.06, 0.11, 0.18  # largest falls for sensitive, normal and calm as they are
_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True)
class Proposal:
    """What was seen of a camera, and limits that would have raised nothing."""

    camera: str
    minutes: int  # with scores
    usual: float  # median of its minutes
    low: float  # their lowest hundredth
    fall: float  # the largest fall of two minutes below the hour before
    preset: str
    drop: float | None  # None: as the preset says
    below: float

    def alert(self) -> str:
        """As a setting of streams.toml."""
        drop = "" if self.drop is None else f", drop = {self.drop:.2f}"
        return f'alert = {{ preset = "{self.preset}", below = {self.below:.2f}{drop} }}'


class Calibration:
    """Collects scores. Not thread-safe."""

    def __init__(self) -> None:
        self._minutes: dict[str, list[float]] = {}
        self._now: dict[str, tuple[int, list[float]]] = {}
        self._model = ""

    def add(self, camera: str, at: float, value: float, model: str) -> None:
        """Take a score, 0..1, of a time in seconds since 1970. Another model's begin anew."""
        if model != self._model:
            self._model, self._minutes, self._now = model, {}, {}
        minute, values = self._now.get(camera, (int(at // 60), []))
        if minute != int(at // 60):
            self._minutes.setdefault(camera, []).append(statistics.median(values))
            minute, values = int(at // 60), []
        values.append(value)
        self._now[camera] = (minute, values)

    def proposals(self) -> list[Proposal]:
        """Limits for each camera that gave scores in at least ten minutes."""
        return [
            _propose(camera, minutes) for camera, minutes in self._minutes.items() if len(minutes) >= _FEWEST
        ]


def _propose(camera: str, minutes: list[float]) -> Proposal:
    usual, low = statistics.median(minutes), float(np.percentile(minutes, 1))
    falls = [
        statistics.median(minutes[max(0, index - 60) : index]) - max(minutes[index : index + 2])
        for index in range(5, len(minutes) - 1)
    ]
    fall = max(0.0, *falls)
    preset = "sensitive" if fall < _QUIET else "normal" if fall < _USUAL else "calm"
    # Beyond calm: a quarter more than what was seen, but so that it can be reached.
    drop = None if fall < _ROUGH else min(1.25 * fall, usual / 2)
    below = max(0.01, low - max(0.05, (usual - low) / 2))
    return Proposal(camera, len(minutes), usual, low, fall, preset, drop, below)


def seconds(text: str) -> float:
    """A duration such as ``24h``, ``30min`` or ``2d``, in seconds.

    Raises:
        UsageError: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|min|h|d)", text.strip())
    if match is None or float(match[1]) <= 0:
        raise UsageError(f"--calibrate {text}: not a duration", "write 24h, 30min or 2d")
    return float(match[1]) * _UNITS[match[2]]
