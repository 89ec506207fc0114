"""The protocol's settings and figures: agreement in task units, its spread over splits, and the tables of it.

Needs numpy alone, so that an exported bundle and hand-crafted metrics are measured by the same code without
torch.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from grmp_edge.metrics import agreement
from grmp_edge.score import MosScale
from grmp_edge.train.data.labelled import SplitConfig

__all__ = [
    "METRICS",
    "ProtocolConfig",
    "csv_table",
    "label_name",
    "markdown_table",
    "measure",
    "summarize",
    "text_table",
]

METRICS = ("srcc", "plcc", "krcc", "rmse")
_STATISTICS = ("median", "mean", "std")


@dataclass(frozen=True)
class ProtocolConfig:
    """The protocol; the paper's unless a reason is given."""

    splits: int = 10
    # 0: the model as pre-training left it, without fine-tuning; None: all of the 80 %.
    labels: tuple[int | None, ...] = (50, 100, 200)
    test_fraction: float = 0.2
    # Taken from the N labels to choose the epoch, which the paper's code lets the test part do. None: what
    # goes with the backbone.
    validation_fraction: float | None = None
    seed: int = 0  # split k is drawn with seed + k; its test part is the same for every number of labels
    keep_checkpoints: bool = False  # they are needed for export, and large

    def split(self, labels: int | None, number: int) -> SplitConfig:
        """How split ``number`` is drawn; with 0 labels only its test part is of use."""
        return SplitConfig(labels or None, self.test_fraction, self.validation_fraction, self.seed + number)


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
        splits: each with ``labels``, ``split``, ``metrics``, and perhaps ``method`` (what was tested, where
            several things were), ``zero_shot`` and ``cross`` (metrics by set).

    Returns:
        One row per method (in the order in which they first come), number of labels and tested set, the
        untuned model's first (labels 0): ``method``, ``labels``, ``tested`` ("" for the set's own test
        part), ``splits``, and for each of METRICS a dict of ``median``, ``mean`` and ``std`` (None where a
        split's is undefined, ``std`` also with a single split).
    """
    methods = list(dict.fromkeys(found.get("method", "") for found in splits))
    rows: dict[tuple[int, float, str], list[Mapping[str, Any]]] = {}
    untuned: dict[tuple[int, int], Mapping[str, Any]] = {}
    for found in splits:
        place = methods.index(found.get("method", ""))
        if found.get("zero_shot"):
            untuned.setdefault((place, found["split"]), found["zero_shot"])
        order = math.inf if found["labels"] is None else found["labels"]
        rows.setdefault((place, order, ""), []).append(found["metrics"])
        for name, metrics in found.get("cross", {}).items():
            rows.setdefault((place, order, name), []).append(metrics)
    tested_untuned = {place for place, order, _ in rows if order == 0}
    for (place, _), metrics in untuned.items():
        if place not in tested_untuned:  # by itself, which says the same
            rows.setdefault((place, 0, ""), []).append(metrics)
    return [
        {
            "method": methods[place],
            "labels": None if math.isinf(labels) else int(labels),
            "tested": tested,
            "splits": len(metrics),
            **{name: _spread([found[name] for found in metrics]) for name in METRICS},
        }
        for (place, labels, tested), metrics in sorted(rows.items(), key=lambda item: item[0])
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
    wide = max((len(row["method"]) for row in rows), default=0)
    first = wide + 2 if wide else 0
    lines = [
        " " * first + f"{'labels':>6} {'splits':>6}  " + "  ".join(f"{name.upper():^24}" for name in METRICS)
    ]
    lines.append(" " * (first + 15) + "  ".join(f"{'median':>7}  {'mean ± std':>15}" for _ in METRICS))
    for row in rows:
        cells = [
            f"{_number(row[name]['median']):>7}  "
            f"{_number(row[name]['mean']) + ' ± ' + _number(row[name]['std']):>15}"
            for name in METRICS
        ]
        name = label_name(row["labels"])
        tested = f"  on {row['tested']}" if row["tested"] else ""
        lines.append(f"{row['method']:{first}}{name:>6} {row['splits']:>6}  " + "  ".join(cells) + tested)
    return "\n".join(lines)


def markdown_table(rows: Sequence[Mapping[str, Any]], remarks: Sequence[str] = ()) -> str:
    """Rows as a markdown table, with remarks (settings, leaks) below it."""
    several = any(row["method"] for row in rows)
    head = [
        *(["method"] if several else []),
        "labels",
        "tested on",
        "splits",
        *(f"{name.upper()} {what}" for name in METRICS for what in _STATISTICS),
    ]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        cells = [row["method"]] if several else []
        cells += [label_name(row["labels"]), row["tested"] or "test part", str(row["splits"])]
        cells += [_number(row[name][what]) for name in METRICS for what in _STATISTICS]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"- {remark}" for remark in remarks)]) + "\n"


def csv_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as csv with full precision: method,labels,tested,splits,srcc_median,..."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["method", "labels", "tested", "splits", *(f"{n}_{w}" for n in METRICS for w in _STATISTICS)]
    )
    for row in rows:
        numbers = [row[name][what] for name in METRICS for what in _STATISTICS]
        writer.writerow([row["method"], label_name(row["labels"]), row["tested"], row["splits"], *numbers])
    return text.getvalue()


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
