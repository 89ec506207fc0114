"""Mixed precision: near float32, learning, and what float16 cannot hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers_train import blurred, memory_task, parameters_of, pictures, tiny_model

from grmp_edge.errors import UsageError
from grmp_edge.metrics import srcc
from grmp_edge.train.finetune.config import FinetuneConfig, Part
from grmp_edge.train.finetune.loop import finetune, predict
from grmp_edge.train.meta import MetaConfig, meta_train
from grmp_edge.train.network.model import GrmpIqa
from grmp_edge.train.session.precision import LossScaler, Numerics, Precision, resolve_precision

CPU = torch.device("cpu")
SIDE = 35


def test_auto_is_fp32_on_a_cpu_and_a_wrong_name_is_told() -> None:
    assert [resolve_precision(wish, CPU) for wish in ("auto", "fp32", "bf16", "fp16")] == [
        "fp32", "fp32", "bf16", "fp16",
    ]  # fmt: skip
    with pytest.raises(UsageError, match="--precision 'fp8' is unknown"):
        resolve_precision("fp8", CPU)  # type: ignore[arg-type]


def seen_types(model: GrmpIqa) -> dict[str, torch.dtype]:
    """What dtype each linear layer's product has, and what the heads give."""
    seen = {}
    for name, module in model.clip.named_modules():
        if isinstance(module, torch.nn.Linear):

            def note(module: torch.nn.Module, inputs: object, output: torch.Tensor, name: str = name) -> None:
                seen[name] = output.dtype

            module.register_forward_hook(note)
    return seen


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_towers_are_half_and_heads_are_not(precision: Precision, dtype: torch.dtype) -> None:
    model = tiny_model()
    seen = seen_types(model)
    images = torch.from_numpy(pictures(3))
    plain = model.image_features(model.pixels(images)), model.quality_features()
    seen.clear()
    with Numerics(precision, "cpu").autocast():
        features, classes = model.image_features(model.pixels(images)), model.quality_features()
        logits = model.logits(features, classes)
    assert seen and set(seen.values()) == {dtype}
    assert {features.dtype, classes.dtype, logits.dtype} == {torch.float32}
    for half, full in zip((features, classes), plain, strict=True):
        error = (half - full).abs().max()
        assert 1e-6 < error < 0.03
        np.testing.assert_allclose(half.norm(dim=-1).numpy(), 1, atol=1e-6)  # normalised in float32
    # Cosines times the scale of CLIP's logits, exactly as float32 has it.
    expected = torch.as_tensor(model.clip.logit_scale).exp() * features.double() @ classes.double().T
    np.testing.assert_allclose(logits.numpy(), expected.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_finetuning_in_half_goes_where_float32_goes(precision: Precision) -> None:
    data = Part(pictures(6, SIDE), np.random.default_rng(50).random(6).astype(np.float32))
    ends, losses = {}, {}
    wishes: tuple[Precision, ...] = ("fp32", precision)
    for wish in wishes:
        model = tiny_model()
        before = parameters_of(model)
        state = finetune(model, data, None, FinetuneConfig(epochs=5, lr=0.05, precision=wish))
        ends[wish] = {n: v - before[n] for n, v in parameters_of(model).items()}
        losses[wish] = state.progress["history"][-1]["loss"]
        assert all(p.dtype == torch.float32 for p in model.parameters())
        assert ("loss_scale" in state.progress) == (wish == "fp16")
    assert losses[precision] == pytest.approx(losses["fp32"], abs=0.02)
    moved = [name for name, value in ends["fp32"].items() if value.abs().max() > 0]
    full, half = (torch.cat([ends[wish][n].flatten() for n in moved]) for wish in ("fp32", precision))
    assert not torch.equal(full, half)
    assert float(torch.nn.functional.cosine_similarity(full, half, dim=0)) > 0.97


def test_training_in_bf16_learns() -> None:
    images, quality = blurred(48, SIDE, seed=1)
    held, truth = blurred(48, SIDE, seed=2)
    model = tiny_model()
    config = FinetuneConfig(epochs=60, patience=1000, lr=0.04, batch=16, qgr=False, precision="bf16")
    finetune(model, Part(images, quality), None, config)
    assert srcc(predict(model, held), truth) > 0.75


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_prompts_in_half_go_where_float32_goes(precision: Precision) -> None:
    ends = {}
    wishes: tuple[Precision, ...] = ("fp32", precision)
    for wish in wishes:
        model = tiny_model()
        before = parameters_of(model)
        config = MetaConfig(epochs=2, support_batch=8, query_batch=4, held_out=0, inner_lr=1e-3, outer_lr=1.0,
                            precision=wish)  # fmt: skip
        history = meta_train(model, [[memory_task("a", seed=1), memory_task("b", seed=2)]], config)
        assert np.isfinite([entry["loss"] for entry in history]).all()
        ends[wish] = torch.cat([(v - before[n]).flatten() for n, v in parameters_of(model).items()])
    assert float(torch.nn.functional.cosine_similarity(ends["fp32"], ends[precision], dim=0)) > 0.9


def loud(model: GrmpIqa) -> GrmpIqa:
    """A block whose hidden activations pass 65,504 and come back: the weights before and after cancel."""
    blocks: Any = model.image.blocks
    with torch.no_grad():
        for block in (blocks[0], blocks[-1]):
            block.mlp.c_fc.weight.mul_(1e6)
            block.mlp.c_proj.weight.div_(1e6)
    return model


def test_float16_falls_back_where_it_overflows() -> None:
    data = Part(pictures(6, SIDE), np.random.default_rng(50).random(6).astype(np.float32))
    with Numerics("fp16", "cpu").autocast():
        model = loud(tiny_model())
        assert not torch.isfinite(model.image_features(model.pixels(torch.from_numpy(pictures(2))))).all()
    losses = {}
    for wish in ("fp32", "fp16", "bf16"):
        config = FinetuneConfig(epochs=4, evaluate_every=1, lr=1e-3, precision=wish, qgr_strength=1.0)
        state = finetune(loud(tiny_model()), data, None, config)
        losses[wish] = [entry["loss"] for entry in state.progress["history"]]
        assert np.isfinite(losses[wish]).all()
    assert losses["fp16"] == pytest.approx(losses["fp32"], abs=1e-3)  # computed in float32 in the end
    assert losses["bf16"] == pytest.approx(losses["fp32"], abs=0.05)


def test_the_scale_of_losses() -> None:
    scaler = LossScaler(True, scale=8.0, growth_after=2)
    gradients = [torch.tensor([8.0, -16.0]), torch.tensor([[4.0]])]
    assert scaler.unscale(gradients)
    assert gradients[0].tolist() == [1.0, -2.0] and gradients[1].tolist() == [[0.5]]
    broken = [torch.tensor([1.0, float("inf")])]
    assert not scaler.unscale(broken)
    assert (scaler.scale, broken[0].tolist()) == (4.0, [1.0, float("inf")])
    for _ in range(2):
        assert scaler.unscale([torch.ones(1)])
    assert scaler.scale == 8.0
    again = LossScaler(True)
    again.restore(scaler.state())
    assert again.state() == scaler.state() == {"loss_scale": 8.0, "loss_scale_good": 0}
    idle = LossScaler(False)
    values = [torch.tensor([float("nan")])]
    assert idle.unscale(values) and idle.scale == 1.0 and idle.state() == {}
