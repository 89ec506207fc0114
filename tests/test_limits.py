"""The machine's own limit beside a measured graph: its work, counted, and the share reached."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers_train import tiny_model
from typer.testing import CliRunner

from grmp_edge.bundle import Bundle
from grmp_edge.cli import app
from grmp_edge.export.fold import fold
from grmp_edge.export.graph.count import multiply_adds
from grmp_edge.export.graph.emit import build_onnx
from grmp_edge.runtime.backends import open_session
from grmp_edge.runtime.bench import Timing
from grmp_edge.runtime.measure.limits import Machine, Work, graph_work, measure_machine, reached
from grmp_edge.runtime.measure.probe import FLOAT, INT8, INT32, UINT8, operator_graph


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_work_is_that_of_the_graph_as_written(precision: str) -> None:
    """Counted from what onnxruntime ran, fused, against the shapes that onnx infers from the file."""
    bundle = Bundle.load("default")
    work = graph_work(bundle, precision)
    assert work.float32 + work.int8 == multiply_adds(onnx.load(bundle.graph(precision)))
    assert (work.int8 > 0) == (precision == "int8")
    assert work.weights > 5_000_000


def test_the_counts_of_a_transformer(tmp_path: Path, tiny_bundle: Bundle) -> None:
    model = build_onnx(fold(tiny_model(layers=3)))
    onnx.save(model, tiny_bundle.graph())  # a bundle already loaded: its hashes are not looked at again
    assert graph_work(tiny_bundle, "fp32").float32 == multiply_adds(model)


def test_products_of_the_probe_are_right() -> None:
    rng = np.random.default_rng(0)
    x = {
        "x0": rng.integers(0, 256, (5, 7)).astype(np.uint8),
        "x1": rng.integers(-64, 65, (7, 3)).astype(np.int8),
    }
    graph = operator_graph("MatMulInteger", (UINT8, INT8), INT32, 2)
    onnx.checker.check_model(onnx.load_from_string(graph), full_check=True)
    (y,) = open_session(graph).run(None, x)
    assert np.array_equal(y, x["x0"].astype(int) @ x["x1"].astype(int))
    wide = {name: values.astype(np.float32) for name, values in x.items()}
    (y,) = open_session(operator_graph("MatMul", (FLOAT, FLOAT), FLOAT, 2)).run(None, wide)
    assert np.array_equal(y, wide["x0"] @ wide["x1"])


def test_the_share_is_of_the_tighter_limit() -> None:
    machine = Machine(float32=1e9, int8=4e9, bytes=1e9)
    timing = Timing("int8", 2, 5, 20.0, 20.0, 100.0, 1.0, 20.0, 1.0)
    # Two pictures: 2 * (3 ms of float32 + 1 ms of eight bits) in 20 ms.
    assert reached(timing, Work(3_000_000, 4_000_000, 1000), machine) == 0.4
    assert reached(timing, Work(3_000_000, 4_000_000, 10_000_000), machine) == 0.5  # 10 ms of reading


def test_bench_prints_them() -> None:
    result = CliRunner().invoke(app, ["bench", "default", "--runs", "1", "--batch", "1", "--json"])
    assert result.exit_code == 0, result.stderr
    measured = json.loads(result.stdout)
    assert set(measured["machine"]) == {"float32", "int8", "bytes"}
    assert len(measured["of_limit"]) == len(measured["timings"]) == 3
    assert all(share > 0 for share in measured["of_limit"])
    assert min(measure_machine(1).__dict__.values()) > 1e6
