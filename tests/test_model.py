"""The model against METHOD's section 1, written out here with plain tensor operations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from conftest import Float64Array, UInt8Array
from helpers_train import (
    PROMPTS,
    Tensors,
    parameters_of,
    pictures,
    tiny_backbone,
    tiny_clip,
    tiny_model,
    tokenizer,
)

from grmp_edge.errors import ModelError
from grmp_edge.train.finetune.frozen_features import Teacher
from grmp_edge.train.network.backbone import Backbone, BackboneConfig, load_backbone
from grmp_edge.train.network.model import GrmpIqa
from grmp_edge.train.network.settings import PromptConfig
from grmp_edge.train.network.words import SCENES

MEANS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}


def plain_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + eps) * weight + bias


def plain_block(
    s: Tensors, name: str, x: torch.Tensor, heads: int, quick: bool, causal: bool
) -> torch.Tensor:
    """One pre-norm transformer block over one sequence (L, W), in float64."""
    width, length = x.shape[1], x.shape[0]
    normed = plain_norm(x, s[f"{name}.ln_1.weight"], s[f"{name}.ln_1.bias"])
    wq, wk, wv = s[f"{name}.attn.in_proj_weight"].chunk(3)
    bq, bk, bv = s[f"{name}.attn.in_proj_bias"].chunk(3)
    out, size = [], width // heads
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        q, k, v = (normed @ w[part].T + b[part] for w, b in ((wq, bq), (wk, bk), (wv, bv)))
        logits = q @ k.T / math.sqrt(size)
        if causal:
            logits = logits + torch.full((length, length), -math.inf, dtype=x.dtype).triu(1)
        weights = torch.exp(logits - logits.max(-1, keepdim=True).values)
        out.append(weights / weights.sum(-1, keepdim=True) @ v)
    attended = torch.cat(out, 1) @ s[f"{name}.attn.out_proj.weight"].T + s[f"{name}.attn.out_proj.bias"]
    x = x + attended * s.get(f"{name}.ls_1.gamma", 1.0)
    hidden = plain_norm(x, s[f"{name}.ln_2.weight"], s[f"{name}.ln_2.bias"])
    hidden = hidden @ s[f"{name}.mlp.c_fc.weight"].T + s[f"{name}.mlp.c_fc.bias"]
    if quick:
        hidden = hidden / (1 + torch.exp(-1.702 * hidden))
    else:
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    hidden = hidden @ s[f"{name}.mlp.c_proj.weight"].T + s[f"{name}.mlp.c_proj.bias"]
    return x + hidden * s.get(f"{name}.ls_2.gamma", 1.0)


def plain_image(
    s: Tensors,
    image: UInt8Array,
    norm: str,
    *,
    layers: int,
    heads: int,
    patch: int,
    quick: bool,
    prompted: bool = True,
) -> torch.Tensor:
    """One picture, uint8 (S, S, 3), to its unit feature, by inserting and replacing prompt tokens."""
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in MEANS[norm])
    x = (torch.from_numpy(image.copy()).double() / 255 - mean) / std
    side = image.shape[0] // patch
    kernel = s["clip.visual.conv1.weight"]
    rows = [
        torch.einsum("hwc,ochw->o", x[r * patch : (r + 1) * patch, c * patch : (c + 1) * patch], kernel)
        for r in range(side)
        for c in range(side)
    ]
    tokens = torch.stack([s["clip.visual.class_embedding"], *rows]) + s["clip.visual.positional_embedding"]
    tokens = plain_norm(tokens, s["clip.visual.ln_pre.weight"], s["clip.visual.ln_pre.bias"])
    count = s["prompt_embeddings"].shape[1]
    for index in range(layers):
        if prompted:
            learned = s["prompt_embeddings"][0] if index == 0 else s["deep_prompt_embeddings"][index - 1]
            learned = learned @ s["prompt_proj.weight"].T + s["prompt_proj.bias"]
            tail = tokens[1:] if index == 0 else tokens[1 + count :]
            tokens = torch.cat([tokens[:1], learned, tail])
        tokens = plain_block(s, f"clip.visual.transformer.resblocks.{index}", tokens, heads, quick, False)
    if prompted:
        tokens = plain_norm(tokens, s["prompt_norm.weight"], s["prompt_norm.bias"], 1e-6)
    cls = plain_norm(tokens, s["clip.visual.ln_post.weight"], s["clip.visual.ln_post.bias"])[0]
    return torch.nn.functional.normalize(cls @ s["clip.visual.proj"], dim=0)


def plain_text(
    s: Tensors,
    prefix: str,
    words: str,
    *,
    layers: int,
    heads: int,
    quick: bool,
    context: torch.Tensor | None = None,
) -> torch.Tensor:
    """A sentence over all 77 places; ``context`` replaces the embeddings after the start token."""
    ids = tokenizer()([words])[0]
    x = s[f"{prefix}token_embedding.weight"][ids].clone()
    if context is not None:
        x[1 : 1 + len(context)] = context
    x = x + s[f"{prefix}positional_embedding"]
    for index in range(layers):
        x = plain_block(s, f"{prefix}transformer.resblocks.{index}", x, heads, quick, True)
    x = plain_norm(x, s[f"{prefix}ln_final.weight"], s[f"{prefix}ln_final.bias"])
    feature = x[int((ids == 49407).nonzero()[0])] @ s[f"{prefix}text_projection"]
    return torch.nn.functional.normalize(feature, dim=0)


def plain_scores(
    model: GrmpIqa,
    images: UInt8Array,
    *,
    layers: int,
    heads: int = 3,
    patch: int,
    quick: bool,
    norm: str,
    prefix: str,
) -> Float64Array:
    s = {name: value.double() for name, value in model.state_dict().items()}
    texts = [
        plain_text(s, prefix, f"X X X X {word} quality.", layers=3, heads=2, quick=quick, context=s["ctx"])
        for word in ("high", "low")
    ]
    scores = []
    for image in images:
        feature = plain_image(s, image, norm, layers=layers, heads=heads, patch=patch, quick=quick)
        high, low = (math.exp(float(s["clip.logit_scale"])) * float(feature @ text) for text in texts)
        scores.append(1 / (1 + math.exp(low - high)))
    return np.array(scores)


@pytest.mark.parametrize(
    ("size", "patch", "layers", "quick", "custom", "scale", "norm"),
    [
        (32, 8, 4, False, False, None, "imagenet"),
        (64, 16, 3, True, False, None, "clip"),
        (48, 16, 4, True, True, 0.4, "imagenet"),
        (32, 16, 2, False, True, None, "clip"),
    ],
)
def test_score_is_method_section_1(
    size: int, patch: int, layers: int, quick: bool, custom: bool, scale: float | None, norm: str
) -> None:
    prompts = PromptConfig(visual_tokens=5, normalization=norm)
    options = {"size": size, "patch": patch, "layers": layers, "quick_gelu": quick}
    model = tiny_model(3, prompts, custom_text=custom, layer_scale=scale, **options)
    images = pictures(3, size, seed=5)
    prefix = "clip.text." if custom else "clip."
    expected = plain_scores(model, images, layers=layers, patch=patch, quick=quick, norm=norm, prefix=prefix)
    assert np.ptp(expected) > 1e-3  # the pictures are told apart
    with torch.no_grad():
        batch = torch.from_numpy(images)
        assert model(batch).numpy() == pytest.approx(expected, abs=2e-6)
        assert model(batch, unfolded=True).numpy() == pytest.approx(expected, abs=2e-6)


def test_the_two_classes_and_every_prompt_matter() -> None:
    model = tiny_model()
    batch = torch.from_numpy(pictures(2))
    with torch.no_grad():
        before = model(batch)
        for parameter in (model.prompt_embeddings, model.deep_prompt_embeddings, model.ctx):
            kept = parameter.clone()
            parameter.add_(0.5 * torch.randn_like(parameter))
            assert (model(batch) - before).abs().max() > 1e-5
            parameter.copy_(kept)
        assert torch.equal(model(batch), before)


@pytest.mark.parametrize("custom", [False, True])
def test_scenes_are_clips_own_text_features(custom: bool) -> None:
    model = tiny_model(custom_text=custom)
    sentences = [f"a photo of a {scene}" for scene in SCENES]
    assert list(SCENES) == [
        "animal", "cityscape", "human", "indoor", "landscape", "night", "plant", "still_life", "others",
    ]  # fmt: skip
    clip: Any = model.clip
    with torch.no_grad():
        expected = clip.encode_text(tokenizer()(sentences), normalize=True)
        assert torch.allclose(model.scene_features(), expected, atol=2e-6)


def test_teacher_is_the_plain_clip_of_the_start() -> None:
    model = tiny_model()
    untouched: Any = tiny_clip()  # the same seed
    teacher = Teacher(model)
    with torch.no_grad():
        for _, parameter in model.finetune_parameters():
            parameter.add_(torch.randn_like(parameter))
        pixels = model.pixels(torch.from_numpy(pictures(3)))
        images = untouched.encode_image(pixels, normalize=True)
        texts = untouched.encode_text(tokenizer()([f"a photo of a {s}" for s in SCENES]), normalize=True)
        expected = untouched.logit_scale.exp() * images @ texts.T
        assert torch.allclose(teacher.logits(model, pixels), expected, atol=1e-5)
        assert not torch.allclose(model.scene_features(), texts, atol=1e-2)  # the student has moved


def test_initial_prompts() -> None:
    model = tiny_model()
    bound = math.sqrt(6 / (3 * 8 * 8 + 24))
    for prompts in (model.prompt_embeddings, model.deep_prompt_embeddings):
        assert 0.8 * bound < prompts.abs().max() <= bound
    assert model.prompt_embeddings.shape == (1, 5, 24)
    assert model.deep_prompt_embeddings.shape == (3, 5, 24)
    assert model.ctx.shape == (4, 16)
    assert 0.01 < model.ctx.std() < 0.03
    # Kaiming normal, fan_out: std sqrt(2 / 24)
    assert float(model.prompt_proj.weight.std()) == pytest.approx(math.sqrt(2 / 24), rel=0.15)


def test_parameter_counts_of_vit_b_16() -> None:
    model = GrmpIqa(load_backbone(BackboneConfig("ViT-B-16", "random")))
    assert sum(p.numel() for _, p in model.prompt_parameters()) == 1_515_776
    tuned = dict(model.finetune_parameters())
    assert sum(p.numel() for p in tuned.values()) == 40_965_632
    blocks = {name.split(".")[4] for name in tuned if name.startswith("clip.visual.transformer")}
    assert blocks == {"8", "9", "10", "11"}
    assert {name for name in tuned if "resblocks" not in name} == {
        "ctx", "clip.ln_final.weight", "clip.ln_final.bias",
        "clip.visual.ln_post.weight", "clip.visual.ln_post.bias",
    }  # fmt: skip
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(("layers", "first"), [(3, 2), (4, 2), (6, 4)])
def test_last_third_of_another_depth(layers: int, first: int) -> None:
    model = tiny_model(layers=layers, text_layers=layers)
    names = [name for name, _ in model.finetune_parameters()]
    for tower in ("clip.visual.transformer.resblocks.", "clip.transformer.resblocks."):
        found = {int(name.removeprefix(tower).split(".")[0]) for name in names if name.startswith(tower)}
        assert found == set(range(first, layers))


def test_dropout_only_while_the_prompts_learn_with_one_mask_per_picture() -> None:
    prompts = PromptConfig(visual_tokens=5, dropout=0.5)
    model = tiny_model(0, prompts)
    same = torch.from_numpy(np.repeat(pictures(1), 2, axis=0))
    with torch.no_grad():
        still = model(same)
        assert still[0] == pytest.approx(float(still[1]), abs=1e-6)
    model.train()
    for _, parameter in model.prompt_parameters():
        parameter.requires_grad_(True)
    first, second = model(same).detach()
    assert abs(float(first - second)) > 1e-5  # equal pictures, two masks
    assert abs(float(first - still[0])) > 1e-5
    torch.manual_seed(4)
    again = model(same).detach()
    torch.manual_seed(4)
    assert torch.equal(model(same).detach(), again)
    # The expectation is kept: survivors are scaled by 1 / (1 - rate), as in the token form.
    torch.manual_seed(0)
    many = torch.from_numpy(np.repeat(pictures(1), 512, axis=0))
    with torch.no_grad():
        folded = model(many).mean()
        unfolded = model(many, unfolded=True).mean()
    assert float(folded) == pytest.approx(float(unfolded), abs=3e-3)


def test_resnet_is_refused() -> None:
    with pytest.raises(ModelError, match=r"RN50.*ViT-B-16"):
        GrmpIqa(load_backbone(BackboneConfig("RN50", "random")))


def test_siglip_is_refused_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_clip, "create_model", None)  # a call would fail otherwise than expected
    with pytest.raises(ModelError, match=r"ViT-B-16-SigLIP.*ViT-B-16"):
        load_backbone(BackboneConfig("ViT-B-16-SigLIP", "random"))


def test_a_resnet_handed_in_directly_is_refused_too() -> None:
    clip = open_clip.model.CLIP(
        embed_dim=16,
        vision_cfg={"layers": [1, 1, 1, 1], "width": 8, "image_size": 32},
        text_cfg={"width": 16, "heads": 2, "layers": 1},
    )
    with pytest.raises(ModelError, match="no tokens to prompt"):
        GrmpIqa(Backbone("tiny-resnet", "random", False, "", clip, tokenizer()), PROMPTS)


def test_average_pooling_is_refused() -> None:
    clip = open_clip.model.CLIP(
        embed_dim=16,
        vision_cfg={"layers": 1, "width": 16, "head_width": 8, "image_size": 32, "pool_type": "avg"},
        text_cfg={"width": 16, "heads": 2, "layers": 1},
    )
    with pytest.raises(ModelError, match="class token"):
        GrmpIqa(Backbone("tiny-average", "random", False, "", clip, tokenizer()), PROMPTS)


def test_building_and_scoring_leave_clip_as_it_was() -> None:
    backbone = tiny_backbone()
    before = parameters_of(backbone.clip)
    model = GrmpIqa(backbone, PROMPTS)
    model(torch.from_numpy(pictures(2)))
    assert all(torch.equal(value, before[name]) for name, value in backbone.clip.named_parameters())
