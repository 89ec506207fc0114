"""A bundle whose graphs share one copy of their weights: the model's own files beside them.

The embedded backbone's stem and the weights above it are stored as float16 safetensors, and folding only
transposes most of them. So the graphs can read those files instead of holding copies, and the shipped bundle
is hardly larger than the weights. This is for the model that ships; the graphs of an ordinary bundle are
self-contained.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save_file

from grmp_edge.bundle import Bundle, write_bundle
from grmp_edge.export.graph.external_data import Place, places, point
from grmp_edge.files import folder_beside

__all__ = ["CONSTANTS", "share_weights"]

CONSTANTS = "constants.safetensors"  # weights that several graphs hold and none of the files does
_SMALLEST = 4096  # bytes; smaller weights are not worth a reference

_SCALES = (1.0, 0.125)  # 1 / sqrt(64) is what folding multiplies the queries of heads 64 wide by

Array: TypeAlias = "npt.NDArray[Any]"
_Key: TypeAlias = "tuple[str, tuple[int, ...], bytes]"  # type, shape, SHA-256 of the content


@dataclass(frozen=True)
class _Source:
    """Values of a file, and how to compute a weight from them."""

    location: str  # the file's name
    place: Place
    order: tuple[int, ...]  # of the axes, after reading
    scale: float


def share_weights(bundle: Bundle, weights: Sequence[Path], output: Path) -> Bundle:
    """Write a copy of a bundle whose graphs read their weights from copies of ``weights`` beside them.

    The weights stay bit for bit the same: only values that a file holds exactly are taken from it.

    Args:
        bundle: an exported bundle with self-contained graphs.
        weights: the float16 safetensors files of the model, which are copied into the bundle.
        output: the bundle to write; an older one is replaced in one step.

    Raises:
        BundleError: ``output`` is something other than a bundle.
        ValueError: the graphs share nothing with a file: it is of another model.
    """
    with folder_beside(output) as folder:
        models = {name: onnx.load_model(bundle.graph(name)) for name in bundle.graphs}
        files = []
        for file in weights:
            files.append(folder / file.name)
            shutil.copyfile(file, files[-1])
            sources = _sources(files[-1])
            if not sum([_refer(model, file.name, sources) for model in models.values()]):
                raise ValueError(f"{file} holds none of the weights of {bundle.path}")
        constants = _common(list(models.values()))
        if constants:
            files.append(folder / CONSTANTS)
            save_file(constants, files[-1])
            files[-1].chmod(0o644)  # safetensors makes it private
            _refer_to_constants(list(models.values()), files[-1], constants)
        graphs = {}
        for name, model in models.items():
            path = folder / bundle.graphs[name].file
            path.write_bytes(model.SerializeToString())
            graphs[name] = (path, bundle.graphs[name].opset)
        return write_bundle(
            output,
            graphs,
            backbone=bundle.backbone,
            preprocess=bundle.preprocess,
            normalization=bundle.normalization,
            mos=bundle.mos,
            parity=bundle.parity,
            provenance=bundle.provenance,
            files=files,
            aggregate=bundle.aggregate,
            causes=bundle.causes,
            logits=next(iter(bundle.graphs.values())).logits,
        )


def _sources(path: Path) -> dict[_Key, tuple[Place, float]]:
    """What can be computed from each float16 tensor of a file, and from each part of stacked projections.

    A key stands for the result before it is transposed; the value is the place of the tensor and the factor.
    """
    values = load_file(path)
    sources: dict[_Key, tuple[Place, float]] = {}
    for name, place in places(path).items():
        if place.data_type != TensorProto.FLOAT16 or place.length < _SMALLEST:
            continue
        parts = 3 if name.endswith("in_proj_weight") else 1
        size = place.length // parts
        for part, value in enumerate(np.split(values[name], parts)):
            here = Place(place.data_type, value.shape, place.offset + part * size, size)
            for dtype in (np.float16, np.float32):
                for scale in _SCALES:
                    scaled = value.astype(dtype) * dtype(scale)
                    sources.setdefault(_key(scaled), (here, scale))
    return sources


def _key(value: Array) -> _Key:
    return value.dtype.str, value.shape, hashlib.sha256(np.ascontiguousarray(value).tobytes()).digest()


def _ways(value: Array) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The orders of axes that folding may give a weight, each with the stored shape; see FoldedBlock."""
    if value.ndim == 2:
        yield (0, 1), value.shape
        yield (1, 0), (value.shape[1], value.shape[0])
    elif value.ndim == 4:  # a convolution's
        yield (0, 1, 2, 3), value.shape
    elif value.ndim == 3:  # the last block's, by head: keys (H, D, W) as stored, values (H, W, D) transposed
        heads, a, b = value.shape
        yield (0, 1, 2), (heads * a, b)
        yield (0, 2, 1), (heads * b, a)


def _source(value: Array, location: str, sources: Mapping[_Key, tuple[Place, float]]) -> _Source | None:
    """How to compute a weight exactly from the file ``location``, if that is possible."""
    for order, stored in _ways(value):
        content = np.ascontiguousarray(value.transpose(np.argsort(order)))
        match = sources.get(_key(content.reshape(stored)))
        if match is not None:
            place, scale = match
            return _Source(location, replace(place, shape=content.shape), order, scale)
    return None


def _refer(model: onnx.ModelProto, location: str, sources: Mapping[_Key, tuple[Place, float]]) -> int:
    """Make the weights that the file ``location`` holds references to it; returns their number."""
    nodes: list[onnx.NodeProto] = []
    count = 0
    for weight in list(_inline(model)):
        source = _source(numpy_helper.to_array(weight), location, sources)
        if source is not None:
            _attach(model.graph, weight, source, nodes)
            count += 1
    _prepend(model.graph, nodes)
    return count


def _attach(
    graph: onnx.GraphProto, weight: TensorProto, source: _Source, nodes: list[onnx.NodeProto]
) -> None:
    """Make a weight a reference, and add the nodes that compute it, which runtimes run once at load."""
    target, stored = weight.data_type, source.place.data_type
    steps: list[tuple[str, dict[str, Any], list[str]]] = []
    if source.scale != 1.0:
        # In float32, since few CPUs have half arithmetic; the result is rounded as half would be.
        if stored != TensorProto.FLOAT:
            steps.append(("Cast", {"to": TensorProto.FLOAT}, []))
        steps.append(("Mul", {}, [_scalar(graph, source.scale)]))
        stored = TensorProto.FLOAT
    if stored != target:
        steps.append(("Cast", {"to": target}, []))
    if source.order != tuple(range(len(source.order))):
        steps.append(("Transpose", {"perm": list(source.order)}, []))
    name = weight.name
    last = weight.name = f"{name}.stored" if steps else name
    weight.data_type = source.place.data_type
    del weight.dims[:]
    weight.dims.extend(source.place.shape)
    point(weight, source.location, source.place)
    for i, (op, attributes, others) in enumerate(steps):
        output = name if i == len(steps) - 1 else f"{name}.step{i}"
        nodes.append(helper.make_node(op, [last, *others], [output], name=output, **attributes))
        last = output


def _prepend(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])


def _scalar(graph: onnx.GraphProto, value: float) -> str:
    """A float32 constant of the graph, added once."""
    name = f"shared.scale.{value}"
    if all(weight.name != name for weight in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(np.float32(value), name))
    return name


def _inline(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Floating-point weights worth a reference that are still in the graph."""
    for weight in model.graph.initializer:
        floats = weight.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16)
        if floats and weight.data_location != TensorProto.EXTERNAL and len(weight.raw_data) >= _SMALLEST:
            yield weight


def _common(models: Sequence[onnx.ModelProto]) -> dict[str, Array]:
    """Weights that several graphs still hold under one name, equal or equal after rounding to half."""
    held: dict[str, list[Array]] = {}
    for model in models:
        for weight in _inline(model):
            held.setdefault(weight.name, []).append(numpy_helper.to_array(weight))
    shared = {}
    for name, values in held.items():
        widest = max(values, key=lambda value: value.dtype.itemsize)
        if sum(_same(value, widest) for value in values) > 1:
            shared[name] = widest
    return shared


def _same(value: Array, stored: Array) -> bool:
    """Whether a weight equals the stored values in its own precision."""
    return value.shape == stored.shape and np.array_equal(value, stored.astype(value.dtype))


def _refer_to_constants(models: Sequence[onnx.ModelProto], path: Path, constants: dict[str, Array]) -> None:
    stored_at = places(path)
    for model in models:
        nodes: list[onnx.NodeProto] = []
        for weight in list(_inline(model)):
            stored = constants.get(weight.name)
            if stored is not None and _same(numpy_helper.to_array(weight), stored):
                place = stored_at[weight.name]
                source = _Source(path.name, place, tuple(range(len(place.shape))), 1.0)
                _attach(model.graph, weight, source, nodes)
        _prepend(model.graph, nodes)
