"""The bundle: written and read back, and every damage told."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_MOS, write_tiny_bundle, write_tiny_graph

from grmp_edge.bundle import SCHEMA_VERSION, Bundle, manifest_digest, write_bundle
from grmp_edge.errors import BundleError
from grmp_edge.preprocess import NORMALIZATIONS, Normalization, Preprocess
from grmp_edge.score import MosScale


def manifest(bundle: Bundle) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((bundle.path / "bundle.json").read_text())
    return data


def rewrite(bundle: Bundle, **changes: Any) -> None:
    """Change the manifest as another program would: with the right hash of itself."""
    data = {**manifest(bundle), **changes}
    data["manifest_sha256"] = manifest_digest(data)
    (bundle.path / "bundle.json").write_text(json.dumps(data))


def test_round_trip(tiny_bundle: Bundle) -> None:
    read = Bundle.load(tiny_bundle.path)
    assert read == tiny_bundle
    assert read.preprocess == Preprocess(40, 32)
    assert read.input_size == 32
    assert read.normalization == NORMALIZATIONS["clip"]
    assert read.mos == TINY_MOS
    assert read.parity["images"] == "pictures: none" and read.parity == tiny_bundle.parity
    assert read.provenance == {"made_by": "tests"}
    graph = read.graphs["fp32"]
    data = read.graph().read_bytes()
    assert (graph.bytes, graph.sha256, graph.opset) == (len(data), hashlib.sha256(data).hexdigest(), 17)
    assert (graph.input, graph.output) == ("images", "scores")
    assert sorted(path.name for path in tiny_bundle.path.iterdir()) == ["bundle.json", "model.onnx"]


def test_the_digest_is_as_documented(tiny_bundle: Bundle) -> None:
    data = manifest(tiny_bundle)
    stated = data.pop("manifest_sha256")
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":")).encode()
    assert stated == hashlib.sha256(canonical).hexdigest()


def test_without_a_scale_and_with_own_normalization(tmp_path: Path) -> None:
    write_tiny_graph(tmp_path / "model.onnx")
    own = Normalization("own", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    bundle = write_bundle(
        tmp_path / "b",
        {"fp32": (tmp_path / "model.onnx", 17)},
        backbone={},
        preprocess=Preprocess(40, 32),
        normalization=own,
        mos=None,
        parity={"reference": {"model": "none", "images": 0, "mean": math.nan, "std": 0.0}},
        provenance={"label": "Qualität"},
    )
    assert (bundle.mos, bundle.normalization) == (None, own)
    # JSON has no nan
    assert bundle.parity["reference"] == {"model": "none", "images": 0, "mean": None, "std": 0.0}
    assert bundle.provenance == {"label": "Qualität"}


def test_the_id_follows_the_graphs(tmp_path: Path) -> None:
    same = [write_tiny_bundle(tmp_path / name).id for name in ("a", "b")]
    assert same[0] == same[1]
    assert write_tiny_bundle(tmp_path / "c", shift=-3.0).id != same[0]


def test_every_flipped_byte_of_the_manifest_is_seen(tiny_bundle: Bundle) -> None:
    file = tiny_bundle.path / "bundle.json"
    good = file.read_bytes()
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 1
        file.write_bytes(bad)
        with pytest.raises(BundleError) as caught:
            Bundle.load(tiny_bundle.path)
        assert "\n" not in str(caught.value)
    file.write_bytes(good)
    assert Bundle.load(tiny_bundle.path) == tiny_bundle


def test_every_flipped_byte_of_the_graph_is_seen(tiny_bundle: Bundle) -> None:
    file = tiny_bundle.graph()
    good = file.read_bytes()
    for at in range(0, len(good), 7):
        bad = bytearray(good)
        bad[at] ^= 0x10
        file.write_bytes(bad)
        with pytest.raises(BundleError, match=r"model\.onnx: damaged"):
            Bundle.load(tiny_bundle.path)
    assert Bundle.load(tiny_bundle.path, verify=False) == tiny_bundle


def test_damage(tiny_bundle: Bundle, tmp_path: Path) -> None:
    def refused(words: str, verify: bool = True) -> None:
        with pytest.raises(BundleError, match=words) as caught:
            Bundle.load(tiny_bundle.path, verify)
        assert str(tiny_bundle.path) in str(caught.value)
        assert caught.value.remedy

    graph, file = tiny_bundle.graph(), tiny_bundle.path / "bundle.json"
    good = graph.read_bytes()
    graph.write_bytes(good[:-1])
    refused("damaged", verify=False)  # the length alone tells
    graph.unlink()
    refused("missing", verify=False)
    graph.write_bytes(good)
    text = file.read_text()
    for bad in ("", "{}", "[1]", "null", "no json", text[: len(text) // 2]):
        file.write_text(bad)
        refused("damaged")
    file.unlink()
    refused("not a bundle")
    shutil.rmtree(tiny_bundle.path)
    refused("no such bundle")
    tiny_bundle.path.write_text("a file")
    refused("a bundle is a folder")


def test_a_manifest_that_makes_no_sense(tiny_bundle: Bundle) -> None:
    text = (tiny_bundle.path / "bundle.json").read_text()
    graph = manifest(tiny_bundle)["graphs"]["fp32"]
    change: dict[str, Any]
    for change in (
        {"preprocess": {"resize": 20, "crop": 40}},
        {"preprocess": {"resize": "40"}},
        {"normalization": {"name": "unheard of"}},
        {"mos": {"low": 5, "high": 1}},
        {"graphs": {}},
        {"graphs": {"fp32": {**graph, "file": "../model.onnx"}}},
        {"preprocess": {"resize": 40, "crop": 32, "interpolation": "nearest"}},
        {"preprocess": {"resize": 40, "crop": 32, "color": "BGR"}},
        {"preprocess": {"resize": 40, "crop": 32, "keep_aspect_ratio": True}},
        {"causes": ["blur"]},
        {"views": {"native": 4, "rule": "whole-and-spread-1", "aggregate": {}}},
    ):
        rewrite(tiny_bundle, **change)
        with pytest.raises(BundleError, match=r"bundle\.json: damaged"):
            Bundle.load(tiny_bundle.path)
        (tiny_bundle.path / "bundle.json").write_text(text)


def test_a_newer_schema_is_refused_and_unknown_fields_are_not(tiny_bundle: Bundle) -> None:
    graph = manifest(tiny_bundle)["graphs"]["fp32"]
    rewrite(tiny_bundle, added_later={"x": 1}, graphs={"fp32": {**graph, "surprise": 1}})
    assert Bundle.load(tiny_bundle.path) == tiny_bundle
    rewrite(tiny_bundle, schema_version=SCHEMA_VERSION + 1)
    with pytest.raises(BundleError, match=f"schema version {SCHEMA_VERSION + 1} is newer"):
        Bundle.load(tiny_bundle.path)


def test_a_missing_precision(tiny_bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"no int8 graph, only fp32; .*--int8"):
        tiny_bundle.graph("int8")


def test_a_failed_write_leaves_the_old_bundle(tiny_bundle: Bundle, tmp_path: Path) -> None:
    graph = tmp_path / "model.onnx"
    write_tiny_graph(graph, shift=0.0)
    settings: dict[str, Any] = {
        "backbone": {},
        "preprocess": Preprocess(40, 32),
        "normalization": NORMALIZATIONS["clip"],
        "mos": MosScale(0, 1),
        "provenance": {},
    }
    before = {path.name: path.read_bytes() for path in tiny_bundle.path.iterdir()}
    with pytest.raises(TypeError):  # found after the graph was taken in
        write_bundle(tiny_bundle.path, {"fp32": (graph, 17)}, parity={"images": object()}, **settings)  # type: ignore[typeddict-item]
    with pytest.raises(FileNotFoundError):
        write_bundle(tiny_bundle.path, {"fp32": (tmp_path / "no.onnx", 17)}, parity={}, **settings)
    assert {path.name: path.read_bytes() for path in tiny_bundle.path.iterdir()} == before
    assert list(tiny_bundle.path.parent.iterdir()) == [tiny_bundle.path]
    assert Bundle.load(tiny_bundle.path) == tiny_bundle


def test_a_bundle_replaces_a_bundle_and_nothing_else(tiny_bundle: Bundle, tmp_path: Path) -> None:
    assert write_tiny_bundle(tiny_bundle.path, shift=1.0).id != tiny_bundle.id
    homework = tmp_path / "homework"
    homework.mkdir()
    (homework / "essay.txt").write_text("mine")
    for target in (homework, homework / "essay.txt"):
        with pytest.raises(BundleError, match="is not a bundle"):
            write_tiny_bundle(target)
    assert (homework / "essay.txt").read_text() == "mine"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert write_tiny_bundle(empty).path == empty
