"""The parity gate of the export: does every graph still score as the PyTorch model does?

The chain runs from the unfolded PyTorch network, which inserts prompt tokens as the paper draws it and shares
no shortcut with the folding, to the files that will be deployed. The judging itself is in the core
(:mod:`grmp_edge.parity`), since the device does the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from grmp_edge.check_pictures import NAME, check_pictures
from grmp_edge.errors import ModelError, ParityError
from grmp_edge.files import sha256_bytes
from grmp_edge.parity import LIMITS, Limit, LinkReport, ParityReport, Verdict, gate_report, judge
from grmp_edge.runtime.backends import open_session
from grmp_edge.train.network.model import GrmpIqa
from grmp_edge.views import sigmoid

__all__ = ["Gate", "ParityConfig", "graph_readings", "link_report", "torch_readings"]

REFERENCE = "PyTorch, unfolded, float32"

Readings = npt.NDArray[np.float64]  # (n, 1 + causes), 0..1: the score, then each cause
Images = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ParityConfig:
    """What the gate demands."""

    limits: Mapping[str, Limit] = field(default_factory=lambda: LIMITS)  # by precision
    # Enough for a rank correlation to mean something, few enough for a slow CPU. Of a model with several
    # views of a picture, all are judged.
    images: int = 32
    batch: int = 8
    check_images: int = 16  # scored again on the device, where an engine is built and somebody waits


class Gate:
    """What the reference reads of the gate's views, and the verdicts so far."""

    def __init__(
        self,
        model: GrmpIqa,
        images: Images,
        config: ParityConfig,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Read uint8 (n, S, S, 3) ``images``, views of pictures, with ``model``, unfolded.

        Raises:
            ModelError: a score is not finite, so there is nothing to compare with.
        """
        progress(f"scoring {len(images)} views of pictures with PyTorch, unfolded")
        self.images = images
        self.config = config
        self.readings = torch_readings(model, images, config.batch)
        self.verdicts: dict[str, Verdict] = {}
        self._check_images = check_pictures(config.check_images, images.shape[1])
        reference = torch_readings(model, self._check_images, config.batch)[:, 0]
        self._check_scores: dict[str, list[float]] = {"reference": reference.tolist()}

    @property
    def reference(self) -> npt.NDArray[np.float64]:
        """The scores among the readings, (n,)."""
        scores: npt.NDArray[np.float64] = self.readings[:, 0]
        return scores

    def judge(self, precision: str, file: Path, optimize: bool = True) -> Verdict:
        """Run the graph in ``file`` on the pictures; ``optimize`` as in :func:`open_session`."""
        return self.judge_readings(precision, graph_readings(file, self.images, self.config.batch, optimize))

    def judge_readings(self, precision: str, readings: Readings) -> Verdict:
        """Judge what a graph read of the views, (n, 1 + causes).

        The causes may differ as far as scores; their order is not demanded, as most views have none.
        """
        limit = self.config.limits[precision]
        verdict = judge(self.reference, readings[:, 0], limit)
        if verdict.problem or readings.shape[1] == 1:
            return verdict
        reference, causes = self.readings[:, 1:].ravel(), readings[:, 1:].ravel()
        problem = judge(reference, causes, replace(limit, srcc=None)).problem
        return replace(verdict, problem=f"causes: {problem}") if problem else verdict

    def accept(self, name: str, verdict: Verdict, remedy: str) -> None:
        """Put a verdict into the report.

        Raises:
            ParityError: a limit is exceeded.
        """
        self.verdicts[name] = verdict
        if verdict.problem:
            raise ParityError(
                f"the {name.replace('_', ' ')} graph does not score as PyTorch does: {verdict.problem}",
                remedy,
            )

    def record(self, precision: str, file: Path) -> None:
        """Note the scores of a finished graph on pictures that any device can make, for the gate there.

        Raises:
            ModelError: a score is not finite, and such a graph could be compared with nothing.
        """
        scores = graph_readings(file, self._check_images, self.config.batch)[:, 0]
        if not np.isfinite(scores).all():
            raise ModelError(
                f"the {precision} graph gives scores that are not numbers on computer-made pictures",
                "nothing was written; export without it, or report it with the checkpoint",
            )
        self._check_scores[precision] = scores.tolist()

    def report(self) -> ParityReport:
        """Plain JSON: ``gate``, ``reference``, ``links``, and under ``check`` what :meth:`record` noted."""
        return {
            "gate": gate_report(self.config.limits),
            "check": {
                "pictures": NAME,
                "seed": 0,
                "count": len(self._check_images),
                "sha256": sha256_bytes(self._check_images.tobytes()),
                "scores": self._check_scores,
            },
            "reference": {
                "model": REFERENCE,
                "images": len(self.images),
                "mean": float(self.reference.mean()),
                "std": float(self.reference.std()),
            },
            "links": {name: link_report(verdict) for name, verdict in self.verdicts.items()},
        }


def link_report(verdict: Verdict) -> LinkReport:
    """One verdict of the export as plain JSON."""
    return {"against": REFERENCE, **verdict.to_json(), "passed": not verdict.problem}


@torch.no_grad()
def torch_readings(model: GrmpIqa, images: Images, batch: int) -> Readings:
    """Read uint8 (n, S, S, 3) with the unfolded network, (n, 1 + causes).

    Raises:
        ModelError: a score is not finite, so there is nothing to compare with.
    """
    parts = []
    for at in range(0, len(images), batch):
        pixels = model.pixels(torch.from_numpy(images[at : at + batch]))
        parts.append(model.readings(model.image_features_unfolded(pixels)).sigmoid().numpy())
    readings: Readings = np.concatenate(parts).astype(np.float64)
    if not np.isfinite(readings).all():
        raise ModelError("the checkpoint itself gives scores that are not numbers", "train again")
    return readings


def graph_readings(model: Path | bytes, images: Images, batch: int, optimize: bool = True) -> Readings:
    """Read uint8 (n, S, S, 3) with a graph, without clipping, (n, 1 + causes)."""
    session = open_session(model, optimize=optimize)
    name = session.get_inputs()[0].name
    parts = []
    for at in range(0, len(images), batch):
        scores, *logits = session.run(None, {name: images[at : at + batch]})
        causes = [sigmoid(values[:, 1:]) for values in logits]
        parts.append(np.concatenate([scores.astype(np.float64)[:, None], *causes], axis=1))
    return np.concatenate(parts)
