"""A bundle of schema version 1 as bytes: once written it must be read for ever, also without this code."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from conftest import encode, make_image, tiny_score

from grmp_edge.bundle import SCHEMA_VERSION, Bundle
from grmp_edge.preprocess import Preprocess
from grmp_edge.runtime import Scorer
from grmp_edge.score import MosScale

GOLDEN = Path(__file__).parent / "golden" / "bundle-v1"
# Never change these: they stand for bundles in the field.
MANIFEST_FILE = "ffba16ed40157e255d91863ebdaeafeac3e81e680dc7888c9bbbe82e62976743"
GRAPH_FILE = "c95d709b8f286a5706c3b7fbecc2a07dfda312ead3504b70bbd813219b0c38d6"


def test_the_bytes_are_the_golden_ones() -> None:
    assert SCHEMA_VERSION >= 1
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in GOLDEN.iterdir()}
    assert found == {"bundle.json": MANIFEST_FILE, "model.onnx": GRAPH_FILE}


def test_it_is_read_with_json_and_hashes_alone() -> None:
    """Steps 1 to 4 and 8 to 10 of docs/bundle.md."""
    text = (GOLDEN / "bundle.json").read_bytes()
    assert text.isascii()
    data = json.loads(text)
    assert data["schema_version"] == 1
    graph = data["graphs"]["fp32"]
    content = (GOLDEN / graph["file"]).read_bytes()
    assert len(content) == graph["bytes"] and hashlib.sha256(content).hexdigest() == graph["sha256"]
    assert data["id"] == hashlib.sha256(graph["sha256"].encode()).hexdigest()[:12]
    stated = data.pop("manifest_sha256")
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":")).encode("ascii")
    assert hashlib.sha256(canonical).hexdigest() == stated
    crop = data["preprocess"]["crop"]
    pixels = np.random.default_rng(0).integers(0, 256, (3, crop, crop, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (scores,) = session.run([graph["output"]], {graph["input"]: pixels})
    expected = 1 / (1 + np.exp(-(pixels.reshape(3, -1).mean(axis=1) / 32 - 4)))
    assert scores.dtype == np.float32 and scores == pytest.approx(expected, abs=1e-6)


def test_this_version_reads_and_scores_it(tmp_path: Path) -> None:
    bundle = Bundle.load(GOLDEN)
    assert (bundle.schema_version, bundle.input_size) == (1, 32)
    assert bundle.preprocess == Preprocess(40, 32) and bundle.mos == MosScale(1.0, 5.0)
    assert bundle.normalization.name == "clip" and bundle.backbone["visual_prompts"] == 5
    assert bundle.provenance["training"]["note"].endswith("é")
    image = make_image(seed=4)
    (tmp_path / "1.png").write_bytes(encode(image, "PNG"))
    with Scorer.open(bundle) as scorer:
        score = scorer.score(tmp_path / "1.png")
    assert score.value == pytest.approx(tiny_score(image), abs=1e-6)
    assert score.mos == pytest.approx(1 + 4 * tiny_score(image), abs=1e-5)


def test_every_field_of_it_is_documented() -> None:
    document = (GOLDEN.parents[2] / "docs" / "bundle.md").read_text(encoding="utf-8")
    words = set(re.findall(r"[a-z_0-9]+", document))

    def names(value: object) -> set[str]:
        children = value.items() if isinstance(value, dict) else ()
        return {str(key) for key, _ in children} | {name for _, child in children for name in names(child)}

    manifest = json.loads((GOLDEN / "bundle.json").read_text())
    del manifest["provenance"]["training"]  # what training recorded, of any form
    assert names(manifest) <= words
