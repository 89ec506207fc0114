"""What this CPU can do at most, measured, and how near a graph comes to it.

The limit of a graph is the time that its products take at the measured peak of their kind, or that its
weights take to be read from memory, whichever is longer. Everything else that a graph does counts as lost.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from grmp_edge.bundle import Bundle
from grmp_edge.runtime.backends import open_session
from grmp_edge.runtime.bench import Timing
from grmp_edge.runtime.measure.probe import FLOAT, INT8, INT32, UINT8, operator_graph

__all__ = ["Machine", "Work", "graph_work", "measure_machine", "reached"]

_SIDE = 1024  # of the matrices: large enough for the peak, 4 MB each
_COPY = 128 << 20  # bytes; larger than any cache
_RUNS = 5  # the fastest counts


@dataclass(frozen=True)
class Machine:
    """What the CPU reaches at most with the threads it was given."""

    float32: float  # multiply-adds a second in a large product of float32
    int8: float  # the same of eight bits
    bytes: float  # a second, from memory; read and written bytes both count


@dataclass(frozen=True)
class Work:
    """What a graph has to compute and read."""

    float32: int  # multiply-adds for one picture in products of float32
    int8: int  # the same of eight bits
    weights: int  # bytes on disk


def measure_machine(threads: int | None = None) -> Machine:
    """Measure the CPU with onnxruntime's own products and numpy's copy. Takes about a second."""
    rng = np.random.default_rng(0)
    wide = [rng.random((_SIDE, _SIDE), np.float32) for _ in range(2)]
    narrow = {
        "x0": rng.integers(0, 256, (_SIDE, _SIDE)).astype(np.uint8),
        "x1": rng.integers(-64, 65, (_SIDE, _SIDE)).astype(np.int8),
    }
    product = open_session(operator_graph("MatMul", (FLOAT, FLOAT), FLOAT, 2), threads)
    integer = open_session(operator_graph("MatMulInteger", (UINT8, INT8), INT32, 2), threads)
    source, target = np.zeros(_COPY, np.uint8), np.zeros(_COPY, np.uint8)
    return Machine(
        float32=_SIDE**3 / _fastest(lambda: product.run(None, {"x0": wide[0], "x1": wide[1]})),
        int8=_SIDE**3 / _fastest(lambda: integer.run(None, narrow)),
        bytes=2 * _COPY / _fastest(lambda: np.copyto(target, source)),
    )


def graph_work(bundle: Bundle, precision: str) -> Work:
    """Count a graph's multiply-adds from the shapes of what onnxruntime runs, fused operators included."""
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(bundle.graph(precision), 1, profile=Path(folder, "run"))
        pixels = np.zeros((1, bundle.input_size, bundle.input_size, 3), np.uint8)
        session.run(None, {bundle.graphs[precision].input: pixels})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    totals = {"float32": 0, "int8": 0}
    for event in events:
        given = event.get("args", {})
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            inputs, outputs = given.get("input_type_shape", []), given.get("output_type_shape", [])
            kind, count = _multiply_adds(given["op_name"], inputs, outputs)
            totals[kind] += count
    data = sum(path.stat().st_size for path in bundle.data_files(precision))
    return Work(**totals, weights=bundle.graphs[precision].bytes + data)


def _multiply_adds(
    operator: str, inputs: Sequence[dict[str, list[int]]], outputs: Sequence[dict[str, list[int]]]
) -> tuple[str, int]:
    if not ("MatMul" in operator or "Gemm" in operator or operator.endswith("Conv")):
        return "float32", 0
    # Each is {type: shape}; a constant that was packed for the CPU is left out behind the first.
    ((kind, first),) = inputs[0].items()
    (out,) = outputs[0].values()
    if operator.endswith("Conv"):
        weight = next(shape for each in inputs[1:] for shape in each.values() if len(shape) == len(first))
        inner = math.prod(weight[1:])
    else:
        inner = first[-1]
    return "float32" if kind == "float" else "int8", math.prod(out) * inner


def reached(timing: Timing, work: Work, machine: Machine) -> float:
    """The share of the machine's limit that a measured graph reached, 0..1."""
    products = timing.batch * (work.float32 / machine.float32 + work.int8 / machine.int8)
    limit = max(products, work.weights / machine.bytes)
    return round(limit / (timing.median_ms * 1e-3), 3)


def _fastest(run: Any) -> float:
    times = []
    for _ in range(_RUNS + 1):  # the first allocates
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times[1:])
