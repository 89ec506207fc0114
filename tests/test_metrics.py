"""The four measures against scipy's."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import scipy.stats

from grmp_edge.metrics import agreement, krcc, plcc, rmse, srcc, srcc_interval

RNG = np.random.default_rng(7)
PAIRS = {
    "plain": (RNG.normal(size=200), RNG.normal(size=200)),
    "related": (x := RNG.normal(size=150), x**3 + RNG.normal(size=150)),
    "reversed": (np.arange(50.0), -np.arange(50.0)),
    "ties": (RNG.integers(0, 5, 120), RNG.integers(0, 7, 120)),
    "two": ([0.1, 0.2], [3, 4]),
    "far from zero": (1e6 + RNG.normal(size=60), 1e-6 * RNG.normal(size=60)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_as_scipy(name: str) -> None:
    x, y = map(np.asarray, PAIRS[name])
    found = agreement(x, y)
    assert found.srcc == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-12)
    assert found.plcc == pytest.approx(scipy.stats.pearsonr(x, y).statistic, abs=1e-9)
    assert found.krcc == pytest.approx(scipy.stats.kendalltau(x, y).statistic, abs=1e-12)
    assert found.rmse == pytest.approx(math.sqrt(np.mean((x.astype(float) - y) ** 2)))
    assert found.count == len(x)
    assert min(found.srcc, found.plcc, found.krcc) >= -1
    assert max(found.srcc, found.plcc, found.krcc) <= 1


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e9 / 3])
def test_a_constant_has_no_correlation(constant: float) -> None:
    x, y = np.full(7, constant), np.arange(7.0) * 1e9
    for measure in (srcc, plcc, krcc):
        assert math.isnan(measure(x, y))
        assert math.isnan(measure(y, x))


def test_nan_is_not_ranked() -> None:
    for measure in (srcc, plcc, krcc, rmse):
        assert math.isnan(measure([0.1, math.nan, 0.3, 0.4], [1, 2, 3, 4]))


def test_too_few_and_unequal() -> None:
    for measure in (srcc, plcc, krcc):
        assert math.isnan(measure([1.0], [2.0]))
        assert math.isnan(measure([], []))
    assert rmse([1.0], [3.0]) == 2.0
    with pytest.raises(ValueError, match="3 predictions for 2 labels"):
        srcc([1, 2, 3], [1, 2])


@pytest.mark.parametrize("count, digits", [(6, 0), (50, 1), (300, 9)])
def test_the_interval_is_that_of_scipys_figures_of_the_draws(count: int, digits: int) -> None:
    rng = np.random.default_rng(count)
    y = rng.normal(size=count)
    x = np.round(y + rng.normal(size=count), digits)
    rows = np.random.default_rng([3, count]).integers(0, count, (1000, count))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of draws of one value alone
        drawn = [scipy.stats.spearmanr(x[row], y[row]).statistic for row in rows]
    found = srcc_interval(x, y, seed=3)
    assert found == pytest.approx(np.nanquantile(drawn, (0.025, 0.975)), abs=1e-12)
