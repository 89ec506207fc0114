"""The protocol's plot: agreement against the number of labels, as a small SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from grmp_edge.train.protocol import label_name, summarize

__all__ = ["plot_svg"]

_COLOURS = {"srcc": "#1f77b4", "plcc": "#d95f02"}
_WIDTH, _HEIGHT = 640, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 20, 44, 50


def plot_svg(splits: Sequence[Mapping[str, Any]], title: str) -> str:
    """Draw SRCC and PLCC of every split as dots and their medians as lines, by number of labels.

    Args:
        splits: as for :func:`grmp_edge.train.protocol.summarize`; tests on other sets are left out.
        title: above the plot.

    Returns:
        An SVG document that needs nothing else.
    """
    rows = [row for row in summarize(splits) if not row["tested"]]
    columns = {row["labels"]: place for place, row in enumerate(rows)}
    dots = [
        (columns[found["labels"]], name, found["metrics"][name])
        for found in splits
        for name in _COLOURS
        if found["metrics"][name] is not None
    ]
    medians = [
        (columns[row["labels"]], name, row[name]["median"])
        for row in rows
        for name in _COLOURS
        if row[name]["median"] is not None
    ]
    values = [value for _, _, value in dots + medians]
    # Whole tenths round everything that is shown.
    low = min((int(value * 10 // 1) for value in values), default=0)
    high = max((-int(-value * 10 // 1) for value in values), default=10)
    high = max(high, low + 1)

    def x(column: int, name: str) -> float:
        step = (_WIDTH - _LEFT - _RIGHT) / max(1, len(columns))
        return _LEFT + step * (column + 0.5) + (-5 if name == "srcc" else 5)

    def y(value: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high / 10 - value) / ((high - low) / 10)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="20" font-size="13">{escape(title)}</text>',
    ]
    for tick in range(low, high + 1):
        height = y(tick / 10)
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{height:.1f}" y2="{height:.1f}" '
            'stroke="#dddddd"/>'
            f'<text x="{_LEFT - 8}" y="{height + 4:.1f}" text-anchor="end">{tick / 10:.1f}</text>'
        )
    for labels, column in columns.items():
        middle = (x(column, "srcc") + x(column, "plcc")) / 2
        parts.append(
            f'<text x="{middle:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">'
            f"{label_name(labels)}</text>"
        )
    parts.append(
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 10}" text-anchor="middle">labels</text>'
    )
    for place, (name, colour) in enumerate(_COLOURS.items()):
        line = " ".join(f"{x(c, n):.1f},{y(v):.1f}" for c, n, v in medians if n == name)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{x(c, n):.1f}" cy="{y(v):.1f}" r="3" fill="{colour}" fill-opacity="0.45"/>'
            for c, n, v in dots
            if n == name
        ]
        at = _WIDTH - _RIGHT - 190 + 95 * place
        parts.append(f'<text x="{at}" y="36" fill="{colour}">{name.upper()} median</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
