"""Eight-bit linear layers: where to clip, how to round, and two methods to express it in plain ONNX.

``static`` puts QuantizeLinear and DequantizeLinear around a MatMul, with scales from calibration, symmetric
int8 (weights use seven bits, by output channel). TensorRT reads it, and onnxruntime fuses it into integer
products.
``dynamic`` computes the scale of each activation in every run (DynamicQuantizeLinear, MatMulInteger).
Everything else (softmax, norms, the class token's head) stays float32.

Two more are for GPUs. Around a static graph's eight bits a strongly typed builder keeps float32, which is
slower than half; so ``int8-fp16`` and ``fp8`` are the half graph with eight-bit products: scales and all that
lies between the products are half, norms and head float32 as in ``fp16``. ``fp8`` is E4M3, for Ada and newer.

Tried for the static graph on ViT-B/16 and rejected (CPU time, onnxruntime 1.31, AVX-512 VNNI): three products
for queries, keys and values on one rounded input, which avoids the Split but is not fused (1.5 times the
time); eight-bit query-key products (no gain); uint8 instead of int8 activations (no gain); omitting two of
four biases (under 3 %). The eight-bit products take 58 % of the time, attention in float32 19 %, GELU 7 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx

from grmp_edge.export.fold import FoldedModel, Norm
from grmp_edge.export.graph.builder import DType, GraphBuilder, Value, Weight
from grmp_edge.export.graph.emit import Emitter, emit_model
from grmp_edge.export.precision.activations import Activations, JoinedEmitter

__all__ = [
    "GPU_OPSETS",
    "WEIGHT_LEVELS",
    "GpuMethod",
    "Method",
    "activation_scale",
    "build_int8",
    "layers",
    "quantize_weight",
    "smooth",
]

# Seven bits. x86 without VNNI adds two products of an unsigned activation and a signed weight in 16 bits with
# saturation: 2 x 255 x 64 fits, 2 x 255 x 127 does not, and a graph made on one CPU would compute something
# else on another. ONNX Runtime's own remedy (session.x64quantprecision) is slower, fails on weights that
# graphs share, and is a setting that a user of the ONNX file alone does not know.
WEIGHT_LEVELS = 64

GpuMethod = Literal["int8-fp16", "fp8"]
Method = Literal["static", "dynamic", "int8-fp16", "fp8"]
GPU_OPSETS = {
    "int8-fp16": 19,
    "fp8": 21,
}  # the first with half scales; the first whose FP8 needs no FP8 constants
_FP8_MAX = 448.0  # of E4M3
_FP8 = 17  # TensorProto.FLOAT8E4M3FN
Array = npt.NDArray[np.float32]


def layers(folded: FoldedModel) -> list[str]:
    """The names of the layers that are quantised, in order."""
    # The last block works on one token: it takes little time, and its keys and values are not plain products.
    last = len(folded.blocks) - 1
    names = []
    for index in range(last + 1):
        first = "attn.q" if index == last else "attn.qkv"
        names += [f"block{index}.{kind}" for kind in (first, "attn.out", "mlp.fc", "mlp.proj")]
    return names


def quantize_weight(weight: Array, levels: int = WEIGHT_LEVELS) -> tuple[npt.NDArray[np.int8], Array]:
    """Round (in, out) to -levels..levels as int8, symmetric, each output channel with its scale (out,)."""
    scale = np.maximum(np.abs(weight).max(axis=0), 1e-12) / levels
    rounded = np.clip(np.rint(weight / scale), -levels, levels)
    return rounded.astype(np.int8), scale.astype(np.float32)


def activation_scale(seen: Activations, levels: int = 127) -> float:
    """The step of symmetric int8 with the least mean squared error on the sampled values.

    Clipping a few outliers can cost less than the coarser step they would impose on all other values.
    """
    top = float(seen.channels.max())
    if top <= 0.0:
        return 1.0
    values = seen.sample.astype(np.float64)
    best, least = top / levels, np.inf
    for part in np.linspace(1.0, 0.3, 29):
        step = part * top / levels
        loss = float(np.square(np.clip(np.rint(values / step), -levels, levels) * step - values).mean())
        if loss < least * (1 - 1e-6):
            best, least = step, loss
    return best


def smooth(folded: FoldedModel, seen: Mapping[str, Activations], strength: float = 0.5) -> FoldedModel:
    """The same function with the range of loud channels moved from activations into weights.

    After SmoothQuant (Xiao et al., 2023): channel j of a layer's input is divided by
    max|x_j|^strength / max|w_j|^(1 - strength), and its weights are multiplied by it. The division is merged
    into the preceding LayerNorm (queries, keys, values; the MLP's first layer) or into the values' projection
    (the attention's output). After the GELU there is nothing to merge it into.

    Args:
        folded: the network; not changed.
        seen: its calibration.
        strength: 0 leaves the activations as they are, 1 equalises them fully.
    """
    made = []
    for index, block in enumerate(folded.blocks):
        name = f"block{index}"
        qkv = [block.q_weight, block.k_weight, block.v_weight]
        # In the last block all tokens read the first norm, though only one is multiplied by q's weights.
        if f"{name}.attn.qkv" in seen:
            by = _factors(seen[f"{name}.attn.qkv"].channels, qkv, strength)
            q, k, v = (_rows(weight, by) for weight in qkv)
            block = replace(block, ln_1=_divided(block.ln_1, by), q_weight=q, k_weight=k, v_weight=v)
        by = _factors(seen[f"{name}.mlp.fc"].channels, [block.fc_weight], strength)
        block = replace(block, ln_2=_divided(block.ln_2, by), fc_weight=_rows(block.fc_weight, by))
        by = _factors(seen[f"{name}.attn.out"].channels, [block.out_weight], strength)
        heads, _, depth = block.prompt_values.shape
        block = replace(
            block,
            v_weight=(block.v_weight / by).astype(np.float32),
            prompt_values=(block.prompt_values / by.reshape(heads, 1, depth)).astype(np.float32),
            out_weight=_rows(block.out_weight, by),
        )
        made.append(block)
    return replace(folded, blocks=tuple(made))


def _factors(channels: Array, weights: list[Array], strength: float) -> npt.NDArray[np.float64]:
    loud = channels.astype(np.float64)
    heavy = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0).astype(np.float64)
    usable = (loud > 1e-6) & (heavy > 1e-9)  # a silent channel neither needs nor gives a sensible scale
    by = np.where(usable, loud, 1.0) ** strength / np.where(usable, heavy, 1.0) ** (1.0 - strength)
    by = np.where(usable, by, 1.0)
    # Only ratios between channels matter; removing the common factor keeps the weights' magnitude.
    factors: npt.NDArray[np.float64] = np.clip(by / np.exp(np.log(by).mean()), 1e-3, 1e3)
    return factors


def _rows(weight: Array, by: npt.NDArray[np.float64]) -> Array:
    return (weight * by[:, None]).astype(np.float32)


def _divided(norm: Norm, by: npt.NDArray[np.float64]) -> Norm:
    return replace(
        norm, weight=(norm.weight / by).astype(np.float32), bias=(norm.bias / by).astype(np.float32)
    )


def build_int8(
    folded: FoldedModel,
    method: Method,
    scales: Mapping[str, float],
    wide: Set[str] = frozenset(),
    metadata: Mapping[str, str] | None = None,
    weights: list[Weight] | None = None,
    simulate_half: bool = False,
) -> onnx.ModelProto:
    """The graph with eight-bit linear layers; input and output as in :func:`build_onnx`.

    Args:
        folded: the network, smoothed or not.
        method: see the head of this module.
        scales: by layer, the step of its input in int8; ``dynamic`` needs none.
        wide: names of layers to leave in float32, for a GPU in half.
        metadata: strings for the model's metadata_props.
        weights: a list that takes the weights instead of the model.
        simulate_half: for a GPU: as in :func:`build_onnx`.
    """
    chosen = set(layers(folded)) - wide
    if method not in GPU_OPSETS:
        emitter: JoinedEmitter = _Int8(GraphBuilder(), folded, method, scales, chosen)
        return emit_model(emitter, metadata=metadata, weights=weights)
    builder = GraphBuilder(simulate_half, GPU_OPSETS[method])
    emitter = _Gpu(builder, folded, method, scales, chosen)
    return emit_model(emitter, "fp16", metadata=metadata, weights=weights)


class _Quantized(JoinedEmitter):
    def __init__(
        self,
        builder: GraphBuilder,
        folded: FoldedModel,
        method: Method,
        scales: Mapping[str, float],
        chosen: Set[str],
    ) -> None:
        super().__init__(builder, folded)
        self.method, self.scales, self.chosen = method, scales, chosen


class _Int8(_Quantized):
    def linear(self, name: str, x: Value, weight: Array, bias: Array | None = None) -> Value:
        if name not in self.chosen:
            return super().linear(name, x, weight, bias)
        g = self.g
        rounded, scale = quantize_weight(weight)
        w, zero = g.constant(f"{name}.weight", rounded, "i8"), np.zeros(len(scale))
        if self.method == "static":
            steps = g.constant(f"{name}.weight.scale", scale, "f32")
            zeros = g.constant(f"zeros.{len(scale)}.i8", zero, "i8")
            wide = g.convert("DequantizeLinear", {f"{name}.weight.wide": "f32"}, w, steps, zeros, axis=1)[0]
            product = g.op("MatMul", name, self._rounded(name, x), wide)
        else:
            values, step, point = self._measured(x)
            sums = g.convert("MatMulInteger", {f"{name}.sums": "i32"}, values, w, point)[0]
            both = g.op("Mul", f"{name}.scale", step, g.constant(f"{name}.weight.scale", scale, "f32"))
            product = g.op("Mul", name, g.cast(sums, "f32", f"{name}.wide"), both)
        if bias is None:
            return product
        return g.op("Add", f"{name}.sum", product, g.constant(f"{name}.bias", bias, "f32"))

    def _rounded(self, name: str, x: Value) -> Value:
        g, near = self.g, f"{x.name}.q"
        step = g.constant(f"{near}.scale", self.scales[name], "f32")
        zero = g.constant("zero.i8", 0, "i8")
        values = g.convert("QuantizeLinear", {near: "i8"}, x, step, zero)[0]
        return g.convert("DequantizeLinear", {f"{near}.wide": "f32"}, values, step, zero)[0]

    def _measured(self, x: Value) -> list[Value]:
        near = f"{x.name}.q"
        types: dict[str, DType] = {near: "u8", f"{near}.scale": "f32", f"{near}.zero": "u8"}
        return self.g.convert("DynamicQuantizeLinear", types, x)


class _Gpu(_Quantized):
    """Half everywhere that ``fp16`` is, with eight bits between QuantizeLinear and DequantizeLinear."""

    patch_rows = Emitter.patch_rows  # a convolution, as in fp16

    def linear(self, name: str, x: Value, weight: Array, bias: Array | None = None) -> Value:
        if name not in self.chosen or x.dtype != "f16":
            return super().linear(name, x, weight, bias)
        g = self.g
        # The calibrated step is of int8; the largest value that it stands for is the same.
        step = self.scales[name] * (127 / _FP8_MAX if self.method == "fp8" else 1.0)
        values = self._between(x, f"{x.name}.q", step)
        if self.method == "fp8":
            # One scale for all of it, as FP8 products want; rounded once, when the engine is built.
            largest = float(np.maximum(np.abs(weight).max(), 1e-12))
            wide = self._between(
                g.constant(f"{name}.weight", weight, "f16"), f"{name}.weight.q", largest / _FP8_MAX
            )
        else:
            rounded, scale = quantize_weight(weight, 127)
            steps = g.constant(f"{name}.weight.scale", scale, "f16")
            w = g.constant(f"{name}.weight", rounded, "i8")
            zeros = g.constant(f"zeros.{len(scale)}.i8", np.zeros(len(scale)), "i8")
            wide = g.convert("DequantizeLinear", {f"{name}.weight.wide": "f16"}, w, steps, zeros, axis=1)[0]
        product = g.op("MatMul", name, values, wide)
        if bias is None:
            return product
        return g.op("Add", f"{name}.sum", product, g.constant(f"{name}.bias", bias, "f16"))

    def _between(self, x: Value, name: str, step: float) -> Value:
        """A tensor rounded to eight bits and back."""
        g = self.g
        # A half smaller than this would be 0, and divide by it.
        scale = g.constant(f"{name}.scale", max(step, 2.0**-20), "f16")
        if self.method == "fp8":
            rounded = g.convert("QuantizeLinear", {name: "f8"}, x, scale, output_dtype=_FP8)[0]
            return g.convert("DequantizeLinear", {f"{name}.wide": "f16"}, rounded, scale)[0]
        zero = g.constant("zero.i8", 0, "i8")
        rounded = g.convert("QuantizeLinear", {name: "i8"}, x, scale, zero)[0]
        return g.convert("DequantizeLinear", {f"{name}.wide": "f16"}, rounded, scale, zero)[0]
