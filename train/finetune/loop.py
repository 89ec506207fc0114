"""Few-shot fine-tuning with quality-aware gradient regularisation.

Paper section 3.3. The visual prompts stay as meta-pre-training left them; the text context and the last
third of both towers learn from N labelled pictures.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch

from grmp_edge.errors import UsageError
from grmp_edge.train.finetune.config import FinetuneConfig, Float32Array, Part, UInt8Array
from grmp_edge.train.finetune.frozen_features import CentreScores, Cut, Teacher, ViewScores
from grmp_edge.train.finetune.label_scale import calibrate
from grmp_edge.train.finetune.state import TuningRun
from grmp_edge.train.finetune.step import TuningStep
from grmp_edge.train.network.model import GrmpIqa
from grmp_edge.train.session.checkpoint import CheckpointWriter, State, copy_parameters
from grmp_edge.train.session.progress import Reporter, Silent
from grmp_edge.train.session.ranks import ALONE, Team, current_team

__all__ = ["draw_cut", "finetune", "predict", "predict_part"]

# Between saves of a running fine-tuning: the most that a kill costs.
_SAVE_EVERY_S = 15.0


def finetune(
    model: GrmpIqa,
    train: Part,
    judge: Part | None,
    config: FinetuneConfig,
    writer: CheckpointWriter | None = None,
    resume: State | None = None,
    reporter: Reporter | None = None,
) -> State:
    """Fine-tune in place, and keep the epoch that agrees with ``judge`` best, of which the start is one.

    Best is the largest sum of SRCC and PLCC, as in the released code. Without a judge, the last epoch stays.

    Args:
        model: on the device to train on.
        train: the labelled pictures to learn from.
        judge: the pictures that choose the epoch and drive the learning rate; None for a fixed schedule,
            in which the rate falls as if no evaluation improved.
        config: the settings.
        writer, resume: where to save now and then (rank 0 does), and the state to continue from.
        reporter: receives the progress, epoch by epoch.

    Returns:
        The final state, to be saved: its progress has ``history`` (one entry an evaluation: loss, semantic,
        cosine, changed, srcc, plcc, lr), ``epoch``, ``best_epoch`` (0: the start), ``best_srcc``,
        ``best_plcc`` and, where there was one, ``calibration``.
    """
    reporter = reporter or Silent()
    if config.image_blocks is not None:
        model.trained_image_blocks = config.image_blocks
    parameters = dict(model.finetune_parameters())
    prompted = copy_parameters(model.prompt_parameters())  # travel with the checkpoint, unchanged but ctx
    if train.crops is not None:
        prompted |= {name: value.clone() for name, value in model.head().items()}
    teacher = Teacher(model) if config.qgr else None
    team = current_team()
    model.eval()
    run = TuningRun(config, parameters)
    # Ranks on one machine share its memory; each GPU has its own.
    memory = config.cache_bytes // (team.local_size if model.ctx.device.type == "cpu" else 1)
    judged = _Judge(model, judge, memory // 2, team) if judge else None
    if resume is not None:
        run.restore(resume)
    elif judged:
        run.begin(*judged.measure())
    # With crops, the head has done so.
    if resume is None and config.calibration_steps and train.crops is None:
        reporter.start("fitting the labels' scale", config.calibration_steps)
        run.calibration = calibrate(
            model, train.images, train.quality, config.calibration_steps, team, reporter.step
        )
        if judged:
            run.begin(*judged.measure())
    step = TuningStep(
        model,
        train.images,
        train.quality,
        config,
        memory - (judged.bytes if judged else 0),
        team,
        teacher,
        train.crops,
        train.twins,
    )
    step.scaler.restore(run.loss_scale)
    tensors, rates = step.tensors, step.rates
    reporter.start("fine-tuning", config.epochs, run.epoch)
    saved = time.monotonic()
    while run.epoch < config.epochs and run.lr >= config.min_lr:
        rng = np.random.default_rng([config.seed, run.epoch])
        order = rng.permutation(len(train.images)).tolist()
        last: dict[str, float] = {}
        for start in range(0, len(order), config.batch):
            chosen = order[start : start + config.batch]
            cut = draw_cut(rng, max(1, train.images.shape[1] - model.image.size), config)
            dropout_seed = int(rng.integers(2**62)) if config.prompt_dropout else 0
            try:
                gradients, last = step.gradients(chosen, cut, dropout_seed)
            except UsageError as error:
                raise UsageError(f"{error.message} in epoch {run.epoch + 1}", error.remedy) from None
            if gradients is None:
                continue
            # SGD without momentum: decoupling weight decay or not is the same, it adds to the gradient.
            with torch.no_grad():
                for tensor, gradient, rate in zip(tensors, gradients, rates, strict=True):
                    tensor.sub_(gradient + config.weight_decay * tensor, alpha=run.lr * rate)
        run.end_epoch()
        if run.epoch % config.evaluate_every == 0 or run.epoch == config.epochs:
            # Different machines may round differently: all ranks continue from the same weights.
            team.align([tensor.data for tensor in tensors])
            run.loss_scale = step.scaler.state()
            with run.shown():
                run.judge(*(judged.measure() if judged else (None, None)), last)
            if writer and team.leads and time.monotonic() - saved > _SAVE_EVERY_S:
                writer.save(run.state(prompted, complete=False))
                saved = time.monotonic()
        latest = run.history[-1]["srcc"] if run.history else None
        reporter.step(1, **last, **({} if latest is None else {"srcc": latest}), lr=run.lr)
    # More epochs continue from here, unless the learning rate has ended the run for good.
    onward = run.onward() if run.lr >= config.min_lr else {}
    run.finish()
    team.align([parameter.data for parameter in parameters.values()])  # of means, ranks may round differently
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    return replace(run.state(prompted, complete=True), resume=onward)


def draw_cut(rng: np.random.Generator, margin: int, config: FinetuneConfig) -> Cut:
    """The cut of a batch whose pictures have ``margin`` pixels more than the network reads."""
    row = int(rng.integers(0, margin))
    column = int(rng.integers(0, margin)) if config.offsets == "independent" else row
    flip = column < margin // 2 if config.flip == "by column" else bool(rng.random() < 0.5)
    return Cut(row, column, flip)


class _Judge:
    """Measures the current weights on a part; the frozen tokens are computed once."""

    def __init__(self, model: GrmpIqa, part: Part, budget: int, team: Team) -> None:
        self.part = part
        self.scores = _scores(model, part, budget, team=team)

    @property
    def bytes(self) -> int:
        """Memory that its tokens will take, at most."""
        return self.scores.most_bytes

    def measure(self) -> tuple[float | None, float | None]:
        """SRCC and PLCC, None where undefined."""
        measures = self.part.measure(self.scores.predict())
        return measures["srcc"], measures["plcc"]


def _scores(
    model: GrmpIqa, part: Part, budget: int = 0, batch: int = 64, team: Team = ALONE
) -> CentreScores | ViewScores:
    if part.crops is None:
        return CentreScores(model, part.images, budget, batch, team)
    return ViewScores(model, part.images, part.crops, budget, batch, team)


def predict_part(model: GrmpIqa, part: Part, team: Team = ALONE) -> Float32Array:
    """Score a part's pictures by all views that it has: float32 (n,) in 0..1."""
    return _scores(model, part, team=team).predict()


def predict(model: GrmpIqa, images: UInt8Array, batch: int = 64, team: Team = ALONE) -> Float32Array:
    """Score squashed pictures, uint8 (n, R, R, 3), by their centre: float32 (n,) in 0..1."""
    return CentreScores(model, images, batch=batch, team=team).predict()
