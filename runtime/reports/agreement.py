"""The report of ``evaluate --bundle``: scores against people's, and where they disagree most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grmp_edge.runtime.reports.page import write_report
from grmp_edge.runtime.reports.scores import pictures_of
from grmp_edge.score import MosScale, Score

__all__ = ["write_agreement"]

_SHOWN = 6  # pictures rated too high, and as many rated too low
_BINS = 10  # of the curve of means


def write_agreement(
    path: Path,
    result: Mapping[str, Any],
    names: Sequence[str],
    mos: Sequence[float],
    values: Sequence[float],
    scale: MosScale,
    interval: str,
) -> None:
    """Write the report, one HTML file.

    Args:
        path: the file.
        result: what ``evaluate --bundle`` prints as JSON.
        names: of the pictures; a file's is shown.
        mos: people's scores, on ``scale``.
        values: the scores, 0..1, in the same order.
        scale: of the labels.
        interval: of SRCC, in words.

    Raises:
        OSError: it cannot be written.
    """
    given = np.array([scale.to_mos(value) for value in values])
    gap = given - np.asarray(mos)
    order = np.argsort(gap, kind="stable")
    count = min(_SHOWN, len(order) // 2)
    low, high = [int(i) for i in order[:count]], [int(i) for i in order[::-1][:count]]
    scores = [Score(float(value), name, result["model"]) for name, value in zip(names, values, strict=True)]
    pictures = pictures_of([scores[index] for index in (*low, *high)])
    rows = {
        title: [
            (names[i], float(given[i]), float(mos[i]), pictures.get((names[i], None), "")) for i in chosen
        ]
        for title, chosen in (("Scored too low", low), ("Scored too high", high))
    }
    points = [(float(x), float(y), Path(name).name) for x, y, name in zip(given, mos, names, strict=True)]
    parts = np.array_split(np.argsort(given), min(_BINS, max(1, len(given) // 5)))
    curve = [(float(given[part].mean()), float(np.asarray(mos)[part].mean())) for part in parts]
    context = {
        "result": result,
        "interval": interval,
        "rows": rows,
        "points": points,
        "curve": curve,
        "limits": (min(scale.low, float(np.min(mos))), max(scale.high, float(np.max(mos)))),
    }
    write_report(path, "agreement.html.j2", context)
