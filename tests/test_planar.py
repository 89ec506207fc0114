"""Graphs for DeepStream: planes of floats in, the bundle's scores out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import make_image, write_tiny_graph
from helpers_train import bundle_of, tiny_model

from grmp_edge.bundle import Bundle
from grmp_edge.errors import BundleError, ParityError
from grmp_edge.export import planar
from grmp_edge.export.fold import fold
from grmp_edge.export.planar import planar_folder, write_planar


def test_planes_score_as_the_bundles_pixels(tmp_path: Path) -> None:
    bundle = bundle_of(fold(tiny_model(layers=3)), tmp_path)
    folder = planar_folder(bundle.path)
    before = {path.name: path.read_bytes() for path in bundle.path.iterdir()}
    files = write_planar(bundle, folder)
    assert folder == tmp_path / "b.nchw-float" and sorted(files) == sorted(folder.iterdir())
    assert {path.name: path.read_bytes() for path in bundle.path.iterdir()} == before
    images = np.stack([make_image(32, 32, seed) for seed in range(3)])
    for file, (precision, graph) in zip(files, bundle.graphs.items(), strict=True):
        onnx.checker.check_model(str(file), full_check=True)
        (wanted,) = onnxruntime.InferenceSession(bundle.graph(precision)).run(None, {graph.input: images})[:1]
        session = onnxruntime.InferenceSession(file)
        (given,) = session.get_inputs()
        assert (given.name, given.type, given.shape[1:]) == ("images", "tensor(float)", [3, 32, 32])
        planes = images.transpose(0, 3, 1, 2).astype(np.float32)
        assert session.run(None, {"images": planes})[0] == pytest.approx(wanted, abs=1e-5)
        # A channel in the place of another would be noticed.
        swapped = session.run(None, {"images": planes[:, ::-1]})[0]
        assert not np.allclose(swapped, wanted, atol=1e-5)


def test_weights_in_other_files_come_along(tmp_path: Path) -> None:
    """The default bundle's graphs share theirs, and a copy of its planar graphs alone must do."""
    bundle = Bundle.load("default")
    (file,) = write_planar(replace(bundle, graphs={"fp32": bundle.graphs["fp32"]}), tmp_path / "planes")
    assert list(file.parent.iterdir()) == [file]
    properties = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert properties["grmp_edge.input"] == "images: float32 (batch, 3, 224, 224), RGB, 0..255"


def test_what_cannot_be_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = bundle_of(fold(tiny_model(layers=2)), tmp_path)
    folder = tmp_path / "planes"
    with monkeypatch.context() as patch:
        patch.setattr(planar, "_planar", lambda bundle, precision: onnx.load(write_other(tmp_path)))
        with pytest.raises(ParityError, match="differs from the bundle's"):
            write_planar(bundle, folder)
    assert not folder.exists()
    model = onnx.load(bundle.graph())
    del model.graph.node[0]
    onnx.save(model, bundle.graph())
    with pytest.raises(BundleError, match="does not begin with one Cast"):
        write_planar(bundle, folder)
    assert not folder.exists() and json.loads((bundle.path / "bundle.json").read_text())


def write_other(folder: Path) -> Path:
    """A graph with the right input that scores something else."""
    write_tiny_graph(folder / "other.onnx")
    model = onnx.load(folder / "other.onnx")
    model.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("images", 1, ["batch", 3, 32, 32]))
    model.graph.node[0].CopyFrom(onnx.helper.make_node("Identity", ["images"], ["float"]))
    onnx.save(model, folder / "other.onnx")
    return folder / "other.onnx"
