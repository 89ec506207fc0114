"""The commands ``score`` and ``doctor``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from grmp_edge.cli_options import Precision, PrecisionOption, Provider, ProviderOption, Threads

if TYPE_CHECKING:
    from grmp_edge.runtime import Failure, Score
    from grmp_edge.runtime.report import CsvFile, PlainTable, RichTable, VideoSummary

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.command()(score)
    app.command()(doctor)


def score(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder made by grmp-edge export.")],
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE", help="Pictures, videos, folders or 'globs'.")
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON line a picture or frame on stdout.")
    ] = False,
    csv: Annotated[Path | None, typer.Option("--csv", help="Also write the scores to this file.")] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Pictures in one run of the network.")] = 8,
    precision: PrecisionOption = Precision.fp32,
    provider: ProviderOption = Provider.auto,
    threads: Threads = None,
    every: Annotated[int, typer.Option("--every", min=1, help="Of a video, each N-th frame.")] = 1,
    fps: Annotated[
        float | None, typer.Option("--fps", help="Of a video, at most so many frames a second.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no hint on stderr.")] = False,
) -> None:
    """Score pictures and videos: 0 is bad, 1 is good."""
    from grmp_edge.runtime import Sampling, Scorer
    from grmp_edge.runtime.report import CsvFile

    sampling = Sampling(every, fps)
    # JSON lines on a terminal would run through the progress line.
    live = not quiet and sys.stderr.isatty() and not (as_json and sys.stdout.isatty())
    with contextlib.ExitStack() as stack:
        scorer = stack.enter_context(Scorer.open(bundle, precision.value, provider.value, threads))
        file = stack.enter_context(CsvFile(csv)) if csv is not None else None
        meter = _Meter(live)
        run = _Run(meter, as_json, file)
        try:
            with meter:
                run.take(scorer.score_many(sources, batch, sampling))
        except BaseException:
            if file is not None and file.rows:
                typer.echo(f"{file.rows} scores kept in {file.partial}", err=True)
            raise
        finally:
            run.finish()
    if csv is not None:
        typer.echo(f"{run.scored} scores written to {csv}", err=True)
    total = run.scored + run.failed
    if run.failed:
        if total > 1:
            typer.echo(f"error: {run.failed} of {total} could not be scored", err=True)
        raise typer.Exit(1)
    if not quiet:
        hint = "(--json: one line a picture; --csv scores.csv: a file)"
        if as_json or csv is not None:
            hint = (
                "--provider cuda, or --precision fp16 where the bundle has it (grmp-edge doctor: what works)"
            )
        typer.echo(f"next: grmp-edge score {bundle} SOURCE... {hint}", err=True)


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Show what works here, and what to install for the rest."""
    import json

    from grmp_edge.runtime.doctor import can_score, examine

    parts = examine()
    works = can_score(parts)
    if as_json:
        typer.echo(json.dumps({"can_score": works, "parts": [asdict(part) for part in parts]}, indent=2))
    else:
        for part in parts:
            remedy = f"  ->  {part.remedy}" if part.remedy else ""
            typer.echo(f"{part.status:<8} {part.name:<18} {part.detail}{remedy}")
        typer.echo("scoring works here" if works else "scoring does not work here yet")
    if not works:
        raise typer.Exit(1)


class _Run:
    """Takes the results of one ``score`` command as they come."""

    def __init__(self, meter: _Meter, as_json: bool, file: CsvFile | None) -> None:
        from grmp_edge.runtime.report import PlainTable, RichTable

        self.scored = self.failed = 0
        self._meter, self._file = meter, file
        self._table: PlainTable | RichTable | None = None
        if not as_json:
            terminal = sys.stdout.isatty()
            self._table = RichTable(sys.stdout, meter.paused) if terminal else PlainTable(sys.stdout)
        self._videos: list[VideoSummary] = []

    def take(self, results: Iterable[Score | Failure]) -> None:
        from grmp_edge.runtime import Failure
        from grmp_edge.runtime.report import printable

        for result in results:
            if isinstance(result, Failure):
                self.failed += 1
                self._meter.say(f"error: {printable(str(result.error))}")
            else:
                self.scored += 1
                self._keep(result)
            self._meter.step(self.scored, printable(result.source))

    def _keep(self, score: Score) -> None:
        from grmp_edge.runtime.report import VideoSummary

        if self._file is not None:  # first: what is shown is kept, whenever Ctrl-C comes
            self._file.write(score)
        if self._table is not None:
            self._table.add(score)
        else:
            print(score.to_json(), flush=True)
        if score.frame is not None:
            if not self._videos or self._videos[-1].source != score.source:
                self._videos.append(VideoSummary(score.source))
            self._videos[-1].add(score)

    def finish(self) -> None:
        """Print what is still held back, and a line for each video (on stdout unless that is JSON)."""
        if self._table is not None:
            self._table.close()
        for video in self._videos:
            typer.echo(str(video), err=self._table is None)


class _Meter:
    """A progress line on stderr, or nothing; messages pass above it."""

    def __init__(self, live: bool) -> None:
        self._progress: Any = None
        if live:
            from rich.console import Console
            from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            self._progress = Progress(
                SpinnerColumn(),
                TextColumn("{task.completed} scored, {task.fields[rate]:.1f}/s,", markup=False),
                TimeElapsedColumn(),
                TextColumn("{task.fields[source]}", markup=False),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._progress.add_task("", total=None, rate=0.0, source="")

    def __enter__(self) -> None:
        if self._progress is not None:
            self._progress.start()

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Take the line away while something is printed on stdout."""
        running = self._progress is not None and self._progress.live.is_started
        if running:
            self._progress.stop()
        try:
            yield
        finally:
            if running:
                self._progress.start()

    def step(self, scored: int, source: str) -> None:
        if self._progress is not None:
            elapsed = self._progress.tasks[0].elapsed or 0.0
            rate = scored / elapsed if elapsed else 0.0
            self._progress.update(self._task, completed=scored, rate=rate, source=source)

    def say(self, text: str) -> None:
        with self.paused():
            typer.echo(text, err=True)
