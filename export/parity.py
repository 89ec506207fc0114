"""The parity gate: does every exported graph still score as the PyTorch model does?

The chain runs from the unfolded PyTorch network, which inserts prompt tokens as the paper draws it and
shares no shortcut with the folding, to the files that will be deployed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

from grmp_edge.errors import ModelError, ParityError
from grmp_edge.export.fold import FoldedModel
from grmp_edge.export.to_onnx import build_onnx
from grmp_edge.metrics import srcc
from grmp_edge.runtime.bench import graph_runner, open_session
from grmp_edge.train.model import GrmpIqa

__all__ = ["Link", "ParityConfig", "check_parity", "graph_scores", "link", "serialize", "torch_scores"]

Scores = npt.NDArray[np.float64]
Images = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ParityConfig:
    """What the gate demands, in scores of 0..1."""

    # Folding is exact but for float32 rounding, which measures near 1e-7; a wrong constant shows far above.
    fp32_max: float = 1e-4
    # Half keeps eleven bits; a difference this small is far below what people agree on.
    fp16_max: float = 5e-3
    # Ranking is what a quality score is used for.
    fp16_srcc: float = 0.999
    # SRCC is demanded only where the scores spread (standard deviation) over so many tolerances: where all
    # pictures score alike, as with an untrained model, their order is rounding noise. It is always reported.
    spread: float = 4.0
    images: int = 32  # enough for a rank correlation to mean something, few enough for a slow CPU
    batch: int = 8


@dataclass(frozen=True)
class Link:
    """How one graph's scores compare with the reference's."""

    max_abs: float
    mean_abs: float
    srcc: float
    tolerance: float
    srcc_needed: float | None  # None: not demanded
    problem: str  # empty: passed

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; what is not a number becomes null."""
        numbers = {"max_abs": self.max_abs, "mean_abs": self.mean_abs, "srcc": self.srcc}
        return {
            "against": "PyTorch, unfolded, float32",
            **{key: value if math.isfinite(value) else None for key, value in numbers.items()},
            "tolerance": self.tolerance,
            "srcc_needed": self.srcc_needed,
            "passed": not self.problem,
        }


def check_parity(
    model: GrmpIqa,
    folded: FoldedModel,
    files: Mapping[str, Path],
    images: Images,
    config: ParityConfig,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Run every graph and the PyTorch model on the same pictures and compare.

    ``fp16`` is run twice: the file itself, which a CPU computes in float32 between casts, and a simulation
    that rounds and overflows after every operator as half hardware does (its sums are in float32, as on
    tensor cores).

    Args:
        model: the reference.
        folded: what the files were built from.
        files: by precision, ``fp32`` and perhaps ``fp16``.
        images: uint8 (n, S, S, 3).
        config: tolerances.
        progress: told of each step.

    Returns:
        The report, plain JSON: ``reference`` and ``links``.

    Raises:
        ParityError: a graph is past its tolerance; the message has the figures.
    """
    progress(f"scoring {len(images)} pictures with PyTorch, unfolded")
    reference = torch_scores(model, images, config.batch)
    links: dict[str, Link] = {}
    for precision, file in files.items():
        progress(f"checking {file.name}")
        links[precision] = link(precision, reference, graph_scores(file, images, config.batch), config)
        if precision == "fp16":
            progress("checking a simulation of half hardware")
            simulated = serialize(build_onnx(folded, "fp16", simulate_half=True))
            scores = graph_scores(simulated, images, config.batch, optimize=False)
            links["fp16_simulated"] = link("fp16", reference, scores, config)
    for name, found in links.items():
        if found.problem:
            raise ParityError(
                f"the {name.replace('_', ' ')} graph does not score as PyTorch does: {found.problem}",
                "nothing was written; export without --fp16"
                if name.startswith("fp16")
                else "nothing was written; please report it with the checkpoint",
            )
    return {
        "reference": {
            "model": "PyTorch, unfolded, float32",
            "images": len(images),
            "mean": float(reference.mean()),
            "std": float(reference.std()),
        },
        "links": {name: found.to_json() for name, found in links.items()},
    }


def link(precision: str, reference: Scores, scores: Scores, config: ParityConfig) -> Link:
    """Judge one graph's scores (n,) against the reference's (n,)."""
    difference = np.abs(scores - reference)
    worst, mean, rank = float(difference.max()), float(difference.mean()), srcc(scores, reference)
    half = precision == "fp16"
    tolerance = config.fp16_max if half else config.fp32_max
    demanded = half and float(reference.std()) >= config.spread * tolerance
    problem = ""
    if not np.isfinite(scores).all():
        bad = int((~np.isfinite(scores)).sum())
        problem = f"{bad} of {len(scores)} scores are not numbers (an overflow)"
    elif not worst <= tolerance:
        problem = f"worst difference {worst:.2g}, tolerance {tolerance:g} (mean {mean:.2g}, SRCC {rank:.5f})"
    elif demanded and not rank >= config.fp16_srcc:
        problem = f"SRCC {rank:.5f}, needed {config.fp16_srcc} (worst difference {worst:.2g})"
    return Link(worst, mean, rank, tolerance, config.fp16_srcc if demanded else None, problem)


@torch.no_grad()
def torch_scores(model: GrmpIqa, images: Images, batch: int) -> Scores:
    """Score uint8 (n, S, S, 3) with the unfolded network, (n,).

    Raises:
        ModelError: a score is not finite, so there is nothing to compare with.
    """
    starts = range(0, len(images), batch)
    parts = [model(torch.from_numpy(images[at : at + batch]), unfolded=True).numpy() for at in starts]
    scores: Scores = np.concatenate(parts).astype(np.float64)
    if not np.isfinite(scores).all():
        raise ModelError("the checkpoint itself gives scores that are not numbers", "train again")
    return scores


def graph_scores(model: Path | bytes, images: Images, batch: int, optimize: bool = True) -> Scores:
    """Score uint8 (n, S, S, 3) with a graph, as it is without clipping, (n,)."""
    run = graph_runner(open_session(model, optimize=optimize))
    parts = [np.asarray(run(images[at : at + batch])) for at in range(0, len(images), batch)]
    scores: Scores = np.concatenate(parts).astype(np.float64)
    return scores


def serialize(model: onnx.ModelProto) -> bytes:
    """The bytes of an ONNX file.

    Raises:
        ModelError: they are past protobuf's 2 GiB.
    """
    if model.ByteSize() >= 2**31 - 1:
        raise ModelError(
            f"the graph takes {model.ByteSize() / 2**30:.1f} GiB, an ONNX file holds 2",
            "choose a smaller backbone",
        )
    return bytes(model.SerializeToString())
