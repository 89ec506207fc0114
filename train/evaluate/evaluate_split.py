"""One split of the few-shot protocol: learn from its labels, or from none, and test on its test part."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grmp_edge.preprocess import Preprocess
from grmp_edge.train.data.labelled import Labelled, split_indices
from grmp_edge.train.evaluate.protocol import ProtocolConfig, measure
from grmp_edge.train.finetune.config import FinetuneConfig
from grmp_edge.train.finetune.loop import predict
from grmp_edge.train.network.model import GrmpIqa
from grmp_edge.train.runs import ModelConfig, build_network, pick_device, run_finetune
from grmp_edge.train.session.checkpoint import load_checkpoint
from grmp_edge.train.session.progress import Reporter

__all__ = ["run_split"]


def run_split(
    folder: Path,
    model: ModelConfig,
    start: Path | None,
    data: Labelled,
    config: ProtocolConfig,
    finetune: FinetuneConfig,
    cross: Sequence[Labelled],
    labels: int | None,
    split: int,
    reporter: Reporter,
) -> dict[str, Any]:
    """Run one split; a run interrupted in ``folder`` is continued.

    Returns:
        Plain JSON: ``labels``, ``split``, ``seed``, ``epoch``, ``selected_on_test``, ``metrics`` on the test
        part, ``zero_shot`` (there too, before fine-tuning; None with 0 labels, which are that themselves),
        ``cross`` (metrics by set), ``predictions`` and ``seconds``.
    """
    began = time.monotonic()
    chosen = config.split(labels, split)
    built = replace(model, seed=model.seed + split) if start is None else model
    if labels == 0:
        if start is None:
            network, _ = build_network(built)
        else:
            network = load_checkpoint(start, model.backbone.pretrained or None).model
        epoch, on_test, zero_shot, scale = 0, False, None, data.scale_of(range(len(data)))
    else:
        tuned = replace(finetune, seed=chosen.seed)
        progress = run_finetune(
            folder, built, start, data, chosen, tuned, True, _Within(reporter), allow_unfinished=True
        )
        loaded = load_checkpoint(folder, model.backbone.pretrained or None)
        network, scale = loaded.model, loaded.mos or data.scale_of(range(len(data)))
        epoch, on_test = progress["epoch"], progress["selected_on_test"]
        zero_shot = progress["metrics"].get("zero_shot_test")
    network = network.to(pick_device(model.device))
    side = Preprocess.for_size(network.image.size).resize
    test = list(split_indices(data, chosen).test)
    predicted = predict(network, data.squashed(test, side))
    return {
        "labels": labels,
        "split": split,
        "seed": chosen.seed,
        "epoch": epoch,
        "selected_on_test": on_test,
        "metrics": measure(predicted, data.mos[test], scale),
        "zero_shot": zero_shot,
        "cross": {other.name: _whole(network, other, side) for other in cross},
        "predictions": {
            "index": test,
            "mos": data.mos[test].tolist(),
            "value": [float(value) for value in predicted],
        },
        "seconds": time.monotonic() - began,
    }


def _whole(network: GrmpIqa, data: Labelled, side: int) -> dict[str, Any]:
    every = range(len(data))
    chunks = (every[at : at + 512] for at in range(0, len(data), 512))
    values: npt.NDArray[np.float32] = np.concatenate(
        [predict(network, data.squashed(chunk, side)) for chunk in chunks]
    )
    return measure(values, data.mos, data.scale_of(every))


class _Within:
    """Steps inside a split: their metrics are shown, but what counts is splits."""

    def __init__(self, outer: Reporter) -> None:
        self.outer = outer

    def start(self, stage: str, total: int, done: int = 0) -> None:
        """Ignored: there would be one bar for every stage of every split."""

    def step(self, count: int = 1, **metrics: float) -> None:
        """Show the metrics."""
        self.outer.step(0, **metrics)

    def note(self, text: str) -> None:
        """Pass on."""
        self.outer.note(text)
