"""The commands ``export`` and ``bench``."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from grmp_edge.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    from grmp_edge.bundle import Bundle
    from grmp_edge.runtime.bench import BenchConfig, Timing

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.command()(export)
    app.command()(bench)


def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Folder made by grmp-edge train.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="BUNDLE", help="Folder to make; default: bundles/CHECKPOINT's name."
        ),
    ] = None,
    fp16: Annotated[
        bool, typer.Option("--fp16", help="Also write a half-precision graph, for GPUs.")
    ] = False,
    images: Annotated[
        Path | None,
        typer.Option(
            "--images",
            metavar="SOURCE",
            help="Pictures for the parity gate: a folder or a csv; default: those of training.",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights", metavar="FILE", help="The backbone's weights, if they are not where they were."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The result as one JSON object on stdout.")] = False,
) -> None:
    """Fold a checkpoint into a bundle of ONNX graphs, and check that they score as PyTorch does.

    Exits with 3, and leaves an older bundle as it was, if they do not.
    """
    _need_export()
    from grmp_edge.export.pipeline import ExportConfig, export_bundle

    target = output or Path("bundles") / checkpoint.resolve().name
    with _stages() as stage:
        bundle = export_bundle(checkpoint, target, ExportConfig(fp16, images, weights), stage)
        rows = _rows(bundle, stage)
    if as_json:
        result = {"bundle": str(target), "id": bundle.id, "graphs": rows, "parity": dict(bundle.parity)}
        print(json.dumps(result))
    else:
        reference = bundle.parity["reference"]
        print(f"{target} (id {bundle.id}), compared with unfolded PyTorch; {bundle.parity['images']}")
        _table(
            ("file", "MB", "precision", "max diff", "mean diff", "SRCC", "CPU ms/image"),
            [
                (
                    row["file"],
                    f"{row['bytes'] / 1e6:.1f}",
                    row["precision"],
                    f"{row['max_abs']:.1e}",
                    f"{row['mean_abs']:.1e}",
                    "-" if row["srcc"] is None else f"{row['srcc']:.5f}",
                    "-" if row["cpu_ms"] is None else f"{row['cpu_ms']:.1f}",
                )
                for row in rows
            ],
        )
        if any(row["srcc_needed"] is None and row["precision"] != "fp32" for row in rows):
            print(f"the scores spread too little (std {reference['std']:.1e}) to ask for a rank correlation")
    print(f"next: grmp-edge score {target} SOURCE...", file=sys.stderr)


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
    if backbone is None and (random or weights or images or eager):
        raise UsageError("--random, --weights, --images and --eager belong to --backbone")
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
        _bench_backbone(backbone, "random" if random else weights or "", images, eager, config, as_json)
    elif bundle is not None:
        _bench_bundle(bundle, config, as_json)


def _bench_bundle(path: Path, config: BenchConfig, as_json: bool) -> None:
    from grmp_edge.bundle import Bundle
    from grmp_edge.runtime.bench import bench_bundle

    bundle = Bundle.load(path)
    with _stages() as stage:
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
    name: str, pretrained: str, images: Path | None, eager: bool, config: BenchConfig, as_json: bool
) -> None:
    _need_export()
    from grmp_edge.export.bench_fold import bench_fold
    from grmp_edge.train.backbone import BackboneConfig

    with _stages() as stage:
        found = bench_fold(BackboneConfig(name, pretrained), config, eager, images, stage)
    if as_json:
        print(json.dumps(found.to_json()))
        return
    print(f"{found.backbone}, compared with unfolded PyTorch; {found.images}")
    rows = []
    for graph, count in found.multiply_adds.items():
        difference = found.max_difference.get(graph)
        rows.append((graph, f"{count / 1e9:.2f} G", "-" if difference is None else f"{difference:.1e}"))
    _table(("graph", "multiply-adds", "max diff"), rows)
    _timings(found.timings, "unfolded")


def _timings(timings: Sequence[Timing], first: str) -> None:
    _table(
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


def _rows(bundle: Bundle, stage: Callable[[str], None]) -> list[dict[str, Any]]:
    """One entry for each graph of a new bundle, and one for the simulation of half hardware."""
    from grmp_edge.runtime.bench import BenchConfig, bench_bundle

    stage("timing the graphs on this CPU")
    timings = bench_bundle(bundle, BenchConfig(batches=(1,), runs=5))
    milliseconds = {timing.name: timing.median_ms for timing in timings}
    rows = []
    for name, link in bundle.parity["links"].items():
        graph = bundle.graphs[name.split("_")[0]]
        simulated = name not in bundle.graphs
        rows.append(
            {
                "file": graph.file,
                "bytes": graph.bytes,
                "precision": "fp16, as on a GPU" if simulated else name,
                **{key: link[key] for key in ("max_abs", "mean_abs", "srcc", "srcc_needed")},
                "cpu_ms": None if simulated else milliseconds[name],
            }
        )
    return rows


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns of text on stdout, the first to the left and the others to the right."""
    widths = [max(len(row[index]) for row in (header, *rows)) for index in range(len(header))]
    for row in (header, *rows):
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        print("  ".join(cells).rstrip())


@contextlib.contextmanager
def _stages() -> Iterator[Callable[[str], None]]:
    """Show the stage at work on stderr: a line that changes on a terminal, a line each elsewhere."""
    if not sys.stderr.isatty():
        yield lambda text: None if ": round " in text else print(text, file=sys.stderr, flush=True)
        return
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status("starting") as status:
        yield lambda text: status.update(escape(text))


def _need_export() -> None:
    for package in ("torch", "open_clip", "safetensors", "onnx"):
        if find_spec(package) is None:
            raise MissingDependencyError(package, "export", "export")
    if find_spec("onnxruntime") is None:
        raise MissingDependencyError(
            "onnxruntime", "cpu", "the parity gate (on an NVIDIA GPU's machine: [gpu])"
        )
