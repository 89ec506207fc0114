"""Folding: whatever in a trained GRMP-IQA model does not depend on the picture becomes a constant.

Both text features, the logit scale and the two-way softmax become one vector. The deep visual prompts of
Li et al. (ICCV 2025, arXiv 2409.05381) become constant keys and values of their block, since their outputs
are discarded before the next one. The pixel normalisation goes into the patch embedding, and biases and
scales into adjacent weights. All of it is exact: accumulated in float64, rounded once to float32.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from grmp_edge.errors import ModelError
from grmp_edge.train.network.hybrid import SIZE, HybridVisual
from grmp_edge.train.network.model import GrmpIqa
from grmp_edge.train.network.stem import CHANNELS, FINE_STAGE, STD_EPS, Stem, same_padding

__all__ = ["Activation", "Array", "FoldedBlock", "FoldedModel", "Norm", "fold"]

Array = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]
Activation = Literal["gelu", "quick_gelu"]


@dataclass(frozen=True)
class Norm:
    """A LayerNorm over the last axis."""

    weight: Array  # (W,)
    bias: Array  # (W,)
    eps: float

    def apply(self, x: Wide) -> Wide:
        """Normalise (..., W) in float64."""
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled: Wide = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + self.eps)
        return scaled * self.weight + self.bias


@dataclass(frozen=True)
class FoldedBlock:
    """One block. Weights are laid out for ``x @ weight``, with H heads of D = W / H and a hidden width F.

    There is no key bias, because it adds a constant to each row of the softmax, and no value bias, because
    the rows sum to one, which makes it part of ``out_bias``.
    """

    ln_1: Norm
    q_weight: Array  # (W, W), with 1 / sqrt(D)
    q_bias: Array  # (W,), with 1 / sqrt(D)
    k_weight: Array  # (W, W)
    v_weight: Array  # (W, W)
    prompt_keys: Array  # (H, T, D); T is 0 for a block without prompts
    prompt_values: Array  # (H, T, D)
    out_weight: Array  # (W, W), with LayerScale
    out_bias: Array  # (W,), with LayerScale and the contribution of the value bias
    ln_2: Norm
    fc_weight: Array  # (W, F)
    fc_bias: Array  # (F,)
    proj_weight: Array  # (F, W), with LayerScale
    proj_bias: Array  # (W,), with LayerScale


@dataclass(frozen=True)
class FoldedConv:
    """A convolution with a bias. ``pads`` is what is added before and behind, both along rows and columns."""

    weight: Array  # (out, in / groups, k, k)
    bias: Array  # (out,)
    stride: int
    groups: int
    pads: tuple[int, int]


@dataclass(frozen=True)
class FoldedBottleneck:
    """An inverted bottleneck: ReLU6 behind the first two."""

    expand: FoldedConv | None
    depthwise: FoldedConv
    project: FoldedConv
    skips: bool  # the input is added to the output


@dataclass(frozen=True)
class FoldedStem:
    """EfficientNet-Lite's stages in the patch embedding's place; standardisation is in what follows them."""

    mean: Array  # (3,), of pixels 0..255
    std: Array  # (3,)
    conv: FoldedConv
    stages: tuple[FoldedBottleneck, ...]
    eps: float  # of the statistics' deviations, inside the root
    fine_stage: int  # whose output is halved by a 2 x 2 convolution and added to the last one's
    fine_weight: Array  # (W, C, 2, 2)
    grid_weight: Array  # (W, C, 1, 1)
    statistics_scale: Array  # (statistics,), 1 / their spread: apart, so that weights stay as they are stored
    class_weight: Array  # (statistics, W)
    token_weights: tuple[Array, ...]  # of each stage, (2 C, W): its means, then its deviations


@dataclass(frozen=True)
class FoldedModel:
    """Everything a graph of the model needs. It reads uint8 RGB pixels, ``size`` x ``size``.

    The score is sigmoid(f . direction / |f|) with f = ln_post(prompt_norm(CLS)) @ proj.
    """

    size: int  # pixels a side
    patch: int  # pixels a side
    heads: int
    activation: Activation
    patch_weight: Array  # (W, 3, patch, patch), for pixels 0..255: normalisation included; W = 0 with a stem
    tokens: Array  # (1 + patches, W): class token, positions, and the shift of the normalisation
    ln_pre: Norm | None
    blocks: tuple[FoldedBlock, ...]
    prompt_norm: Norm | None
    ln_post: Norm
    proj: Array  # (W, E)
    direction: Array  # (E,): exp(logit_scale) * (text feature of high - of low quality)
    head_bias: float = 0.0  # added to the score's logit
    # (statistics,), whose product with the scaled statistics is added, too; empty: nothing is
    head_row: Array = field(default_factory=lambda: np.zeros(0, np.float32))
    causes: tuple[str, ...] = ()
    cause_rows: Array = field(default_factory=lambda: np.zeros((0, 0), np.float32))  # (E, causes)
    cause_bias: Array = field(default_factory=lambda: np.zeros(0, np.float32))  # (causes,)
    native: int = 0  # crops beside the whole that a picture is scored by
    stem: FoldedStem | None = None

    @property
    def width(self) -> int:
        """W, the size of a token."""
        return int(self.tokens.shape[1])

    @property
    def length(self) -> int:
        """L, the tokens that flow, the class token among them."""
        return len(self.tokens)

    @property
    def reads(self) -> bool:
        """Whether a graph gives logits beside the scores: for causes, or to combine views."""
        return bool(self.causes or self.native)

    @property
    def prompts(self) -> int:
        """T, the number of prompts of a block."""
        return int(self.blocks[0].prompt_keys.shape[1])


@torch.no_grad()
def fold(model: GrmpIqa, prompts: bool = True) -> FoldedModel:
    """Fold a model. Unchanged weights share its memory, so do not train it afterwards.

    Args:
        model: in training or evaluation mode; dropout is left out either way.
        prompts: False leaves out the visual prompts and their norm, which is plain CLIP for a comparison.

    Raises:
        ModelError: a block has an activation or an attention that CLIP's ViTs do not have.
    """
    visual: Any = model.image.visual
    mean, std = _wide(model.mean), _wide(model.std)
    stem = None
    if isinstance(visual, HybridVisual):
        stem, tokens = _fold_stem(visual, mean, std)
        pixels_weight = np.zeros((0, 3, model.image.patch, model.image.patch), np.float32)
    else:
        pixels_weight, shift = _patch_embedding(visual.conv1, mean, std)
        tokens = _wide(visual.positional_embedding)
        tokens[0] += _wide(visual.class_embedding)
        tokens[1:] += shift
    ln_pre = visual.ln_pre if isinstance(visual.ln_pre, nn.LayerNorm) else None
    blocks = []
    for index, block in enumerate(model.image.blocks):
        projected = _wide(model.projected_prompts(index)) if prompts else np.zeros((0, model.image.width))
        blocks.append(_fold_block(block, projected))
    high, low = _wide(model.quality_features())
    head_bias, head_row = float(model.head_bias), np.zeros(0, np.float32)
    if stem is not None:  # also where it is 0, for `grmp-edge calibrate`
        head_row = _array(model.head_row)
        head_bias -= float(_wide(visual.embedding.stats_mean) * stem.statistics_scale @ _wide(model.head_row))
    scale = float(np.exp(_wide(model.clip.logit_scale)).item())
    first: Any = model.image.blocks[0]
    return FoldedModel(
        size=model.image.size,
        patch=model.image.patch,
        heads=int(first.attn.num_heads),
        activation=_activation(model),
        patch_weight=pixels_weight,
        tokens=tokens.astype(np.float32),
        ln_pre=_norm(ln_pre) if ln_pre is not None else None,
        blocks=tuple(blocks),
        prompt_norm=_norm(model.prompt_norm) if prompts else None,
        ln_post=_norm(visual.ln_post),
        proj=_array(visual.proj),
        direction=(float(model.head_scale) * scale * (high - low) + _wide(model.head_weight)).astype(
            np.float32
        ),
        head_bias=head_bias,
        head_row=head_row,
        causes=model.causes,
        cause_rows=_array(model.cause_rows),
        cause_bias=_array(model.cause_bias),
        native=model.native,
        stem=stem,
    )


def _fold_stem(visual: HybridVisual, mean: Wide, std: Wide) -> tuple[FoldedStem, Wide]:
    """The stem, and the constant tokens (1 + stages + places, W) that its outputs are added to."""
    embedding, stem = visual.embedding, visual.stem
    tokens = _wide(embedding.positional_embedding)
    tokens[0] += _wide(embedding.class_embedding)
    weights, stages = {}, len(stem.blocks)
    for name, conv in (("fine", embedding.fine), ("grid", embedding.grid)):
        weight = _wide(conv.weight) / _wide(getattr(embedding, f"{name}_std"))[:, None, None]
        tokens[1 + stages :] -= weight.sum(axis=(2, 3)) @ _wide(getattr(embedding, f"{name}_mean"))
        weights[name] = weight.astype(np.float32)
    statistics_scale = (1 / _wide(embedding.stats_std)).astype(np.float32)
    centre = _wide(embedding.stats_mean) * statistics_scale

    def linear(layer: Any, place: int, start: int, stop: int) -> Array:
        tokens[place] -= centre[start:stop] @ _wide(layer.weight).T
        weight: Array = _array(layer.weight).T
        return weight

    of_stages, start = [], 0
    for index, layer in enumerate(embedding.to_tokens):
        stop = start + 2 * CHANNELS[index]
        of_stages.append(linear(layer, 1 + index, start, stop))
        start = stop
    folded = FoldedStem(
        mean=(255 * mean).astype(np.float32),
        std=(255 * std).astype(np.float32),
        conv=_fold_conv(stem.conv, SIZE),
        stages=_fold_stages(stem),
        eps=STD_EPS,
        fine_stage=FINE_STAGE,
        fine_weight=weights["fine"],
        grid_weight=weights["grid"],
        statistics_scale=statistics_scale,
        class_weight=linear(embedding.to_class, 0, 0, start),
        token_weights=tuple(of_stages),
    )
    return folded, tokens


def _fold_stages(stem: Stem) -> tuple[FoldedBottleneck, ...]:
    side, stages = SIZE // 2, []
    for block in stem.stages:
        stages.append(
            FoldedBottleneck(
                None if block.expand is None else _fold_conv(block.expand, side),
                _fold_conv(block.depthwise, side),
                _fold_conv(block.project, side),
                block.stage.skips,
            )
        )
        side //= block.stage.stride
    return tuple(stages)


def _fold_conv(conv: nn.Conv2d, side: int) -> FoldedConv:
    """``side`` is that of its input."""
    stride, kernel = conv.stride[0], conv.kernel_size[0]
    return FoldedConv(
        _array(conv.weight), _array(conv.bias), stride, conv.groups, same_padding(side, kernel, stride)
    )


def _patch_embedding(conv: nn.Conv2d, mean: Wide, std: Wide) -> tuple[Array, Wide]:
    """Weights for pixels 0..255, and the constant (W,) that the normalisation adds to every patch.

    conv((x / 255 - mean) / std) = conv'(x) + shift, exactly, since there is no padding.
    """
    weight = _wide(conv.weight) / std[:, None, None]
    shift: Wide = -(weight.sum(axis=(2, 3)) @ mean)
    if conv.bias is not None:
        shift = shift + _wide(conv.bias)
    return (weight / 255.0).astype(np.float32), shift


def _fold_block(block: Any, prompts: Wide) -> FoldedBlock:
    attention = block.attn
    width, heads = int(attention.embed_dim), int(attention.num_heads)
    if attention.bias_k is not None or attention.add_zero_attn:
        raise ModelError(
            "an attention with extra keys cannot be folded", "choose ViT-B-16 or another CLIP ViT"
        )
    q, k, v = _array(attention.in_proj_weight).reshape(3, width, width)
    bias = np.zeros(3 * width) if attention.in_proj_bias is None else _wide(attention.in_proj_bias)
    q_bias, _, v_bias = bias.reshape(3, width)
    scale = (width // heads) ** -0.5
    normed = _norm(block.ln_1).apply(prompts)
    out, ls_1, ls_2 = attention.out_proj, _layer_scale(block.ls_1), _layer_scale(block.ls_2)
    return FoldedBlock(
        ln_1=_norm(block.ln_1),
        q_weight=_scaled(q, scale),
        q_bias=(q_bias * scale).astype(np.float32),
        k_weight=k.T,
        v_weight=v.T,
        prompt_keys=_heads(normed @ k.T.astype(np.float64), heads),
        prompt_values=_heads(normed @ v.T.astype(np.float64), heads),
        out_weight=_scaled(_array(out.weight), ls_1),
        out_bias=((_wide(out.weight) @ v_bias + _bias(out)) * ls_1).astype(np.float32),
        ln_2=_norm(block.ln_2),
        fc_weight=_array(block.mlp.c_fc.weight).T,
        fc_bias=_bias(block.mlp.c_fc).astype(np.float32),
        proj_weight=_scaled(_array(block.mlp.c_proj.weight), ls_2),
        proj_bias=(_bias(block.mlp.c_proj) * ls_2).astype(np.float32),
    )


def _heads(tokens: Wide, heads: int) -> Array:
    """(T, W) to (H, T, D)."""
    split = tokens.reshape(len(tokens), heads, tokens.shape[1] // heads).transpose(1, 0, 2)
    return np.ascontiguousarray(split, dtype=np.float32)


def _scaled(weight: Array, scale: float | Wide) -> Array:
    """A Linear's (out, in) weight as (in, out), with each output scaled."""
    if np.all(np.asarray(scale) == 1.0):
        unscaled: Array = weight.T
        return unscaled
    scaled: Array = (weight.T.astype(np.float64) * scale).astype(np.float32)
    return scaled


def _layer_scale(module: nn.Module) -> float | Wide:
    gamma = getattr(module, "gamma", None)
    return 1.0 if gamma is None else _wide(gamma)


def _activation(model: GrmpIqa) -> Activation:
    from open_clip.transformer import QuickGELU

    kinds: set[Activation | None] = set()
    for block in model.image.blocks:
        module: Any = block.mlp.gelu  # type: ignore[union-attr]
        if isinstance(module, QuickGELU):
            kinds.add("quick_gelu")
        else:
            kinds.add("gelu" if isinstance(module, nn.GELU) and module.approximate == "none" else None)
    kind = kinds.pop()
    if kind is None or kinds:
        raise ModelError(
            "the image tower's activation is neither GELU nor QuickGELU",
            "choose ViT-B-16 or another CLIP ViT",
        )
    return kind


def _norm(module: Any) -> Norm:
    return Norm(_array(module.weight), _array(module.bias), float(module.eps))


def _bias(linear: nn.Linear) -> Wide:
    return np.zeros(linear.out_features) if linear.bias is None else _wide(linear.bias)


def _array(tensor: Any) -> Array:
    """Float32; a view of the tensor's memory if it is float32 on the CPU already."""
    assert isinstance(tensor, Tensor)
    array: Array = tensor.detach().cpu().float().numpy()
    return array


def _wide(tensor: Any) -> Wide:
    wide: Wide = _array(tensor).astype(np.float64)
    return wide
