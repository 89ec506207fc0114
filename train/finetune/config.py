"""The settings of fine-tuning, and the pictures it works on."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from grmp_edge.metrics import agreement
from grmp_edge.train.data.labelled import VALIDATION_FRACTION
from grmp_edge.train.finetune.qgr import Projection
from grmp_edge.train.network.backbone import EMBEDDED
from grmp_edge.train.session.precision import Precision

__all__ = ["CALIBRATION_STEPS", "FinetuneConfig", "Float32Array", "Part", "UInt8Array"]

# Measured on the embedded backbone: the scores reach the labels' scale in them, in a second or two.
CALIBRATION_STEPS = 400

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


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
