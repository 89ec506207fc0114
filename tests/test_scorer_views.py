"""Bundles with views and causes, from the picture to the Score, the rows of a command, and HTTP answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import (
    TINY_CAUSES,
    TINY_MOS,
    TINY_SIDE,
    UInt8Array,
    encode,
    make_image,
    tiny_logits,
    tiny_score,
    write_tiny_bundle,
    write_tiny_logits_graph,
    write_views_bundle,
)
from test_bundle import manifest, rewrite
from typer.testing import CliRunner

from grmp_edge.bundle import SCHEMA_VERSION, Bundle, write_bundle
from grmp_edge.cli.app import app
from grmp_edge.errors import BackendError, BundleError
from grmp_edge.preprocess import NORMALIZATIONS, Preprocess
from grmp_edge.runtime import Scorer
from grmp_edge.runtime.bulk import BulkConfig, score_bulk
from grmp_edge.score import Score, Tile
from grmp_edge.views import Aggregate


def views_by_hand(image: UInt8Array) -> tuple[UInt8Array, list[tuple[int, int]]]:
    """The whole and four crops of an (H, W, 3) RGB picture of at least 32 x 32, without grmp_edge.views."""
    height, width = image.shape[:2]
    # 2 x 2, but four in a row where that makes cells more nearly square by a factor of e.
    rows, columns = (1, 4) if width > 6 * height else (2, 2)
    whole = Preprocess(40, TINY_SIDE)(image)
    places = [
        (round(height * row - TINY_SIDE / 2), round(width * column - TINY_SIDE / 2))
        for row in (np.arange(rows) + 0.5) / rows
        for column in (np.arange(columns) + 0.5) / columns
    ]
    places = [
        (min(max(top, 0), height - TINY_SIDE), min(max(left, 0), width - TINY_SIDE)) for top, left in places
    ]
    crops = [image[top : top + TINY_SIDE, left : left + TINY_SIDE] for top, left in places]
    return np.stack([whole, *crops]), places


def expected(image: UInt8Array) -> tuple[float, dict[str, float], list[float]]:
    """Score, causes and the tiles' scores, by numpy alone."""
    logits = tiny_logits(views_by_hand(image)[0])

    def squeeze(values: Any) -> Any:
        return 1 / (1 + np.exp(-values))

    value = squeeze(0.7 * logits[0, 0] + 0.2 * logits[1:, 0].mean() + 0.1)
    causes = squeeze(0.5 * logits[0, 1:] + 0.5 * logits[1:, 1:].mean(axis=0))
    return float(value), dict(zip(TINY_CAUSES, causes.tolist(), strict=True)), squeeze(logits[1:, 0]).tolist()


def check(score: Score, image: UInt8Array) -> None:
    value, causes, _ = expected(image)
    assert score.value == pytest.approx(value, abs=1e-6)
    assert score.mos == pytest.approx(TINY_MOS.to_mos(value), abs=1e-5)
    assert score.causes == pytest.approx(causes, abs=1e-5)


@pytest.mark.parametrize("size", [(48, 64), (200, 90), (33, 300)])
def test_a_score_is_the_aggregate_of_its_views(views_bundle: Bundle, size: tuple[int, int]) -> None:
    image = make_image(*size, seed=5)
    with Scorer.open(views_bundle, threads=1) as scorer:
        score = scorer.score(image)
        check(score, image)
        assert score.tiles is None
        tiled = scorer.score(image, tiles=True)
    assert tiled.tiles is not None and replace(tiled, tiles=None, latency_ms=None) == replace(
        score, latency_ms=None
    )
    places = views_by_hand(image)[1]
    assert [(tile.top, tile.left) for tile in tiled.tiles] == list(dict.fromkeys(places))
    assert {(tile.width, tile.height) for tile in tiled.tiles} == {(TINY_SIDE, TINY_SIDE)}
    by_place = dict(zip(places, expected(image)[2], strict=True))
    for tile in tiled.tiles:
        assert tile.value == pytest.approx(by_place[tile.top, tile.left], abs=1e-5)


def test_a_picture_smaller_than_a_crop_is_mirrored(views_bundle: Bundle) -> None:
    image = make_image(20, 24, seed=2)
    mirrored = np.pad(image, ((6, 6), (4, 4), (0, 0)), mode="reflect")
    logits = tiny_logits(np.stack([Preprocess(40, TINY_SIDE)(image), mirrored]))
    with Scorer.open(views_bundle, threads=1, tiles=True) as scorer:
        score = scorer.score(image)
    value = 1 / (1 + np.exp(-(0.7 * logits[0, 0] + 0.2 * logits[1, 0] + 0.1)))
    assert score.value == pytest.approx(value, abs=1e-6)
    assert score.tiles is not None and replace(score.tiles[0], value=0.0) == Tile(0, 0, 24, 20, 0.0)
    assert [tile.value for tile in score.tiles] == pytest.approx([1 / (1 + np.exp(-logits[1, 0]))], abs=1e-5)


def test_all_ways_give_the_same(views_bundle: Bundle, photos: Path, clip: Path) -> None:
    from grmp_edge.runtime.sources.sources import list_sources

    files = sorted(photos.iterdir())
    with Scorer.open(views_bundle, threads=1, tiles=True) as scorer:
        single = {str(path): scorer.score(path) for path in files}
        for batch in (1, 2, 7, 40):
            bulk = list(score_bulk(scorer, list_sources([str(photos)]), BulkConfig(batch, runs=2)))
            many = list(scorer.score_many([photos], batch_size=batch))
            for results in (bulk, many):
                assert {score.source for score in results} == set(single)
                for score in results:
                    assert isinstance(score, Score)
                    own = single[score.source]
                    assert score.value == pytest.approx(own.value, abs=1e-6)
                    assert score.causes == pytest.approx(own.causes, abs=1e-6)
                    assert score.tiles is not None and own.tiles is not None
                    assert [tile.value for tile in score.tiles] == pytest.approx(
                        [tile.value for tile in own.tiles], abs=1e-6
                    )
        frames = list(scorer.score_many([clip]))
        again = list(score_bulk(scorer, list_sources([str(clip)])))
        assert len(frames) == 12
        for first, second in zip(frames, again, strict=True):
            assert isinstance(first, Score) and isinstance(second, Score) and len(first.tiles or ()) == 4
            assert replace(first, latency_ms=None) == replace(second, latency_ms=None)
    from PIL import Image

    for path, score in single.items():
        with Image.open(path) as picture:
            check(score, np.asarray(picture.convert("RGB")))


def test_runs_are_bounded_in_views(views_bundle: Bundle) -> None:
    image = make_image(100, 100)
    with Scorer.open(views_bundle, threads=1) as scorer:
        sizes: list[int] = []
        read = scorer.backend.read

        def counted(batch: UInt8Array) -> Any:
            sizes.append(len(batch))
            return read(batch)

        scorer.backend.read = counted  # type: ignore[method-assign]
        scores = scorer.score_batch([image] * 9)
        assert sizes == [32, 13] and len({score.value for score in scores}) == 1
        check(scores[-1], image)
        sizes.clear()
        assert len(list(scorer.score_many([Picture_(image, index) for index in range(5)], 8))) == 5
        assert sizes == [10, 10, 5]


def Picture_(image: UInt8Array, index: int) -> Any:  # noqa: N802
    from grmp_edge.runtime.sources.sources import Picture

    return Picture(image, str(index))


def test_causes_without_crops_and_an_aggregate_without_crops(tmp_path: Path) -> None:
    image = make_image(60, 80, seed=9)
    bundle = write_views_bundle(tmp_path / "b", native=0)
    logits = tiny_logits(Preprocess(40, TINY_SIDE)(image)[None])[0]
    assert (bundle.schema_version, bundle.preprocess.native) == (3, 0)
    with Scorer.open(bundle, threads=1, tiles=True) as scorer:
        score = scorer.score(image)
    # With crops or without, the whole then counts with both weights.
    assert score.value == pytest.approx(1 / (1 + np.exp(-(0.9 * logits[0] + 0.1))), abs=1e-6)
    assert score.tiles is None
    assert score.causes == pytest.approx(
        dict(zip(TINY_CAUSES, (1 / (1 + np.exp(-logits[1:]))).tolist(), strict=True)), abs=1e-5
    )


def test_bundles_without_logits_score_as_before_to_the_bit(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    assert bundle.schema_version == 1
    images = [make_image(seed=seed) for seed in range(20)] + [
        np.full((50, 50, 3), v, np.uint8) for v in (0, 255)
    ]
    with Scorer.open(bundle, threads=1) as scorer:
        pixels = np.stack([scorer.bundle.preprocess(image) for image in images])
        raw = scorer.backend.run(pixels)
        scores = scorer.score_batch(images)
    assert [score.value for score in scores] == raw.astype(float).tolist()
    assert all(score.causes is None and score.tiles is None and score.cause is None for score in scores)
    assert scores[0].value == pytest.approx(tiny_score(images[0]), abs=1e-6)
    assert "causes" not in scores[0].to_json() and "tiles" not in scores[0].to_json()


def test_schema_3_round_trip(views_bundle: Bundle, tmp_path: Path) -> None:
    read = Bundle.load(views_bundle.path)
    assert read == views_bundle and read.schema_version == SCHEMA_VERSION == 3
    assert (read.preprocess, read.aggregate) == (Preprocess(40, 32, native=4), Aggregate(0.7, 0.2, 0.1))
    assert (read.causes, read.graphs["fp32"].logits) == (TINY_CAUSES, "logits")
    data = manifest(views_bundle)
    assert data["views"] == {
        "native": 4,
        "rule": "whole-and-spread-1",
        "aggregate": {"whole": 0.7, "native": 0.2, "shift": 0.1},
    }
    plain = manifest(write_views_bundle(tmp_path / "plain", 0, (), None)) if False else data
    assert plain["causes"] == list(TINY_CAUSES)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema_version": 4}, "schema version 4 is newer"),
        ({"views": {"native": 4, "rule": "whole-and-pyramid-1", "aggregate": {}}}, "whole-and-pyramid-1"),
        ({"views": {"native": 4, "rule": "whole-and-spread-1", "aggregate": {"whole": 1.0}}}, "native"),
        ({"views": {"native": 65, "rule": "whole-and-spread-1",
                    "aggregate": {"whole": 1.0, "native": 0.0, "shift": 0.0}}}, "65 native crops"),
        ({"views": {"rule": "whole-and-spread-1"}}, "native"),
        ({"views": {"native": 4, "rule": "whole-and-spread-1",
                    "aggregate": {"whole": None, "native": 0.0, "shift": 0.0}}}, "damaged"),
    ],
)  # fmt: skip
def test_views_that_are_not_known_are_refused(
    views_bundle: Bundle, changes: dict[str, Any], words: str
) -> None:
    rewrite(views_bundle, **changes)
    with pytest.raises(BundleError, match=words):
        Bundle.load(views_bundle.path)


def test_views_and_causes_need_logits(views_bundle: Bundle, tmp_path: Path) -> None:
    graphs = manifest(views_bundle)["graphs"]
    del graphs["fp32"]["logits"]
    rewrite(views_bundle, graphs=graphs)
    with pytest.raises(BundleError, match="without logits"):
        Bundle.load(views_bundle.path)
    write_tiny_logits_graph(tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="logits"):
        write_bundle(
            tmp_path / "b",
            {"fp32": (tmp_path / "model.onnx", 17)},
            backbone={},
            preprocess=Preprocess(40, 32, native=1),
            normalization=NORMALIZATIONS["clip"],
            mos=None,
            parity={},
            provenance={},
        )


def test_a_graph_of_other_causes_is_an_error(tmp_path: Path) -> None:
    bundle = write_views_bundle(tmp_path / "b", causes=("blur",))
    with Scorer.open(bundle, threads=1) as scorer, pytest.raises(BackendError, match=r"2 causes .* names 1"):
        scorer.score(make_image())
    other = replace(bundle, graphs={"fp32": replace(bundle.graphs["fp32"], logits="no such")})
    with pytest.raises(BackendError, match="promises"):
        Scorer.open(other)


def run(*arguments: object) -> tuple[str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def test_the_command_prints_causes_and_tiles(views_bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    out, _ = run("score", views_bundle.path, photos, "--json", "--tiles", "--csv", tmp_path / "a.csv")
    rows = [json.loads(line) for line in out.splitlines()]
    assert len(rows) == 3
    for row in rows:
        image = make_image(seed=int(Path(row["source"]).stem))
        value, causes, tiles = expected(image)
        assert row["value"] == pytest.approx(value, abs=1e-5)
        assert row["causes"] == pytest.approx(causes, abs=1e-3)
        assert [tile["value"] for tile in row["tiles"]] == pytest.approx(tiles, abs=1e-3)
        assert set(row["tiles"][0]) == {"left", "top", "width", "height", "value"}
    out, _ = run("score", views_bundle.path, photos, "--json")
    assert [json.loads(line)["causes"] for line in out.splitlines()] == [row["causes"] for row in rows]
    assert "tiles" not in out
    import csv

    with (tmp_path / "a.csv").open() as stream:
        cells = list(csv.DictReader(stream))
    named = [max(row["causes"], key=row["causes"].get) for row in rows]
    first = [name if row["causes"][name] >= 0.5 else "" for name, row in zip(named, rows, strict=True)]
    assert [row["cause"] for row in cells] == first and set(first) != {""}
    table, _ = run("score", views_bundle.path, photos)
    lines = table.splitlines()
    assert lines[0].split() == ["score", "mos", "frame", "time", "cause", "source"]
    for line, name in zip(lines[1:4], first, strict=True):
        assert line.split()[4] == (name or "-")
    plain, _ = run("score", write_tiny_bundle(tmp_path / "plain").path, photos)
    assert plain.splitlines()[0].split() == ["score", "mos", "frame", "time", "source"]


def test_the_server_answers_causes_and_tiles(views_bundle: Bundle) -> None:
    from starlette.testclient import TestClient

    from grmp_edge.runtime.web.score_app import ServeConfig, make_app

    image = make_image(60, 90, seed=3)
    data = encode(image, "PNG")
    with (
        Scorer.open(views_bundle, threads=1) as scorer,
        TestClient(make_app(scorer, ServeConfig())[0], base_url="http://localhost") as client,
    ):
        plain = client.post("/score", content=data).json()
        tiled = client.post("/score?tiles=1", content=data).json()
        files = [("a", ("a.png", data)), ("b", ("b.png", encode(make_image(70, 70, seed=4), "PNG")))]
        batch = client.post("/batch?tiles=1", files=files).json()["results"]
        metadata = client.get("/v2/models/grmp-edge").json()
        own = scorer.score(image, tiles=True)
    value, causes, tiles = expected(image)
    assert plain["value"] == pytest.approx(value, abs=1e-5) and "tiles" not in plain
    assert plain["causes"] == pytest.approx(causes, abs=1e-3)
    assert [tile["value"] for tile in tiled["tiles"]] == pytest.approx(tiles, abs=1e-3)
    assert tiled["tiles"] == json.loads(own.to_json())["tiles"]
    assert batch[0]["tiles"] == tiled["tiles"] and batch[0]["causes"] == tiled["causes"]
    check_second = expected(make_image(70, 70, seed=4))
    assert batch[1]["value"] == pytest.approx(check_second[0], abs=1e-5)
    assert metadata["outputs"] == [
        {"name": "scores", "datatype": "FP32", "shape": [-1]},
        {"name": "logits", "datatype": "FP32", "shape": [-1, 3]},
        {"name": "causes", "datatype": "FP32", "shape": [-1, 2]},
    ]


def test_a_cluster_passes_causes_and_tiles_on() -> None:
    from grmp_edge.runtime.cluster import _from_json, _to_json

    for score in (
        Score(0.5, "a", "m", causes={"blur": 0.2}, tiles=(Tile(1, 2, 3, 4, 0.5),)),
        Score(0.5, "a", "m"),
    ):
        assert _from_json(_to_json(score)) == score
