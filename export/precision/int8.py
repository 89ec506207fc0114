"""Choosing an eight-bit graph: both ways are tried, what is sensitive stays float32, the gate decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grmp_edge.errors import ParityError
from grmp_edge.export.fold import FoldedModel
from grmp_edge.export.graph.save import data_file, discard, save_graph
from grmp_edge.export.parity import Gate, Link, graph_scores, link
from grmp_edge.export.precision.activations import calibrate
from grmp_edge.export.precision.quantize import Method, activation_scale, build_int8, layers, smooth
from grmp_edge.runtime.measure.bench import BenchConfig, compare, graph_runner, open_session

__all__ = ["Int8Config", "Int8Graph", "choose_int8"]


@dataclass(frozen=True)
class Int8Config:
    """How eight-bit graphs are made."""

    # Strengths of SmoothQuant to try; 0 is without. 0.85 was the best of 0.3 to 0.85 on the embedded model.
    smoothing: tuple[float, ...] = (0.0, 0.5, 0.85)
    # Layers go back to float32 until the mean difference is this share of what the gate allows, since other
    # pictures than the gate's will be scored, and one early layer can make nearly all of it.
    target: float = 0.25
    # Of the layers' groups at most this share goes back: past it int8 saves too little to bother with.
    most_kept: float = 0.5
    images: int = 64  # for calibration, where they are given; those of the gate are fewer
    ranking_images: int = 8  # of the gate's; ranking needs less than judging
    # Dynamic scales cost a pass over each activation, are unreadable for TensorRT, and make a picture's score
    # depend on its neighbours in the batch: to be kept they must be this much faster, or static must fail.
    dynamic_gain: float = 0.25
    timing: BenchConfig = field(default_factory=lambda: BenchConfig(batches=(1, 8), runs=5))


@dataclass(frozen=True)
class Int8Graph:
    """One eight-bit graph that was tried to the end."""

    method: Method
    smoothing: float
    kept: tuple[str, ...]  # groups of layers in float32, such as block0.mlp.fc
    file: Path
    link: Link
    time_ratio: Mapping[int, float]  # by batch, to float32 on this CPU

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "smoothing": self.smoothing,
            "float32_layers": list(self.kept),
            "time_ratio": {str(batch): ratio for batch, ratio in self.time_ratio.items()},
            **self.link.to_json(),
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
) -> tuple[Int8Graph, dict[str, Any]]:
    """Write the better of a static and a dynamic eight-bit graph to ``file``.

    Args:
        folded: the network.
        float32: its graph in float32, to compare the time with.
        calibration: uint8 (n, S, S, 3).
        gate: what to compare scores with.
        file: what to write; candidates are written beside it and removed.
        config: how.
        metadata: strings for the model's metadata_props.
        progress: told of each step.

    Returns:
        The graph, and both that were tried, as plain JSON.

    Raises:
        ParityError: neither passes the gate; the message says what was tried.
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
    passed = [graph for graph in (static, dynamic) if not graph.link.problem]
    if not passed:
        raise ParityError(
            f"no eight-bit graph scores as PyTorch does: static {static.link.problem}; dynamic "
            f"{dynamic.link.problem}; tried smoothing {', '.join(map(str, config.smoothing))}, and up to "
            f"{max(len(static.kept), len(dynamic.kept))} groups of layers in float32",
            "nothing was written; give more varied pictures with --calibration, or export without --int8",
        )
    chosen = passed[0]
    if len(passed) == 2:
        gain = 1 - float(np.mean([dynamic.time_ratio[b] / static.time_ratio[b] for b in static.time_ratio]))
        chosen = dynamic if gain > config.dynamic_gain else static
    if data_file(chosen.file).exists():  # the graph names it, so that it cannot be moved
        search.write(chosen.method, chosen.smoothing, frozenset(chosen.kept), file)
    else:
        chosen.file.replace(file)
    report: dict[str, Any] = {"method": chosen.method}
    report.update((graph.method, graph.to_json()) for graph in (static, dynamic))
    for graph in (static, dynamic):
        discard(graph.file)
    return replace(chosen, file=file), report


class _Search:
    """Calibrates each smoothing once and finds the best graph of a method."""

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
            network, found = folded, seen
            if strength:
                network = smooth(folded, seen, strength)
                found = calibrate(network, calibration, folder, progress)
            self.smoothed[strength] = network
            self.scales[strength] = {name: activation_scale(values) for name, values in found.items()}

    def best(self, method: Method) -> Int8Graph:
        """The best smoothing, with as few layers in float32 as the target allows."""
        links: dict[float, Link] = {}
        for strength in self.config.smoothing:
            words = f"checking {method} int8" + (f", smoothing {strength}" if strength else "")
            links[strength] = self._judge(method, strength, frozenset(), words)
        # A graph without a number is worse than any other.
        strength = min(links, key=lambda each: np.nan_to_num(links[each].mean_abs, nan=np.inf))
        kept, found = self._widen(method, strength, links[strength])
        file = self.folder / f"{method}.onnx"
        self.write(method, strength, frozenset(kept), file)
        return Int8Graph(method, strength, tuple(kept), file, found, {})

    def _widen(self, method: Method, strength: float, found: Link) -> tuple[list[str], Link]:
        if self._enough(found):
            return [], found
        names = layers(self.folded)
        count = min(self.config.ranking_images, len(self.gate.images))
        harm = {}
        for name in names:
            self.progress(f"measuring {method} int8, {name} alone")
            scores = self._scores(method, strength, frozenset(names) - {name}, count)
            difference = float(np.abs(scores - self.gate.reference[:count]).mean())
            harm[name] = np.nan_to_num(difference, nan=np.inf)
        ranked = sorted(names, key=lambda name: -harm[name])
        most = max(1, int(len(names) * self.config.most_kept))

        def judge(count: int) -> Link:
            words = f"checking {method} int8, {count} layers in float32"
            return self._judge(method, strength, frozenset(ranked[:count]), words)

        few, kept = 0, 0
        while not self._enough(found) and kept < most:
            few, kept = kept, min(max(1, 2 * kept), most)
            found = judge(kept)
        while self._enough(found) and kept - few > 1:  # doubling may have gone too far: each costs time
            middle = (few + kept) // 2
            fewer = judge(middle)
            if self._enough(fewer):
                kept, found = middle, fewer
            else:
                few = middle
        return sorted(ranked[:kept], key=names.index), found

    def _enough(self, found: Link) -> bool:
        allowed = self.gate.config.int8.mean
        return not found.problem and (allowed is None or found.mean_abs <= allowed * self.config.target)

    def _judge(self, method: Method, strength: float, keep: frozenset[str], words: str) -> Link:
        self.progress(words)
        scores = self._scores(method, strength, keep, len(self.gate.images))
        return link("int8", self.gate.reference, scores, self.gate.config)

    def _scores(
        self, method: Method, strength: float, keep: frozenset[str], count: int
    ) -> npt.NDArray[np.float64]:
        file = self.folder / "candidate.onnx"
        self.write(method, strength, keep, file)
        try:
            return graph_scores(file, self.gate.images[:count], self.gate.config.batch)
        finally:
            discard(file)

    def write(self, method: Method, strength: float, keep: frozenset[str], file: Path) -> None:
        """Write the graph of a method and smoothing with the layers ``keep`` in float32."""
        network, scales = self.smoothed[strength], self.scales[strength]
        save_graph(lambda weights: build_int8(network, method, scales, keep, self.metadata, weights), file)
