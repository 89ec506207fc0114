"""What the inputs of the linear layers look like on real pictures: what static quantisation needs to know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from grmp_edge.export.fold import FoldedBlock, FoldedModel
from grmp_edge.export.graph import GraphBuilder, Value, Weight
from grmp_edge.export.save import discard, save_graph
from grmp_edge.export.to_onnx import Emitter, emit_model
from grmp_edge.runtime.bench import open_session

__all__ = ["Activations", "JoinedEmitter", "calibrate"]

Float32Array = npt.NDArray[np.float32]

_SAMPLE = 1 << 13  # values kept of each input and batch: enough for the tail at three sigma and more


@dataclass(frozen=True)
class Activations:
    """The inputs of one linear layer over the calibration pictures."""

    channels: Float32Array  # (inputs,), the largest magnitude of each
    sample: Float32Array  # (m,), values drawn evenly


class JoinedEmitter(Emitter):
    """Computes queries, keys and values by one product: three that share a rounded input are not fused."""

    def projections(self, name: str, normed: Value, block: FoldedBlock) -> tuple[Value, Value, Value]:
        """As in :class:`Emitter`; the layer is called ``attn.qkv``."""
        g, width = self.g, self.folded.width
        weight = np.concatenate([block.q_weight, block.k_weight, block.v_weight], axis=1)
        joined = self.linear(f"{name}.attn.qkv", normed, weight)
        names = [f"{name}.attn.q", f"{name}.attn.k", f"{name}.attn.v"]
        q, k, v = g.ops("Split", f"{name}.attn.split", names, joined, g.ints(width, width, width), axis=2)
        return (
            g.op("Add", f"{name}.attn.q.sum", q, g.constant(f"{name}.attn.q.bias", block.q_bias, "f32")),
            k,
            v,
        )


class _Noting(JoinedEmitter):
    """Emits float32 and notes what each linear layer reads."""

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
    batch: int = 2,  # the activations of one batch are all held at once
) -> dict[str, Activations]:
    """Run the float32 graph on pictures and look at the input of every linear layer.

    Args:
        folded: the network.
        images: uint8 (n, S, S, 3), as the graph reads them.
        folder: for a graph that is removed again.
        progress: told of the stage.
        batch: pictures in one run.

    Returns:
        By the layer's name, such as ``block0.mlp.fc``.
    """
    progress(f"calibrating on {len(images)} pictures")
    read: dict[str, str] = {}

    def make(weights: list[Weight]) -> onnx.ModelProto:
        emitter = _Noting(GraphBuilder(), folded)
        model = emit_model(emitter, weights=weights)
        read.update(emitter.read)
        for name in dict.fromkeys(read.values()):
            model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 3))
        return model

    file = folder / "calibration.onnx"
    save_graph(make, file)
    tensors = list(dict.fromkeys(read.values()))
    try:
        found = _observe(file, tensors, images, batch)
    finally:
        discard(file)
    return {layer: found[tensor] for layer, tensor in read.items()}


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
            # An odd stride, so that it does not keep meeting the same channels.
            samples[name].append(rows.reshape(-1)[:: max(1, rows.size // _SAMPLE) | 1].copy())
    return {name: Activations(largest[name], np.concatenate(samples[name])) for name in tensors}
