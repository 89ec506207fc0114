"""The recipe of the shipped weights: faults on computed pictures, stores, losses, and its closed forms."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from grmp_edge.errors import DataError
from grmp_edge.train.network.words import CAUSES
from grmp_edge.train.pictures.procedural import procedural_image
from grmp_edge.train.recipe import learn
from grmp_edge.train.recipe.faults import FAULTS, HEALTHY, Picture, apply, disk, jpeg_at, video
from grmp_edge.train.recipe.learn import AppealConfig, FaultsConfig, add_appeal, fold_of, learn_faults
from grmp_edge.train.recipe.measure import calibration_error, local_fault
from grmp_edge.train.recipe.objective import draw, order_loss, rank_loss, score_loss
from grmp_edge.train.recipe.scene_quality import Statistics, appeal, statistics
from grmp_edge.train.recipe.sources import Record, photographs, plain_surface
from grmp_edge.train.recipe.store import extract, groups_of, labels_of, read_stores
from grmp_edge.train.recipe.upper import Upper
from grmp_edge.train.session.progress import Silent

STREAMED = {"h264", "hevc", "lost_packets"}
NEEDS_FFMPEG = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg program")


def picture(seed: int = 0) -> Picture:
    """240 x 320, sharp."""
    return np.ascontiguousarray(procedural_image(np.random.default_rng(seed), 320)[:240])


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=NEEDS_FFMPEG if n in STREAMED else ()) for n in (*FAULTS, *HEALTHY)]
)
def test_a_fault_is_a_function_of_its_seed_and_grows_with_severity(name: str) -> None:
    clean = picture()
    before = clean.copy()

    def shown(severity: float) -> Picture:
        return apply(name, clean, severity, np.random.default_rng(3))

    made = [shown(severity) for severity in (0.1, 0.5, 1.0)]
    assert np.array_equal(clean, before)
    assert all(each.shape == clean.shape and each.dtype == np.uint8 for each in made)
    if name not in STREAMED:  # x264 may differ between runs of another build, not of this one
        assert np.array_equal(made[1], shown(0.5))
    change = [np.abs(each.astype(int) - clean).mean() for each in made]
    if name in FAULTS:
        assert change[0] < change[2] and change[1] > 0.2


def test_every_fault_names_its_causes_and_every_cause_has_a_fault() -> None:
    named = {cause for fault in FAULTS.values() for cause in fault.causes}
    assert named == set(CAUSES) and all(fault.causes for fault in FAULTS.values())
    assert not any(change.causes for change in HEALTHY.values())


@pytest.mark.parametrize("radius", [1.4, 3.0, 9.0])
def test_a_disk_sums_to_one_and_is_round(radius: float) -> None:
    kernel = disk(radius)
    assert kernel.sum() == pytest.approx(1, abs=1e-5)
    assert np.allclose(kernel, kernel.T, atol=1e-6) and np.allclose(kernel, kernel[::-1], atol=1e-6)
    assert (kernel > kernel.max() / 2).sum() == pytest.approx(np.pi * radius**2, rel=0.25)


@NEEDS_FFMPEG
def test_a_lower_bitrate_is_smaller_and_further_off() -> None:
    clean = picture(2)
    fine, coarse = video(clean, "h264", 20), video(clean, "h264", 40)
    assert coarse[1] < fine[1] / 2
    assert np.abs(coarse[0].astype(int) - clean).mean() > np.abs(fine[0].astype(int) - clean).mean()


@NEEDS_FFMPEG
@pytest.mark.parametrize(("severity", "least", "most"), [(0.3, 0.05, 0.3), (1.0, 0.35, 1.0)])
def test_lost_packets_are_seen_in_so_many_blocks(severity: float, least: float, most: float) -> None:
    clean = np.asarray(cv2.GaussianBlur(picture(2), (0, 0), 1.5), np.uint8)  # coding alone changes it little
    lost = apply("lost_packets", clean, severity, np.random.default_rng(5))
    blocks = np.abs(lost.astype(int) - clean).mean(axis=2).reshape(15, 16, 20, 16).mean(axis=(1, 3))
    assert least < (blocks > 8).mean() < most


def test_over_exposure_burns_out_a_dim_picture_too() -> None:
    for clean in (picture(), np.asarray(picture() // 3, np.uint8)):
        burnt = apply("over_exposure", clean, 0.5, np.random.default_rng(0))
        assert (burnt.max(axis=2) == 255).mean() >= 0.16


def test_without_ffmpeg_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DataError, match="program ffmpeg"):
        video(picture(), "h264", 30)


def test_healthy_changes_are_grey_darker_or_hardly_there() -> None:
    clean, rng = picture(), np.random.default_rng(0)
    grey = apply("infrared", clean, 0.5, rng)
    assert (grey[..., 0] == grey[..., 2]).all()
    assert 0.5 < apply("dusk", clean, 0.5, rng).mean() / clean.mean() < 0.95
    assert np.abs(apply("mild", clean, 0.5, rng).astype(int) - clean).mean() < 20


def test_a_local_fault_stays_in_its_cell() -> None:
    clean = picture()
    for name in ("local_blur", "local_smear", "local_drop"):
        changed = np.abs(local_fault(name, clean, 4).astype(int) - clean).max(axis=2) > 0
        assert changed[120:, 106:212].any() and not changed[:120].any()
        assert not changed[:, :106].any() and not changed[:, 212:].any()


def test_surfaces_are_plain_and_sharp() -> None:
    for kind in ("asphalt", "wall"):
        drawn = plain_surface(np.random.default_rng(4), kind)
        assert drawn.shape == (512, 512, 3) and drawn.dtype == np.uint8
        blurred = cv2.GaussianBlur(drawn, (0, 0), 2)
        assert cv2.Laplacian(blurred, cv2.CV_64F).var() < 0.5 * cv2.Laplacian(drawn, cv2.CV_64F).var()


def test_appeal_is_of_detail_colour_and_light() -> None:
    assert appeal(Statistics(0, 0, 0, 0)) == 0
    for better, worse in (
        (Statistics(0, 0, 0, 1), Statistics(0, 0, 0, -1)),
        (Statistics(0, 0, 1, 0), Statistics(0, 0, -1, 0)),
        (Statistics(0.2, 0, 0, 0), Statistics(-1.5, 0, 0, 0)),
        (Statistics(0, 0, 0, 0, 1), Statistics(0, 0, 0, 0, -1)),
        (Statistics(1.2, 0, 0, 0), Statistics(1.5, 0, 0, 0, 0, 1)),
    ):
        assert appeal(better) > appeal(worse)
    soft = np.asarray(cv2.GaussianBlur(picture(), (0, 0), 1.2), np.uint8)
    assert statistics(soft).sharpness < statistics(picture()).sharpness - 0.5
    image = np.full((224, 224, 3), 120, np.uint8)
    image[:56] = 250  # a quarter is burnt out
    assert statistics(image).blown == pytest.approx(2.0)


def test_every_seventh_photograph_is_held_out(tmp_path: Path) -> None:
    folder = tmp_path / "pristine" / "kodak"
    folder.mkdir(parents=True)
    for index in range(15):
        (folder / f"{index:02d}.webp").touch()
    held = [path.stem for _, path in photographs(tmp_path, held_out=True)]
    assert held == ["00", "07", "14"] and len(photographs(tmp_path, held_out=False)) == 12
    with pytest.raises(DataError, match="no photographs"):
        photographs(tmp_path / "none", held_out=False)


STATES = ("clean", "jpeg", "jpeg", "white_noise", "under_exposure", "infrared", "defocus", "drops", "mild")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small stores: two sources in nine states, and six scenes."""
    folder = tmp_path_factory.mktemp("stores")

    def faults() -> list[tuple[Record, Picture]]:
        views = []
        for source in range(2):
            clean = procedural_image(np.random.default_rng(60 + source), 224)
            for level, state in enumerate(STATES):
                rng = np.random.default_rng(level)
                shown = clean if state == "clean" else apply(state, clean, level / 8, rng)
                change = float(np.abs(shown.astype(int) - clean).mean())
                row = Record(source=f"s{source}", kind=state, level=level / 8, view=0, change=change)
                views.append((row, shown))
        return views

    scenes = [procedural_image(np.random.default_rng(80 + index), 224) for index in range(6)]
    extract(folder / "faults", faults(), Silent())
    rows = [
        Record(source=str(i), kind="scene", view=0, appeal=appeal(statistics(s)))
        for i, s in enumerate(scenes)
    ]
    extract(folder / "scenes", zip(rows, scenes, strict=True), Silent())
    return folder


def test_stores_are_read_as_written(work: Path) -> None:
    views = read_stores([work / "faults", work / "scenes"])
    assert len(views) == 24 and views.stats.shape == (24, 2976) and views.stats.dtype == torch.float16
    fine, grid, stats = views.take([0, 23])
    assert fine.shape == (2, 112, 14, 14) and grid.shape == (2, 192, 7, 7) and stats.dtype == torch.float32
    with pytest.raises(DataError, match="no store"):
        read_stores([work / "none"])
    with pytest.raises(DataError, match="holds a store already"):
        extract(work / "faults", [], Silent())


def test_labels_follow_states(work: Path) -> None:
    views = read_stores([work / "faults"])
    labels, groups = labels_of(views.rows), groups_of(views.rows)
    assert [group.tolist() for group in groups] == [list(range(9)), list(range(9, 18))]
    for index, row in enumerate(views.rows):
        healthy = row["kind"] in ("clean", "infrared", "mild")
        assert (labels.fault[index] == 0) == healthy
        if healthy:
            assert labels.drop[index] == 0 and labels.causes[index].sum() == 0
    assert 0 < labels.drop[1] < labels.drop[2]  # JPEG, mild and stronger
    assert labels.causes[1].tolist() == [float(name == "compression") for name in CAUSES]


def test_losses_fall_where_order_is_right(work: Path) -> None:
    views = read_stores([work / "faults"])
    labels, groups = labels_of(views.rows), groups_of(views.rows)
    index, bounds = draw(groups, 2, np.random.default_rng(0))
    at = torch.from_numpy(index)
    right = -labels.drop[at]
    assert rank_loss(right, labels, at, bounds) < rank_loss(0 * right, labels, at, bounds)
    assert rank_loss(0 * right, labels, at, bounds) < rank_loss(-right, labels, at, bounds)
    mos = torch.linspace(0.1, 0.9, 9)
    assert score_loss(torch.logit(mos), mos) < score_loss(0 * mos, mos) < score_loss(-torch.logit(mos), mos)
    assert order_loss(5 * mos, 5 * mos) < order_loss(-5 * mos, 5 * mos)


def test_the_upper_part_says_what_the_model_says(work: Path) -> None:
    upper = Upper.load(None).eval()
    image = procedural_image(np.random.default_rng(80), 224)
    views = read_stores([work / "scenes"])
    with torch.no_grad():
        _, logits = upper(*views.take([0]))
        model = upper.model
        expected = model.readings(model.image_features(model.pixels(torch.from_numpy(image[None]))))
        places = upper(*views.take([0]), torch.arange(49))[1]
    torch.testing.assert_close(logits, expected, atol=0.02, rtol=0.02)  # stores are float16
    torch.testing.assert_close(places, logits, atol=1e-5, rtol=1e-5)


def test_a_few_steps_write_weights_and_a_row_explains_the_appeal(work: Path, tmp_path: Path) -> None:
    config = FaultsConfig(stores=("faults",), steps=3, groups=2, scene_views=2)
    digest = learn_faults(Upper.load(None), work, config, tmp_path / "faults.safetensors", Silent())
    assert len(digest) == 64
    learned = Upper.load(tmp_path / "faults.safetensors")
    assert not learned.visual_row.any()
    settings = AppealConfig(faults="faults", still=0.0, penalty=1e-3)
    add_appeal(learned, work, settings, tmp_path / "a.safetensors", Silent())
    final = Upper.load(tmp_path / "a.safetensors")
    scenes = read_stores([work / "scenes"])
    y = torch.tensor([row["appeal"] for row in scenes.rows])
    said = final.standardised(scenes.stats) @ final.visual_row
    assert float(torch.corrcoef(torch.stack([said, y]))[0, 1]) > 0.99
    assert final.model.aggregate.shift != 0 and final.model.aggregate.whole == 0.5


def test_the_ridge_is_the_normal_equations() -> None:
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 6, generator=rng) + 2, torch.randn(40, generator=rng)
    changes = torch.randn(10, 6, generator=rng)
    row, offset = learn._ridge(x, y, changes, 0.3, 0.2)
    centred = x - x.mean(dim=0)
    unit = float(centred.square().sum(dim=1).mean())
    gram = centred.T @ centred + 0.2 * changes.T @ changes + 0.3 * unit * torch.eye(6)
    torch.testing.assert_close(
        row, torch.linalg.solve(gram, centred.T @ (y - y.mean())), atol=1e-4, rtol=1e-3
    )
    assert float((x @ row + offset - y).mean()) == pytest.approx(0, abs=1e-5)
    still, _ = learn._ridge(x, y, 1e3 * changes, 0.3, 1.0)
    assert float((changes @ still).norm()) < 1e-2 * float((changes @ row).norm())


def test_folds_part_the_pictures() -> None:
    parts = [fold_of(103, fold) for fold in range(5)]
    assert sorted(np.concatenate([held for _, held in parts])) == list(range(103))
    assert all(not set(train) & set(held) for train, held in parts)
    assert len(fold_of(103, None)[1]) == 0


def test_jpeg_at_a_lower_quality_is_further_off() -> None:
    clean = picture()
    change = [np.abs(jpeg_at(clean, quality).astype(int) - clean).mean() for quality in (90, 30, 5)]
    assert change == sorted(change)


def test_the_calibration_error_is_zero_for_honest_probabilities_and_the_gap_for_others() -> None:
    rng = np.random.default_rng(0)
    said = rng.random(200_000)
    true = (rng.random(said.size) < said).astype(np.float64)
    assert calibration_error(said, true) < 0.005
    # In two bins: (.15, .15, .15, one true) and (.95, .95, none true).
    found = calibration_error(np.array([0.15] * 3 + [0.95] * 2), np.array([1.0, 0, 0, 0, 0]))
    assert found == pytest.approx((abs(0.45 - 1) + 1.9) / 5)
