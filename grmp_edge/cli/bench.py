"""The command ``bench``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from grmp_edge.cli.export import need_export, stages, table
from grmp_edge.cli.options import AllowCpu, Precision, Provider, ProviderOption, open_scorer
from grmp_edge.errors import UsageError

if TYPE_CHECKING:
    from grmp_edge.runtime.measure.bench import BenchConfig, Timing

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command()(bench)


def bench(
    bundle: Annotated[
        Path | None, typer.Argument(metavar="[BUNDLE]", help="Folder made by grmp-edge export.")
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone", metavar="NAME", help="Instead of a bundle: folded against unfolded and plain CLIP."
        ),
    ] = None,
    random: Annotated[
        bool, typer.Option("--random", help="With --backbone: random weights; speed does not depend on them.")
    ] = False,
    weights: Annotated[
        str | None,
        typer.Option("--weights", metavar="FILE", help="With --backbone: a file or an open_clip tag."),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option("--images", metavar="SOURCE", help="With --backbone: pictures to compare scores on."),
    ] = None,
    eager: Annotated[bool, typer.Option("--eager", help="With --backbone: time PyTorch too.")] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="With --backbone: time eight-bit products too.")
    ] = False,
    video: Annotated[
        Path | None,
        typer.Option(
            "--video", metavar="FILE", help="With a bundle: this video end to end, against a plain loop."
        ),
    ] = None,
    every: Annotated[int, typer.Option("--every", min=1, help="With --video: score each N-th frame.")] = 1,
    provider: ProviderOption = Provider.auto,
    allow_cpu: AllowCpu = False,
    batch: Annotated[str, typer.Option("--batch", metavar="N,N", help="Batch sizes.")] = "1,8",
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="CPU threads; default: the backend's choice.")
    ] = None,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Timed runs of each.")] = 11,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Time a bundle's graphs and all stages before them, or a video; or what folding saves on a backbone."""
    if (bundle is None) == (backbone is None):
        raise UsageError("bench needs one thing to time", "give a BUNDLE, or --backbone NAME")
    if backbone is None and (random or weights or images or eager or int8):
        raise UsageError("--random, --weights, --images, --eager and --int8 belong to --backbone")
    if backbone is not None and (video is not None or provider is not Provider.auto):
        raise UsageError("--video and --provider belong to a BUNDLE")
    if video is not None and provider not in (Provider.auto, Provider.cpu):
        raise UsageError("--video compares with a plain loop on the CPU", "leave out --provider")
    if random and weights:
        raise UsageError("--random and --weights exclude each other")
    from grmp_edge.runtime.measure.bench import BenchConfig

    try:
        batches = tuple(int(part) for part in batch.split(","))
    except ValueError:
        raise UsageError(
            f"--batch {batch!r} is not a list of numbers", "write for instance --batch 1,8"
        ) from None
    config = BenchConfig(batches, runs, threads)
    if backbone is not None:
        _bench_backbone(
            backbone, "random" if random else weights or "", images, (eager, int8), config, as_json
        )
    elif bundle is not None and video is not None:
        _bench_video(bundle, video, every, config, as_json)
    elif bundle is not None:
        _bench_bundle(bundle, config, provider, allow_cpu, as_json)


def _bench_bundle(
    path: Path, config: BenchConfig, provider: Provider, allow_cpu: bool, as_json: bool
) -> None:
    from grmp_edge.bundle import Bundle
    from grmp_edge.runtime.measure.bench import bench_bundle
    from grmp_edge.runtime.measure.stages import bench_frames

    bundle = Bundle.load(path)
    first = next(iter(bundle.graphs))
    scorer = open_scorer(path, Precision(first), provider, config.threads, allow_cpu)
    with scorer, stages() as stage:
        used = scorer.backend.provider
        timings = bench_bundle(bundle, config, progress=stage, provider=used)
        frames = bench_frames(scorer, config.runs, stage)
    if as_json:
        found = {"timings": [asdict(timing) for timing in timings], "frames": [asdict(row) for row in frames]}
        print(json.dumps({"bundle": str(path), "id": bundle.id, "provider": used, **found}))
        return
    _timings(timings, first)
    print(f"\nOne picture, in ms, {first} on {used} (colour: the turning of BGR, as for video frames):")
    table(
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
        wanted = VideoBenchConfig(config.runs, every, max(config.batches), config.threads)
        timings = bench_video(bundle, video, wanted, stage)
    if as_json:
        found = [asdict(timing) for timing in timings]
        print(json.dumps({"bundle": str(path), "id": bundle.id, "video": str(video), "timings": found}))
        return
    table(
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
        found = bench_fold(BackboneConfig(name, pretrained), config, also[0], images, stage, also[1])
    if as_json:
        print(json.dumps(found.to_json()))
        return
    print(f"{found.backbone}, compared with unfolded PyTorch; {found.images}")
    rows = []
    for graph, count in found.multiply_adds.items():
        difference = found.max_difference.get(graph)
        rows.append((graph, f"{count / 1e9:.2f} G", "-" if difference is None else f"{difference:.1e}"))
    table(("graph", "multiply-adds", "max diff"), rows)
    _timings(found.timings, "unfolded")


def _timings(timings: Sequence[Timing], first: str) -> None:
    table(
        ("graph", "batch", "median ms", "fastest ms", "images/s", f"time / {first}"),
        [
            (
                timing.name,
                str(timing.batch),
                f"{timing.median_ms:.1f}",
                f"{timing.fastest_ms:.1f}",
                f"{timing.images_per_s:.1f}",
                f"{timing.ratio:.3f}",
            )
            for timing in timings
        ],
    )
