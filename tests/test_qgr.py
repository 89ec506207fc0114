"""The projection against its closed form, and both losses against finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers_train import pictures, tiny_model

from grmp_edge.train.finetune.qgr import regularise
from grmp_edge.train.network.losses import quality_loss, semantic_loss

RNG = np.random.default_rng(0)


def tensors(*arrays: Any) -> list[Any]:
    return [None if array is None else torch.from_numpy(np.asarray(array, np.float64)) for array in arrays]


def test_agreeing_opposing_zero_and_missing_gradients() -> None:
    d = [RNG.normal(size=shape) for shape in ((3, 4), (5,), (2, 2), (6,), (2,))]
    agreeing = d[0] + 0.5 * RNG.normal(size=(3, 4))
    assert np.sum(d[0] * agreeing) > 0
    orthogonal = np.array([-d[4][1], d[4][0]])
    g = [agreeing, -d[1], np.zeros((2, 2)), None, orthogonal]
    result = regularise(tensors(*d), tensors(*g), 5.0)
    expected = d[0] - 5 * np.sum(d[0] * agreeing) / np.sum(agreeing**2) * agreeing
    np.testing.assert_allclose(result.gradients[0].numpy(), expected, rtol=1e-12)
    for i in (1, 2, 3, 4):
        np.testing.assert_allclose(result.gradients[i].numpy(), d[i], rtol=1e-12)
    flat_d = np.concatenate([x.ravel() for x in d])
    flat_g = np.concatenate([np.zeros(d[3].size) if x is None else x.ravel() for x in (*g[:3], g[3], g[4])])
    cosine = flat_d @ flat_g / np.linalg.norm(flat_d) / np.linalg.norm(flat_g)
    assert result.cosine == pytest.approx(cosine)
    assert result.changed == pytest.approx(1 / 5)


def test_lambda_one_is_orthogonal_and_five_turns_the_shared_part_round() -> None:
    d = RNG.normal(size=50)
    g = d + RNG.normal(size=50)
    unit = g / np.linalg.norm(g)
    one = regularise(tensors(d), tensors(g), 1.0).gradients[0].numpy()
    five = regularise(tensors(d), tensors(g), 5.0).gradients[0].numpy()
    assert one @ unit == pytest.approx(0, abs=1e-12)
    assert five @ unit == pytest.approx(-4 * (d @ unit))
    # What is not shared stays untouched.
    np.testing.assert_allclose(five - (five @ unit) * unit, d - (d @ unit) * unit, atol=1e-12)
    np.testing.assert_allclose(regularise(tensors(d), tensors(g), 0.0).gradients[0].numpy(), d)


def test_global_decides_for_all_tensors_together() -> None:
    first, second = np.array([4.0, 0.0]), np.array([0.0, 1.0])
    towards, against = np.array([2.0, 0.0]), np.array([0.0, -3.0])
    dot, square = 8.0 - 3.0, 4.0 + 9.0
    result = regularise(tensors(first, second), tensors(towards, against), 5.0, "global")
    np.testing.assert_allclose(result.gradients[0].numpy(), first - 5 * dot / square * towards)
    np.testing.assert_allclose(result.gradients[1].numpy(), second - 5 * dot / square * against)
    apart = regularise(tensors(first, second), tensors(towards, against), 5.0)
    np.testing.assert_allclose(apart.gradients[0].numpy(), first - 5 * 8 / 4 * towards)
    np.testing.assert_allclose(apart.gradients[1].numpy(), second)
    opposed = regularise(tensors(first, second), tensors(-towards, against), 5.0, "global")
    np.testing.assert_allclose(opposed.gradients[0].numpy(), first)
    with_missing = regularise(tensors(first, second), tensors(towards, None), 1.0, "global")
    np.testing.assert_allclose(with_missing.gradients[1].numpy(), second)


def test_no_gradient_at_all() -> None:
    d = RNG.normal(size=3)
    result = regularise(tensors(d), [None], 5.0)
    np.testing.assert_allclose(result.gradients[0].numpy(), d)
    assert (result.cosine, result.changed) == (0.0, 0.0)
    nothing = regularise(tensors(np.zeros(3)), tensors(np.zeros(3)), 5.0)
    assert nothing.cosine == 0.0
    assert torch.equal(nothing.gradients[0], torch.zeros(3, dtype=torch.float64))


def test_the_lists_must_match() -> None:
    with pytest.raises(ValueError, match="shorter"):
        regularise(tensors(np.ones(2), np.ones(2)), tensors(np.ones(2)), 1.0)


def test_losses_are_their_formulas() -> None:
    logits, y = RNG.normal(size=(6, 2)), RNG.random(6)
    p = np.exp(logits[:, 0]) / np.exp(logits).sum(1)
    expected = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
    assert float(quality_loss(*tensors(logits, y))) == pytest.approx(expected, rel=1e-12)
    student, teacher = RNG.normal(size=(6, 9)), RNG.normal(size=(6, 9))
    log_q = student - np.log(np.exp(student).sum(1, keepdims=True))
    t = np.exp(teacher) / np.exp(teacher).sum(1, keepdims=True)
    expected = -(t * log_q).sum(1).mean()
    assert float(semantic_loss(*tensors(student, teacher))) == pytest.approx(expected, rel=1e-12)


def test_quality_loss_is_stable_far_out() -> None:
    logits = torch.tensor([[1000.0, -1000.0], [-1000.0, 1000.0], [1000.0, -1000.0]], requires_grad=True)
    loss = quality_loss(logits, torch.tensor([1.0, 0.0, 0.25]))
    assert float(loss.detach()) == pytest.approx(0.75 * 2000 / 3)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(gradient).all()
    assert gradient[2, 0] == pytest.approx(0.75 / 3)


def test_the_teacher_gets_no_gradient() -> None:
    student = torch.zeros(2, 9, requires_grad=True)
    teacher = torch.randn(2, 9, requires_grad=True)
    semantic_loss(student, teacher).backward()  # type: ignore[no-untyped-call]
    assert teacher.grad is None and student.grad is not None
    expected = (student.detach().softmax(-1) - teacher.detach().softmax(-1)) / 2
    assert torch.allclose(student.grad, expected, atol=1e-7)


@pytest.mark.parametrize("which", ["quality", "semantic"])
def test_gradients_of_the_whole_model_against_finite_differences(which: str) -> None:
    model = tiny_model().double()
    # The uint8 door is float32 by design; beyond it everything is float64 here.
    pixels = model.pixels(torch.from_numpy(pictures(3))).double()
    y = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    wanted = torch.randn(3, 9, dtype=torch.float64)

    def loss() -> torch.Tensor:
        features = model.image_features(pixels)
        if which == "quality":
            return quality_loss(model.logits(features, model.quality_features()), y)
        return semantic_loss(model.logits(features, model.scene_features()), wanted)

    named = {**dict(model.prompt_parameters()), **dict(model.finetune_parameters())}
    for parameter in named.values():
        parameter.requires_grad_(True)
    gradients = torch.autograd.grad(loss(), list(named.values()), allow_unused=True)
    rng = np.random.default_rng(1)
    moved = 0
    for (name, parameter), gradient in zip(named.items(), gradients, strict=True):
        at = tuple(int(rng.integers(0, n)) for n in parameter.shape)
        step = 1e-5
        with torch.no_grad():
            kept = parameter[at].item()
            parameter[at] = kept + step
            above = float(loss())
            parameter[at] = kept - step
            below = float(loss())
            parameter[at] = kept
        numeric = (above - below) / (2 * step)
        exact = 0.0 if gradient is None else float(gradient[at])
        assert exact == pytest.approx(numeric, rel=1e-4, abs=2e-8), name
        moved += abs(exact) > 1e-7
    assert moved > len(named) / 2
    if which == "semantic":
        assert gradients[list(named).index("ctx")] is None  # the scenes have no learned context
