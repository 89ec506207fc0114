"""Quality-aware gradient regularisation (QGR): keep fine-tuning from following image content.

Paper section 3.3. For every trainable tensor, with g_d the gradient of the quality loss and g_g that of
the semantic loss: where the two agree (<g_d, g_g> > 0), the shared component is taken out,
``g_d - lambda * <g_d, g_g> / ||g_g||^2 * g_g``. lambda = 1 is the orthogonal projection the paper draws;
5, the released code's value, turns the shared component round to -4 times itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Projection", "Regularised", "regularise"]

Projection = Literal["per_tensor", "global"]


@dataclass(frozen=True)
class Regularised:
    """The gradients to step with, and statistics of the projection."""

    gradients: list[Tensor]
    cosine: float  # of the angle between g_d and g_g over all tensors together, -1..1
    changed: float  # share of the tensors whose gradient was changed, 0..1


def regularise(
    quality: Sequence[Tensor],
    semantic: Sequence[Tensor | None],
    strength: float,
    projection: Projection = "per_tensor",
) -> Regularised:
    """Take the component shared with the semantic gradient out of the quality gradient.

    Args:
        quality: g_d, one tensor per trainable parameter.
        semantic: g_g in the same order; None where the semantic loss does not depend on the parameter
            (the text context), which then keeps g_d.
        strength: lambda.
        projection: decide and project tensor by tensor, or on all tensors as one vector.
    """
    pairs = list(zip(quality, semantic, strict=True))
    dots = [(d * g).sum() if g is not None else d.new_zeros(()) for d, g in pairs]
    squares = [(g * g).sum() if g is not None else d.new_zeros(()) for d, g in pairs]
    inner, norm = torch.stack(dots), torch.stack(squares)
    dot, square = inner.sum(), norm.sum()
    if projection == "global":
        inner, norm = dot.expand(len(pairs)), square.expand(len(pairs))
    # One transfer for all tensors: on a GPU each would wait for everything before it.
    shared = ((inner > 0) & (norm > 0)).tolist()
    shares = strength * (inner / norm)
    gradients, changed = [], 0
    for (d, g), agree, share in zip(pairs, shared, shares, strict=True):
        if g is None or not agree:
            gradients.append(d)
            continue
        gradients.append(d - share * g)
        changed += 1
    length = torch.stack([(d * d).sum() for d in quality]).sum().sqrt() * square.sqrt()
    cosine = float(dot / length) if length > 0 else 0.0
    return Regularised(gradients, cosine, changed / max(1, len(pairs)))
