"""The ONNX graphs: the same scores as the network written out in the tests, and only what runtimes want."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from helpers_train import pictures, tiny_model
from onnx import TensorProto, shape_inference
from test_model import plain_scores

from grmp_edge.errors import UsageError
from grmp_edge.export.compare import build_plain, build_unfolded, trace_unfolded
from grmp_edge.export.fold import FoldedModel, fold
from grmp_edge.export.graph.builder import GraphBuilder
from grmp_edge.export.graph.count import multiply_adds
from grmp_edge.export.graph.emit import GraphPrecision, build_onnx
from grmp_edge.export.graph.save import save_graph
from grmp_edge.runtime.backends import graph_runner, open_session
from grmp_edge.train.network.backbone import BackboneConfig, load_backbone
from grmp_edge.train.network.model import GrmpIqa
from grmp_edge.train.network.settings import PromptConfig

# All in the operator table of TensorRT 10.3's ONNX parser, for float32 and float16. What shape arithmetic is
# made of (Shape, Gather, Expand, ...) and control flow are not among them.
WANTED = {
    "Add", "Cast", "Concat", "Conv", "Div", "Erf", "LayerNormalization", "MatMul", "Mul", "Pad", "ReduceL2",
    "Reshape", "Sigmoid", "Slice", "Softmax", "Split", "Squeeze", "Transpose",
}  # fmt: skip


def run(model: onnx.ModelProto, images: np.ndarray, optimize: bool = True) -> np.ndarray:
    return np.asarray(graph_runner(open_session(model.SerializeToString(), optimize=optimize))(images))


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    graph = shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.value_info, *graph.input, *graph.output)
    }
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


@pytest.mark.parametrize(
    ("size", "patch", "layers", "quick", "scale", "norm"),
    [
        (32, 8, 4, False, None, "imagenet"),
        (64, 16, 3, True, None, "clip"),
        (48, 16, 2, True, 0.4, "imagenet"),
        (64, 32, 2, False, 0.4, "clip"),
        (32, 16, 1, False, None, "clip"),
    ],
)
def test_scores_are_the_papers(
    size: int, patch: int, layers: int, quick: bool, scale: float | None, norm: str
) -> None:
    prompts = PromptConfig(visual_tokens=5, normalization=norm)
    options = {"size": size, "patch": patch, "layers": layers, "quick_gelu": quick, "layer_scale": scale}
    model = tiny_model(3, prompts, **options)
    images = pictures(5, size, seed=5)
    expected = plain_scores(model, images, layers=layers, patch=patch, quick=quick, norm=norm, prefix="clip.")
    assert np.ptp(expected) > 1e-3
    graph = build_onnx(fold(model))
    onnx.checker.check_model(graph, full_check=True)
    session = graph_runner(open_session(graph.SerializeToString()))
    assert np.asarray(session(images)) == pytest.approx(expected, abs=2e-6)  # a batch of 5
    assert np.asarray(session(images[1:2])) == pytest.approx(expected[1:2], abs=2e-6)  # and of 1
    wide: set[int]
    for wide in (set(), {0}):
        half = build_onnx(fold(model), "fp16", wide)
        onnx.checker.check_model(half, full_check=True)
        assert run(half, images) == pytest.approx(expected, abs=1e-2)
    assert run(build_unfolded(model), images) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("quick", [False, True])
def test_the_graph_is_what_devices_want(precision: GraphPrecision, quick: bool) -> None:
    model = tiny_model(layers=3, quick_gelu=quick)
    graph = build_onnx(fold(model), precision, metadata={"who": "test"})
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", 17)]
    assert graph.ir_version <= 10
    assert {entry.key: entry.value for entry in graph.metadata_props} == {"who": "test"}
    (images,), (scores,) = graph.graph.input, graph.graph.output
    dims = images.type.tensor_type.shape.dim
    assert (images.name, images.type.tensor_type.elem_type) == ("images", TensorProto.UINT8)
    assert dims[0].dim_param and [dim.dim_value for dim in dims[1:]] == [32, 32, 3]
    assert (scores.name, scores.type.tensor_type.elem_type) == ("scores", TensorProto.FLOAT)
    nodes = list(graph.graph.node)
    assert [node.op_type for node in nodes[:3]] == ["Cast", "Transpose", "Conv"]
    assert [node.op_type for node in nodes if "images" in node.input] == ["Cast"]
    kinds = [node.op_type for node in nodes]
    assert set(kinds) == WANTED - ({"Erf"} if quick else set())
    assert kinds.count("LayerNormalization") == 2 * 3 + 3
    assert not {node.domain for node in nodes} - {""}
    norms = {node.name: node for node in nodes if node.op_type == "LayerNormalization"}
    epsilon = {name: next(a.f for a in node.attribute if a.name == "epsilon") for name, node in norms.items()}
    assert epsilon["prompt_norm"] == pytest.approx(1e-6) and epsilon["ln_post"] == pytest.approx(1e-5)
    names = [node.name for node in nodes]
    assert len(set(names)) == len(names) and any(name.startswith("block2.attn.q") for name in names)


def test_every_shape_is_known_but_the_batch() -> None:
    graph = shape_inference.infer_shapes(
        build_onnx(fold(tiny_model())), strict_mode=True, data_prop=True
    ).graph
    known = {value.name: value.type.tensor_type.shape.dim for value in graph.value_info}
    for node in graph.node:
        for name in node.output:
            if name not in ("scores",):
                assert name in known and all(dim.dim_value for dim in known[name][1:]), name
                assert known[name][0].dim_param == "batch" or known[name][0].dim_value == 1, name


def test_half_is_half_and_norms_and_head_are_not() -> None:
    graph = build_onnx(fold(tiny_model(layers=4)), "fp16")
    types = types_of(graph)
    seen = set()
    for node in graph.graph.node:
        if node.op_type in ("LayerNormalization", "Conv", "ReduceL2"):
            assert types[node.output[0]] == TensorProto.FLOAT, node.name
        elif node.name.startswith("block") and node.op_type not in ("Cast",):
            floats = [name for name in (*node.input, *node.output) if types[name] != TensorProto.INT64]
            assert {types[name] for name in floats} == {TensorProto.FLOAT16}, node.name
            seen.add(node.op_type)
        elif node.op_type in ("Sigmoid", "Div", "MatMul"):
            assert types[node.output[0]] == TensorProto.FLOAT, node.name
    assert {"MatMul", "Softmax", "Erf", "Add", "Concat"} <= seen


def test_blocks_kept_in_float32() -> None:
    graph = build_onnx(fold(tiny_model(layers=4)), "fp16", fp32_blocks={1})
    types = types_of(graph)
    assert types["block1.attn.q.weight"] == types["block1.mlp.act"] == TensorProto.FLOAT
    assert types["block0.attn.q.weight"] == types["block2.mlp.act"] == TensorProto.FLOAT16
    # What block 1 may have made too large for half is carried on in float32.
    assert types["block0.out"] == TensorProto.FLOAT16
    assert types["block1.out"] == types["block2.out"] == types["block3.out"] == TensorProto.FLOAT
    with pytest.raises(UsageError, match="no block 4"):
        build_onnx(fold(tiny_model(layers=4)), "fp16", fp32_blocks={4})


def _loud(folded: FoldedModel, block: int, by: float) -> FoldedModel:
    """The same function but for GELU's bend, with hidden activations ``by`` times as large."""
    found = folded.blocks[block]
    louder = replace(
        found, fc_weight=found.fc_weight * by, fc_bias=found.fc_bias * by, proj_weight=found.proj_weight / by
    )  # fmt: skip
    return replace(folded, blocks=(*folded.blocks[:block], louder, *folded.blocks[block + 1 :]))


def test_simulation_shows_the_overflow_of_half_and_float32_blocks_mend_it() -> None:
    folded = _loud(fold(tiny_model(layers=4)), 1, 1e5)
    images = pictures(4)
    exact = run(build_onnx(folded), images)
    assert np.isfinite(exact).all()
    broken = run(build_onnx(folded, "fp16", simulate_half=True), images, optimize=False)
    assert not np.isfinite(broken).any()
    mended = run(build_onnx(folded, "fp16", {1}, simulate_half=True), images, optimize=False)
    assert mended == pytest.approx(exact, abs=1e-2)


def test_simulation_has_no_half_arithmetic_and_rounds_weights_and_results() -> None:
    folded = fold(tiny_model())
    graph = build_onnx(folded, "fp16", simulate_half=True)
    onnx.checker.check_model(graph, full_check=True)
    types = types_of(graph)
    for node in graph.graph.node:
        if node.op_type != "Cast":
            assert TensorProto.FLOAT16 not in {types[name] for name in (*node.input, *node.output)}
    weight = next(t for t in graph.graph.initializer if t.name == "block0.mlp.fc.weight")
    rounded = folded.blocks[0].fc_weight.astype(np.float16).astype(np.float32)
    assert np.array_equal(onnx.numpy_helper.to_array(weight), rounded)
    images = pictures(4)
    difference = run(graph, images, optimize=False) - run(build_onnx(folded), images)
    assert 0 < np.abs(difference).max() < 5e-3


@pytest.mark.parametrize(
    ("value", "expected"), [(1.0, 2.0), (2049.0, 4096.0), (40000.0, np.inf), (2.0**-26, 0.0)]
)
def test_the_runtime_keeps_the_simulations_casts(value: float, expected: float) -> None:
    """Twice a number in half; a runtime that drops the casts gives another one."""
    builder = GraphBuilder(simulate_half=True)
    x = builder.cast(builder.input("x", "f32", ("batch",)), "f16", "x.half")
    twice = builder.op("Add", "twice", x, builder.constant("again", value, "f16"))
    model = builder.model("sum", [(builder.cast(twice, "f32", "out"), ("batch",))], {})
    session = open_session(model.SerializeToString(), optimize=False)
    assert session.run(None, {"x": np.array([value], dtype=np.float32)})[0] == expected


def test_a_file_written_piece_by_piece_is_the_model(tmp_path: Path) -> None:
    folded = fold(tiny_model())
    who, file = {"who": "test"}, tmp_path / "m.onnx"
    save_graph(lambda weights: build_onnx(folded, "fp16", metadata=who, weights=weights), file)
    assert onnx.load(file) == build_onnx(folded, "fp16", metadata=who)
    again = onnx.load(tmp_path / "m.onnx").SerializeToString()
    assert len(again) == (tmp_path / "m.onnx").stat().st_size


def test_the_builder_refuses_mixed_types() -> None:
    builder = GraphBuilder()
    x = builder.input("x", "f32", ("batch", 2))
    with pytest.raises(TypeError, match="mixes"):
        builder.op("Add", "y", x, builder.constant("c", 1.0, "f16"))
    builder.constant("d", 1.0, "f32")
    with pytest.raises(TypeError, match="'d'"):
        builder.constant("d", 1.0, "f16")


def _formula(tokens: int, keys: int, width: int) -> int:
    return 12 * width * width * tokens + 2 * tokens * keys * width


def test_multiply_adds_are_those_of_the_formulas() -> None:
    model = tiny_model(size=64, patch=16, layers=3)
    width, patches, prompts, embed = 24, 16, 5, 12
    tokens, total = 1 + patches, 1 + patches + prompts
    ends = patches * 3 * 16 * 16 * width + width * embed + embed
    assert multiply_adds(build_plain(model)) == 3 * _formula(tokens, tokens, width) + ends
    assert multiply_adds(build_unfolded(model)) == 3 * _formula(total, total, width) + ends
    # The last block: query, output and MLP of one token; keys and values through the query.
    last = 10 * width * width + 2 * width * width + 2 * 3 * tokens * width + 2 * prompts * width
    assert multiply_adds(build_onnx(fold(model))) == 2 * _formula(tokens, total, width) + last + ends


def test_plain_clip_is_clip_without_prompts() -> None:
    model = tiny_model(seed=7)
    images = pictures(3)
    with torch.no_grad():
        pixels = model.pixels(torch.from_numpy(images))
        clip: Any = model.clip
        features = torch.nn.functional.normalize(clip.encode_image(pixels), dim=-1)
        expected = model.logits(features, model.quality_features()).softmax(dim=-1)[:, 0].numpy()
    assert run(build_plain(model), images) == pytest.approx(expected, abs=2e-6)


def test_the_traced_network_is_the_unfolded_one() -> None:
    model = tiny_model(seed=7)
    images = pictures(3)
    with torch.no_grad():
        expected = model(torch.from_numpy(images), unfolded=True).numpy()
    assert run(trace_unfolded(model, 3), images) == pytest.approx(expected, abs=2e-6)


def test_vit_b_16_folds_exactly_and_costs_less_than_plain_clip() -> None:
    torch.manual_seed(0)
    model = GrmpIqa(load_backbone(BackboneConfig("ViT-B-16", "random"))).eval()
    images = pictures(1, 224)
    with torch.no_grad():
        expected = model(torch.from_numpy(images), unfolded=True).numpy()
    folded = fold(model)
    graph = build_onnx(folded)
    assert run(graph, images) == pytest.approx(expected, abs=1e-5)
    assert multiply_adds(graph) == pytest.approx(16.45e9, rel=1e-3)
    del graph
    assert multiply_adds(build_plain(model)) == pytest.approx(17.56e9, rel=1e-3)
    assert multiply_adds(build_unfolded(model)) == pytest.approx(26.97e9, rel=1e-3)
