"""What the upper part is asked for: of faults, of scenes, of people's scores. All scalars, to be lowered."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from grmp_edge.train.recipe.store import Group, Labels, Views
from grmp_edge.train.recipe.upper import Upper

__all__ = [
    "Bounds",
    "draw",
    "fault_losses",
    "order_loss",
    "rank_loss",
    "scene_appeal",
    "score_loss",
    "target_of",
]

Bounds = Sequence[tuple[int, int]]  # start and stop of each group in a batch

_CLEAN = 1.2  # logit, about .77: where a clean picture of ordinary appeal should be
_APPEAL = 0.6  # of the scene's appeal (-3 to 3) in a logit
_STEEP = 1.5  # of the softplus, so that a pair that is far apart pulls no more
_HEALTHY = 0.15  # logits by which a healthy change may move its clean state
_ORDERED = 0.05  # scores that lie closer are not ranked


def target_of(appeal: Tensor, drop: Tensor | float = 0.0) -> Tensor:
    """The logit that a scene's appeal and a fault's severity ask for."""
    return _CLEAN + _APPEAL * appeal - drop


def rank_loss(logit: Tensor, labels: Labels, index: Tensor, bounds: Bounds) -> Tensor:
    """Within a group clean and healthy above faults, and mild above strong of one kind.

    The margin grows with severity: six tenths of the distance that is asked for must be there.
    """
    losses = []
    drop, fault, kind = labels.drop[index], labels.fault[index], labels.kind[index]
    for start, stop in bounds:
        z, d, f, k = (each[start:stop] for each in (logit, drop, fault, kind))
        gap = d[None] - d[:, None]  # how far j should be below i
        faulty = f == 1
        worse = (k[:, None] == k[None]) & faulty[:, None] & faulty[None] & (gap > 0.3)
        usable = ((f[:, None] == 0) & faulty[None]) | worse
        losses.append(F.softplus((0.6 * gap - (z[:, None] - z[None])) * _STEEP)[usable] / _STEEP)
    return torch.cat(losses).mean()


def order_loss(logit: Tensor, target: Tensor, apart: float = 0.5, share: float = 0.7) -> Tensor:
    """Different pictures in the order of their targets, for pairs that are ``apart``."""
    gap = target[:, None] - target[None]
    missing = share * gap - (logit[:, None] - logit[None])
    return F.softplus(missing[gap > apart] * _STEEP).mean() / _STEEP


def score_loss(logit: Tensor, mos: Tensor) -> Tensor:
    """The paper's soft-label cross-entropy above its floor, and the order of pairs; ``mos`` in 0..1."""
    floor = F.binary_cross_entropy(mos, mos)  # what cannot be learned away
    quality = F.binary_cross_entropy_with_logits(logit, mos) - floor
    return 4 * quality + 0.5 * order_loss(logit, mos * 5, _ORDERED * 5, 1.0)


def fault_losses(
    upper: Upper, feature: Tensor, logits: Tensor, labels: Labels, views: Views, index: Tensor, bounds: Bounds
) -> dict[str, Tensor]:
    """The losses of a batch of fault views: features (B, E), logits (B, 1 + causes), indices (B,)."""
    quality, causes = logits[:, 0], logits[:, 1:]
    fault = labels.fault[index]
    shown, healthy = fault >= 0, fault == 0
    target = target_of(labels.appeal[index], labels.drop[index])
    clean = torch.cat([quality[start].expand(stop - start) for start, stop in bounds])
    moved = (quality - clean)[healthy].abs() - _HEALTHY
    asked = labels.causes[index][shown]
    return {
        "rank": rank_loss(quality, labels, index, bounds),
        "absolute": F.smooth_l1_loss(quality[shown], target[shown]),
        "healthy": F.relu(moved).mean(),
        "causes": 3 * F.binary_cross_entropy_with_logits(causes[shown], asked),
        "distil": upper.explained(feature, views.stats[index]),
    }


def scene_appeal(scenes: Views, views: Views, groups: Sequence[Group]) -> Tensor:
    """The appeal of each view's clean state (n,), by ridge regression on the statistics of known scenes."""
    stats = scenes.stats.float()
    mean, spread = stats.mean(dim=0), stats.std(dim=0) + 1e-3
    scale = len(mean) ** 0.5
    x = (stats - mean) / spread / scale
    y = torch.tensor([row["appeal"] for row in scenes.rows])
    alpha = torch.linalg.solve(x @ x.T + 0.01 * torch.eye(len(x)), y - y.mean())
    row = x.T @ alpha
    appeal = torch.zeros(len(views))
    for group in groups:
        clean = (views.stats[int(group[0])].float() - mean) / spread / scale
        appeal[torch.from_numpy(group)] = (clean @ row + y.mean()).clamp(-5, 4)
    return appeal


def draw(
    groups: Sequence[Group], count: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], list[tuple[int, int]]]:
    """``count`` groups at random: their indices one after the other, and where each begins and ends."""
    chosen = [groups[i] for i in rng.choice(len(groups), min(count, len(groups)), replace=False)]
    ends = np.cumsum([len(group) for group in chosen])
    bounds = [(int(end) - len(group), int(end)) for group, end in zip(chosen, ends, strict=True)]
    return np.concatenate(chosen), bounds
