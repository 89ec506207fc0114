"""Writes a folded model as ONNX, node by node: no tracing, no shape arithmetic, every type explicit.

The graph reads uint8 (batch, S, S, 3) RGB, begins with Cast, Transpose, Conv, and gives float32 (batch,). It
uses only operators of opset 17 that TensorRT's parser and every ONNX Runtime since 1.18 know.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from typing import Literal

import numpy as np
import onnx

from grmp_edge.errors import UsageError
from grmp_edge.export.fold import (
    Array,
    FoldedBlock,
    FoldedBottleneck,
    FoldedConv,
    FoldedModel,
    FoldedStem,
    Norm,
)
from grmp_edge.export.graph.builder import OPSET, DType, GraphBuilder, Output, Value, Weight

__all__ = ["OPSET", "Emitter", "GraphPrecision", "build_onnx", "emit_model"]

GraphPrecision = Literal["fp32", "fp16"]


def build_onnx(
    folded: FoldedModel,
    precision: GraphPrecision = "fp32",
    fp32_blocks: Set[int] = frozenset(),
    simulate_half: bool = False,
    metadata: Mapping[str, str] | None = None,
    weights: list[Weight] | None = None,
) -> onnx.ModelProto:
    """Build the graph of a folded model.

    With ``fp16`` the graph is strongly typed: weights and activations are half; the pixels, the patch
    embedding, LayerNorm and everything after the last block (norms, projection, cosine, sigmoid) are float32.

    Args:
        folded: the constants.
        precision: of the blocks.
        fp32_blocks: with ``fp16``, indices of blocks to keep in float32. From the first of them on the
            residual stream stays float32, so that it can carry values that would overflow half.
        simulate_half: emit a float32 graph that rounds and overflows where half-precision hardware would. It
            is for the parity gate, must be run without graph optimisations, and is never deployed.
        metadata: strings for the model's metadata_props.
        weights: a list that takes the weights instead of the model.

    Returns:
        A model with input ``images`` and output ``scores`` (0..1).

    Raises:
        UsageError: an index in ``fp32_blocks`` is not a block.
    """
    outside = sorted(set(fp32_blocks) - set(range(len(folded.blocks))))
    if outside:
        raise UsageError(f"there is no block {outside[0]}, only 0..{len(folded.blocks) - 1}")
    builder = GraphBuilder(simulate_half=simulate_half)
    return emit_model(Emitter(builder, folded), precision, fp32_blocks, metadata, weights)


def emit_model(
    emitter: Emitter,
    precision: GraphPrecision = "fp32",
    fp32_blocks: Set[int] = frozenset(),
    metadata: Mapping[str, str] | None = None,
    weights: list[Weight] | None = None,
) -> onnx.ModelProto:
    """Emit the whole graph; see :func:`build_onnx`."""
    builder, blocks = emitter.g, emitter.folded.blocks
    x = emitter.embed("f16" if precision == "fp16" else "f32")
    stream: DType = "f16" if precision == "fp16" else "f32"
    for index, block in enumerate(blocks):
        dtype: DType = "f32" if index in fp32_blocks else "f16" if precision == "fp16" else "f32"
        stream = "f32" if dtype == "f32" else stream
        x = builder.cast(x, stream, f"block{index}.in")
        emit = emitter.last_block if index == len(blocks) - 1 else emitter.block
        x = emit(f"block{index}", x, block, dtype)
    outputs = emitter.head(builder.cast(x, "f32", "cls"))
    return builder.model("grmp-edge", outputs, metadata or {}, weights)


class Emitter:
    """Emits the parts of one network; B is the batch, L the tokens, W their width, H heads of D."""

    def __init__(self, builder: GraphBuilder, folded: FoldedModel) -> None:
        self.g = builder
        self.folded = folded
        self.heads = folded.heads
        self.head_width = folded.width // folded.heads
        images = builder.input("images", "u8", ("batch", folded.size, folded.size, 3))
        self.pixels = builder.cast(images, "f32", "pixels")
        self._zeros: dict[DType, Value] = {}
        self.straight: Value | None = None  # (B, 1), what statistics add to the score's logit

    def repeated(self, name: str, constant: Value) -> Value:
        """A constant (1, ...) of four axes, repeated over the batch.

        It adds zeros of shape (B, 1, 1, 1), a pixel times zero. That is as fast as Expand, and the graph
        never has to read the batch size.
        """
        g = self.g
        if not self._zeros:
            corner = g.op("Slice", "corner", self.pixels, g.ints(0, 0, 0), g.ints(1, 1, 1), g.ints(1, 2, 3))
            self._zeros["f32"] = g.op("Mul", "zero", corner, g.constant("nothing", 0.0, "f32"))
        if constant.dtype not in self._zeros:
            self._zeros[constant.dtype] = g.cast(self._zeros["f32"], constant.dtype, "zero.half")
        return g.op("Add", name, constant, self._zeros[constant.dtype])

    def embed(self, dtype: DType) -> Value:
        """The tokens (B, L, W) before the first block, float32; a stem's convolutions are of ``dtype``."""
        g, folded = self.g, self.folded
        if folded.stem is not None:
            padded = self.stem_tokens(folded.stem, dtype)
        else:
            # A row of zeros in front makes room for the class token, which the addition fills in.
            padded = g.op("Pad", "tokens.padded", self.patch_rows(), g.ints(0, 1, 0, 0, 0, 0))
        tokens = g.op("Add", "tokens", padded, g.constant("tokens.constant", folded.tokens[None], "f32"))
        return tokens if folded.ln_pre is None else self.norm("ln_pre", tokens, folded.ln_pre)

    def patch_rows(self) -> Value:
        """The embedded patches (B, patches, W), float32, without their constant."""
        g, folded = self.g, self.folded
        planes = g.op("Transpose", "planes", self.pixels, perm=[0, 3, 1, 2])
        weight = g.constant("patches.weight", folded.patch_weight, "f32")
        side = [folded.patch, folded.patch]
        patches = g.op("Conv", "patches", planes, weight, kernel_shape=side, strides=side)
        flat = g.op("Reshape", "patches.flat", patches, g.ints(0, folded.width, -1))
        return g.op("Transpose", "patches.rows", flat, perm=[0, 2, 1])

    def stem_tokens(self, stem: FoldedStem, dtype: DType) -> Value:
        """A stem's tokens (B, 1 + stages + places, W), float32, without their constant."""
        g, width = self.g, self.folded.width
        planes = g.op("Transpose", "planes", self.pixels, perm=[0, 3, 1, 2])
        # Before the padding of the first convolution, whose zeros are those of normalised pixels.
        centred = g.op(
            "Sub", "planes.centred", planes, g.constant("pixels.mean", stem.mean[:, None, None], "f32")
        )
        x = g.op("Div", "planes.normal", centred, g.constant("pixels.std", stem.std[:, None, None], "f32"))
        x = self.conv("stem.conv", g.cast(x, dtype, "planes.in"), stem.conv, clip=True)
        statistics, fine = [], x
        for index, stage in enumerate(stem.stages):
            x = self.bottleneck(f"stem.{index}", x, stage)
            statistics.append(
                self.statistics(f"stem.{index}", g.cast(x, "f32", f"stem.{index}.wide"), stem.eps)
            )
            fine = x if index == stem.fine_stage else fine
        places = g.op(
            "Add",
            "places",
            self.places_of("fine", g.cast(fine, "f32", "fine.in"), stem.fine_weight),
            self.places_of("grid", g.cast(x, "f32", "grid.in"), stem.grid_weight),
        )
        flat = g.op("Reshape", "places.flat", places, g.ints(0, width, -1))
        rows = [g.op("Transpose", "places.rows", flat, perm=[0, 2, 1])]
        joined = g.op("Concat", "statistics", *statistics, axis=1)
        scale = g.constant("statistics.scale", stem.statistics_scale, "f32")
        joined = g.op("Mul", "statistics.scaled", joined, scale)
        if len(self.folded.head_row):
            row = g.constant("statistics.row", self.folded.head_row[:, None], "f32")
            self.straight = g.op("MatMul", "statistics.logit", joined, row)
        names = [f"statistics.{index}" for index in range(len(stem.stages))]
        widths = g.ints(*(len(weight) for weight in stem.token_weights))
        inputs = [joined, *g.ops("Split", "statistics.split", names, joined, widths, axis=1)]
        for index, (own, weight) in enumerate(
            zip(inputs, (stem.class_weight, *stem.token_weights), strict=True)
        ):
            name = f"statistics.{index - 1}" if index else "statistics.class"
            product = g.op("MatMul", f"{name}.token", own, g.constant(f"{name}.weight", weight, "f32"))
            rows.insert(index, g.op("Reshape", f"{name}.row", product, g.ints(0, 1, width)))
        return g.op("Concat", "tokens.rows", *rows, axis=1)

    def places_of(self, name: str, x: Value, weight: Array) -> Value:
        """A convolution without overlap, to (B, W, side, side)."""
        side = [weight.shape[2], weight.shape[3]]
        own = self.g.constant(f"{name}.weight", weight, x.dtype)
        return self.g.op("Conv", name, x, own, kernel_shape=side, strides=side)

    def bottleneck(self, name: str, x: Value, stage: FoldedBottleneck) -> Value:
        """An inverted bottleneck over (B, C, S, S)."""
        hidden = x if stage.expand is None else self.conv(f"{name}.expand", x, stage.expand, clip=True)
        hidden = self.conv(f"{name}.depthwise", hidden, stage.depthwise, clip=True)
        out = self.conv(f"{name}.project", hidden, stage.project)
        return self.g.op("Add", f"{name}.sum", out, x) if stage.skips else out

    def conv(self, name: str, x: Value, conv: FoldedConv, clip: bool = False) -> Value:
        """A convolution, in the type of ``x``; ``clip`` is ReLU6."""
        g, side = self.g, conv.weight.shape[2]
        weight = g.constant(f"{name}.weight", conv.weight, x.dtype)
        bias = g.constant(f"{name}.bias", conv.bias, x.dtype)
        before, behind = conv.pads
        out = g.op(
            "Conv", name, x, weight, bias,
            kernel_shape=[side, side], strides=[conv.stride] * 2, group=conv.groups,
            pads=[before, before, behind, behind],
        )  # fmt: skip
        return self.relu6(name, out) if clip else out

    def relu6(self, name: str, x: Value) -> Value:
        """To 0..6."""
        low, high = (self.g.constant(f"{at}.{x.dtype}", at, x.dtype) for at in (0.0, 6.0))
        return self.g.op("Clip", f"{name}.clip", x, low, high)

    def statistics(self, name: str, x: Value, eps: float) -> Value:
        """Means and deviations over the places of (B, C, S, S), float32: (B, 2 C)."""
        g = self.g
        mean = g.op("ReduceMean", f"{name}.mean", x, axes=[2, 3], keepdims=1)
        centred = g.op("Sub", f"{name}.centred", x, mean)
        square = g.op("Mul", f"{name}.square", centred, centred)
        variance = g.op("ReduceMean", f"{name}.variance", square, axes=[2, 3], keepdims=1)
        shifted = g.op("Add", f"{name}.variance.eps", variance, g.constant("statistics.eps", eps, "f32"))
        both = g.op("Concat", f"{name}.both", mean, g.op("Sqrt", f"{name}.deviation", shifted), axis=1)
        return g.op("Reshape", f"{name}.statistics", both, g.ints(0, -1))

    def block(self, name: str, x: Value, block: FoldedBlock, dtype: DType) -> Value:
        """One whole block over (B, L, W), computed in ``dtype``; the result has the type of ``x``."""
        g = self.g
        normed = g.cast(self.norm(f"{name}.ln_1", x, block.ln_1), dtype, f"{name}.ln_1.out")
        query, key, value = self.heads_of(name, normed, block)
        if block.prompt_keys.shape[1]:
            keys = g.constant(f"{name}.prompt.keys", block.prompt_keys[None], dtype)
            values = g.constant(f"{name}.prompt.values", block.prompt_values[None], dtype)
            keys = self.repeated(f"{name}.prompt.k", keys)
            values = self.repeated(f"{name}.prompt.v", values)
            key = g.op("Concat", f"{name}.attn.k.all", key, keys, axis=2)
            value = g.op("Concat", f"{name}.attn.v.all", value, values, axis=2)
        # Transposed last and in two axes only, so that runtimes make it part of the product.
        key = g.op("Transpose", f"{name}.attn.k.t", key, perm=[0, 1, 3, 2])
        weights = g.op(
            "Softmax", f"{name}.attn.weights", g.op("MatMul", f"{name}.attn.scores", query, key), axis=-1
        )
        mixed = g.op("MatMul", f"{name}.attn.mixed", weights, value)
        mixed = g.op("Transpose", f"{name}.attn.mixed.t", mixed, perm=[0, 2, 1, 3])
        mixed = g.op("Reshape", f"{name}.attn.mixed.tokens", mixed, g.ints(0, 0, self.folded.width))
        return self.rest(name, x, mixed, block, dtype)

    def heads_of(self, name: str, normed: Value, block: FoldedBlock) -> tuple[Value, Value, Value]:
        """Queries, keys and values (B, H, L, D) of the image tokens."""
        projected = (
            self.linear(f"{name}.attn.q", normed, block.q_weight, block.q_bias),
            self.linear(f"{name}.attn.k", normed, block.k_weight),
            self.linear(f"{name}.attn.v", normed, block.v_weight),
        )
        query, key, value = (
            self.split_heads(f"{name}.attn.{kind}", part, self.heads)
            for kind, part in zip("qkv", projected, strict=True)
        )
        return query, key, value

    def last_block(self, name: str, x: Value, block: FoldedBlock, dtype: DType) -> Value:
        """The last block from (B, L, W) to its class token (B, 1, W), the only one that is read.

        With a single query the keys and values of all tokens need not be computed: q (n Wk)' = (q Wk') n' and
        a (n Wv) = (a n) Wv.
        """
        g, heads, width = self.g, self.heads, self.folded.width
        tokens = self.folded.length
        prompts = int(block.prompt_keys.shape[1])
        normed = g.cast(self.norm(f"{name}.ln_1", x, block.ln_1), dtype, f"{name}.ln_1.out")
        first = self.linear(
            f"{name}.attn.q", self.class_token(f"{name}.cls", normed), block.q_weight, block.q_bias
        )
        query = g.op("Reshape", f"{name}.attn.q.heads", first, g.ints(0, heads, 1, self.head_width))
        by_head = block.k_weight.reshape(width, heads, -1).transpose(1, 2, 0)
        key_weight = g.constant(f"{name}.attn.k.weight", by_head, dtype)  # (H, D, W)
        reach = g.op("MatMul", f"{name}.attn.qk", query, key_weight)
        reach = g.op("Reshape", f"{name}.attn.qk.heads", reach, g.ints(0, heads, width))
        turned = g.op("Transpose", f"{name}.ln_1.t", normed, perm=[0, 2, 1])
        scores = g.op("MatMul", f"{name}.attn.scores", reach, turned)  # (B, H, L)
        if prompts:
            keys = g.constant(f"{name}.prompt.keys", block.prompt_keys.transpose(0, 2, 1), dtype)
            extra = g.op("MatMul", f"{name}.prompt.scores", query, keys)
            extra = g.op("Reshape", f"{name}.prompt.scores.heads", extra, g.ints(0, heads, prompts))
            scores = g.op("Concat", f"{name}.attn.scores.all", scores, extra, axis=2)
        weights = g.op("Softmax", f"{name}.attn.weights", scores, axis=-1)
        if prompts:
            parts = [f"{name}.attn.weights.image", f"{name}.attn.weights.prompt"]
            weights, of_prompts = g.ops(
                "Split", f"{name}.attn.weights.split", parts, weights, g.ints(tokens, prompts), axis=2
            )
        mixed = g.op("MatMul", f"{name}.attn.mixed", weights, normed)  # (B, H, W)
        mixed = g.op("Reshape", f"{name}.attn.mixed.heads", mixed, g.ints(0, heads, 1, width))
        by_head = block.v_weight.reshape(width, heads, -1).transpose(1, 0, 2)
        mixed = g.op("MatMul", f"{name}.attn.v", mixed, g.constant(f"{name}.attn.v.weight", by_head, dtype))
        if prompts:
            of_prompts = g.op("Reshape", f"{name}.prompt.weights", of_prompts, g.ints(0, heads, 1, prompts))
            values = g.constant(f"{name}.prompt.values", block.prompt_values, dtype)
            added = g.op("MatMul", f"{name}.prompt.mixed", of_prompts, values)
            mixed = g.op("Add", f"{name}.attn.mixed.all", mixed, added)
        mixed = g.op("Reshape", f"{name}.attn.mixed.tokens", mixed, g.ints(0, 1, width))
        return self.rest(name, self.class_token(f"{name}.residual", x), mixed, block, dtype)

    def rest(self, name: str, x: Value, mixed: Value, block: FoldedBlock, dtype: DType) -> Value:
        """The rest of a block: output projection, MLP and both residual additions."""
        g = self.g
        out = self.linear(f"{name}.attn.out", mixed, block.out_weight, block.out_bias)
        x = g.op("Add", f"{name}.middle", x, g.cast(out, x.dtype, f"{name}.attn.out.wide"))
        normed = g.cast(self.norm(f"{name}.ln_2", x, block.ln_2), dtype, f"{name}.ln_2.out")
        hidden = self.linear(f"{name}.mlp.fc", normed, block.fc_weight, block.fc_bias)
        out = self.linear(
            f"{name}.mlp.proj", self.activation(f"{name}.mlp", hidden), block.proj_weight, block.proj_bias
        )
        return g.op("Add", f"{name}.out", x, g.cast(out, x.dtype, f"{name}.mlp.proj.wide"))

    def head(self, cls: Value) -> list[Output]:
        """From the class token (B, 1, W) to the scores (B,), and the logits (B, 1 + causes), in float32."""
        g, folded = self.g, self.folded
        if folded.prompt_norm is not None:
            cls = self.norm("prompt_norm", cls, folded.prompt_norm)
        cls = self.norm("ln_post", cls, folded.ln_post)
        feature = g.op("MatMul", "feature", cls, g.constant("proj", folded.proj, "f32"))
        rows, bias = folded.direction[:, None], np.array([folded.head_bias], np.float32)
        if folded.causes:
            rows = np.concatenate([rows, folded.cause_rows], axis=1)
            bias = np.concatenate([bias, folded.cause_bias])
        along = g.op("MatMul", "along", feature, g.constant("direction", rows, "f32"))
        length = g.op("ReduceL2", "length", feature, axes=[2], keepdims=1)
        logit = g.op("Div", "logit", along, length)
        if self.straight is not None:
            # As all logits have it: the score's own, and nothing for the causes.
            first = np.eye(1, len(bias), dtype=np.float32)
            added = g.op("MatMul", "logit.straight", self.straight, g.constant("logit.first", first, "f32"))
            logit = g.op(
                "Add", "logit.both", logit, g.op("Unsqueeze", "logit.straight.rows", added, g.ints(1))
            )
        # Also where it is 0: `grmp-edge calibrate` puts another in its place.
        logit = g.op("Add", "logit.sum", logit, g.constant("bias", bias, "f32"))
        outputs: list[Output] = []
        if folded.reads:
            outputs.append((g.op("Reshape", "logits", logit, g.ints(0, -1)), ("batch", len(bias))))
        if folded.causes:
            logit = g.op("Slice", "logit.score", logit, g.ints(0), g.ints(1), g.ints(2))
        scores = g.op("Squeeze", "scores", g.op("Sigmoid", "high", logit), g.ints(1, 2))
        return [(scores, ("batch",)), *outputs]

    def norm(self, name: str, x: Value, norm: Norm) -> Value:
        """LayerNorm over the last axis, in float32 whatever the type of ``x``."""
        g = self.g
        weight = g.constant(f"{name}.weight", norm.weight, "f32")
        bias = g.constant(f"{name}.bias", norm.bias, "f32")
        wide = g.cast(x, "f32", f"{name}.in")
        return g.op("LayerNormalization", name, wide, weight, bias, axis=-1, epsilon=norm.eps)

    def linear(self, name: str, x: Value, weight: Array, bias: Array | None = None) -> Value:
        """``x @ weight + bias`` in the type of ``x``."""
        g = self.g
        product = g.op("MatMul", name, x, g.constant(f"{name}.weight", weight, x.dtype))
        return (
            product
            if bias is None
            else g.op("Add", f"{name}.sum", product, g.constant(f"{name}.bias", bias, x.dtype))
        )

    def split_heads(self, name: str, x: Value, heads: int) -> Value:
        """(B, L, heads x D) to (B, heads, L, D)."""
        split = self.g.op("Reshape", f"{name}.split", x, self.g.ints(0, 0, heads, self.head_width))
        return self.g.op("Transpose", f"{name}.heads", split, perm=[0, 2, 1, 3])

    def class_token(self, name: str, x: Value) -> Value:
        """(B, L, W) to (B, 1, W)."""
        return self.g.op("Slice", name, x, self.g.ints(0), self.g.ints(1), self.g.ints(1))

    def activation(self, name: str, x: Value) -> Value:
        """GELU or QuickGELU, in the pattern that runtimes recognise and fuse."""
        g = self.g
        if self.folded.activation == "quick_gelu":
            scaled = g.op("Mul", f"{name}.act.scaled", x, self.number("quick", 1.702, x.dtype))
            return g.op("Mul", f"{name}.act", x, g.op("Sigmoid", f"{name}.act.sigmoid", scaled))
        scaled = g.op("Div", f"{name}.act.scaled", x, self.number("sqrt2", math.sqrt(2.0), x.dtype))
        error = g.op("Erf", f"{name}.act.erf", scaled)
        twice = g.op(
            "Mul",
            f"{name}.act.twice",
            x,
            g.op("Add", f"{name}.act.plus1", error, self.number("one", 1.0, x.dtype)),
        )
        return g.op("Mul", f"{name}.act", twice, self.number("half", 0.5, x.dtype))

    def number(self, name: str, value: float, dtype: DType) -> Value:
        """A scalar constant, shared within each type."""
        return self.g.constant(f"{name}.{dtype}", value, dtype)
