"""One step of fine-tuning: both losses, their gradients over all processes, and QGR between them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from grmp_edge.errors import UsageError
from grmp_edge.train.finetune.config import FinetuneConfig
from grmp_edge.train.finetune.frozen_features import FrozenCache, Teacher, group_size
from grmp_edge.train.finetune.qgr import regularise
from grmp_edge.train.network.losses import quality_loss, semantic_loss
from grmp_edge.train.network.model import GrmpIqa
from grmp_edge.train.session.precision import LossScaler, Numerics
from grmp_edge.train.session.ranks import ALONE, Team

__all__ = ["TuningStep"]


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
    ) -> None:
        device = model.ctx.device
        self.model, self.config, self.team = model, config, team
        self.numerics = Numerics.of(config.precision, device)
        self.scaler = LossScaler(self.numerics.precision == "fp16")
        group = group_size(model, images, config.batch, config.epochs, cache_bytes)
        self.cache = FrozenCache(model, teacher, images, cache_bytes, group, self.numerics, team)
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
        self, chosen: Sequence[int], offset: int, flip: bool
    ) -> tuple[list[Tensor] | None, dict[str, float]]:
        """Work on the pictures ``chosen``.

        Returns:
            One gradient per moving parameter, None if float16 overflowed on the way back and the step is to
            be left out; and what to report: ``loss`` and, under QGR, ``semantic``, ``cosine``, ``changed``.

        Raises:
            UsageError: the loss is not finite.
        """
        own = [index for index in chosen if self.team.mine(index)]
        losses = torch.zeros(2, device=self.model.ctx.device)
        if own:
            toward, content = self._local(own, len(chosen), offset, flip, losses)
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
        self, own: list[int], total: int, offset: int, flip: bool, losses: Tensor
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        tokens, teacher = self.cache.get(own, offset, flip)
        count = None if len(own) == total else total
        for numerics in self.numerics.attempts():
            loss, semantic = self._losses(numerics, tokens, teacher, self.quality[own], count)
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
        self, numerics: Numerics, tokens: Tensor, teacher: Tensor | None, quality: Tensor, count: int | None
    ) -> tuple[Tensor, Tensor | None]:
        model, text = self.model, self.model.text
        with numerics.autocast():
            features = model.image_head(model.image_tokens(tokens, self.first_image, len(model.image.blocks)))
            classes = model.quality_features()
            loss = quality_loss(model.logits(features, classes), quality, count)
            if self.scene_tokens is None or teacher is None:
                return loss, None
            scenes = text.project(text.run(self.scene_tokens, self.first_text), model.scene_ends)
            return loss, semantic_loss(model.logits(features, scenes), teacher, count)
