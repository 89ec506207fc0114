"""The ranges of the linear layers' inputs on real pictures, which static quantisation needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from grmp_edge.export.fold import FoldedBlock, FoldedModel
from grmp_edge.export.graph.builder import GraphBuilder, Value, Weight
from grmp_edge.export.graph.emit import Emitter, emit_model
from grmp_edge.export.graph.save import discard, save_graph
from grmp_edge.runtime.backends import open_session

__all__ = ["Activations", "JoinedEmitter", "calibrate"]

Float32Array = npt.NDArray[np.float32]

_SAMPLE = 1 << 13  # values sampled from each input and batch, enough for the tail beyond three sigma


@dataclass(frozen=True)
class Activations:
    """The inputs of one linear layer over the calibration pictures."""

    channels: Float32Array  # (inputs,), the largest magnitude in each channel
    sample: Float32Array  # (m,), values drawn evenly


class JoinedEmitter(Emitter):
    """Lays the graph out for CPUs, which eight bits are meant for.

    Queries, keys and values are one product, since three that share a rounded input are not fused. The
    patches are one product too, with pixels moved in rows of a patch instead of one by one.
    """

    def patch_rows(self) -> Value:
        """As in :class:`Emitter`."""
        g, patch = self.g, self.folded.patch
        side, rest = divmod(self.folded.size, patch)
        if rest:  # a border that no patch reads
            return super().patch_rows()
        strips = g.op("Reshape", "strips", self.pixels, g.ints(0, side, patch, side, 3 * patch))
        cells = g.op("Transpose", "cells", strips, perm=[0, 1, 3, 2, 4])
        rows = g.op("Reshape", "cells.rows", cells, g.ints(0, side * side, 3 * patch * patch))
        weight = self.folded.patch_weight.transpose(2, 3, 1, 0).reshape(3 * patch * patch, -1)
        return g.op("MatMul", "patches", rows, g.constant("patches.rows.weight", weight, "f32"))

    def heads_of(self, name: str, normed: Value, block: FoldedBlock) -> tuple[Value, Value, Value]:
        """As in :class:`Emitter`; the layer is called ``attn.qkv``."""
        g, heads = self.g, self.heads
        weight = np.concatenate([block.q_weight, block.k_weight, block.v_weight], axis=1)
        # Transposed before the split: one pass over memory, and the parts are contiguous.
        joined = self.split_heads(
            f"{name}.attn.qkv", self.linear(f"{name}.attn.qkv", normed, weight), 3 * heads
        )
        names = [f"{name}.attn.q", f"{name}.attn.k", f"{name}.attn.v"]
        query, key, value = g.ops(
            "Split", f"{name}.attn.split", names, joined, g.ints(heads, heads, heads), axis=1
        )
        bias = g.constant(f"{name}.attn.q.bias", block.q_bias.reshape(1, heads, 1, -1), query.dtype)
        shifted = g.op("Add", f"{name}.attn.q.sum", query, bias)
        return shifted, key, value


class _Recorder(JoinedEmitter):
    """Emits float32 and records the input of each linear layer."""

    def __init__(self, builder: GraphBuilder, folded: FoldedModel) -> None:
        super().__init__(builder, folded)
        self.read: dict[str, str] = {}

    def linear(self, name: str, x: Value, weight: Float32Array, bias: Float32Array | None = None) -> Value:
        self.read[name] = x.name
        return super().linear(name, x, weight, bias)


def calibrate(
    folded: FoldedModel,
    images: npt.NDArray[np.uint8],
    folder: Path,
    progress: Callable[[str], None] = lambda _: None,
    batch: int = 2,  # all activations of a batch are in memory at once
) -> dict[str, Activations]:
    """Run the float32 graph on pictures and observe the input of every linear layer.

    Args:
        folded: the network.
        images: uint8 (n, S, S, 3), as the graph reads them.
        folder: for a temporary graph.
        progress: called with a description of the stage.
        batch: pictures per run.

    Returns:
        By the layer's name, such as ``block0.mlp.fc``.
    """
    progress(f"calibrating on {len(images)} pictures")
    read: dict[str, str] = {}

    def make(weights: list[Weight]) -> onnx.ModelProto:
        emitter = _Recorder(GraphBuilder(), folded)
        model = emit_model(emitter, weights=weights)
        read.update(emitter.read)
        for name in dict.fromkeys(read.values()):
            model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 3))
        return model

    file = folder / "calibration.onnx"
    save_graph(make, file)
    tensors = list(dict.fromkeys(read.values()))
    try:
        observed = _observe(file, tensors, images, batch)
    finally:
        discard(file)
    return {layer: observed[tensor] for layer, tensor in read.items()}


def _observe(
    file: Path, tensors: Sequence[str], images: npt.NDArray[np.uint8], batch: int
) -> dict[str, Activations]:
    session = open_session(file)
    largest: dict[str, Float32Array] = {}
    samples: dict[str, list[Float32Array]] = {name: [] for name in tensors}
    for at in range(0, len(images), batch):
        for name, values in zip(
            tensors, session.run(list(tensors), {"images": images[at : at + batch]}), strict=True
        ):
            rows = np.asarray(values).reshape(-1, values.shape[-1])
            top = np.abs(rows).max(axis=0)
            largest[name] = np.maximum(largest[name], top) if name in largest else top
            # An odd stride, so that it does not always hit the same channels.
            samples[name].append(rows.reshape(-1)[:: max(1, rows.size // _SAMPLE) | 1].copy())
    return {name: Activations(largest[name], np.concatenate(samples[name])) for name in tensors}
