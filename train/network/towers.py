"""Views of an open_clip model's two towers, block by block.

open_clip's own forward hides what deep prompting needs: the keys and values of one block, tokens that are
attended to but not carried on, a single query in the last block. These functions compute the same thing
from the same modules.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grmp_edge.errors import ModelError
from grmp_edge.train.network.hybrid import SIDE, SIZE, WIDTH, HybridVisual
from grmp_edge.train.network.stem import CHANNELS

__all__ = ["ImageTower", "TextTower", "block_forward", "full_precision", "keys_values", "widened"]


class ImageTower:
    """The vision transformer of an open_clip model.

    Raises:
        ModelError: the tower is a ResNet, a timm model, or a ViT with another pooling than the class token.
    """

    def __init__(self, clip: nn.Module, name: str) -> None:
        from open_clip.transformer import VisionTransformer

        visual: Any = getattr(clip, "visual", None)
        self.extras = 0  # tokens that flow beside the class token and the places
        self.visual: Any = visual
        if isinstance(visual, HybridVisual):
            self.blocks = _checked_blocks(visual.transformer, name)
            self.width, self.size, self.extras = WIDTH, SIZE, len(CHANNELS)
            self.patch = SIZE // SIDE
            return
        if not isinstance(visual, VisionTransformer):
            kind = type(visual).__name__
            raise ModelError(
                f"backbone {name!r} has a {kind} image tower, which has no tokens to prompt",
                "choose a ViT of open_clip, for instance ViT-B-16",
            )
        if visual.attn_pool is not None or visual.pool_type != "tok":
            raise ModelError(
                f"backbone {name!r} does not pool by its class token", "choose ViT-B-16 or another CLIP ViT"
            )
        self.blocks = _checked_blocks(visual.transformer, name)
        self.width = int(visual.conv1.out_channels)
        self.patch = int(visual.patch_size[0])
        self.size = int(visual.image_size[0])
        if visual.image_size[0] != visual.image_size[1] or visual.patch_size[0] != visual.patch_size[1]:
            raise ModelError(
                f"backbone {name!r} does not read square pictures", "choose ViT-B-16 or another CLIP ViT"
            )
        if visual.proj is None:
            raise ModelError(f"backbone {name!r} has no projection", "choose ViT-B-16 or another CLIP ViT")

    @property
    def length(self) -> int:
        """How many tokens flow, the class token among them."""
        return 1 + self.extras + (self.size // self.patch) ** 2

    def embed(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, S, S) to tokens (B, 1 + patches, W), class token first, after ln_pre."""
        if isinstance(self.visual, HybridVisual):
            tokens: Tensor = self.visual.embed(pixels)
            return tokens
        patches = self.visual.conv1(pixels).flatten(2).transpose(1, 2)
        cls = self.visual.class_embedding.expand(len(patches), 1, -1)
        tokens = torch.cat([cls, patches], dim=1) + self.visual.positional_embedding
        embedded: Tensor = self.visual.ln_pre(tokens)
        return embedded

    def project(self, cls: Tensor) -> Tensor:
        """The class token (B, W) to the shared space (B, E): ln_post and the projection, in float32."""
        with full_precision(cls):
            projected: Tensor = self.visual.ln_post(widened(cls)) @ self.visual.proj
        return projected

    def plain(self, pixels: Tensor) -> Tensor:
        """CLIP's own image feature without prompts, unit length, (B, E)."""
        tokens = self.embed(pixels)
        for index, block in enumerate(self.blocks):
            queries = 1 if index == len(self.blocks) - 1 else None
            tokens = block_forward(block, tokens, queries=queries)
        return F.normalize(self.project(tokens[:, 0]), dim=-1)


class TextTower:
    """The text transformer of an open_clip model: causal, read at the end-of-text token.

    Raises:
        ModelError: another kind of text tower, whose prompts would not mean the same.
    """

    def __init__(self, clip: nn.Module, name: str) -> None:
        tower: Any = getattr(clip, "text", clip)
        pool = getattr(tower, "text_pool_type", getattr(tower, "pool_type", None))
        if (
            not hasattr(tower, "token_embedding")
            or pool != "argmax"
            or getattr(tower, "attn_mask", None) is None
        ):
            raise ModelError(
                f"backbone {name!r} has a text tower that is not CLIP's (causal, read at the end of text)",
                "choose ViT-B-16 or another CLIP ViT",
            )
        self.tower = tower
        self.blocks = _checked_blocks(tower.transformer, name)
        self.width = int(tower.token_embedding.embedding_dim)
        self.ln_final: nn.Module = tower.ln_final

    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids (n, L) to embeddings (n, L, W) without positions."""
        embedded: Tensor = self.tower.token_embedding(tokens)
        return embedded

    def add_positions(self, embedded: Tensor) -> Tensor:
        """Add the learned positions of the first L places."""
        summed: Tensor = embedded + self.tower.positional_embedding[: embedded.shape[1]]
        return summed

    def run(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Blocks ``start`` to ``stop`` over (n, L, W), with the causal mask."""
        mask = self.tower.attn_mask[: x.shape[1], : x.shape[1]]
        for block in self.blocks[start:stop]:
            x = block_forward(block, x, mask=mask)
        return x

    def project(self, x: Tensor, ends: Tensor) -> Tensor:
        """Read (n, L, W) at the end-of-text places (n,) and project to unit features (n, E), in float32."""
        with full_precision(x):
            # ln_final works token by token, so only the tokens read need it.
            read = self.tower.ln_final(widened(x[torch.arange(len(x), device=x.device), ends]))
            projection = self.tower.text_projection
            if isinstance(projection, nn.Linear):
                read = projection(read)
            elif projection is not None:
                read = read @ projection
            return F.normalize(read, dim=-1)


def full_precision(x: Tensor) -> torch.autocast:
    """Leave autocast where ``x`` is: for heads and logits, which are small and must be exact."""
    return torch.autocast(x.device.type, enabled=False)


def widened(x: Tensor) -> Tensor:
    """At least float32: half types become it, float64 stays."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def keys_values(block: Any, normed: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of tokens after ln_1: (..., L, W) to two of (..., heads, L, head_dim)."""
    attention = block.attn
    width = attention.embed_dim
    both = F.linear(normed, attention.in_proj_weight[width:], attention.in_proj_bias[width:])
    keys, values = both.chunk(2, dim=-1)
    return _heads(keys, attention.num_heads), _heads(values, attention.num_heads)


def block_forward(
    block: Any,
    x: Tensor,
    extra: tuple[Tensor, Tensor] | None = None,
    queries: int | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """One residual attention block over tokens (B, L, W).

    Args:
        block: an open_clip ResidualAttentionBlock.
        x: the tokens that flow.
        extra: keys and values of tokens that are attended to but do not flow, each (heads, T, head_dim) or
            (B, heads, T, head_dim).
        queries: 1 to compute only the first token (all that is read of the last block); all by default.
        mask: additive attention mask (L, L).

    Returns:
        (B, queries or L, W).
    """
    attention = block.attn
    normed = block.ln_1(x)
    if queries == 1 and mask is None:
        mixed, x = _single_query(attention, normed, extra), x[:, :1]
    else:
        if queries is not None:
            raise ValueError("one query or all of them")
        # One product for all three: fewer and larger, and no slices whose gradients are padded with zeros.
        qkv = F.linear(normed, attention.in_proj_weight, attention.in_proj_bias)
        query, keys, values = (_heads(part, attention.num_heads) for part in qkv.chunk(3, dim=-1))
        if extra is not None:
            keys = torch.cat([keys, extra[0].expand(len(x), -1, -1, -1)], dim=2)
            values = torch.cat([values, extra[1].expand(len(x), -1, -1, -1)], dim=2)
        mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        mixed = mixed.transpose(1, 2).flatten(2)
    x = x + block.ls_1(attention.out_proj(mixed))
    out: Tensor = x + block.ls_2(block.mlp(block.ln_2(x)))
    return out


def _single_query(attention: Any, normed: Tensor, extra: tuple[Tensor, Tensor] | None) -> Tensor:
    """The first token's attention over (B, L, W), (B, 1, W), without keys and values of the others.

    q.(Wk n + bk) = (Wk'q).n + q.bk, and sum_j a_j (Wv n_j + bv) = Wv (sum_j a_j n_j) + sum_j a_j bv: with one
    query, products of W x W for one token replace those for all. In float32: it is little work.
    """
    heads, length, width = attention.num_heads, normed.shape[1], attention.embed_dim
    with full_precision(normed):
        normed = widened(normed)
        of_query, of_key, of_value = attention.in_proj_weight.chunk(3)
        bias_query, bias_key, bias_value = (part.view(heads, -1) for part in attention.in_proj_bias.chunk(3))
        query = F.linear(normed[:, 0], of_query, bias_query.flatten()).view(len(normed), heads, -1)
        toward = torch.einsum("bhd,hdw->bhw", query, of_key.view(heads, -1, width))
        scores = toward @ normed.transpose(1, 2) + (query * bias_key).sum(-1, keepdim=True)  # (B, H, L)
        if extra is not None:
            keys, values = (widened(part).expand(len(normed), -1, -1, -1) for part in extra)
            scores = torch.cat([scores, (keys @ query[..., None])[..., 0]], dim=-1)
        weights = (scores / math.sqrt(width // heads)).softmax(dim=-1)
        own = weights[..., :length]
        mixed = torch.einsum("bhw,hdw->bhd", own @ normed, of_value.view(heads, -1, width))
        mixed = mixed + own.sum(-1, keepdim=True) * bias_value
        if extra is not None:
            mixed = mixed + (weights[..., None, length:] @ values)[..., 0, :]
        heads_joined: Tensor = mixed.flatten(1)[:, None]
        return heads_joined


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.reshape(*x.shape[:-1], heads, -1).transpose(-2, -3)


def _checked_blocks(transformer: Any, name: str) -> nn.ModuleList:
    from open_clip.transformer import ResidualAttentionBlock

    blocks = getattr(transformer, "resblocks", None)
    if not isinstance(blocks, nn.ModuleList) or not all(
        isinstance(block, ResidualAttentionBlock) and block.attn.in_proj_weight is not None
        for block in blocks
    ):
        raise ModelError(
            f"backbone {name!r} is built of blocks that are not CLIP's", "choose ViT-B-16 or another CLIP ViT"
        )
    return blocks
