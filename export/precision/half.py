"""Where half precision fails the gate: the blocks to keep in float32, found by running them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from grmp_edge.errors import ParityError
from grmp_edge.export.fold import FoldedModel
from grmp_edge.export.graph.emit import build_onnx
from grmp_edge.export.graph.save import discard, save_graph
from grmp_edge.export.parity import Gate, Link

__all__ = ["float32_blocks", "judge_simulated"]


def judge_simulated(
    folded: FoldedModel,
    kept: frozenset[int],
    gate: Gate,
    folder: Path,
    written: Callable[[], None] = lambda: None,
) -> Link:
    """How half hardware would score with the blocks ``kept`` in float32.

    The simulation rounds and overflows after every operator; its sums are in float32, as on tensor cores.

    Args:
        folded: the constants.
        kept: indices of blocks.
        gate: what to compare with.
        folder: for the simulated graph, which is removed again.
        written: told when the constants have been read, before the graph runs.
    """
    file = folder / "simulated.onnx"
    save_graph(lambda weights: build_onnx(folded, "fp16", kept, True, weights=weights), file)
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
) -> tuple[frozenset[int], Link]:
    """The blocks that must stay in float32 for the simulation to pass, none where it passes as it is.

    Each block is run in half alone, which ranks them by harm; the shortest part of that ranking that
    passes is found by bisection; then every block of it that can go back to half does. No block of the
    result can be given back, though with harm spread evenly another set might be as small.

    Args:
        folded: the constants.
        gate: what to compare with.
        folder: for graphs that are removed again.
        progress: told of each run.
        written: as :func:`judge_simulated`'s.

    Returns:
        The indices, and how the simulation with them scores.

    Raises:
        ParityError: it fails even with a single block in half.
    """
    every = range(len(folded.blocks))

    def judge(kept: Sequence[int] | frozenset[int], words: str) -> Link:
        progress(f"checking a simulation of half hardware{words}")
        return judge_simulated(folded, frozenset(kept), gate, folder, written)

    found = first = judge((), "")
    if not found.problem:
        return frozenset(), found
    alone = [judge([i for i in every if i != block], f", block {block} alone in half") for block in every]
    # An overflow gives nan, which is worse than any number.
    harm = [link.max_abs if np.isfinite(link.max_abs) else np.inf for link in alone]
    ranked = sorted(every, key=lambda block: -harm[block])
    # With the whole ranking in float32 there is nothing half left, and it passes as float32 did.
    low, high = 1, len(ranked)
    while low < high:
        middle = (low + high) // 2
        if judge(ranked[:middle], f", {middle} blocks in float32").problem:
            low = middle + 1
        else:
            high = middle
    kept = ranked[:low]
    for block in reversed(list(kept)):  # the least harmful first
        fewer = [i for i in kept if i != block]
        if fewer and not judge(fewer, f", block {block} given back").problem:
            kept = fewer
    if len(kept) == len(ranked):
        raise ParityError(
            f"the fp16 graph does not score as PyTorch does: {first.problem}; "
            "tried to keep blocks in float32: every one would have to be",
            "nothing was written; export without --fp16",
        )
    return frozenset(kept), judge(kept, "")
