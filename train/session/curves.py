"""Training curves beside the checkpoint: a picture (curves.png) or TensorBoard's event files (tensorboard/).

Both are made from the whole history in the checkpoint, so a resumed run's curves have no gap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from grmp_edge.errors import MissingDependencyError
from grmp_edge.files import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["CurveKind", "Panel", "Series", "curves_for", "draw_panels", "panels"]

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
    """A function that draws a run's curves into its folder; None for no curves.

    It is called with the run's progress after every save.

    Raises:
        MissingDependencyError: matplotlib or TensorBoard is needed and not installed.
    """
    if kind == "none":
        return None
    if kind == "tensorboard":
        return _TensorBoard(folder / "tensorboard")
    if find_spec("matplotlib") is None:
        raise MissingDependencyError("matplotlib", "train", "--curves png")

    def draw(progress: Mapping[str, Any]) -> None:
        if progress.get("head"):  # in closed form: no epochs, and matplotlib takes longer than the head
            return
        from matplotlib.figure import Figure  # not pyplot: no window, and no figure that stays in memory

        title = f"{folder.name}: {_STAGES.get(progress.get('stage', ''), '')}, epoch {progress.get('epoch')}"
        figure = Figure(dpi=100, layout="constrained")
        draw_panels(figure, panels(progress), title)
        with replace_file(folder / "curves.png") as temporary:
            figure.savefig(temporary, format="png")

    return draw


def draw_panels(figure: Figure, panels: Sequence[Panel], title: str) -> None:
    """Draw the panels into an empty figure, two a row."""
    rows = max(1, -(-len(panels) // 2))
    figure.set_size_inches(12.4, 0.4 + 3.4 * rows)
    figure.suptitle(title, fontsize="large")
    grid = figure.subplots(rows, 2, squeeze=False).flat
    for panel, axes in zip(panels, grid, strict=False):
        _draw_panel(axes, panel)


def _draw_panel(axes: Axes, panel: Panel) -> None:
    from matplotlib.ticker import MaxNLocator

    drawn = False
    for series in panel.series:
        points = [
            (epoch, value)
            for epoch, value in series.points
            if math.isfinite(value) and (value > 0 or not panel.logarithmic)
        ]
        drawn = drawn or bool(points)
        marker = "o" if len(points) <= 40 else None  # beyond that, dots would hide the line
        axes.plot([x for x, _ in points], [y for _, y in points], marker=marker, ms=4, label=series.label)
    axes.set_title(panel.title)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # epochs are whole
    axes.grid(color="#e1e1e1")
    if not drawn:
        axes.text(0.5, 0.5, "no values yet", ha="center", transform=axes.transAxes)
        return
    if panel.logarithmic:
        axes.set_yscale("log")
    if len(panel.series) > 1:
        axes.legend(fontsize="small")


_STAGES = {"pretrain": "meta-pre-training", "finetune": "fine-tuning"}


def panels(progress: Mapping[str, Any]) -> list[Panel]:
    """The curves of a run's ``history``, four panels for fine-tuning and two for meta-pre-training."""
    history = progress.get("history") or []
    chosen = "held-out tasks" if progress.get("held_out_tasks") else "the set that chooses the epoch"
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
    points = ((int(entry["epoch"]), value(entry)) for entry in history)
    return Series(name, label, tuple((epoch, float(v)) for epoch, v in points if v is not None))


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

            # A resumed run writes its whole history again; purge_step makes readers drop the earlier events.
            self.writer = SummaryWriter(str(self.folder), purge_step=1)
        stage = progress.get("stage", "")
        for panel in panels(progress):
            for series in panel.series:
                for epoch, value in series.points:
                    if epoch > self.written.get(series.name, 0):
                        self.writer.add_scalar(f"{stage}/{series.name}", value, epoch)
                        self.written[series.name] = epoch
        self.writer.flush()
