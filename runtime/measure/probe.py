"""ONNX models of one operator, assembled without the onnx package, to try a provider or measure its peak."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["FLOAT", "INT32", "INT8", "UINT8", "operator_graph"]

FLOAT, UINT8, INT8, INT32 = 1, 2, 3, 6  # TensorProto.DataType


def operator_graph(operator: str, inputs: Sequence[int], output: int, rank: int) -> bytes:
    """A model that applies an operator to ``x0``, ``x1``, ... and gives ``y``.

    Args:
        operator: of the default domain, without attributes.
        inputs: their element types.
        output: its element type.
        rank: of all of them; the sizes are free.
    """

    def value(name: bytes, kind: int) -> bytes:
        # Field numbers are those of onnx.proto. A dimension without value or name is free.
        tensor = _field(1, kind) + _field(2, _field(1, b"") * rank)
        return _field(1, name) + _field(2, _field(1, tensor))

    names = [b"x%d" % index for index in range(len(inputs))]
    node = b"".join(_field(1, name) for name in names) + _field(2, b"y") + _field(4, operator.encode())
    graph = _field(1, node) + _field(2, b"probe")
    graph += b"".join(_field(11, value(*pair)) for pair in zip(names, inputs, strict=True))
    graph += _field(12, value(b"y", output))
    # Opset 13 is read by every onnxruntime supported.
    opset = _field(1, b"") + _field(2, 13)
    return _field(1, 8) + _field(7, graph) + _field(8, opset)


def _field(number: int, value: bytes | int) -> bytes:
    """One protobuf field of under 128 bytes."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    return bytes([number << 3 | 2, len(value)]) + value
