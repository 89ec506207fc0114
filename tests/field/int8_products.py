"""How fast eight-bit matrix products are here: what no eight-bit ViT-B/16 in onnxruntime can be faster than.

    python tests/field/int8_products.py [--batch 8] [--threads 2]

Times the four linear layers of a block (static QDQ, weights per channel) and adds up eleven blocks: of the
twelfth the folded network computes little. What it does besides (attention, norms, activations, the patch
embedding) comes on top.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

TOKENS, BLOCKS = 197, 11
LAYERS = {"qkv": (768, 2304), "proj": (768, 768), "fc": (768, 3072), "mlp.proj": (3072, 768)}


def graph(rows: int, inner: int, columns: int) -> bytes:
    """uint8 (rows, inner) times int8 (inner, columns) to uint8 (rows, columns), as QDQ."""
    weight = np.random.default_rng(0).integers(-127, 128, (inner, columns), dtype=np.int8)
    constants = {
        "weight": weight,
        "scales": np.full(columns, 0.01, np.float32),
        "zeros": np.zeros(columns, np.int8),
        "scale": np.float32(0.02),
        "zero": np.uint8(128),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "scale", "zero"], ["a"]),
        helper.make_node("DequantizeLinear", ["weight", "scales", "zeros"], ["b"], axis=1),
        helper.make_node("MatMul", ["a", "b"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "scale", "zero"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, [rows, inner])
    y = helper.make_tensor_value_info("y", TensorProto.UINT8, [rows, columns])
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    made = helper.make_graph(nodes, "product", [x], [y], stored)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def main() -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description="speed of eight-bit matrix products")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = given.threads
    rows, seconds, products = given.batch * TOKENS, 0.0, 0
    for name, (inner, columns) in LAYERS.items():
        session = ort.InferenceSession(
            graph(rows, inner, columns), settings, providers=["CPUExecutionProvider"]
        )
        x = np.random.default_rng(1).integers(0, 256, (rows, inner), dtype=np.uint8)
        times = []
        for _ in range(25):
            began = time.perf_counter()
            session.run(None, {"x": x})
            times.append(time.perf_counter() - began)
        median = statistics.median(times[5:])
        count = rows * inner * columns
        print(f"{name:9} {1e3 * median:7.2f} ms  {count / median / 1e9:5.0f} G multiply-adds a second")
        seconds, products = seconds + BLOCKS * median, products + BLOCKS * count
    print(
        f"{BLOCKS} blocks, batch {given.batch}, {given.threads} threads: {1e3 * seconds:.0f} ms, "
        f"{products / seconds / 1e9:.0f} G multiply-adds a second"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
