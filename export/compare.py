"""Folded against unfolded and against plain CLIP: speed, multiply-adds and agreement of one backbone."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

from grmp_edge.export.baselines import build_plain, build_unfolded, trace_unfolded
from grmp_edge.export.fold import fold
from grmp_edge.export.gate_images import gate_images
from grmp_edge.export.graph.count import multiply_adds
from grmp_edge.export.graph.emit import build_onnx
from grmp_edge.export.graph.save import serialize
from grmp_edge.export.precision.activations import calibrate
from grmp_edge.export.precision.quantize import activation_scale, build_int8
from grmp_edge.preprocess import Preprocess
from grmp_edge.runtime.measure.bench import BenchConfig, Runner, Timing, compare, graph_runner, open_session
from grmp_edge.train.network.backbone import BackboneConfig, load_backbone
from grmp_edge.train.network.model import GrmpIqa

__all__ = ["FoldBench", "bench_fold"]

UNFOLDED = "unfolded"
_CALIBRATED = 8  # of those below; speed does not depend on the ranges
_CHECKED = 32  # pictures on which the graphs are compared before they are timed


@dataclass(frozen=True)
class FoldBench:
    """What was measured: one entry a graph in the first two, one a graph and batch in the last."""

    backbone: str
    images: str  # what the scores were compared on
    multiply_adds: dict[str, int]  # of one picture
    max_difference: dict[str, float]  # absolute score against PyTorch unfolded; plain CLIP has none
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
    """Measure a backbone with random prompts, alternately in one process.

    Args:
        backbone: with random weights or real ones; speed does not depend on them.
        config: batches, runs and threads.
        eager: time PyTorch's unfolded network too.
        images: a folder or csv of pictures to compare scores on; procedural ones by default.
        progress: told of each step.
        int8: time the folded network with eight-bit products too: static, not smoothed, no layer kept.

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
        wanted = np.concatenate([model(torch.from_numpy(part), unfolded=True).numpy() for part in batches])

    counts: dict[str, int] = {}
    differences: dict[str, float] = {}
    runners: dict[str, Runner] = {}

    def take(name: str, graph: onnx.ModelProto, check: bool = True) -> None:
        progress(f"loading the graph: {name}")
        counts[name] = multiply_adds(graph)
        runners[name] = graph_runner(open_session(serialize(graph), config.threads))
        if check:
            scores = np.concatenate([np.asarray(runners[name](part)) for part in batches])
            differences[name] = float(np.abs(scores - wanted).max())
        del graph
        gc.collect()

    take(UNFOLDED, build_unfolded(model))
    take("plain CLIP", build_plain(model), check=False)
    folded = fold(model)
    take("folded", build_onnx(folded))
    if int8:
        with tempfile.TemporaryDirectory() as folder:
            seen = calibrate(folded, pixels[:_CALIBRATED], Path(folder), progress)
        scales = {name: activation_scale(found) for name, found in seen.items()}
        take("folded int8", build_int8(folded, "static", scales))
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
