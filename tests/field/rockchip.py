"""Whether Rockchip's NPUs score as the CPU does, by the simulator of their toolkit, judged by the one gate.

    python -m venv rknn; rknn/bin/pip install rknn-toolkit2   # its own: it wants older numpy, onnx and torch
    grmp-edge export CHECKPOINT --layout nchw-float
    PYTHONPATH=. rknn/bin/python tests/field/rockchip.py bundles/NAME.nchw-float/model.onnx [rk3588]

The toolkit takes no uint8 graph, so it reads the planar one. Building takes minutes. No NPU is needed.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import onnxruntime
from rknn.api import RKNN

from grmp_edge.check_pictures import check_pictures
from grmp_edge.parity import LIMITS, judge

COUNT = 16


def main(graph: str, target: str = "rk3588") -> None:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    _, channels, height, width = given.shape
    planes = check_pictures(COUNT, height).transpose(0, 3, 1, 2).astype(np.float32)
    expected = session.run(["scores"], {given.name: planes})[0]
    npu = RKNN(verbose=False)
    npu.config(target_platform=target)
    steps = {
        "load": lambda: npu.load_onnx(graph, [given.name], [[1, channels, height, width]]),
        "build": lambda: npu.build(do_quantization=False),  # half precision
        "simulate": npu.init_runtime,
    }
    for step, take in steps.items():
        if take() != 0:
            raise SystemExit(f"the toolkit failed to {step}")
    scores = [float(npu.inference([one[None]], data_format=["nchw"])[0].ravel()[0]) for one in planes]
    verdict = judge(expected.astype(np.float64), np.array(scores), LIMITS["fp16"])
    print(json.dumps({"target": target, "pictures": COUNT, **verdict.to_json(), "problem": verdict.problem}))


if __name__ == "__main__":
    main(*sys.argv[1:])
