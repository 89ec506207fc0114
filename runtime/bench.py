"""How fast graphs run on this machine: they take turns, so that other load slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from grmp_edge.bundle import GPU_PRECISIONS, Bundle
from grmp_edge.errors import BundleError, GrmpError, UsageError
from grmp_edge.runtime.backends import Backend, BackendOptions, Runner, open_backend, resolve_provider

__all__ = ["BenchConfig", "BundleBench", "Timing", "bench_bundle", "compare"]


@dataclass(frozen=True)
class BenchConfig:
    """What is measured."""

    batches: tuple[int, ...] = (1, 8)  # one camera frame; a folder of pictures
    # Enough for a stable median. The first run of a batch size allocates and is not counted.
    runs: int = 11
    threads: int | None = None  # None: onnxruntime's choice, one per physical core
    # No further round of a batch size after this long; None: all runs. For whoever waits for a first score.
    seconds: float | None = None

    def __post_init__(self) -> None:
        if not self.batches or min(self.batches) < 1 or self.runs < 1 or (self.threads or 1) < 1:
            raise UsageError("batches, runs and threads must be 1 or more")


@dataclass(frozen=True)
class Timing:
    """The measured speed of one graph at one batch size."""

    name: str
    batch: int
    runs: int
    median_ms: float  # for the whole batch
    fastest_ms: float
    images_per_s: float  # at the median
    ratio: float  # to the first graph's time in the same round; median over the rounds
    cpu_ms: float  # processor time of all threads for the batch, at the median
    # As ratio, of the processor time: on a busy machine it moves by a tenth of what the other does.
    cpu_ratio: float


@dataclass(frozen=True)
class BundleBench:
    """How fast the graphs of a bundle are here, by precision."""

    timings: list[Timing]
    refused: dict[str, str]  # graphs that do not work here, and why


def compare(
    runners: Mapping[str, Runner],
    size: int,
    config: BenchConfig,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Timing]:
    """Time runners in turn on the same random pictures, uint8 (batch, size, size, 3)."""
    timings = []
    rng = np.random.default_rng(0)
    for batch in config.batches:
        images = rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
        for name, run in runners.items():
            progress(f"batch {batch}: warming up {name}")
            run(images)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in runners}
        start = time.monotonic()
        for index in range(config.runs):
            if index and config.seconds is not None and time.monotonic() - start > config.seconds:
                break
            progress(f"batch {batch}: round {index + 1} of {config.runs}")
            for name, run in runners.items():
                times[name].append(_seconds(run, images))
        first = next(iter(times.values()))
        timings += [_timing(name, batch, measured, first) for name, measured in times.items()]
    return timings


def bench_bundle(
    bundle: Bundle,
    config: BenchConfig,
    progress: Callable[[str], None] = lambda _: None,
    provider: str = "cpu",
) -> BundleBench:
    """Time the graphs of a bundle, on a CPU without those for GPUs; ratios are to the first that works.

    Raises:
        GrmpError: no graph works here.
    """
    backends: dict[str, Backend] = {}
    refused: dict[str, GrmpError] = {}
    try:
        cpu = provider == "cpu" or (provider == "auto" and resolve_provider("auto") == "cpu")
        for precision, graph in bundle.graphs.items():
            if cpu and precision in GPU_PRECISIONS:
                continue
            progress(f"loading {precision}")
            options = BackendOptions(provider, config.threads)
            try:
                path = bundle.graph(precision)
                backends[precision] = open_backend(path, graph, bundle.input_size, options, bundle)
            except GrmpError as error:
                refused[precision] = error
        if not backends:
            none = BundleError(f"{bundle.path}: has graphs for GPUs alone", "export the checkpoint again")
            raise next(iter(refused.values()), none)
        runners = {precision: backend.run for precision, backend in backends.items()}
        timings = compare(runners, bundle.input_size, config, progress)
    finally:
        for backend in backends.values():
            backend.close()
    return BundleBench(timings, {precision: error.message for precision, error in refused.items()})


def _seconds(run: Runner, images: npt.NDArray[np.uint8]) -> tuple[float, float]:
    """Of the clock, and of the processors."""
    start, used = time.perf_counter(), time.process_time()
    run(images)
    return time.perf_counter() - start, time.process_time() - used


def _timing(
    name: str, batch: int, times: Sequence[tuple[float, float]], first: Sequence[tuple[float, float]]
) -> Timing:
    (own, cpu), (other, other_cpu) = zip(*times, strict=True), zip(*first, strict=True)
    median = statistics.median(own)
    return Timing(
        name=name,
        batch=batch,
        runs=len(times),
        median_ms=round(median * 1e3, 3),
        fastest_ms=round(min(own) * 1e3, 3),
        images_per_s=round(batch / median, 2),
        ratio=_ratio(own, other),
        cpu_ms=round(statistics.median(cpu) * 1e3, 3),
        cpu_ratio=_ratio(cpu, other_cpu),
    )


def _ratio(own: Sequence[float], other: Sequence[float]) -> float:
    # A clock of the processors may be too coarse for a tiny network.
    pairs = zip(own, other, strict=True)
    return round(statistics.median(mine / theirs if theirs else 1.0 for mine, theirs in pairs), 4)
