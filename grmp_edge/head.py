"""The head that few labels learn: ridge regression on what a frozen network sees, in closed form.

The network's own score is the prior: its slope and offset are fitted to the labels with hardly any penalty.
What it misses is learned from its stem's statistics, or from its unit image feature where there is no stem.
All of it is linear in a view, so it becomes ``head_scale``, ``head_weight``, ``head_row`` and ``head_bias``
of the network, which the export folds. The penalty is chosen by cross-validation within the labels.

Statistics alone, since with 50 labels of LIVEC they rank better (SRCC .69) than features (.66) or both (.68),
and choosing among them within so few labels costs more than it gains; with 200 all three are within .01.

Labels alone would make it blind to faults that none of the labelled pictures has. So distorted twins of the
same pictures are rows of the regression, too: a twin must lie at least a margin below its original, and those
that do not are pulled down, as gently as will do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from grmp_edge.metrics import srcc

__all__ = [
    "MARGIN",
    "Fit",
    "FitReport",
    "Head",
    "Seen",
    "Twins",
    "conformal_width",
    "cross_validated",
    "fit_head",
    "folds_of",
    "start_head",
    "target_logits",
]

Float = npt.NDArray[np.float64]

# In logits: what a twin's score must at least lie below its original's.
MARGIN = 0.5
# The share of twins that must lie below their originals, on pictures that the fit did not see.
SIGHT = 0.9
# Labels become logits by the sigmoid's slope in the middle: 0 and 1 are only the ends of the scale, and their
# true logits, which are infinite, would count most.
_SLOPE = 4.0
# How much less the network's own score is penalised than all other inputs together.
_PRIOR = 3.0
# Of inputs whose rows have unit mean length. The first is within .01 of the best from 50 to 200 labels of
# LIVEC; another must make the error of cross-validation smaller by a twentieth, as chance alone may.
_PENALTIES = (0.3, 0.1, 1.0, 3.0)
_GAIN = 0.95
_PULLS = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0)  # of a twin, as a share of a label's
_FOLDS, _ROUNDS, _MANY = 5, 3, 300  # with many labels, one round of cross-validation will do


@dataclass(frozen=True)
class Seen:
    """What a frozen network makes of n pictures, aggregated over each one's views."""

    logits: Float  # (n,), its own score
    features: Float  # (n, E)
    statistics: Float  # (n, S), standardised; S is 0 without a stem

    def __len__(self) -> int:
        return len(self.logits)

    def take(self, index: npt.ArrayLike) -> Seen:
        """Some of the pictures."""
        rows = np.asarray(index, dtype=np.int64)
        return Seen(self.logits[rows], self.features[rows], self.statistics[rows])


@dataclass(frozen=True)
class Twins:
    """Distorted copies of some of the pictures."""

    seen: Seen  # (m,)
    of: npt.NDArray[np.int64]  # (m,), the picture that each was made from

    def of_pictures(self, index: Sequence[int]) -> Twins:
        """The twins of some pictures, which are then counted from 0."""
        place = {picture: row for row, picture in enumerate(index)}
        rows = [row for row, picture in enumerate(self.of.tolist()) if picture in place]
        of = np.array([place[int(self.of[row])] for row in rows], dtype=np.int64)
        return Twins(self.seen.take(rows), of)


@dataclass(frozen=True)
class Head:
    """A picture's logit: scale * own logit + features . weight + statistics . of_statistics + bias."""

    scale: float
    weight: Float  # (E,)
    of_statistics: Float  # (S,)
    bias: float

    def __call__(self, seen: Seen) -> Float:
        """The pictures' logits, (n,)."""
        logits: Float = self.scale * seen.logits + seen.features @ self.weight + self.bias
        return logits + seen.statistics @ self.of_statistics


class FitReport(TypedDict):
    """How a head was chosen; correlations are SRCC within the labels, by cross-validation."""

    start: float | None  # of the network's own score
    ridge: float | None  # of the head that was chosen
    plain: float | None  # of ridge regression on the same inputs without the network's own score
    inputs: list[str]  # of the ridge, beside the network's own score
    penalty: float
    pull: float  # of a twin, as a share of a label's
    twins: int
    sight: float | None  # share of twins below their originals, by cross-validation
    sight_start: float | None  # the same by the network's own score
    chosen: str  # "ridge" or "start"


@dataclass(frozen=True)
class Fit:
    """A head and how it was chosen."""

    head: Head
    report: FitReport
    predicted: Float  # (n,), logits of each picture by heads that did not see its label


def target_logits(quality: npt.ArrayLike) -> Float:
    """Quality 0..1 to the logits that are regressed on."""
    return _SLOPE * (np.clip(np.asarray(quality, np.float64), 0, 1) - 0.5)


def folds_of(
    count: int, seed: int, rounds: int = 1
) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """(learned, left out) of each fold, round by round; every picture is left out once a round."""
    rng = np.random.default_rng([seed, 0xF01D])
    divided = []
    for _ in range(rounds):
        order = rng.permutation(count)
        for part in np.array_split(order, min(_FOLDS, count)):
            divided.append((np.sort(np.setdiff1d(order, part)), np.sort(part)))
    return divided


@dataclass(frozen=True)
class _Setting:
    inputs: tuple[str, ...]
    penalty: float
    pull: float = 0.0
    prior: float = _PRIOR


class _Ridge:
    """Ridge regression in the dual: rows are pictures, then differences of twins and their originals."""

    def __init__(self, seen: Seen, twins: Twins | None, target: Float) -> None:
        self.count, self.target, self.of = len(seen), target, np.zeros(0, np.int64)
        self.blocks: dict[str, tuple[Float, float]] = {}  # rows (n + m, width), and what they are divided by
        raw = {"prior": seen.logits[:, None], "features": seen.features, "statistics": seen.statistics}
        other: dict[str, Float] = {}
        if twins is not None:
            self.of = twins.of
            own = twins.seen
            other = {"prior": own.logits[:, None], "features": own.features, "statistics": own.statistics}
        self.centre = {name: rows.mean(axis=0) for name, rows in raw.items()}
        for name, rows in raw.items():
            if not rows.shape[1]:
                continue
            centred = rows - self.centre[name]
            scale = float(np.sqrt((centred**2).sum(axis=1).mean())) + 1e-9
            if twins is not None:
                centred = np.concatenate([centred, other[name] - rows[self.of]])
            self.blocks[name] = (centred, scale)
        self.grams = {name: rows @ rows.T / scale**2 for name, (rows, scale) in self.blocks.items()}

    def _weights(self, setting: _Setting) -> dict[str, float]:
        """The weight of each block's products; those of the inputs add up to 1."""
        return {"prior": setting.prior, **{name: 1 / len(setting.inputs) for name in setting.inputs}}

    def gram(self, setting: _Setting) -> Float:
        """Products of all rows with all rows, (n + m, n + m)."""
        total: Float = np.zeros_like(self.grams["prior"])
        for name, weight in self._weights(setting).items():
            total += weight * self.grams[name]
        return total

    def solve(self, gram: Float, setting: _Setting, learned: npt.NDArray[np.int64]) -> tuple[Float, float]:
        """Coefficients (n + m,) of all rows, and the offset, from some pictures and their twins.

        A twin counts only while it lies less than the margin below its original: one-sided, by a few rounds.
        """
        mean = float(self.target[learned].mean())
        pairs = self.count + np.flatnonzero(np.isin(self.of, learned))
        active = pairs[:0]
        coefficients = np.zeros(len(gram))
        for _ in range(6):
            rows = np.concatenate([learned, active])
            weight = np.sqrt(np.concatenate([np.ones(len(learned)), np.full(len(active), setting.pull)]))
            wanted = np.concatenate([self.target[learned] - mean, np.full(len(active), -MARGIN)])
            inside = gram[np.ix_(rows, rows)] * np.outer(weight, weight)
            inside[np.diag_indices_from(inside)] += setting.penalty
            coefficients = np.zeros(len(gram))
            coefficients[rows] = weight * np.linalg.solve(inside, weight * wanted)
            if setting.pull == 0.0 or not len(pairs):
                break
            short = pairs[gram[pairs] @ coefficients > -MARGIN]
            missing = np.setdiff1d(short, active)
            if not len(missing):
                break
            active = np.union1d(active, short)
        return coefficients, mean

    def left_out(
        self, setting: _Setting, folds: Sequence[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]
    ) -> tuple[list[Float], float | None]:
        """Predictions of every picture when left out, round by round; and the share of twins below, then.

        Around the mean of all labels, which moves no picture against another. A fold's own is the lower, the
        higher the labels are that it left out: with 50 of LIVEC that alone takes .02 from the SRCC.
        """
        gram, rounds, below = self.gram(setting), [], []
        mean = float(self.target.mean())
        predicted, seen = np.zeros(self.count), 0
        for learned, left in folds:
            coefficients, _ = self.solve(gram, setting, learned)
            predicted[left] = gram[left] @ coefficients + mean
            twins = self.count + np.flatnonzero(np.isin(self.of, left))
            below.append(gram[twins] @ coefficients < 0)
            seen += len(left)
            if seen == self.count:
                rounds.append(predicted)
                predicted, seen = np.zeros(self.count), 0
        every = np.concatenate(below)
        return rounds, float(every.mean()) if len(every) else None

    def head(self, setting: _Setting) -> Head:
        """The head of all pictures."""
        coefficients, mean = self.solve(self.gram(setting), setting, np.arange(self.count))
        parts = {name: np.zeros(len(centre)) for name, centre in self.centre.items()}
        bias = mean
        for name, weight in self._weights(setting).items():
            rows, scale = self.blocks[name]
            parts[name] = weight * (coefficients @ rows) / scale**2
            bias -= float(self.centre[name] @ parts[name])
        return Head(float(parts["prior"][0]), parts["features"], parts["statistics"], bias)


def fit_head(
    seen: Seen,
    quality: npt.ArrayLike,
    twins: Twins | None = None,
    seed: int = 0,
    prior: bool = True,
) -> Fit:
    """Fit a head to labelled pictures, or leave the network's own order.

    The head is taken only if cross-validation ranks pictures better by it than by the network's own score.

    Args:
        seen: what the network makes of the pictures.
        quality: their labels in 0..1, (n,).
        twins: distorted copies of some of them.
        seed: of the folds.
        prior: False is plain ridge regression without the network's own score, whatever it is worth.
    """
    target = target_logits(quality)
    ridge = _Ridge(seen, twins, target)
    folds = folds_of(len(seen), seed, _ROUNDS if len(seen) <= _MANY else 1)
    inputs = ("statistics",) if "statistics" in ridge.blocks else ("features",)
    settings = [_Setting(inputs, penalty) for penalty in _PENALTIES]

    def error(setting: _Setting) -> float:
        rounds, _ = ridge.left_out(setting, folds)
        return float(np.mean([(one - target) ** 2 for one in rounds]))

    def choose(candidates: Sequence[_Setting]) -> _Setting:
        errors = [error(one) for one in candidates]
        least = int(np.argmin(errors))
        return candidates[least if errors[least] < _GAIN * errors[0] else 0]

    plain = choose([replace(one, prior=0.0) for one in settings])
    best = choose(settings) if prior else plain
    if twins is not None and len(twins.of):
        best = _with_sight(ridge, best, folds)
    rounds, sight = ridge.left_out(best, folds)
    start, chosen = srcc(seen.logits, target), _mean_srcc(rounds, target)
    plain_rounds, _ = ridge.left_out(plain, folds)
    takes_ridge = not prior or not np.isfinite(start) or chosen > start
    head = ridge.head(best) if takes_ridge else start_head(seen, quality)
    predicted: Float = np.mean(rounds, axis=0) if takes_ridge else head(seen)
    own = None if twins is None or not len(twins.of) else twins.seen.logits < seen.logits[twins.of]
    report: FitReport = {
        "start": _number(start),
        "ridge": _number(chosen),
        "plain": _number(_mean_srcc(plain_rounds, target)),
        "inputs": list(best.inputs),
        "penalty": best.penalty,
        "pull": best.pull,
        "twins": 0 if twins is None else len(twins.of),
        "sight": sight,
        "sight_start": None if own is None else float(own.mean()),
        "chosen": "ridge" if takes_ridge else "start",
    }
    return Fit(head, report, predicted)


def cross_validated(
    seen: Seen,
    quality: npt.ArrayLike,
    twins: Twins | None = None,
    seed: int = 0,
    prior: bool = True,
) -> Float:
    """Logits (n,) of each picture by a head that was fitted, and its settings chosen, without its label.

    Where all labels are learned from, this is what an honest figure comes from. The mean of all labels takes
    the place of each fold's: see ``_Ridge.left_out``.
    """
    labels, logits = np.asarray(quality, np.float64), np.zeros(len(seen))
    target = target_logits(labels)
    for learned, left in folds_of(len(seen), seed):
        own = None if twins is None else twins.of_pictures(learned.tolist())
        fit = fit_head(seen.take(learned), labels[learned], own, seed, prior)
        logits[left] = fit.head(seen.take(left)) + target.mean() - target[learned].mean()
    return logits


def conformal_width(predicted: npt.ArrayLike, actual: npt.ArrayLike, coverage: float = 0.9) -> float | None:
    """How far to either side of a score the label lies in ``coverage`` of cases, in the unit of both.

    By split conformal prediction (Vovk et al., 2005) on predictions of pictures that were not learned from:
    it holds for pictures of the same kind, whatever the errors' distribution. None of fewer pictures than
    the coverage needs, nine for .9.
    """
    errors = np.sort(np.abs(np.asarray(predicted, np.float64) - np.asarray(actual, np.float64)))
    rank = int(np.ceil((len(errors) + 1) * coverage))
    return float(errors[rank - 1]) if 0 < rank <= len(errors) else None


def _with_sight(
    ridge: _Ridge,
    setting: _Setting,
    folds: Sequence[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]],
) -> _Setting:
    """The gentlest pull with which enough twins lie below their originals; else the one with most."""
    shares = []
    for pull in _PULLS:
        pulled = replace(setting, pull=pull)
        share = ridge.left_out(pulled, folds)[1] or 0.0
        if share >= SIGHT:
            return pulled
        shares.append((share, -pull))
    return replace(setting, pull=-max(shares)[1])


def start_head(seen: Seen, quality: npt.ArrayLike) -> Head:
    """The network's own score on the labels' scale, in its own order."""
    target = target_logits(quality)
    centred = seen.logits - seen.logits.mean()
    spread = float((centred**2).sum())
    slope = float((centred * (target - target.mean())).sum() / spread) if spread > 0 else 1.0
    # Labels that contradict the order must not reverse it, nor few alike scores become all 0 or 1.
    slope = min(max(slope, 0.1), 10.0)
    bias = float(target.mean() - slope * seen.logits.mean())
    return Head(slope, np.zeros(seen.features.shape[1]), np.zeros(seen.statistics.shape[1]), bias)


def _mean_srcc(rounds: Sequence[Float], target: Float) -> float:
    return float(np.mean([srcc(one, target) for one in rounds]))


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None
