"""Weights of a graph in another file of its folder (ONNX external data), which several graphs may share.

The file is safetensors: any tool reads it, and ONNX needs only an offset and a length into it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from onnx import TensorProto

from grmp_edge.errors import ModelError

__all__ = ["Place", "places", "point"]

# safetensors' names of the element types that our graphs use.
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
    """The tensors of a safetensors file, by name; those of types that our graphs do not use are left out.

    Raises:
        ModelError: it is not a safetensors file.
    """
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        try:
            if size > path.stat().st_size - 8:
                raise ValueError("its header is cut off")
            listed = json.loads(stream.read(size))
            listed.pop("__metadata__", None)
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


def point(weight: TensorProto, location: str, place: Place) -> None:
    """Make an initialiser refer to bytes of the file ``location``, which lies beside the graph."""
    for field in ("raw_data", "float_data", "int32_data", "int64_data", "external_data"):
        weight.ClearField(field)
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", place.offset), ("length", place.length)):
        weight.external_data.add(key=key, value=str(value))
