"""Few-shot fine-tuning with quality-aware gradient regularisation.

Paper section 3.3. The visual prompts stay as meta-pre-training left them; the text context and the last
third of both towers learn from N labelled pictures.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from grmp_edge.errors import UsageError
from grmp_edge.metrics import agreement
from grmp_edge.train.backbone import EMBEDDED
from grmp_edge.train.checkpoint import CheckpointWriter, State, copy_parameters
from grmp_edge.train.distributed import ALONE, Team, current_team
from grmp_edge.train.frozen import CentreScores, Teacher
from grmp_edge.train.model import GrmpIqa
from grmp_edge.train.precision import Precision
from grmp_edge.train.progress import Reporter, Silent
from grmp_edge.train.qgr import Projection
from grmp_edge.train.step import TuningStep

__all__ = ["FinetuneConfig", "finetune", "predict"]

# Between saves of a run that goes on; a kill costs at most so much, and resuming gives the same result.
_SAVE_EVERY_S = 15.0

UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of fine-tuning; the reference's unless a reason is given."""

    # None: the reference's 2000 epochs of steps of 192, which with 50 labels are one step an epoch; for the
    # embedded backbone few and gentle steps, as more unlearn what it knew (docs/experiments.md, 17).
    epochs: int | None = None
    batch: int | None = None
    # Of SGD without momentum. None: the reference's 1e-3, which was found for CLIP's logit scale of 100; the
    # embedded backbone's scale is 17, gradients fall with it, and on its features 0.03 was found.
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
    precision: Precision = "auto"  # of the towers' products: see grmp_edge.train.precision
    # From the last; None: the last third, as the reference. 0 learns the text side alone: for a handful of
    # labels, or to leave the image tower as it is.
    image_blocks: int | None = None
    seed: int = 0

    def for_backbone(self, name: str) -> FinetuneConfig:
        """The same with the epochs, batch, rate and lambda that go with a backbone, unless they are set."""
        embedded = (10, 16, 0.03, 1.0)
        epochs, batch, lr, strength = embedded if name == EMBEDDED else (2000, 192, 1e-3, 5.0)
        return replace(
            self,
            epochs=self.epochs or epochs,
            batch=self.batch or batch,
            lr=lr if self.lr is None else self.lr,
            qgr_strength=strength if self.qgr_strength is None else self.qgr_strength,
        )

    @property
    def limits(self) -> tuple[int, int]:
        """Epochs and pictures a step, once ``for_backbone`` has set them."""
        assert self.epochs is not None and self.batch is not None
        return self.epochs, self.batch


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
        cosine, changed, srcc, lr), ``epoch`` and ``best_srcc``.
    """
    reporter = reporter or Silent()
    config = config.for_backbone(model.backbone.name)
    epochs, batch = config.limits
    model.trained_image_blocks = config.image_blocks
    parameters = dict(model.finetune_parameters())
    prompted = copy_parameters(model.prompt_parameters())  # travel with the checkpoint, unchanged but ctx
    teacher = Teacher(model) if config.qgr else None
    run = _Run(config, parameters)
    if resume is not None:
        run.restore(resume)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    team = current_team()
    # Ranks of one machine share its memory; each GPU has its own.
    memory = config.cache_bytes // (team.local_size if model.ctx.device.type == "cpu" else 1)
    judged = _Judge(model, judge, memory // 2, team) if judge else None
    step = TuningStep(
        model, train.images, train.quality, config, memory - (judged.bytes if judged else 0), team, teacher
    )
    step.scaler.restore(run.loss_scale)
    tensors = step.tensors
    model.eval()  # prompt dropout belongs to learning the prompts
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
                for tensor, gradient in zip(tensors, gradients, strict=True):
                    tensor.sub_(gradient + config.weight_decay * tensor, alpha=run.lr)
        run.epoch += 1
        if run.epoch % config.evaluate_every == 0 or run.epoch == epochs:
            # Ranks of different machines may round differently: they begin anew from the same weights.
            team.align([tensor.data for tensor in tensors])
            score, judged_loss = judged.measure() if judged else (None, None)
            run.loss_scale = step.scaler.state()
            run.judge(score, judged_loss, last)
            if writer and team.leads and time.monotonic() - saved > _SAVE_EVERY_S:
                writer.save(run.state(prompted, complete=False))
                saved = time.monotonic()
        known = run.history[-1]["srcc"] if run.history else None
        reporter.step(1, **last, **({} if known is None else {"srcc": known}), lr=run.lr)
    # What more epochs could go on from, unless the learning rate has ended the run for good.
    onward = copy_parameters(parameters.items()) if run.lr >= config.min_lr else {}
    run.finish()
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    return replace(run.state(prompted, complete=True), resume=onward)


class _Run:
    """The moving state of a run: parameters, epoch, learning rate, what was best."""

    def __init__(self, config: FinetuneConfig, parameters: dict[str, nn.Parameter]) -> None:
        self.config, self.parameters = config, parameters
        self.epoch, self.lr, self.waited = 0, config.lr or 0.0, 0
        self.best = copy_parameters(parameters.items())
        self.best_srcc, self.best_loss = -2.0, math.inf
        self.history: list[dict[str, float | None]] = []
        self.loss_scale: dict[str, float] = {}  # of float16 only

    @property
    def judged(self) -> bool:
        """Whether any evaluation has given a number."""
        return self.best_srcc >= -1

    def judge(self, score: float | None, loss: float | None, last: dict[str, float]) -> None:
        """Note an evaluation; keep the best weights, lower the rate after too many that are not.

        The SRCC of ten pictures often ties, and stays at 1 once reached: the loss then decides.
        """
        if score is not None and loss is not None and (score, -loss) > (self.best_srcc, -self.best_loss):
            self.best, self.waited = copy_parameters(self.parameters.items()), 0
            self.best_srcc, self.best_loss = score, loss
        else:
            self.waited += 1
            if self.waited >= self.config.patience:
                self.lr, self.waited = self.lr * self.config.lr_factor, 0
        self.history.append({"epoch": self.epoch, "srcc": score, "lr": self.lr, **last})

    def finish(self) -> None:
        """Leave the selected weights in the model: the last, where no evaluation gave a number."""
        if not self.judged:
            self.best = copy_parameters(self.parameters.items())
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self.best[name])

    def state(self, prompts: dict[str, Tensor], complete: bool) -> State:
        """What to save."""
        progress = {
            "stage": "finetune",
            "epoch": self.epoch,
            "lr": self.lr,
            "waited": self.waited,
            "best_srcc": self.best_srcc if self.judged else None,
            "best_loss": self.best_loss if self.judged else None,
            "history": self.history,
            "complete": complete,
            **self.loss_scale,
        }
        current = {} if complete else copy_parameters(self.parameters.items())
        selected = self.best if self.judged else copy_parameters(self.parameters.items())
        return State({**prompts, **selected}, current, progress)

    def restore(self, state: State) -> None:
        """Continue from a saved state."""
        self.epoch, self.lr, self.waited = (
            state.progress["epoch"],
            state.progress["lr"],
            state.progress["waited"],
        )
        self.history = list(state.progress["history"])
        self.loss_scale = {k: v for k, v in state.progress.items() if k.startswith("loss_scale")}
        if state.progress["best_srcc"] is not None:
            self.best_srcc = state.progress["best_srcc"]
            self.best_loss = state.progress["best_loss"]
        for name, parameter in self.parameters.items():
            self.best[name] = state.weights[name].to(parameter)
            with torch.no_grad():
                parameter.copy_(state.resume[name])


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
