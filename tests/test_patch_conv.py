"""The patch embedding as one product, against the convolution it stands for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from grmp_edge.train.recipe.objective import normalise
from grmp_edge.train.recipe.patch_conv import as_patches


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kernel", [(4, 4), (2, 3)])
def test_forward_and_gradients_are_the_convolution_s(bias: bool, kernel: tuple[int, int]) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, kernel, stride=kernel, bias=bias)
    quick = as_patches(conv)
    assert quick.weight is conv.weight and quick.bias is conv.bias
    x = torch.randn(2, 3, 4 * kernel[0], 5 * kernel[1])
    wanted = torch.randn(2, 8, 4, 5)
    found = []
    for layer in (conv, quick):
        pixels = x.clone().requires_grad_()
        conv.zero_grad()  # to None: each gradient is a new tensor
        answer = layer(pixels)
        (answer * wanted).sum().backward()
        found.append([answer.detach(), pixels.grad, *(p.grad for p in conv.parameters())])
    assert found[0][0].shape == (2, 8, 4, 5)
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_a_convolution_that_overlaps_is_refused() -> None:
    with pytest.raises(ValueError, match="stride"):
        as_patches(nn.Conv2d(3, 8, 4, stride=2))


def test_pictures_are_normalised_by_clip_s_mean_and_deviation() -> None:
    images = torch.randint(0, 256, (2, 5, 7, 3), dtype=torch.uint8)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073], dtype=torch.float64)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711], dtype=torch.float64)
    expected = ((images.double() / 255 - mean) / std).movedim(3, 1)
    found = normalise(images)
    assert found.is_contiguous() and found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
