"""Where half precision fails the gate: which blocks to keep in float32, found by running them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from grmp_edge.errors import ParityError
from grmp_edge.export.fold import FoldedModel
from grmp_edge.export.graph.emit import build_onnx
from grmp_edge.export.graph.save import discard, save_graph
from grmp_edge.export.parity import Gate
from grmp_edge.parity import Verdict

__all__ = ["float32_blocks", "judge_simulated"]


def judge_simulated(
    folded: FoldedModel,
    wide: frozenset[int],
    gate: Gate,
    folder: Path,
    written: Callable[[], None] = lambda: None,
) -> Verdict:
    """How half-precision hardware would score with the blocks ``wide`` in float32.

    The simulation rounds and overflows after every operator; its sums are in float32, as on tensor cores.

    Args:
        folded: the constants.
        wide: indices of blocks.
        gate: what to compare with.
        folder: for the simulated graph, which is removed again.
        written: called when the constants have been read, before the graph runs.
    """
    file = folder / "simulated.onnx"
    save_graph(lambda weights: build_onnx(folded, "fp16", wide, True, weights=weights), file)
    written()
    try:
        return gate.judge("fp16", file, optimize=False)
    finally:
        discard(file)


def float32_blocks(
    folded: FoldedModel,
    gate: Gate,
    folder: Path,
    progress: Callable[[str], None] = lambda _: None,
    written: Callable[[], None] = lambda: None,
) -> tuple[frozenset[int], Verdict]:
    """The blocks that must stay in float32 for the simulation to pass; none where it passes without.

    Each block runs in half precision alone, which ranks the blocks by harm. Bisection finds the shortest head
    of that ranking that passes, and then every block of it that can return to half does. No block of the
    result can be spared, though where harm is spread evenly another set may be as small.

    Args:
        folded: the constants.
        gate: what to compare with.
        folder: for graphs that are removed again.
        progress: called with a description of each run.
        written: as in :func:`judge_simulated`.

    Returns:
        The indices, and the verdict on the simulation with them.

    Raises:
        ParityError: it fails even with a single block in half precision.
    """
    every = range(len(folded.blocks))

    def judge(blocks: Sequence[int] | frozenset[int], words: str) -> Verdict:
        progress(f"checking a simulation of half-precision hardware{words}")
        return judge_simulated(folded, frozenset(blocks), gate, folder, written)

    first = judge((), "")
    if not first.problem:
        return frozenset(), first
    alone = [judge([i for i in every if i != block], f", block {block} alone in half") for block in every]
    # An overflow gives nan, which is worse than any number.
    harm = [verdict.max_abs if np.isfinite(verdict.max_abs) else np.inf for verdict in alone]
    ranked = sorted(every, key=lambda block: -harm[block])
    # With the whole ranking in float32 nothing is left in half, and it passes as float32 did.
    low, high = 1, len(ranked)
    while low < high:
        middle = (low + high) // 2
        if judge(ranked[:middle], f", {middle} blocks in float32").problem:
            low = middle + 1
        else:
            high = middle
    wide = ranked[:low]
    for block in reversed(list(wide)):  # the least harmful first
        fewer = [i for i in wide if i != block]
        if fewer and not judge(fewer, f", block {block} back in half").problem:
            wide = fewer
    if len(wide) == len(ranked):
        raise ParityError(
            f"the fp16 graph does not score as PyTorch does: {first.problem}; "
            "keeping blocks in float32 does not help: it would have to be every one",
            "nothing was written; export without --fp16",
        )
    return frozenset(wide), judge(wide, "")
