"""Calibration before fine-tuning: the text side learns the network's own scores, moved to the labels' scale.

A network pre-trained on synthetic pictures ranks real ones better than it places them: its scores may all
lie near 1 where people use the middle of their scale. Fine-tuning then spends its first steps on that
offset, through whichever parameters move fastest, and loses the ranking on the way. So two numbers are
fitted to the labels first (Platt scaling: slope and offset of the score's logit), then the text context, text
blocks and ln_final to the scores these give. Individual labels, which are noisy, play no part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grmp_edge.train.finetune.frozen_features import CentreScores
from grmp_edge.train.network.losses import quality_loss
from grmp_edge.train.network.model import GrmpIqa
from grmp_edge.train.session.ranks import Team

__all__ = ["Calibration", "calibrate", "platt"]

# Of plain gradient descent on all labelled pictures at once, times the squared logit scale, with which the
# loss grows steeper; 0.1 at the embedded backbone's.
_RATE = 30.0
# Labels that contradict the ranking, or hardly follow it, would reverse the scores or make them all equal,
# and nothing could be learned from there.
_LEAST_SLOPE = 0.1


@dataclass(frozen=True)
class Calibration:
    """The labels' scale in the network's terms: quality is about sigmoid(slope * logit + offset)."""

    slope: float
    offset: float


def platt(logits: Tensor, quality: Tensor) -> Calibration:
    """Fit slope and offset by soft-label cross-entropy (Platt, 1999).

    Args:
        logits: of the scores, (n,).
        quality: (n,) in 0..1.
    """
    logits, quality = logits.double(), quality.double()
    fitted = torch.tensor([1.0, 0.0], dtype=torch.float64, device=logits.device, requires_grad=True)
    search = torch.optim.LBFGS([fitted], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        value = F.binary_cross_entropy_with_logits(fitted[0] * logits + fitted[1], quality)
        # Two labels, one at either end of the scale, would give an infinite slope.
        value = value + 1e-3 * (fitted[0] - 1).square()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    search.step(loss)  # type: ignore[no-untyped-call]
    slope, offset = fitted.tolist()
    if slope < _LEAST_SLOPE:
        slope = _LEAST_SLOPE
        # The offset follows from the fit's own condition that the means agree.
        low, high = -50.0, 50.0
        for _ in range(60):
            offset = (low + high) / 2
            high, low = (offset, low) if _mean(logits, slope, offset) > quality.mean() else (high, offset)
    return Calibration(slope, offset)


def _mean(logits: Tensor, slope: float, offset: float) -> Tensor:
    return torch.sigmoid(slope * logits + offset).mean()


def calibrate(
    model: GrmpIqa,
    images: npt.NDArray[np.uint8],
    quality: npt.NDArray[np.float32],
    steps: int,
    team: Team,
    progress: Callable[[], None] = lambda: None,
) -> Calibration:
    """Move the trained part of the text side, in place; the image tower stays.

    Args:
        model: before fine-tuning.
        images: squashed pictures, uint8 (n, R, R, 3).
        quality: float32 (n,) in 0..1.
        steps: of gradient descent.
        team: the ranks, which share the pictures' features and end with the same weights.
        progress: called after each step.
    """
    features = CentreScores(model, images, team=team).features()
    with torch.no_grad():
        classes = model.logits(features, model.quality_features())
        logits = classes[:, 0] - classes[:, 1]
    calibration = platt(logits, torch.from_numpy(quality).to(logits))
    target = torch.sigmoid(calibration.slope * logits + calibration.offset)
    tensors: list[nn.Parameter] = [parameter for _, parameter in model.text_parameters()]
    for tensor in tensors:
        tensor.requires_grad_(True)
    rate = _RATE / float(model.clip.logit_scale.detach().exp()) ** 2  # type: ignore[operator]
    for _ in range(steps):
        loss = quality_loss(model.logits(features, model.quality_features()), target)
        with torch.no_grad():
            for tensor, gradient in zip(tensors, torch.autograd.grad(loss, tensors), strict=True):
                tensor.sub_(gradient, alpha=rate)
        progress()
    for tensor in tensors:
        tensor.requires_grad_(False)
    team.align([tensor.data for tensor in tensors])
    return calibration
