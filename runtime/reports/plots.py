"""Plots as SVG inside a page: its colours and fonts apply to them, in the dark and on paper too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["histogram", "scatter", "timeline"]

_WIDTH, _HEIGHT = 640.0, 200.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, 10.0, 10.0, 30.0


def histogram(counts: Sequence[int], label: str) -> Markup:
    """Bars of counts over 0..1.

    Args:
        counts: of equal bins.
        label: what it shows, for those who cannot see it.
    """
    most = max(max(counts, default=0), 1)
    wide = (_WIDTH - _LEFT - _RIGHT) / max(len(counts), 1)
    bars = "".join(
        f'<rect class="bar" x="{_LEFT + index * wide + 0.5:.1f}" y="{_y(count / most):.1f}" '
        f'width="{wide - 1:.1f}" height="{_y(0) - _y(count / most):.1f}">'
        f"<title>{index / len(counts):.2f} to {(index + 1) / len(counts):.2f}: {count}</title></rect>"
        for index, count in enumerate(counts)
        if count
    )
    across = [(share, f"{share:.1f}") for share in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)]
    return _svg(bars, label, across, [(0.0, "0"), (1.0, str(most))])


def timeline(points: Sequence[tuple[float, float, float]], label: str, unit: str) -> Markup:
    """A line of means with the lowest value of each stretch below it.

    Args:
        points: (time or number, lowest, mean), both values 0..1, in order.
        label: what it shows, for those who cannot see it.
        unit: ``s`` for seconds, written as minutes; else the name of what is counted.
    """
    first, last = points[0][0], points[-1][0]
    span = (last - first) or 1.0

    def path(values: Sequence[tuple[float, float]]) -> str:
        return "M" + "L".join(f"{_x((at - first) / span):.1f} {_y(value):.1f}" for at, value in values)

    means = path([(at, mean) for at, _, mean in points])
    lows = path([(at, low) for at, low, _ in points])
    across = [(share, _at(first + share * span, unit)) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    down = [(share, f"{share:.1f}") for share in (0.0, 0.5, 1.0)]
    return _svg(f'<path class="low" d="{lows}"/><path class="mean" d="{means}"/>', label, across, down)


def scatter(
    points: Sequence[tuple[float, float, str]],
    label: str,
    limits: tuple[float, float],
    line: Sequence[tuple[float, float]] = (),
) -> Markup:
    """Points over a diagonal.

    Args:
        points: (x, y, name), on one scale.
        label: what it shows, for those who cannot see it.
        limits: of both axes.
        line: (x, y) of a curve through them, such as one of calibration.
    """
    from markupsafe import escape

    low, span = limits[0], (limits[1] - limits[0]) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return _x((x - low) / span), _y((y - low) / span)

    dots = ""
    for x, y, name in points:
        across, down = place(x, y)
        dots += (
            f'<circle class="dot" cx="{across:.1f}" cy="{down:.1f}" r="2.5">'
            f"<title>{escape(name)}: {x:.3g}, {y:.3g}</title></circle>"
        )
    (x0, y0), (x1, y1) = place(low, low), place(limits[1], limits[1])
    inner = f'<path class="low" d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}"/>{dots}'
    if line:
        curve = "L".join("{:.1f} {:.1f}".format(*place(*point)) for point in line)
        inner += f'<path class="mean" d="M{curve}"/>'
    ticks = [(share, f"{low + share * span:.3g}") for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    return _svg(inner, label, ticks, ticks)


def _x(share: float) -> float:
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _y(share: float) -> float:
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _at(value: float, unit: str) -> str:
    if unit != "s":
        return f"{value:.0f}"
    minutes, seconds = divmod(round(value), 60)
    return f"{minutes}:{seconds:02d}"


def _svg(
    inner: str, label: str, across: Sequence[tuple[float, str]], down: Sequence[tuple[float, str]]
) -> Markup:
    from markupsafe import Markup, escape

    axes = ""
    for share, text in down:
        y = _y(share)
        axes += f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>'
        axes += f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(text)}</text>'
    for share, text in across:
        anchor = "start" if share == 0 else "end" if share == 1 else "middle"
        axes += f'<text x="{_x(share):.1f}" y="{_HEIGHT - 8}" text-anchor="{anchor}">{escape(text)}</text>'
    return Markup(  # all text in it is escaped above
        f'<svg class="plot" viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" '
        f'aria-label="{escape(label)}">{axes}{inner}</svg>'
    )
