"""One gate for the export, the device and the CPU: what is demanded, and how it travels in a bundle."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import write_tiny_graph
from scipy.stats import spearmanr

from grmp_edge.bundle import Bundle, write_bundle
from grmp_edge.errors import BundleError
from grmp_edge.parity import LIMITS, RULE, Limit, ParityReport, checked_parity, gate_report, judge, limit_for
from grmp_edge.preprocess import NORMALIZATIONS, Preprocess


@pytest.mark.parametrize("precision", LIMITS)
def test_the_order_is_demanded_from_the_limits_own_spread_on(precision: str) -> None:
    limit = LIMITS[precision]
    for spread, demanded in ((limit.spread + 1e-4, True), (limit.spread - 1e-4, False)):
        reference = 0.5 + max(spread, 1e-5) * np.array([-1.0, 1.0] * 8)
        verdict = judge(reference, reference, limit)
        assert verdict.limit.srcc == (limit.srcc if demanded else None)
        assert not verdict.problem and verdict.srcc == pytest.approx(1)


def test_near_ties_may_change_places() -> None:
    """32 pictures, no score off by more than 2.1e-3, three pairs swapped that are nearer than that."""
    reference = np.linspace(0.2, 0.8, 32)
    for at in (4, 12, 20):
        reference[at + 1] = reference[at] + 2e-3
    scores = reference.copy()
    for at in (4, 12, 20):
        scores[[at, at + 1]] += [2.1e-3, -2.1e-3]
    verdict = judge(reference, scores, LIMITS["fp16"])
    assert verdict.srcc == pytest.approx(spearmanr(scores, reference).statistic) and verdict.srcc < 0.9995
    assert not verdict.problem and verdict.srcc_apart == 1
    strict = replace(LIMITS["fp16"], srcc=0.9995)
    assert not judge(reference, scores, strict).problem
    # The rule of older bundles counts every pair, and so do eight bits.
    assert "SRCC" in judge(reference, scores, replace(strict, near=0.0)).problem
    assert LIMITS["int8"].near == 0
    # Pairs further apart count.
    scores[[0, 1]] = reference[[1, 0]]
    assert judge(reference, scores, replace(strict, worst=1.0)).srcc_apart < 1


@pytest.mark.parametrize("seed", range(5))
def test_without_near_pairs_it_is_spearmans_correlation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    reference, scores = rng.random(40), rng.random(40)
    verdict = judge(reference, scores, Limit(worst=None, mean=None, srcc=0.99, near=1e-12))
    assert verdict.srcc_apart == pytest.approx(spearmanr(scores, reference).statistic, abs=1e-12)
    assert "without pairs nearer than 1e-12" in verdict.problem
    # All scores equal say nothing about the order; one that is no number is named as such.
    assert judge(
        reference, np.full(40, 0.5), Limit(None, None, 0.99, near=1e-12)
    ).srcc_apart == pytest.approx(0)
    assert "not numbers" in judge(reference, reference * np.nan, Limit(None, None, 0.99, near=0.1)).problem


def test_bundles_of_the_older_rule_are_judged_by_it() -> None:
    gate = gate_report(LIMITS)
    older = {
        name: {key: limit[key] for key in ("worst", "mean", "srcc", "spread")}
        for name, limit in gate["limits"].items()
    }
    parity: ParityReport = {"gate": {"rule": "worst-mean-srcc-1", "limits": older}}
    assert limit_for(parity, "fp16") == replace(LIMITS["fp16"], near=0.0)


def test_the_limits_travel_in_the_bundle(tmp_path: Path) -> None:
    write_tiny_graph(tmp_path / "model.onnx")
    own = {**LIMITS, "fp16": Limit(worst=1e-3, mean=2e-4, srcc=None, spread=0.05)}
    write_bundle(
        tmp_path / "b",
        {"fp32": (tmp_path / "model.onnx", 17)},
        backbone={},
        preprocess=Preprocess(40, 32),
        normalization=NORMALIZATIONS["clip"],
        mos=None,
        parity={"gate": gate_report(own)},
        provenance={},
    )
    parity = Bundle.load(tmp_path / "b").parity
    assert {precision: limit_for(parity, precision) for precision in own} == own
    assert parity["gate"]["rule"] == RULE


def test_older_bundles_are_judged_by_this_versions_limits() -> None:
    links: ParityReport = {"links": {}}
    for parity in (ParityReport(), links):
        assert {precision: limit_for(parity, precision) for precision in LIMITS} == LIMITS
    partial: ParityReport = {"gate": gate_report({"fp32": LIMITS["fp32"]})}
    assert limit_for(partial, "int8") == LIMITS["int8"]


def test_an_unknown_rule_is_refused_and_unknown_fields_are_ignored() -> None:
    gate = gate_report(LIMITS)
    gate["limits"]["fp32"]["median"] = 0.1
    assert limit_for({"gate": gate}, "fp32") == LIMITS["fp32"]
    with pytest.raises(BundleError, match="unknown rule 'another-2'") as caught:
        limit_for({"gate": {**gate, "rule": "another-2"}}, "fp32")
    assert "update" in caught.value.remedy


def test_a_gate_that_cannot_be_judged_by_is_damage() -> None:
    good = json.loads(json.dumps(gate_report(LIMITS)))
    checked_parity({"gate": good})
    checked_parity({"gate": {"rule": "another-2"}})  # judged by nobody here, and said when it is asked for
    limit = good["limits"]["fp32"]
    bad: list[object] = [[1], {}, {"rule": RULE}, {"rule": RULE, "limits": {"fp32": {"worst": 1.0}}}]
    bad += [
        {**good, "limits": {"fp32": {**limit, **change}}} for change in ({"worst": "a"}, {"spread": None})
    ]
    for gate in bad:
        with pytest.raises((ValueError, KeyError, TypeError)):
            checked_parity({"gate": gate})
