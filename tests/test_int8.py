"""Eight bits: products against numpy, smoothing against the unsmoothed network, the choice and the gate."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from helpers_train import pictures, tiny_model
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from grmp_edge.bundle import GPU_PRECISIONS, Bundle
from grmp_edge.cli import app
from grmp_edge.default_bundle import DEFAULT_BUNDLE
from grmp_edge.errors import DataError, ParityError
from grmp_edge.export import pipeline
from grmp_edge.export.fold import fold
from grmp_edge.export.graph.emit import build_onnx
from grmp_edge.export.parity import Gate, ParityConfig
from grmp_edge.export.pipeline import ExportConfig, export_bundle
from grmp_edge.export.precision.activations import Activations, calibrate
from grmp_edge.export.precision.int8 import Int8Config, _Search
from grmp_edge.export.precision.quantize import (
    WEIGHT_LEVELS,
    GpuMethod,
    Method,
    activation_scale,
    build_int8,
    layers,
    quantize_weight,
    smooth,
)
from grmp_edge.parity import LIMITS, Limit, Verdict
from grmp_edge.runtime import Scorer
from grmp_edge.runtime.backends import graph_runner, open_session
from grmp_edge.runtime.bench import BenchConfig, bench_bundle
from grmp_edge.score import MosScale
from grmp_edge.train.network.model import GrmpIqa
from grmp_edge.train.session.checkpoint import Checkpoint

ONE_RUN = BenchConfig(batches=(1,), runs=1)


def run(model: onnx.ModelProto, images: np.ndarray, *names: str, optimize: bool = True) -> list[np.ndarray]:
    """The named float32 tensors of a graph, or its scores."""
    for name in names:
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 3))
    session = open_session(model.SerializeToString(), optimize=optimize)
    return list(session.run(list(names) or None, {"images": images}))


def weights_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def rounded(values: np.ndarray, step: float | np.ndarray, low: int, high: int) -> np.ndarray:
    return np.clip(np.rint(values.astype(np.float64) / step), low, high) * step


def test_static_products_are_those_of_rounded_numbers(tmp_path: Path) -> None:
    folded, images = fold(tiny_model(layers=3)), pictures(4)
    seen = calibrate(folded, images, tmp_path)
    assert set(seen) == set(layers(folded)) and list(tmp_path.iterdir()) == []
    scales = {name: activation_scale(found) for name, found in seen.items()}
    graph = build_int8(folded, "static", scales)
    onnx.checker.check_model(graph, full_check=True)
    weight = folded.blocks[0].fc_weight
    for optimize in (False, True):  # in float32 between casts; and fused into integer products
        read, product = run(graph, images, "block0.ln_2", "block0.mlp.fc", optimize=optimize)
        wanted = rounded(read, scales["block0.mlp.fc"], -128, 127) @ quantized(weight)
        assert product == pytest.approx(wanted, abs=1e-4)
        assert not np.allclose(product, read @ weight, atol=1e-4)


@pytest.mark.parametrize("method", ["static", "dynamic"])
def test_products_of_the_largest_values_saturate_on_no_cpu(method: Method) -> None:
    """Every activation and every weight at its end: what overflows in 16 bits where there is no VNNI."""
    folded, images = fold(tiny_model(layers=3)), pictures(2)
    block = folded.blocks[0]
    loud = replace(block.ln_2, weight=np.zeros_like(block.ln_2.weight), bias=np.full_like(block.ln_2.bias, 5))
    weight = np.where(np.arange(block.fc_weight.shape[1]) % 2, 1, -1) * np.ones_like(block.fc_weight)
    blocks = (replace(block, ln_2=loud, fc_weight=weight.astype(np.float32)), *folded.blocks[1:])
    graph = build_int8(replace(folded, blocks=blocks), method, dict.fromkeys(layers(folded), 5 / 127))
    (product,) = run(graph, images, "block0.mlp.fc")
    assert product == pytest.approx(np.broadcast_to(5 * weight.sum(axis=0), product.shape), rel=1e-5)


def test_dynamic_products_are_those_of_rounded_numbers() -> None:
    folded, images = fold(tiny_model(layers=3)), pictures(4)
    graph = build_int8(folded, "dynamic", {})
    onnx.checker.check_model(graph, full_check=True)
    read, product = run(graph, images, "block0.ln_2", "block0.mlp.fc", optimize=False)
    weight = folded.blocks[0].fc_weight
    # The range of the whole batch, with zero in it, in 255 steps.
    step = (max(read.max(), 0) - min(read.min(), 0)) / 255
    wanted = np.rint(read / step).astype(np.float64) * step @ quantized(weight)
    assert product == pytest.approx(wanted, abs=float(2 * step * np.abs(weight).max()))


SCORE = """
import os, sys
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import numpy as np
import onnxruntime
for graph in sys.argv[2:]:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    shape = session.get_inputs()[0].shape[1:]
    images = np.load(sys.argv[1])[:, :shape[0], :shape[1]]
    print(*map(repr, map(float, session.run(["scores"], {"images": images})[0])))
"""


@pytest.mark.system
@pytest.mark.parametrize("cpu", ["Nehalem", "Haswell"])
def test_a_cpu_without_vnni_gives_the_same_scores(cpu: str, tmp_path: Path) -> None:
    """Emulated: SSE or AVX2 alone, whose unsigned-by-signed products end at 16 bits."""
    (tmp_path / "dynamic.onnx").write_bytes(build_int8(fold(tiny_model()), "dynamic", {}).SerializeToString())
    graphs = [DEFAULT_BUNDLE / "model.int8.onnx", tmp_path / "dynamic.onnx"]
    images = pictures(1, 224)
    np.save(tmp_path / "images.npy", images)
    program = ["qemu-x86_64", "-cpu", cpu, os.path.realpath(sys.executable), "-S", "-c", SCORE]
    variables = {"PYTHONPATH": str(Path(onnx.__path__[0]).parent), "OMP_NUM_THREADS": "1"}
    files = map(str, (tmp_path / "images.npy", *graphs))
    said = subprocess.run([*program, *files], env=variables, check=True, capture_output=True, text=True)
    for graph, line in zip(graphs, said.stdout.splitlines(), strict=True):
        session = open_session(graph)
        side = session.get_inputs()[0].shape[1]
        expected = graph_runner(session)(np.ascontiguousarray(images[:, :side, :side]))
        assert [float(word) for word in line.split()] == pytest.approx(expected, abs=1e-5)


def quantized(weight: np.ndarray) -> np.ndarray:
    values, scale = quantize_weight(weight)
    assert values.dtype == np.int8 and np.abs(values).max() <= WEIGHT_LEVELS
    assert scale.shape == (weight.shape[1],)
    wide = values.astype(np.float64) * scale
    assert np.abs(wide - weight).max() <= np.abs(weight).max() / WEIGHT_LEVELS / 2 + 1e-9
    return wide


def test_the_static_graph_is_plain_qdq_that_tensorrt_reads(tmp_path: Path) -> None:
    folded = fold(tiny_model(layers=3))
    scales = dict.fromkeys(layers(folded), 0.1)
    graph = build_int8(folded, "static", scales, wide={"block1.mlp.fc"}, metadata={"who": "test"})
    kinds = [node.op_type for node in graph.graph.node]
    quantised = len(layers(folded)) - 1
    assert kinds.count("QuantizeLinear") == quantised and kinds.count("DequantizeLinear") == 2 * quantised
    weights = weights_of(graph)
    assert weights["block1.mlp.fc.weight"].dtype == np.float32
    assert weights["block1.mlp.proj.weight"].dtype == np.int8
    assert weights["block1.attn.qkv.weight"].shape == (24, 72)
    types = {
        entry.name: entry.type.tensor_type.elem_type for entry in (*graph.graph.input, *graph.graph.output)
    }
    assert types == {"images": TensorProto.UINT8, "scores": TensorProto.FLOAT}
    for node in graph.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            point = weights[node.input[2]]
            assert point.dtype == np.int8 and not point.any()
    # And onnxruntime computes all of them in integers.
    ort = pytest.importorskip("onnxruntime")
    settings = ort.SessionOptions()
    settings.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    settings.log_severity_level = 4
    ort.InferenceSession(graph.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    optimized = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert optimized.count("MatMulIntegerToFloat") == quantised and "DequantizeLinear" not in optimized


def test_smoothing_is_the_same_function_with_evener_channels(tmp_path: Path) -> None:
    folded, images = fold(tiny_model(layers=4, layer_scale=0.4)), pictures(6)
    seen = calibrate(folded, images, tmp_path)
    assert len({name.split(".")[0] for name in seen}) == 4
    (plain,) = run(build_onnx(folded), images)
    for strength in (0.5, 1.0):
        smoothed = smooth(folded, seen, strength)
        (found,) = run(build_onnx(smoothed), images)
        assert found == pytest.approx(plain, abs=2e-6)
        after = calibrate(smoothed, images, tmp_path)
        for name in ("block0.attn.qkv", "block1.mlp.fc", "block2.attn.out", "block3.mlp.fc"):
            assert np.ptp(np.log(after[name].channels)) < np.ptp(np.log(seen[name].channels)), name
            if strength == 1.0:  # nothing but a common factor is left
                assert after[name].channels == pytest.approx(after[name].channels.mean(), rel=1e-3), name


def test_the_step_loses_least() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=4000).astype(np.float32)
    values[0] = 40.0
    top = np.array([40.0], dtype=np.float32)

    def loss(step: float) -> float:
        return float(np.square(rounded(values, step, -127, 127) - values).mean())

    step = activation_scale(Activations(top, values))
    assert 0.3 * 40 / 127 <= step <= 40 / 127
    assert loss(step) <= 1.01 * min(loss(part * 40 / 127) for part in np.linspace(0.3, 1, 200))
    even = np.linspace(-1, 1, 1001, dtype=np.float32)
    assert activation_scale(Activations(np.ones(1, np.float32), even)) == pytest.approx(1 / 127, rel=0.03)
    assert activation_scale(Activations(np.zeros(3, np.float32), np.zeros(3, np.float32))) == 1.0


def take(model: GrmpIqa, path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path.mkdir(parents=True)
    loaded = Checkpoint(path, model, MosScale(1.0, 5.0), {"format_version": 1}, [])
    monkeypatch.setattr(pipeline, "load_checkpoint", lambda _path, _weights: loaded)
    return path


def test_a_bundle_with_eight_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(seed=6, layers=3)
    checkpoint = take(model, tmp_path / "c", monkeypatch)
    (tmp_path / "photos").mkdir()
    for index, picture in enumerate(pictures(5, 40)):
        cv2.imwrite(str(tmp_path / "photos" / f"{index}.png"), picture)
    images = pictures(5, 32, seed=8)
    with torch.no_grad():
        expected = model(torch.from_numpy(images), unfolded=True).numpy()
    for gain, method in ((np.inf, "static"), (-np.inf, "dynamic")):
        config = ExportConfig(
            int8=True,
            calibration=tmp_path / "photos",
            quantize=Int8Config(dynamic_gain=gain, timing=ONE_RUN, smoothing=(0.0, 0.5)),
        )
        bundle = export_bundle(checkpoint, tmp_path / "b", config)
        assert {path.name for path in bundle.path.iterdir()} == {
            "bundle.json",
            "model.onnx",
            "model.int8.onnx",
        }
        found = np.asarray(graph_runner(open_session(bundle.graph("int8")))(images))
        assert found == pytest.approx(expected, abs=0.02) and found.dtype == np.float32
        report, link = bundle.parity["int8"], bundle.parity["links"]["int8"]
        assert report["method"] == method and report["calibration"] == "pictures: 5 from photos"
        chosen = report["static"] if method == "static" else report["dynamic"]
        assert link["mean_abs"] is not None and link["mean_tolerance"] == 0.01
        assert chosen["mean_abs"] == link["mean_abs"] <= 0.01
        assert set(report["static"]["time_ratio"]) == set(report["dynamic"]["time_ratio"]) == {"1"}
    broken = replace(config, calibration=tmp_path / "none")
    with pytest.raises(DataError, match="none"):
        export_bundle(checkpoint, tmp_path / "b", broken)


def test_a_sensitive_layer_is_found_and_stays_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One hidden unit is so loud that the step its neighbours share is too coarse for them."""
    model = tiny_model(seed=6, layers=3)
    mlp: Any = model.image.blocks[1].mlp
    with torch.no_grad():
        mlp.c_fc.weight[7] *= 2000
        mlp.c_fc.bias[7] *= 2000
        mlp.c_proj.weight[:, 7] /= 2000
    checkpoint = take(model, tmp_path / "c", monkeypatch)
    strict = ParityConfig({**LIMITS, "int8": Limit(worst=None, mean=2e-3, srcc=0.99, spread=0.01)})
    quantize = Int8Config(timing=ONE_RUN, smoothing=(0.0,), target=0.5)
    bundle = export_bundle(
        checkpoint, tmp_path / "b", ExportConfig(int8=True, quantize=quantize, parity=strict)
    )
    assert bundle.parity["int8"]["static"]["float32_layers"] == ["block1.mlp.proj"]
    difference = bundle.parity["links"]["int8"]["mean_abs"]
    assert difference is not None and difference < 1e-3
    kept = weights_of(onnx.load(bundle.graph("int8")))["block1.mlp.proj.weight"]
    assert kept.dtype == np.float32


@pytest.mark.parametrize("needed", [0, 1, 2, 3, 5, 6, 7, 8, 9])
def test_no_more_layers_stay_in_float32_than_are_needed(tmp_path: Path, needed: int) -> None:
    """The search is told how many of the worst layers must go back; half of 16 is the most."""
    model = tiny_model(layers=4)
    names = layers(fold(model))
    harm = {name: float(value) for value, name in enumerate(np.random.default_rng(1).permutation(names))}
    asked: list[int] = []

    class Told(_Search):
        def _judge(self, method: Method, strength: float, wide: frozenset[str], words: str) -> Verdict:
            asked.append(len(wide))
            mean = 0.0 if len(wide) >= needed else 0.009
            return Verdict(mean, mean, 1.0, 1.0, LIMITS["int8"], "")

        def _readings(self, method: Method, strength: float, wide: frozenset[str], count: int) -> np.ndarray:
            (alone,) = set(names) - wide
            return self.gate.readings[:count] + harm[alone]

    gate = Gate(model, pictures(2), ParityConfig())
    found = Told(fold(model), pictures(2), gate, tmp_path, Int8Config(smoothing=(0.0,)), {}, lambda _: None)
    graph = found.best("static")
    worst = sorted(names, key=lambda name: -harm[name])[: min(needed, 8)]
    assert list(graph.wide) == sorted(worst, key=names.index)
    assert graph.verdict.mean_abs == (0.0 if needed <= 8 else 0.009) and len(asked) <= 7


def test_what_fails_the_gate_is_refused_with_what_was_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = take(tiny_model(seed=6, layers=3), tmp_path / "c", monkeypatch)
    impossible = ParityConfig({**LIMITS, "int8": Limit(worst=None, mean=1e-9, srcc=0.99)})
    quantize = Int8Config(timing=ONE_RUN, smoothing=(0.0,))
    with pytest.raises(ParityError, match=r"static mean difference .*; dynamic mean .*; tried .* 6 groups"):
        export_bundle(
            checkpoint, tmp_path / "b", ExportConfig(int8=True, quantize=quantize, parity=impossible)
        )
    assert not (tmp_path / "b").exists() and [path.name for path in tmp_path.iterdir()] == ["c"]


def test_export_command_with_eight_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = take(tiny_model(seed=6, layers=2), tmp_path / "c", monkeypatch)
    arguments = ["export", str(checkpoint), "-o", str(tmp_path / "b")]
    result = CliRunner().invoke(app, [*arguments, "--int8", "--triton", str(tmp_path / "models")])
    assert result.exit_code == 0, result.output
    model = tmp_path / "models" / "b" / "1" / "model.onnx"
    assert model.read_bytes() == (tmp_path / "b" / "model.int8.onnx").read_bytes()
    assert "KIND_CPU" in (model.parents[1] / "config.pbtxt").read_text() and "tritonserver" in result.stderr
    assert (
        "model.int8.onnx" in result.stdout and "int8 dynamic" in result.stdout and "(kept)" in result.stdout
    )
    result = CliRunner().invoke(app, [*arguments, "--int8", "--json"])
    rows = json.loads(result.stdout)["graphs"]
    assert [row["precision"] for row in rows] == ["fp32", "int8"]
    result = CliRunner().invoke(app, [*arguments, "--calibration", str(tmp_path)])
    assert result.exit_code == 2 and "belongs to --int8" in result.stderr


@pytest.mark.parametrize(("method", "opset"), [("int8-fp16", 19), ("fp8", 21)])
def test_graphs_for_gpus_are_half_round_eight_bits(method: GpuMethod, opset: int, tmp_path: Path) -> None:
    folded, images = fold(tiny_model(layers=3)), pictures(4)
    scales = {name: activation_scale(seen) for name, seen in calibrate(folded, images, tmp_path).items()}
    graph = build_int8(folded, method, scales, wide={"block1.mlp.fc"})
    onnx.checker.check_model(graph, full_check=True)
    assert graph.opset_import[0].version == opset
    inferred = onnx.shape_inference.infer_shapes(graph).graph.value_info
    types = {value.name: value.type.tensor_type.elem_type for value in inferred}
    eight = {TensorProto.INT8, TensorProto.FLOAT8E4M3FN}
    kinds = [node.op_type for node in graph.graph.node]
    for node in graph.graph.node:
        if node.op_type == "QuantizeLinear":
            assert types[node.output[0]] in eight
        if node.op_type in ("DequantizeLinear", "Softmax", "Erf", "MatMul") and node.name.startswith("block"):
            assert types[node.output[0]] == TensorProto.FLOAT16, node.name
        if node.op_type == "LayerNormalization":
            assert types[node.output[0]] == TensorProto.FLOAT
    count = len(layers(folded)) - 1
    assert kinds.count("DequantizeLinear") == 2 * count
    assert kinds.count("QuantizeLinear") == (count if method == "int8-fp16" else 2 * count)
    (exact,) = run(build_onnx(folded), images)
    (scores,) = run(graph, images, optimize=False)
    assert 1e-5 < np.abs(scores - exact).max() < 0.01
    # The weights' eight bits are full ones: here nothing saturates in 16.
    if method == "int8-fp16":
        assert np.abs(weights_of(graph)["block0.mlp.fc.weight"]).max() == 127


def test_graphs_for_gpus_are_exported_and_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = take(tiny_model(seed=6, layers=3), tmp_path / "c", monkeypatch)
    arguments = ["export", str(checkpoint), "-o", str(tmp_path / "b"), "--int8-fp16", "--fp8"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    bundle = Bundle.load(tmp_path / "b")
    assert set(bundle.graphs) == {"fp32", *GPU_PRECISIONS}
    assert [bundle.graphs[name].opset for name in GPU_PRECISIONS] == [19, 21]
    for name in GPU_PRECISIONS:
        link = bundle.parity["links"][name]
        assert link["passed"] and link["mean_tolerance"] == 0.01 and name in bundle.parity["check"]["scores"]
        assert bundle.parity["gpu"][name]["float32_layers"] is not None
    # A CPU can run them when asked, and neither times them nor chooses them.
    with Scorer.open(bundle, "fp8", "cpu") as scorer:
        assert 0 <= scorer.score(pictures(1, 32)[0]).value <= 1
    assert {timing.name for timing in bench_bundle(bundle, ONE_RUN).timings} == {"fp32"}
