"""How the command ``score`` shows and saves its results as they arrive."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from grmp_edge.runtime import Failure, Score
    from grmp_edge.runtime.report import CsvFile, PlainTable, RichTable, VideoSummary
    from grmp_edge.runtime.reports.scores import ScoreReport
    from grmp_edge.runtime.score_file import ScoreFile

__all__ = ["Meter", "ScoreRun"]

_LINE_EVERY_S = 30.0  # progress lines where stderr is a file or a pipe


class ScoreRun:
    """Shows and saves the results of one ``score`` command as they arrive."""

    def __init__(
        self,
        meter: Meter,
        as_json: bool,
        page: ScoreReport,
        file: CsvFile | None = None,
        output: ScoreFile | None = None,
        strict: bool = False,
    ) -> None:
        """With an ``output``, rows are shown only with ``as_json``; ``strict``: no damaged picture counts."""
        from grmp_edge.runtime.report import PlainTable, RichTable

        self.scored = self.failed = self.damaged = 0
        self._strict = strict
        self._meter, self._file, self._output, self._as_json = meter, file, output, as_json
        self._page = page
        self._table: PlainTable | RichTable | None = None
        if not as_json and output is None:
            terminal = sys.stdout.isatty()
            self._table = RichTable(sys.stdout, meter.paused) if terminal else PlainTable(sys.stdout)
        # Of a finished video, only its one line: the frames of many videos would fill the memory.
        self._summaries: list[str] = []
        self._video: VideoSummary | None = None

    def take(self, results: Iterable[Score | Failure]) -> None:
        """Save and show each result, in that order."""
        from grmp_edge.runtime import Failure, Score
        from grmp_edge.runtime.report import printable

        for result in results:
            if isinstance(result, Score):
                result = self._judged(result)
            if self._output is not None:
                self._output.write(result)
            if isinstance(result, Failure):
                self.failed += 1
                self._meter.say(f"error: {printable(str(result.error))}")
            else:
                self.scored += 1
                self._save(result)
            self._page.add(result)
            self._meter.step(self.scored, self.failed, printable(result.source))

    def _judged(self, score: Score) -> Score | Failure:
        """Say what makes a score doubtful; with ``strict``, a damaged picture is a failure."""
        from grmp_edge.errors import DamagedError
        from grmp_edge.runtime import Failure
        from grmp_edge.runtime.report import printable

        if score.damage and self._strict:
            reason = DamagedError(f"{score.source}: damaged ({score.damage})", "copy it again")
            return Failure(score.source, reason)
        name = printable(score.source)
        if score.damage:
            self.damaged += 1
            self._meter.say(f"warning: {name}: damaged ({score.damage}); what is left is scored")
        if score.note:
            self._meter.say(f"warning: {name}: {score.note}")
        return score

    def _save(self, score: Score) -> None:
        from grmp_edge.runtime.report import VideoSummary

        if self._file is not None:  # first: whatever was shown is saved, even after Ctrl-C
            self._file.write(score)
        if self._table is not None:
            self._table.add(score)
        elif self._as_json:
            print(score.to_json(), flush=True)
        if self._video is not None and (score.frame is None or self._video.source != score.source):
            self._close_video(self._video)
        if score.frame is not None:
            self._video = self._video or VideoSummary(score.source)
            self._video.add(score)

    def _close_video(self, video: VideoSummary) -> None:
        self._video = None
        if self._output is None:
            self._summaries.append(str(video))
        else:
            self._meter.say(str(video))

    def finish(self) -> None:
        """Print the rest of the table and a line per video, on stdout unless that has JSON."""
        if self._table is not None:
            self._table.close()
        if self._video is not None:
            self._close_video(self._video)
        for line in self._summaries:
            typer.echo(line, err=self._table is None)


class Meter:
    """A progress line on stderr, or nothing; messages appear above it."""

    def __init__(self, live: bool, lines: bool = False) -> None:
        """``live``: one changing line, for terminals; ``lines``: a new line every 30 s."""
        self._progress: Any = None
        self._lines = lines and not live
        self._began = self._printed = time.monotonic()
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
        """Hide the line while something is printed on stdout."""
        running = self._progress is not None and self._progress.live.is_started
        if running:
            self._progress.stop()
        try:
            yield
        finally:
            if running:
                self._progress.start()

    def step(self, scored: int, failed: int, source: str) -> None:
        """Show the counts and the latest source."""
        now = time.monotonic()
        if self._lines and now - self._printed >= _LINE_EVERY_S:
            self._printed = now
            rate = (scored + failed) / (now - self._began)
            typer.echo(f"{scored} scored, {failed} failed, {rate:.1f}/s, at {source}", err=True)
        if self._progress is not None:
            elapsed = self._progress.tasks[0].elapsed or 0.0
            rate = scored / elapsed if elapsed else 0.0
            self._progress.update(self._task, completed=scored, rate=rate, source=source)

    def say(self, text: str) -> None:
        """Print a line on stderr that stays."""
        with self.paused():
            typer.echo(text, err=True)
