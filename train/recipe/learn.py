"""The stages that learn: faults alone (A), the scenes' appeal, people's scores (B), their straight row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grmp_edge.metrics import srcc
from grmp_edge.train.recipe.objective import (
    draw,
    fault_losses,
    order_loss,
    scene_appeal,
    score_loss,
    target_of,
)
from grmp_edge.train.recipe.sources import SURFACE
from grmp_edge.train.recipe.store import Group, Views, groups_of, labels_of, read_stores
from grmp_edge.train.recipe.upper import Upper, places_to_show, settings_of
from grmp_edge.train.session.progress import Reporter
from grmp_edge.views import Aggregate

__all__ = [
    "AppealConfig",
    "SETTLE",
    "BlendConfig",
    "FaultsConfig",
    "ScoresConfig",
    "add_appeal",
    "blend_scores",
    "fold_of",
    "learn_faults",
    "learn_scores",
]

_LIKED = 0.7  # people's score from which a picture has no fault worth naming
_VIEWS = 5  # of a labelled picture in its store: the whole and four crops
# What adds detail that is none, and what must not matter: their change leaves the appeal as it is.
_STILL = (
    "white_noise", "sensor_noise", "dark_noise", "denoised", "jpeg", "h264", "lost_packets", "rain",
    "infrared", "dusk", "mild",
)  # fmt: skip


@dataclass(frozen=True)
class FaultsConfig:
    """Everything that decides weights A, given the stores."""

    stores: tuple[str, ...] = ("faults1", "faults2")
    scenes: str = "scenes"
    seed: int = 0
    steps: int = 500  # 10 minutes on two shared cores
    rate: float = 1e-3
    decay: float = 0.05
    groups: int = 6  # of states a step, some 80 views
    scene_views: int = 0  # beside them; appeal learned by the blocks kept faults less well (experiment 38)
    places: int = 14  # of 49 that flow in a step: a third of the time, and the class token sees no difference


@dataclass(frozen=True)
class AppealConfig:
    """The straight row of A: ridge regression from statistics to the scenes' appeal."""

    scenes: str = "scenes"
    faults: str = "faults2"
    weight: float = 0.8  # chosen by a look at LIVEC (experiment 39)
    still: float = 0.1  # what a change in _STILL weighs against a scene
    penalty: float = 0.05


@dataclass(frozen=True)
class ScoresConfig:
    """Everything that decides weights B before their straight row, given A's and the stores."""

    stores: tuple[str, ...] = ("faults1", "faults2")
    labels: str = "livec"
    seed: int = 1
    steps: int = 320
    rate: float = 4e-4
    decay: float = 0.1
    groups: int = 4
    pictures: int = 22  # labelled ones a step, each the whole and two crops
    hidden: float = 0.1  # share of statistics replaced by their mean, as there are few pictures
    places: int = 14
    surfaces: str | None = None  # a store of plain scenes, and how many of its groups a step
    surface_groups: int = 2
    healthy: float = 1.0  # what a move under a healthy change weighs
    causeless: float = 0.0  # what a cause named in a picture that people like weighs
    fold: int | None = None  # of five, left out to measure; None: all labels


# After the blend: plain scenes join, healthy changes weigh more. Short, since more steps serve people alone
# and spread healthy cameras further apart (experiment 50).
SETTLE = ScoresConfig(
    seed=3,
    steps=180,
    rate=2e-4,
    decay=0.05,
    pictures=20,
    surfaces="faults3",
    healthy=3.0,
    causeless=1.0,
)


@dataclass(frozen=True)
class BlendConfig:
    """The straight row of B: ridge regression on scores, which faults leave as they are."""

    stores: tuple[str, ...] = ("faults2", "faults3")
    labels: str = "livec"
    share: float = 0.3  # of the ridge in the order of pictures (experiment 41)
    still: float = 0.03  # what a fault's change weighs against a picture
    penalty: float = 0.5
    fold: int | None = None


_FAULTS_WEIGH = {"rank": 1.0, "absolute": 0.6, "healthy": 1.0, "causes": 1.0, "distil": 0.7, "scenes": 0.7}
_SCORES_WEIGH = {**_FAULTS_WEIGH, "absolute": 0.4, "distil": 0.0}


def learn_faults(upper: Upper, work: Path, config: FaultsConfig, output: Path, reporter: Reporter) -> str:
    """Weights A without a straight row: from pictures with faults alone; no score of a person is used.

    Args:
        upper: what to begin with; its texts keep what they mean, its image side starts anew.
        work: the folder of the stores.
        config: the settings.
        output: the file of weights to write.
        reporter: receives the losses.

    Returns:
        The file's SHA-256.
    """
    torch.manual_seed(config.seed)
    rng, generator = np.random.default_rng(config.seed), torch.Generator().manual_seed(config.seed)
    views = read_stores([work / name for name in config.stores])
    scenes = read_stores([work / config.scenes])
    labels, groups = labels_of(views.rows), groups_of(views.rows)
    labels.appeal = scene_appeal(scenes, views, groups)
    appeal = torch.tensor([row["appeal"] for row in scenes.rows])
    upper.restart()
    upper.standardise([views, scenes], start=True)
    upper.fit_read_out(views)
    steps = _Steps(upper, config.rate, config.decay, config.steps, 40, reporter)
    for step in range(config.steps):
        index, bounds = draw(groups, config.groups, rng)
        other = rng.choice(len(scenes), min(config.scene_views, len(scenes)), replace=False)
        inputs = _joined(views.take(index), scenes.take(other))
        feature, logits = upper(*inputs, places_to_show(config.places, generator))
        count, at = len(index), torch.from_numpy(index)
        losses = fault_losses(upper, feature[:count], logits[:count], labels, views, at, bounds)
        if len(other):
            quality, target = logits[count:, 0], target_of(appeal[torch.from_numpy(other)])
            losses["scenes"] = F.smooth_l1_loss(quality, target) + order_loss(quality, target)
        steps.take(step, losses, _FAULTS_WEIGH)
    return upper.save(output, Aggregate(0.5, 0.5), {"stage": "faults", **settings_of(config)})


def add_appeal(upper: Upper, work: Path, config: AppealConfig, output: Path, reporter: Reporter) -> str:
    """Weights A: the scenes' appeal as the straight row, in closed form; no score of a person is used.

    Returns:
        The file's SHA-256.
    """
    scenes, faults = read_stores([work / config.scenes]), read_stores([work / config.faults])
    x = upper.standardised(scenes.stats)
    y = torch.tensor([row["appeal"] for row in scenes.rows]).clamp(-5, 4)
    changes = _changes(upper, faults, _STILL)
    row, offset = _ridge(x, y, changes, config.penalty, config.still)
    with torch.no_grad():
        upper.visual_row.copy_(config.weight * row)
    reporter.note(f"the row explains {float(torch.corrcoef(torch.stack([x @ row, y]))[0, 1]):.3f}")
    aggregate = Aggregate(0.5, 0.5, config.weight * float(offset))
    return upper.save(output, aggregate, {"stage": "appeal", **settings_of(config)})


def learn_scores(
    upper: Upper,
    work: Path,
    config: ScoresConfig,
    output: Path,
    reporter: Reporter,
    start: Aggregate | None = None,
) -> str:
    """Weights B: on people's scores and faults together; a straight row stays as it is.

    Args:
        upper: what to begin with: A without its straight row, or B's own for ``SETTLE``.
        work: the folder of the stores.
        config: the settings.
        output: the file of weights to write.
        reporter: receives the losses.
        start: the aggregate to begin with.

    Returns:
        The file's SHA-256. With a fold left out, its SRCC is reported.
    """
    torch.manual_seed(config.seed)
    rng, generator = np.random.default_rng(config.seed), torch.Generator().manual_seed(config.seed)
    names = [*config.stores, *([config.surfaces] if config.surfaces else [])]
    faults, labelled = read_stores([work / name for name in names]), read_stores([work / config.labels])
    labels, all_groups = labels_of(faults.rows), groups_of(faults.rows)
    plain = [group for group in all_groups if _is_surface(faults, group)]
    groups = [group for group in all_groups if not _is_surface(faults, group)]
    mos = _scores_of(labelled)
    train, held = fold_of(len(mos), config.fold)
    start = start or Aggregate(0.5, 0.5)
    aggregate = nn.Parameter(torch.tensor([start.whole, start.native, start.shift]))
    weights = {
        **_SCORES_WEIGH, "people": 1.0, "alone": 0.3, "healthy": config.healthy, "causeless": config.causeless
    }  # fmt: skip
    steps = _Steps(upper, config.rate, config.decay, config.steps, 30, reporter, [aggregate])
    mean = upper.visual.embedding.stats_mean
    for step in range(config.steps):
        index, bounds = draw(groups, config.groups, rng)
        if plain:
            others, ends = draw(plain, config.surface_groups, rng)
            bounds = [*bounds, *((a + len(index), b + len(index)) for a, b in ends)]
            index = np.concatenate([index, others])
        pictures = rng.choice(train, config.pictures, replace=False)
        crops = np.stack([rng.choice(_VIEWS - 1, 2, replace=False) + 1 for _ in pictures])
        first = np.zeros((len(pictures), 1), np.int64)
        shown = (pictures[:, None] * _VIEWS + np.concatenate([first, crops], axis=1)).ravel()
        fine, grid, stats = _joined(faults.take(index), labelled.take(shown))
        hidden = torch.rand(stats.shape, generator=generator) < config.hidden
        stats = torch.where(hidden, mean, stats)
        feature, logits = upper(fine, grid, stats, places_to_show(config.places, generator))
        count, at = len(index), torch.from_numpy(index)
        losses = fault_losses(upper, feature[:count], logits[:count], labels, faults, at, bounds)
        z, aim = logits[count:, 0].reshape(-1, 3), mos[torch.from_numpy(pictures)]
        losses["people"] = score_loss(
            aggregate[0] * z[:, 0] + aggregate[1] * z[:, 1:].mean(1) + aggregate[2], aim
        )
        # A view alone says something of its picture, too.
        of_views = aim.repeat_interleave(3)
        losses["alone"] = F.binary_cross_entropy_with_logits(z.flatten(), of_views)
        named = F.softplus(logits[count:][of_views > _LIKED][:, 1:])  # the cross-entropy with "none"
        losses["causeless"] = named.mean() if named.numel() else logits.sum() * 0
        steps.take(step, losses, weights)
    own = Aggregate(*(float(value) for value in aggregate.detach()))
    if len(held):
        scores = picture_logits(upper.eval(), labelled, own)
        reporter.note(f"held out SRCC {srcc(scores[held], mos.numpy()[held].astype(np.float64)):.3f}")
    return upper.save(output, own, {"stage": "scores", **settings_of(config)})


def blend_scores(
    upper: Upper, aggregate: Aggregate, work: Path, config: BlendConfig, output: Path, reporter: Reporter
) -> str:
    """Weights B: to the logit comes share / (1 - share) times a ridge regression, centred on the labels.

    So pictures are ordered by the mixture of both, and what faults take away stays whole.

    Returns:
        The file's SHA-256. With a fold left out, its SRCC is reported.
    """
    labelled, faults = (
        read_stores([work / config.labels]),
        read_stores([work / name for name in config.stores]),
    )
    per_view = upper.standardised(labelled.stats).reshape(-1, _VIEWS, labelled.stats.shape[1])
    x = (per_view[:, 0] + per_view[:, 1:].mean(dim=1)) / 2
    mos = _scores_of(labelled)
    train, held = fold_of(len(mos), config.fold)
    target = torch.logit(mos.clamp(0.03, 0.97))[train]
    row, offset = _ridge(x[train], target, _changes(upper, faults, None), config.penalty, config.still)
    factor = config.share / (1 - config.share)
    with torch.no_grad():
        # The aggregate weighs both kinds of views about alike, and so does the row.
        upper.visual_row.copy_(factor * row / (aggregate.whole + aggregate.native))
    shift = aggregate.shift - factor * float(target.mean() - offset)
    own = Aggregate(aggregate.whole, aggregate.native, shift)
    if len(held):
        scores = picture_logits(upper.eval(), labelled, own)
        reporter.note(f"held out SRCC {srcc(scores[held], mos.numpy()[held].astype(np.float64)):.3f}")
    return upper.save(output, own, {"stage": "blend", **settings_of(config)})


def fold_of(count: int, fold: int | None, total: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Indices of (training, held-out) pictures; None holds none out."""
    if fold is None:
        return np.arange(count), np.arange(0)
    order = np.random.default_rng(17).permutation(count)
    held = order[fold::total]
    return np.setdiff1d(order, held), held


@torch.no_grad()
def view_logits(upper: Upper, views: Views, batch: int = 128) -> np.ndarray:
    """Logits (n, 1 + causes) of all views, float64."""
    starts = range(0, len(views), batch)
    parts = [upper(*views.take(range(at, min(at + batch, len(views)))))[1] for at in starts]
    return np.asarray(torch.cat(parts).double())


def picture_logits(upper: Upper, labelled: Views, aggregate: Aggregate) -> np.ndarray:
    """The scores' logits of labelled pictures (n,)."""
    logits = view_logits(upper, labelled)[:, 0].reshape(-1, _VIEWS)
    return np.asarray(aggregate(logits.T))


def _is_surface(views: Views, group: Group) -> bool:
    return views.rows[int(group[0])]["source"].startswith(SURFACE)


def _scores_of(labelled: Views) -> Tensor:
    return torch.tensor([row["mos"] for row in labelled.rows[::_VIEWS]])


def _joined(*inputs: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    fine, grid, stats = (torch.cat(parts) for parts in zip(*inputs, strict=True))
    return fine, grid, stats


def _changes(upper: Upper, faults: Views, kinds: Sequence[str] | None) -> Tensor:
    """How states differ from their clean one in standardised statistics (n, S); ``kinds``: None is all."""
    x, rows = upper.standardised(faults.stats), faults.rows
    changes = [
        x[int(index)] - x[int(group[0])]
        for group in groups_of(rows)
        for index in group[1:]
        if kinds is None or rows[index]["kind"] in kinds
    ]
    return torch.stack(changes)


def _ridge(x: Tensor, y: Tensor, changes: Tensor, penalty: float, still: float) -> tuple[Tensor, Tensor]:
    """A row (S,) and an offset: y from x (n, S) by ridge regression that ``changes`` hardly move."""
    centre = x.mean(dim=0)
    scale = (x - centre).square().sum(dim=1).mean().sqrt()
    own, others = (x - centre) / scale, changes / scale
    gram = own.T @ own + still * others.T @ others + penalty * torch.eye(x.shape[1])
    row = torch.linalg.solve(gram, own.T @ (y - y.mean())) / scale
    return row, y.mean() - centre @ row


class _Steps:
    """AdamW with a warm-up and a cosine, and the running means of the losses."""

    def __init__(
        self,
        upper: Upper,
        rate: float,
        decay: float,
        steps: int,
        warm_up: int,
        reporter: Reporter,
        others: Sequence[nn.Parameter] = (),
    ) -> None:
        groups = upper.train().groups(rate, decay)
        if others:
            groups.append({"params": list(others), "lr": rate, "weight_decay": 0.0, "top": rate})
        self.optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98))
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self.steps, self.warm_up, self.reporter = steps, warm_up, reporter
        self.means: dict[str, float] = {}
        reporter.start("learning", steps)

    def take(self, step: int, losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> None:
        """One step down the weighted sum of the losses."""
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        for group in self.optimiser.param_groups:
            group["lr"] = group["top"] * min(1.0, (step + 1) / self.warm_up) * (0.02 + 0.98 * cosine)
        loss = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        for name, value in losses.items():
            self.means[name] = 0.95 * self.means.get(name, value.item()) + 0.05 * value.item()
        self.reporter.step(1, **self.means)
