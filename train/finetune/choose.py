"""From labels to a network that scores as they say: a head in closed form, QGR, or the better of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from grmp_edge.head import Fit, FitReport, Head, Seen, cross_validated, fit_head, start_head, target_logits
from grmp_edge.metrics import srcc
from grmp_edge.train.data.labelled import Labelled
from grmp_edge.train.finetune.config import FinetuneConfig, Part
from grmp_edge.train.finetune.frozen_features import ViewScores
from grmp_edge.train.finetune.loop import finetune, predict_part
from grmp_edge.train.finetune.seen import (
    MOST_TWINS,
    preprocess_of,
    put_head,
    see_labelled,
    see_twins,
    twin_count,
)
from grmp_edge.train.network.model import GrmpIqa
from grmp_edge.train.pictures.twins import TWINS, twin
from grmp_edge.train.session.checkpoint import State, copy_parameters
from grmp_edge.train.session.progress import Reporter
from grmp_edge.views import sigmoid

__all__ = ["learn_head", "prefers_qgr", "put_start_head", "report_line", "twin_part"]

# Folds of comparing with QGR, which is trained anew in each.
_FOLDS = 3


def learn_head(
    network: GrmpIqa,
    data: Labelled,
    train: Sequence[int],
    quality: npt.NDArray[np.float32],
    config: FinetuneConfig,
    reporter: Reporter,
    validate: bool = False,
) -> tuple[State, npt.NDArray[np.float32] | None]:
    """Fit the head to the labelled pictures ``train`` of a set, put it into the network, and say how it did.

    ``quality`` (n,) in 0..1 is theirs. A network without crops, a CLIP, is kept from no faults.

    Returns:
        The state to save; and with ``validate`` the scores (n,) of each picture by a head of the others.
    """
    reporter.start("looking at pictures", len(train))
    seen = see_labelled(network, data, train, reporter.step)
    twins = None
    if network.native and config.method != "ridge":
        reporter.start("looking at their distorted twins", twin_count(train))
        twins = see_twins(network, data, train, reporter.step)
    prior = config.method != "ridge"
    fit = fit_head(seen, quality, twins, config.seed, prior)
    honest = None
    if validate:
        honest = sigmoid(cross_validated(seen, quality, twins, config.seed, prior)).astype(np.float32)
    put_head(network, fit.head)
    reporter.note(report_line(fit.report))
    weights = copy_parameters(network.prompt_parameters())
    weights |= {name: value.detach().clone() for name, value in network.head().items()}
    return State(weights, {}, _progress(fit)), honest


def _progress(fit: Fit) -> dict[str, Any]:
    best = fit.report["ridge"] if fit.report["chosen"] == "ridge" else fit.report["start"]
    return {
        "stage": "finetune",
        "epoch": 0,
        "lr": 0.0,
        "waited": 0,
        "best_srcc": best,
        "best_plcc": None,
        "history": [],
        "complete": True,
        "head": dict(fit.report),
    }


def report_line(report: FitReport, qgr: float | None = None) -> str:
    """What was compared within the labels, and what was chosen, in one line."""
    parts = [
        f"start {_shown(report['start'])}",
        f"ridge on frozen {' and '.join(report['inputs'])} {_shown(report['plain'])}",
        f"the same on top of the start {_shown(report['ridge'])}",
    ]
    if qgr is not None:
        parts.append(f"QGR {_shown(qgr)}")
    names = {"ridge": "ridge on top of the start", "start": "the start, on the labels' scale"}
    line = (
        f"SRCC within the labels: {', '.join(parts)}; chosen: {names.get(report['chosen'], report['chosen'])}"
    )
    if report["sight"] is not None:
        line += f"; {report['sight']:.0%} of {report['twins']} distorted twins below their originals"
    return line


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}".replace("0.", ".", 1)


def put_start_head(network: GrmpIqa, part: Part) -> None:
    """Bring the scores of a network that looks at crops to the scale of the labels, in its own order."""
    if part.crops is None:
        return
    logits = ViewScores(network, part.images, part.crops).logits().double().cpu().numpy()
    features, statistics = len(network.head_weight), len(network.head_row)
    seen = Seen(logits, np.zeros((len(logits), features)), np.zeros((len(logits), statistics)))
    put_head(network, start_head(seen, part.quality))


def twin_part(network: GrmpIqa, data: Labelled, train: Sequence[int]) -> Part | None:
    """The pixels of the twins that :func:`see_twins` looks at."""
    if not network.native:
        return None
    kinds = list(TWINS)
    chosen = list(train)[:MOST_TWINS]
    pixels, crops = data.viewed(
        chosen,
        preprocess_of(network),
        change=lambda picture, index: twin(picture, kinds[index % len(kinds)], index),
    )
    return Part(pixels, np.zeros(len(chosen), np.float32), None, crops)


def prefers_qgr(
    network: GrmpIqa,
    data: Labelled,
    train: Sequence[int],
    part: Part,
    config: FinetuneConfig,
    reporter: Reporter,
) -> tuple[bool, FitReport, float | None]:
    """Compare the head with QGR within the labels, leaving the network as it was.

    Returns:
        Whether QGR ranks pictures better that neither has seen; how the head did; and QGR's SRCC.
    """
    seen = see_labelled(network, data, train)
    twins = see_twins(network, data, train) if network.native else None
    report = fit_head(seen, part.quality, twins, config.seed).report
    order = np.random.default_rng([config.seed, 0xC0]).permutation(len(train))
    before = copy_parameters([*network.prompt_parameters(), *network.finetune_parameters()])
    named = dict(network.named_parameters())
    target = target_logits(part.quality)
    by_head, by_qgr = np.zeros(len(train)), np.zeros(len(train))
    for left in np.array_split(order, min(_FOLDS, len(train))):
        learned = np.sort(np.setdiff1d(order, left))
        own = None if twins is None else twins.of_pictures(learned.tolist())
        fit = fit_head(seen.take(learned), part.quality[learned], own, config.seed)
        by_head[left] = fit.head(seen.take(left))
        known = part.take(learned.tolist())
        put_start_head(network, known)
        finetune(network, known, None, replace(config, seed=config.seed), reporter=reporter)
        scores = predict_part(network, part.take(left.tolist())).astype(np.float64)
        by_qgr[left] = np.log(np.clip(scores, 1e-6, 1 - 1e-6) / (1 - np.clip(scores, 1e-6, 1 - 1e-6)))
        for one in (by_head, by_qgr):  # a fold's own mean would count against both: see head.py
            one[left] += target.mean() - target[learned].mean()
        with torch.no_grad():
            for name, value in before.items():
                named[name].copy_(value)
        put_head(network, _untouched(network))
    head, qgr = srcc(by_head, part.quality), srcc(by_qgr, part.quality)
    start = srcc(seen.logits, part.quality)
    better = bool(np.isfinite(qgr) and qgr > max(head, start))
    report = {**report, "ridge": head if np.isfinite(head) else None}
    return better, report, qgr if np.isfinite(qgr) else None


def _untouched(network: GrmpIqa) -> Head:
    return Head(1.0, np.zeros(len(network.head_weight)), np.zeros(len(network.head_row)), 0.0)
