"""The moving state of a fine-tuning run: which epoch is best, when the learning rate falls, what is saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict

import torch
from torch import Tensor, nn

from grmp_edge.train.finetune.config import FinetuneConfig
from grmp_edge.train.finetune.label_scale import Calibration
from grmp_edge.train.session.checkpoint import State, copy_parameters

__all__ = ["TuningRun"]

_MEAN = "mean of "  # before the name of a parameter


class TuningRun:
    """Where a run is: parameters, epoch, learning rate, and the weights and figures of the best epoch.

    Args:
        config: its settings.
        parameters: what fine-tuning learns, by name, as it is when the run begins.
    """

    def __init__(self, config: FinetuneConfig, parameters: dict[str, nn.Parameter]) -> None:
        self.config, self.parameters = config, parameters
        self.epoch, self.lr, self.waited = 0, config.lr, 0
        self.best = copy_parameters(parameters.items())
        self.mean = copy_parameters(parameters.items()) if config.average else {}
        self.best_epoch, self.best_srcc, self.best_plcc = 0, -2.0, -2.0
        self.history: list[dict[str, float | None]] = []
        self.loss_scale: dict[str, float] = {}  # of float16 only
        self.calibration: Calibration | None = None

    def end_epoch(self) -> None:
        """Count an epoch and add its weights to the mean."""
        self.epoch += 1
        with torch.no_grad():
            for name, mean in self.mean.items():
                mean.lerp_(self.parameters[name], 1 / self.epoch)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Within the block, the model has the weights to judge and save: their mean, or the current ones."""
        now = copy_parameters((name, self.parameters[name]) for name in self.mean)
        self._put(self.mean)
        try:
            yield
        finally:
            self._put(now)

    @property
    def judged(self) -> bool:
        """Whether any evaluation has given a number."""
        return self.best_srcc >= -1

    def begin(self, srcc: float | None, plcc: float | None) -> None:
        """Let the start be the first best, so that a worse model is never handed back."""
        self._keep(srcc, plcc)

    def judge(self, srcc: float | None, plcc: float | None, last: dict[str, float]) -> None:
        """Record an evaluation: keep the best weights, or lower the rate after too many without improvement.

        Best is the largest sum of SRCC and PLCC, as in the released code; SRCC alone often ties.
        """
        if self._keep(srcc, plcc):
            self.waited = 0
        else:
            self.waited += 1
            if self.waited >= self.config.patience:
                self.lr, self.waited = self.lr * self.config.lr_factor, 0
        self.history.append({"epoch": self.epoch, "srcc": srcc, "plcc": plcc, "lr": self.lr, **last})

    def _keep(self, srcc: float | None, plcc: float | None) -> bool:
        if srcc is None or plcc is None or srcc + plcc <= self.best_srcc + self.best_plcc:
            return False
        self.best = copy_parameters(self.parameters.items())
        self.best_epoch, self.best_srcc, self.best_plcc = self.epoch, srcc, plcc
        return True

    def finish(self) -> None:
        """Put the selected weights into the model: the last ones if no evaluation gave a number."""
        if not self.judged:
            self.best = self._current()
        self._put(self.best)

    def _current(self) -> dict[str, Tensor]:
        return copy_parameters(self.parameters.items()) | {n: t.clone() for n, t in self.mean.items()}

    def _put(self, weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in weights.items():
                self.parameters[name].copy_(value)

    def state(self, prompts: dict[str, Tensor], complete: bool) -> State:
        """What to save."""
        progress = {
            "stage": "finetune",
            "epoch": self.epoch,
            "lr": self.lr,
            "waited": self.waited,
            "best_srcc": self.best_srcc if self.judged else None,
            "best_plcc": self.best_plcc if self.judged else None,
            "best_epoch": self.best_epoch if self.judged else None,
            "history": self.history,
            "complete": complete,
            **({"calibration": asdict(self.calibration)} if self.calibration else {}),
            **self.loss_scale,
        }
        selected = self.best if self.judged else self._current()
        return State({**prompts, **selected}, {} if complete else self.onward(), progress)

    def onward(self) -> dict[str, Tensor]:
        """What a resumed run continues from: the current weights, and their mean so far."""
        mean = {_MEAN + name: value.clone() for name, value in self.mean.items()}
        return copy_parameters(self.parameters.items()) | mean

    def restore(self, state: State) -> None:
        """Continue from a saved state."""
        self.epoch, self.lr, self.waited = (
            state.progress["epoch"],
            state.progress["lr"],
            state.progress["waited"],
        )
        self.history = list(state.progress["history"])
        if "calibration" in state.progress:
            self.calibration = Calibration(**state.progress["calibration"])
        self.loss_scale = {k: v for k, v in state.progress.items() if k.startswith("loss_scale")}
        if state.progress["best_srcc"] is not None:
            self.best_srcc = state.progress["best_srcc"]
            # Unknown of runs begun before it counted: the next evaluation is better, whatever it is.
            self.best_plcc = state.progress.get("best_plcc", -1.0)
            self.best_epoch = state.progress.get("best_epoch", 0)
        for name, parameter in self.parameters.items():
            self.best[name] = state.weights[name].to(parameter)
            with torch.no_grad():
                parameter.copy_(state.resume[name])
                if name in self.mean:
                    self.mean[name].copy_(state.resume[_MEAN + name])
