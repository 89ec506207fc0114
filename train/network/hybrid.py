"""The embedded backbone: EfficientNet-Lite0's stages as the patch embedding of a small CLIP ViT.

What flows is 1 + 15 + 49 tokens: the class token, one of statistics for each stage of the stem, and 7 x 7
places. Means and deviations tell noise, blur and compression better than the places do, so they enter the
class token directly, too: the feature is at least a linear map of them. Above the stem it is an ordinary
vision transformer with the prompts of GRMP-IQA.
"""

from __future__ import annotations

import torch
from open_clip.model import CLIP
from open_clip.transformer import Transformer
from torch import Tensor, nn

from grmp_edge.train.network.stem import CHANNELS, STATISTICS, Stem
from grmp_edge.train.network.words import CAUSES
from grmp_edge.views import Aggregate

__all__ = ["SIDE", "SIZE", "WIDTH", "HybridVisual", "StemEmbedding", "build_hybrid"]

WIDTH, HEADS, LAYERS, EMBED_DIM = 192, 3, 2, 256
SIDE = 7  # places a side
SIZE = 224  # pixels a side
NATIVE = 4  # crops beside the whole
# Narrow: the sentences are short and use few words. Context and vocabulary are the standard tokenizer's.
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 3}


class StemEmbedding(nn.Module):
    """A stem's outputs to tokens (B, 65, W), class token first.

    All inputs are standardised by constants of the training pictures, which fold into the weights.
    """

    fine_mean: Tensor
    fine_std: Tensor
    grid_mean: Tensor
    grid_std: Tensor
    stats_mean: Tensor
    stats_std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(WIDTH))
        self.positional_embedding = nn.Parameter(torch.randn(1 + len(CHANNELS) + SIDE**2, WIDTH) * 0.02)
        self.fine = nn.Conv2d(112, WIDTH, 2, 2, bias=False)  # 14 x 14 to 7 x 7
        self.grid = nn.Conv2d(192, WIDTH, 1, bias=False)
        self.to_class = nn.Linear(STATISTICS, WIDTH, bias=False)
        self.to_tokens = nn.ModuleList(nn.Linear(2 * channels, WIDTH, bias=False) for channels in CHANNELS)
        for name, count in (("fine", 112), ("grid", 192), ("stats", STATISTICS)):
            self.register_buffer(f"{name}_mean", torch.zeros(count))
            self.register_buffer(f"{name}_std", torch.ones(count))

    def forward(self, fine: Tensor, grid: Tensor, stats: Tensor) -> Tensor:
        """(B, 112, 14, 14), (B, 192, 7, 7) and (B, 2976) to (B, 65, W)."""
        fine = (fine - self.fine_mean[:, None, None]) / self.fine_std[:, None, None]
        grid = (grid - self.grid_mean[:, None, None]) / self.grid_std[:, None, None]
        stats = self.standardised(stats)
        places = (self.fine(fine) + self.grid(grid)).flatten(2).transpose(1, 2)
        parts = torch.split(stats, [2 * channels for channels in CHANNELS], dim=1)
        tokens = torch.stack([layer(part) for layer, part in zip(self.to_tokens, parts, strict=True)], dim=1)
        cls = (self.class_embedding + self.to_class(stats))[:, None]
        embedded: Tensor = torch.cat([cls, tokens, places], dim=1) + self.positional_embedding
        return embedded

    def standardised(self, stats: Tensor) -> Tensor:
        """Statistics (B, 2976) as they enter the linear layers."""
        standardised: Tensor = (stats - self.stats_mean) / self.stats_std
        return standardised


class HybridVisual(nn.Module):
    """The image tower, with the names that open_clip's vision transformer has for the same parts."""

    image_size = (SIZE, SIZE)
    output_dim = EMBED_DIM

    def __init__(self) -> None:
        super().__init__()
        self.stem = Stem()
        self.embedding = StemEmbedding()
        self.ln_pre = nn.LayerNorm(WIDTH)
        self.transformer = Transformer(WIDTH, LAYERS, HEADS, mlp_ratio=4.0)
        self.ln_post = nn.LayerNorm(WIDTH)
        self.proj = nn.Parameter(torch.randn(WIDTH, EMBED_DIM) * WIDTH**-0.5)

    def embed(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, 224, 224) to tokens (B, 65, W) after ln_pre."""
        return self.read(pixels)[0]

    def read(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """As ``embed``, and the standardised statistics (B, 2976)."""
        fine, grid, stats = self.stem(pixels)
        embedded: Tensor = self.ln_pre(self.embedding(fine, grid, stats))
        return embedded, self.embedding.standardised(stats)


def build_hybrid() -> CLIP:
    """Make the network with random weights from torch's global generator.

    Returns:
        A ``CLIP`` of open_clip with this image tower, and the causes' scales and biases and the statistics'
        row as parameters of its own; float32 on the CPU, in training mode. Pictures: (N, 3, 224, 224)
        normalised by "lite"; texts: (N, 77) int64 of the standard tokenizer; features (N, 256).
    """
    small = {"width": 64, "head_width": 64, "layers": 1, "patch_size": 112, "image_size": SIZE}
    model = CLIP(embed_dim=EMBED_DIM, vision_cfg=small, text_cfg=dict(TEXT))
    model.visual = HybridVisual()
    model.native, model.aggregate = NATIVE, Aggregate(0.5, 0.5)
    # From the standardised statistics straight to the score's logit: what a ridge regression found.
    model.statistics_row = nn.Parameter(torch.zeros(STATISTICS), requires_grad=False)
    model.cause_scale = nn.Parameter(torch.full((len(CAUSES),), 2.5))  # its exponential multiplies
    model.cause_bias = nn.Parameter(torch.full((len(CAUSES),), -1.0))
    return model
