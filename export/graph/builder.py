"""A small typed builder of ONNX graphs: every value knows its element type, so none are mixed by accident.

With ``simulate_half`` the same calls emit a float32 graph in which every half-typed result and weight is
rounded through float16. CPU runtimes compute half graphs in float32 between casts, which hides the overflow
and rounding of half-precision hardware; the simulation shows both on any machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["IR_VERSION", "OPSET", "DType", "GraphBuilder", "Output", "Value", "Weight"]

DType = Literal["f32", "f16", "f8", "u8", "i8", "i32", "i64"]  # f8: only between two operators

OPSET = 17  # the first with LayerNormalization as one operator; older runtimes on devices read it
IR_VERSION = 8  # belongs to opset 17
_IR_VERSIONS = {OPSET: IR_VERSION, 19: 9, 21: 10}

_PROTO = {
    "f32": TensorProto.FLOAT,
    "f16": TensorProto.FLOAT16,
    "u8": TensorProto.UINT8,
    "i8": TensorProto.INT8,
    "i32": TensorProto.INT32,
    "i64": TensorProto.INT64,
}
_NUMPY: dict[str, npt.DTypeLike] = {
    "f32": np.float32,
    "f16": np.float16,
    "u8": np.uint8,
    "i8": np.int8,
    "i32": np.int32,
    "i64": np.int64,
}
# Operators that only move values: a rounded input gives a rounded output.
_MOVES = frozenset(
    {"Concat", "Expand", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)


@dataclass(frozen=True)
class Value:
    """A named tensor of a graph with its element type (in a simulated graph, the simulated type)."""

    name: str
    dtype: DType


Output: TypeAlias = tuple[Value, Sequence["int | str"]]  # with its shape; a string is a free dimension


@dataclass(frozen=True)
class Weight:
    """A constant of a graph, which is converted to its type only when it is written."""

    name: str
    source: npt.NDArray[Any]  # as given, often a view of the folded model
    dtype: DType
    simulate_half: bool = False  # stored as float32, rounded through float16

    @property
    def data_type(self) -> int:
        """The stored type, as a number of onnx.TensorProto."""
        return _PROTO["f32" if self.simulate_half else self.dtype]

    @property
    def nbytes(self) -> int:
        """Size of the stored values."""
        return self.source.size * np.dtype(_NUMPY["f32" if self.simulate_half else self.dtype]).itemsize

    def values(self) -> npt.NDArray[Any]:
        """The stored values, contiguous (half rounds, and overflows to infinity)."""
        with np.errstate(over="ignore"):
            values = self.source.astype(_NUMPY[self.dtype], copy=False)
        if self.simulate_half:
            values = values.astype(np.float32)
        return np.asarray(values, order="C")

    def proto(self) -> onnx.TensorProto:
        """An initialiser that holds the values."""
        return numpy_helper.from_array(self.values(), self.name)


class GraphBuilder:
    """Collects nodes and weights, from which :meth:`model` makes an ONNX model."""

    def __init__(self, simulate_half: bool = False, opset: int = OPSET) -> None:
        """``opset``: 17; 19, the first with half scales; 21, the first whose FP8 needs no FP8 constants."""
        self.simulate_half = simulate_half
        self.opset = opset
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, Weight] = {}
        self._types: dict[str, DType] = {}
        self._inputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, dtype: DType, shape: Sequence[int | str]) -> Value:
        """Declare an input; a string in ``shape`` is a free dimension."""
        self._inputs.append(helper.make_tensor_value_info(name, _PROTO[dtype], list(shape)))
        return Value(name, dtype)

    def constant(self, name: str, array: npt.ArrayLike, dtype: DType) -> Value:
        """Store a weight under ``name``, as ``dtype`` (half rounds, and overflows to infinity).

        A second call with the same name returns the same constant. An array is not copied; do not change it.

        Raises:
            TypeError: it is stored with another type already.
        """
        if self._types.setdefault(name, dtype) != dtype:
            raise TypeError(f"constant {name!r} is {self._types[name]}, not {dtype}")
        if name not in self._weights:
            half = dtype == "f16" and self.simulate_half
            self._weights[name] = Weight(name, np.asarray(array), dtype, half)
        return Value(name, dtype)

    def ints(self, *values: int) -> Value:
        """A one-dimensional int64 constant, shared by all its users."""
        return self.constant("ints." + "_".join(str(value) for value in values), values, "i64")

    def op(self, kind: str, name: str, *inputs: Value, **attributes: Any) -> Value:
        """Add a node with one output, ``name``, of the first input's type.

        Raises:
            TypeError: the floating-point inputs differ in type.
        """
        return self.ops(kind, name, [name], *inputs, **attributes)[0]

    def ops(
        self, kind: str, name: str, outputs: Sequence[str], *inputs: Value, **attributes: Any
    ) -> list[Value]:
        """Add a node with several outputs; see :meth:`op`."""
        if kind.startswith("Reduce") and self.opset >= 18:  # axes became an input
            inputs = (*inputs, self.ints(*attributes.pop("axes")))
        floats = {value.dtype for value in inputs if value.dtype in ("f32", "f16")}
        if len(floats) > 1:
            raise TypeError(f"{kind} {name!r} mixes {', '.join(f'{v.name}: {v.dtype}' for v in inputs)}")
        dtype = inputs[0].dtype
        rounds = self.simulate_half and dtype == "f16" and kind not in _MOVES
        made = [f"{output}.exact" for output in outputs] if rounds else list(outputs)
        self._nodes.append(
            helper.make_node(kind, [value.name for value in inputs], made, name=name, **attributes)
        )
        if rounds:
            for exact, output in zip(made, outputs, strict=True):
                self._round(exact, output)
        return [Value(output, dtype) for output in outputs]

    def convert(
        self, kind: str, outputs: Mapping[str, DType], *inputs: Value, **attributes: Any
    ) -> list[Value]:
        """Add a node whose outputs have other types than its inputs; it is named after the first output."""
        names = list(outputs)
        node = helper.make_node(kind, [value.name for value in inputs], names, name=names[0], **attributes)
        self._nodes.append(node)
        return [Value(name, dtype) for name, dtype in outputs.items()]

    def cast(self, value: Value, dtype: DType, name: str) -> Value:
        """Convert to another element type; adds nothing if the value has it already."""
        if value.dtype == dtype:
            return value
        if self.simulate_half and dtype == "f16" and value.dtype == "f32":
            self._round(value.name, name)
            return Value(name, dtype)
        if self.simulate_half and dtype == "f32" and value.dtype == "f16":
            return Value(value.name, dtype)
        target = "f32" if self.simulate_half and dtype == "f16" else dtype
        self._nodes.append(helper.make_node("Cast", [value.name], [name], name=name, to=_PROTO[target]))
        return Value(name, dtype)

    def _round(self, source: str, target: str) -> None:
        half = f"{target}.half"
        self._nodes.append(helper.make_node("Cast", [source], [half], name=half, to=TensorProto.FLOAT16))
        self._nodes.append(
            helper.make_node("Cast", [half], [target], name=f"{target}.rounded", to=TensorProto.FLOAT)
        )

    def model(
        self,
        name: str,
        outputs: Sequence[Output],
        metadata: Mapping[str, str],
        weights: list[Weight] | None = None,
    ) -> onnx.ModelProto:
        """The finished model; ``metadata`` becomes its metadata_props.

        The builder cannot be used afterwards: its weights move into the list ``weights`` if one is given,
        else into the model.
        """
        graph = helper.make_graph(
            self._nodes,
            name,
            self._inputs,
            [
                helper.make_tensor_value_info(value.name, _PROTO[value.dtype], list(shape))
                for value, shape in outputs
            ],
        )
        for key in list(self._weights):
            weight = self._weights.pop(key)
            if weights is None:
                graph.initializer.append(weight.proto())
            else:
                weights.append(weight)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", self.opset)],
            ir_version=_IR_VERSIONS[self.opset],
            producer_name="grmp-edge",
        )
        helper.set_model_props(model, dict(metadata))
        return model
