"""OpenVINO beside onnxruntime on this CPU, in turn in one process: is it faster, and does it score the same?

    pip install openvino; python tests/field/openvino.py [--bundle default] [--threads 1] [--runs 11]

Processor time decides, which other programs hardly disturb; both get the same number of threads.
"""

from __future__ import annotations

import argparse
import importlib

import numpy as np

from grmp_edge.bundle import Bundle
from grmp_edge.runtime.backends import BackendOptions, Runner, open_backend
from grmp_edge.runtime.bench import BenchConfig, compare
from grmp_edge.runtime.gate import check_set


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", default="default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=11)
    given = parser.parse_args()
    bundle = Bundle.load(given.bundle)
    core = importlib.import_module("openvino").Core()
    for precision, graph in bundle.graphs.items():
        settings = {
            "INFERENCE_NUM_THREADS": given.threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        request = core.compile_model(str(bundle.graph(precision)), "CPU", settings).create_infer_request()
        options = BackendOptions("cpu", given.threads)
        backend = open_backend(bundle.graph(precision), graph, bundle.input_size, options, bundle)
        recorded = check_set(bundle, precision)
        if recorded is not None:
            scores = request.infer({graph.input: recorded[0]})[graph.output]
            print(f"{precision}: largest difference {np.abs(scores - recorded[1]).max():.1e}")
        runners: dict[str, Runner] = {
            "onnxruntime": backend.run,
            "OpenVINO": lambda images, request=request, graph=graph: request.infer(  # type: ignore[misc]
                {graph.input: images}, share_inputs=True
            )[graph.output],
        }
        for timing in compare(runners, bundle.input_size, BenchConfig((1, 8), given.runs, given.threads)):
            ratio = f"{timing.cpu_ratio:.2f} of onnxruntime's"
            print(f"{precision} {timing.name}, batch {timing.batch}: {timing.cpu_ms:.1f} ms of CPU, {ratio}")


if __name__ == "__main__":
    main()
