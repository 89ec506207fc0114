"""What arm64.sh runs: preprocessing bit for bit, and the default graphs against their recorded scores.

Needs nothing but what scoring needs. Ends with an error where anything differs by more than the gate allows.
"""

from __future__ import annotations

import hashlib
import platform

import cv2
import numpy as np

from grmp_edge.bundle import Bundle
from grmp_edge.preprocess import Preprocess
from grmp_edge.runtime.backends import BackendOptions, OnnxRuntimeBackend
from grmp_edge.runtime.gate import check_scores, check_set

_PICTURES = 4  # of the 16: a picture takes seconds in an emulator


def main() -> None:
    """Compare and print."""
    print(f"{platform.machine()}, numpy {np.__version__}, OpenCV {cv2.__version__}", flush=True)
    rng = np.random.default_rng(0)
    for height, width in ((480, 640), (1080, 1920), (37, 53)):
        picture = rng.integers(0, 256, (height, width, 3), np.uint8)
        digest = hashlib.sha256(Preprocess.for_size(224)(picture).tobytes()).hexdigest()[:16]
        print(f"{width}x{height} to 224: {digest}", flush=True)
    bundle = Bundle.load("default")
    for precision, graph in bundle.graphs.items():
        recorded = check_set(bundle, precision)  # raises where the computed pictures are not the same bytes
        assert recorded is not None
        options = BackendOptions("cpu", 1)
        backend = OnnxRuntimeBackend(bundle.graph(precision), graph, bundle.input_size, options)
        scores = backend.raw(recorded[0][:_PICTURES])
        worst = np.abs(scores - recorded[1][:_PICTURES]).max()
        check_scores(bundle, precision, lambda images: scores, "graph", seconds=0.0)  # noqa: B023
        print(f"{precision}: largest difference {worst:.1e} from x86", flush=True)


if __name__ == "__main__":
    main()
