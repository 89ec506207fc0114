"""Choosing an eight-bit graph: both methods are tried, sensitive layers stay float32, the gate decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from grmp_edge.errors import ParityError
from grmp_edge.export.fold import FoldedModel
from grmp_edge.export.graph.save import data_file, discard, save_graph
from grmp_edge.export.parity import Gate, graph_readings, link_report
from grmp_edge.export.precision.activations import calibrate
from grmp_edge.export.precision.quantize import (
    GPU_OPSETS,
    GpuMethod,
    Method,
    activation_scale,
    build_int8,
    layers,
    smooth,
)
from grmp_edge.parity import Int8GraphReport, Int8Report, Verdict
from grmp_edge.runtime.backends import graph_runner, open_session
from grmp_edge.runtime.bench import BenchConfig, compare

__all__ = ["Int8Config", "Int8Graph", "choose_gpu", "choose_int8"]


@dataclass(frozen=True)
class Int8Config:
    """How eight-bit graphs are made."""

    # Strengths of SmoothQuant to try; 0 is without. 0.85 was the best of 0.3 to 0.85 on the embedded model.
    smoothing: tuple[float, ...] = (0.0, 0.5, 0.85)
    # Layers return to float32 until the mean difference is this share of what the gate allows. Other pictures
    # than the gate's will be scored, and a single early layer can cause nearly all of the difference.
    target: float = 0.25
    # At most this share of the layer groups returns: beyond it int8 saves too little to be worthwhile.
    most_wide: float = 0.5
    images: int = 64  # for calibration, where a source is given; the gate has fewer
    ranking_images: int = 8  # of the gate's; ranking needs fewer than judging
    # Dynamic scales cost a pass over each activation, TensorRT cannot read them, and a picture's score
    # depends on its neighbours in the batch. They are chosen only if this much faster, or if static fails.
    dynamic_gain: float = 0.25
    timing: BenchConfig = field(default_factory=lambda: BenchConfig(batches=(1, 8), runs=5))


@dataclass(frozen=True)
class Int8Graph:
    """The best eight-bit graph of one method."""

    method: Method
    smoothing: float
    wide: tuple[str, ...]  # groups of layers in float32, such as block0.mlp.fc
    file: Path
    verdict: Verdict
    time_ratio: Mapping[int, float]  # by batch size, to float32 on this CPU

    def to_json(self) -> Int8GraphReport:
        """Plain JSON."""
        return {
            "smoothing": self.smoothing,
            "float32_layers": list(self.wide),
            "time_ratio": {str(batch): ratio for batch, ratio in self.time_ratio.items()},
            **link_report(self.verdict),
        }


def choose_int8(
    folded: FoldedModel,
    float32: Path,
    calibration: npt.NDArray[np.uint8],
    gate: Gate,
    file: Path,
    config: Int8Config,
    metadata: Mapping[str, str],
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[Int8Graph, Int8Report]:
    """Write the better of a static and a dynamic eight-bit graph to ``file``.

    Args:
        folded: the network.
        float32: its graph in float32, to compare the time with.
        calibration: pictures, uint8 (n, S, S, 3).
        gate: what to compare scores with.
        file: what to write; candidates are written beside it and removed.
        config: how to make and choose it.
        metadata: strings for the model's metadata_props.
        progress: called with a description of each step.

    Returns:
        The chosen graph, and a report on both.

    Raises:
        ParityError: neither passes the gate; the message lists what was tried.
    """
    search = _Search(folded, calibration, gate, file.parent, config, metadata, progress)
    methods: tuple[Method, ...] = ("static", "dynamic")
    tried = [search.best(method) for method in methods]
    progress("timing the eight-bit graphs on this CPU")
    files: dict[str, Path] = {"fp32": float32}
    files.update((graph.method, graph.file) for graph in tried)
    runners = {name: graph_runner(open_session(path, config.timing.threads)) for name, path in files.items()}
    ratios: dict[str, dict[int, float]] = {name: {} for name in files}
    for timing in compare(runners, folded.size, config.timing):
        ratios[timing.name][timing.batch] = timing.ratio
    del runners
    static, dynamic = (replace(graph, time_ratio=ratios[graph.method]) for graph in tried)
    passed = [graph for graph in (static, dynamic) if not graph.verdict.problem]
    if not passed:
        raise ParityError(
            f"no eight-bit graph scores as PyTorch does: static {static.verdict.problem}; dynamic "
            f"{dynamic.verdict.problem}; tried smoothing {', '.join(map(str, config.smoothing))}, and up to "
            f"{max(len(static.wide), len(dynamic.wide))} groups of layers in float32",
            "nothing was written; give more varied pictures with --calibration, or export without --int8",
        )
    chosen = passed[0]
    if len(passed) == 2:
        gain = 1 - float(np.mean([dynamic.time_ratio[b] / static.time_ratio[b] for b in static.time_ratio]))
        chosen = dynamic if gain > config.dynamic_gain else static
    if data_file(chosen.file).exists():  # the graph names it, so neither can be renamed
        search.write(chosen.method, chosen.smoothing, frozenset(chosen.wide), file)
    else:
        chosen.file.replace(file)
    report: Int8Report = {
        "method": chosen.method,
        "static": static.to_json(),
        "dynamic": dynamic.to_json(),
    }
    for graph in (static, dynamic):
        discard(graph.file)
    return replace(chosen, file=file), report


def choose_gpu(
    folded: FoldedModel,
    calibration: npt.NDArray[np.uint8],
    gate: Gate,
    file: Path,
    config: Int8Config,
    metadata: Mapping[str, str],
    method: GpuMethod,
    progress: Callable[[str], None] = lambda _: None,
) -> Int8Graph:
    """Write the best graph of a method for GPUs to ``file``; arguments as of :func:`choose_int8`.

    It is judged in a simulation that rounds and overflows as half-precision hardware does.
    """
    search = _Search(folded, calibration, gate, file.parent, config, metadata, progress)
    graph = search.best(method)
    search.write(method, graph.smoothing, frozenset(graph.wide), file)
    discard(graph.file)
    return replace(graph, file=file)


class _Search:
    """Calibrates each smoothing once, and searches the best graph of a method."""

    def __init__(
        self,
        folded: FoldedModel,
        calibration: npt.NDArray[np.uint8],
        gate: Gate,
        folder: Path,
        config: Int8Config,
        metadata: Mapping[str, str],
        progress: Callable[[str], None],
    ) -> None:
        self.folded, self.gate, self.folder = folded, gate, folder
        self.config, self.metadata, self.progress = config, metadata, progress
        seen = calibrate(folded, calibration, folder, progress)
        self.smoothed: dict[float, FoldedModel] = {}
        self.scales: dict[float, dict[str, float]] = {}
        for strength in config.smoothing:
            network, inputs = folded, seen
            if strength:
                network = smooth(folded, seen, strength)
                inputs = calibrate(network, calibration, folder, progress)
            self.smoothed[strength] = network
            self.scales[strength] = {name: activation_scale(values) for name, values in inputs.items()}

    def best(self, method: Method) -> Int8Graph:
        """The best smoothing, with as few layers in float32 as the target allows."""
        verdicts: dict[float, Verdict] = {}
        for strength in self.config.smoothing:
            words = f"checking {method} int8" + (f", smoothing {strength}" if strength else "")
            verdicts[strength] = self._judge(method, strength, frozenset(), words)
        # A graph that overflows is worse than any other.
        strength = min(verdicts, key=lambda each: np.nan_to_num(verdicts[each].mean_abs, nan=np.inf))
        wide, verdict = self._widen(method, strength, verdicts[strength])
        file = self.folder / f"{method}.onnx"
        self.write(method, strength, frozenset(wide), file)
        return Int8Graph(method, strength, tuple(wide), file, verdict, {})

    def _widen(self, method: Method, strength: float, verdict: Verdict) -> tuple[list[str], Verdict]:
        if self._enough(verdict):
            return [], verdict
        names = layers(self.folded)
        count = min(self.config.ranking_images, len(self.gate.images))
        harm = {}
        for name in names:
            self.progress(f"measuring {method} int8, {name} alone")
            readings = self._readings(method, strength, frozenset(names) - {name}, count)
            difference = float(np.abs(readings - self.gate.readings[:count]).mean())
            harm[name] = np.nan_to_num(difference, nan=np.inf)
        ranked = sorted(names, key=lambda name: -harm[name])
        most = max(1, int(len(names) * self.config.most_wide))

        def judge(count: int) -> Verdict:
            words = f"checking {method} int8, {count} layers in float32"
            return self._judge(method, strength, frozenset(ranked[:count]), words)

        low, high = 0, 0
        while not self._enough(verdict) and high < most:
            low, high = high, min(max(1, 2 * high), most)
            verdict = judge(high)
        while self._enough(verdict) and high - low > 1:  # doubling may have gone too far
            middle = (low + high) // 2
            fewer = judge(middle)
            if self._enough(fewer):
                high, verdict = middle, fewer
            else:
                low = middle
        return sorted(ranked[:high], key=names.index), verdict

    def _enough(self, verdict: Verdict) -> bool:
        allowed = self.gate.config.limits["int8"].mean
        return not verdict.problem and (allowed is None or verdict.mean_abs <= allowed * self.config.target)

    def _judge(self, method: Method, strength: float, wide: frozenset[str], words: str) -> Verdict:
        self.progress(words)
        readings = self._readings(method, strength, wide, len(self.gate.images))
        return self.gate.judge_readings("int8", readings)

    def _readings(
        self, method: Method, strength: float, wide: frozenset[str], count: int
    ) -> npt.NDArray[np.float64]:
        file, simulated = self.folder / "candidate.onnx", method in GPU_OPSETS
        self.write(method, strength, wide, file, simulated)
        try:
            return graph_readings(file, self.gate.images[:count], self.gate.config.batch, not simulated)
        finally:
            discard(file)

    def write(
        self, method: Method, strength: float, wide: frozenset[str], file: Path, simulated: bool = False
    ) -> None:
        """Write the graph of a method and smoothing with the layers ``wide`` not in eight bits."""
        network, scales = self.smoothed[strength], self.scales[strength]
        save_graph(
            lambda weights: build_int8(network, method, scales, wide, self.metadata, weights, simulated), file
        )
