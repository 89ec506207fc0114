"""Writes graphs as ONNX files, one weight at a time, so that the weights are never in memory twice.

Beyond protobuf's 2 GiB the large weights go into a data file beside the graph (ONNX external data).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from grmp_edge.errors import ModelError
from grmp_edge.export.graph.builder import Weight
from grmp_edge.export.graph.external_data import Place, point

__all__ = ["LIMIT", "data_file", "discard", "save_graph", "serialize"]

LIMIT = 2**31 - 1  # bytes that protobuf reads as one message
_LARGE = 1 << 16  # bytes; smaller weights (norms, biases, shapes) always stay in the graph
_ALIGNED = 64  # bytes; a cache line, so that a mapped weight can be used in place


def save_graph(make: Callable[[list[Weight]], onnx.ModelProto], file: Path, limit: int = LIMIT) -> None:
    """Make a graph, check it and write it as an ONNX file, with a :func:`data_file` if it is too large.

    Args:
        make: returns the model without its weights and appends those to the list it is given.
        file: what to write.
        limit: the size in bytes from which the large weights go into the data file.

    Raises:
        ModelError: it exceeds the limit even without its large weights.
    """
    weights: list[Weight] = []
    model = make(weights)
    onnx.checker.check_model(_checkable(model, weights), full_check=True)
    if sum(weight.nbytes for weight in weights) + model.ByteSize() < limit - (1 << 20):
        data_file(file).unlink(missing_ok=True)
        _write(model, [(_head(weight), weight) for weight in weights], file, limit)
        return
    parts: list[tuple[TensorProto, Weight | None]] = []
    with data_file(file).open("wb") as stream:
        for weight in weights:
            head = _head(weight)
            if weight.nbytes < _LARGE:
                parts.append((head, weight))
                continue
            stream.write(bytes(-stream.tell() % _ALIGNED))
            place = Place(head.data_type, tuple(head.dims), stream.tell(), weight.nbytes)
            point(head, data_file(file).name, place)
            stream.write(weight.values().data)
            parts.append((head, None))
    _write(model, parts, file, limit)


def data_file(file: Path) -> Path:
    """The file for the weights of a graph that is too large for a single file."""
    return file.with_suffix(".weights")


def discard(file: Path) -> None:
    """Remove a graph and its data file."""
    file.unlink(missing_ok=True)
    data_file(file).unlink(missing_ok=True)


def serialize(model: onnx.ModelProto) -> bytes:
    """The bytes of an ONNX file.

    Raises:
        ModelError: they exceed protobuf's 2 GiB.
    """
    _check_size(model.ByteSize(), LIMIT)
    return bytes(model.SerializeToString())


def _head(weight: Weight) -> TensorProto:
    """An initialiser without its values."""
    return TensorProto(name=weight.name, data_type=weight.data_type, dims=weight.source.shape)


def _checkable(model: onnx.ModelProto, weights: Sequence[Weight]) -> onnx.ModelProto:
    """A copy in which large weights are inputs, since the checker needs only their type and shape."""
    light = onnx.ModelProto()
    light.CopyFrom(model)
    for weight in weights:
        if weight.nbytes < _LARGE:
            light.graph.initializer.append(weight.proto())
        else:
            light.graph.input.append(
                helper.make_tensor_value_info(weight.name, weight.data_type, weight.source.shape)
            )
    return light


def _write(
    model: onnx.ModelProto, parts: Sequence[tuple[TensorProto, Weight | None]], file: Path, limit: int
) -> None:
    """``parts`` are initialisers, each with the weight whose values it holds in the file, if any."""
    graph = model.graph.SerializeToString()
    model.ClearField("graph")
    # Field numbers are those of onnx.proto: ModelProto.graph is 7, GraphProto.initializer is 5,
    # TensorProto.raw_data is 9. Lengths precede contents, so all of them are computed first.
    heads = []
    for head, weight in parts:
        start = head.SerializeToString()
        size = 0
        if weight is not None:
            start += bytes([9 << 3 | 2]) + _varint(weight.nbytes)
            size = weight.nbytes
        heads.append(bytes([5 << 3 | 2]) + _varint(len(start) + size) + start)
    inside = sum(weight.nbytes for _, weight in parts if weight is not None)
    total = len(graph) + sum(map(len, heads)) + inside
    _check_size(total, limit)
    with file.open("wb") as stream:
        stream.write(model.SerializeToString() + bytes([7 << 3 | 2]) + _varint(total) + graph)
        for start, (_, weight) in zip(heads, parts, strict=True):
            stream.write(start)
            if weight is not None:
                stream.write(weight.values().data)


def _varint(value: int) -> bytes:
    """A length as protobuf writes it: seven bits per byte, the lowest first."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _check_size(size: int, limit: int) -> None:
    if size >= limit:
        raise ModelError(
            f"the graph takes {size / 2**30:.1f} GiB, an ONNX file holds {limit / 2**30:.1f}",
            "choose a smaller backbone",
        )
