"""Folding against formulas written out here in float64 from the model's state dict."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from helpers_train import PROMPTS, pictures, tiny_backbone, tiny_model
from test_model import MEANS, plain_norm, plain_text

from grmp_edge.errors import ModelError
from grmp_edge.export.fold import fold
from grmp_edge.train.network.model import GrmpIqa


def _state(model: GrmpIqa) -> dict[str, torch.Tensor]:
    return {name: value.double() for name, value in model.state_dict().items()}


def test_shapes_and_types_are_those_documented() -> None:
    model = tiny_model(size=48, patch=16, layers=3)
    folded = fold(model)
    width, heads, prompts = 24, 3, 5
    assert (folded.size, folded.patch, folded.heads, folded.width, folded.prompts) == (
        48,
        16,
        heads,
        width,
        prompts,
    )
    assert folded.patch_weight.shape == (width, 3, 16, 16)
    assert folded.tokens.shape == (1 + 9, width)
    assert folded.proj.shape == (width, 12) and folded.direction.shape == (12,)
    assert len(folded.blocks) == 3
    for block in folded.blocks:
        assert block.prompt_keys.shape == block.prompt_values.shape == (heads, prompts, width // heads)
        assert block.fc_weight.shape == (width, 4 * width) and block.proj_weight.shape == (4 * width, width)
        for name in (
            "q_weight",
            "q_bias",
            "k_weight",
            "v_weight",
            "prompt_keys",
            "prompt_values",
            "out_weight",
        ):
            assert getattr(block, name).dtype == np.float32
    assert folded.prompt_norm is not None and folded.ln_pre is not None
    assert folded.prompt_norm.eps == 1e-6  # the visual prompts' own norm has another than CLIP's
    assert {folded.ln_pre.eps, folded.ln_post.eps, folded.blocks[1].ln_1.eps, folded.blocks[1].ln_2.eps} == {
        1e-5
    }
    assert folded.tokens.dtype == folded.direction.dtype == folded.patch_weight.dtype == np.float32


@pytest.mark.parametrize("block", [0, 2])
def test_prompt_keys_and_values_come_from_that_blocks_own_prompts(block: int) -> None:
    model = tiny_model(seed=4)
    s = _state(model)
    name = f"clip.visual.transformer.resblocks.{block}"
    learned = s["prompt_embeddings"][0] if block == 0 else s["deep_prompt_embeddings"][block - 1]
    tokens = learned @ s["prompt_proj.weight"].T + s["prompt_proj.bias"]
    normed = plain_norm(tokens, s[f"{name}.ln_1.weight"], s[f"{name}.ln_1.bias"])
    _, key_weight, value_weight = s[f"{name}.attn.in_proj_weight"].chunk(3)
    folded = fold(model).blocks[block]
    for head in range(3):
        part = slice(8 * head, 8 * head + 8)
        expected = (normed @ key_weight[part].T).numpy()
        assert folded.prompt_keys[head] == pytest.approx(expected, abs=2e-6)
        expected = (normed @ value_weight[part].T).numpy()
        assert folded.prompt_values[head] == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("scale", [None, 0.4])
def test_attention_without_key_and_value_bias_is_the_same_attention(scale: float | None) -> None:
    """One whole attention, with and without the folded biases, scale and LayerScale, on random tokens."""
    model = tiny_model(seed=1, layer_scale=scale)
    s = _state(model)
    name = "clip.visual.transformer.resblocks.1"
    tokens = torch.randn(7, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    projected = tokens @ s[f"{name}.attn.in_proj_weight"].T + s[f"{name}.attn.in_proj_bias"]
    q, k, v = (part.reshape(7, 3, 8).transpose(0, 1) for part in projected.chunk(3, dim=1))
    mixed = (torch.softmax(q @ k.transpose(1, 2) / math.sqrt(8), dim=-1) @ v).transpose(0, 1).reshape(7, 24)
    expected = mixed @ s[f"{name}.attn.out_proj.weight"].T + s[f"{name}.attn.out_proj.bias"]
    expected = expected * s.get(f"{name}.ls_1.gamma", 1.0)

    block, x = fold(model).blocks[1], tokens.numpy()

    def split(tokens: np.ndarray) -> np.ndarray:
        return np.transpose(tokens.reshape(7, 3, 8), (1, 0, 2))

    query, key, value = (
        split(x @ block.q_weight + block.q_bias),
        split(x @ block.k_weight),
        split(x @ block.v_weight),
    )
    logits = query @ key.transpose(0, 2, 1)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    out = (weights @ value).transpose(1, 0, 2).reshape(7, 24) @ block.out_weight + block.out_bias
    assert out == pytest.approx(expected.numpy(), abs=1e-6)


@pytest.mark.parametrize("normalization", ["imagenet", "clip"])
def test_the_patch_embedding_takes_raw_pixels(normalization: str) -> None:
    model = tiny_model(seed=2, prompts=type(PROMPTS)(5, normalization=normalization), size=32, patch=16)
    s = _state(model)
    image = pictures(1, 32, seed=9)[0]
    mean, std = (np.array(values) for values in MEANS[normalization])
    pixels = (image / 255.0 - mean) / std
    folded = fold(model)
    conv = s["clip.visual.conv1.weight"].numpy()
    positions = s["clip.visual.positional_embedding"].numpy()
    for index, (row, column) in enumerate(((0, 0), (0, 16), (16, 0), (16, 16)), start=1):
        area = (slice(row, row + 16), slice(column, column + 16))
        expected = np.einsum("hwc,ochw->o", pixels[area], conv) + positions[index]
        found = (
            np.einsum("hwc,ochw->o", image[area].astype(float), folded.patch_weight) + folded.tokens[index]
        )
        assert found == pytest.approx(expected, abs=1e-5)
    expected = s["clip.visual.class_embedding"].numpy() + positions[0]
    assert folded.tokens[0] == pytest.approx(expected, abs=1e-7)


def test_both_texts_and_the_scale_become_one_vector() -> None:
    model = tiny_model(seed=5)
    s = _state(model)
    high, low = (
        plain_text(s, "clip.", f"X X X X {w} quality.", layers=3, heads=2, quick=False, context=s["ctx"])
        for w in ("high", "low")
    )
    expected = (torch.exp(s["clip.logit_scale"]) * (high - low)).numpy()
    assert fold(model).direction == pytest.approx(expected, abs=2e-5)


def test_unchanged_weights_are_not_copied_and_the_model_is_not_changed() -> None:
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()  # dropout is left out whatever the mode
    folded = fold(model)
    block: Any = model.image.blocks[1]
    assert np.shares_memory(folded.blocks[1].fc_weight, block.mlp.c_fc.weight.numpy())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    again = fold(model.eval())
    assert np.array_equal(folded.blocks[0].prompt_keys, again.blocks[0].prompt_keys)
    assert np.array_equal(folded.direction, again.direction)


def test_without_prompts_nothing_of_them_is_left() -> None:
    folded = fold(tiny_model(), prompts=False)
    assert folded.prompt_norm is None and folded.prompts == 0


def test_another_activation_is_refused() -> None:
    backbone = tiny_backbone()
    visual: Any = backbone.clip.visual
    for block in visual.transformer.resblocks:
        block.mlp.gelu = torch.nn.GELU(approximate="tanh")
    with pytest.raises(ModelError, match="GELU"):
        fold(GrmpIqa(backbone, PROMPTS))


def test_mixed_activations_are_refused() -> None:
    backbone = tiny_backbone()
    visual: Any = backbone.clip.visual
    visual.transformer.resblocks[2].mlp.gelu = torch.nn.SiLU()
    make = partial(GrmpIqa, backbone, PROMPTS)
    with pytest.raises(ModelError, match="GELU"):
        fold(make())
