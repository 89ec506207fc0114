"""A contact sheet of the distortions: one row per type, the pristine picture and five levels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from grmp_edge.errors import DataError
from grmp_edge.files import replace_file
from grmp_edge.preprocess import swap_red_blue
from grmp_edge.train.pictures.distort import DISTORTIONS, LEVELS, distort

__all__ = ["SheetConfig", "contact_sheet", "write_sheet"]

UInt8Array = npt.NDArray[np.uint8]

_INK, _PAPER = (20, 20, 20), (245, 245, 245)


@dataclass(frozen=True)
class SheetConfig:
    """How the sheet is drawn."""

    distortions: tuple[str, ...] = tuple(DISTORTIONS)
    cell: int = 192  # side of a picture on the sheet, pixels
    # The pictures are distorted at this side, as training does, and cut, not scaled, to the cell: scaling
    # down would hide blur and noise.
    side: int = 384
    label: int = 190  # width of the column of names, pixels
    seed: int = 0


def contact_sheet(
    photographs: Sequence[tuple[str, UInt8Array]],
    config: SheetConfig | None = None,
    on_row: Callable[[], None] | None = None,
) -> UInt8Array:
    """Draw the sheet, uint8 (H, W, 3) RGB: row i shows photograph i modulo their number.

    Args:
        photographs: names and pictures, uint8 (H, W, 3) RGB.
        config: what to draw.
        on_row: called after every row.

    Raises:
        DataError: no photograph, an unknown distortion, or a cell larger than the pictures.
    """
    config = config or SheetConfig()
    if not photographs:
        raise DataError("a contact sheet needs a photograph", "give one with --picture or --photos")
    if not 32 <= config.cell <= config.side:
        raise DataError(f"a cell of {config.cell} pixels", f"choose 32 to {config.side}")
    gap, head = 4, 28
    step = config.cell + gap
    width = config.label + (1 + len(LEVELS)) * step
    sheet = np.full((head + len(config.distortions) * step, width, 3), _PAPER, np.uint8)
    for column, title in enumerate(["pristine", *(f"level {level}" for level in LEVELS)]):
        _text(sheet, title, config.label + column * step + 4, 20, config.cell - 8)
    known = list(DISTORTIONS)
    for row, kind in enumerate(config.distortions):
        if kind not in DISTORTIONS:
            raise DataError(f"unknown distortion {kind!r}", f"known: {', '.join(known)}")
        number = row % len(photographs)
        pristine = _square(photographs[number][1], config.side)
        top = head + row * step
        _text(sheet, kind, 6, top + config.cell // 2, config.label - 12)
        _text(sheet, DISTORTIONS[kind].family, 6, top + config.cell // 2 + 20, config.label - 12, 0.4)
        for column, level in enumerate((0, *LEVELS)):
            picture = pristine
            if level:
                rng = np.random.default_rng([config.seed, known.index(kind), number])
                picture = distort(pristine, kind, level, rng)
            left = config.label + column * step
            sheet[top : top + config.cell, left : left + config.cell] = _centre(picture, config.cell)
        if on_row:
            on_row()
    return sheet


def write_sheet(sheet: UInt8Array, path: Path) -> None:
    """Write a sheet as a picture file in the format of the name's suffix, atomically.

    Raises:
        DataError: OpenCV cannot write that format.
    """
    try:
        done, data = cv2.imencode(path.suffix or ".png", swap_red_blue(sheet))
    except cv2.error:
        done, data = False, np.empty(0, np.uint8)
    if not done:
        raise DataError(f"{path}: cannot be written as a picture", "end the name in .png or .jpg")
    with replace_file(path) as temporary:
        temporary.write_bytes(data.tobytes())


def _square(picture: UInt8Array, side: int) -> UInt8Array:
    """The central square at ``side`` x ``side``."""
    height, width = picture.shape[:2]
    square = _centre(picture, min(height, width))
    way = cv2.INTER_AREA if len(square) > side else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(square, (side, side), interpolation=way), dtype=np.uint8)


def _centre(picture: UInt8Array, side: int) -> UInt8Array:
    top, left = (picture.shape[0] - side) // 2, (picture.shape[1] - side) // 2
    return np.ascontiguousarray(picture[top : top + side, left : left + side])


def _text(sheet: UInt8Array, text: str, x: int, y: int, room: int, scale: float = 0.5) -> None:
    """Write a line, made smaller until it fits."""
    font = cv2.FONT_HERSHEY_SIMPLEX
    while scale > 0.25 and cv2.getTextSize(text, font, scale, 1)[0][0] > room:
        scale -= 0.05
    cv2.putText(sheet, text, (x, y), font, scale, _INK, 1, cv2.LINE_AA)
