"""Graphs with their weights in a shared safetensors file: same scores, every damage seen, copied whole."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import make_image, write_tiny_bundle
from helpers_train import pictures, tiny_model
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save_file

from grmp_edge.bundle import SCHEMA_VERSION, Bundle, manifest_digest, write_bundle
from grmp_edge.errors import BundleError, ModelError
from grmp_edge.export import pipeline
from grmp_edge.export.fold import fold
from grmp_edge.export.graph import save
from grmp_edge.export.graph.emit import build_onnx
from grmp_edge.export.graph.external_data import places, point
from grmp_edge.export.graph.save import data_file, discard, save_graph
from grmp_edge.export.mapped import Spool
from grmp_edge.export.pipeline import ExportConfig, export_bundle
from grmp_edge.export.precision import activations as calibrate
from grmp_edge.export.precision import half as widen
from grmp_edge.export.precision import int8
from grmp_edge.export.triton import write_triton
from grmp_edge.onnx_wire import external_files
from grmp_edge.preprocess import NORMALIZATIONS, Preprocess
from grmp_edge.runtime import Scorer
from grmp_edge.train.session.checkpoint import Checkpoint

SIDE = 8
SHARED = "weights.safetensors"


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {
        "unrelated": rng.standard_normal(5).astype(np.float16),
        "dense": (rng.standard_normal((SIDE * SIDE * 3, 1)) / 2000).astype(np.float16),
        "bias": np.array([0.25], np.float32),
    }


def graph(dtype: int) -> onnx.ModelProto:
    """uint8 (N, 8, 8, 3) -> one product with half weights -> sigmoid, with the weights inside the file.

    ``dtype`` is what the product is computed in: for FLOAT the half weights are cast, as a default bundle
    has it; the bias is float32 in both.
    """
    node, shape = helper.make_node, helper.make_tensor_value_info
    nodes = [
        node("Cast", ["images"], ["pixels"], to=dtype),
        node("Reshape", ["pixels", "flat"], ["rows"]),
        node("Cast", ["dense.weight"], ["dense"], to=dtype),
        node("MatMul", ["rows", "dense"], ["product"]),
        node("Cast", ["product"], ["wide"], to=TensorProto.FLOAT),
        node("Add", ["wide", "dense.bias"], ["logit"]),
        node("Sigmoid", ["logit"], ["high"]),
        node("Reshape", ["high", "one"], ["scores"]),
    ]
    stored = weights()
    made = helper.make_graph(
        nodes,
        "dense",
        [shape("images", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [shape("scores", TensorProto.FLOAT, ["batch"])],
        [
            numpy_helper.from_array(stored["dense"], "dense.weight"),
            numpy_helper.from_array(stored["bias"], "dense.bias"),
            numpy_helper.from_array(np.array([0, SIDE * SIDE * 3]), "flat"),
            numpy_helper.from_array(np.array([-1]), "one"),
        ],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


NAMES = {"dense.weight": "dense", "dense.bias": "bias"}


@pytest.fixture
def shared(tmp_path: Path) -> Bundle:
    """Two graphs round one file of weights, in a bundle."""
    folder = tmp_path / "made"
    folder.mkdir()
    file = folder / SHARED
    save_file(weights(), file)
    graphs = {}
    for precision, dtype in (("fp32", TensorProto.FLOAT), ("fp16", TensorProto.FLOAT16)):
        model = graph(dtype)
        for weight in model.graph.initializer:
            if weight.name in NAMES:
                point(weight, file.name, places(file)[NAMES[weight.name]])
        path = folder / f"{precision}.onnx"
        onnx.save(model, str(path))
        onnx.checker.check_model(str(path), full_check=True)
        graphs[precision] = (path, 17)
    return write(folder / "b", graphs, [file])


def write(path: Path, graphs: dict[str, tuple[Path, int]], files: list[Path]) -> Bundle:
    return write_bundle(
        path,
        graphs,
        files=files,
        backbone={},
        preprocess=Preprocess(10, SIDE),
        normalization=NORMALIZATIONS["clip"],
        mos=None,
        parity={},
        provenance={},
    )


def run(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"images": images})[0])


def test_both_graphs_score_as_with_their_weights_inside(shared: Bundle, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE, 3), dtype=np.uint8)
    stored = load_file(shared.path / SHARED)
    logit = images.reshape(5, -1).astype(np.float64) @ stored["dense"].astype(np.float64) + stored["bias"]
    expected = 1 / (1 + np.exp(-logit[:, 0]))
    assert expected.std() > 0.01
    for precision, dtype in (("fp32", TensorProto.FLOAT), ("fp16", TensorProto.FLOAT16)):
        inline = tmp_path / "inline.onnx"
        onnx.save(graph(dtype), str(inline))
        scores = run(shared.graph(precision), images)
        assert np.array_equal(scores, run(inline, images))
        assert scores == pytest.approx(expected, abs=1e-6 if precision == "fp32" else 5e-3)
        assert shared.graph(precision).stat().st_size < inline.stat().st_size
        assert shared.data_files(precision) == [shared.path / SHARED]
    with Scorer.open(shared.path) as scorer:
        image = make_image(seed=2)
        value = scorer.score(image).value
    assert value == pytest.approx(float(run(shared.graph(), Preprocess(10, SIDE)(image)[None])[0]), abs=1e-6)


def test_the_manifest_tells_of_the_shared_file(shared: Bundle) -> None:
    data = json.loads((shared.path / "bundle.json").read_text())
    content = (shared.path / SHARED).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    assert data["files"] == {SHARED: {"sha256": digest, "bytes": len(content), "graphs": ["fp32", "fp16"]}}
    # A reader of version 1 would neither check nor copy the file.
    assert data["schema_version"] == 2 <= SCHEMA_VERSION
    hashes = [data["graphs"][precision]["sha256"] for precision in ("fp32", "fp16")]
    assert data["id"] == hashlib.sha256("".join([*hashes, digest]).encode()).hexdigest()[:12]
    joined = hashlib.sha256((hashes[1] + digest).encode()).hexdigest()
    assert shared.graph_digest("fp16") == joined != shared.graph_digest("fp32")
    assert sorted(path.name for path in shared.path.iterdir()) == [
        "bundle.json", "fp16.onnx", "fp32.onnx", SHARED,
    ]  # fmt: skip


def test_a_bundle_without_data_files_is_still_version_1(tiny_bundle: Bundle) -> None:
    data = json.loads((tiny_bundle.path / "bundle.json").read_text())
    assert data["schema_version"] == 1 and "files" not in data
    assert tiny_bundle.graph_digest("fp32") == tiny_bundle.graphs["fp32"].sha256
    assert tiny_bundle.data_files("fp32") == []


def test_every_flipped_byte_of_the_shared_file_is_seen(shared: Bundle) -> None:
    file = shared.path / SHARED
    good = file.read_bytes()
    for at in range(0, len(good), 11):
        bad = bytearray(good)
        bad[at] ^= 1
        file.write_bytes(bad)
        with pytest.raises(BundleError, match=r"weights\.safetensors: damaged"):
            Bundle.load(shared.path)
    file.write_bytes(good[:-1])
    with pytest.raises(BundleError, match="damaged"):
        Bundle.load(shared.path, verify=False)
    file.unlink()
    with pytest.raises(BundleError, match=r"weights\.safetensors: missing"):
        Bundle.load(shared.path, verify=False)
    file.write_bytes(good)
    assert Bundle.load(shared.path) == shared


def test_a_graph_may_read_only_what_is_listed_for_it(shared: Bundle) -> None:
    """Otherwise somebody else's file, or an unhashed one, would be part of the network."""
    manifest = shared.path / "bundle.json"
    data = json.loads(manifest.read_text())

    def refused(files: dict[str, Any]) -> None:
        changed = {**data, "files": files}
        manifest.write_text(json.dumps({**changed, "manifest_sha256": manifest_digest(changed)}))
        with pytest.raises(BundleError, match=r"onnx: keeps weights in 'weights\.safetensors', which bundle"):
            Bundle.load(shared.path)

    refused({})
    refused({SHARED: {**data["files"][SHARED], "graphs": ["fp16"]}})
    changed = {**data, "files": {"../x": data["files"][SHARED]}}
    manifest.write_text(json.dumps({**changed, "manifest_sha256": manifest_digest(changed)}))
    with pytest.raises(BundleError, match=r"bundle\.json: damaged .*leaves the bundle"):
        Bundle.load(shared.path)


def test_writing_wants_every_file_and_none_too_many(shared: Bundle, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in shared.path.iterdir()}
    copy = tmp_path / "copy"
    shutil.copytree(shared.path, copy)
    one = {"fp32": (copy / "fp32.onnx", 17)}
    with pytest.raises(BundleError, match="which is not given"):
        write(shared.path, one, [])
    extra = copy / "notes.bin"
    extra.write_bytes(b"1")
    assert (copy / "fp32.onnx").is_file()  # a refused write takes nothing
    with pytest.raises(ValueError, match=r"no graph keeps weights in notes\.bin"):
        write(shared.path, one, [copy / SHARED, extra])
    assert {path.name: path.read_bytes() for path in shared.path.iterdir()} == before


def test_a_triton_model_takes_the_shared_file_along(shared: Bundle, tmp_path: Path) -> None:
    model = write_triton(shared, tmp_path / "models", "fp32")
    assert sorted(path.name for path in (model / "1").iterdir()) == ["model.onnx", SHARED]
    images = np.random.default_rng(1).integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)
    expected = run(shared.graph(), images)
    shutil.rmtree(shared.path)
    assert np.array_equal(run(model / "1" / "model.onnx", images), expected)


def test_other_weights_are_another_bundle(shared: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(shared.path, folder)
    changed = load_file(folder / SHARED)
    save_file({**changed, "bias": changed["bias"] + 1}, folder / SHARED)
    graphs = {precision: (folder / f"{precision}.onnx", 17) for precision in ("fp32", "fp16")}
    other = write(tmp_path / "second", graphs, [folder / SHARED])
    assert other.graphs == shared.graphs
    assert other.id != shared.id and other.graph_digest("fp32") != shared.graph_digest("fp32")


def test_external_files_are_found_wherever_onnx_allows_tensors(tmp_path: Path) -> None:
    """In initialisers, in constants of nodes, and in both inside the branches of an If."""

    def tensor(name: str, location: str) -> TensorProto:
        made = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1])
        made.data_location = TensorProto.EXTERNAL
        made.external_data.add(key="offset", value="0")
        made.external_data.add(key="location", value=location)
        return made

    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    same, constant = helper.make_node("Identity", ["w"], ["y"]), tensor("c", "b")
    then = helper.make_graph([same], "then", [], [value], [tensor("w", "a")])
    other = helper.make_graph([helper.make_node("Constant", [], ["y"], value=constant)], "else", [], [value])
    nodes = [helper.make_node("If", ["k"], ["y"], then_branch=then, else_branch=other)]
    inline = numpy_helper.from_array(np.frombuffer(b"\x6a\x0alocation\x12\x01z" * 9, np.uint8), "trap")
    model = helper.make_model(
        helper.make_graph(
            nodes, "g", [helper.make_tensor_value_info("k", TensorProto.BOOL, [])], [value],
            [inline, tensor("v", "c"), tensor("w", "a")],
        )
    )  # fmt: skip
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    assert sorted(external_files(path)) == ["a", "b", "c"]
    content = path.read_bytes()
    for bad in (b"", content[:-1], b"\x07" + content, b"\xff" * 40):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"^(it|a) "):
            external_files(path)


def test_a_graph_that_is_no_onnx_file_is_not_taken_in(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\xff\xff\xff")
    with pytest.raises(BundleError, match=r"model\.onnx: not an ONNX file"):
        write(tmp_path / "b", {"fp32": (tmp_path / "model.onnx", 17)}, [])
    assert not (tmp_path / "b").exists()


def test_the_places_are_those_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / SHARED
    save_file(weights(), file)
    content = file.read_bytes()
    assert set(places(file)) == set(weights())
    for name, place in places(file).items():
        assert content[place.offset : place.offset + place.length] == weights()[name].tobytes()
        assert place.shape == weights()[name].shape
    file.write_bytes(content[:20])
    with pytest.raises(ModelError, match="not a safetensors file"):
        places(file)


def test_old_bundles_have_no_files(tmp_path: Path) -> None:
    assert write_tiny_bundle(tmp_path / "t").files == {}


@pytest.fixture
def too_large(monkeypatch: pytest.MonkeyPatch) -> int:
    """A limit that a tiny network is past, as a large one is past protobuf's; what it is."""
    monkeypatch.setattr(save, "_LARGE", 1024)
    return (1 << 20) + 60_000


def test_a_graph_past_the_limit_of_one_file_keeps_its_large_weights_in_another(
    too_large: int, tmp_path: Path
) -> None:
    model = tiny_model(seed=6)
    folded, images = fold(model), pictures(3, 32, seed=8)
    small, large = tmp_path / "small.onnx", tmp_path / "large.onnx"
    save_graph(lambda weights: build_onnx(folded, weights=weights), small)
    save_graph(lambda weights: build_onnx(folded, weights=weights), large, too_large)
    assert not data_file(small).exists()
    assert large.stat().st_size < small.stat().st_size / 2 < data_file(large).stat().st_size
    assert external_files(large) == ["large.weights"] and external_files(small) == []
    onnx.checker.check_model(str(large), full_check=True)
    assert np.array_equal(run(large, images), run(small, images))
    loaded = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(large).graph.initializer}
    inline = {tensor.name: numpy_helper.to_array(tensor) for tensor in build_onnx(folded).graph.initializer}
    assert loaded.keys() == inline.keys()
    assert all(np.array_equal(loaded[name], inline[name]) for name in inline)
    # Written again as one that fits, nothing of the old one stays.
    save_graph(lambda weights: build_onnx(folded, "fp16", weights=weights), large)
    assert not data_file(large).exists()
    discard(large)
    assert not large.exists()
    with pytest.raises(ModelError, match="choose a smaller"):
        save_graph(lambda weights: build_onnx(folded, weights=weights), large, 5000)


def test_a_network_past_the_limit_is_a_bundle_like_any_other(
    too_large: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(seed=6)
    loaded = Checkpoint(tmp_path / "run", model, None, {"backbone": {}}, [])
    monkeypatch.setattr(pipeline, "load_checkpoint", lambda _path, _weights: loaded)
    for module in (pipeline, int8, widen, calibrate):
        monkeypatch.setattr(module, "save_graph", functools.partial(save_graph, limit=too_large))
    bundle = export_bundle(tmp_path / "run", tmp_path / "b", ExportConfig(int8=True))
    assert bundle.schema_version == 2
    assert bundle.files["model.weights"].graphs == ("fp32",)
    images = pictures(3, 32, seed=8)
    expected = model(torch.from_numpy(images), unfolded=True).detach().numpy()
    moved = tmp_path / "moved"
    shutil.move(bundle.path, moved)
    assert run(Bundle.load(moved).graph(), images) == pytest.approx(expected, abs=1e-5)
    assert {path.name for path in moved.iterdir()} == {
        "bundle.json", *(graph.file for graph in bundle.graphs.values()), *bundle.files,
    }  # fmt: skip


def test_a_spooled_network_is_the_same_and_needs_no_memory_of_the_model(tmp_path: Path) -> None:
    folded = fold(tiny_model(quick_gelu=True))
    spool = Spool(folded, tmp_path / "spool")
    assert list(tmp_path.iterdir()) == []
    expected = build_onnx(folded, "fp16", {1}).SerializeToString()
    for _ in range(2):
        assert build_onnx(spool.folded, "fp16", {1}).SerializeToString() == expected
        spool.release()
    weight = spool.folded.blocks[0].k_weight
    assert not weight.flags.writeable and weight.flags.c_contiguous
    assert not np.shares_memory(weight, folded.blocks[0].k_weight)
