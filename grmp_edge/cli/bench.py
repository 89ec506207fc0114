"""The command ``bench``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from grmp_edge.cli.groups import PERFORMANCE, add_command, option
from grmp_edge.cli.options import AsJson, BackendOptions
from grmp_edge.cli.progress import stages
from grmp_edge.cli.requirements import need_export
from grmp_edge.cli.tables import print_table
from grmp_edge.errors import UsageError

if TYPE_CHECKING:
    from grmp_edge.runtime.bench import BenchConfig, Timing

__all__ = ["register"]

_BACKBONE = "With --backbone"


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    add_command(app, bench, "grmp-edge bench default")


def bench(
    *,
    bundle: Annotated[
        Path | None, typer.Argument(metavar="[BUNDLE]", help="Folder made by grmp-edge export.")
    ] = None,
    backbone: Annotated[
        str | None,
        option(
            "--backbone",
            "Instead of a bundle: the folded network against the unfolded and CLIP.",
            metavar="NAME",
        ),
    ] = None,
    random: Annotated[
        bool, option("--random", "Random weights; speed does not depend on them.", _BACKBONE)
    ] = False,
    weights: Annotated[
        str | None, option("--weights", "A file or an open_clip tag.", _BACKBONE, metavar="FILE")
    ] = None,
    images: Annotated[
        Path | None, option("--images", "Pictures to compare scores on.", _BACKBONE, metavar="SOURCE")
    ] = None,
    eager: Annotated[bool, option("--eager", "Time PyTorch too.", _BACKBONE)] = False,
    int8: Annotated[bool, option("--int8", "Time eight-bit products too.", _BACKBONE)] = False,
    video: Annotated[
        Path | None,
        option("--video", "With a bundle: this video end to end, against a plain loop.", metavar="FILE"),
    ] = None,
    every: Annotated[int, option("--every", "With --video: score each N-th frame.", min=1)] = 1,
    backend: BackendOptions,
    batch: Annotated[str, option("--batch", "Batch sizes.", PERFORMANCE, metavar="N,N")] = "1,8",
    runs: Annotated[int, option("--runs", "Timed runs of each.", min=1)] = 11,
    as_json: AsJson = False,
) -> None:
    """Time a bundle, a video, or what folding saves.

    For a bundle: its graphs and all stages before them. With --video: a video end to end. With --backbone:
    the folded network against the unfolded one and plain CLIP.
    """
    if (bundle is None) == (backbone is None):
        raise UsageError("bench needs one thing to time", "give a BUNDLE, or --backbone NAME")
    if backbone is None and (random or weights or images or eager or int8):
        raise UsageError("--random, --weights, --images, --eager and --int8 belong to --backbone")
    if backbone is not None and (video is not None or backend.provider != "auto"):
        raise UsageError("--video and --provider belong to a BUNDLE")
    if video is not None and backend.provider not in ("auto", "cpu"):
        raise UsageError("--video compares with a plain loop on the CPU", "leave out --provider")
    if random and weights:
        raise UsageError("--random and --weights exclude each other")
    from grmp_edge.runtime.bench import BenchConfig

    try:
        batches = tuple(int(part) for part in batch.split(","))
    except ValueError:
        raise UsageError(
            f"--batch {batch!r} is not a list of numbers", "write for instance --batch 1,8"
        ) from None
    config = BenchConfig(batches, runs, backend.threads)
    if backbone is not None:
        _bench_backbone(
            backbone, "random" if random else weights or "", images, (eager, int8), config, as_json
        )
    elif bundle is not None and video is not None:
        _bench_video(bundle, video, every, config, as_json)
    elif bundle is not None:
        _bench_bundle(bundle, config, backend, as_json)


def _bench_bundle(path: Path, config: BenchConfig, backend: BackendOptions, as_json: bool) -> None:
    from grmp_edge.bundle import Bundle
    from grmp_edge.runtime.backends import asked_as
    from grmp_edge.runtime.bench import bench_bundle
    from grmp_edge.runtime.choose import remember
    from grmp_edge.runtime.measure.limits import graph_work, measure_machine, reached
    from grmp_edge.runtime.measure.stages import bench_frames

    bundle = Bundle.load(path)
    first = next(iter(bundle.graphs))
    with backend.open(path, first) as scorer, stages() as stage:
        used = scorer.backend.provider
        asked = asked_as(scorer.backend, backend.provider)
        measured = bench_bundle(bundle, config, progress=stage, provider=asked)
        choice = remember(bundle, asked, measured)
        frames = bench_frames(scorer, config.runs, stage)
        shares: list[float] = []
        if used == "cpu":
            stage("measuring what this machine can do at most")
            machine = measure_machine(config.threads)
            work = {name: graph_work(bundle, name) for name in {timing.name for timing in measured.timings}}
            shares = [reached(timing, work[timing.name], machine) for timing in measured.timings]
    if shares and max(shares) > 1:
        words = "warning: other programs slowed the measuring of the limit; the shares of it are too large"
        typer.echo(words, err=True)
    if as_json:
        result = {
            **asdict(measured),
            "auto": asdict(choice),
            "machine": asdict(machine) if shares else None,
            "of_limit": shares or None,  # of each of the timings
            "frames": [asdict(row) for row in frames],
        }
        print(json.dumps({"bundle": str(path), "id": bundle.id, "provider": used, **result}))
        return
    _timings(measured.timings, measured.timings[0].name, shares)
    if shares:
        print(
            f"limit: {machine.float32 / 1e9:.0f} G multiply-adds a second in float32, "
            f"{machine.int8 / 1e9:.0f} in eight bits, memory {machine.bytes / 1e9:.1f} GB/s, measured here"
        )
    print(f"--precision auto takes {choice.precision} here: {choice.reason}")
    print(f"\nOne picture, in ms, {first} on {used} (colour: the turning of BGR, as for video frames):")
    print_table(
        ("size", "decode JPEG", "squash", "colour", "colour if first", "network, 1", "network, of 8"),
        [
            (
                row.size,
                *(
                    f"{value:.2f}"
                    for value in (
                        row.decode_ms,
                        row.squash_ms,
                        row.colour_ms,
                        row.full_colour_ms,
                        row.network_ms,
                        row.network_batch_ms,
                    )
                ),
            )
            for row in frames
        ],
    )


def _bench_video(path: Path, video: Path, every: int, config: BenchConfig, as_json: bool) -> None:
    from grmp_edge.bundle import Bundle
    from grmp_edge.runtime.measure.video import VideoBenchConfig, bench_video

    bundle = Bundle.load(path)
    with stages() as stage:
        video_config = VideoBenchConfig(config.runs, every, max(config.batches), config.threads)
        timings = bench_video(bundle, video, video_config, stage)
    if as_json:
        rows = [asdict(timing) for timing in timings]
        print(json.dumps({"bundle": str(path), "id": bundle.id, "video": str(video), "timings": rows}))
        return
    print_table(
        ("way", "frames", "seconds", "frames/s", "speedup", "outside network", "max diff"),
        [
            (
                timing.name,
                str(timing.frames),
                f"{timing.seconds:.2f}",
                f"{timing.frames_per_s:.1f}",
                f"{timing.speedup:.2f}x",
                f"{100 * timing.outside_network:.0f} %",
                f"{timing.difference:.1e}",
            )
            for timing in timings
        ],
    )


def _bench_backbone(
    name: str,
    pretrained: str,
    images: Path | None,
    also: tuple[bool, bool],
    config: BenchConfig,
    as_json: bool,
) -> None:
    need_export()
    from grmp_edge.export.compare import bench_fold
    from grmp_edge.train.network.backbone import BackboneConfig

    with stages() as stage:
        comparison = bench_fold(BackboneConfig(name, pretrained), config, also[0], images, stage, also[1])
    if as_json:
        print(json.dumps(comparison.to_json()))
        return
    print(f"{comparison.backbone}, compared with unfolded PyTorch; {comparison.images}")
    rows = []
    for graph, count in comparison.multiply_adds.items():
        difference = comparison.max_difference.get(graph)
        rows.append((graph, f"{count / 1e9:.2f} G", "-" if difference is None else f"{difference:.1e}"))
    print_table(("graph", "multiply-adds", "max diff"), rows)
    _timings(comparison.timings, "unfolded")


def _timings(timings: Sequence[Timing], first: str, shares: Sequence[float] = ()) -> None:
    """``shares``: of the machine's limit that each reached; none: not measured."""
    limit = ("of limit",) if shares else ()
    print_table(
        ("graph", "batch", "median ms", "fastest ms", "CPU ms", "images/s", f"time / {first}", *limit),
        [
            (
                timing.name,
                str(timing.batch),
                f"{timing.median_ms:.1f}",
                f"{timing.fastest_ms:.1f}",
                f"{timing.cpu_ms:.1f}",
                f"{timing.images_per_s:.1f}",
                f"{timing.ratio:.3f}",
                *([f"{100 * shares[index]:.0f} %"] if shares else []),
            )
            for index, timing in enumerate(timings)
        ],
    )
