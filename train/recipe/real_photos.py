"""Photographs as people take them, of unknown quality: a second kind of training group.

Of a clean picture everything is known once it is distorted. Of a real photograph it is only known that two
views of it are equally good (the idea of CONTRIQUE, Madhusudana et al. 2022), that it differs from every
other one, and that a fault added to it makes it worse. No score is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grmp_edge.preprocess import squash
from grmp_edge.train.recipe.faults import KINDS, apply_fault, quality_of
from grmp_edge.train.recipe.groups import (
    SHOWN,
    SQUASHED,
    VARIANTS,
    Batch,
    Source,
    load_photos,
    statistics,
)

__all__ = ["Instances", "WildConfig", "add_wild", "load_wild"]

# A fault of these makes any photograph worse; more light or contrast may mend one.
_SURE_KINDS = tuple(
    kind
    for kind in KINDS
    if kind not in ("brighten", "darken", "mean_shift", "contrast_change", "high_sharpen")
    and not kind.startswith("color_saturation")
)


@dataclass(frozen=True)
class WildConfig:
    """How real photographs take part."""

    groups: int = 8  # a batch, alongside the groups of clean pictures
    held_out: int = 5  # every 5th is never seen, to tell learning from remembering
    temperature: float = 0.15  # of the instance loss; CONTRIQUE's 0.1, softened for few negatives
    queue: int = 512  # earlier pictures as extra negatives: a batch has only 30
    width: int = 128  # of the space in which instances are discriminated


def load_wild(folders: Sequence[Path], held_out: int) -> tuple[list[Source], list[Source]]:
    """Read photographs without labels, squashed to 244 a side: (for training, held out).

    Raises:
        DataError: there is no picture, or one cannot be read.
    """
    train, held = (
        [replace(s, image=squash(s.image, SQUASHED)) for s in part] for part in load_photos(folders, held_out)
    )
    return train, held


def add_wild(rng: np.random.Generator, batch: Batch, sources: Sequence[Source], groups: int) -> Batch:
    """Append groups of two views of a photograph and two of it with a fault added.

    Args:
        rng: the only source of chance.
        batch: of clean pictures and their faults.
        sources: at least ``groups`` photographs of 244 x 244.
        groups: how many different photographs.

    Returns:
        The batch with ``groups * VARIANTS`` pictures more. Of their quality only what the fault leaves is
        known, 1 being the photograph as it is. They have no caption, no scene and no severity.
    """
    chosen = rng.choice(len(sources), groups, replace=False)
    count = groups * VARIANTS
    images = np.empty((count, SHOWN, SHOWN, 3), np.uint8)
    remaining = np.ones(count, np.float32)
    measured = np.empty((count, batch.statistics.shape[1]), np.float32)
    for g, index in enumerate(chosen):
        photo = sources[int(index)].image
        fault = (str(rng.choice(_SURE_KINDS)), int(rng.integers(1, 6)))
        worse = apply_fault(photo, *fault, rng)
        for v, image in enumerate((photo, photo, worse, worse)):
            i = g * VARIANTS + v
            y, x = rng.integers(0, SQUASHED - SHOWN + 1, 2)
            view = image[y : y + SHOWN, x : x + SHOWN]
            images[i] = view[:, ::-1] if v % 2 else view
            if v >= 2:
                remaining[i] = quality_of([fault])
            measured[i] = astuple(statistics(images[i]))
    return replace(
        batch,
        images=np.concatenate([batch.images, images]),
        remaining=np.concatenate([batch.remaining, remaining]),
        statistics=np.concatenate([batch.statistics, measured]),
    )


class Instances(nn.Module):
    """Instance discrimination: two views of one state against all other pictures (NT-Xent with a queue)."""

    queue: Tensor  # (at most config.queue, config.width) unit vectors, newest first

    def __init__(self, width: int, config: WildConfig) -> None:
        super().__init__()
        self.config = config
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, config.width))
        self.register_buffer("queue", torch.zeros(0, config.width), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute the loss, a scalar, of CLS tokens (N, width), N even, two views of a state side by side."""
        points = F.normalize(self.head(tokens), dim=-1)
        logits = points @ torch.cat([points, self.queue]).T / self.config.temperature
        itself = torch.arange(len(points))
        logits[itself, itself] = -1e4
        self.queue = torch.cat([points.detach(), self.queue])[: self.config.queue]
        return F.cross_entropy(logits, itself ^ 1)
