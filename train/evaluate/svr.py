"""Support vector regression on few labels: scikit-learn's, RBF kernel, tuned by cross-validation.

The usual second stage of hand-crafted quality metrics (BRISQUE's among them): features to opinion scores.
"""

from __future__ import annotations

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
    """The grid search and its folds."""

    # A coarse form of the grid that LIBSVM's guide recommends: 50 labels do not resolve a finer one.
    costs: tuple[float, ...] = tuple(2.0**e for e in range(-3, 10, 2))
    gammas: tuple[float, ...] = tuple(2.0**e for e in range(-9, 2, 2))
    epsilon: float = 0.05  # in units of the target's 0..1: errors below the labels' own noise cost nothing
    folds: int = 5
    seed: int = 0  # of the folds


@dataclass(frozen=True)
class SvrFit:
    """Predictions and the settings chosen for them."""

    predicted: Float  # (m,)
    cost: float
    gamma: float
    error: float  # mean squared error in cross-validation


def fit_predict(labelled: Float, target: Float, unlabelled: Float, config: SvrConfig) -> SvrFit:
    """Search, train on all labels, and predict.

    Args:
        labelled: features of the labelled pictures, (n, k), n at least 4; scaling and settings are chosen on
            these alone.
        target: their quality, (n,), about 0..1.
        unlabelled: features of the pictures to predict, (m, k).
        config: the search.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    if find_spec("sklearn") is None:
        raise MissingDependencyError("scikit-learn", "baselines", "support vector regression")
    from sklearn.model_selection import GridSearchCV, PredefinedSplit
    from sklearn.svm import SVR

    def score(machine: Any, features: Float, truth: Float) -> float:
        # Summed, not averaged: folds differ in size by one, and every label should count alike.
        return -float(((machine.predict(features) - truth) ** 2).sum())

    low, high = labelled.min(0), labelled.max(0)
    span = np.where(high > low, high - low, 1.0)
    train, test = 2 * (labelled - low) / span - 1, 2 * (unlabelled - low) / span - 1
    count = min(config.folds, len(train))
    fold = np.empty(len(train), np.int64)
    fold[np.random.default_rng([config.seed, 0x5F0]).permutation(len(train))] = np.arange(len(train)) % count
    grid = {"C": list(config.costs), "gamma": list(config.gammas)}
    search = GridSearchCV(
        SVR(kernel="rbf", epsilon=config.epsilon), grid, scoring=score, cv=PredefinedSplit(fold)
    ).fit(train, target)
    return SvrFit(
        np.asarray(search.predict(test), dtype=np.float64),
        float(search.best_params_["C"]),
        float(search.best_params_["gamma"]),
        -float(search.best_score_) * count / len(train),
    )
