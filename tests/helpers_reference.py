"""The layout of the released state dicts, and their score computed from the bare tensors alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import torch
import torch.nn.functional as F
from helpers_train import Tensors
from torch import Tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SENTENCES = ["X X X X high quality.", "X X X X low quality."]
TINY = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 24, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
B16 = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "head_width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
}


def block_shapes(start: str, width: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{start}.attn.in_proj_weight": (3 * width, width),
        f"{start}.attn.in_proj_bias": (3 * width,),
        f"{start}.attn.out_proj.weight": (width, width),
        f"{start}.attn.out_proj.bias": (width,),
        f"{start}.ln_1.weight": (width,),
        f"{start}.ln_1.bias": (width,),
        f"{start}.ln_2.weight": (width,),
        f"{start}.ln_2.bias": (width,),
        f"{start}.mlp.c_fc.weight": (4 * width, width),
        f"{start}.mlp.c_fc.bias": (4 * width,),
        f"{start}.mlp.c_proj.weight": (width, 4 * width),
        f"{start}.mlp.c_proj.bias": (width,),
    }


def released(
    config: dict[str, Any], prompts: int = 100, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Tensors:
    """A whole state dict in the layout of the released models, all values random."""
    torch.manual_seed(seed)
    vision, text, embed = config["vision_cfg"], config["text_cfg"], config["embed_dim"]
    width, words, patch = vision["width"], text["width"], vision["patch_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "prompt_learner2.ctx": (4, words),
        "image_encoder.conv1.weight": (width, 3, patch, patch),
        "image_encoder.class_embedding": (width,),
        "image_encoder.positional_embedding": ((vision["image_size"] // patch) ** 2 + 1, width),
        "image_encoder.ln_pre.weight": (width,),
        "image_encoder.ln_pre.bias": (width,),
        "image_encoder.ln_post.weight": (width,),
        "image_encoder.ln_post.bias": (width,),
        "image_encoder.proj": (width, embed),
        "image_encoder.prompt_embeddings": (1, prompts, width),
        "image_encoder.deep_prompt_embeddings": (vision["layers"] - 1, prompts, width),
        "image_encoder.prompt_proj.weight": (width, width),
        "image_encoder.prompt_proj.bias": (width,),
        "image_encoder.prompt_norm.weight": (width,),
        "image_encoder.prompt_norm.bias": (width,),
        "text_encoder.positional_embedding": (77, words),
        "text_encoder.ln_final.weight": (words,),
        "text_encoder.ln_final.bias": (words,),
        "text_encoder.text_projection": (words, embed),
    }
    for layer in range(vision["layers"]):
        shapes |= block_shapes(f"image_encoder.transformer.resblocks.{layer}", width)
    for layer in range(text["layers"]):
        shapes |= block_shapes(f"text_encoder.transformer.resblocks.{layer}", words)
    state = {}
    for name, shape in shapes.items():
        spread = shape[-1] ** -0.5 if len(shape) > 1 else 0.3
        state[name] = torch.randn(shape) * spread
        if "ln_" in name or "norm" in name:
            state[name] += float(name.endswith("weight"))
    state["logit_scale"] = torch.tensor(3.5)
    ids = open_clip.tokenize(SENTENCES)
    table = 0.3 * torch.randn(49408, words)
    embedded = table[ids]
    state["prompt_learner2.token_prefix"] = embedded[:, :1]
    state["prompt_learner2.token_suffix"] = embedded[:, 5:]
    return {name: tensor.to(dtype).clone() for name, tensor in state.items()}


def run_blocks(
    state: Tensors, start: str, x: Tensor, heads: int, layer: int, mask: Tensor | None = None
) -> Tensor:
    """One block over (B, L, W), by torch's own attention."""
    p = {name[len(start) + 1 :]: tensor for name, tensor in state.items() if name.startswith(f"{start}.")}
    width = x.shape[-1]
    y = F.layer_norm(x, (width,), p["ln_1.weight"], p["ln_1.bias"]).transpose(0, 1)
    y, _ = F.multi_head_attention_forward(
        y, y, y, width, heads, p["attn.in_proj_weight"], p["attn.in_proj_bias"], None, None, False, 0.0,
        p["attn.out_proj.weight"], p["attn.out_proj.bias"], training=False, need_weights=False,
        attn_mask=mask,
    )  # fmt: skip
    x = x + y.transpose(0, 1)
    y = F.layer_norm(x, (width,), p["ln_2.weight"], p["ln_2.bias"])
    y = F.linear(y, p["mlp.c_fc.weight"], p["mlp.c_fc.bias"])
    y = y * torch.sigmoid(1.702 * y)
    return x + F.linear(y, p["mlp.c_proj.weight"], p["mlp.c_proj.bias"])


@torch.no_grad()
def plain_scores(
    state: Tensors, config: dict[str, Any], images: npt.NDArray[np.uint8]
) -> npt.NDArray[np.float32]:
    """The released model's score, token by token as the paper draws it."""
    s = {name: tensor.float() for name, tensor in state.items()}
    vision, text = config["vision_cfg"], config["text_cfg"]
    width, count = vision["width"], s["image_encoder.prompt_embeddings"].shape[1]
    pixels = (torch.from_numpy(images).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    patches = F.conv2d(
        pixels.permute(0, 3, 1, 2), s["image_encoder.conv1.weight"], stride=vision["patch_size"]
    )
    patches = patches.flatten(2).transpose(1, 2)
    cls = s["image_encoder.class_embedding"].expand(len(images), 1, width)
    x = torch.cat([cls, patches], 1) + s["image_encoder.positional_embedding"]
    x = F.layer_norm(x, (width,), s["image_encoder.ln_pre.weight"], s["image_encoder.ln_pre.bias"])
    learned = torch.cat([s["image_encoder.prompt_embeddings"], s["image_encoder.deep_prompt_embeddings"]])
    projected = F.linear(learned, s["image_encoder.prompt_proj.weight"], s["image_encoder.prompt_proj.bias"])
    for layer in range(vision["layers"]):
        rest = x[:, 1:] if layer == 0 else x[:, 1 + count :]
        x = torch.cat([x[:, :1], projected[layer].expand(len(images), -1, -1), rest], 1)
        start = f"image_encoder.transformer.resblocks.{layer}"
        x = run_blocks(s, start, x, width // vision["head_width"], layer)
    x = F.layer_norm(
        x, (width,), s["image_encoder.prompt_norm.weight"], s["image_encoder.prompt_norm.bias"], 1e-6
    )
    x = F.layer_norm(x, (width,), s["image_encoder.ln_post.weight"], s["image_encoder.ln_post.bias"])
    image = F.normalize((x @ s["image_encoder.proj"])[:, 0], dim=-1)

    context = s["prompt_learner2.ctx"].expand(2, -1, -1)
    t = torch.cat([s["prompt_learner2.token_prefix"], context, s["prompt_learner2.token_suffix"]], 1)
    t = t + s["text_encoder.positional_embedding"]
    mask = torch.full((77, 77), -torch.inf).triu(1)
    for layer in range(text["layers"]):
        t = run_blocks(s, f"text_encoder.transformer.resblocks.{layer}", t, text["heads"], layer, mask)
    t = F.layer_norm(t, (text["width"],), s["text_encoder.ln_final.weight"], s["text_encoder.ln_final.bias"])
    ends = open_clip.tokenize(SENTENCES).argmax(-1)
    words = F.normalize(t[torch.arange(2), ends] @ s["text_encoder.text_projection"], dim=-1)
    logits = s["logit_scale"].exp() * image @ words.T
    return np.asarray(logits.softmax(-1)[:, 0], np.float32)


def pictures(count: int, size: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
