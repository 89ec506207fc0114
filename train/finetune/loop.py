"""Few-shot fine-tuning with quality-aware gradient regularisation.

Paper section 3.3. The visual prompts stay as meta-pre-training left them; the text context and the last
third of both towers learn from N labelled pictures.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from grmp_edge.errors import UsageError
from grmp_edge.metrics import agreement
from grmp_edge.train.data.labelled import VALIDATION_FRACTION
from grmp_edge.train.finetune.frozen_features import CentreScores, Teacher
from grmp_edge.train.finetune.label_scale import calibrate
from grmp_edge.train.finetune.qgr import Projection
from grmp_edge.train.finetune.state import TuningRun
from grmp_edge.train.finetune.step import TuningStep
from grmp_edge.train.network.backbone import EMBEDDED
from grmp_edge.train.network.model import GrmpIqa
from grmp_edge.train.session.checkpoint import CheckpointWriter, State, copy_parameters
from grmp_edge.train.session.precision import Precision
from grmp_edge.train.session.progress import Reporter, Silent
from grmp_edge.train.session.ranks import ALONE, Team, current_team

__all__ = ["CALIBRATION_STEPS", "FinetuneConfig", "finetune", "predict"]

# Found on the embedded backbone: the scores reach the labels' scale in them, in a second or two.
CALIBRATION_STEPS = 400

# Between saves of a run that goes on; a kill costs at most so much, and resuming gives the same result.
_SAVE_EVERY_S = 15.0

UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of fine-tuning; the reference's unless a reason is given."""

    # None: the reference's 2000 epochs of steps of 192, which with 50 labels are one step an epoch; for the
    # embedded backbone few steps, as more unlearn what it knew (docs/experiments.md, 17 and 19).
    epochs: int | None = None
    batch: int | None = None
    # Of SGD without momentum. None: the reference's 1e-3, which was found for CLIP's logit scale of 100; the
    # embedded backbone's scale is 17, gradients fall with it, and for its image tower 0.5 was found; 0.03
    # where its text side learns too.
    lr: float | None = None
    weight_decay: float = 1e-4
    evaluate_every: int = 5  # epochs
    patience: int = 6  # evaluations without improvement before the learning rate falls
    lr_factor: float = 0.3
    min_lr: float = 5e-7  # stop below it
    qgr: bool = True
    # lambda; 1 is the paper's orthogonal projection, 5 gave the published figures. None: 5, and 1 for the
    # embedded backbone, whose scenes are too dim to be worth more (docs/experiments.md, 17).
    qgr_strength: float | None = None
    projection: Projection = "per_tensor"
    # What chooses the epoch and drives the learning rate. "validation" is a part of the N labels; the
    # reference looked at the test split, which "test" reproduces and marks in the result.
    select_on: Literal["validation", "test"] = "validation"
    cache_bytes: int = 2 << 30  # at most so much of what is frozen is kept instead of computed again
    precision: Precision = "auto"  # of the towers' products: see grmp_edge.train.session.precision
    # Before the labels: steps of fitting the text side to the labels' scale (see label_scale.py); 0
    # begins with the labels, as the reference. None: 0, and 400 for the embedded backbone, whose scores lie
    # near 1 on photographs and which lost order in finding the scale (docs/experiments.md, 19).
    calibration_steps: int | None = None
    # Learning rate of the text side as a part of lr. None: 1, as the reference, and 0 for the embedded
    # backbone: once calibrated, its text side fits the errors of few labels first (docs/experiments.md, 19).
    text_rate: float | None = None
    # Judge and keep the mean of the weights after each epoch so far, which swings less than those of one
    # epoch. None: no, as the reference, and yes for the embedded backbone (docs/experiments.md, 19).
    average: bool | None = None
    # From the last; None: the last third, as the reference, and three of the embedded backbone's five, which
    # are all that work on merged tokens (docs/experiments.md, 32). 0 learns the text side alone: for a
    # handful of labels, or to leave the image tower as it is.
    image_blocks: int | None = None
    seed: int = 0

    def for_backbone(self, name: str) -> FinetuneConfig:
        """The same with what goes with a backbone where it is not set: epochs, batch, rates, lambda."""
        usual: dict[str, Any] = {"epochs": 2000, "batch": 192, "lr": 1e-3, "qgr_strength": 5.0}
        usual |= {"calibration_steps": 0, "text_rate": 1.0, "average": False}
        if name == EMBEDDED:
            alone = 1.0 if self.image_blocks == 0 else 0.0  # without image blocks the text side must learn
            usual = {
                "epochs": 12,
                "batch": 16,
                "qgr_strength": 1.0,
                "calibration_steps": CALIBRATION_STEPS,
                "average": True,
                "image_blocks": 3,
            }
            usual |= {"text_rate": alone if self.text_rate is None else self.text_rate}
            usual |= {"lr": 0.03 if usual["text_rate"] else 0.5}
        return replace(self, **{key: value for key, value in usual.items() if getattr(self, key) is None})

    @property
    def limits(self) -> tuple[int, int]:
        """Epochs and pictures a step, once ``for_backbone`` has set them."""
        assert self.epochs is not None and self.batch is not None
        return self.epochs, self.batch

    @staticmethod
    def validation_fraction(backbone: str) -> float:
        """The share of the labels that chooses the epoch, where none is asked for.

        None for the embedded backbone: of its few epochs, whose weights are averaged, a handful of pictures
        chooses no better than the schedule, and they are missed in training (docs/experiments.md, 19).
        """
        return 0.0 if backbone == EMBEDDED else VALIDATION_FRACTION


@dataclass(frozen=True)
class Part:
    """Squashed pictures, uint8 (n, R, R, 3) with R = 244 for a 224 network, and quality (n,) in 0..1."""

    images: UInt8Array
    quality: Float32Array
    # The labels where they pass 0..1, as they do outside the scale of the pictures learned from; clipped
    # ones would tie. None: the quality.
    labels: npt.NDArray[np.float64] | None = None

    def measure(self, predicted: Float32Array) -> dict[str, float | None]:
        """SRCC, PLCC, KRCC and RMSE (in 0..1 units) of predictions, as plain JSON; None where undefined."""
        found = agreement(predicted, self.quality if self.labels is None else self.labels)
        return {name: _finite(value) for name, value in asdict(found).items()}


def finetune(
    model: GrmpIqa,
    train: Part,
    judge: Part | None,
    config: FinetuneConfig,
    writer: CheckpointWriter | None = None,
    resume: State | None = None,
    reporter: Reporter | None = None,
) -> State:
    """Fine-tune in place; the epoch that ``judge`` likes best is what stays (the last one without a judge).

    Args:
        model: on the device to train on.
        train: the labelled pictures to learn from.
        judge: the pictures that choose the epoch and drive the learning rate; None for a fixed schedule,
            in which the rate falls as if no evaluation ever improved.
        config: the settings.
        writer, resume: where to save now and then (rank 0 does), and the state to continue from.
        reporter: told of every epoch.

    Returns:
        The final state, to be saved: its progress has ``history`` (one entry an evaluation: loss, semantic,
        cosine, changed, srcc, lr), ``epoch``, ``best_srcc`` and, where there was one, ``calibration``.
    """
    reporter = reporter or Silent()
    config = config.for_backbone(model.backbone.name)
    epochs, batch = config.limits
    model.trained_image_blocks = config.image_blocks
    parameters = dict(model.finetune_parameters())
    prompted = copy_parameters(model.prompt_parameters())  # travel with the checkpoint, unchanged but ctx
    teacher = Teacher(model) if config.qgr else None
    team = current_team()
    model.eval()  # prompt dropout belongs to learning the prompts
    calibration = None
    if resume is None and config.calibration_steps:
        reporter.start("fitting the labels' scale", config.calibration_steps)
        calibration = calibrate(
            model, train.images, train.quality, config.calibration_steps, team, reporter.step
        )
    run = TuningRun(config, parameters)
    run.calibration = calibration
    if resume is not None:
        run.restore(resume)
    # Ranks of one machine share its memory; each GPU has its own.
    memory = config.cache_bytes // (team.local_size if model.ctx.device.type == "cpu" else 1)
    judged = _Judge(model, judge, memory // 2, team) if judge else None
    step = TuningStep(
        model, train.images, train.quality, config, memory - (judged.bytes if judged else 0), team, teacher
    )
    step.scaler.restore(run.loss_scale)
    tensors, rates = step.tensors, step.rates
    reporter.start("fine-tuning", epochs, run.epoch)
    saved = time.monotonic()
    while run.epoch < epochs and run.lr >= config.min_lr:
        rng = np.random.default_rng([config.seed, run.epoch])
        order = rng.permutation(len(train.images)).tolist()
        last: dict[str, float] = {}
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            margin = train.images.shape[1] - model.image.size
            offset, flip = int(rng.integers(0, max(1, margin))), bool(rng.random() < 0.5)
            try:
                gradients, last = step.gradients(chosen, offset, flip)
            except UsageError as error:
                raise UsageError(f"{error.message} in epoch {run.epoch + 1}", error.remedy) from None
            if gradients is None:
                continue
            # SGD without momentum: decoupling weight decay or not is the same, it adds to the gradient.
            with torch.no_grad():
                for tensor, gradient, rate in zip(tensors, gradients, rates, strict=True):
                    tensor.sub_(gradient + config.weight_decay * tensor, alpha=run.lr * rate)
        run.end_epoch()
        if run.epoch % config.evaluate_every == 0 or run.epoch == epochs:
            # Ranks of different machines may round differently: they begin anew from the same weights.
            team.align([tensor.data for tensor in tensors])
            run.loss_scale = step.scaler.state()
            with run.shown():
                score, judged_loss = judged.measure() if judged else (None, None)
                run.judge(score, judged_loss, last)
            if writer and team.leads and time.monotonic() - saved > _SAVE_EVERY_S:
                writer.save(run.state(prompted, complete=False))
                saved = time.monotonic()
        known = run.history[-1]["srcc"] if run.history else None
        reporter.step(1, **last, **({} if known is None else {"srcc": known}), lr=run.lr)
    # What more epochs could go on from, unless the learning rate has ended the run for good.
    onward = run.onward() if run.lr >= config.min_lr else {}
    run.finish()
    team.align([parameter.data for parameter in parameters.values()])  # of means, ranks may round differently
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    return replace(run.state(prompted, complete=True), resume=onward)


class _Judge:
    """Measures the model of the moment on a part; its frozen tokens are computed once."""

    def __init__(self, model: GrmpIqa, part: Part, budget: int, team: Team) -> None:
        self.part = part
        self.scores = CentreScores(model, part.images, budget, team=team)

    @property
    def bytes(self) -> int:
        """What its tokens will take of the memory."""
        return self.scores.most_bytes

    def measure(self) -> tuple[float | None, float]:
        """SRCC (None where undefined) and mean quality loss."""
        predicted = self.scores.predict()
        p = np.clip(predicted.astype(np.float64), 1e-7, 1 - 1e-7)
        loss = -(self.part.quality * np.log(p) + (1 - self.part.quality) * np.log(1 - p)).mean()
        return self.part.measure(predicted)["srcc"], float(loss)


def predict(model: GrmpIqa, images: UInt8Array, batch: int = 64, team: Team = ALONE) -> Float32Array:
    """Score squashed pictures, uint8 (n, R, R, 3), by their centre: float32 (n,) in 0..1."""
    return CentreScores(model, images, batch=batch, team=team).predict()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
