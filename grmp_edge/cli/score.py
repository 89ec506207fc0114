"""The command ``score``: pictures and videos, on this machine or on a Ray cluster."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

import typer

from grmp_edge.cli.groups import PERFORMANCE, add_command, option
from grmp_edge.cli.options import (
    BackendOptions,
    BundleOption,
    PrecisionOption,
    model_name,
    named_bundle,
    typed_address,
)
from grmp_edge.cli.score_output import Meter, ScoreRun
from grmp_edge.default_bundle import DEFAULT_BUNDLE
from grmp_edge.errors import UsageError
from grmp_edge.files import as_typed

if TYPE_CHECKING:
    from grmp_edge.runtime import Failure, Sampling, Score, Scorer
    from grmp_edge.runtime.bulk import BulkConfig
    from grmp_edge.runtime.score_file import Done
    from grmp_edge.runtime.sources.sources import Listed
    from grmp_edge.runtime.sources.stdin import RawFormat

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    add_command(app, score, "grmp-edge data sample\ngrmp-edge score sample-data/samples sample-data/clip.mp4")


@dataclass(frozen=True)
class RayOptions:
    """A Ray cluster to score on, and how much of it."""

    address: Annotated[
        str | None,
        option("--ray", "Score on a Ray cluster; 'local' starts one here.", "Ray", metavar="ADDRESS"),
    ] = None
    ray_actors: Annotated[
        int, option("--ray-actors", "How many scorers, spread over its nodes.", "Ray", min=1)
    ] = 1
    ray_cpus: Annotated[float, option("--ray-cpus", "CPU cores for each scorer.", "Ray", min=0.0)] = 1.0
    ray_gpus: Annotated[float, option("--ray-gpus", "GPUs for each scorer.", "Ray", min=0.0)] = 0.0


def score(
    *,
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="[BUNDLE] SOURCE...",
            help="Folder made by grmp-edge export (default: the model that ships), then pictures, videos, "
            "folders, 'globs', http addresses; -: standard input.",
        ),
    ],
    bundle: BundleOption = None,
    as_json: Annotated[bool, option("--json", "Print one JSON line per picture or frame on stdout.")] = False,
    csv: Annotated[Path | None, option("--csv", "Also write the scores to this file.")] = None,
    output: Annotated[
        Path | None,
        option("--output -o", "Write to this .jsonl or .csv row by row, with failures; can be resumed."),
    ] = None,
    report: Annotated[
        Path | None,
        option("--report", "Also write a page: the worst and best pictures, causes, clips.", metavar="HTML"),
    ] = None,
    resume: Annotated[
        bool, option("--resume", "Continue --output: what is in it is not scored again.")
    ] = False,
    follow: Annotated[bool, option("--follow", "Then score new files in the folders, until Ctrl-C.")] = False,
    raw: Annotated[
        str | None,
        option(
            "--raw",
            "Standard input is raw frames of this size: rgb24, bgr24, nv12 or gray.",
            metavar="WxH:PIXELS",
        ),
    ] = None,
    batch: Annotated[
        int,
        option(
            "--batch", "Views in one run of the network: a picture has one or several.", PERFORMANCE, min=1
        ),
    ] = 8,
    precision: PrecisionOption = "fp32",
    backend: BackendOptions,
    workers: Annotated[
        int | None, option("--workers", "Threads that decode; default: one per core.", PERFORMANCE, min=1)
    ] = None,
    tiles: Annotated[
        bool,
        option("--tiles", "In JSON, also the score and place of each native crop, if the model reads any."),
    ] = False,
    every: Annotated[int, option("--every", "Of a video, every N-th frame.", min=1)] = 1,
    fps: Annotated[float | None, option("--fps", "Of a video, this many frames per second at most.")] = None,
    max_megapixels: Annotated[
        int, option("--max-megapixels", "Largest picture, in millions of pixels.", min=1)
    ] = 200,
    private: Annotated[
        Literal["named", "never", "always"],
        option(
            "--private-addresses",
            "Whether http addresses may lead into private networks: those named here may, but no redirect "
            "from a public one; never; always.",
        ),
    ] = "named",
    strict: Annotated[
        bool, option("--strict", "A picture that is known to be damaged is an error instead of a warning.")
    ] = False,
    cluster: RayOptions,
    quiet: Annotated[bool, option("--quiet -q", "No progress and no hint on stderr.")] = False,
) -> None:
    """Score pictures and videos: 0 is bad, 1 is good."""
    os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = f"{max_megapixels}000000"  # before OpenCV is loaded, too
    from grmp_edge.bundle import Bundle
    from grmp_edge.runtime import Sampling
    from grmp_edge.runtime.report import open_csv
    from grmp_edge.runtime.reports.page import check_report_path
    from grmp_edge.runtime.reports.scores import ScoreReport
    from grmp_edge.runtime.score_file import ScoreFile
    from grmp_edge.runtime.service import interrupt, on_end_signals
    from grmp_edge.runtime.sources.stdin import RawFormat

    model, sources = named_bundle(arguments, bundle)
    if not sources:
        Bundle.load(model, verify=False)  # what is wrong with a checkpoint or a missing bundle comes first
        raise UsageError("nothing to score", "name pictures, videos or folders after the bundle")
    sources = [typed_address(source) if "://" in source else source for source in sources]
    frames = RawFormat.parse(raw) if raw is not None else None
    _check(sources, output, resume, follow, frames is not None, fps, cluster.address is not None)
    if tiles and not as_json and (output is None or output.suffix.lower() == ".csv"):
        raise UsageError("--tiles is for JSON lines", "add --json, or --output scores.jsonl")
    if report is not None:
        check_report_path(report)
    # JSON lines on a terminal would run through the progress line.
    live = not quiet and sys.stderr.isatty() and not (as_json and sys.stdout.isatty())
    with contextlib.ExitStack() as stack:
        stack.enter_context(on_end_signals(interrupt))
        engine = stack.enter_context(
            _open_engine(model, precision, backend, cluster, batch, workers, Sampling(every, fps), tiles)
        )
        file = stack.enter_context(open_csv(csv)) if csv is not None else None
        rows = stack.enter_context(ScoreFile(output, engine.model_id, resume)) if output is not None else None
        if rows is not None and rows.done.rows and not quiet:
            typer.echo(f"{output}: {rows.done.rows} rows are there already", err=True)
        listed = stack.enter_context(_listing(sources, frames, private, follow, rows.done if rows else None))
        meter = Meter(live, lines=output is not None and not quiet)
        page = ScoreReport(model_name(model, engine.model_id))
        run = ScoreRun(meter, as_json, page, file, rows, strict)
        try:
            results = engine.results(listed, rows.done.last_frame if rows is not None else None)
            # Closed before anything else: its threads must not outlive the network, or Python.
            with meter, contextlib.closing(results):
                run.take(results)
        except BaseException:
            if file is not None and file.rows:
                typer.echo(f"{file.rows} scores kept in {file.partial}", err=True)
            if rows is not None:
                total = rows.done.rows + rows.rows
                typer.echo(f"{total} rows in {output}; to go on: the same command with --resume", err=True)
            raise
        finally:
            run.finish()
            if report is not None:  # after Ctrl-C, too: of what was scored
                page.write(report)
    if run.scored and not quiet:
        if run.scored > 1 and sys.stderr.isatty():
            typer.echo(str(page), err=True)
        typer.echo(f"{run.scored} scored with {model_name(model, engine.model_id)}", err=True)
    for path in (csv, output):
        if path is not None:
            typer.echo(f"{run.scored} scores written to {path}", err=True)
    if report is not None:
        typer.echo(f"report: {report}", err=True)
    total = run.scored + run.failed
    if run.damaged and not quiet:
        typer.echo(f"{run.damaged} of {total} are damaged; with --strict they are errors", err=True)
    if run.failed:
        if total > 1:
            typer.echo(f"error: {run.failed} of {total} could not be scored", err=True)
        raise typer.Exit(1)
    if not quiet:
        hint = "(--json: one line per picture; --output scores.jsonl: a file that can be resumed)"
        if as_json or csv is not None or output is not None:
            hint = (
                "--precision auto (the fastest graph here), or --provider cuda (grmp-edge doctor: what works)"
            )
        shown = "" if model == DEFAULT_BUNDLE else f"{as_typed(model)} "
        typer.echo(f"next: grmp-edge score {shown}SOURCE... {hint}", err=True)


def _check(
    sources: list[str],
    output: Path | None,
    resume: bool,
    follow: bool,
    raw: bool,
    fps: float | None,
    ray: bool,
) -> None:
    if resume and output is None:
        raise UsageError("--resume continues a file", "name it with --output scores.jsonl")
    if raw and "-" not in sources:
        raise UsageError("--raw is for frames from standard input", "add - to the sources")
    if raw and fps is not None:
        raise UsageError("raw frames carry no times, so --fps cannot choose among them", "use --every")
    if sources.count("-") > 1:
        raise UsageError("standard input can be read only once", "give - once")
    for what, given in (("--resume", resume), ("--follow", follow), ("--ray", ray)):
        if given and "-" in sources:
            raise UsageError(f"{what} and standard input exclude each other", "give files or folders")
    if follow and ray:
        raise UsageError("--follow and --ray exclude each other", "use one of them")
    from grmp_edge.redact import safe_name

    if follow and not all(Path(source).is_dir() for source in sources):
        wrong = next(source for source in sources if not Path(source).is_dir())
        raise UsageError(f"--follow watches folders, and {safe_name(wrong)} is not one", "give folders")


class _Engine(Protocol):
    """Turns listed sources into results, in order."""

    model_id: str

    def results(
        self, listed: Iterable[Listed | Failure | None], last_frame: Callable[[str], int] | None
    ) -> Generator[Score | Failure, None, None]:
        """Score everything; of a video, frames up to ``last_frame(name)`` are skipped."""


@contextlib.contextmanager
def _open_engine(
    bundle: Path,
    precision: str,
    backend: BackendOptions,
    cluster: RayOptions,
    batch: int,
    workers: int | None,
    sampling: Sampling,
    tiles: bool,
) -> Iterator[_Engine]:
    """Prepare to score here, or on a Ray cluster."""
    if cluster.address is not None:
        from grmp_edge.runtime.cluster import RayConfig, RayScorer

        config = RayConfig(
            cluster.address,
            cluster.ray_actors,
            cluster.ray_cpus,
            cluster.ray_gpus,
            batch=batch,
            workers=workers,
        )
        with RayScorer(
            bundle, precision, backend.provider, backend.threads, backend.allow_cpu, config, sampling, tiles
        ) as remote:
            yield remote
        return
    import cv2

    from grmp_edge.runtime.bulk import BulkConfig, cores

    # Pictures are decoded side by side; if OpenCV split each of them too, its threads would only compete.
    cv2.setNumThreads(1)
    # Several runs of one thread instead of one of several; at most 8, since each holds its own memory.
    runs = min(8, cores()) if backend.threads is None else 1
    threads = backend.threads or max(1, cores() // runs)
    with replace(backend, threads=threads).open(bundle, precision, tiles) as scorer:
        if scorer.backend.provider != "cpu":
            runs = 1
        yield _Local(scorer, BulkConfig(batch, workers, runs), sampling)


class _Local:
    def __init__(self, scorer: Scorer, config: BulkConfig, sampling: Sampling) -> None:
        self.model_id = scorer.bundle.id
        self._scorer, self._config, self._sampling = scorer, config, sampling

    def results(
        self, listed: Iterable[Listed | Failure | None], last_frame: Callable[[str], int] | None
    ) -> Generator[Score | Failure, None, None]:
        from grmp_edge.runtime.bulk import score_bulk

        return score_bulk(
            self._scorer,
            listed,
            self._config,
            self._sampling,
            lambda item: -1 if last_frame is None else last_frame(str(item)),
        )


@contextlib.contextmanager
def _listing(
    sources: list[str], raw: RawFormat | None, private: str, follow: bool, done: Done | None
) -> Iterator[Iterator[Listed | Failure | None]]:
    """List what there is to score, without what is ``done``; with ``follow``, signals end it."""
    if not follow:
        from grmp_edge.runtime.sources.sources import list_sources

        listed = list_sources(sources, raw, private)
        yield (item for item in listed if done is None or not _is_done(item, done))
        return
    from grmp_edge.runtime.service import end_at_once, on_end_signals
    from grmp_edge.runtime.sources.follow import follow as follow_folders

    stop = threading.Event()
    skip = (lambda path: path in done) if done is not None else (lambda path: False)

    def end(number: int, frame: object) -> None:
        stop.set()
        end_at_once(number)

    with on_end_signals(end):
        yield follow_folders([Path(source) for source in sources], stop, skip=skip)


def _is_done(item: Listed | Failure, done: Done) -> bool:
    from grmp_edge.runtime import Failure
    from grmp_edge.runtime.sources.sources import Remote

    if isinstance(item, Remote) and item.url != str(item):
        return False  # two addresses may differ only in what their names hide
    return (item.source if isinstance(item, Failure) else str(item)) in done
