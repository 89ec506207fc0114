"""Counters, gauges and histograms in Prometheus' text format, without its client library."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Mapping, Sequence

__all__ = ["CONTENT_TYPE", "Metrics", "SECONDS"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# From one picture on a GPU to a queue on a busy embedded CPU.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

_MAX_LABELS = 200  # series of one metric; whoever makes up names must not fill the memory

_Labels = tuple[tuple[str, str], ...]


class Metrics:
    """All metrics of a program; for many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._help: dict[str, tuple[str, str]] = {}  # by name: type and help
        self._values: dict[str, dict[_Labels, float]] = {}
        self._buckets: dict[str, dict[_Labels, list[int]]] = {}
        self._room: dict[str, int | None] = {}

    def declare(self, name: str, kind: str, text: str, series: int | None = _MAX_LABELS) -> None:
        """Say what a metric is: ``counter`` (named ``*_total``), ``gauge``, or ``histogram`` of seconds.

        Label values beyond ``series`` combinations become "other"; None where strangers do not choose them.
        """
        self._help[name] = (kind, text)
        self._room[name] = series
        self._values[name] = {}
        self._buckets[name] = {}

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Raise a counter."""
        with self._lock:
            key = self._key(name, labels)
            self._values[name][key] = self._values[name].get(key, 0.0) + amount

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge, or a counter that is counted elsewhere."""
        with self._lock:
            self._values[name][self._key(name, labels)] = value

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        """Take a duration into a histogram."""
        with self._lock:
            key = self._key(name, labels)
            counts = self._buckets[name].setdefault(key, [0] * (len(SECONDS) + 1))
            counts[bisect.bisect_left(SECONDS, seconds)] += 1
            self._values[name][key] = self._values[name].get(key, 0.0) + seconds

    def _key(self, name: str, labels: Mapping[str, str]) -> _Labels:
        key = tuple(sorted(labels.items()))
        known, room = self._values[name], self._room[name]
        if room is not None and key not in known and len(known) >= room:
            return tuple((label, "other") for label, _ in key)
        return key

    def text(self) -> str:
        """Everything, as a scrape reads it."""
        lines = []
        with self._lock:
            for name, (kind, text) in self._help.items():
                lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
                for key, value in self._values[name].items():
                    if kind == "histogram":
                        lines += _histogram(name, key, self._buckets[name][key], value)
                    else:
                        lines.append(f"{name}{_labels(key)} {value!r}")
        return "\n".join(lines) + "\n"


def _histogram(name: str, key: _Labels, counts: Sequence[int], total: float) -> list[str]:
    lines, seen = [], 0
    for limit, count in zip((*SECONDS, float("inf")), counts, strict=True):
        seen += count
        le = "+Inf" if limit == float("inf") else repr(limit)
        lines.append(f"{name}_bucket{_labels((*key, ('le', le)))} {seen}")
    return [*lines, f"{name}_sum{_labels(key)} {total!r}", f"{name}_count{_labels(key)} {seen}"]


def _labels(key: _Labels) -> str:
    if not key:
        return ""
    escaped = (
        (name, value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")) for name, value in key
    )
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped) + "}"
