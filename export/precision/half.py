"""Where half precision fails the gate: which blocks to keep in float32, found by running them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from grmp_edge.errors import ParityError
from grmp_edge.export.fold import FoldedModel
from grmp_edge.export.graph.emit import build_onnx
from grmp_edge.export.graph.save import discard, save_graph
from grmp_edge.export.parity import Gate, graph_readings
from grmp_edge.parity import Verdict

__all__ = ["HalfConfig", "float32_blocks", "simulated_readings"]


@dataclass(frozen=True)
class HalfConfig:
    """How float32 blocks are searched for."""

    ranking_images: int = 8  # of the gate's; ranking needs fewer than judging
    # After this long a good answer has to do: blocks not ranked yet count as harmless, and those that could
    # perhaps return to half stay in float32. What passed the gate by then is exported.
    search_s: float = 300.0


def simulated_readings(
    folded: FoldedModel,
    wide: frozenset[int],
    gate: Gate,
    folder: Path,
    written: Callable[[], None] = lambda: None,
    count: int | None = None,
) -> npt.NDArray[np.float64]:
    """What half-precision hardware would read of the gate's pictures with the blocks ``wide`` in float32.

    The simulation rounds and overflows after every operator; its sums are in float32, as on tensor cores.

    Args:
        folded: the constants.
        wide: indices of blocks.
        gate: whose pictures.
        folder: for the simulated graph, which is removed again.
        written: called when the constants have been read, before the graph runs.
        count: the first of the pictures; None: all.

    Returns:
        (n, 1 + causes), as :func:`graph_readings`.
    """
    file = folder / "simulated.onnx"
    save_graph(lambda weights: build_onnx(folded, "fp16", wide, True, weights=weights), file)
    written()
    try:
        return graph_readings(file, gate.images[:count], gate.config.batch, optimize=False)
    finally:
        discard(file)


def float32_blocks(
    folded: FoldedModel,
    gate: Gate,
    folder: Path,
    progress: Callable[[str], None] = lambda _: None,
    written: Callable[[], None] = lambda: None,
    config: HalfConfig | None = None,
) -> tuple[frozenset[int], Verdict]:
    """The blocks that must stay in float32 for the simulation to pass; none where it passes without.

    Each block runs in half precision alone, which ranks the blocks by harm. Bisection finds the shortest head
    of that ranking that passes, and bisection again finds what of it can return to half. Within the time of
    ``config`` no block of the result can be spared, though another set may be as small.

    Args:
        folded: the constants.
        gate: what to compare with.
        folder: for graphs that are removed again.
        progress: called with a description of each run.
        written: as in :func:`simulated_readings`.
        config: how long to search.

    Returns:
        The indices, and the verdict on the simulation with them.

    Raises:
        ParityError: it fails even with a single block in half precision.
    """
    config = config or HalfConfig()
    every = range(len(folded.blocks))
    verdicts: dict[frozenset[int], Verdict] = {}

    def passes(blocks: Sequence[int], words: str) -> bool:
        progress(f"checking a simulation of half-precision hardware{words}")
        wide = frozenset(blocks)
        readings = simulated_readings(folded, wide, gate, folder, written)
        verdicts[wide] = gate.judge_readings("fp16", readings)
        return not verdicts[wide].problem

    if passes((), ""):
        return frozenset(), verdicts[frozenset()]
    end = time.monotonic() + config.search_s
    harm = dict.fromkeys(every, 0.0)
    for block in every:
        if time.monotonic() > end:
            break
        progress(f"checking a simulation of half-precision hardware, block {block} alone in half")
        others = frozenset(every) - {block}
        readings = simulated_readings(folded, others, gate, folder, written, config.ranking_images)
        difference = float(np.abs(readings - gate.readings[: config.ranking_images]).max())
        # An overflow gives nan, which is worse than any number.
        harm[block] = np.nan_to_num(difference, nan=np.inf)
    ranked = sorted(every, key=lambda block: -harm[block])
    # With the whole ranking in float32 nothing is left in half, and it passes as float32 did.
    low, high = 1, len(ranked)
    while low < high:
        middle = (low + high) // 2
        if passes(ranked[:middle], f", {middle} blocks in float32"):
            high = middle
        else:
            low = middle + 1
    wide = ranked[:low]

    def spare(part: list[int]) -> None:
        """Return what can be of ``part`` to half."""
        nonlocal wide
        fewer = [block for block in wide if block not in part]
        if not part or not fewer or time.monotonic() > end:
            return
        if passes(fewer, f", {len(part)} blocks back in half"):
            wide = fewer
        elif len(part) > 1:
            spare(part[len(part) // 2 :])  # the less harmful first
            spare(part[: len(part) // 2])

    spare(wide[:-1])  # the last is needed: the head without it failed
    if len(wide) == len(ranked):
        raise ParityError(
            f"the fp16 graph does not score as PyTorch does: {verdicts[frozenset()].problem}; "
            "keeping blocks in float32 does not help: it would have to be every one",
            "nothing was written; export without --fp16",
        )
    return frozenset(wide), verdicts[frozenset(wide)]
