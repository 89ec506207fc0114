"""From "which is better?" to strengths: a Bradley-Terry model with a prior, and which pair to ask next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["PRIOR_STD", "Judged", "fit_pairs", "next_pair"]

Float64Array: TypeAlias = npt.NDArray[np.float64]
Judged: TypeAlias = tuple[int, int, float]  # (i, j, share of i): 1 if i was better, 0 if j was, .5 for a tie

# Of the strengths: pictures two of it apart are told apart 94 times of 100. It keeps the strength of one that
# won each time finite, and of one that was never asked about at 0.
PRIOR_STD = 1.5
_STEPS, _TOLERANCE = 100, 1e-9


def fit_pairs(
    count: int, judged: Sequence[Judged], prior_std: float = PRIOR_STD
) -> tuple[Float64Array, Float64Array]:
    """Strengths of ``count`` pictures, (n,), and their covariance, (n, n).

    P(i better than j) = 1 / (1 + exp(strength of j - strength of i)); a tie is half a win for each. The most
    likely strengths under a normal prior, by Newton's method; the covariance is the inverse Hessian there.
    """
    first = np.array([i for i, _, _ in judged], dtype=np.int64)
    second = np.array([j for _, j, _ in judged], dtype=np.int64)
    share = np.array([s for _, _, s in judged], dtype=np.float64)
    strength = np.zeros(count)
    precision = np.eye(count) / prior_std**2

    def loss(at: Float64Array) -> float:
        gap = at[first] - at[second]
        return float((np.logaddexp(0, gap) - share * gap).sum() + 0.5 * at @ precision @ at)

    def hessian(at: Float64Array) -> Float64Array:
        chance = 1 / (1 + np.exp(-(at[first] - at[second])))
        weight = chance * (1 - chance)
        matrix: Float64Array = precision.copy()
        np.add.at(matrix, (first, first), weight)
        np.add.at(matrix, (second, second), weight)
        np.add.at(matrix, (first, second), -weight)
        np.add.at(matrix, (second, first), -weight)
        return matrix

    for _ in range(_STEPS):
        off = 1 / (1 + np.exp(-(strength[first] - strength[second]))) - share
        gradient = strength / prior_std**2
        np.add.at(gradient, first, off)
        np.add.at(gradient, second, -off)
        step = np.linalg.solve(hessian(strength), gradient)
        size = 1.0
        while loss(strength - size * step) > loss(strength) + 1e-12 and size > 1e-4:
            size /= 2
        strength = strength - size * step
        if np.abs(step).max() < _TOLERANCE:
            break
    return strength, np.asarray(np.linalg.inv(hessian(strength)), np.float64)


def next_pair(
    count: int,
    judged: Sequence[Judged],
    rng: np.random.Generator,
    closed: frozenset[tuple[int, int]] = frozenset(),
) -> tuple[int, int] | None:
    """The pair whose answer is expected to tell most; None: all were judged.

    First each picture is met once. Then the information of an answer is p (1 - p) times the variance of the
    difference of strengths: unsure pictures that are close. A little chance keeps sessions from being alike.

    Args:
        count: how many pictures.
        judged: what was answered.
        rng: for ties and the sides.
        closed: pairs, lower index first, that must not be asked.
    """
    met = np.zeros(count, dtype=np.int64)
    done = np.eye(count, dtype=bool)
    for i, j, _ in judged:
        met[[i, j]] += 1
        done[i, j] = done[j, i] = True
    for i, j in closed:
        done[i, j] = done[j, i] = True
    strength, covariance = fit_pairs(count, judged)
    variance = np.diag(covariance)
    gap = strength[:, None] - strength[None, :]
    chance = 1 / (1 + np.exp(-gap))
    telling = chance * (1 - chance) * (variance[:, None] + variance[None, :] - 2 * covariance)
    telling = telling * (1 + 0.1 * rng.random((count, count)))
    # Nobody is asked about one picture much more often than about the others: it would be learned by heart.
    behind = met[:, None] + met[None, :]
    telling = np.where(done, -np.inf, telling / (1 + behind))
    best = int(telling.argmax())
    if not np.isfinite(telling.flat[best]):
        return None
    i, j = divmod(best, count)
    return (i, j) if rng.random() < 0.5 else (j, i)
