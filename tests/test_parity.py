"""One gate for the export, the device and the CPU: what is demanded, and how it travels in a bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import write_tiny_graph

from grmp_edge.bundle import Bundle, write_bundle
from grmp_edge.errors import BundleError
from grmp_edge.parity import LIMITS, RULE, Limit, ParityReport, gate_report, judge, limit_for
from grmp_edge.preprocess import NORMALIZATIONS, Preprocess


@pytest.mark.parametrize("precision", LIMITS)
def test_the_order_is_demanded_from_the_limits_own_spread_on(precision: str) -> None:
    limit = LIMITS[precision]
    for spread, demanded in ((limit.spread + 1e-4, True), (limit.spread - 1e-4, False)):
        reference = 0.5 + max(spread, 1e-5) * np.array([-1.0, 1.0] * 8)
        verdict = judge(reference, reference, limit)
        assert verdict.limit.srcc == (limit.srcc if demanded else None)
        assert not verdict.problem and verdict.srcc == pytest.approx(1)


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
