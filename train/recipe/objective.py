"""What the backbone is trained to do: match captions, know quality, rank a picture's states, name faults."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import cast

import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

from grmp_edge.preprocess import NORMALIZATIONS
from grmp_edge.train.network.words import quality_prompts, scene_prompts
from grmp_edge.train.recipe.captions import QUALITY_PAIRS, Statistics
from grmp_edge.train.recipe.faults import KINDS
from grmp_edge.train.recipe.groups import VARIANTS, Batch
from grmp_edge.train.recipe.real_photos import Instances, WildConfig

__all__ = ["LossConfig", "Objective", "normalise", "text_features"]


@dataclass(frozen=True)
class LossConfig:
    """Weights of the terms; each is about 1 nat at the start."""

    contrast: float = 0.5  # captions repeat within a batch, so it is noisy; half the weight of quality
    quality: float = 1.0  # what the model is asked for
    rank: float = 1.0  # order within one picture is certain, where the level of quality is an estimate
    faults: float = 4.0  # mean over 26 kinds, most of them absent: small by itself
    token_faults: float = 2.0  # the same asked of each patch: a dense signal that trains the lower blocks
    statistics: float = 0.3  # light, contrast, colour, detail, ...: not to be mistaken for faults
    scene: float = 0.1  # little can be learned of nine scenes from a hundred photographs
    instances: float = 0.3  # instance discrimination: starts at 6 nats and ends near 1
    margin: float = (
        0.25  # of the ranking, in logits per tenth of what faults leave: as for scene_quality.FAULTS
    )


def normalise(images: Tensor) -> Tensor:
    """(N, H, W, 3) uint8 to (N, 3, H, W) float32 with CLIP's mean and std."""
    clip = NORMALIZATIONS["clip"]
    mean, std = (torch.tensor(values)[:, None, None] * 255 for values in (clip.mean, clip.std))
    # Transposed as bytes: arithmetic on three interleaved channels takes several times as long.
    return images.permute(0, 3, 1, 2).contiguous().float().sub_(mean).div_(std)


def text_features(model: CLIP, ids: Tensor, words: Tensor) -> Tensor:
    """Encode texts to unit features (N, D); equal to ``encode_text`` of the ids padded to 77.

    The text tower is causal and reads the end token, so what follows the longest text can be cut off.

    Args:
        model: the backbone.
        ids: (N, L) token ids, L <= 77; the end token has the highest.
        words: (N, L, W) their embeddings, perhaps with learned context vectors among them.
    """
    length = ids.shape[1]
    x = words + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    pooled = x[torch.arange(len(ids)), ids.argmax(dim=-1)]
    return F.normalize((pooled @ model.text_projection).float(), dim=-1)


class Objective(nn.Module):
    """The model with heads that only training needs; calling it gives the loss and its parts.

    Only the token rows in use are trained, in ``rows``; ``settle`` puts them back into the model.
    """

    def __init__(
        self, model: CLIP, config: LossConfig, token_ids: list[int], wild: WildConfig | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        width = model.visual.conv1.out_channels
        self.fault_head = nn.Linear(width, len(KINDS))
        self.token_head = nn.Linear(width, len(KINDS))
        self.statistics_head = nn.Linear(width, len(fields(Statistics)))
        self.instances = Instances(width, wild) if wild else None
        self._used = torch.tensor(token_ids)
        self._row_of = torch.full((model.vocab_size,), -1).index_copy(
            0, self._used, torch.arange(len(token_ids))
        )
        self.rows = nn.Parameter(model.token_embedding.weight.detach()[self._used].clone())
        model.token_embedding.requires_grad_(False)
        # The output of ln_post holds CLS and patch tokens before the projection.
        model.visual.ln_post.register_forward_hook(self._keep_tokens)
        self._tokens: Tensor | None = None
        self._tokenizer = SimpleTokenizer()
        self._scenes = scene_prompts()

    @torch.no_grad()
    def settle(self) -> None:
        """Copy the trained token rows into the model."""
        self.model.token_embedding.weight[self._used] = self.rows

    def _keep_tokens(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        self._tokens = output

    def _texts(self, captions: list[str]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Encode all texts of a step at once.

        Returns:
            (B, D) of the captions, (9, D) of the scenes, and three quality axes (D,), the better prompt less
            the worse: the method's pair behind four random context vectors, that pair plain, one other pair.
        """
        other = QUALITY_PAIRS[int(torch.randint(1, len(QUALITY_PAIRS), ()))]
        ids = cast(
            Tensor,
            self._tokenizer([*quality_prompts(4), *QUALITY_PAIRS[0], *other, *self._scenes, *captions]),
        )
        ids = ids[:, : int(ids.argmax(dim=-1).max()) + 1]
        words = F.embedding(self._row_of[ids], self.rows)
        # Drawn like a learned context at its start, and wider, so that the words mean the same behind any.
        context = torch.randn(4, words.shape[-1]) * float(torch.empty(()).uniform_(0.01, 0.1))
        words = torch.cat(
            [torch.cat([words[:2, :1], context.expand(2, -1, -1), words[:2, 5:]], dim=1), words[2:]]
        )
        features = text_features(self.model, ids, words)
        pair, rest = features[:6], features[6:]
        axes = [pair[i] - pair[i + 1] for i in (0, 2, 4)]
        return rest[len(self._scenes) :], rest[: len(self._scenes)], axes

    def forward(self, batch: Batch, pixels: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Compute the loss of a batch.

        Args:
            batch: labels and captions.
            pixels: (B, 3, 224, 224), the normalised pictures of the batch.

        Returns:
            (the loss, a scalar; each unweighted part as a float).
        """
        model, config = self.model, self.config
        image = F.normalize(model.visual(pixels).float(), dim=-1)
        tokens = cast(Tensor, self._tokens).float()
        self._tokens = None
        scale = model.logit_scale.exp().clamp(max=100)
        captions, scenes, directions = self._texts(batch.captions)
        quality = torch.from_numpy(batch.quality)
        severity = torch.from_numpy(batch.severity)

        known = len(batch.captions)
        parts = {"contrast": _contrastive(scale * image[:known] @ captions.T, batch.captions)}
        axes = [scale * image @ direction for direction in directions]
        parts["quality"] = torch.stack(
            [F.binary_cross_entropy_with_logits(axis[:known], quality) for axis in axes]
        ).mean()
        # By what faults leave: in quality, an appealing scene's states lie too close to each other.
        remaining = torch.from_numpy(batch.remaining)
        parts["rank"] = torch.stack([_ranking(axis, remaining, config.margin) for axis in axes]).mean()
        parts["faults"] = F.binary_cross_entropy_with_logits(self.fault_head(tokens[:known, 0]), severity)
        of_tokens = self.token_head(tokens[:known, 1:])
        parts["token_faults"] = F.binary_cross_entropy_with_logits(
            of_tokens, severity[:, None].expand_as(of_tokens)
        )
        parts["statistics"] = F.smooth_l1_loss(
            self.statistics_head(tokens[:, 0]), torch.from_numpy(batch.statistics)
        )
        parts["scene"] = F.cross_entropy(scale * image[:known] @ scenes.T, torch.from_numpy(batch.scene))
        if self.instances is not None and known < len(image):
            parts["instances"] = self.instances(tokens[known:, 0])
        loss = torch.stack([getattr(config, name) * part for name, part in parts.items()]).sum()
        return loss, {name: float(part.detach()) for name, part in parts.items()}


def _contrastive(logits: Tensor, captions: list[str]) -> Tensor:
    """Symmetric cross-entropy of (B, B) image-text logits; equal captions are not negatives of each other."""
    number = {text: i for i, text in enumerate(captions)}
    same = torch.tensor([number[text] for text in captions])
    twin = (same[:, None] == same[None, :]) & ~torch.eye(len(captions), dtype=torch.bool)
    logits = logits.masked_fill(twin, -1e4)
    target = torch.arange(len(captions))
    forth = F.cross_entropy(logits, target)
    back = F.cross_entropy(logits.T, target)
    return (forth + back) / 2


def _ranking(axis: Tensor, remaining: Tensor, margin: float) -> Tensor:
    """Hinge over all pairs of one picture's states: the better leads by a margin that grows with the gap."""
    axis, remaining = axis.view(-1, VARIANTS), remaining.view(-1, VARIANTS)
    ahead = axis[:, :, None] - axis[:, None, :]
    gap = remaining[:, :, None] - remaining[:, None, :]
    pairs = gap > 0.03
    lead = (gap / 0.1).clamp(max=4) * margin
    return F.relu(lead - ahead)[pairs].mean() if bool(pairs.any()) else axis.sum() * 0
