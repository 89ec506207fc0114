"""Fine-tuning: one step by hand, what stays frozen, the schedule, honest selection, resuming, learning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import UInt8Array
from helpers_train import (
    TINY_CLIP,
    Stop,
    Tensors,
    blurred,
    parameters_of,
    pictures,
    tiny_clip,
    tiny_model,
    tokenizer,
    write_labelled,
)
from open_clip.model import CLIP

from grmp_edge.errors import CheckpointError, UsageError
from grmp_edge.metrics import srcc
from grmp_edge.train.data.labelled import SplitConfig, read_csv, split_indices
from grmp_edge.train.finetune import loop as finetune_module
from grmp_edge.train.finetune.config import FinetuneConfig, Part
from grmp_edge.train.finetune.frozen_features import Cut, FrozenCache
from grmp_edge.train.finetune.loop import draw_cut, finetune, predict
from grmp_edge.train.finetune.state import TuningRun
from grmp_edge.train.network.backbone import BackboneConfig
from grmp_edge.train.network.model import GrmpIqa
from grmp_edge.train.network.settings import PromptConfig
from grmp_edge.train.network.words import SCENES
from grmp_edge.train.presets import PRESETS
from grmp_edge.train.runs import ModelConfig, run_finetune
from grmp_edge.train.session.checkpoint import CheckpointWriter, load_checkpoint, read_state

SIDE, SIZE = 35, 32  # round(32 * 244 / 224): a margin of 3


def part(count: int, seed: int = 0) -> Part:
    quality = np.random.default_rng(seed + 50).random(count).astype(np.float32)
    return Part(pictures(count, SIDE, seed), quality)


def full_text(model: GrmpIqa, sentences: list[str], context: torch.Tensor | None = None) -> torch.Tensor:
    """open_clip's own text tower over all 77 places, with the context put in by a hook."""
    ids = tokenizer()(sentences)

    def put(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        if context is None:
            return output
        rows = context.expand(len(output), -1, -1)
        return torch.cat([output[:, :1], rows, output[:, 1 + context.shape[0] :]], dim=1)

    clip: Any = model.clip
    handle = clip.token_embedding.register_forward_hook(put)
    features: torch.Tensor = clip.encode_text(ids, normalize=True)
    handle.remove()
    return features


def step_by_hand(
    model: GrmpIqa,
    untouched: CLIP,
    images: UInt8Array,
    y: torch.Tensor,
    lr: float,
    decay: float,
    strength: float,
) -> tuple[Tensors, float, float, int]:
    """Gradients by autograd through the unfolded forward; projection and SGD written out."""
    named = dict(model.finetune_parameters())
    for parameter in named.values():
        parameter.requires_grad_(True)
    pixels = model.pixels(torch.from_numpy(np.ascontiguousarray(images)))
    features = model.image_features_unfolded(pixels)
    scale = torch.as_tensor(model.clip.logit_scale).exp()
    classes = full_text(model, ["X X X X high quality.", "X X X X low quality."], model.ctx)
    p = (scale * features @ classes.T).softmax(-1)[:, 0]
    loss = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
    sentences = [f"a photo of a {scene}" for scene in SCENES]
    with torch.no_grad():
        plain = untouched.encode_image(pixels, normalize=True)
        teacher = (scale * plain @ untouched.encode_text(tokenizer()(sentences), normalize=True).T).softmax(
            -1
        )
    student = (scale * features @ full_text(model, sentences).T).softmax(-1)
    semantic = -(teacher * student.log()).sum(-1).mean()
    toward = torch.autograd.grad(loss, list(named.values()), retain_graph=True)
    content = torch.autograd.grad(semantic, list(named.values()), allow_unused=True)
    after, projected = {}, 0
    for (name, parameter), d, g in zip(named.items(), toward, content, strict=True):
        d = d.double()
        assert (g is None) == (name == "ctx")
        if g is not None and float((d * g).sum()) > 0:
            g = g.double()
            d = d - strength * float((d * g).sum()) / float((g * g).sum()) * g
            projected += 1
        after[name] = (parameter.detach().double() - lr * (d + decay * parameter.detach())).float()
    return after, float(loss.detach()), float(semantic.detach()), projected


@pytest.mark.parametrize("quick", [False, True])
def test_one_step_by_hand(quick: bool) -> None:
    data = part(6)
    # The crop and flip of the first epoch, from its own generator.
    rng = np.random.default_rng([0, 0])
    order = rng.permutation(6)
    row, column, flip = int(rng.integers(0, 3)), int(rng.integers(0, 3)), rng.random() < 0.5
    images = data.images[order][:, row : row + SIZE, column : column + SIZE]
    images = images[:, :, ::-1] if flip else images
    hand = tiny_model(quick_gelu=quick)
    untouched = tiny_clip(quick_gelu=quick)
    y = torch.from_numpy(data.quality[order])
    expected, loss, semantic, projected = step_by_hand(hand, untouched, images, y, 0.1, 0.01, 5.0)
    model = tiny_model(quick_gelu=quick)
    before = parameters_of(model)
    config = FinetuneConfig(epochs=1, lr=0.1, weight_decay=0.01)
    state = finetune(model, data, None, config)
    after = parameters_of(model)
    assert 0 < projected < len(expected)
    for name, value in expected.items():
        moved = (value - before[name]).abs().max()
        assert moved > 0, name
        assert (after[name] - value).abs().max() < 1e-3 * moved + 1e-7, name
    (entry,) = state.progress["history"]
    assert entry["loss"] == pytest.approx(loss, rel=1e-5)
    assert entry["semantic"] == pytest.approx(semantic, rel=1e-5)
    assert entry["changed"] == pytest.approx(projected / len(expected))
    for name in set(before) - set(expected):
        assert torch.equal(after[name], before[name]), name
    for name in ("prompt_embeddings", "deep_prompt_embeddings", "prompt_proj.weight", "prompt_norm.weight",
                 "clip.visual.transformer.resblocks.1.mlp.c_fc.weight", "clip.visual.proj",
                 "clip.text_projection", "clip.logit_scale", "clip.visual.conv1.weight"):  # fmt: skip
        assert name in set(before) - set(expected)


def test_without_qgr_it_is_plain_sgd() -> None:
    data = part(5)
    plain, projected = tiny_model(), tiny_model()
    finetune(plain, data, None, FinetuneConfig(epochs=2, qgr=False, lr=0.1))
    none = FinetuneConfig(epochs=2, qgr_strength=0.0, lr=0.1)
    state = finetune(projected, data, None, none)
    full = parameters_of(plain)
    assert all(torch.allclose(full[n], p, atol=1e-6) for n, p in projected.named_parameters())
    assert state.progress["history"][-1]["semantic"] > 0
    with_it = tiny_model()
    finetune(with_it, data, None, FinetuneConfig(epochs=2, lr=0.1))
    last = "clip.visual.ln_post.weight"
    assert not torch.allclose(parameters_of(with_it)[last], full[last], atol=1e-6)


@pytest.mark.parametrize("budget", [0, 100_000])
def test_cache_changes_nothing(budget: int) -> None:
    results = []
    for size in (budget, 2 << 30):
        model = tiny_model()
        # Two batches an epoch: a view's pictures come to the cache in parts.
        finetune(model, part(7), None, FinetuneConfig(epochs=12, batch=4, lr=0.05, cache_bytes=size))
        results.append(parameters_of(model))
    # The same up to rounding wherever a matrix product depends on the size of the batch.
    assert all(torch.allclose(a, results[1][n], atol=1e-5) for n, a in results[0].items())


@pytest.mark.parametrize("rule", ["default", "shared", "by column"])
def test_cuts_cover_the_margin_and_both_flips(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    original = FrozenCache.get

    def watch(self: FrozenCache, indices: list[int], cut: Cut) -> Any:
        seen.add(tuple(cut))
        return original(self, indices, cut)

    monkeypatch.setattr(FrozenCache, "get", watch)
    ways: dict[str, Any] = {"shared": {"offsets": "shared"}, "by column": {"flip": "by column"}}
    config = FinetuneConfig(epochs=150, qgr=False, lr=1e-4, **ways.get(rule, {}))
    finetune(tiny_model(), part(2), None, config)
    every = {(row, column, flip) for row in range(3) for column in range(3) for flip in (False, True)}
    assert (
        seen
        == {
            "default": every,
            "shared": {cut for cut in every if cut[0] == cut[1]},
            "by column": {cut for cut in every if cut[2] == (cut[1] < 1)},
        }[rule]
    )


def test_the_released_code_mirrors_where_the_column_is_below_ten() -> None:
    config = FinetuneConfig(flip="by column")
    cuts = [draw_cut(np.random.default_rng(seed), 20, config) for seed in range(400)]
    assert all(cut.flip == (cut.column < 10) for cut in cuts)
    assert {cut.row for cut in cuts} == {cut.column for cut in cuts} == set(range(20))
    assert abs(np.corrcoef([cut.row for cut in cuts], [cut.column for cut in cuts])[0, 1]) < 0.15


def test_prompt_dropout_in_fine_tuning_is_the_paper_drawing_in_training_mode() -> None:
    """The unfolded network with every prompt dropped by the same masks, drawn picture by picture."""
    prompts = PromptConfig(visual_tokens=5, dropout=0.5, normalization="clip")
    data = part(3)
    model, plain = tiny_model(prompts=prompts), tiny_model(prompts=prompts)
    config = FinetuneConfig(epochs=1, lr=0.1, qgr=False, prompt_dropout=True, weight_decay=0.0)
    before = parameters_of(model)
    finetune(model, data, None, config)
    rng = np.random.default_rng([0, 0])
    order = rng.permutation(3)
    cut = draw_cut(rng, 3, config)
    torch.manual_seed(int(rng.integers(2**62)))
    images = data.images[order][:, cut.row : cut.row + SIZE, cut.column : cut.column + SIZE]
    images = images[:, :, ::-1] if cut.flip else images
    # The frozen blocks see the pictures in the cache's order, the trained ones in the batch's.
    masks = [torch.nn.functional.dropout(torch.ones(3, 5, 24), 0.5) for _ in model.image.blocks]
    first = plain.first_trained_image_block
    masks = [m[torch.from_numpy(order)] if i < first else m for i, m in enumerate(masks)]
    given = iter(masks)
    plain.prompt_dropout.register_forward_hook(lambda module, inputs, output: inputs[0] * next(given))
    named = dict(plain.finetune_parameters())
    for parameter in named.values():
        parameter.requires_grad_(True)
    features = plain.image_features_unfolded(plain.pixels(torch.from_numpy(np.ascontiguousarray(images))))
    p = plain.logits(features, plain.quality_features()).softmax(-1)[:, 0]
    y = torch.from_numpy(data.quality[order])
    loss = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
    after = parameters_of(model)
    for (name, parameter), gradient in zip(
        named.items(), torch.autograd.grad(loss, list(named.values())), strict=True
    ):
        expected = parameter.detach() - 0.1 * gradient
        moved = (expected - before[name]).abs().max()
        assert (after[name] - expected).abs().max() < 1e-3 * moved + 1e-7, name
    assert not model.training


def test_schedule() -> None:
    """After ``patience`` evaluations that do not improve, lr falls; below ``min_lr`` training stops."""
    config = FinetuneConfig(epochs=2000, lr=1e-3, evaluate_every=2, patience=3, lr_factor=0.3, min_lr=2e-5)
    state = finetune(tiny_model(), part(2), None, config)
    rates = [entry["lr"] for entry in state.progress["history"]]
    expected = [1e-3 * 0.3 ** ((i + 1) // 3) for i in range(12)]
    assert rates == pytest.approx(expected)  # 1e-3 * .3^4 < 2e-5
    assert [entry["epoch"] for entry in state.progress["history"]] == list(range(2, 26, 2))
    assert state.progress["epoch"] == 24


def test_srcc_and_plcc_together_choose_and_the_start_is_the_first_best() -> None:
    model = tiny_model()
    run = TuningRun(FinetuneConfig(patience=9, lr=1.0), dict(model.finetune_parameters()))
    run.begin(0.5, 0.5)
    kept = []
    for pair in [(0.6, 0.3), (0.4, 0.7), (None, None), (0.6, 0.5), (0.5, 0.6)]:
        run.epoch += 1
        with torch.no_grad():
            model.ctx.add_(1.0)
        run.judge(*pair, {})
        kept.append(bool(torch.equal(run.best["ctx"], model.ctx)))
    assert kept == [False, True, False, False, False]
    assert (run.best_epoch, run.best_srcc, run.best_plcc, run.waited) == (2, 0.4, 0.7, 3)


def test_a_model_worse_than_its_start_is_not_handed_back() -> None:
    images, quality = blurred(24, SIDE, seed=1)
    model = tiny_model()
    learn = FinetuneConfig(epochs=60, lr=0.02, batch=16, qgr=False)
    finetune(model, Part(images, quality), None, learn)
    good = parameters_of(model)
    # Labels turned round: every epoch is worse on honest ones than the start.
    config = FinetuneConfig(epochs=20, evaluate_every=1, lr=0.1, qgr=False)
    state = finetune(model, Part(images, 1 - quality), Part(*blurred(16, SIDE, seed=2)), config)
    assert all(torch.equal(p, good[n]) for n, p in model.named_parameters())
    assert (state.progress["best_epoch"], len(state.progress["history"])) == (0, 20)


def test_schedule_counts_from_the_last_improvement() -> None:
    scores = iter([0.1, 0.0, 0.1, 0.2, 0.2, None, 0.1, 0.3, 0.0, 0.0])
    config = FinetuneConfig(patience=3, lr=1.0)
    model = tiny_model()
    run = TuningRun(config, dict(model.finetune_parameters()))
    rates = []
    for score in scores:
        run.judge(score, score, {})
        rates.append(run.lr)
    # An equal score is no improvement, and one that is undefined is none either.
    assert rates == pytest.approx([1, 1, 1, 1, 1, 1, 0.3, 0.3, 0.3, 0.3])
    assert run.best_srcc == 0.3


def test_defaults_are_the_references() -> None:
    c = FinetuneConfig.of("ViT-B-16")
    assert (c.epochs, c.lr, c.weight_decay, c.batch) == (2000, 1e-3, 1e-4, 192)
    assert (c.evaluate_every, c.patience, c.lr_factor, c.min_lr) == (5, 6, 0.3, 5e-7)
    assert (c.qgr_strength, c.projection, c.select_on) == (5.0, "per_tensor", "validation")
    assert (c.calibration_steps, c.text_rate, c.average) == (0, 1.0, False)


def test_the_best_judged_epoch_stays() -> None:
    judge = part(12, seed=9)
    model = tiny_model()
    state = finetune(model, part(6), judge, FinetuneConfig(epochs=10, evaluate_every=1, lr=0.2))
    start = judge.measure(predict(tiny_model(), judge.images))
    epochs: list[tuple[Any, Any]] = [(start["srcc"], start["plcc"])]
    epochs += [(entry["srcc"], entry["plcc"]) for entry in state.progress["history"]]
    sums = [one[0] + one[1] for one in epochs]
    assert len(set(sums)) > 2
    best = int(np.argmax(sums))
    assert state.progress["best_epoch"] == best
    assert srcc(predict(model, judge.images), judge.quality) == pytest.approx(epochs[best][0])
    assert state.progress["best_srcc"] == epochs[best][0]


def test_a_judge_that_cannot_rank_does_not_undo_the_training() -> None:
    equal = Part(pictures(3, SIDE), np.full(3, 0.5, np.float32))
    judged, fixed = tiny_model(), tiny_model()
    config = FinetuneConfig(epochs=4, evaluate_every=2, lr=0.05)
    state = finetune(judged, part(4), equal, config)
    finetune(fixed, part(4), None, config)
    expected = parameters_of(fixed)
    assert all(torch.equal(p, expected[n]) for n, p in judged.named_parameters())
    assert state.progress["best_srcc"] is None


def test_predict_reads_the_centre() -> None:
    model = tiny_model()
    images = pictures(5, SIDE)
    expected = model(torch.from_numpy(images[:, 1:33, 1:33].copy())).numpy()
    np.testing.assert_allclose(predict(model, images, batch=2), expected, atol=1e-6)
    noise = images.copy()
    noise[:, 0] = noise[:, :, 0] = noise[:, 33:] = noise[:, :, 33:] = 0
    np.testing.assert_allclose(predict(model, noise), expected, atol=1e-6)


def test_a_loss_that_explodes_is_told() -> None:
    with pytest.raises(UsageError, match=r"epoch \d+; lower --lr"):
        finetune(tiny_model(), part(3), None, FinetuneConfig(epochs=50, lr=1e20))


@pytest.mark.parametrize("judged", [True, False])
def test_resumes_bit_for_bit(tmp_path: Path, judged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune_module, "_SAVE_EVERY_S", 0.0)
    judge = part(8, seed=3) if judged else None
    config = FinetuneConfig(epochs=12, evaluate_every=2, patience=2, batch=4, lr=0.05, cache_bytes=200_000)

    def run(folder: Path, stop: int | None = None, resume: bool = False) -> tuple[Tensors, Any]:
        model = tiny_model()
        writer = CheckpointWriter(folder, {"stage": "finetune"})
        state = writer.resume() if resume else None
        final = finetune(model, part(6), judge, config, writer, state, Stop(stop) if stop else None)
        return parameters_of(model), final

    whole, told = run(tmp_path / "whole")
    for stop in (1, 9):  # before anything is saved, and in the middle
        folder = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            run(folder, stop)
        again, final = run(folder, resume=True)
        assert all(torch.equal(value, whole[name]) for name, value in again.items())
        assert final.progress == told.progress
        assert all(torch.equal(value, told.weights[name]) for name, value in final.weights.items())


# The whole stage on files.
CHOICE = ModelConfig(BackboneConfig(TINY_CLIP, "random"), PromptConfig(visual_tokens=4), "cpu", 3)


def stage(
    tmp_path: Path, name: str, csv: Path, resume: bool = False, reporter: Any = None, **settings: Any
) -> Any:
    config = FinetuneConfig.of(TINY_CLIP, **{"epochs": 3, "evaluate_every": 1, "lr": 0.01, **settings})
    split = SplitConfig(labels=6, test_fraction=0.4, validation_fraction=0.34, seed=1)
    return run_finetune(tmp_path / name, CHOICE, None, read_csv(csv), split, config, resume, reporter)


def test_the_stage_never_looks_at_the_test_part_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    csv = write_labelled(tmp_path / "data", 10)
    result = stage(tmp_path, "run", csv)
    metrics = result["metrics"]
    assert {"zero_shot_validation", "zero_shot_test", "train", "validation", "test"} == set(metrics)
    assert (metrics["train"]["count"], metrics["validation"]["count"], metrics["test"]["count"]) == (4, 2, 4)
    assert result["selected_on_test"] is False
    weights = read_state(tmp_path / "run").weights
    # A kill in the second epoch after reading: the resumed run's teacher must still be the plain CLIP.
    monkeypatch.setattr(finetune_module, "_SAVE_EVERY_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        stage(tmp_path, "killed", csv, reporter=Stop(10 + 2))
    assert read_state(tmp_path / "killed").progress["epoch"] == 2
    again = stage(tmp_path, "killed", csv, resume=True)
    assert {k: v for k, v in again.items() if k != "images"} == result
    found = read_state(tmp_path / "killed").weights
    assert all(torch.equal(value, weights[name]) for name, value in found.items())
    # Other test pictures, same training: nothing but the test figures may change.
    data = read_csv(csv)
    split = split_indices(data, SplitConfig(labels=6, test_fraction=0.4, validation_fraction=0.34, seed=1))
    for index in split.test:
        cv2.imwrite(str(data.paths[index]), pictures(1, 48, index)[0])
    stage(tmp_path, "other", csv)
    other = read_state(tmp_path / "other").weights
    assert all(torch.equal(value, weights[name]) for name, value in other.items())
    with pytest.raises(CheckpointError, match=r"data\.digest"):
        stage(tmp_path, "run", csv, resume=True)
    # The checkpoint scores as the run said.
    loaded = load_checkpoint(tmp_path / "other")
    assert loaded.mos is not None
    assert loaded.mos.low == pytest.approx(min(data.mos[[*split.train, *split.validation]]))
    with pytest.raises(CheckpointError, match="not a pre-training checkpoint"):
        run_finetune(tmp_path / "x", CHOICE, tmp_path / "other", data, SplitConfig(), FinetuneConfig())


def test_the_embedded_backbone_learns_from_all_labels_unless_told(tmp_path: Path) -> None:
    csv = write_labelled(tmp_path / "data", 10)
    config = FinetuneConfig.of("embedded-l0", epochs=1, calibration_steps=1, qgr=False)
    preset = PRESETS["default"]
    for given, counts in ((None, (6, 0)), (0.34, (4, 2))):
        split = preset.split("embedded-l0", labels=6, test_fraction=0.4, validation_fraction=given, seed=1)
        folder = tmp_path / str(given)
        found = run_finetune(folder, CHOICE, None, read_csv(csv), split, config)["metrics"]
        assert (found["train"]["count"], found.get("validation", {"count": 0})["count"]) == counts
        told = load_checkpoint(folder).config["split"]["validation_fraction"]
        assert told == (given or 0.0)
    assert preset.split("ViT-B-16").validation_fraction == 0.2


def test_labels_outside_the_scale_are_not_tied() -> None:
    raw = np.array([-0.4, -0.1, 0.2, 0.7, 1.3, 1.1])
    predicted = np.array([0.1, 0.2, 0.3, 0.6, 0.9, 0.8], dtype=np.float32)
    found = Part(np.zeros((6, 36, 36, 3), np.uint8), np.clip(raw, 0, 1).astype(np.float32), raw).measure(
        predicted
    )
    assert found["srcc"] == pytest.approx(1.0)
    assert found["plcc"] == pytest.approx(np.corrcoef(predicted, raw)[0, 1])
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean((predicted - raw) ** 2)))


def test_selecting_on_the_test_part_is_marked(tmp_path: Path) -> None:
    csv = write_labelled(tmp_path / "data", 10)
    result = stage(tmp_path, "run", csv, select_on="test", epochs=2)
    assert result["selected_on_test"] is True
    assert result["metrics"]["test"]["srcc"] == pytest.approx(result["best_srcc"])
    assert read_state(tmp_path / "run").progress["selected_on_test"] is True


def test_blur_is_learned_and_shuffled_labels_are_not() -> None:
    images, quality = blurred(64, SIDE, seed=1)
    judge_images, judge_quality = blurred(32, SIDE, seed=3)
    held_images, held_quality = blurred(48, SIDE, seed=2)
    rank, error = [], []
    for shuffled in (False, True):
        mix = np.random.default_rng(0).permutation if shuffled else np.copy
        model = tiny_model()
        config = FinetuneConfig(epochs=60, evaluate_every=10, patience=1000, lr=0.02, batch=16, qgr=False)
        finetune(model, Part(images, mix(quality)), Part(judge_images, mix(judge_quality)), config)
        found = predict(model, held_images)
        rank.append(srcc(found, held_quality))
        error.append(float(np.abs(found - held_quality).mean()))
    constant = float(np.abs(held_quality - held_quality.mean()).mean())
    assert rank[0] > 0.75
    assert rank[0] > abs(rank[1]) + 0.3
    assert error[0] < 0.85 * constant < 0.95 * error[1]
