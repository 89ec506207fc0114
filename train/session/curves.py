"""Training curves beside the checkpoint: a picture (curves.png) or TensorBoard's event files (tensorboard/).

Both are made from the whole history, which the checkpoint carries: a resumed run's curves have no gap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from grmp_edge.errors import MissingDependencyError

__all__ = ["CurveKind", "Panel", "Series", "curves_for", "panels"]

CurveKind = Literal["png", "tensorboard", "none"]
Draw = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Series:
    """One curve."""

    name: str  # as in TensorBoard
    label: str
    points: tuple[tuple[int, float], ...]  # epoch, value; epochs without a value are left out


@dataclass(frozen=True)
class Panel:
    """Curves that share their axes."""

    title: str
    series: tuple[Series, ...]
    logarithmic: bool = False


def curves_for(kind: CurveKind, folder: Path) -> Draw | None:
    """What draws a run's curves into its folder, given its progress after every save; None for no curves.

    Raises:
        MissingDependencyError: TensorBoard is asked for and not installed.
    """
    if kind == "none":
        return None
    if kind == "tensorboard":
        return _TensorBoard(folder / "tensorboard")

    def draw(progress: Mapping[str, Any]) -> None:
        from grmp_edge.train.session.curves_png import write_png

        title = f"{folder.name}: {_STAGES.get(progress.get('stage', ''), '')}, epoch {progress.get('epoch')}"
        write_png(folder / "curves.png", panels(progress), title)

    return draw


_STAGES = {"pretrain": "meta-pre-training", "finetune": "fine-tuning"}


def panels(progress: Mapping[str, Any]) -> list[Panel]:
    """The curves of a run's ``history``, four panels for fine-tuning and two for meta-pre-training."""
    history = progress.get("history") or []
    chosen = "held-out tasks" if progress.get("held_out_tasks") else "what chooses the epoch"
    if progress.get("stage") == "pretrain":
        phases = max((len(entry.get("phase_losses") or ()) for entry in history), default=0)
        per_phase = tuple(
            _series(history, f"loss/phase_{k + 1}", f"phase {k + 1}", partial(_of_phase, k))
            for k in range(phases)
        )
        mean = _series(history, "loss/mean", "mean over tasks", lambda entry: entry.get("loss"))
        return [
            Panel("query loss", (mean, *per_phase) if phases > 1 else (mean,)),
            Panel(f"SRCC on {chosen}", (_plain(history, "srcc", "SRCC"),)),
        ]
    return [
        Panel("loss", (_plain(history, "loss", "quality"), _plain(history, "semantic", "semantic"))),
        Panel(
            "gradient regularisation (QGR)",
            (_plain(history, "cosine", "cosine"), _plain(history, "changed", "share changed")),
        ),
        Panel("SRCC on the part that chooses the epoch", (_plain(history, "srcc", "SRCC"),)),
        Panel("learning rate", (_plain(history, "lr", "rate"),), logarithmic=True),
    ]


def _of_phase(phase: int, entry: Mapping[str, Any]) -> float | None:
    losses = entry.get("phase_losses") or ()
    return losses[phase] if phase < len(losses) else None


def _plain(history: list[dict[str, Any]], name: str, label: str) -> Series:
    return _series(history, name, label, lambda entry: entry.get(name))


def _series(
    history: list[dict[str, Any]], name: str, label: str, value: Callable[[dict[str, Any]], float | None]
) -> Series:
    found = ((int(entry["epoch"]), value(entry)) for entry in history)
    return Series(name, label, tuple((epoch, float(v)) for epoch, v in found if v is not None))


class _TensorBoard:
    """Event files that grow as the run goes on."""

    def __init__(self, folder: Path) -> None:
        if find_spec("tensorboard") is None:
            raise MissingDependencyError("tensorboard", "tensorboard", "--curves tensorboard")
        self.folder = folder
        self.writer: Any = None
        self.written: dict[str, int] = {}  # the last epoch of each curve

    def __call__(self, progress: Mapping[str, Any]) -> None:
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # Each process writes the whole history anew and has readers forget what earlier ones wrote.
            self.writer = SummaryWriter(str(self.folder), purge_step=1)
        stage = progress.get("stage", "")
        for panel in panels(progress):
            for series in panel.series:
                for epoch, value in series.points:
                    if epoch > self.written.get(series.name, 0):
                        self.writer.add_scalar(f"{stage}/{series.name}", value, epoch)
                        self.written[series.name] = epoch
        self.writer.flush()
