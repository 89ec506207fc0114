"""Meta-prompt pre-training (MPP): learn prompts from which any distortion is learned quickly.

Paper section 3.2, Algorithm 1: a first-order bilevel scheme over tasks of one distortion each. Only the
prompts (text context, visual prompts, prompt_proj, prompt_norm) move; CLIP stays frozen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grmp_edge.errors import DataError, UsageError
from grmp_edge.metrics import srcc
from grmp_edge.train.backbone import EMBEDDED
from grmp_edge.train.checkpoint import CheckpointWriter, State, copy_parameters
from grmp_edge.train.losses import quality_loss
from grmp_edge.train.model import GrmpIqa
from grmp_edge.train.progress import Reporter, Silent
from grmp_edge.train.tasks import Batch, Task, query_batches, support_batches

__all__ = ["MetaConfig", "adapt", "evaluate_tasks", "hold_out", "meta_train"]


@dataclass(frozen=True)
class MetaConfig:
    """Settings of meta-prompt pre-training."""

    epochs: int = 50  # the reference's; an epoch visits every phase's tasks once
    inner_lr: float = 1e-4  # Adam, the reference's
    outer_lr: float = 1e-2  # beta, the reference's
    support_batch: int = 75  # the reference's
    query_batch: int = 50  # the reference's
    support_fraction: float = 0.8  # the reference's 80/20, here by reference picture
    # Adapt each task from theta, as the paper says; False carries the adapted weights on from task to
    # task, as the released code does.
    reset_per_task: bool = True
    held_out: float = 0.15  # share of the tasks that choose the epoch instead of training it
    seed: int = 0

    @classmethod
    def for_backbone(cls, name: str) -> MetaConfig:
        """The settings that go with a backbone: the reference's for CLIP, larger steps for the embedded one.

        Its tasks are reset, so one epoch at the reference's beta moves the prompts by a hundredth of ten
        small steps; and it is for CPUs, where fifty epochs take hours.
        """
        return cls(epochs=3, inner_lr=1e-3, outer_lr=1.0) if name == EMBEDDED else cls()


def hold_out(phases: Sequence[Sequence[Task]], config: MetaConfig) -> tuple[list[list[Task]], list[Task]]:
    """Take a share of all tasks out of training, by the seed: (phases without them, the held-out tasks)."""
    every = [(p, t) for p, phase in enumerate(phases) for t in range(len(phase))]
    count = min(round(config.held_out * len(every)), len(every) - 1)
    order = np.random.default_rng([config.seed, 0x4E1D]).permutation(len(every))
    chosen = {every[i] for i in order[:count]}
    kept = [[task for t, task in enumerate(phase) if (p, t) not in chosen] for p, phase in enumerate(phases)]
    return [phase for phase in kept if phase], [phases[p][t] for p, t in sorted(chosen)]


def meta_train(
    model: GrmpIqa,
    phases: Sequence[Sequence[Task]],
    config: MetaConfig,
    writer: CheckpointWriter | None = None,
    resume: State | None = None,
    reporter: Reporter | None = None,
) -> list[dict[str, Any]]:
    """Learn the prompts in place; the epoch that ranks the held-out tasks best is what stays.

    Args:
        model: its prompts are changed; on the device to train on.
        phases: groups of tasks; theta moves once after each group (TID2013's tasks, then KADID-10k's).
        writer, resume: where to save after every epoch, and the state to continue from.
        reporter: told of every task.

    Returns:
        The history: one entry an epoch with ``loss`` (query, mean over tasks) and ``srcc`` (held out,
        None without held-out tasks).

    Raises:
        DataError: no task is left to train on.
    """
    reporter = reporter or Silent()
    training, held = hold_out(phases, config)
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
    tasks_per_epoch = sum(map(len, training))
    reporter.start("meta-pre-training", config.epochs * tasks_per_epoch, first * tasks_per_epoch)
    for epoch in range(first, config.epochs):
        losses = []
        for number, phase in enumerate(training):
            shift = {name: torch.zeros_like(value) for name, value in theta.items()}
            order = np.random.default_rng([config.seed, epoch, number]).permutation(len(phase))
            for visited in order.tolist():
                if config.reset_per_task:
                    _load(parameters, theta)
                loss = adapt(model, phase[visited], config, [config.seed, epoch, number, visited])
                losses.append(loss)
                for name, parameter in parameters.items():
                    shift[name] += theta[name] - parameter.detach()
                reporter.step(1, loss=loss, **({"srcc": history[-1]["srcc"]} if history and held else {}))
            # theta <- theta - beta * mean_i(theta - theta_i)
            for name, value in theta.items():
                value -= config.outer_lr / len(phase) * shift[name]
        # Without resetting, the adapted weights go on into the next epoch; evaluation borrows the model.
        carried = copy_parameters(parameters.items()) if not config.reset_per_task else theta
        _load(parameters, theta)
        score = evaluate_tasks(model, held, config.query_batch) if held else None
        history.append({"epoch": epoch + 1, "loss": fmean(losses), "srcc": score})
        if score is None or score > best_srcc:
            best = {name: value.clone() for name, value in theta.items()}
            best_srcc = best_srcc if score is None else score
        _load(parameters, carried)
        if writer:
            state = {
                **theta,
                **({f"inner.{n}": v for n, v in carried.items()} if not config.reset_per_task else {}),
            }
            complete = epoch + 1 == config.epochs
            progress = {
                "stage": "pretrain",
                "epoch": epoch + 1,
                "complete": complete,
                "best_srcc": best_srcc if held else None,
                "history": history,
                "held_out_tasks": [task.name for task in held],
            }
            writer.save(State(best, {} if complete else state, progress))
    _load(parameters, best)
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    return history


def adapt(model: GrmpIqa, task: Task, config: MetaConfig, seed: Sequence[int]) -> float:
    """Adapt the prompts to one task in place: the inner loop.

    For each support batch one Adam step on its loss, then one Adam step on a query batch's loss (first
    order: no gradient through the first step).

    Returns:
        The mean loss on the query batches before their steps.
    """
    rng = np.random.default_rng(seed)
    # Dropout is a function of the visit, so that runs resume exactly.
    torch.manual_seed(int(rng.integers(2**62)))
    size = model.image.size
    support, query = task.split(config.support_fraction, rng)
    optimizer = torch.optim.Adam([p for _, p in model.prompt_parameters()], lr=config.inner_lr)
    queries = itertools.cycle(list(query_batches(task, query, size, config.query_batch)))
    model.train()
    losses = []
    for batch in support_batches(task, support, size, config.support_batch, rng):
        _step(model, optimizer, batch)
        losses.append(_step(model, optimizer, next(queries)))
    model.eval()
    return fmean(losses)


def evaluate_tasks(model: GrmpIqa, tasks: Sequence[Task], batch: int) -> float:
    """Mean SRCC over tasks of the model as it is, without adaptation."""
    model.eval()
    with torch.inference_mode():
        text = model.quality_features()
        values = []
        for task in tasks:
            scores = []
            for part in query_batches(task, range(len(task.quality)), model.image.size, batch):
                pixels = model.pixels(torch.from_numpy(part.images).to(text.device))
                scores.append(model.logits(model.image_features(pixels), text).softmax(-1)[:, 0].cpu())
            values.append(srcc(torch.cat(scores).numpy(), task.quality))
    return fmean(0.0 if np.isnan(value) else value for value in values)


def _step(model: GrmpIqa, optimizer: torch.optim.Optimizer, batch: Batch) -> float:
    device = model.ctx.device
    pixels = model.pixels(torch.from_numpy(batch.images).to(device))
    logits = model.logits(model.image_features(pixels), model.quality_features())
    loss = quality_loss(logits, torch.from_numpy(batch.quality).to(device))
    if not math.isfinite(float(loss.detach())):
        raise UsageError(f"the loss became {float(loss.detach())}", "lower --inner-lr or --outer-lr")
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    optimizer.step()
    return float(loss.detach())


def _load(parameters: dict[str, torch.nn.Parameter], values: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])
