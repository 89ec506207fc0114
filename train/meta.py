"""Meta-prompt pre-training (MPP): learn prompts from which any distortion is learned quickly.

Paper section 3.2, Algorithm 1: a first-order bilevel scheme over tasks of one distortion each. Only the
prompts (text context, visual prompts, prompt_proj, prompt_norm) move; CLIP stays frozen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grmp_edge.errors import DataError, UsageError
from grmp_edge.metrics import srcc
from grmp_edge.train.network.losses import quality_loss
from grmp_edge.train.network.model import GrmpIqa
from grmp_edge.train.network.settings import MetaSettings, given_only, settings_for
from grmp_edge.train.session.checkpoint import CheckpointWriter, State, copy_parameters
from grmp_edge.train.session.precision import LossScaler, Numerics, Precision
from grmp_edge.train.session.progress import Reporter, Silent
from grmp_edge.train.session.ranks import ALONE, Team, current_team
from grmp_edge.train.tasks import (
    Batch,
    PictureCache,
    Squash,
    Task,
    ahead,
    query_batches,
    spread_labels,
    support_batches,
)

__all__ = ["MetaConfig", "adapt", "evaluate_tasks", "hold_out", "meta_train"]


@dataclass(frozen=True)
class MetaConfig(MetaSettings):
    """Settings of meta-prompt pre-training; the reference's where the backbone decides."""

    support_batch: int = 75  # the reference's
    query_batch: int = 50  # the reference's
    support_fraction: float = 0.8  # the reference's 80/20, here by reference picture
    # Adapt each task from theta, as the paper says; False carries the adapted weights on from task to
    # task, as the released code does.
    reset_per_task: bool = True
    # One optimiser through all tasks of the first phase, which begins with that of the last task before;
    # in later phases each task has a new one, as all have by default.
    carry_adam: bool = False
    # How a task's pictures are squashed: as everywhere else, or as the released code's pre-training does.
    squash: Squash = "bicubic"
    # Labels fill 0..1 in the support and in the query part apart, which moves them against each other.
    labels_apart: bool = False
    held_out: float = 0.15  # share of the tasks that choose the epoch instead of training it
    seed: int = 0
    precision: Precision = "auto"  # of the towers' products: see grmp_edge.train.session.precision
    picture_bytes: int = 1 << 30  # of the tasks' squashed pictures, cached in memory at most

    @classmethod
    def of(cls, backbone: str, **given: Any) -> MetaConfig:
        """The settings that go with a backbone, by name, with given ones in their place (None: not given)."""
        return cls(**{**vars(settings_for(backbone).meta), **given_only(given)})


def hold_out(phases: Sequence[Sequence[Task]], config: MetaConfig) -> tuple[list[list[Task]], list[Task]]:
    """Take a share of all tasks out of training, by the seed: (phases without them, the held-out tasks)."""
    every = [(p, t) for p, phase in enumerate(phases) for t in range(len(phase))]
    count = min(round(config.held_out * len(every)), len(every) - 1)
    order = np.random.default_rng([config.seed, 0x4E1D]).permutation(len(every))
    chosen = {every[i] for i in order[:count]}
    training = [
        [task for t, task in enumerate(phase) if (p, t) not in chosen] for p, phase in enumerate(phases)
    ]
    return [phase for phase in training if phase], [phases[p][t] for p, t in sorted(chosen)]


def meta_train(
    model: GrmpIqa,
    phases: Sequence[Sequence[Task]],
    config: MetaConfig,
    writer: CheckpointWriter | None = None,
    resume: State | None = None,
    reporter: Reporter | None = None,
    judge: Task | None = None,
) -> list[dict[str, Any]]:
    """Learn the prompts in place, and keep those of the epoch that ranks the held-out tasks best.

    Args:
        model: its prompts are changed; on the device to train on.
        phases: groups of tasks; theta moves once after each group (TID2013's tasks, then KADID-10k's).
        writer, resume: where to save after every epoch (rank 0 does), and the state to continue from.
        reporter: receives the progress, task by task.
        judge: chooses the epoch in place of held-out tasks (no task is then held out).

    Returns:
        The history: one entry an epoch with ``loss`` (query, mean over tasks), ``phase_losses`` (the same by
        phase) and ``srcc`` (the judge's or on the held-out tasks; None without either).

    Raises:
        DataError: there is no task to train on.
    """
    reporter = reporter or Silent()
    training, held = hold_out(phases, config if judge is None else replace(config, held_out=0.0))
    judges = held if judge is None else [judge]
    if not training:
        raise DataError("there is no task to meta-train on", "give more distortion types")
    parameters = dict(model.prompt_parameters())
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    theta = copy_parameters(parameters.items())
    history: list[dict[str, Any]] = []
    best, best_srcc = theta, -2.0
    first = 0
    if resume is not None:
        first, history, best_srcc = (
            resume.progress["epoch"],
            resume.progress["history"],
            -2.0 if resume.progress["best_srcc"] is None else resume.progress["best_srcc"],
        )
        best = {name: resume.weights[name].to(theta[name]) for name in theta}
        theta = {name: resume.resume[name].to(theta[name]) for name in theta}
        inner = resume.resume if config.reset_per_task else {n: resume.resume[f"inner.{n}"] for n in theta}
        _load(parameters, {name: inner[name] for name in theta})
    carried_adam = _adam(parameters, config)
    if resume is not None and config.carry_adam:
        _restore(carried_adam, parameters, resume.resume)
    tasks_per_epoch = sum(map(len, training))
    team = current_team()
    cache = PictureCache(config.picture_bytes // team.local_size, config.squash)
    in_sequence = config.carry_adam or not config.reset_per_task
    if team.size > 1 and in_sequence:
        # Each task starts from what the previous one left, so tasks cannot run in parallel.
        reporter.note("tasks go on from one another, so every process does all of them")
    reporter.start("meta-pre-training", config.epochs * tasks_per_epoch, first * tasks_per_epoch)
    for epoch in range(first, config.epochs):
        losses: list[float] = []
        phase_losses: list[float] = []
        for number, phase in enumerate(training):
            shift = {name: torch.zeros_like(value) for name, value in theta.items()}
            # One entry per task, so that sums over the ranks are exact.
            task_losses = torch.zeros(len(phase), dtype=torch.float64)
            order = np.random.default_rng([config.seed, epoch, number]).permutation(len(phase)).tolist()
            # A task always goes to the same rank, which caches its pictures.
            spread = ALONE if in_sequence else team
            visits = [(place, task) for place, task in enumerate(order) if spread.mine(task)]
            reported = 0
            for done, (place, visited) in enumerate(visits, 1):
                if config.reset_per_task:
                    _load(parameters, theta)
                if number > 0 or not config.carry_adam:
                    carried_adam = _adam(parameters, config)
                task_losses[place] = adapt(
                    model, phase[visited], config, [config.seed, epoch, number, visited], cache, carried_adam
                )
                for name, parameter in parameters.items():
                    shift[name] += theta[name] - parameter.detach()
                latest = history[-1]["srcc"] if history else None
                # The other ranks are about as far along.
                reached = done * len(phase) // len(visits)
                reporter.step(
                    reached - reported,
                    loss=float(task_losses[place]),
                    **({} if latest is None else {"srcc": latest}),
                )
                reported = reached
            spread.sum([*shift.values()])
            spread.sum([task_losses])
            losses += task_losses.tolist()
            phase_losses.append(fmean(task_losses.tolist()))
            # theta <- theta - beta * mean_i(theta - theta_i)
            for name, value in theta.items():
                value -= config.outer_lr / len(phase) * shift[name]
            # Different machines may round differently: all ranks continue from the same numbers.
            team.align([*theta.values()])
        # Without resetting, the adapted weights go on into the next epoch; evaluation borrows the model.
        carried = copy_parameters(parameters.items()) if not config.reset_per_task else theta
        if not config.reset_per_task:
            team.align([*carried.values()])
        _load(parameters, theta)
        score = evaluate_tasks(model, judges, config.query_batch, cache, team) if judges else None
        history.append(
            {"epoch": epoch + 1, "loss": fmean(losses), "phase_losses": phase_losses, "srcc": score}
        )
        # As long as no epoch has a score, the latest one counts as best.
        if best_srcc < -1 or (score is not None and score > best_srcc):
            best = {name: value.clone() for name, value in theta.items()}
            best_srcc = best_srcc if score is None else score
        _load(parameters, carried)
        if writer and team.leads:
            state = {
                **theta,
                **({f"inner.{n}": v for n, v in carried.items()} if not config.reset_per_task else {}),
                **(_moments(carried_adam, parameters) if config.carry_adam else {}),
            }
            complete = epoch + 1 == config.epochs
            progress = {
                "stage": "pretrain",
                "epoch": epoch + 1,
                "complete": complete,
                "best_srcc": best_srcc if best_srcc >= -1 else None,
                "history": history,
                "held_out_tasks": [task.name for task in held],
            }
            writer.save(State(best, state, progress))  # also when complete: epochs may be raised later
    _load(parameters, best)
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    return history


def adapt(
    model: GrmpIqa,
    task: Task,
    config: MetaConfig,
    seed: Sequence[int],
    cache: PictureCache | None = None,
    optimizer: torch.optim.Adam | None = None,
) -> float:
    """Adapt the prompts to one task in place: the inner loop.

    For each support batch one Adam step on its loss, then one Adam step on a query batch's loss (first
    order: no gradient through the first step). ``optimizer`` is a new one unless given.

    Returns:
        The mean loss on the query batches before their steps.
    """
    rng = np.random.default_rng(seed)
    # Dropout is a function of the visit, so that runs resume exactly.
    torch.manual_seed(int(rng.integers(2**62)))
    size = model.image.size
    support, query = task.split(config.support_fraction, rng)
    optimizer = optimizer or _adam(dict(model.prompt_parameters()), config)
    if config.labels_apart:
        quality = task.quality.copy()
        for part in (support, query):
            quality[part] = spread_labels(quality[part])
        task = replace(task, quality=quality)
    numerics = Numerics.of(config.precision, model.ctx.device)
    # A new one for each visit, so that it depends only on the visit.
    scaler = LossScaler(numerics.precision == "fp16")
    queries = itertools.cycle(list(query_batches(task, query, size, config.query_batch, cache)))
    model.train()
    losses = []
    for batch in ahead(support_batches(task, support, size, config.support_batch, rng, cache)):
        _step(model, optimizer, batch, numerics, scaler)
        losses.append(_step(model, optimizer, next(queries), numerics, scaler))
    model.eval()
    return fmean(losses)


def evaluate_tasks(
    model: GrmpIqa, tasks: Sequence[Task], batch: int, cache: PictureCache | None = None, team: Team = ALONE
) -> float:
    """Mean SRCC over tasks, which ranks share, of the model as it is: in float32, without adaptation."""
    model.eval()
    values = torch.zeros(len(tasks), dtype=torch.float64)
    with torch.inference_mode():
        text = model.quality_features()
        for number, task in enumerate(tasks):
            if not team.mine(number):
                continue
            scores = []
            for part in query_batches(task, range(len(task.quality)), model.image.size, batch, cache):
                pixels = model.pixels(torch.from_numpy(part.images).to(text.device))
                scores.append(model.logits(model.image_features(pixels), text).softmax(-1)[:, 0].cpu())
            value = srcc(torch.cat(scores).numpy(), task.quality)
            values[number] = 0.0 if np.isnan(value) else value
        team.sum([values])
    return fmean(values.tolist())


def _step(
    model: GrmpIqa,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    numerics: Numerics,
    scaler: LossScaler,
) -> float:
    device = model.ctx.device
    pixels = model.pixels(torch.from_numpy(batch.images).to(device))
    quality = torch.from_numpy(batch.quality).to(device)
    for attempt in numerics.attempts():
        with attempt.autocast():
            logits = model.logits(model.image_features(pixels), model.quality_features())
        loss = quality_loss(logits, quality)
        value = float(loss.detach())
        if math.isfinite(value):
            break
    else:
        raise UsageError(f"the loss became {value}", "lower --inner-lr or --outer-lr")
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(scaler.scale * loss)
    gradients = [
        parameter.grad
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    if scaler.unscale(gradients):
        optimizer.step()
    return value


def _adam(parameters: dict[str, torch.nn.Parameter], config: MetaConfig) -> torch.optim.Adam:
    return torch.optim.Adam(list(parameters.values()), lr=config.inner_lr)


def _moments(adam: torch.optim.Adam, parameters: dict[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    """An optimiser's state by names to save it under."""
    return {
        f"adam.{key}.{name}": value for name, p in parameters.items() for key, value in adam.state[p].items()
    }


def _restore(
    adam: torch.optim.Adam, parameters: dict[str, torch.nn.Parameter], saved: dict[str, Tensor]
) -> None:
    for name, parameter in parameters.items():
        adam.state[parameter] = {
            key: saved[f"adam.{key}.{name}"].to("cpu" if key == "step" else parameter.device)
            for key in ("step", "exp_avg", "exp_avg_sq")
        }


def _load(parameters: dict[str, torch.nn.Parameter], values: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])
