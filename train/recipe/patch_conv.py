"""A patch embedding that trains quickly on a CPU."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PatchConv2d", "as_patches"]


class PatchConv2d(nn.Conv2d):
    """A convolution whose stride is its kernel, computed as one matrix product: the same to float rounding.

    The gradient of its weight alone took a tenth of a step of the backbone's training as a convolution.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, width, H / patch, W / patch)."""
        n, c, height, width = input.shape
        p, q = (int(side) for side in self.kernel_size)
        rows, columns = height // p, width // q
        patches = input.view(n, c, rows, p, columns, q).permute(0, 2, 4, 1, 3, 5)
        embedded = F.linear(patches.reshape(n, rows * columns, c * p * q), self.weight.flatten(1), self.bias)
        return embedded.transpose(1, 2).reshape(n, -1, rows, columns)


def as_patches(conv: nn.Conv2d) -> PatchConv2d:
    """Make the same layer; the two share their weights.

    Raises:
        ValueError: its patches overlap or leave gaps.
    """
    if tuple(conv.stride) != tuple(conv.kernel_size) or any(conv.padding):
        raise ValueError(f"stride {conv.stride} and padding {conv.padding}: no patch embedding")
    size = (conv.kernel_size[0], conv.kernel_size[1])
    made = PatchConv2d(conv.in_channels, conv.out_channels, size, size, bias=conv.bias is not None)
    made.weight, made.bias = conv.weight, conv.bias
    return made
