"""TensorRT's table of ONNX operators as data, for those a graph of ours could use, and a check against it.

Source: docs/operators.md of github.com/onnx/onnx-tensorrt, the parser's own list. The rows are what the
lists of TensorRT 9.2 and of 10.15 *both* allow, which brackets 10.3 (its own list was not at hand); the
opsets are the narrowest range stated since 10.0: 9 to 20. The parser's docs/Changelog.md names nothing of
ours that came or went in between, but tensors for the axes of Slice (10.3) and of Pad (10.4), which are
constants here. BF16, FP8 and BOOL are left out: no graph of ours has them.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper, shape_inference

__all__ = ["OPERATORS", "OPSETS", "REFUSED", "unsupported"]

OPSETS = range(9, 21)

_FLOATS = frozenset({"FLOAT", "FLOAT16"})
_NUMBERS = _FLOATS | {"INT32", "INT64"}
OPERATORS: dict[str, frozenset[str]] = {
    "Add": _NUMBERS,
    "Cast": _NUMBERS | {"UINT8"},
    "Concat": _NUMBERS,
    "Conv": _FLOATS,
    "DequantizeLinear": frozenset({"INT8"}),
    "Div": _NUMBERS,
    "Erf": _FLOATS,
    "Gemm": _FLOATS,
    "LayerNormalization": _FLOATS,
    "MatMul": _FLOATS,
    "Mul": _NUMBERS,
    "Pad": _NUMBERS,
    "QuantizeLinear": _FLOATS,
    "ReduceL2": _NUMBERS,
    "Reshape": _NUMBERS,
    "Sigmoid": _FLOATS,
    "Slice": _NUMBERS,
    "Softmax": _FLOATS,
    "Split": _NUMBERS,
    "Sqrt": _FLOATS,
    "Squeeze": _NUMBERS,
    "Sub": _NUMBERS,
    "Tanh": _FLOATS,
    "Transpose": _NUMBERS,
    "Unsqueeze": _NUMBERS,
}
# Listed as not supported in both.
REFUSED = frozenset({"ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul"})

# Inputs that must be constants ("axes must be an initializer").
_CONSTANT_INPUTS = {"Slice": (1, 2, 3), "Squeeze": (1,), "Unsqueeze": (1,), "Pad": (1,), "Split": (1,)}


def unsupported(model: onnx.ModelProto) -> list[str]:
    """What TensorRT 10.3's parser would refuse, a phrase each; empty if nothing."""
    problems = [
        f"operators of domain {entry.domain!r}"
        for entry in model.opset_import
        if entry.domain not in ("", "ai.onnx")
    ]
    problems += [
        f"opset {entry.version}"
        for entry in model.opset_import
        if entry.domain in ("", "ai.onnx") and entry.version not in OPSETS
    ]
    graph = shape_inference.infer_shapes(model, strict_mode=not problems).graph
    types = {
        value.name: TensorProto.DataType.Name(value.type.tensor_type.elem_type)
        for value in (*graph.value_info, *graph.input, *graph.output)
    }
    weights = {tensor.name: tensor for tensor in graph.initializer}
    types.update((name, TensorProto.DataType.Name(tensor.data_type)) for name, tensor in weights.items())
    for node in graph.node:
        problems += [f"{node.name} ({node.op_type}): {problem}" for problem in _of_node(node, types, weights)]
    return problems


def _of_node(
    node: onnx.NodeProto, types: dict[str, str], weights: dict[str, onnx.TensorProto]
) -> Iterable[str]:
    if node.op_type not in OPERATORS:
        yield "operator not supported" if node.op_type in REFUSED else "operator not in the table"
        return
    allowed, first = OPERATORS[node.op_type], types.get(node.input[0], "unknown")
    if first not in allowed:
        yield f"reads {first}"
    if node.op_type not in ("Cast", "QuantizeLinear", "DequantizeLinear"):
        # Beyond the first input only floats are data; integers there are axes and shapes.
        floats = {types.get(name, "unknown") for name in (*node.input, *node.output)} & _FLOATS
        if len(floats) > 1:
            yield "mixes float32 and float16, which a strongly typed network refuses"
    elif node.op_type != "QuantizeLinear" and types.get(node.output[0]) not in _NUMBERS:
        yield f"gives {types.get(node.output[0])}"
    if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2:
        point = weights.get(node.input[2])
        if point is None or np.any(numpy_helper.to_array(point)):
            yield "its zero point is not a constant zero"
    if node.op_type == "LayerNormalization" and len([name for name in node.output if name]) > 1:
        yield "more than its first output is read"
    for index in _CONSTANT_INPUTS.get(node.op_type, ()):
        if index < len(node.input) and node.input[index] and node.input[index] not in weights:
            yield f"input {index} is not a constant"
