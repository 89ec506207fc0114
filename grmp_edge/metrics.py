"""Agreement between predicted scores and opinion scores: the field's four measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = [
    "FEW", "Agreement", "agreement", "interval_words", "krcc", "plcc", "rmse", "srcc", "srcc_interval",
]  # fmt: skip

# An SRCC of fewer pictures means next to nothing: of ten, chance alone reaches .6.
FEW = 30

# Numbers of a bootstrap that are computed at once.
_ROOM = 1 << 18

Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """SRCC, PLCC and KRCC (-1..1) and RMSE (in the units of the inputs) over ``count`` pictures."""

    srcc: float
    plcc: float
    krcc: float
    rmse: float
    count: int


def agreement(predicted: npt.ArrayLike, actual: npt.ArrayLike) -> Agreement:
    """All four measures for two sequences of equal length; PLCC and RMSE without a logistic fit."""
    x, y = _pair(predicted, actual)
    return Agreement(srcc(x, y), plcc(x, y), krcc(x, y), rmse(x, y), len(x))


def srcc(predicted: npt.ArrayLike, actual: npt.ArrayLike) -> float:
    """Spearman's rank correlation, with mean ranks for ties; nan if a side is constant or contains a nan."""
    x, y = _pair(predicted, actual)
    if np.isnan(x).any() or np.isnan(y).any():  # sorting would give nan a rank
        return float("nan")
    return plcc(_ranks(x), _ranks(y))


def srcc_interval(
    predicted: npt.ArrayLike, actual: npt.ArrayLike, rounds: int = 1000, seed: int = 0
) -> tuple[float, float] | None:
    """Between what SRCC lies in 95 of 100 cases, were other pictures of the same kind drawn (bootstrap).

    None where SRCC is undefined, or of fewer than four pictures.
    """
    x, y = _pair(predicted, actual)
    if len(x) < 4 or np.isnan(srcc(x, y)):
        return None
    rng = np.random.default_rng([seed, len(x)])
    together = max(1, _ROOM // len(x))
    parts = [
        _drawn_srcc(x, y, rng.integers(0, len(x), (min(together, rounds - at), len(x))))
        for at in range(0, rounds, together)
    ]
    drawn = np.concatenate(parts)
    known = drawn[~np.isnan(drawn)]
    if not len(known):
        return None
    low, high = np.quantile(known, (0.025, 0.975))
    return float(low), float(high)


def interval_words(interval: Sequence[float] | None, count: int) -> str:
    """An interval of SRCC for people, and what to think of it: ``.61 to .78``."""
    if interval is None:
        return f"{count} pictures say nothing"
    words = f"{interval[0]:.2f} to {interval[1]:.2f}"
    return f"{words}: so few pictures say next to nothing" if count < FEW else words


def plcc(predicted: npt.ArrayLike, actual: npt.ArrayLike) -> float:
    """Pearson's linear correlation; nan if either side is constant or shorter than two."""
    x, y = _pair(predicted, actual)
    # Tested before centring: the rounded mean would leave a constant with a little spread.
    if len(x) < 2 or np.all(x == x[0]) or np.all(y == y[0]):
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    norm = float(np.sqrt(x @ x) * np.sqrt(y @ y))
    return float(np.clip(x @ y / norm, -1.0, 1.0)) if norm > 0 else float("nan")


def krcc(predicted: npt.ArrayLike, actual: npt.ArrayLike) -> float:
    """Kendall's tau-b (corrected for ties); nan if either side is constant."""
    x, y = _pair(predicted, actual)
    concordance = ties_x = ties_y = 0.0
    for i in range(1, len(x)):  # row by row: quadratic time, linear memory
        dx, dy = np.sign(x[i] - x[:i]), np.sign(y[i] - y[:i])
        concordance += float(dx @ dy)
        ties_x += float(np.count_nonzero(dx == 0))
        ties_y += float(np.count_nonzero(dy == 0))
    pairs = len(x) * (len(x) - 1) / 2
    norm = float(np.sqrt((pairs - ties_x) * (pairs - ties_y)))
    return concordance / norm if norm > 0 else float("nan")


def rmse(predicted: npt.ArrayLike, actual: npt.ArrayLike) -> float:
    """Root mean squared error; nan for empty sequences."""
    x, y = _pair(predicted, actual)
    return float(np.sqrt(np.mean((x - y) ** 2))) if len(x) else float("nan")


def _pair(predicted: npt.ArrayLike, actual: npt.ArrayLike) -> tuple[Float, Float]:
    x, y = np.asarray(predicted, dtype=np.float64).ravel(), np.asarray(actual, dtype=np.float64).ravel()
    if len(x) != len(y):
        raise ValueError(f"{len(x)} predictions for {len(y)} labels")
    return x, y


def _drawn_srcc(x: Float, y: Float, rows: npt.NDArray[np.int64]) -> Float:
    """SRCC of each draw with replacement, rows (r, n); nan where a side is constant."""
    rounds, count = rows.shape
    places = rows + count * np.arange(rounds)[:, None]
    often = np.bincount(places.ravel(), minlength=rounds * count).reshape(rounds, count)
    a, b = (_drawn_ranks(values, often) - (count + 1) / 2 for values in (x, y))
    spread = np.sqrt((often * a * a).sum(axis=1) * (often * b * b).sum(axis=1))
    with np.errstate(invalid="ignore"):
        drawn: Float = np.clip((often * a * b).sum(axis=1) / spread, -1.0, 1.0)
    return drawn


def _drawn_ranks(values: Float, often: npt.NDArray[np.int64]) -> Float:
    """Mean ranks (r, n) where value i is there ``often[:, i]`` times."""
    _, inverse = np.unique(values, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    starts = np.searchsorted(inverse[order], np.arange(inverse.max() + 1))
    counts = np.add.reduceat(often[:, order], starts, axis=1)
    ranks: Float = (np.cumsum(counts, axis=1) - (counts - 1) / 2.0)[:, inverse]
    return ranks


def _ranks(values: Float) -> Float:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Float = (last - (counts - 1) / 2.0)[inverse]
    return ranks
