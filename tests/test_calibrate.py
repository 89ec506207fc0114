"""Bringing the scores onto the labels' scale: Platt's two numbers by scipy, what moves, what the steps do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import Float64Array
from helpers_train import Stop, Tensors, parameters_of, pictures, tiny_model
from scipy.optimize import minimize
from scipy.special import expit, logit
from scipy.stats import spearmanr

from grmp_edge.train.finetune import loop as finetune_module
from grmp_edge.train.finetune.config import FinetuneConfig, Part
from grmp_edge.train.finetune.label_scale import calibrate, platt
from grmp_edge.train.finetune.loop import finetune, predict
from grmp_edge.train.network.backbone import BackboneConfig, load_backbone
from grmp_edge.train.network.embedded import EMBEDDED_PATH, load_prompts
from grmp_edge.train.network.model import GrmpIqa
from grmp_edge.train.pictures.procedural import procedural_image
from grmp_edge.train.session.checkpoint import CheckpointWriter, load_parameters
from grmp_edge.train.session.ranks import ALONE

SIDE = 35  # a margin of 3 round the tiny network's 32


def by_scipy(logits: Float64Array, quality: Float64Array) -> Float64Array:
    def loss(x: Float64Array) -> float:
        p = np.clip(expit(x[0] * logits + x[1]), 1e-12, 1 - 1e-12)
        fit = -(quality * np.log(p) + (1 - quality) * np.log(1 - p)).mean()
        return float(fit + 1e-3 * (x[0] - 1) ** 2)

    found = minimize(loss, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-12})
    return np.asarray(found.x)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_slope_and_offset_by_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(2, 1.5, 40)
    quality = np.clip(expit(0.4 * logits - 1) + rng.normal(0, 0.1, 40), 0, 1)
    found = platt(torch.from_numpy(logits), torch.from_numpy(quality))
    assert [found.slope, found.offset] == pytest.approx(by_scipy(logits, quality), abs=1e-4)


def test_two_labels_at_the_ends_ask_for_no_endless_slope() -> None:
    found = platt(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]))
    assert 1 < found.slope < 30 and np.isfinite(found.offset)


@pytest.mark.parametrize("quality", [np.linspace(0.9, 0.1, 20), np.full(20, 0.7)])
def test_labels_against_the_order_do_not_turn_it_round(quality: Float64Array) -> None:
    logits = np.linspace(-3, 5, 20)
    found = platt(torch.from_numpy(logits), torch.from_numpy(quality))
    assert found.slope == 0.1
    assert expit(0.1 * logits + found.offset).mean() == pytest.approx(quality.mean(), abs=1e-6)


def test_the_text_side_alone_moves() -> None:
    model, images = tiny_model(), pictures(8, SIDE)
    before, steps = parameters_of(model), []
    calibrate(model, images, np.linspace(0.1, 0.4, 8, dtype=np.float32), 5, ALONE, lambda: steps.append(1))
    assert len(steps) == 5
    text = {name for name, _ in model.text_parameters()}
    assert "ctx" in text and "clip.ln_final.weight" in text and not any("visual" in name for name in text)
    for name, value in parameters_of(model).items():
        assert torch.equal(value, before[name]) != (name in text), name
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_scores_of_the_shipped_model_come_onto_the_labels_scale() -> None:
    model = GrmpIqa(load_backbone(BackboneConfig())).eval()
    load_parameters(model, load_prompts(), EMBEDDED_PATH)
    model.head_row.zero_()  # what statistics add straight is no text: the head in closed form scales it
    scenes = [procedural_image(np.random.default_rng(i), 244) for i in range(24)]
    blurs = np.geomspace(0.3, 2, 24)
    blurred = [cv2.GaussianBlur(s, (0, 0), b) for s, b in zip(scenes, blurs, strict=True)]
    images = np.asarray(blurred, dtype=np.uint8)
    scores = predict(model, images).astype(np.float64)
    # Labels that follow the scores, higher and closer together, with errors.
    wanted = expit(0.3 * logit(scores) + 1.0)
    quality = np.clip(wanted + np.random.default_rng(0).normal(0, 0.1, 24), 0, 1).astype(np.float32)
    found = calibrate(model, images, quality, 300, ALONE)
    after, aim = predict(model, images), expit(found.slope * logit(scores) + found.offset)
    assert np.abs(after - aim).mean() < 0.1 * np.abs(scores - aim).mean()
    assert spearmanr(after, scores)[0] > 0.95


def data(count: int = 6, seed: int = 0) -> Part:
    quality = np.random.default_rng(seed + 50).random(count).astype(np.float32)
    return Part(pictures(count, SIDE, seed), quality)


def test_a_step_moves_the_text_side_by_its_part_of_the_rate() -> None:
    start, moved = parameters_of(tiny_model()), {}
    for rate in (0.0, 0.25, 1.0):
        model = tiny_model()
        finetune(model, data(), None, FinetuneConfig(epochs=1, lr=0.1, text_rate=rate, qgr=False))
        moved[rate] = {name: value - start[name] for name, value in parameters_of(model).items()}
    text = {name for name, _ in tiny_model().text_parameters()}
    for name, _ in tiny_model().finetune_parameters():
        whole, part, none = moved[1.0][name], moved[0.25][name], moved[0.0][name]
        assert whole.abs().max() > 0, name
        factor = 0.25 if name in text else 1.0
        torch.testing.assert_close(part, factor * whole, atol=1e-7, rtol=1e-3)
        torch.testing.assert_close(none, 0 * whole if name in text else whole, atol=1e-7, rtol=1e-3)


def test_the_embedded_backbone_is_calibrated_and_then_moves_its_image_tower() -> None:
    usual = FinetuneConfig.of("embedded-l0")
    assert (usual.calibration_steps, usual.text_rate, usual.lr) == (400, 0.0, 0.5)
    assert usual.image_blocks is None and FinetuneConfig.of("ViT-B-16").image_blocks is None
    assert GrmpIqa(load_backbone(BackboneConfig())).first_trained_image_block == 1  # of two
    # Without image blocks the text side is all there is, at a rate of its own; what is set is kept.
    alone = FinetuneConfig.of("embedded-l0", image_blocks=0)
    assert (alone.text_rate, alone.lr) == (1.0, 0.03)
    kept = FinetuneConfig.of("embedded-l0", calibration_steps=0, text_rate=0.5, lr=0.0)
    assert (kept.calibration_steps, kept.text_rate, kept.lr) == (0, 0.5, 0.0)


@pytest.mark.parametrize("judged", [True, False])
def test_the_mean_of_the_epochs_weights_is_judged_and_kept(judged: bool) -> None:
    settings: dict[str, Any] = {"lr": 0.1, "batch": 4, "qgr": False, "evaluate_every": 4}
    epochs = []
    for count in (1, 2, 3, 4):
        model = tiny_model()
        finetune(model, data(), None, FinetuneConfig(epochs=count, **settings))
        epochs.append(parameters_of(model))
    model, judge = tiny_model(), data(8, 3)
    config = FinetuneConfig(epochs=4, average=True, **settings)
    state = finetune(model, data(), judge if judged else None, config)
    for name, value in parameters_of(model).items():
        each = torch.stack([weights[name].double() for weights in epochs])
        torch.testing.assert_close(value.double(), each.mean(0), atol=1e-6, rtol=1e-5)
        assert torch.equal(state.weights.get(name, value), value)
    assert not torch.equal(model.ctx, epochs[-1]["ctx"])
    told = judge.measure(predict(model, judge.images))["srcc"] if judged else None
    assert state.progress["history"][-1]["srcc"] == told and state.progress["best_srcc"] == told


def test_a_resumed_run_is_not_calibrated_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune_module, "_SAVE_EVERY_S", 0.0)
    config = FinetuneConfig(epochs=8, evaluate_every=2, batch=4, lr=0.05, calibration_steps=10, text_rate=0.5)

    def run(folder: Path, stop: int | None = None, resume: bool = False) -> tuple[Tensors, dict[str, Any]]:
        model = tiny_model()
        writer = CheckpointWriter(folder, {"stage": "finetune"})
        state = writer.resume() if resume else None
        final = finetune(model, data(), data(8, 3), config, writer, state, Stop(stop) if stop else None)
        return parameters_of(model), final.progress

    whole, told = run(tmp_path / "whole")
    assert set(told["calibration"]) == {"slope", "offset"}
    # In the calibration, where nothing is saved yet, and in two epochs behind it.
    for stop in (4, 13, 17):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / str(stop), stop)
        again, progress = run(tmp_path / str(stop), resume=True)
        assert progress == told
        assert all(torch.equal(value, whole[name]) for name, value in again.items())
