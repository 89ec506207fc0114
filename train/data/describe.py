"""A summary of a labelled set, for people and programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from grmp_edge.train.data.labelled import Labelled
from grmp_edge.train.data.set_files import DataSet

__all__ = ["describe", "histogram_lines"]

_BINS = 10


def describe(data: Labelled) -> dict[str, Any]:
    """Summarise a set as plain JSON.

    Returns:
        ``name``, ``images``, ``scale`` (declared [low, high], or None), ``mos`` (min, max, mean, ...),
        ``histogram`` (``edges``, 11, over the declared scale or what is observed, and ``counts``, 10),
        ``references`` (number of different ones, or None), ``distortions`` (pictures by type, or None),
        ``parts`` (pictures by part, or None), ``duplicates`` (pictures named more than once), ``notes``.
    """
    mos = data.mos
    low, high = (data.scale.low, data.scale.high) if data.scale else (float(mos.min()), float(mos.max()))
    # Scores that rounding puts just outside the scale belong in the outer bins.
    counts, edges = np.histogram(np.clip(mos, low, high), bins=_BINS, range=(low, high))
    parts = data.parts if isinstance(data, DataSet) else None
    names = Counter(data.paths)
    return {
        "name": data.name,
        "images": len(data),
        "scale": [data.scale.low, data.scale.high] if data.scale else None,
        "mos": {
            "min": float(mos.min()),
            "max": float(mos.max()),
            "mean": float(mos.mean()),
            "median": float(np.median(mos)),
            "std": float(mos.std()),
        },
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        "references": len(set(data.references)) if data.references else None,
        "distortions": dict(sorted(Counter(data.distortions).items())) if data.distortions else None,
        "parts": dict(Counter(parts)) if parts else None,
        "duplicates": sum(count - 1 for count in names.values()),
        "notes": list(data.notes),
    }


def histogram_lines(found: Mapping[str, Any], width: int = 40) -> list[str]:
    """The histogram of :func:`describe` as lines of text, the longest bar ``width`` characters."""
    edges, counts = found["histogram"]["edges"], found["histogram"]["counts"]
    most = max(1, *counts)
    return [
        f"{edges[i]:>9.2f} .. {edges[i + 1]:<9.2f} {count:>6}  {'#' * round(width * count / most)}"
        for i, count in enumerate(counts)
    ]
