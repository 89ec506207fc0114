"""Real photographs without labels in the backbone's training."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import UInt8Array
from safetensors import safe_open

from grmp_edge.train.network import embedded
from grmp_edge.train.recipe.__main__ import main
from grmp_edge.train.recipe.captions import vocabulary
from grmp_edge.train.recipe.groups import VARIANTS, Batch, Source, make_batch, procedural_sources
from grmp_edge.train.recipe.objective import LossConfig, Objective, normalise
from grmp_edge.train.recipe.real_photos import Instances, WildConfig, add_wild, load_wild

Wild = tuple[list[Source], list[Source]]


def folder_of(path: Path, count: int, side: int = 300) -> Path:
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        cv2.imwrite(str(path / f"{i:02d}.png"), cv2.resize(coarse, (side, side - 40)))
    return path


@pytest.fixture(scope="module")
def wild(tmp_path_factory: pytest.TempPathFactory) -> Wild:
    return load_wild([folder_of(tmp_path_factory.mktemp("wild"), 11)], held_out=5)


@pytest.fixture(scope="module")
def batches(wild: Wild) -> tuple[Batch, Batch]:
    rng = np.random.default_rng(0)
    known = make_batch(rng, procedural_sources(rng, 4, 256), 3)
    return known, add_wild(rng, known, wild[0], 2)


def test_photographs_are_squashed_and_every_fifth_is_never_seen(wild: Wild) -> None:
    train, held = wild
    assert [source.name.split("/")[1] for source in held] == ["00", "05", "10"]
    assert len(train) == 8
    assert {source.image.shape for source in (*train, *held)} == {(244, 244, 3)}


def test_two_views_of_a_photograph_and_two_of_it_made_worse(wild: Wild, batches: tuple[Batch, Batch]) -> None:
    known, both = batches
    count = 3 * VARIANTS
    assert np.array_equal(both.images[:count], known.images)
    assert both.captions == known.captions
    assert len(both.scene) == len(both.severity) == len(both.quality) == count
    assert len(both.images) == len(both.remaining) == len(both.statistics) == count + 2 * VARIANTS
    for first in (count, count + VARIANTS):
        views, kept = both.images[first : first + VARIANTS], both.remaining[first : first + VARIANTS]
        assert kept[0] == kept[1] == 1 > kept[2] == kept[3]

        def is_cut_from(picture: UInt8Array, source: UInt8Array) -> bool:
            # The likeliest place is found by FFT, with its error; what lies there is compared exactly.
            x, y = cv2.minMaxLoc(cv2.matchTemplate(source, picture, cv2.TM_SQDIFF))[2]
            height, width = picture.shape[:2]
            return np.array_equal(source[y : y + height, x : x + width], picture)

        (source,) = [s for s in wild[0] if is_cut_from(views[0], s.image)]
        assert is_cut_from(np.ascontiguousarray(views[1][:, ::-1]), source.image)
        assert not np.array_equal(views[0], views[2])


def test_what_is_not_known_of_them_is_not_learned(batches: tuple[Batch, Batch]) -> None:
    torch.manual_seed(0)
    made = embedded.build_embedded()
    objective = Objective(made, LossConfig(), embedded.token_ids_of(vocabulary()), WildConfig())
    parts = []
    for batch in batches:
        torch.manual_seed(1)
        parts.append(objective(batch, normalise(torch.from_numpy(batch.images)))[1])
    alone, both = parts
    for name in ("contrast", "quality", "faults", "token_faults", "scene"):
        assert both[name] == pytest.approx(alone[name], rel=1e-4), name
    assert both["rank"] != pytest.approx(alone["rank"], rel=1e-4)
    assert "instances" in both and "instances" not in alone


def test_instance_loss_is_the_mean_of_softmaxes_over_all_others() -> None:
    torch.manual_seed(0)
    config = WildConfig(temperature=0.2, queue=5, width=6)
    instances = Instances(8, config)
    earlier = np.zeros((0, 6))
    for _ in range(3):
        tokens = torch.randn(4, 8)
        found = float(instances(tokens).detach())
        points = instances.head(tokens).detach().double().numpy()
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        losses = []
        for i, partner in enumerate((1, 0, 3, 2)):
            others = [points[j] for j in range(4) if j != i] + list(earlier)
            sums = sum(np.exp(points[i] @ other / 0.2) for other in others)
            losses.append(-np.log(np.exp(points[i] @ points[partner] / 0.2) / sums))
        assert found == pytest.approx(np.mean(losses), rel=1e-4)
        earlier = np.concatenate([points, earlier])[:5]


def test_they_belong_to_a_phase_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--photos", str(tmp_path), "--wild", str(tmp_path), "-o", str(tmp_path / "out.safetensors")])
    assert caught.value.code == 2
    assert "--start or --steps" in capsys.readouterr().err


def test_a_phase_with_them_writes_weights(tmp_path: Path) -> None:
    photos, wild, out = tmp_path / "photos", tmp_path / "wild", tmp_path / "out.safetensors"
    photos.mkdir()
    wild.mkdir()
    folder_of(photos, 10)
    folder_of(wild, 5)
    given = ["--photos", str(photos), "--wild", str(wild), "-o", str(out), "--groups", "2", "--threads", "1"]
    assert main([*given, "--steps", "1"]) == 1  # four photographs are fewer than eight groups
    folder_of(wild, 12)
    assert main([*given, "--steps", "2"]) == 0
    with safe_open(out, "numpy") as file:
        found = file.metadata()
    assert found["steps"] == "2"
    assert "wild" in found["data"] and "'full_share': 0.0" in found["config"]
