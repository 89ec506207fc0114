"""The two losses of fine-tuning, both from logits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["quality_loss", "semantic_loss"]


def quality_loss(logits: Tensor, quality: Tensor) -> Tensor:
    """Soft-label cross-entropy -(y log p + (1 - y) log(1 - p)), mean over the batch.

    Args:
        logits: (B, 2), high then low quality.
        quality: y, (B,) in 0..1.
    """
    log_p = F.log_softmax(logits, dim=-1)
    return -(quality * log_p[:, 0] + (1 - quality) * log_p[:, 1]).mean()


def semantic_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Soft cross-entropy between the teacher's and the student's softmax over the scenes, T=1.

    Args:
        student, teacher: logits (B, 9); no gradient flows to the teacher.
    """
    return -(teacher.detach().softmax(dim=-1) * F.log_softmax(student, dim=-1)).sum(dim=-1).mean()
