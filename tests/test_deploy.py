"""What deploy/ holds for Prometheus and Grafana, beside what /metrics really says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from grmp_edge.runtime.live.alert import AlertKind
from grmp_edge.runtime.live.events import CameraState, CameraStats
from grmp_edge.runtime.live.live import CameraStatus
from grmp_edge.runtime.sinks.queue import SinkStats
from grmp_edge.runtime.web.prometheus import CameraMetrics
from grmp_edge.score import Score

DEPLOY = Path(__file__).parents[1] / "deploy"


def series() -> dict[str, set[str]]:
    """Names of the series that a watch exposes, each with its labels."""
    last = Score(0.5, "gate", "id", causes={"blur": 0.9}, age_ms=10.0, latency_ms=5.0)
    status = CameraStatus(
        "gate", CameraStats(state=CameraState.RUNNING), 1, last, ("low",), 0.6, {"low": 0.5}
    )
    metrics = CameraMetrics(["gate"], lambda: [status], lambda: [SinkStats("mqtt", 1, 0, 0, "")], lambda: 1)
    metrics.take(
        {"event": "score", "camera": "gate", "at": 1.0, "value": 0.5, "frame": 1, "model": "id",
         "age_ms": 10.0, "latency_ms": 5.0}
    )  # fmt: skip
    found: dict[str, set[str]] = {}
    for line in metrics.text().splitlines():
        if not line.startswith("#"):
            name, labels = re.match(r"(\w+)(?:\{(.*)\})? ", line).groups()  # type: ignore[union-attr]
            found.setdefault(name, set()).update(re.findall(r"(\w+)=", labels or ""))
    return found


def expressions() -> Iterator[str]:
    yaml = pytest.importorskip("yaml")
    for group in yaml.safe_load((DEPLOY / "prometheus-alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            assert (
                rule["labels"]["severity"] in ("critical", "warning", "info")
                and rule["annotations"]["summary"]
            )
            yield rule["expr"]
    dashboard: Any = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    for panel in dashboard["panels"]:
        assert panel["targets"], panel["title"]
        yield from (target["expr"] for target in panel["targets"])
    yield from (annotation["expr"] for annotation in dashboard["annotations"]["list"])


def test_every_metric_that_is_asked_for_exists() -> None:
    exposed = series()
    # Added by Prometheus when it scrapes.
    labels = {"instance", "job"}
    asked = list(expressions())
    assert len(asked) > 20
    for expression in asked:
        names = set(re.findall(r"grmp_edge_\w+", expression))
        assert names or expression.startswith("up"), expression
        for name in names:
            assert name in exposed, (name, expression)
        for name, inner in re.findall(r"(grmp_edge_\w+)\{(.*?)\}", expression):
            assert set(re.findall(r"(\w+)\s*[=!]", inner)) <= exposed[name] | labels, expression
        for values in re.findall(r'kind=~?"([^"$]+)"', expression):
            assert set(values.split("|")) <= set(get_args(AlertKind)), expression


def test_every_kind_of_alert_has_a_rule() -> None:
    text = (DEPLOY / "prometheus-alerts.yaml").read_text()
    kinds = {kind for values in re.findall(r'kind=~?"([^"]+)"', text) for kind in values.split("|")}
    assert kinds == set(get_args(AlertKind))
