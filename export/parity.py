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
import torch

from grmp_edge.check_pictures import NAME, check_pictures
from grmp_edge.errors import ModelError, ParityError
from grmp_edge.files import sha256_bytes
from grmp_edge.metrics import srcc
from grmp_edge.runtime.measure.bench import graph_runner, open_session
from grmp_edge.train.network.model import GrmpIqa

__all__ = [
    "Gate",
    "Limit",
    "Link",
    "ParityConfig",
    "graph_scores",
    "link",
    "torch_scores",
]

Scores = npt.NDArray[np.float64]
Images = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Limit:
    """What one precision must reach, in scores of 0..1; None is not asked for."""

    worst: float | None  # of the absolute differences
    mean: float | None
    srcc: float | None
    # SRCC is demanded only where the scores' standard deviation is at least this: where all pictures
    # score alike, as with an untrained model, their order is rounding noise. It is always reported.
    spread: float = 0.0


@dataclass(frozen=True)
class ParityConfig:
    """What the gate demands."""

    # Folding is exact but for float32 rounding, which measures near 1e-7; a wrong constant shows far above.
    fp32: Limit = Limit(worst=1e-4, mean=None, srcc=None)
    # Half keeps eleven bits; a difference this small is far below what people agree on. Ranking is what a
    # quality score is used for.
    fp16: Limit = Limit(worst=5e-3, mean=None, srcc=0.999, spread=0.02)
    # Eight bits move single scores visibly; what a task feels is their order and their mean.
    int8: Limit = Limit(worst=None, mean=0.01, srcc=0.99, spread=0.01)
    images: int = 32  # enough for a rank correlation to mean something, few enough for a slow CPU
    batch: int = 8
    check_images: int = 16  # scored again on the device, where an engine is built and somebody waits

    @property
    def limits(self) -> Mapping[str, Limit]:
        """By precision."""
        return {"fp32": self.fp32, "fp16": self.fp16, "int8": self.int8}


@dataclass(frozen=True)
class Link:
    """How one graph's scores compare with the reference's."""

    max_abs: float
    mean_abs: float
    srcc: float
    tolerance: float | None  # of max_abs; None: not demanded, as below
    mean_tolerance: float | None
    srcc_needed: float | None
    problem: str  # empty: passed

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; what is not a number becomes null."""
        numbers = {"max_abs": self.max_abs, "mean_abs": self.mean_abs, "srcc": self.srcc}
        return {
            "against": "PyTorch, unfolded, float32",
            **{key: value if math.isfinite(value) else None for key, value in numbers.items()},
            "tolerance": self.tolerance,
            "mean_tolerance": self.mean_tolerance,
            "srcc_needed": self.srcc_needed,
            "passed": not self.problem,
        }


class Gate:
    """The reference's scores on the gate's pictures, and the links judged so far."""

    def __init__(
        self,
        model: GrmpIqa,
        images: Images,
        config: ParityConfig,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Score uint8 (n, S, S, 3) ``images`` with ``model``, unfolded.

        Raises:
            ModelError: a score is not finite, so there is nothing to compare with.
        """
        progress(f"scoring {len(images)} pictures with PyTorch, unfolded")
        self.images = images
        self.config = config
        self.reference = torch_scores(model, images, config.batch)
        self.links: dict[str, Link] = {}
        self._checks = check_pictures(config.check_images, images.shape[1])
        self._checked = {"reference": torch_scores(model, self._checks, config.batch).tolist()}

    def judge(self, precision: str, file: Path, optimize: bool = True) -> Link:
        """Run the graph in ``file`` on the pictures; ``optimize`` as in :func:`open_session`."""
        scores = graph_scores(file, self.images, self.config.batch, optimize)
        return link(precision, self.reference, scores, self.config)

    def take(self, name: str, found: Link, remedy: str) -> None:
        """Keep a link for the report.

        Raises:
            ParityError: it is past its tolerance.
        """
        self.links[name] = found
        if found.problem:
            raise ParityError(
                f"the {name.replace('_', ' ')} graph does not score as PyTorch does: {found.problem}", remedy
            )

    def record(self, precision: str, file: Path) -> None:
        """Note what a finished graph gives on pictures that any device can make, for the gate there.

        Raises:
            ModelError: a score is not finite: such a graph could be compared with nothing.
        """
        scores = graph_scores(file, self._checks, self.config.batch)
        if not np.isfinite(scores).all():
            raise ModelError(
                f"the {precision} graph gives scores that are not numbers on computer-made pictures",
                "nothing was written; export without it, or report it with the checkpoint",
            )
        self._checked[precision] = scores.tolist()

    def report(self) -> dict[str, Any]:
        """Plain JSON: ``reference``, ``links``, and under ``check`` what :meth:`record` noted."""
        return {
            "check": {
                "pictures": NAME,
                "seed": 0,
                "count": len(self._checks),
                "sha256": sha256_bytes(self._checks.tobytes()),
                "scores": self._checked,
            },
            "reference": {
                "model": "PyTorch, unfolded, float32",
                "images": len(self.images),
                "mean": float(self.reference.mean()),
                "std": float(self.reference.std()),
            },
            "links": {name: found.to_json() for name, found in self.links.items()},
        }


def link(precision: str, reference: Scores, scores: Scores, config: ParityConfig) -> Link:
    """Judge one graph's scores (n,) against the reference's (n,)."""
    difference = np.abs(scores - reference)
    worst, mean, rank = float(difference.max()), float(difference.mean()), srcc(scores, reference)
    limit = config.limits[precision]
    demanded = limit.srcc is not None and float(reference.std()) >= limit.spread
    problem = ""
    if not np.isfinite(scores).all():
        bad = int((~np.isfinite(scores)).sum())
        problem = f"{bad} of {len(scores)} scores are not numbers (an overflow)"
    elif limit.worst is not None and not worst <= limit.worst:
        problem = (
            f"worst difference {worst:.2g}, tolerance {limit.worst:g} (mean {mean:.2g}, SRCC {rank:.5f})"
        )
    elif limit.mean is not None and not mean <= limit.mean:
        problem = f"mean difference {mean:.2g}, tolerance {limit.mean:g} (worst {worst:.2g}, SRCC {rank:.5f})"
    elif demanded and limit.srcc is not None and not rank >= limit.srcc:
        problem = f"SRCC {rank:.5f}, needed {limit.srcc} (worst difference {worst:.2g}, mean {mean:.2g})"
    needed = limit.srcc if demanded else None
    return Link(worst, mean, rank, limit.worst, limit.mean, needed, problem)


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
