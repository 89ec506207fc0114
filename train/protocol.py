"""The protocol's figures: agreement in task units, their spread over splits, and the tables made of them.

Needs numpy alone, so that an exported bundle is measured by the same code without torch.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from grmp_edge.metrics import agreement
from grmp_edge.score import MosScale

__all__ = ["METRICS", "csv_table", "label_name", "markdown_table", "measure", "summarize", "text_table"]

METRICS = ("srcc", "plcc", "krcc", "rmse")
_STATISTICS = ("median", "mean", "std")


def label_name(labels: int | None) -> str:
    """``50`` or ``all``."""
    return "all" if labels is None else str(labels)


def measure(predicted: npt.ArrayLike, mos: npt.ArrayLike, scale: MosScale) -> dict[str, Any]:
    """SRCC, PLCC, KRCC, RMSE and count of raw scores in 0..1 against opinion scores.

    RMSE is in the unit of the scores: the labels are scaled by ``scale``, and not clipped. None where a
    measure is undefined.
    """
    wanted = (np.asarray(mos, dtype=np.float64) - scale.low) / (scale.high - scale.low)
    found = asdict(agreement(predicted, wanted))
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def summarize(splits: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of median, mean and sample standard deviation over splits.

    Args:
        splits: each with ``labels``, ``split``, ``metrics``, ``zero_shot`` and ``cross`` (metrics by set).

    Returns:
        One row per number of labels and tested set, the untuned model's first (labels 0): ``labels``,
        ``tested`` ("" for the set's own test part), ``splits``, and for each of METRICS a dict of ``median``,
        ``mean`` and ``std`` (None where a split's is undefined, ``std`` also with a single split).
    """
    rows: dict[tuple[float, str], list[Mapping[str, Any]]] = {}
    untuned: dict[int, Mapping[str, Any]] = {}
    for found in splits:
        if found.get("zero_shot"):
            untuned.setdefault(found["split"], found["zero_shot"])
        order = math.inf if found["labels"] is None else found["labels"]
        rows.setdefault((order, ""), []).append(found["metrics"])
        for name, metrics in found.get("cross", {}).items():
            rows.setdefault((order, name), []).append(metrics)
    if untuned:
        rows[(0, "")] = list(untuned.values())
    return [
        {
            "labels": None if math.isinf(labels) else int(labels),
            "tested": tested,
            "splits": len(metrics),
            **{name: _spread([found[name] for found in metrics]) for name in METRICS},
        }
        for (labels, tested), metrics in sorted(rows.items(), key=lambda item: item[0])
    ]


def _spread(values: Sequence[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return dict.fromkeys(_STATISTICS)
    return {
        "median": float(np.median(known)),
        "mean": float(np.mean(known)),
        "std": float(np.std(known, ddof=1)) if len(known) > 1 else None,
    }


def text_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows for a terminal: median, and mean ± standard deviation, of each measure."""
    lines = [f"{'labels':>6} {'splits':>6}  " + "  ".join(f"{name.upper():^24}" for name in METRICS)]
    lines.append(" " * 15 + "  ".join(f"{'median':>7}  {'mean ± std':>15}" for _ in METRICS))
    for row in rows:
        cells = [
            f"{_number(row[name]['median']):>7}  "
            f"{_number(row[name]['mean']) + ' ± ' + _number(row[name]['std']):>15}"
            for name in METRICS
        ]
        name = label_name(row["labels"])
        tested = f"  on {row['tested']}" if row["tested"] else ""
        lines.append(f"{name:>6} {row['splits']:>6}  " + "  ".join(cells) + tested)
    return "\n".join(lines)


def markdown_table(rows: Sequence[Mapping[str, Any]], remarks: Sequence[str] = ()) -> str:
    """Rows as a markdown table, with remarks (settings, leaks) below it."""
    head = [
        "labels",
        "tested on",
        "splits",
        *(f"{name.upper()} {what}" for name in METRICS for what in _STATISTICS),
    ]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        cells = [label_name(row["labels"]), row["tested"] or "test part", str(row["splits"])]
        cells += [_number(row[name][what]) for name in METRICS for what in _STATISTICS]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"- {remark}" for remark in remarks)]) + "\n"


def csv_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as csv with full precision: labels,tested,splits,srcc_median,..."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["labels", "tested", "splits", *(f"{n}_{w}" for n in METRICS for w in _STATISTICS)])
    for row in rows:
        numbers = [row[name][what] for name in METRICS for what in _STATISTICS]
        writer.writerow([label_name(row["labels"]), row["tested"], row["splits"], *numbers])
    return text.getvalue()


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
