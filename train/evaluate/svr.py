"""Support vector regression on few labels through LIBSVM: RBF kernel, tuned by cross-validation.

The usual second stage of hand-crafted quality metrics (BRISQUE's among them): features to opinion scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from grmp_edge.errors import MissingDependencyError

__all__ = ["SvrConfig", "SvrFit", "fit_predict"]

Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SvrConfig:
    """The search."""

    # Powers of two round what LIBSVM's guide advises, coarse: 50 labels tell no finer ones apart.
    costs: tuple[float, ...] = tuple(2.0**e for e in range(-3, 10, 2))
    gammas: tuple[float, ...] = tuple(2.0**e for e in range(-9, 2, 2))
    epsilon: float = 0.05  # in units of the target's 0..1: errors below the labels' own noise cost nothing
    folds: int = 5
    seed: int = 0  # of the folds


@dataclass(frozen=True)
class SvrFit:
    """Predictions and what was chosen to make them."""

    predicted: Float  # (m,)
    cost: float
    gamma: float
    error: float  # mean squared error in cross-validation


def fit_predict(features: Float, target: Float, wanted: Float, config: SvrConfig) -> SvrFit:
    """Search, train on all labels, and predict.

    Args:
        features: of the labelled pictures, (n, k), n at least 4; all that is chosen is chosen on these.
        target: their quality, (n,), about 0..1.
        wanted: features of the pictures to predict, (m, k).
        config: the search.

    Raises:
        MissingDependencyError: LIBSVM's Python package is not installed.
    """
    if find_spec("libsvm") is None:
        raise MissingDependencyError("libsvm-official", "baselines", "support vector regression")
    low, high = features.min(0), features.max(0)
    span = np.where(high > low, high - low, 1.0)
    train, test = 2 * (features - low) / span - 1, 2 * (wanted - low) / span - 1
    order = np.random.default_rng([config.seed, 0x5F0]).permutation(len(train))
    folds = [order[k :: config.folds] for k in range(min(config.folds, len(train)))]
    parts = []
    for fold in folds:
        rest = np.setdiff1d(order, fold)
        parts.append((_Problem(train[rest], target[rest]), _nodes(train[fold]), target[fold]))
    best = (np.inf, config.costs[0], config.gammas[0])
    for gamma in config.gammas:
        for cost in config.costs:
            squares = [
                (problem.train(cost, gamma, config.epsilon).predict(nodes) - truth) ** 2
                for problem, nodes, truth in parts
            ]
            best = min(best, (float(np.concatenate(squares).mean()), cost, gamma))
    error, cost, gamma = best
    machine = _Problem(train, target).train(cost, gamma, config.epsilon)
    return SvrFit(machine.predict(_nodes(test)), cost, gamma, error)


class _Problem:
    """Labelled features in LIBSVM's form, made once and trained on with many settings."""

    def __init__(self, features: Float, target: Float) -> None:
        from libsvm.svm import svm_problem

        self.problem = svm_problem(target.tolist(), features.tolist())

    def train(self, cost: float, gamma: float, epsilon: float) -> _Machine:
        """An epsilon-SVR with an RBF kernel."""
        from libsvm.svmutil import svm_train

        return _Machine(svm_train(self.problem, f"-s 3 -t 2 -c {cost!r} -g {gamma!r} -p {epsilon!r} -q"))


@dataclass(frozen=True)
class _Machine:
    model: Any

    def predict(self, nodes: Sequence[Any]) -> Float:
        from libsvm.svm import libsvm

        return np.array([libsvm.svm_predict(self.model, one) for one in nodes])


def _nodes(features: Float) -> list[Any]:
    from libsvm.svm import gen_svm_nodearray

    return [gen_svm_nodearray(row)[0] for row in features.tolist()]
