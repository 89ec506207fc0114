"""The head of few labels, views in training, and distorted twins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from helpers_train import tokenizer
from safetensors.torch import load_file

from grmp_edge.export.fault_check import fault_shares, fault_warning
from grmp_edge.export.fold import fold
from grmp_edge.export.graph.emit import build_onnx
from grmp_edge.head import (
    MARGIN,
    Head,
    Seen,
    Twins,
    _Ridge,
    _Setting,
    conformal_width,
    fit_head,
    folds_of,
    start_head,
    target_logits,
)
from grmp_edge.metrics import srcc
from grmp_edge.preprocess import Preprocess, read_image
from grmp_edge.runtime.backends import open_session
from grmp_edge.train.data.labelled import Crops, SplitConfig, read_csv
from grmp_edge.train.finetune import choose
from grmp_edge.train.finetune.choose import learn_head, put_start_head
from grmp_edge.train.finetune.config import FinetuneConfig, Part
from grmp_edge.train.finetune.frozen_features import ViewScores
from grmp_edge.train.finetune.loop import finetune
from grmp_edge.train.finetune.seen import head_of, put_head, see, see_labelled, see_twins
from grmp_edge.train.network.backbone import Backbone, BackboneConfig
from grmp_edge.train.network.hybrid import build_hybrid
from grmp_edge.train.network.model import GrmpIqa
from grmp_edge.train.network.settings import PromptConfig
from grmp_edge.train.pictures.twins import TWINS, twin
from grmp_edge.train.runs import ModelConfig, run_finetune
from grmp_edge.train.session.checkpoint import load_checkpoint
from grmp_edge.train.session.progress import Silent
from grmp_edge.views import sigmoid


def seen(count: int, seed: int = 0, statistics: int = 30) -> tuple[Seen, npt.NDArray[np.float64]]:
    """Pictures whose quality follows from the own score and two statistics."""
    rng = np.random.default_rng(seed)
    logits, stats = rng.normal(size=count), rng.normal(size=(count, statistics))
    truth = 0.5 * logits + (stats[:, 0] - stats[:, 1] if statistics else 0)
    quality = 1 / (1 + np.exp(-truth - 0.2 * rng.normal(size=count)))
    return Seen(logits, rng.normal(size=(count, 8)), stats), quality


@pytest.fixture(scope="module")
def network() -> GrmpIqa:
    torch.manual_seed(0)
    clip = build_hybrid().eval()
    with torch.no_grad():
        clip.statistics_row.normal_(std=1e-3)
    return GrmpIqa(
        Backbone("embedded-l0", "random", False, "x", clip, tokenizer()), PromptConfig(4, 4, 0.0, "lite")
    ).eval()


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    rng = np.random.default_rng(0)
    lines = ["image,mos"]
    for index in range(10):
        noise = rng.integers(0, 256, (240, 260, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{index}.png"), cv2.GaussianBlur(noise, (0, 0), 0.4 + 0.4 * index))
        lines.append(f"{index}.png,{10 - index}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder / "labels.csv"


def test_ridge_by_hand() -> None:
    data, quality = seen(40)
    target = target_logits(quality)
    ridge = _Ridge(data, None, target)
    head = ridge.head(_Setting(("statistics",), 0.3))
    # The normal equations of the same problem, in the primal: columns scaled, the mean left unpenalised.
    prior, stats = data.logits - data.logits.mean(), data.statistics - data.statistics.mean(axis=0)
    scale = np.sqrt((stats**2).sum(axis=1).mean())
    x = np.column_stack([np.sqrt(3.0) * prior / np.sqrt((prior**2).mean()), stats / scale])
    w = np.linalg.solve(x.T @ x + 0.3 * np.eye(x.shape[1]), x.T @ (target - target.mean()))
    assert head(data) == pytest.approx(x @ w + target.mean(), abs=1e-8)
    assert head.of_statistics == pytest.approx(w[1:] / scale, abs=1e-8)
    assert not head.weight.any()


def test_a_head_ranks_unseen_pictures_better_than_the_start() -> None:
    data, quality = seen(260)
    fit = fit_head(data.take(range(60)), quality[:60])
    rest = data.take(range(60, 260))
    assert fit.report["chosen"] == "ridge"
    assert srcc(fit.head(rest), quality[60:]) > srcc(rest.logits, quality[60:]) + 0.1
    assert abs(float(np.mean(sigmoid(fit.head(rest))) - quality[60:].mean())) < 0.1


def test_without_a_stem_features_are_what_it_learns_from() -> None:
    data, quality = seen(40, statistics=0)
    fit = fit_head(data, quality)
    assert fit.report["inputs"] == ["features"] and fit.head.weight.any()


def test_labels_that_the_own_score_follows_are_left_to_it() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=24)
    data = Seen(logits, rng.normal(size=(24, 8)), 20 * rng.normal(size=(24, 400)))
    quality = sigmoid(logits)
    fit = fit_head(data, quality)
    # Never worse than the start: within the labels, whatever is chosen.
    assert fit.report["start"] == pytest.approx(1.0)
    assert srcc(fit.head(data), quality) > 0.99


@pytest.mark.parametrize("count", [12, 24, 50])
def test_a_head_is_taken_only_if_it_ranks_better_than_the_start(count: int) -> None:
    chosen = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        logits = rng.normal(size=count)
        data = Seen(logits, rng.normal(size=(count, 4)), rng.normal(size=(count, 60)))
        quality = sigmoid(logits + (0.5 + seed / 12) * data.statistics[:, 0] + rng.normal(size=count))
        report = fit_head(data, quality, seed=seed).report
        assert report["start"] is not None and report["ridge"] is not None
        assert (report["chosen"] == "ridge") == (report["ridge"] > report["start"])
        chosen.append(report["chosen"])
    assert set(chosen) == {"ridge", "start"}


def test_cross_validation_is_not_turned_round_by_the_folds_means() -> None:
    """A head that knows nothing ranks by chance; with each fold's own mean, the wrong way round."""
    found, plain = [], []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        data, quality = (
            Seen(rng.normal(size=30), np.zeros((30, 2)), rng.normal(size=(30, 50))),
            rng.random(30),
        )
        target, folds = target_logits(quality), folds_of(30, seed, 3)
        setting = _Setting(("statistics",), 30.0, prior=0.0)
        rounds, _ = _Ridge(data, None, target).left_out(setting, folds)
        found.append(np.mean([srcc(one, target) for one in rounds]))
        means = np.zeros(30)
        for learned, left in folds[:5]:
            means[left] = target[learned].mean()
        plain.append(srcc(means, target))
    assert abs(np.mean(found)) < 0.12 and np.mean(plain) < -0.2


def test_plain_ridge_has_no_prior() -> None:
    data, quality = seen(50)
    assert fit_head(data, quality, prior=False).head.scale == 0.0


def test_twins_are_pulled_below_their_originals() -> None:
    data, quality = seen(60)
    rng = np.random.default_rng(2)
    # A fault that the labels know nothing of, along one statistic of its own.
    moved = data.statistics.copy()
    moved[:, 5] += 3
    twins = Twins(Seen(data.logits + 0.1 * rng.normal(size=60), data.features, moved), np.arange(60))
    blind, sighted = fit_head(data, quality), fit_head(data, quality, twins)
    below = [float((one.head(twins.seen) < one.head(data)).mean()) for one in (blind, sighted)]
    assert below[1] >= 0.9 > below[0] or below[1] > below[0]
    assert sighted.report["sight"] is not None and sighted.report["sight"] >= 0.9
    assert sighted.report["pull"] > 0 and sighted.report["twins"] == 60
    assert srcc(sighted.head(data), quality) > 0.8
    assert MARGIN > 0


def test_the_start_is_never_reversed() -> None:
    data, _ = seen(20)
    head = start_head(data, sigmoid(-data.logits))
    assert head.scale > 0


def test_a_head_goes_into_the_network_and_back(network: GrmpIqa) -> None:
    rng = np.random.default_rng(0)
    head = Head(0.7, rng.normal(size=256), 0.01 * rng.normal(size=2976), 0.4)
    try:
        put_head(network, head)
        again = head_of(network)
        assert again.scale == pytest.approx(0.7) and again.bias == pytest.approx(0.4, abs=1e-6)
        assert again.of_statistics == pytest.approx(head.of_statistics, abs=1e-6)
        views = np.random.default_rng(1).integers(0, 256, (5, 224, 224, 3), dtype=np.uint8)
        with torch.no_grad():
            p = network(torch.from_numpy(views)).double().numpy()
            unfolded = network(torch.from_numpy(views), unfolded=True).double().numpy()
        by_hand = network.aggregate(np.log(p / (1 - p)))
        assert float(again(see(network, iter([views])))[0]) == pytest.approx(float(by_hand), abs=1e-3)
        assert unfolded == pytest.approx(p, abs=1e-5)
        session = open_session(build_onnx(fold(network)).SerializeToString(), 1)
        assert session.run(["scores"], {"images": views})[0] == pytest.approx(p, abs=1e-5)
    finally:
        put_head(network, Head(1.0, np.zeros(256), np.zeros(2976), 0.0))


def test_qgr_learns_from_views_and_keeps_its_aggregate(network: GrmpIqa, labels: Path) -> None:
    data = read_csv(labels)
    pixels, crops = data.viewed(range(4), Preprocess.for_size(224, 2))
    assert crops is not None and crops.pixels.shape[1:] == (224, 224, 3)
    part = Part(pixels, np.linspace(0, 1, 4, dtype=np.float32), None, crops)
    before = {name: value.clone() for name, value in network.named_parameters()}
    scores = ViewScores(network, pixels, crops).logits()
    own = [read_image(path) for path in data.paths[:4]]
    views = Preprocess.for_size(224, 2)
    expected = head_of(network)(see(network, (views.views(one).pixels for one in own)))
    assert scores.numpy() == pytest.approx(expected, abs=2e-3)
    put_start_head(network, part)
    state = finetune(network, part, None, FinetuneConfig(epochs=1, batch=4, lr=0.1, qgr=False))
    assert {"head_scale", "head_row", "head_bias"} <= set(state.weights)
    moved = [n for n, value in network.named_parameters() if not torch.equal(value, before[n])]
    assert moved and all("stem" not in name for name in moved)
    with torch.no_grad():
        for name, value in network.named_parameters():
            value.copy_(before[name])
    put_head(network, Head(1.0, np.zeros(256), np.zeros(2976), 0.0))


def test_crops_follow_their_pictures() -> None:
    crops = Crops(np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1), np.array([0, 0, 1, 2, 2]))
    taken = crops.take([2, 0])
    assert taken.pixels.ravel().tolist() == [3, 4, 0, 1] and taken.of.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("kind", TWINS)
def test_a_twin_is_plainly_another_picture(kind: str) -> None:
    image = np.full((60, 80, 3), 120, np.uint8)
    image[::3] = 200
    made = twin(image, kind, 0)
    assert made.shape == image.shape and made.dtype == np.uint8
    assert np.abs(made.astype(int) - image).mean() > 1
    assert np.array_equal(made, twin(image, kind, 0))


def test_a_run_learns_in_closed_form_and_can_be_loaded(tmp_path: Path, labels: Path) -> None:
    data = read_csv(labels)
    model = ModelConfig.of(BackboneConfig("embedded-l0", "random"), device="cpu")
    config = FinetuneConfig.of("embedded-l0", method="head")
    split, notes = SplitConfig(8, 0.0, 0.0), []

    class Notes(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    result = run_finetune(tmp_path / "run", model, None, data, split, config, reporter=Notes(), announce=True)
    assert "about" in notes[0] and "on this machine" in notes[0]
    assert result["head"]["chosen"] in ("ridge", "start") and result["complete"]
    figure = result["metrics"]["cross_validation"]
    assert set(result["metrics"]) == {"train", "cross_validation"} and figure["count"] == 8
    assert figure["srcc_interval"][0] <= figure["srcc"] <= figure["srcc_interval"][1]
    again = run_finetune(tmp_path / "run", model, None, data, split, config, resume=True)
    assert again["head"] == result["head"]
    loaded = load_checkpoint(tmp_path / "run").model
    saved = load_file(tmp_path / "run" / "weights.safetensors")
    assert torch.equal(saved["head_row"], loaded.head_row) and float(loaded.head_scale) != 1.0
    shares = fault_shares(loaded, data.paths[:2])
    assert set(shares) == set(TWINS) and all(0 <= share <= 1 for share in shares.values())
    twins = see_twins(loaded, data, [0, 1])
    assert len(twins.of) == 2 and len(see_labelled(loaded, data, [0])) == 1


def test_all_labels_are_learned_from_and_cross_validation_gives_the_figure(
    network: GrmpIqa, labels: Path
) -> None:
    """By hand: five folds, each by a head of the others and of the others' twins."""
    data = replace(read_csv(labels), memo={})
    quality = data.quality(data.scale_of(range(10)))
    config = FinetuneConfig.of("embedded-l0", method="head")
    before = head_of(network)
    state, honest = learn_head(network, data, range(10), quality, config, Silent(), validate=True)
    put_head(network, before)
    seen_all, twins = see_labelled(network, data, range(10)), see_twins(network, data, range(10))
    logits = np.zeros(10)
    order = np.random.default_rng([0, 0xF01D]).permutation(10)
    for left in np.array_split(order, 5):
        rest = sorted(set(range(10)) - set(left.tolist()))
        head = fit_head(seen_all.take(rest), quality[rest], twins.of_pictures(rest)).head
        # Around the mean of all labels: moving all pictures alike ranks none before another.
        logits[left] = head(seen_all.take(left)) + 4 * (quality.mean() - quality[rest].mean())
    assert honest is not None
    np.testing.assert_allclose(honest, 1 / (1 + np.exp(-logits)), atol=1e-6)
    every = fit_head(seen_all, quality, twins).head
    assert float(state.weights["head_scale"]) == pytest.approx(every.scale, rel=1e-5)


def test_intervals_cover_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(200):
        errors = rng.standard_t(3, size=41) * 0.1
        width = conformal_width(np.zeros(40), errors[:40])
        assert width is not None
        covered.append(abs(errors[40]) <= width)
    assert 0.84 < np.mean(covered) < 0.97
    assert (
        conformal_width([0.0] * 9, np.arange(9)) == 8.0 and conformal_width([0.0] * 8, np.arange(8)) is None
    )


def test_a_missed_fault_is_named() -> None:
    assert fault_warning({"noise": 0.95, "haze": 1.0}) == ""
    assert "haze (80%)" in fault_warning({"noise": 0.9, "haze": 0.8})


def test_both_ways_are_compared_within_the_labels(
    tmp_path: Path, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "_FOLDS", 2)
    model = ModelConfig.of(BackboneConfig("embedded-l0", "random"), device="cpu")
    config = FinetuneConfig.of("embedded-l0", method="both", epochs=1, batch=8, lr=0.01, qgr=False)
    result = run_finetune(tmp_path / "run", model, None, read_csv(labels), SplitConfig(4, 0.2, 0.0), config)
    assert set(result["compared"]) == {"start", "head", "qgr"} and result["chosen"] in ("head", "qgr")
    assert result["chosen"] == "head" or result["compared"]["qgr"] > result["compared"]["head"]
    loaded = load_checkpoint(tmp_path / "run")
    assert loaded.config["progress"]["chosen"] == result["chosen"]
