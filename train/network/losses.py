"""The two losses of fine-tuning, both from logits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["quality_loss", "semantic_loss"]


def quality_loss(logits: Tensor, quality: Tensor, count: int | None = None) -> Tensor:
    """Soft-label cross-entropy -(y log p + (1 - y) log(1 - p)), mean over the batch.

    Args:
        logits: (B, 2), high then low quality.
        quality: y, (B,) in 0..1.
        count: size of the whole batch, where this is one process's share of it; shares then add up to the
            mean.
    """
    log_p = F.log_softmax(logits, dim=-1)
    return _mean(-(quality * log_p[:, 0] + (1 - quality) * log_p[:, 1]), count)


def semantic_loss(student: Tensor, teacher: Tensor, count: int | None = None) -> Tensor:
    """Soft cross-entropy between the teacher's and the student's softmax over the scenes, T=1.

    Args:
        student, teacher: logits (B, 9); no gradient flows to the teacher.
        count: as for :func:`quality_loss`.
    """
    return _mean(-(teacher.detach().softmax(dim=-1) * F.log_softmax(student, dim=-1)).sum(dim=-1), count)


def _mean(values: Tensor, count: int | None) -> Tensor:
    return values.mean() if count is None else values.sum() / count
