"""Mixed precision in training: which products may be half, and what always stays float32.

Weights, optimiser, softmax, losses and the projection of gradients are always float32; the towers' matrix
products follow autocast. Heads and logits turn autocast off themselves (see towers, model): at CLIP's logit
scale of 100, rounding a cosine to bfloat16 would cost most of the score's range.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from grmp_edge.errors import UsageError

__all__ = ["PRECISIONS", "LossScaler", "Numerics", "Precision", "resolve_precision"]

Precision = Literal["auto", "fp32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = ("auto", "fp32", "bf16", "fp16")

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(requested: Precision, device: torch.device) -> Precision:
    """Resolve ``auto`` for a device: bf16 on a GPU that has it, else fp32; any other value is unchanged.

    CPUs use fp32, although those with AVX512-BF16 or AMX gain from bf16: results should not depend on which
    CPU a run happens to get.

    Raises:
        UsageError: the precision is unknown, or this GPU has no bf16.
    """
    if requested not in PRECISIONS:
        raise UsageError(f"--precision {requested!r} is unknown", f"use {', '.join(PRECISIONS)}")
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if requested == "auto":
        return "bf16" if native else "fp32"
    if requested == "bf16" and device.type == "cuda" and not native:
        raise UsageError("--precision bf16: this GPU has no bfloat16", "use fp16 or fp32")
    return requested


@dataclass(frozen=True)
class Numerics:
    """The precision of the towers in one training run."""

    precision: Precision  # resolved: fp32, bf16 or fp16
    device: str  # the type: cpu or cuda

    @classmethod
    def of(cls, requested: Precision, device: torch.device) -> Numerics:
        """Resolve a request such as ``auto`` for a device."""
        return cls(resolve_precision(requested, device), device.type)

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """The context in which the towers run."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        # torch does not declare what its context manager yields.
        context: contextlib.AbstractContextManager[None] = torch.autocast(
            self.device, dtype=_HALF[self.precision]
        )
        return context

    def attempts(self) -> Sequence[Numerics]:
        """This precision, then float32 in case float16 overflows (its largest number is 65,504)."""
        return (self, replace(self, precision="fp32")) if self.precision == "fp16" else (self,)


class LossScaler:
    """Loss scaling, which keeps float16 gradients from underflowing.

    A factor of 1 unless ``active``. Like torch's GradScaler, but for gradients in lists: QGR needs those of
    two losses, scaled alike.
    """

    def __init__(self, active: bool, scale: float = 2.0**12, growth_after: int = 2000) -> None:
        self.active, self.scale, self.growth_after = active, scale if active else 1.0, growth_after
        self.good = 0  # steps since the scale last changed

    def unscale(self, gradients: Sequence[Tensor]) -> bool:
        """Divide gradients in place; False if one is not finite, and the step must be skipped."""
        if not self.active:
            return True
        finite = torch.stack([torch.isfinite(g).all() for g in gradients]).all()
        if not bool(finite):
            self.scale, self.good = max(1.0, self.scale / 2), 0
            return False
        for gradient in gradients:
            gradient.div_(self.scale)
        self.good += 1
        if self.good >= self.growth_after:
            self.scale, self.good = min(2.0**24, self.scale * 2), 0
        return True

    def state(self) -> dict[str, float]:
        """The state an interrupted run needs to continue identically; empty unless active."""
        return {"loss_scale": self.scale, "loss_scale_good": self.good} if self.active else {}

    def restore(self, state: dict[str, float]) -> None:
        """Continue from :meth:`state`; an empty one changes nothing."""
        if self.active and "loss_scale" in state:
            self.scale, self.good = float(state["loss_scale"]), int(state["loss_scale_good"])
