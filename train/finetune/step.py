"""One step of fine-tuning: both losses, their gradients over all processes, and QGR between them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from grmp_edge.errors import UsageError
from grmp_edge.head import MARGIN
from grmp_edge.train.data.labelled import Crops
from grmp_edge.train.finetune.config import FinetuneConfig, Part
from grmp_edge.train.finetune.frozen_features import Cut, FrozenCache, Teacher, group_size, view_weights
from grmp_edge.train.finetune.qgr import regularise
from grmp_edge.train.network.losses import quality_loss, semantic_loss
from grmp_edge.train.network.model import GrmpIqa
from grmp_edge.train.network.towers import full_precision
from grmp_edge.train.session.precision import LossScaler, Numerics
from grmp_edge.train.session.ranks import ALONE, Team

__all__ = ["TuningStep"]

# Weight of ranking twins below their originals, against the labels' loss.
_TWINS = 0.3


class TuningStep:
    """Gradients to step with, for a batch under one view.

    With several ranks each computes the share of the batch whose pictures are its own, and the gradients of
    both losses are summed over the ranks before QGR, which is not linear: so it is one process's result.

    Args:
        model: in evaluation mode; its moving parameters are made to require gradients.
        images: squashed pictures, uint8 (n, R, R, 3).
        quality: float32 (n,) in 0..1.
        config: the settings, with their learning rate.
        cache_bytes: for the frozen blocks' tokens.
        team: the ranks.
        teacher: made before anything moved, as it copies the plain CLIP; None without QGR.
        crops: the pictures' native crops, of a network that looks at them.
        twins: distorted copies of the first pictures, one each, with crops; they are to rank below.
    """

    def __init__(
        self,
        model: GrmpIqa,
        images: npt.NDArray[np.uint8],
        quality: npt.NDArray[np.float32],
        config: FinetuneConfig,
        cache_bytes: int,
        team: Team = ALONE,
        teacher: Teacher | None = None,
        crops: Crops | None = None,
        twins: Part | None = None,
    ) -> None:
        device = model.ctx.device
        self.model, self.config, self.team = model, config, team
        self.numerics = Numerics.of(config.precision, device)
        self.scaler = LossScaler(self.numerics.precision == "fp16")
        self.count, self.twins = len(images), 0
        self.crops: FrozenCache | None = None
        if crops is not None:
            if twins is not None and twins.crops is not None:
                self.twins = len(twins.images)
                images = np.concatenate([images, twins.images])
                both = np.concatenate([crops.of, self.count + twins.crops.of])
                crops = Crops(np.concatenate([crops.pixels, twins.crops.pixels]), both)
            share = cache_bytes * len(crops.of) // (len(crops.of) + len(images))
            cache_bytes -= share
            group = group_size(model, crops.pixels, config.batch, config.epochs, share)
            # A rank asks for its own pictures' crops, whatever their numbers.
            self.crops = FrozenCache(
                model, teacher, crops.pixels, share, group, self.numerics, dropout=config.prompt_dropout
            )
            self.crops_of = [np.flatnonzero(crops.of == index).tolist() for index in range(len(images))]
        group = group_size(
            model, images, config.batch, config.epochs, cache_bytes, config.offsets == "independent"
        )
        shared = team if self.crops is None else ALONE
        self.cache = FrozenCache(
            model, teacher, images, cache_bytes, group, self.numerics, shared, config.prompt_dropout
        )
        self.quality = torch.from_numpy(quality).to(device)
        text = {name for name, _ in model.text_parameters()}
        self.tensors: list[nn.Parameter] = []
        self.rates: list[float] = []  # of each tensor, as a part of the learning rate
        for name, parameter in model.finetune_parameters():
            rate = config.text_rate if name in text else 1.0
            parameter.requires_grad_(rate > 0)
            if rate > 0:
                self.tensors.append(parameter)
                self.rates.append(rate)
        self.first_image, self.first_text = model.first_trained_image_block, model.first_trained_text_block
        with torch.no_grad():
            self.scene_tokens = model.scene_tokens_at(self.first_text) if teacher else None

    def gradients(
        self, chosen: Sequence[int], cut: Cut, dropout_seed: int = 0
    ) -> tuple[list[Tensor] | None, dict[str, float]]:
        """Work on the pictures ``chosen``.

        Prompt dropout, if the settings have it, is a function of ``dropout_seed`` and the rank.

        Returns:
            One gradient per moving parameter, None if float16 overflowed on the way back and the step is to
            be left out; and what to report: ``loss`` and, under QGR, ``semantic``, ``cosine``, ``changed``.

        Raises:
            UsageError: the loss is not finite.
        """
        own = [index for index in chosen if self.team.mine(index)]
        losses = torch.zeros(2, device=self.model.ctx.device)
        if own:
            if self.config.prompt_dropout:
                torch.manual_seed(dropout_seed + self.team.rank)
                self.model.train()
            toward, content = self._local(own, len(chosen), cut, losses)
            self.model.eval()
        else:  # fewer pictures than ranks
            toward = [torch.zeros_like(tensor) for tensor in self.tensors]
            # The semantic loss does not depend on the text context.
            content = [None if t is self.model.ctx else torch.zeros_like(t) for t in self.tensors]
            if self.scene_tokens is None:
                content = []
        moving = [*toward, *(gradient for gradient in content if gradient is not None)]
        self.team.sum([losses, *moving])
        loss, semantic = losses.tolist()
        if not self.scaler.unscale(moving):
            return None, {"loss": loss}
        if self.scene_tokens is None:
            return toward, {"loss": loss}
        result = regularise(toward, content, self.config.qgr_strength, self.config.projection)
        report = {"loss": loss, "semantic": semantic, "cosine": result.cosine, "changed": result.changed}
        return result.gradients, report

    def _local(
        self, own: list[int], total: int, cut: Cut, losses: Tensor
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        twins = [self.count + index for index in own if index < self.twins]
        wanted = [*own, *twins]
        tokens, teacher = self.cache.get(wanted, cut)
        straight = self.cache.straight_of(wanted, cut)
        count, mix = None if len(own) == total else total, None
        if self.crops is not None:
            rows = [self.crops_of[index] for index in wanted]
            every = [row for one in rows for row in one]
            whole = Cut(0, 0, cut.flip)
            more, known = self.crops.get(every, whole)
            tokens = torch.cat([tokens, more])
            straight = torch.cat([straight, self.crops.straight_of(every, whole)])
            teacher = torch.cat([teacher, known]) if teacher is not None and known is not None else None
            of = np.repeat(np.arange(len(rows)), [len(one) for one in rows])
            mix = view_weights(self.model, len(rows), of)
        pairs = [place for place, index in enumerate(own) if index < self.twins]
        for numerics in self.numerics.attempts():
            loss, semantic = self._losses(
                numerics, tokens, straight, teacher, self.quality[own], count, mix, pairs
            )
            value = float(loss.detach())
            if math.isfinite(value):
                break
        else:
            raise UsageError(f"the loss became {value}", "lower --lr")
        losses[0] = loss.detach()
        toward = torch.autograd.grad(
            self.scaler.scale * loss, self.tensors, retain_graph=semantic is not None
        )
        content: Sequence[Tensor | None] = []
        if semantic is not None:
            losses[1] = semantic.detach()
            content = torch.autograd.grad(self.scaler.scale * semantic, self.tensors, allow_unused=True)
        return list(toward), list(content)

    def _losses(
        self,
        numerics: Numerics,
        tokens: Tensor,
        straight: Tensor,
        teacher: Tensor | None,
        quality: Tensor,
        count: int | None,
        mix: Tensor | None,
        pairs: Sequence[int],
    ) -> tuple[Tensor, Tensor | None]:
        model, text = self.model, self.model.text
        with numerics.autocast():
            features = model.image_head(model.image_tokens(tokens, self.first_image, len(model.image.blocks)))
            if mix is None:
                loss = quality_loss(model.logits(features, model.quality_features()), quality, count)
            else:
                with full_precision(features):
                    read = model.readings(torch.cat([features, straight], dim=1))[:, 0]
                    logits = mix @ read + model.aggregate.shift
                own, twins = logits[: len(quality)], logits[len(quality) :]
                loss = quality_loss(torch.stack([own, torch.zeros_like(own)], dim=1), quality, count)
                if pairs:
                    short = (twins - own[list(pairs)] + MARGIN).relu().square().sum()
                    loss = loss + _TWINS * short / (len(own) if count is None else count)
            if self.scene_tokens is None or teacher is None:
                return loss, None
            scenes = text.project(text.run(self.scene_tokens, self.first_text), model.scene_ends)
            return loss, semantic_loss(model.logits(features, scenes), teacher, count)
