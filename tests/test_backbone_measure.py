"""The share of distortion levels that are ranked rightly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import Float32Array, UInt8Array
from rich.table import Table

from grmp_edge.train.network.backbone import BackboneConfig, load_backbone
from grmp_edge.train.network.embedded import load_embedded
from grmp_edge.train.network.model import GrmpIqa
from grmp_edge.train.pictures.distort import DISTORTIONS, distort
from grmp_edge.train.pictures.procedural import procedural_image
from grmp_edge.train.recipe.groups import Source
from grmp_edge.train.recipe.measure import judge_of, level_scores, main, ranking_report, shown, zero_shot
from grmp_edge.train.runs import ModelConfig


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    made = [procedural_image(np.random.default_rng(i), 300) for i in range(3)]
    return [Source(str(i), picture, "others", 1.0) for i, picture in enumerate(made)]


def brightness(pictures: Sequence[UInt8Array]) -> Float32Array:
    assert all(picture.shape == (224, 224, 3) and picture.dtype == np.uint8 for picture in pictures)
    return np.array([picture.mean() for picture in pictures], np.float32)


def rows(table: Table) -> dict[str, list[str]]:
    columns = [list(column.cells) for column in table.columns]
    return {name: cells for name, *cells in zip(*columns, strict=True)}


def test_levels_are_clean_first_and_follow_the_strength(sources: list[Source]) -> None:
    found = level_scores(brightness, sources, "darken", 1)
    assert found.shape == (3, 6)
    for i, source in enumerate(sources):
        dark = shown(distort(source.image, "darken", 5, np.random.default_rng([1, i])))
        assert found[i, 0] == pytest.approx(shown(source.image).mean(), abs=1e-3)
        assert found[i, 5] == pytest.approx(dark.mean(), abs=1e-3)


def test_a_judge_of_brightness_knows_the_dark_from_the_light(sources: list[Source]) -> None:
    found = rows(ranking_report(brightness, sources))
    assert set(found) == {*DISTORTIONS, "mean"}
    assert found["darken"] == ["1.000", "1.00 1.00 1.00 1.00 1.00", "1.00"]
    assert found["brighten"] == ["0.000", "0.00 0.00 0.00 0.00 0.00", "0.00"]
    shares = [float(found[kind][0]) for kind in DISTORTIONS]
    assert float(found["mean"][0]) == pytest.approx(np.mean(shares), abs=1e-3)


def test_judges_are_the_networks(sources: list[Source]) -> None:
    pictures = [shown(source.image) for source in sources]
    backbone = load_embedded()
    assert np.array_equal(judge_of(backbone)(pictures), zero_shot(backbone, pictures))
    torch.manual_seed(0)
    model = GrmpIqa(load_backbone(BackboneConfig()), ModelConfig.of(BackboneConfig()).prompts).eval()
    with torch.no_grad():
        expected = [float(model(torch.from_numpy(picture[None]))[0]) for picture in pictures]
    np.testing.assert_allclose(judge_of(model)(pictures), expected, atol=1e-5)


def test_command(tmp_path: Path, sources: list[Source], capsys: pytest.CaptureFixture[str]) -> None:
    for source in sources:
        cv2.imwrite(str(tmp_path / f"{source.name}.png"), source.image)
    assert main(["--photos", str(tmp_path), "--held-out", "2"]) == 0
    said = capsys.readouterr()
    assert "2 held-out pictures" in said.out and "darken" in said.out and said.err == ""
    assert main(["--photos", str(tmp_path), "--held-out", "0"]) != 0
    assert "--held-out 0 leaves no photograph" in capsys.readouterr().err
    assert main(["--photos", str(tmp_path / "none")]) != 0
    assert "no picture" in capsys.readouterr().err
