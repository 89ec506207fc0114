"""GRMP-IQA: a CLIP model with learned text and deep visual prompts that scores one picture.

Li et al., "Few-Shot Image Quality Assessment via Adaptation of Vision-Language Models", ICCV 2025,
section 3.1-3.2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grmp_edge.preprocess import NORMALIZATIONS
from grmp_edge.train.network.backbone import Backbone
from grmp_edge.train.network.settings import PromptConfig, settings_for
from grmp_edge.train.network.towers import (
    ImageTower,
    TextTower,
    block_forward,
    full_precision,
    keys_values,
    widened,
)
from grmp_edge.train.network.words import CAUSES, cause_prompts, quality_prompts, scene_prompts
from grmp_edge.views import Aggregate

__all__ = ["GrmpIqa", "normalize_pixels"]


class GrmpIqa(nn.Module):
    """The whole model; ``forward`` maps uint8 pictures to the probability of high quality.

    Two ways to the same image feature: :meth:`image_features` lets 1 + patches tokens flow and treats the
    prompts as keys and values only, since their outputs are discarded at every block; and
    :meth:`image_features_unfolded` inserts and replaces tokens as the paper draws it, as the reference to
    compare with.
    """

    trained_image_blocks: int  # that fine-tuning changes, from the last; the last third, as the reference
    mean: Tensor
    std: Tensor
    quality_tokens: Tensor
    quality_ends: Tensor
    scene_tokens: Tensor
    scene_ends: Tensor
    # What few labels make of the two texts' difference: its factor, a direction (E,) and an offset beside it.
    head_scale: Tensor
    head_weight: Tensor
    head_bias: Tensor
    # From standardised statistics (S,) straight to the score's logit; S is 0 where there is no stem.
    head_row: Tensor
    cause_rows: Tensor  # (E, causes): products with a unit feature, plus the bias, are the causes' logits
    cause_bias: Tensor  # (causes,)

    def __init__(self, backbone: Backbone, config: PromptConfig | None = None) -> None:
        super().__init__()
        self.config = config or settings_for(backbone.name).prompts
        self.backbone = backbone
        self.clip = backbone.clip
        self.image = ImageTower(self.clip, backbone.name)
        self.text = TextTower(self.clip, backbone.name)
        self.trained_image_blocks = math.ceil(len(self.image.blocks) / 3)
        layers, tokens, width = len(self.image.blocks), self.config.visual_tokens, self.image.width
        # Visual prompt tuning's initialisation: Xavier's bound for a patch embedding.
        bound = math.sqrt(6.0 / (3 * self.image.patch**2 + width))
        self.prompt_embeddings = nn.Parameter(torch.empty(1, tokens, width).uniform_(-bound, bound))
        self.deep_prompt_embeddings = nn.Parameter(
            torch.empty(layers - 1, tokens, width).uniform_(-bound, bound)
        )
        self.prompt_proj = nn.Linear(width, width)
        nn.init.kaiming_normal_(self.prompt_proj.weight, a=0, mode="fan_out")
        self.prompt_norm = nn.LayerNorm(width, eps=1e-6)
        self.prompt_dropout = nn.Dropout(self.config.dropout)
        self.ctx = nn.Parameter(torch.empty(self.config.text_tokens, self.text.width).normal_(std=0.02))
        norm = NORMALIZATIONS[self.config.normalization]
        self.register_buffer("mean", torch.tensor(norm.mean), persistent=False)
        self.register_buffer("std", torch.tensor(norm.std), persistent=False)
        self._register_text("quality", quality_prompts(self.config.text_tokens))
        self._register_text("scene", scene_prompts())
        width = int(self.image.visual.proj.shape[1])
        self.register_buffer("head_scale", torch.ones(()), persistent=False)
        self.register_buffer("head_weight", torch.zeros(width), persistent=False)
        self.register_buffer("head_bias", torch.zeros(()), persistent=False)
        row = getattr(self.clip, "statistics_row", torch.zeros(0))
        self.register_buffer("head_row", row.detach().clone(), persistent=False)
        self._register_causes(width)
        # How a picture is looked at: crops beside the whole, and what becomes of all views' logits.
        self.native: int = getattr(self.clip, "native", 0)
        self.aggregate: Aggregate = getattr(self.clip, "aggregate", Aggregate())
        self.requires_grad_(False)

    @torch.no_grad()
    def _register_causes(self, width: int) -> None:
        """Ask for the causes with the backbone's own texts, before any training moves them."""
        scale, bias = getattr(self.clip, "cause_scale", None), getattr(self.clip, "cause_bias", None)
        self.causes = tuple(CAUSES) if scale is not None else ()
        rows, own_bias = torch.zeros(width, 0), torch.zeros(0)
        if scale is not None and bias is not None:
            tokens = self.backbone.tokenize(cause_prompts())
            x = self.text.run(self.text.add_positions(self.text.embed(tokens)))
            healthy, *others = self.text.project(x, tokens.argmax(dim=-1))
            rows, own_bias = (scale.exp()[:, None] * (torch.stack(others) - healthy)).T, bias.clone()
        self.register_buffer("cause_rows", rows.clone(), persistent=False)
        self.register_buffer("cause_bias", own_bias, persistent=False)

    def _register_text(self, name: str, sentences: list[str]) -> None:
        tokens = self.backbone.tokenize(sentences)
        ends = tokens.argmax(dim=-1)  # end-of-text has the highest id
        # Attention is causal: nothing after the end of text can reach it, so cutting there is exact.
        self.register_buffer(f"{name}_tokens", tokens[:, : int(ends.max()) + 1].clone(), persistent=False)
        self.register_buffer(f"{name}_ends", ends, persistent=False)

    def head(self) -> dict[str, Tensor]:
        """What few labels made of the score, by name: the buffers ``head_*``."""
        return {name: value for name, value in self.named_buffers() if name.startswith("head_")}

    def prompt_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What meta-pre-training learns: text context, visual prompts, prompt_proj and prompt_norm."""
        for name, parameter in self.named_parameters():
            if not name.startswith("clip."):
                yield name, parameter

    def finetune_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What fine-tuning learns: the text context, the last third of both towers' blocks, ln_final
        and ln_post (not that one where no image block learns).

        Names are those of ``state_dict``. On a 12-block ViT-B/16: 40,965,632 parameters.
        """
        trained = {id(self.ctx)}
        blocks = list(self.image.blocks[self.first_trained_image_block :])
        for module in (
            *blocks,
            *([self.image.visual.ln_post] if blocks else []),
            *self.text.blocks[self.first_trained_text_block :],
            self.text.ln_final,
        ):
            trained.update(id(parameter) for parameter in module.parameters())
        for name, parameter in self.named_parameters():
            if id(parameter) in trained:
                yield name, parameter

    def text_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Of :meth:`finetune_parameters`, those of the text side."""
        for name, parameter in self.finetune_parameters():
            if not name.startswith("clip.visual."):
                yield name, parameter

    @property
    def first_trained_image_block(self) -> int:
        """Index of the first image block that fine-tuning changes: 8 of 12 by default."""
        return max(0, len(self.image.blocks) - self.trained_image_blocks)

    @property
    def first_trained_text_block(self) -> int:
        """Index of the first text block that fine-tuning changes: 8 of 12."""
        return len(self.text.blocks) - math.ceil(len(self.text.blocks) / 3)

    def projected_prompts(self, block: int) -> Tensor:
        """The prompt tokens that block ``block`` sees, (T, W), without dropout."""
        tokens = self.prompt_embeddings[0] if block == 0 else self.deep_prompt_embeddings[block - 1]
        projected: Tensor = self.prompt_proj(tokens)
        return projected

    def prompt_keys_values(self, block: int, batch: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a block's prompts: (heads, T, head_dim), or (B, ...) while dropout is active."""
        tokens = self.projected_prompts(block)
        if self.training and self.config.dropout > 0:
            # One mask a picture, as when the tokens travel with it.
            tokens = self.prompt_dropout(tokens.expand(batch, -1, -1))
        module = self.image.blocks[block]
        return keys_values(module, module.ln_1(tokens))  # type: ignore[operator]

    def image_tokens(
        self, tokens: Tensor, start: int, stop: int, extras: Sequence[tuple[Tensor, Tensor]] = ()
    ) -> Tensor:
        """Run the prompted blocks ``start`` to ``stop`` over (B, L, W); the last block yields only CLS.

        ``extras`` are the blocks' ``prompt_keys_values`` where the caller has them already.
        """
        for index in range(start, stop):
            extra = extras[index - start] if extras else self.prompt_keys_values(index, len(tokens))
            queries = 1 if index == len(self.image.blocks) - 1 else None
            tokens = block_forward(self.image.blocks[index], tokens, extra=extra, queries=queries)
        return tokens

    def image_head(self, tokens: Tensor) -> Tensor:
        """The last block's output (B, L, W) to the unit image feature (B, E), in float32."""
        with full_precision(tokens):
            return F.normalize(self.image.project(self.prompt_norm(widened(tokens[:, 0]))), dim=-1)

    def image_features(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, S, S) to unit features (B, E).

        Where statistics count straight, what they add to the score's logit is one more column, (B, E + 1).
        """
        tokens, straight = self.read(pixels)
        feature = self.image_head(self.image_tokens(tokens, 0, len(self.image.blocks)))
        return torch.cat([feature, straight], dim=-1)

    def read(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, L, W), and what statistics add to the score's logit: (B, 1), or (B, 0) for nothing."""
        if not len(self.head_row) or not bool(self.head_row.any()):
            tokens = self.image.embed(pixels)
            return tokens, tokens.new_zeros(len(tokens), 0, dtype=torch.float32)
        tokens, statistics = self.image.visual.read(pixels)
        with full_precision(tokens):
            return tokens, widened(statistics) @ self.head_row[:, None]

    def image_features_unfolded(self, pixels: Tensor) -> Tensor:
        """The same feature by the paper's own data flow: 1 + T + patches tokens through whole blocks."""
        tokens, straight = self.read(pixels)
        count = self.config.visual_tokens
        cls, rest = tokens[:, :1], tokens[:, 1:]
        for index, block in enumerate(self.image.blocks):
            prompts = self.prompt_dropout(self.projected_prompts(index).expand(len(pixels), -1, -1))
            tokens = block(torch.cat([cls, prompts, rest], dim=1))
            cls, rest = tokens[:, :1], tokens[:, 1 + count :]
        return torch.cat([self.image_head(tokens), straight], dim=-1)

    def quality_features(self) -> Tensor:
        """Unit text features (2, E) of the prompts for high and low quality, in this order."""
        embedded = self.text.embed(self.quality_tokens)
        context = self.ctx.expand(len(embedded), -1, -1)
        embedded = torch.cat([embedded[:, :1], context, embedded[:, 1 + len(self.ctx) :]], dim=1)
        return self.text.project(self.text.run(self.text.add_positions(embedded)), self.quality_ends)

    def scene_tokens_at(self, block: int) -> Tensor:
        """The nine scene sentences after the first ``block`` text blocks, (9, L, W)."""
        return self.text.run(self.text.add_positions(self.text.embed(self.scene_tokens)), 0, block)

    def scene_features(self) -> Tensor:
        """Unit text features (9, E) of "a photo of a {scene}" without learned context."""
        return self.text.project(self.scene_tokens_at(len(self.text.blocks)), self.scene_ends)

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Scaled cosines (B, n), in float32, of unit image features (B, E) with unit text features (n, E)."""
        with full_precision(image_features):
            scale: Tensor = self.clip.logit_scale.exp()  # type: ignore[operator]
            return scale * image_features[:, : text_features.shape[1]] @ text_features.T

    def pixels(self, images: Tensor) -> Tensor:
        """Pictures (B, S, S, 3), uint8 RGB, to normalised pixels (B, 3, S, S) in float32."""
        return normalize_pixels(images, self.mean, self.std)

    def forward(self, images: Tensor, unfolded: bool = False) -> Tensor:
        """Score pictures (B, S, S, 3), uint8 RGB: the probability of high quality, (B,) in 0..1."""
        encode = self.image_features_unfolded if unfolded else self.image_features
        return self.readings(encode(self.pixels(images)))[:, 0].sigmoid()

    def readings(self, features: Tensor) -> Tensor:
        """Features of :meth:`image_features` to logits (B, 1 + causes), in float32: score, then causes."""
        with full_precision(features):
            width = len(self.cause_rows)
            features, straight = features[:, :width], features[:, width:]
            high, low = self.logits(features, self.quality_features()).unbind(dim=-1)
            quality = self.head_scale * (high - low) + features @ self.head_weight + self.head_bias
            quality = quality + straight.sum(dim=-1)
            causes = features @ self.cause_rows + self.cause_bias
            return torch.cat([quality[:, None], causes], dim=-1)


def normalize_pixels(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 (B, S, S, 3) to ((x / 255) - mean) / std as float32 (B, 3, S, S)."""
    return ((images.to(torch.float32) / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
