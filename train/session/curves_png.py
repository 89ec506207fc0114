"""Curves as a PNG, drawn with OpenCV: two panels a row, each with its axes, ticks and a legend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from grmp_edge.files import replace_file

if TYPE_CHECKING:
    from grmp_edge.train.session.curves import Panel

__all__ = ["draw", "write_png"]

UInt8Array = npt.NDArray[np.uint8]

_WIDTH, _HEIGHT = 620, 340  # of a panel
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 24, 40, 44  # round its axes
_HEAD = 40  # above the panels, for the title
# Blue, green, red order; told apart also by those who cannot tell red from green.
_COLOURS = ((180, 119, 31), (14, 127, 255), (44, 160, 44), (189, 103, 148), (75, 86, 140), (194, 119, 227))
_INK, _GRID = (60, 60, 60), (225, 225, 225)


def write_png(file: Path, panels: Sequence[Panel], title: str) -> None:
    """Draw and write, by a rename."""
    _, data = cv2.imencode(".png", draw(panels, title))
    with replace_file(file) as temporary:
        temporary.write_bytes(data.tobytes())


def draw(panels: Sequence[Panel], title: str) -> UInt8Array:
    """The panels as one picture, uint8 (H, W, 3) BGR."""
    rows = -(-len(panels) // 2)
    canvas: UInt8Array = np.full((_HEAD + rows * _HEIGHT, 2 * _WIDTH, 3), 255, np.uint8)
    _text(canvas, title, (_LEFT, 27), 0.6)
    for place, panel in enumerate(panels):
        top, left = _HEAD + place // 2 * _HEIGHT, place % 2 * _WIDTH
        _panel(canvas[top : top + _HEIGHT, left : left + _WIDTH], panel)
    return canvas


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers within low..high, about ``wanted`` of them."""
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * s for s in (1, 2, 5, 10) if power * s >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _panel(at: UInt8Array, panel: Panel) -> None:
    _text(at, panel.title, (_LEFT, 26), 0.5)
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    drawn = [
        (number, series, [(x, _scaled(y, panel)) for x, y in series.points if _shown(y, panel)])
        for number, series in enumerate(panel.series)
    ]
    every = [point for _, _, points in drawn for point in points]
    if not every:
        _text(at, "nothing to show", ((_LEFT + right) // 2 - 60, (_TOP + bottom) // 2), 0.45)
    x0, x1 = _range([x for x, _ in every], 0.0)
    y0, y1 = _range([y for _, y in every], 0.06)

    def place(x: float, y: float) -> tuple[int, int]:
        return (
            round(_LEFT + (right - _LEFT) * (x - x0) / (x1 - x0)),
            round(bottom - (bottom - _TOP) * (y - y0) / (y1 - y0)),
        )

    for tick in ticks(x0, x1, 6):
        if tick == round(tick):  # epochs are whole
            column = place(tick, y0)[0]
            cv2.line(at, (column, _TOP), (column, bottom), _GRID, 1)
            _text(at, f"{tick:g}", (column - 4 * len(f"{tick:g}"), bottom + 17), 0.4)
    for tick in ticks(y0, y1):
        height = place(x0, tick)[1]
        cv2.line(at, (_LEFT, height), (right, height), _GRID, 1)
        name = f"{10**tick:.2g}" if panel.logarithmic else f"{tick:.4g}"
        _text(at, name, (_LEFT - 8 - 8 * len(name), height + 4), 0.4)
    cv2.rectangle(at, (_LEFT, _TOP), (right, bottom), _INK, 1)
    _text(at, "epoch", ((_LEFT + right) // 2 - 18, _HEIGHT - 8), 0.4)
    column = right
    for number, series, points in reversed(drawn):
        colour = _COLOURS[number % len(_COLOURS)]
        path = np.array([place(x, y) for x, y in points], np.int32).reshape(-1, 1, 2)
        if len(points) > 1:
            cv2.polylines(at, [path], False, colour, 2, cv2.LINE_AA)
        for point in path[:, 0] if len(points) <= 40 else ():
            cv2.circle(at, (int(point[0]), int(point[1])), 3, colour, -1, cv2.LINE_AA)
        if len(panel.series) > 1 and points:  # beside the title, from the right
            column -= 30 + 8 * len(series.label)
            cv2.line(at, (column, 22), (column + 16, 22), colour, 2, cv2.LINE_AA)
            _text(at, series.label, (column + 21, 26), 0.4)


def _shown(value: float, panel: Panel) -> bool:
    return math.isfinite(value) and (value > 0 or not panel.logarithmic)


def _scaled(value: float, panel: Panel) -> float:
    return math.log10(value) if panel.logarithmic else value


def _range(values: Sequence[float], margin: float) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    if high - low < 1e-9 * max(1.0, abs(low)):
        low, high = low - 0.5, high + 0.5
    spare = margin * (high - low)
    return low - spare, high + spare


def _text(at: UInt8Array, text: str, where: tuple[int, int], size: float) -> None:
    # OpenCV's font knows no letters beyond ASCII.
    plain = text.encode("ascii", "replace").decode()
    cv2.putText(at, plain, where, cv2.FONT_HERSHEY_SIMPLEX, size, _INK, 1, cv2.LINE_AA)
