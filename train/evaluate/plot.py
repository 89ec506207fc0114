"""The protocol's plot: agreement against the number of labels, as a small SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from grmp_edge.train.evaluate.protocol import label_name, summarize

__all__ = ["plot_svg"]

_COLOURS = ("#1f77b4", "#d95f02", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#17becf", "#7f7f7f")
_WIDTH, _HEIGHT = 640, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 20, 44, 50
_LEGEND = 180  # pixels more, where there are several methods to name


def plot_svg(splits: Sequence[Mapping[str, Any]], title: str) -> str:
    """Draw every split as a dot and medians as lines, by number of labels: SRCC, and PLCC of a single method.

    Args:
        splits: as for :func:`grmp_edge.train.evaluate.protocol.summarize`; tests on other sets are left out.
        title: above the plot.

    Returns:
        An SVG document that needs nothing else.
    """
    rows = [row for row in summarize(splits) if not row["tested"]]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    several = len(methods) > 1
    lines = [(m, "srcc") for m in methods] if several else [(m, n) for m in methods for n in ("srcc", "plcc")]
    known = sorted({row["labels"] for row in rows if row["labels"] is not None})
    columns = {labels: place for place, labels in enumerate(known)}
    if any(row["labels"] is None for row in rows):
        columns[None] = len(columns)
    dots = [
        (columns[found["labels"]], line, found["metrics"][line[1]])
        for found in splits
        for line in lines
        if line[0] == found.get("method", "") and found["metrics"][line[1]] is not None
    ]
    medians = [
        (columns[row["labels"]], line, row[line[1]]["median"])
        for row in rows
        for line in lines
        if line[0] == row["method"] and row[line[1]]["median"] is not None
    ]
    values = [value for _, _, value in dots + medians]
    # Whole tenths round everything that is shown.
    low = min((int(value * 10 // 1) for value in values), default=0)
    high = max((-int(-value * 10 // 1) for value in values), default=10)
    high = max(high, low + 1)
    width, right = (_WIDTH + _LEGEND, _RIGHT + _LEGEND) if several else (_WIDTH, _RIGHT)
    step = (width - _LEFT - right) / max(1, len(columns))
    apart = min(10.0, 0.6 * step / max(1, len(lines)))  # side by side, so that dots do not hide each other

    def x(column: int, line: tuple[str, str]) -> float:
        return _LEFT + step * (column + 0.5) + apart * (lines.index(line) - (len(lines) - 1) / 2)

    def y(value: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high / 10 - value) / ((high - low) / 10)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{_HEIGHT}" '
        f'viewBox="0 0 {width} {_HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="20" font-size="13">{escape(title)}</text>',
    ]
    for tick in range(low, high + 1):
        height = y(tick / 10)
        parts.append(
            f'<line x1="{_LEFT}" x2="{width - right}" y1="{height:.1f}" y2="{height:.1f}" stroke="#dddddd"/>'
            f'<text x="{_LEFT - 8}" y="{height + 4:.1f}" text-anchor="end">{tick / 10:.1f}</text>'
        )
    for labels, column in columns.items():
        middle = _LEFT + step * (column + 0.5)
        parts.append(
            f'<text x="{middle:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">'
            f"{label_name(labels)}</text>"
        )
    parts.append(
        f'<text x="{(_LEFT + width - right) / 2}" y="{_HEIGHT - 10}" text-anchor="middle">labels</text>'
    )
    for place, line in enumerate(lines):
        colour = _COLOURS[place % len(_COLOURS)]
        way = " ".join(f"{x(c, n):.1f},{y(v):.1f}" for c, n, v in medians if n == line)
        parts.append(f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{x(c, n):.1f}" cy="{y(v):.1f}" r="3" fill="{colour}" fill-opacity="0.45"/>'
            for c, n, v in dots
            if n == line
        ]
        at, down = (width - right + 12, _TOP + 12 + 18 * place) if several else (
            width - right - 190 + 95 * place, 36)  # fmt: skip
        name = f"{line[0]}, SRCC" if several else f"{line[1].upper()} median"
        parts.append(f'<text x="{at}" y="{down}" fill="{colour}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
