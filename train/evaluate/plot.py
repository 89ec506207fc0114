"""The protocol's plot: agreement against the number of labels, drawn by matplotlib as SVG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from grmp_edge.train.evaluate.protocol import Measure, SplitResult, label_name, summarize

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_splits", "plot_svg"]


def plot_svg(splits: Sequence[SplitResult], title: str) -> str:
    """The plot of :func:`draw_splits` as an SVG document; its text stays text."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    draw_splits(figure.add_subplot(), splits, title)
    text = io.StringIO()
    # The same results give the same bytes: no date, no random names of clip paths.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "grmp-edge"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def draw_splits(axes: Axes, splits: Sequence[SplitResult], title: str) -> None:
    """Draw every split as a dot and medians as lines, by number of labels: SRCC, and PLCC of a single method.

    Args:
        axes: empty axes.
        splits: any number of methods; tests on other sets are left out.
        title: above the plot.
    """
    rows = [row for row in summarize(splits) if not row["tested"]]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    several = len(methods) > 1
    measures: tuple[Measure, ...] = ("srcc",) if several else ("srcc", "plcc")
    series = [(method, measure) for method in methods for measure in measures]
    numbers = sorted({row["labels"] for row in rows if row["labels"] is not None})
    columns: dict[int | None, int] = {labels: column for column, labels in enumerate(numbers)}
    if any(row["labels"] is None for row in rows):
        columns[None] = len(columns)
    apart = min(0.06, 0.6 / max(1, len(series)))  # of a column, side by side: dots do not hide each other
    for place, (method, measure) in enumerate(series):
        shift = apart * (place - (len(series) - 1) / 2)
        medians = [
            (columns[row["labels"]] + shift, median)
            for row in rows
            if row["method"] == method and (median := row[measure]["median"]) is not None
        ]
        dots = [
            (columns[result["labels"]] + shift, value)
            for result in splits
            if result.get("method", "") == method and (value := result["metrics"][measure]) is not None
        ]
        name = f"{method}, SRCC" if several else f"{measure.upper()} median"
        (line,) = axes.plot([x for x, _ in medians], [y for _, y in medians], label=name)
        axes.scatter([x for x, _ in dots], [y for _, y in dots], s=16, alpha=0.45, color=line.get_color())
    axes.set_xticks(list(columns.values()), [label_name(labels) for labels in columns])
    axes.set_xlim(-0.5, max(1, len(columns)) - 0.5)
    axes.set_xlabel("labels")
    axes.set_title(title, loc="left", fontsize="medium")
    axes.grid(axis="y", color="#dddddd")
    axes.set_axisbelow(True)
    if series:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
