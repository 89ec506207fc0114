"""Bundles of schema 1 and 3 as bytes: once written they must be read for ever, also without this code."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
from conftest import encode, make_image, tiny_score

from grmp_edge import views
from grmp_edge.bundle import SCHEMA_VERSION, Bundle
from grmp_edge.preprocess import Preprocess
from grmp_edge.runtime import Scorer
from grmp_edge.score import MosScale

GOLDEN = Path(__file__).parent / "golden" / "bundle-v1"
# Never change these: they stand for bundles in the field.
MANIFEST_FILE = "ffba16ed40157e255d91863ebdaeafeac3e81e680dc7888c9bbbe82e62976743"
GRAPH_FILE = "c95d709b8f286a5706c3b7fbecc2a07dfda312ead3504b70bbd813219b0c38d6"


GOLDEN_VIEWS = GOLDEN.parent / "bundle-v3"
VIEWS_FILES = {
    "bundle.json": "3110a1d8e1c1ddf3a087cd45a5c1c85a5ac410763cf05aaeb2afbb60e860737e",
    "model.onnx": "d0a146a5f1df8d79b5781a97d39665fe2f0e3343c9d28f12a17530e2faa846cd",
}


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


@pytest.mark.parametrize("golden", [GOLDEN, GOLDEN_VIEWS])
def test_every_field_of_it_is_documented(golden: Path) -> None:
    document = (GOLDEN.parents[2] / "docs" / "bundle.md").read_text(encoding="utf-8")
    words = set(re.findall(r"[a-z_0-9]+", document))

    def names(value: object) -> set[str]:
        children = value.items() if isinstance(value, dict) else ()
        return {str(key) for key, _ in children} | {name for _, child in children for name in names(child)}

    manifest = json.loads((golden / "bundle.json").read_text())
    del manifest["provenance"]["training"]  # what training recorded, of any form
    assert names(manifest) <= words


def test_the_bytes_of_version_3_are_the_golden_ones() -> None:
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in GOLDEN_VIEWS.iterdir()}
    assert digests == VIEWS_FILES


SIZES = [(48, 64), (300, 40), (32, 200), (20, 90), (9, 9), (1, 1), (33, 33), (61, 62)]


def spread(height: int, width: int, count: int, side: int) -> list[tuple[int, int]]:
    """Points 1 to 3 of the rule `whole-and-spread-1` in docs/bundle.md, as (top, left)."""
    best = min(
        (rows for rows in range(1, count + 1) if count % rows == 0),
        key=lambda rows: (
            abs(np.log((height / rows) / (width / (count // rows)))) - (rows * rows == count),
            rows,
        ),
    )
    columns = count // best

    def place(length: int, at: float) -> int:
        return min(max(int(np.rint(at * length - side / 2)), 0), max(length - side, 0))

    places = [
        (place(height, (row + 0.5) / best), place(width, (column + 0.5) / columns))
        for row in range(best)
        for column in range(columns)
    ]
    return list(dict.fromkeys(places))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_version_3_is_read_by_the_document_alone(height: int, width: int) -> None:
    data = json.loads((GOLDEN_VIEWS / "bundle.json").read_bytes())
    assert data["schema_version"] == 3 and data["views"]["rule"] == "whole-and-spread-1"
    graph, side, resize = data["graphs"]["fp32"], data["preprocess"]["crop"], data["preprocess"]["resize"]
    image = make_image(height, width, seed=height)
    start = (resize - side) // 2
    squashed = cv2.resize(image, (resize, resize), interpolation=cv2.INTER_CUBIC)
    pictures = [squashed[start : start + side, start : start + side]]
    for top, left in spread(height, width, data["views"]["native"], side):
        cut = image[top : top + side, left : left + side]
        down, right = side - cut.shape[0], side - cut.shape[1]
        edges = ((down // 2, down - down // 2), (right // 2, right - right // 2), (0, 0))
        # numpy calls it reflect, and repeats a single pixel as OpenCV does.
        pictures.append(np.pad(cut, edges, mode="reflect"))
    session = onnxruntime.InferenceSession(
        str(GOLDEN_VIEWS / graph["file"]), providers=["CPUExecutionProvider"]
    )
    (logits,) = session.run([graph["logits"]], {graph["input"]: np.stack(pictures)})
    logits = np.asarray(logits, np.float64)
    a, b, c = (data["views"]["aggregate"][name] for name in ("whole", "native", "shift"))
    value = 1 / (1 + np.exp(-(a * logits[0, 0] + b * logits[1:, 0].mean() + c)))
    causes = 1 / (1 + np.exp(-(0.5 * logits[0, 1:] + 0.5 * logits[1:, 1:].mean(axis=0))))
    with Scorer.open(GOLDEN_VIEWS, tiles=True) as scorer:
        score = scorer.score(image)
    assert score.value == pytest.approx(value, abs=1e-6)
    assert score.mos == pytest.approx(1 + 4 * value, abs=1e-5)
    assert score.causes == pytest.approx(dict(zip(data["causes"], causes, strict=True)), abs=1e-6)
    assert score.tiles is not None
    assert [tile.value for tile in score.tiles] == pytest.approx(1 / (1 + np.exp(-logits[1:, 0])), abs=1e-6)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_the_documents_cpp_gives_the_same_places(tmp_path: Path) -> None:
    document = (GOLDEN.parents[2] / "docs" / "bundle.md").read_text(encoding="utf-8")
    source = document[document.index("#include <algorithm>") : document.index("cv::Mat cut(")]
    source += """
#include <cstdio>
int main() {
  int h, w, n;
  while (std::scanf("%d %d %d", &h, &w, &n) == 3) {
    for (const Box &b : spread(h, w, n, 32)) std::printf("%d %d %d %d ", b.left, b.top, b.width, b.height);
    std::puts("");
  }
}
"""
    (tmp_path / "a.cpp").write_text(source)
    subprocess.run(["g++", "-std=c++17", "-o", tmp_path / "a", tmp_path / "a.cpp"], check=True)
    rng = np.random.default_rng(0)
    cases = [(h, w, n) for h, w in SIZES for n in (0, 1, 4, 6)]
    cases += [
        (int(h), int(w), int(n))
        for h, w, n in zip(*rng.integers(1, (3000, 3000, 64), (500, 3)).T, strict=True)
    ]
    lines = "".join(f"{h} {w} {n}\n" for h, w, n in cases)
    done = subprocess.run([tmp_path / "a"], input=lines, capture_output=True, text=True, check=True)
    for (height, width, count), line in zip(cases, done.stdout.splitlines(), strict=True):
        boxes = views.spread(height, width, count, 32)
        assert [int(word) for word in line.split()] == [
            number for box in boxes for number in (box.left, box.top, box.width, box.height)
        ]
        if count:
            assert [(box.top, box.left) for box in boxes] == spread(height, width, count, 32)
