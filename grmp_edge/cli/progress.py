"""Live progress of long work on stderr: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from grmp_edge.cli.ranks import RESUME_HINT, leads
from grmp_edge.files import claimed

if TYPE_CHECKING:
    from rich.progress import TaskID

__all__ = ["TrainProgress", "stages", "working"]

_LINE_EVERY_S = 10.0  # where stderr is a file or a pipe


class TrainProgress:
    """Shows stage, steps done, rate, time left and the latest metrics; a context manager."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = Console(stderr=True)
        self.live = self.console.is_terminal
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
            console=self.console,
            disable=not self.live,
        )
        self.task: TaskID | None = None
        self.stage, self.total, self.done, self.first = "", 0, 0, 0
        self.started = self.printed = time.monotonic()

    def __enter__(self) -> TrainProgress:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def start(self, stage: str, total: int, done: int = 0) -> None:
        """Begin a stage of ``total`` steps, ``done`` of which an earlier run did."""
        self._line(final=True)
        if self.task is not None:
            # A stage may stop early; its bar then ends there.
            self.progress.update(self.task, total=self.done)
        self.stage, self.total, self.done, self.first = stage, total, done, done
        self.started = self.printed = time.monotonic()
        self.metrics: dict[str, float] = {}
        self.task = self.progress.add_task(stage, total=total, completed=done, rate="", metrics="")
        if not self.live:
            resumed = f", {done} done before" if done else ""
            print(f"{stage}: {total} steps{resumed}", file=sys.stderr, flush=True)

    def step(self, count: int = 1, **metrics: float) -> None:
        """Count steps and show the latest metrics."""
        self.done += count
        self.metrics = {**self.metrics, **metrics}
        if self.task is not None:
            self.progress.update(self.task, completed=self.done, rate=self._rate(), metrics=self._metrics())
        if time.monotonic() - self.printed >= _LINE_EVERY_S:
            self._line()

    def note(self, text: str) -> None:
        """Print one line above the bar."""
        self.console.print(text, highlight=False, markup=False)

    def _rate(self) -> str:
        rate = (self.done - self.first) / max(1e-9, time.monotonic() - self.started)
        return f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each" if rate > 0 else ""

    def _metrics(self) -> str:
        shown = [name for name in ("loss", "srcc", "semantic", "cosine", "lr") if name in self.metrics]
        return " ".join(f"{name} {self.metrics[name]:.4g}" for name in shown)

    def _line(self, final: bool = False) -> None:
        if self.live or not self.stage or (final and self.printed == self.started):
            return
        steps = self.done - self.first
        left = (self.total - self.done) * (time.monotonic() - self.started) / max(1, steps)
        # Before the first step ends, its duration is unknown.
        ending = f", about {left:.0f} s left" if steps and not final else ""
        print(
            f"{self.stage}: {self.done}/{self.total}, {self._rate()}{ending} {self._metrics()}",
            file=sys.stderr,
            flush=True,
        )
        self.printed = time.monotonic()


@contextlib.contextmanager
def working(output: Path, hint: str = RESUME_HINT) -> Iterator[TrainProgress]:
    """Show the progress of the block, which alone writes into ``output``; Ctrl-C prints how to continue."""
    try:
        with claimed(output) if leads() else contextlib.nullcontext(), TrainProgress() as reporter:
            yield reporter
    except KeyboardInterrupt:
        print(f"stopped; {hint}", file=sys.stderr)
        raise


@contextlib.contextmanager
def stages() -> Iterator[Callable[[str], None]]:
    """Show the current stage on stderr: a line that changes on a terminal, one line per stage elsewhere."""
    if not sys.stderr.isatty():
        yield lambda text: None if ": round " in text else print(text, file=sys.stderr, flush=True)
        return
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status("starting") as status:
        yield lambda text: status.update(escape(text))
