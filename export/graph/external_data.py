"""Weights of a graph that live in another file of its folder (ONNX external data); graphs may share one.

The file is safetensors: any tool reads it, and ONNX needs no more than an offset and a length into it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

from grmp_edge.errors import ModelError

__all__ = ["Place", "places", "refer"]

# safetensors' names of element types, as far as graphs of ours hold them.
_TYPES = {
    "F32": TensorProto.FLOAT,
    "F16": TensorProto.FLOAT16,
    "I8": TensorProto.INT8,
    "U8": TensorProto.UINT8,
    "I32": TensorProto.INT32,
    "I64": TensorProto.INT64,
}


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in a file."""

    data_type: int  # onnx.TensorProto's number
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file
    length: int  # bytes


def places(path: Path) -> dict[str, Place]:
    """The tensors of a safetensors file, by name; types that no graph of ours holds are left out.

    Raises:
        ModelError: it is not a safetensors file.
    """
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        try:
            header = json.loads(stream.read(size)) if size < path.stat().st_size else {}
            listed = {name: entry for name, entry in header.items() if name != "__metadata__"}
            start = 8 + size
            return {
                name: Place(
                    _TYPES[entry["dtype"]],
                    tuple(entry["shape"]),
                    start + entry["data_offsets"][0],
                    entry["data_offsets"][1] - entry["data_offsets"][0],
                )
                for name, entry in listed.items()
                if entry["dtype"] in _TYPES
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{path}: not a safetensors file ({error})", "write it again") from None


def refer(model: onnx.ModelProto, path: Path, tensors: Mapping[str, str]) -> None:
    """Replace the content of initialisers by a reference to tensors of a safetensors file.

    Args:
        model: changed in place; to be saved in the folder of ``path``, since ONNX allows no other place.
        path: the file, whole already.
        tensors: by initialiser, the tensor's name in the file.

    Raises:
        ModelError: type or shape of the two differ, or one of them is not there; ``model`` is as it was then.
    """
    found = places(path)
    weights = {weight.name: weight for weight in model.graph.initializer}
    for name, source in tensors.items():
        weight, place = weights.get(name), found.get(source)
        if weight is None or place is None:
            raise ModelError(f"{path}: {source!r} is to hold {name!r}, and one of them is not there")
        if (weight.data_type, tuple(weight.dims)) != (place.data_type, place.shape):
            raise ModelError(f"{path}: {source!r} {place.shape} has another type or shape than {name!r}")
    for name, source in tensors.items():
        point(weights[name], path.name, found[source])


def point(weight: TensorProto, location: str, place: Place) -> None:
    """Make an initialiser a reference to bytes of the file ``location`` beside the graph."""
    for field in ("raw_data", "float_data", "int32_data", "int64_data", "external_data"):
        weight.ClearField(field)
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", place.offset), ("length", place.length)):
        weight.external_data.add(key=key, value=str(value))
