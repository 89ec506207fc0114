"""The protocol's settings and figures: agreement in task units, its spread over splits, and tables of it.

Needs numpy alone, so that exported bundles and hand-crafted metrics are measured by the same code without
torch.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

import numpy as np
import numpy.typing as npt

from grmp_edge.metrics import agreement, srcc_interval
from grmp_edge.score import MosScale
from grmp_edge.train.data.labelled import SplitConfig

__all__ = [
    "INTERVAL",
    "MEASURES",
    "Measures",
    "ProtocolConfig",
    "Row",
    "SplitResult",
    "Spread",
    "csv_table",
    "label_name",
    "markdown_table",
    "measure",
    "summarize",
    "text_table",
]

Measure = Literal["srcc", "plcc", "krcc", "rmse"]
Statistic = Literal["median", "mean", "std"]
MEASURES: tuple[Measure, ...] = ("srcc", "plcc", "krcc", "rmse")
_STATISTICS: tuple[Statistic, ...] = ("median", "mean", "std")
# What the tables' column of that name says.
INTERVAL = (
    "SRCC 95 %: where it may lie by chance of the test pictures, bootstrapped within a split; both ends are "
    "medians over the splits"
)


class _Interval(TypedDict, total=False):
    srcc_interval: list[float] | None  # 95 %, by bootstrap over the pictures; not in files of older versions


class Measures(_Interval):
    """Agreement with opinion scores over ``count`` pictures; None where a measure is undefined."""

    srcc: float | None
    plcc: float | None
    krcc: float | None
    rmse: float | None
    count: int


class Predictions(TypedDict):
    """The test part, picture by picture."""

    index: list[int]
    mos: list[float]
    value: list[float]


class _Result(TypedDict):
    labels: int | None  # None: all of the 80 %
    split: int
    metrics: Measures  # on the test part


class SplitResult(_Result, total=False):
    """The result of one split: the content of its JSON file, and a row of ``splits`` in results.json."""

    method: str  # what was tested, where several things were; not in the file
    seed: int
    predictions: Predictions  # in the file only
    # Of trained models.
    epoch: int
    selected_on_test: bool
    zero_shot: Measures | None  # before fine-tuning; None with 0 labels, where it is ``metrics``
    cross: dict[str, Measures]  # by the name of the other set
    seconds: float
    # Of hand-crafted metrics: the settings chosen by the search; None with 0 labels.
    svr: dict[str, float] | None


class Spread(TypedDict):
    """One measure over splits; None where a split's is undefined, ``std`` also with a single split."""

    median: float | None
    mean: float | None
    std: float | None


class Row(TypedDict):
    """A row of the table."""

    method: str
    labels: int | None
    tested: str  # the set it was tested on; "" for the test part
    splits: int
    srcc_interval: list[float] | None  # medians over the splits of low and high; None where one is unknown
    srcc: Spread
    plcc: Spread
    krcc: Spread
    rmse: Spread


@dataclass(frozen=True)
class ProtocolConfig:
    """The protocol; the paper's unless a reason is given."""

    splits: int = 10
    # 0: the model as pre-training left it, without fine-tuning; None: all of the 80 %.
    labels: tuple[int | None, ...] = (50, 100, 200)
    test_fraction: float = 0.2
    # The part of the N labels that chooses the epoch; in the paper's code the test part does.
    validation_fraction: float = SplitConfig.validation_fraction
    seed: int = 0  # split k is drawn with seed + k; its test part is the same for every number of labels
    keep_checkpoints: bool = False  # they are needed for export, and large

    def split(self, labels: int | None, number: int) -> SplitConfig:
        """How split ``number`` is drawn; with 0 labels only its test part is used."""
        return SplitConfig(labels or None, self.test_fraction, self.validation_fraction, self.seed + number)


def label_name(labels: int | None) -> str:
    """``50`` or ``all``."""
    return "all" if labels is None else str(labels)


def measure(predicted: npt.ArrayLike, mos: npt.ArrayLike, scale: MosScale) -> Measures:
    """Agreement of raw scores in 0..1 with opinion scores.

    RMSE is in the unit of the scores: the labels are scaled by ``scale`` and not clipped.
    """
    quality = (np.asarray(mos, dtype=np.float64) - scale.low) / (scale.high - scale.low)
    values = agreement(predicted, quality)
    return {
        "srcc": _defined(values.srcc),
        "plcc": _defined(values.plcc),
        "krcc": _defined(values.krcc),
        "rmse": _defined(values.rmse),
        "count": values.count,
        "srcc_interval": None if (interval := srcc_interval(predicted, quality)) is None else [*interval],
    }


def _defined(value: float) -> float | None:
    return value if math.isfinite(value) else None


def summarize(splits: Sequence[SplitResult]) -> list[Row]:
    """Rows of median, mean and sample standard deviation over splits.

    Returns:
        One row per method (in order of first appearance), number of labels and tested set. The model before
        fine-tuning comes first, as 0 labels.
    """
    methods = list(dict.fromkeys(result.get("method", "") for result in splits))
    groups: dict[tuple[int, float, str], list[Measures]] = {}
    untuned: dict[tuple[int, int], Measures] = {}
    for result in splits:
        place = methods.index(result.get("method", ""))
        zero_shot = result.get("zero_shot")
        if zero_shot:
            untuned.setdefault((place, result["split"]), zero_shot)
        order = math.inf if result["labels"] is None else result["labels"]
        groups.setdefault((place, order, ""), []).append(result["metrics"])
        for name, measures in result.get("cross", {}).items():
            groups.setdefault((place, order, name), []).append(measures)
    tested_untuned = {place for place, order, _ in groups if order == 0}
    for (place, _), measures in untuned.items():
        if place not in tested_untuned:  # its own splits of 0 labels say the same
            groups.setdefault((place, 0, ""), []).append(measures)
    return [
        Row(
            method=methods[place],
            labels=None if math.isinf(labels) else int(labels),
            tested=tested,
            splits=len(group),
            srcc_interval=_interval(group),
            srcc=_spread([one["srcc"] for one in group]),
            plcc=_spread([one["plcc"] for one in group]),
            krcc=_spread([one["krcc"] for one in group]),
            rmse=_spread([one["rmse"] for one in group]),
        )
        for (place, labels, tested), group in sorted(groups.items(), key=lambda item: item[0])
    ]


def _interval(group: Sequence[Measures]) -> list[float] | None:
    known = [ends for one in group if (ends := one.get("srcc_interval")) is not None]
    if len(known) < len(group):
        return None
    low, high = np.median(known, axis=0).tolist()
    return [low, high]


def _spread(values: Sequence[float | None]) -> Spread:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return {"median": None, "mean": None, "std": None}
    return {
        "median": float(np.median(known)),
        "mean": float(np.mean(known)),
        "std": float(np.std(known, ddof=1)) if len(known) > 1 else None,
    }


def text_table(rows: Sequence[Row]) -> str:
    """Rows for a terminal: median, and mean ± standard deviation, of each measure; the interval of SRCC."""
    wide = max((len(row["method"]) for row in rows), default=0)
    first = wide + 2 if wide else 0
    titles = "  ".join(f"{name.upper():^24}" for name in MEASURES)
    columns = "  ".join(f"{'median':>7}  {'mean ± std':>15}" for _ in MEASURES)
    lines = [
        " " * first + f"{'labels':>6} {'splits':>6}  {'SRCC 95 %':>13}  {titles}",
        " " * (first + 30) + columns,
    ]
    for row in rows:
        cells = [
            f"{_number(row[name]['median']):>7}  "
            f"{_number(row[name]['mean']) + ' ± ' + _number(row[name]['std']):>15}"
            for name in MEASURES
        ]
        labels = label_name(row["labels"])
        tested = f"  on {row['tested']}" if row["tested"] else ""
        sure = _ends(row)
        lines.append(
            f"{row['method']:{first}}{labels:>6} {row['splits']:>6}  {sure:>13}  {'  '.join(cells)}{tested}"
        )
    return "\n".join(lines)


def markdown_table(rows: Sequence[Row], remarks: Sequence[str] = ()) -> str:
    """Rows as a markdown table, with remarks (settings, leaks) below it."""
    several = any(row["method"] for row in rows)
    head = [
        *(["method"] if several else []),
        "labels",
        "tested on",
        "splits",
        "SRCC 95 %",
        *(f"{name.upper()} {statistic}" for name in MEASURES for statistic in _STATISTICS),
    ]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        cells = [row["method"]] if several else []
        cells += [label_name(row["labels"]), row["tested"] or "test part", str(row["splits"]), _ends(row)]
        cells += [_number(row[name][statistic]) for name in MEASURES for statistic in _STATISTICS]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"- {remark}" for remark in remarks)]) + "\n"


def csv_table(rows: Sequence[Row]) -> str:
    """Rows as csv with full precision: method,labels,tested,splits,srcc_low,srcc_high,srcc_median,..."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    first = ["method", "labels", "tested", "splits", "srcc_low", "srcc_high"]
    writer.writerow([*first, *(f"{n}_{s}" for n in MEASURES for s in _STATISTICS)])
    for row in rows:
        numbers = [row[name][statistic] for name in MEASURES for statistic in _STATISTICS]
        first = [row["method"], label_name(row["labels"]), row["tested"], str(row["splits"])]
        writer.writerow([*first, *(row["srcc_interval"] or ("", "")), *numbers])
    return text.getvalue()


def _ends(row: Row) -> str:
    """The interval of SRCC, or "-"."""
    ends = row["srcc_interval"]
    return "-" if ends is None else f"{_number(ends[0])}..{_number(ends[1])}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
