"""The settings of fine-tuning, and the pictures it works on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from grmp_edge.metrics import agreement
from grmp_edge.train.data.labelled import Crops
from grmp_edge.train.network.settings import LearningSettings, given_only, settings_for

if TYPE_CHECKING:  # options are checked before torch is loaded
    from grmp_edge.train.finetune.qgr import Projection
    from grmp_edge.train.session.precision import Precision

__all__ = ["FinetuneConfig", "Float32Array", "Method", "Part", "UInt8Array"]

Method = Literal["qgr", "head", "ridge", "both"]
UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FinetuneConfig(LearningSettings):
    """Settings of fine-tuning; the reference's unless a reason is given."""

    weight_decay: float = 1e-4
    evaluate_every: int = 5  # epochs
    patience: int = 6  # evaluations without improvement before the learning rate falls
    lr_factor: float = 0.3
    min_lr: float = 5e-7  # stop below it
    # "qgr": the paper's. "head": ridge regression on the frozen network, in closed form, with its own score
    # as the prior. "ridge": the same without that prior, to compare with. "both": the better of head and qgr,
    # by cross-validation within the labels.
    method: Method = "qgr"
    qgr: bool = True
    projection: Projection = "per_tensor"
    # What chooses the epoch and drives the learning rate. "validation" is a part of the N labels; the
    # reference looked at the test split, which "test" reproduces and marks in the result.
    select_on: Literal["validation", "test"] = "validation"
    # Where a batch's pictures are cut out of their squash: row and column drawn apart, 400 places at 224, or
    # one number for both, 20 places.
    offsets: Literal["independent", "shared"] = "independent"
    # The released code mirrors a batch exactly where its column offset lies in the lower half.
    flip: Literal["independent", "by column"] = "independent"
    # Prompts stay as they are while the blocks learn; the released code drops a tenth of them out even so,
    # which makes each picture's features different at every step and forbids caching them.
    prompt_dropout: bool = False
    # Where the labels' scale is declared, the lowest and highest of the drawn labels need not be its ends.
    label_scale: Literal["declared", "drawn"] = "declared"
    cache_bytes: int = 2 << 30  # of frozen tokens, cached at most instead of computed again
    precision: Precision = "auto"  # of the towers' products: see grmp_edge.train.session.precision
    seed: int = 0

    @classmethod
    def of(cls, backbone: str, **given: Any) -> FinetuneConfig:
        """The settings that go with a backbone, by name, with given ones in their place (None: not given).

        Unless given, ``text_rate`` follows from ``image_blocks``, and ``lr`` from ``text_rate``.
        """
        return cls(**settings_for(backbone).finetune_values(**given_only(given)))


@dataclass(frozen=True)
class Part:
    """Squashed pictures, uint8 (n, R, R, 3) with R = 244 for a 224 network, and quality (n,) in 0..1."""

    images: UInt8Array
    quality: Float32Array
    # Labels where some pass 0..1, the scale of the training pictures: clipped, they would tie. None: quality.
    labels: npt.NDArray[np.float64] | None = None
    crops: Crops | None = None  # of a network that looks at them, too
    twins: Part | None = None  # distorted copies of the first pictures, one each, to be ranked below them

    def take(self, index: Sequence[int]) -> Part:
        """Some of the pictures, without twins."""
        rows = list(index)
        return Part(
            self.images[rows],
            self.quality[rows],
            None if self.labels is None else self.labels[rows],
            None if self.crops is None else self.crops.take(rows),
        )

    def measure(self, predicted: Float32Array) -> dict[str, float | None]:
        """SRCC, PLCC, KRCC and RMSE (in 0..1 units) of predictions, as plain JSON; None where undefined."""
        measures = agreement(predicted, self.actual)
        return {name: _finite(value) for name, value in asdict(measures).items()}

    @property
    def actual(self) -> npt.NDArray[Any]:
        """The labels to measure by, (n,)."""
        return self.quality if self.labels is None else self.labels


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
