"""What is usual for each part of a camera's picture: a corner that decays hardly moves the whole's score.

A part's score is taken beside the others': what all of them share, such as weather, is no fault of one. The
native crops are gathered into a grid; every two hours of the day have a reference, an anchor like that of the
whole, and each day gives one level for each part, which is tested for slow change. Sudden changes are left
out: a lorry that parks is no fault of the camera.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import numpy.typing as npt

from grmp_edge.runtime.live.alert import Preset
from grmp_edge.runtime.live.change import slow_fall
from grmp_edge.runtime.live.memory import DRIFT
from grmp_edge.score import Tile

__all__ = ["Part", "Parts", "Place"]

FloatArray = npt.NDArray[np.float64]
Place = tuple[float, float, float, float]

_ROWS, _COLUMNS = 4, 6  # of the grid, at most: of a 4K frame, 9 crops are one part
_SLOTS = 12  # two hours each, in UTC
_SLOT_S = 86400 // _SLOTS
_FEW = 10  # minutes with scores, at least, for two hours to count
_PART = 3  # slots, at least, for a day to count
_KNOWN = 2  # days after which two hours can be tested
_LEARNING = 5  # days until their anchor is fixed
_RATE = 0.2  # a day, of what the anchor would follow; it may go DRIFT
_DAYS = 60  # of levels kept
_CHANGED = 1440  # minutes of frames of another size, until their parts are learned instead
# There are up to 24 parts, each with shadows and leaves of its own, and cars that park for days.
_LEAST = 0.1  # least fall
_LASTS = 5  # days, of which each must lie
_EACH = 0.06  # below normal by this
_SURER = 1.5  # than the whole's tests
_OVER = 0.04  # a level within this of normal ends it


@dataclass(frozen=True)
class Part:
    """A part of the picture that has become worse than the rest of it."""

    row: int
    column: int
    rows: int
    columns: int
    detail: str

    def __post_init__(self) -> None:  # it is read from a file
        numbers = (self.row, self.column, self.rows, self.columns)
        if not all(isinstance(number, int) for number in numbers) or not isinstance(self.detail, str):
            raise ValueError("no part")
        if not (0 <= self.row < self.rows <= _ROWS and 0 <= self.column < self.columns <= _COLUMNS):
            raise ValueError(f"no part of a grid of {self.rows} x {self.columns}")

    @property
    def place(self) -> Place:
        """Left, top, width and height, as shares of the picture."""
        width, height = 1 / self.columns, 1 / self.rows
        return self.column * width, self.row * height, width, height

    @property
    def words(self) -> str:
        """Such as ``upper left``."""
        left, top, width, height = self.place
        down = ("upper", "middle", "lower")[int(3 * (top + height / 2))]
        across = ("left", "middle", "right")[int(3 * (left + width / 2))]
        return down if down == across else f"{down} {across}"


class Parts:
    """The usual scores of the parts of one camera's picture. Times in seconds since 1970. Not thread-safe."""

    def __init__(self) -> None:
        self._size = (0, 0)  # (width, height) of the frames
        self._grid = (0, 0)  # (rows, columns)
        self._anchor = np.zeros((_SLOTS, 0))
        self._days = np.zeros(_SLOTS, np.int64)
        self._levels: list[tuple[int, FloatArray]] = []  # (day, difference from the anchor)
        self._today: dict[int, FloatArray] = {}
        self._seen: list[FloatArray] = []  # minutes of the current slot
        self._clean = True
        self._slot, self._minute = -1, -1
        self._other = 0  # minutes with frames of another size

    def add(self, at: float, tiles: Iterable[Tile], size: tuple[int, int], learn: bool = True) -> bool:
        """Take the tiles last read; one look a minute is kept. Returns whether a day has ended.

        Args:
            at: their time.
            tiles: of native crops.
            size: (width, height) of the frame.
            learn: nothing is wrong with the camera.
        """
        self._clean = self._clean and learn
        minute = int(at // 60)
        if minute == self._minute:
            return False
        self._minute, ended = minute, False
        slot = int(at // _SLOT_S)
        if slot != self._slot:
            self._end_slot()
            if self._slot >= 0 and slot // _SLOTS != self._slot // _SLOTS:
                ended = self._end_day(self._slot // _SLOTS)
            self._slot, self._seen, self._clean = slot, [], learn
        tiles = tuple(tiles)
        if not tiles:
            return ended
        if size != self._size:  # other crops, of other sharpness
            self._other += 1
            if self._anchor.size and self._other < _CHANGED:
                return ended
            rows = min(_ROWS, math.ceil(size[1] / tiles[0].height))
            columns = min(_COLUMNS, math.ceil(size[0] / tiles[0].width))
            self._begin(size, (rows, columns))
        self._other = 0
        self._seen.append(self._gathered(tiles))
        return ended

    def worst(self, usual: float, preset: Preset) -> Part | None:
        """The part that has fallen most, of those whose fall is sure; ``usual``: the camera's score."""
        found: tuple[float, int, str] | None = None
        for index in range(self._grid[0] * self._grid[1]):
            levels = [(day, float(level[index])) for day, level in self._levels if not np.isnan(level[index])]
            if len(levels) < _LASTS or max(level for _, level in levels[-_LASTS:]) > -_EACH:
                continue
            detail = slow_fall(levels, usual / 2, _SURER * preset.shift, _SURER * preset.sure, _LEAST)
            if detail and (found is None or levels[-1][1] < found[0]):
                found = (levels[-1][1], index, detail)
        if found is None:
            return None
        rows, columns = self._grid
        part = Part(found[1] // columns, found[1] % columns, rows, columns, "")
        return replace(part, detail=f"the {part.words} of its picture {found[2]}")

    def over(self, part: Part) -> bool:
        """Whether a part is as it was, or is no part any more."""
        if (part.rows, part.columns) != self._grid or not self._levels:
            return True
        return bool(self._levels[-1][1][part.row * part.columns + part.column] > -_OVER)

    def accept(self) -> None:
        """Make the present the normal."""
        levels = [*self._today.values(), *(level for _, level in self._levels[-1:])]
        if levels:
            self._anchor += np.nan_to_num(_median(np.stack(levels)))
        self._levels, self._today = [], {}

    def _begin(self, size: tuple[int, int], grid: tuple[int, int]) -> None:
        """Forget all parts, and learn those of another size of frames."""
        self._size, self._grid, self._other = size, grid, 0
        self._anchor, self._days = np.full((_SLOTS, math.prod(grid)), np.nan), np.zeros(_SLOTS, np.int64)
        self._levels, self._today, self._seen = [], {}, []

    def _gathered(self, tiles: Iterable[Tile]) -> FloatArray:
        """The mean of the tiles in each cell of the grid; NaN where none has been read."""
        rows, columns = self._grid
        width, height = self._size
        sums, counts = np.zeros(rows * columns), np.zeros(rows * columns)
        for tile in tiles:
            row = min(rows - 1, int((tile.top + tile.height / 2) * rows / height))
            column = min(columns - 1, int((tile.left + tile.width / 2) * columns / width))
            sums[row * columns + column] += tile.value
            counts[row * columns + column] += 1
        means: FloatArray = np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
        return means

    def _end_slot(self) -> None:
        if len(self._seen) < _FEW or self._anchor.shape[1] < 2:  # one part is the whole
            return
        slot = self._slot % _SLOTS
        level = _median(np.stack(self._seen))
        level -= np.nanmedian(level) if not np.isnan(level).all() else 0.0
        anchor, days = self._anchor[slot], int(self._days[slot])
        if days >= _KNOWN:
            self._today[slot] = level - anchor
        if not self._clean:
            return
        step = level - anchor
        step = step / (days + 1) if days < _LEARNING else np.clip(_RATE * step, -DRIFT, DRIFT)
        self._anchor[slot] = np.where(np.isnan(anchor), level, anchor + np.nan_to_num(step))
        self._days[slot] = days + 1

    def _end_day(self, day: int) -> bool:
        today, self._today = self._today, {}
        if len(today) < _PART:
            return False
        earlier = [level for level in self._levels if level[0] < day]  # others: of a clock that was ahead
        self._levels = [*earlier, (day, _median(np.stack(list(today.values()))))][-_DAYS:]
        return True

    def to_json(self) -> dict[str, object]:
        """All of it but for the last two hours, as JSON of bounded size."""
        return {
            "size": list(self._size),
            "grid": list(self._grid),
            "anchor": [_plain(row) for row in self._anchor],
            "days": self._days.tolist(),
            "levels": [[day, _plain(level)] for day, level in self._levels],
            "today": {str(slot): _plain(level) for slot, level in self._today.items()},
            "slot": self._slot,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> Parts:
        """What :meth:`to_json` gave; what is damaged begins anew."""
        parts = cls()
        if not data:
            return parts
        try:
            (width, height), (rows, columns) = cast(
                "tuple[tuple[int, int], ...]", (data["size"], data["grid"])
            )
            count = int(rows) * int(columns)
            if not (
                0 <= rows <= _ROWS and 0 <= columns <= _COLUMNS and (not count or min(width, height) > 0)
            ):
                raise ValueError(count)
            parts._size, parts._grid = (int(width), int(height)), (int(rows), int(columns))
            parts._anchor = _array(data["anchor"], (_SLOTS, count))
            parts._days = np.nan_to_num(_array(data["days"], (_SLOTS,))).astype(np.int64)
            levels = cast("list[tuple[int, object]]", data["levels"])[-_DAYS:]
            parts._levels = [(int(day), _array(level, (count,))) for day, level in levels]
            today = cast("dict[str, object]", data["today"])
            parts._today = {int(slot) % _SLOTS: _array(level, (count,)) for slot, level in today.items()}
            parts._slot = int(cast("int", data["slot"]))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            return cls()
        return parts


def _median(values: FloatArray) -> FloatArray:
    """The median of each column, NaN where nothing is known; numpy's own warns of those."""
    empty = np.isnan(values).all(axis=0)
    median: FloatArray = np.nanmedian(np.where(empty, 0.0, values), axis=0)
    median[empty] = np.nan
    return median


def _plain(values: FloatArray) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), 3) for value in values]


def _array(values: object, shape: tuple[int, ...]) -> FloatArray:
    array: FloatArray = np.array(values, np.float64)
    if array.shape != shape or np.any(np.abs(array) > 1e6):
        raise ValueError(shape)
    return array
