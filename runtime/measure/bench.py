"""How fast graphs run here: several side by side, alternately, so that a busy machine slows all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grmp_edge.bundle import Bundle
from grmp_edge.errors import BackendError, UsageError, first_line
from grmp_edge.runtime.backends import BackendOptions, load_onnxruntime, open_backend

__all__ = ["BenchConfig", "Runner", "Timing", "bench_bundle", "compare", "graph_runner", "open_session"]

Runner = Callable[[npt.NDArray[np.uint8]], object]


@dataclass(frozen=True)
class BenchConfig:
    """What is measured."""

    batches: tuple[int, ...] = (1, 8)  # one camera frame; a folder of pictures
    # Enough for a steady median; the first run of a batch size, which allocates, is not counted.
    runs: int = 11
    threads: int | None = None  # None: onnxruntime's choice, one for each physical core

    def __post_init__(self) -> None:
        if not self.batches or min(self.batches) < 1 or self.runs < 1 or (self.threads or 1) < 1:
            raise UsageError("batches, runs and threads must be 1 or more")


@dataclass(frozen=True)
class Timing:
    """The measured speed of one graph at one batch size."""

    name: str
    batch: int
    runs: int
    median_ms: float  # of a run on the whole batch
    fastest_ms: float
    images_per_s: float  # at the median
    ratio: float  # median over the runs of this time / the first graph's time in the same round


def open_session(model: Path | bytes, threads: int | None = None, optimize: bool = True) -> Any:
    """An onnxruntime session on the CPU.

    Args:
        model: an ONNX file or its content.
        threads: for the operators; None is onnxruntime's choice.
        optimize: False keeps every node as written, casts included.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        BackendError: the graph does not load.
    """
    ort = load_onnxruntime("cpu")
    settings = ort.SessionOptions()
    level = ort.GraphOptimizationLevel
    settings.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    settings.intra_op_num_threads = threads or 0
    # As in scoring; and a waiting session must not take the cores from the one being measured.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.log_severity_level = 4
    source = str(model) if isinstance(model, Path) else model
    try:
        return ort.InferenceSession(source, sess_options=settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base but this
        name = str(model) if isinstance(model, Path) else "the graph"
        reason = first_line(error)
        raise BackendError(f"{name}: onnxruntime {ort.__version__} cannot load it: {reason}") from None


def graph_runner(session: Any) -> Runner:
    """A function that runs a session of one input on a batch and gives its first output."""
    name = session.get_inputs()[0].name
    return lambda batch: session.run(None, {name: batch})[0]


def compare(
    runners: Mapping[str, Runner],
    size: int,
    config: BenchConfig,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Timing]:
    """Time runners on the same random pictures, uint8 (batch, size, size, 3), in turn.

    The ratio of each is to the first runner, taken within each round and then as a median.
    """
    timings = []
    rng = np.random.default_rng(0)
    for batch in config.batches:
        images = rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
        for name, run in runners.items():
            progress(f"batch {batch}: warming up {name}")
            run(images)
        times: dict[str, list[float]] = {name: [] for name in runners}
        for index in range(config.runs):
            progress(f"batch {batch}: round {index + 1} of {config.runs}")
            for name, run in runners.items():
                times[name].append(_seconds(run, images))
        first = next(iter(times.values()))
        timings += [_timing(name, batch, measured, first) for name, measured in times.items()]
    return timings


def bench_bundle(
    bundle: Bundle,
    config: BenchConfig,
    precisions: Sequence[str] | None = None,
    progress: Callable[[str], None] = lambda _: None,
    provider: str = "cpu",
) -> list[Timing]:
    """Time the graphs of a bundle, the first listed being the one to compare with.

    Raises:
        BackendError: the provider does not work here, or a graph does not load.
    """
    chosen: Iterable[str] = precisions or tuple(bundle.graphs)
    runners: dict[str, Runner] = {}
    for precision in chosen:
        progress(f"loading {precision}")
        options = BackendOptions(provider, config.threads)
        path, graph = bundle.graph(precision), bundle.graphs[precision]
        runners[precision] = open_backend(path, graph, bundle.input_size, options, bundle).run
    return compare(runners, bundle.input_size, config, progress)


def _seconds(run: Runner, images: npt.NDArray[np.uint8]) -> float:
    start = time.perf_counter()
    run(images)
    return time.perf_counter() - start


def _timing(name: str, batch: int, times: Sequence[float], first: Sequence[float]) -> Timing:
    median = statistics.median(times)
    ratio = statistics.median(own / other for own, other in zip(times, first, strict=True))
    return Timing(
        name=name,
        batch=batch,
        runs=len(times),
        median_ms=round(median * 1e3, 3),
        fastest_ms=round(min(times) * 1e3, 3),
        images_per_s=round(batch / median, 2),
        ratio=round(ratio, 4),
    )
