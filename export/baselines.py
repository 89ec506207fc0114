"""What folding is compared with, through the same emission code: plain CLIP, and the network as published.

Both are deliberately good baselines: biases, scales and the pixel normalisation are folded in them too, and
the published network gets its projected prompts ready-made.
"""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from grmp_edge.export.fold import fold
from grmp_edge.export.graph.builder import OPSET, GraphBuilder
from grmp_edge.export.graph.emit import Emitter
from grmp_edge.train.network.model import GrmpIqa

__all__ = ["build_plain", "build_unfolded", "trace_unfolded"]


def build_plain(model: GrmpIqa) -> onnx.ModelProto:
    """CLIP's image tower without prompts, every block whole, with the same uint8 input and score output."""
    folded = fold(model, prompts=False)
    builder = GraphBuilder()
    emitter = Emitter(builder, folded)
    x = emitter.embed()
    for index, block in enumerate(folded.blocks):
        x = emitter.block(f"block{index}", emitter.enter(index, x), block, "f32")
    scores = emitter.head(emitter.class_token("cls", x))
    return builder.model("plain-clip", scores, ("batch",), {})


def build_unfolded(model: GrmpIqa) -> onnx.ModelProto:
    """The network as published: each block's prompts inserted as tokens that flow through the whole block."""
    plain = fold(model, prompts=False)
    norm = model.prompt_norm
    arrays = [tensor.detach().cpu().numpy() for tensor in (norm.weight, norm.bias)]
    folded = replace(
        plain, prompt_norm=replace(plain.ln_post, weight=arrays[0], bias=arrays[1], eps=norm.eps)
    )
    count, width = model.config.visual_tokens, folded.width
    g = GraphBuilder()
    emitter = Emitter(g, folded)
    x, skipped = emitter.embed(), 1
    for index, block in enumerate(folded.blocks):
        name = f"block{index}"
        with torch.no_grad():
            prompts = model.projected_prompts(index).cpu().numpy()
        tokens = emitter.repeated(f"{name}.prompts", g.constant(f"{name}.tokens", prompts[None, None], "f32"))
        tokens = g.op("Reshape", f"{name}.prompts.tokens", tokens, g.ints(0, count, width))
        end = int(np.iinfo(np.int64).max)
        rest = g.op("Slice", f"{name}.rest", x, g.ints(skipped), g.ints(end), g.ints(1))
        if index in folded.merging:
            rest = emitter.merge(index, rest)
        cls = emitter.class_token(f"{name}.cls", x)
        x = g.op("Concat", f"{name}.in", cls, tokens, rest, axis=1)
        x, skipped = emitter.block(name, x, block, "f32"), 1 + count
    scores = emitter.head(emitter.class_token("cls", x))
    return g.model("unfolded", scores, ("batch",), {})


def trace_unfolded(model: GrmpIqa, batch: int) -> onnx.ModelProto:
    """The network as published, written by ``torch.onnx.export``: what one does without this package.

    Only the text features are constants in it already; the pixels come as uint8 as in the other graphs.
    Tracing fixes the batch size.
    """
    size = model.image.size
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the exporter does not know the fused operator
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
            file = str(Path(folder, "traced.onnx"))
            warnings.simplefilter("ignore")  # the tracing exporter announces its age
            torch.onnx.export(
                _Unfolded(model).eval(),
                (torch.zeros(batch, size, size, 3, dtype=torch.uint8),),
                file,
                input_names=["images"],
                output_names=["scores"],
                opset_version=OPSET,
                dynamo=False,  # the newer exporter needs a further package
            )
            return onnx.load(file)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class _Unfolded(nn.Module):
    """The score by inserted prompts, with constant text features."""

    def __init__(self, model: GrmpIqa) -> None:
        super().__init__()
        self.model = model
        self.text = model.quality_features().detach()

    def forward(self, images: Tensor) -> Tensor:
        features = self.model.image_features_unfolded(self.model.pixels(images))
        return self.model.logits(features, self.text).softmax(dim=-1)[:, 0]
