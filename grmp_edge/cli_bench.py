"""The command ``bench``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from grmp_edge.cli_export import need_export, stages, table
from grmp_edge.errors import UsageError

if TYPE_CHECKING:
    from grmp_edge.runtime.bench import BenchConfig, Timing

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
    batch: Annotated[str, typer.Option("--batch", metavar="N,N", help="Batch sizes.")] = "1,8",
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="CPU threads; default: the backend's choice.")
    ] = None,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Timed runs of each.")] = 11,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Time the graphs of a bundle on this CPU, alternately; or show what folding saves on a backbone."""
    if (bundle is None) == (backbone is None):
        raise UsageError("bench needs one thing to time", "give a BUNDLE, or --backbone NAME")
    if backbone is None and (random or weights or images or eager or int8):
        raise UsageError("--random, --weights, --images, --eager and --int8 belong to --backbone")
    if random and weights:
        raise UsageError("--random and --weights exclude each other")
    from grmp_edge.runtime.bench import BenchConfig

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
    elif bundle is not None:
        _bench_bundle(bundle, config, as_json)


def _bench_bundle(path: Path, config: BenchConfig, as_json: bool) -> None:
    from grmp_edge.bundle import Bundle
    from grmp_edge.runtime.bench import bench_bundle

    bundle = Bundle.load(path)
    with stages() as stage:
        timings = bench_bundle(bundle, config, progress=stage)
    if as_json:
        print(
            json.dumps(
                {"bundle": str(path), "id": bundle.id, "timings": [asdict(timing) for timing in timings]}
            )
        )
    else:
        _timings(timings, next(iter(bundle.graphs)))


def _bench_backbone(
    name: str,
    pretrained: str,
    images: Path | None,
    also: tuple[bool, bool],
    config: BenchConfig,
    as_json: bool,
) -> None:
    need_export()
    from grmp_edge.export.bench_fold import bench_fold
    from grmp_edge.train.backbone import BackboneConfig

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
