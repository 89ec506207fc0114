"""Folded against unfolded and against plain CLIP: speed, multiply-adds and agreement of one backbone.

The graphs that folding is compared with come from the same emission code and are deliberately good baselines:
biases, scales and the pixel normalisation are folded in them too, and the published network gets its prompts
already projected.
"""

from __future__ import annotations

import gc
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn

from grmp_edge.export.fold import fold
from grmp_edge.export.gate_images import gate_images
from grmp_edge.export.graph.builder import OPSET, GraphBuilder
from grmp_edge.export.graph.count import multiply_adds
from grmp_edge.export.graph.emit import Emitter, build_onnx
from grmp_edge.export.graph.save import serialize
from grmp_edge.export.precision.activations import calibrate
from grmp_edge.export.precision.quantize import activation_scale, build_int8
from grmp_edge.preprocess import Preprocess
from grmp_edge.runtime.backends import Runner, graph_runner, open_session
from grmp_edge.runtime.bench import BenchConfig, Timing, compare
from grmp_edge.train.network.backbone import BackboneConfig, load_backbone
from grmp_edge.train.network.model import GrmpIqa

__all__ = ["FoldBench", "bench_fold", "build_plain", "build_unfolded", "trace_unfolded"]

UNFOLDED = "unfolded"
_CALIBRATED = 8  # of the pictures below; speed does not depend on the ranges
_CHECKED = 32  # pictures on which the graphs are compared before they are timed


@dataclass(frozen=True)
class FoldBench:
    """What was measured: an entry for each graph, in ``timings`` for each graph and batch size."""

    backbone: str
    images: str  # on which the scores were compared
    multiply_adds: dict[str, int]  # for one picture
    max_difference: dict[str, float]  # of absolute scores to PyTorch, unfolded; plain CLIP has none
    timings: list[Timing]  # ratios are to the unfolded graph

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def bench_fold(
    backbone: BackboneConfig,
    config: BenchConfig,
    eager: bool = False,
    images: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
    int8: bool = False,
) -> FoldBench:
    """Measure the graphs of a backbone with random prompts, alternately in one process.

    Args:
        backbone: with random weights or real ones; speed does not depend on them.
        config: batches, runs and threads.
        eager: also time PyTorch's unfolded network.
        images: a folder or csv of pictures to compare scores on; procedural ones by default.
        progress: called with a description of each step.
        int8: also time the folded network with eight-bit products: static, not smoothed, all layers.

    Raises:
        ModelError: the backbone cannot be loaded or prompted.
    """
    progress(f"building {backbone.name}")
    torch.manual_seed(backbone.random_seed)
    model = GrmpIqa(load_backbone(backbone)).eval()
    if config.threads:
        torch.set_num_threads(config.threads)
    size = model.image.size
    pixels, source = gate_images(images, (), Preprocess.for_size(size), _CHECKED)
    with torch.no_grad():
        batches = np.array_split(pixels, -(-len(pixels) // 8))
        reference = np.concatenate([model(torch.from_numpy(part), unfolded=True).numpy() for part in batches])

    counts: dict[str, int] = {}
    differences: dict[str, float] = {}
    runners: dict[str, Runner] = {}

    def add(name: str, graph: onnx.ModelProto, check: bool = True) -> None:
        progress(f"loading the graph: {name}")
        counts[name] = multiply_adds(graph)
        runners[name] = graph_runner(open_session(serialize(graph), config.threads))
        if check:
            scores = np.concatenate([runners[name](part) for part in batches])
            differences[name] = float(np.abs(scores - reference).max())
        del graph
        gc.collect()

    add(UNFOLDED, build_unfolded(model))
    add("plain CLIP", build_plain(model), check=False)
    folded = fold(model)
    add("folded", build_onnx(folded))
    if int8:
        with tempfile.TemporaryDirectory() as folder:
            seen = calibrate(folded, pixels[:_CALIBRATED], Path(folder), progress)
        scales = {name: activation_scale(values) for name, values in seen.items()}
        add("folded int8", build_int8(folded, "static", scales))
    del folded
    sessions = {}
    for batch in config.batches:
        progress(f"tracing the unfolded network with torch.onnx at batch {batch}")
        traced = trace_unfolded(model, batch)
        counts["torch.onnx"] = multiply_adds(traced)
        sessions[batch] = graph_runner(open_session(serialize(traced), config.threads))
        del traced
    runners["torch.onnx"] = lambda pixels: sessions[len(pixels)](pixels)
    if eager:
        runners["PyTorch"] = lambda pixels: _eager(model, pixels)
    timings = compare(runners, size, config, progress)
    return FoldBench(backbone.name, source, counts, differences, timings)


@torch.no_grad()
def _eager(model: GrmpIqa, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    scores: npt.NDArray[np.float32] = model(torch.from_numpy(pixels), unfolded=True).numpy()
    return scores


def build_plain(model: GrmpIqa) -> onnx.ModelProto:
    """CLIP's image tower without prompts, every block in full, with the same uint8 input and score output."""
    folded = fold(model, prompts=False)
    builder = GraphBuilder()
    emitter = Emitter(builder, folded)
    x = emitter.embed("f32")
    for index, block in enumerate(folded.blocks):
        x = emitter.block(f"block{index}", x, block, "f32")
    scores = emitter.head(emitter.class_token("cls", x))
    return builder.model("plain-clip", scores, {})


def build_unfolded(model: GrmpIqa) -> onnx.ModelProto:
    """The network as published: each block's prompts are tokens that pass through the whole block."""
    plain = fold(model, prompts=False)
    norm = model.prompt_norm
    arrays = [tensor.detach().cpu().numpy() for tensor in (norm.weight, norm.bias)]
    folded = replace(
        plain, prompt_norm=replace(plain.ln_post, weight=arrays[0], bias=arrays[1], eps=norm.eps)
    )
    count, width = model.config.visual_tokens, folded.width
    g = GraphBuilder()
    emitter = Emitter(g, folded)
    x, skipped = emitter.embed("f32"), 1
    for index, block in enumerate(folded.blocks):
        name = f"block{index}"
        with torch.no_grad():
            prompts = model.projected_prompts(index).cpu().numpy()
        tokens = emitter.repeated(f"{name}.prompts", g.constant(f"{name}.tokens", prompts[None, None], "f32"))
        tokens = g.op("Reshape", f"{name}.prompts.tokens", tokens, g.ints(0, count, width))
        end = int(np.iinfo(np.int64).max)
        rest = g.op("Slice", f"{name}.rest", x, g.ints(skipped), g.ints(end), g.ints(1))
        cls = emitter.class_token(f"{name}.cls", x)
        x = g.op("Concat", f"{name}.in", cls, tokens, rest, axis=1)
        x, skipped = emitter.block(name, x, block, "f32"), 1 + count
    scores = emitter.head(emitter.class_token("cls", x))
    return g.model("unfolded", scores, {})


def trace_unfolded(model: GrmpIqa, batch: int) -> onnx.ModelProto:
    """The network as published, written by ``torch.onnx.export``: what one would do without this package.

    Only the text features are constants in it; it reads uint8 pixels like the other graphs. Tracing fixes the
    batch size.
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
