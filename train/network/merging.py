"""Merging: from some block on, four neighbouring tokens travel as their mean, and blocks cost a quarter.

What tells faults from content is fine, and the first blocks see it at every patch; what the later ones weigh
is how much of it there is where. So they lose little by fewer places (docs/experiments.md, 29), as in
hierarchical transformers (Liu et al., "Swin Transformer", 2021), of which this is the plainest kind.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn

__all__ = ["GroupDropout", "MergingBlock", "merge_from", "merged", "merging_blocks"]


def merged(tokens: Tensor, side: int) -> Tensor:
    """Average each square of 2 x 2 places; the class token stays.

    Args:
        tokens: (B, 1 + side ** 2, W), row by row, the class token first; or fewer, as ``GroupDropout`` leaves
            them.
        side: places a side, even.

    Returns:
        (B, 1 + side ** 2 / 4, W), row by row, or a quarter of what was left.
    """
    count, width = len(tokens), tokens.shape[-1]
    cls, places = tokens[:, :1], tokens[:, 1:]
    if places.shape[1] == side * side:
        half = side // 2
        means = places.reshape(count, half, 2, half, 2, width).mean(dim=(2, 4)).flatten(1, 2)
    else:
        means = places.reshape(count, -1, 4, width).mean(dim=2)
    return torch.cat([cls, means], dim=1)


class MergingBlock(ResidualAttentionBlock):  # type: ignore[misc]
    """A block of open_clip that merges its tokens first."""

    side: int

    def forward(self, q_x: Tensor, *others: Any, **named: Any) -> Tensor:
        """(B, 1 + side ** 2, W) to (B, 1 + side ** 2 / 4, W)."""
        return self.attend(merged(q_x, self.side), *others, **named)

    def attend(self, tokens: Tensor, *others: Any, **named: Any) -> Tensor:
        """The block itself, over tokens that are merged already: (B, L, W)."""
        output: Tensor = super().forward(tokens, *others, **named)
        return output


def merging_blocks(blocks: Iterable[nn.Module]) -> tuple[int, ...]:
    """The indices of the blocks that merge their tokens first."""
    return tuple(index for index, block in enumerate(blocks) if isinstance(block, MergingBlock))


def merge_from(visual: Any, index: int) -> None:
    """Let block ``index`` of an open_clip vision transformer merge, in place; weights and names stay.

    Raises:
        ValueError: the places a side are odd in number.
    """
    side = int(visual.grid_size[0]) >> len(merging_blocks(visual.transformer.resblocks[:index]))
    if side % 2:
        raise ValueError(f"{side} places a side cannot be halved")
    block = visual.transformer.resblocks[index]
    block.__class__ = MergingBlock  # it has no weights of its own, so nothing needs copying
    block.side = side


class GroupDropout(nn.Module):
    """Patch dropout (FLIP, Li et al. 2023) that keeps whole squares of 2 x 2 places, so that they can merge.

    The output lists the kept squares one after another: (B, 1 + side ** 2, W) to (B, 1 + 4 * count, W).
    """

    def __init__(self, keep: float, side: int) -> None:
        super().__init__()
        self.side = side
        self.count = max(1, int(keep * (side // 2) ** 2))

    def forward(self, tokens: Tensor) -> Tensor:
        """Draw other squares for each picture; only in training, like every dropout."""
        if not self.training or self.count == (self.side // 2) ** 2:  # all, and so row by row
            return tokens
        count, half, width = len(tokens), self.side // 2, tokens.shape[-1]
        squares = tokens[:, 1:].reshape(count, half, 2, half, 2, width).permute(0, 1, 3, 2, 4, 5)
        squares = squares.reshape(count, half * half, 4, width)
        chosen = torch.rand(count, half * half).topk(self.count, dim=-1).indices
        places = squares[torch.arange(count)[:, None], chosen].flatten(1, 2)
        return torch.cat([tokens[:, :1], places], dim=1)
