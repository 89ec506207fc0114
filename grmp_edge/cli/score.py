"""The command ``score``."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from grmp_edge.cli.doctor import doctor
from grmp_edge.cli.options import (
    AllowCpu,
    Precision,
    PrecisionOption,
    Provider,
    ProviderOption,
    Threads,
    named_bundle,
)
from grmp_edge.cli.score_engine import ModelChoice, RayChoice, listing, open_engine
from grmp_edge.cli.score_output import Meter, ScoreRun
from grmp_edge.default_bundle import DEFAULT_BUNDLE
from grmp_edge.errors import UsageError

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.command()(score)
    app.command()(doctor)


def score(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="[BUNDLE] SOURCE...",
            help="Folder made by grmp-edge export (without it, the model that ships); then pictures, videos, "
            "folders, 'globs', http addresses; -: standard input.",
        ),
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON line a picture or frame on stdout.")
    ] = False,
    csv: Annotated[Path | None, typer.Option("--csv", help="Also write the scores to this file.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Write to this .jsonl or .csv row by row, failures too; can be resumed."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with --output: what is in it is not scored again.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Then watch the folders for new files, until Ctrl-C.")
    ] = False,
    raw: Annotated[
        str | None,
        typer.Option(
            "--raw",
            metavar="WxH:PIXELS",
            help="Standard input is frames of this size: rgb24, bgr24, nv12 or gray.",
        ),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Pictures in one run of the network.")] = 8,
    precision: PrecisionOption = Precision.fp32,
    provider: ProviderOption = Provider.auto,
    allow_cpu: AllowCpu = False,
    threads: Threads = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Threads that decode; default: one a core.")
    ] = None,
    every: Annotated[int, typer.Option("--every", min=1, help="Of a video, each N-th frame.")] = 1,
    fps: Annotated[
        float | None, typer.Option("--fps", help="Of a video, at most so many frames a second.")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option("--ray", metavar="ADDRESS", help="Score on a Ray cluster; 'local' starts one here."),
    ] = None,
    ray_actors: Annotated[
        int, typer.Option("--ray-actors", min=1, help="With --ray: how many scorers, spread over its nodes.")
    ] = 1,
    ray_cpus: Annotated[
        float, typer.Option("--ray-cpus", min=0.0, help="With --ray: CPU cores for each scorer.")
    ] = 1.0,
    ray_gpus: Annotated[
        float, typer.Option("--ray-gpus", min=0.0, help="With --ray: GPUs for each scorer.")
    ] = 0.0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no hint on stderr.")] = False,
) -> None:
    """Score pictures and videos: 0 is bad, 1 is good."""
    from grmp_edge.runtime import Sampling
    from grmp_edge.runtime.report import open_csv
    from grmp_edge.runtime.score_file import ScoreFile
    from grmp_edge.runtime.sources.stdin import RawFormat

    bundle, sources = named_bundle(arguments)
    if not sources:
        raise UsageError("nothing to score", "name pictures, videos or folders after the bundle")
    frames = RawFormat.parse(raw) if raw is not None else None
    _check(sources, output, resume, follow, frames is not None, fps, ray)
    # JSON lines on a terminal would run through the progress line.
    live = not quiet and sys.stderr.isatty() and not (as_json and sys.stdout.isatty())
    model = ModelChoice(bundle, precision, provider, threads, allow_cpu)
    cluster = RayChoice(ray, ray_actors, ray_cpus, ray_gpus) if ray is not None else None
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(open_engine(model, cluster, batch, workers, Sampling(every, fps)))
        file = stack.enter_context(open_csv(csv)) if csv is not None else None
        kept = stack.enter_context(ScoreFile(output, engine.model_id, resume)) if output is not None else None
        if kept is not None and kept.done.rows and not quiet:
            typer.echo(f"{output}: {kept.done.rows} rows are there already", err=True)
        found = stack.enter_context(listing(sources, frames, follow, kept.done if kept else None))
        meter = Meter(live, lines=output is not None and not quiet)
        run = ScoreRun(meter, as_json, file, kept)
        try:
            with meter:
                run.take(engine.results(found, kept.done.last_frame if kept is not None else None))
        except BaseException:
            if file is not None and file.rows:
                typer.echo(f"{file.rows} scores kept in {file.partial}", err=True)
            if kept is not None:
                total = kept.done.rows + kept.rows
                typer.echo(f"{total} rows in {output}; to go on: the same command with --resume", err=True)
            raise
        finally:
            run.finish()
    for path in (csv, output):
        if path is not None:
            typer.echo(f"{run.scored} scores written to {path}", err=True)
    total = run.scored + run.failed
    if run.failed:
        if total > 1:
            typer.echo(f"error: {run.failed} of {total} could not be scored", err=True)
        raise typer.Exit(1)
    if not quiet:
        hint = "(--json: one line a picture; --output scores.jsonl: a file that can be resumed)"
        if as_json or csv is not None or output is not None:
            hint = (
                "--provider cuda, or --precision fp16 where the bundle has it (grmp-edge doctor: what works)"
            )
        shown = "" if bundle == DEFAULT_BUNDLE else f"{bundle} "
        typer.echo(f"next: grmp-edge score {shown}SOURCE... {hint}", err=True)


def _check(
    sources: list[str],
    output: Path | None,
    resume: bool,
    follow: bool,
    raw: bool,
    fps: float | None,
    ray: str | None,
) -> None:
    if resume and output is None:
        raise UsageError("--resume goes on with a file", "name it by --output scores.jsonl")
    if raw and "-" not in sources:
        raise UsageError("--raw is for frames from standard input", "add - to the sources")
    if raw and fps is not None:
        raise UsageError("raw frames carry no times, so --fps cannot choose among them", "use --every")
    if sources.count("-") > 1:
        raise UsageError("standard input can be read once", "give - one time")
    for what, given in (("--resume", resume), ("--follow", follow), ("--ray", ray is not None)):
        if given and "-" in sources:
            raise UsageError(f"{what} and standard input exclude each other", "give files or folders")
    if follow and ray is not None:
        raise UsageError("--follow and --ray exclude each other", "use one of them")
    from grmp_edge.redact import safe_name

    if follow and not all(Path(source).is_dir() for source in sources):
        wrong = next(source for source in sources if not Path(source).is_dir())
        raise UsageError(f"--follow watches folders, and {safe_name(wrong)} is none", "give folders")
