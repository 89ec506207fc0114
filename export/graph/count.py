"""Counts the multiply-adds of a graph from the shapes of its operators."""

from __future__ import annotations

import math

import onnx
from onnx import helper, shape_inference

__all__ = ["multiply_adds"]


def multiply_adds(model: onnx.ModelProto) -> int:
    """Multiply-adds for one picture in the convolutions and matrix products of a graph.

    Args:
        model: has one input, whose first dimension is the batch. Not changed.

    Raises:
        ValueError: a shape cannot be inferred.
    """
    light = _without_weights(model)
    batch = light.graph.input[0].type.tensor_type.shape.dim[0]
    count = batch.dim_value or 1
    batch.dim_value = count
    inferred = shape_inference.infer_shapes(light, data_prop=True, strict_mode=True).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in inferred.initializer}
    for value in [*inferred.input, *inferred.value_info, *inferred.output]:
        shapes[value.name] = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    total = sum(_of_node(node, shapes) for node in inferred.node)
    return total // count


def _of_node(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> int:
    if node.op_type not in ("Conv", "Gemm", "MatMul"):
        return 0
    first, second, out = (shapes.get(name, [0]) for name in (*node.input[:2], node.output[0]))
    if node.op_type == "Conv":
        inner = math.prod(second[1:])
    elif node.op_type == "Gemm" and any(a.name == "transA" and a.i for a in node.attribute):
        inner = first[0]
    else:
        inner = first[-1]
    if not math.prod(out) or not inner:
        raise ValueError(f"the shapes of {node.name or node.output[0]!r} are not known")
    return math.prod(out) * inner


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which large floating-point weights are inputs, since only their shapes matter here."""
    light = onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.graph.name = model.graph.name
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    light.graph.node.extend(model.graph.node)
    known = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT64 or math.prod(tensor.dims) < 64:
            light.graph.initializer.append(tensor)
        elif tensor.name not in known:
            light.graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    return light
