"""A start that saves a small network most of its first hours: it begins as a set of natural scene statistics.

Random filters see little but the mean brightness of a patch, since natural pictures have most of their energy
there, while blur, noise and coding show in the weak high frequencies. So the patch filters start as a cosine
basis of brightness and two colour axes, scaled to answers of unit variance; a constant beside them turns the
first LayerNorm into divisive normalisation; the first MLP takes absolute values; and attention starts as an
average over patches (after Trockman and Kolter, "Mimetic initialization", 2023). So CLS holds a random
mixture of the mean energies of all bands before the first step.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.model import CLIP
from torch import Tensor

__all__ = ["cosine_filters", "start_image_tower"]

# Channels that hold the constant, and its size: together as large as all filters' answers.
_CONSTANTS, _CONSTANT = 4, 8.0


def _cosine_basis(patch: int) -> NDArray[np.float64]:
    """All 2-D cosine functions of a patch, (patch ** 2, patch, patch), orthonormal, low frequency first."""
    n = np.arange(patch)
    line = np.cos(np.pi * (n[None, :] + 0.5) * n[:, None] / patch) * np.sqrt(2 / patch)
    line[0] /= np.sqrt(2)
    plane = np.einsum("uy,vx->uvyx", line, line).reshape(patch * patch, patch, patch)
    order = np.argsort(np.add.outer(n**2, n**2).ravel(), kind="stable")
    ordered: NDArray[np.float64] = plane[order]
    return ordered


def _compressed(
    basis: NDArray[np.float64], exact: int, count: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Keep the ``exact`` lowest functions and mix the others into ``count - exact`` orthonormal ones."""
    rest = basis[exact:]
    mix, _ = np.linalg.qr(rng.standard_normal((len(rest), count - exact)))
    mixed = np.einsum("rk,ryx->kyx", mix, rest)
    return np.concatenate([basis[:exact], mixed])


def cosine_filters(width: int, patch: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Make (width, 3, patch, patch) float32 filters: 11/16 see brightness, the rest two colour axes.

    ``width`` must be at least 32, each share at most ``patch ** 2``.
    """
    colour = width * 5 // 32
    luma = width - 2 * colour
    basis = _cosine_basis(patch)
    axes = np.array([[0.3, 0.59, 0.11], [0.7, -0.7, 0.0], [0.4, 0.4, -0.8]])
    planes = (
        _compressed(basis, luma * 5 // 8, luma, rng),
        _compressed(basis, colour * 5 // 8, colour, rng),
        _compressed(basis, colour * 5 // 8, colour, rng),
    )
    parts = [np.einsum("kyx,c->kcyx", plane, axis) for plane, axis in zip(planes, axes, strict=True)]
    return np.concatenate(parts).astype(np.float32)


@torch.no_grad()
def start_image_tower(model: CLIP, pixels: Tensor, seed: int) -> None:
    """Set the image tower's start in place.

    Args:
        model: the backbone.
        pixels: (N, 3, 224, 224) normalised training pictures, distorted ones among them: their noise keeps
            the gain of the high frequencies finite.
        seed: of the random mixtures.
    """
    visual = model.visual
    rng = np.random.default_rng(seed)
    conv = visual.conv1
    width = conv.out_channels
    count = width - _CONSTANTS
    conv.weight[:count] = torch.from_numpy(cosine_filters(count, conv.kernel_size[0], rng))
    conv.weight[count:] = 0
    spread = conv(pixels)[:, :count].std(dim=(0, 2, 3)).clamp_min(1e-3)
    conv.weight[:count] /= spread[:, None, None, None]
    # Half up, half down: LayerNorm takes the mean away.
    visual.positional_embedding[1:, count:] = _CONSTANT * torch.tensor([1.0, -1.0]).repeat(_CONSTANTS // 2)

    for block in visual.transformer.resblocks:
        attention = block.attn
        attention.in_proj_weight[: 2 * width] *= 0.3  # flat attention
        turn = _orthogonal(width, rng) * 0.6
        attention.in_proj_weight[2 * width :] = turn
        attention.out_proj.weight.copy_(turn.T)

    # gelu(2x) + gelu(-2x) is about |2x|; 1.25 is its mean over answers of unit variance.
    mlp = visual.transformer.resblocks[0].mlp
    mix = 0.7 * _orthogonal(width, rng)
    mlp.c_fc.weight[:width] = 2 * torch.eye(width)
    mlp.c_fc.weight[width : 2 * width] = -2 * torch.eye(width)
    mlp.c_proj.weight[:, :width] = mix
    mlp.c_proj.weight[:, width : 2 * width] = mix
    mlp.c_proj.bias.copy_(-1.25 * mix.sum(dim=1))


def _orthogonal(width: int, rng: np.random.Generator) -> Tensor:
    turn, _ = np.linalg.qr(rng.standard_normal((width, width)))
    return torch.from_numpy(turn.astype(np.float32))
