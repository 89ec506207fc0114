"""The command ``export``."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from grmp_edge.errors import GrmpError, MissingDependencyError, UsageError

if TYPE_CHECKING:
    from grmp_edge.bundle import Bundle
    from grmp_edge.runtime.tensorrt.build import Built
    from grmp_edge.runtime.tensorrt.engine_cache import Profile

__all__ = ["need_export", "register", "stages", "table"]


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command()(export)


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
    int8: Annotated[
        bool,
        typer.Option("--int8", help="Also write an eight-bit graph, for CPUs with VNNI or dot products."),
    ] = False,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            metavar="SOURCE",
            help="Pictures for the ranges of --int8: a folder or a csv; default: those of the gate.",
        ),
    ] = None,
    tensorrt: Annotated[
        bool,
        typer.Option(
            "--tensorrt", help="Then build a TensorRT engine for this machine's GPU and compare its scores."
        ),
    ] = False,
    batch: Annotated[
        str | None,
        typer.Option(
            "--batch",
            metavar="MIN,OPT,MAX",
            help="With --tensorrt: batch sizes, default 1,8,8; with --triton: MAX is the server's largest.",
        ),
    ] = None,
    triton: Annotated[
        Path | None,
        typer.Option(
            "--triton",
            metavar="DIR",
            help="Also write the model, with --tensorrt the engine, into this Triton model repository.",
        ),
    ] = None,
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
    need_export()
    from grmp_edge.export.pipeline import ExportConfig, export_bundle

    if calibration is not None and not int8:
        raise UsageError("--calibration belongs to --int8")
    if batch is not None and not tensorrt and triton is None:
        raise UsageError("--batch belongs to --tensorrt and --triton", "add one of them, or leave it out")
    from grmp_edge.cli.build import parse_profile, say_triton, write_plan
    from grmp_edge.export.triton import TritonConfig, write_triton

    profile = parse_profile(batch or "1,8,8")
    engine = _engine(fp16, profile) if tensorrt else None
    target = output or Path("bundles") / checkpoint.resolve().name
    config = ExportConfig(fp16=fp16, int8=int8, calibration=calibration, images=images, weights=weights)
    with stages() as stage:
        bundle = export_bundle(checkpoint, target, config, stage)
        rows = _rows(bundle, stage)
        if triton is not None and engine is None:
            stage(f"writing a Triton model into {triton}")
            model = write_triton(bundle, triton, config=TritonConfig(profile.largest) if batch else None)
        # The bundle is whole whatever comes of the engine, and its table is shown before the error is.
        failed: GrmpError | None = None
        try:
            if engine is not None:
                row, built = engine(bundle, stage)
                rows.append(row)
                if triton is not None:
                    model = write_plan(bundle, built, triton)
        except GrmpError as error:
            failed = error
    if as_json:
        result = {"bundle": str(target), "id": bundle.id, "graphs": rows, "parity": dict(bundle.parity)}
        print(json.dumps(result))
    else:
        reference = bundle.parity["reference"]
        print(f"{target} (id {bundle.id}), compared with unfolded PyTorch; {bundle.parity['images']}")
        table(
            ("file", "MB", "precision", "max diff", "mean diff", "SRCC", "CPU ms/image"),
            [
                (
                    row["file"],
                    f"{row['bytes'] / 1e6:.1f}",
                    row["precision"],
                    _small(row["max_abs"]),
                    _small(row["mean_abs"]),
                    "-" if row["srcc"] is None else f"{row['srcc']:.5f}",
                    "-" if row["cpu_ms"] is None else f"{row['cpu_ms']:.1f}",
                )
                for row in rows
            ],
        )
        kept = bundle.parity.get("fp32_blocks")
        if kept:
            print(f"half fails as it is; blocks kept in float32: {', '.join(str(block) for block in kept)}")
        if "int8" in bundle.parity:
            _print_int8(bundle.parity["int8"])
        links = bundle.parity["links"]
        if any(link["srcc_needed"] is None and name != "fp32" for name, link in links.items()):
            print(f"the scores spread too little (std {reference['std']:.1e}) to ask for a rank correlation")
    if failed is not None:
        raise failed
    if triton is not None:
        say_triton(model, triton)
    native = f" --provider tensorrt --precision {'fp16' if fp16 else 'fp32'}" if tensorrt else ""
    print(f"next: grmp-edge score {target} SOURCE...{native}", file=sys.stderr)


def _small(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _engine(
    fp16: bool, profile: Profile
) -> Callable[[Bundle, Callable[[str], None]], tuple[dict[str, Any], Built]]:
    """What builds the engine, and gives its row of the table and itself; all it needs is looked for now."""
    from grmp_edge.runtime.tensorrt.bindings import load_tensorrt
    from grmp_edge.runtime.tensorrt.build import BuildConfig, build
    from grmp_edge.runtime.tensorrt.cuda import find_gpu

    config = BuildConfig("fp16" if fp16 else "fp32", profile)
    try:
        trt, gpu = load_tensorrt(), find_gpu()
    except GrmpError as error:
        error.remedy += "; or export without --tensorrt, and run grmp-edge build on the device"
        raise

    def row(bundle: Bundle, stage: Callable[[str], None]) -> tuple[dict[str, Any], Built]:
        built = build(bundle, config, progress=stage, trt=trt, gpu=gpu)
        check: Mapping[str, object] = built.details.get("check") or {}
        told = {
            "file": built.engine.name,
            "bytes": built.engine.stat().st_size,
            "precision": f"{config.precision}, TensorRT {trt.__version__}",
            **{key: check.get(key) for key in ("max_abs", "mean_abs", "srcc", "srcc_needed")},
            "cpu_ms": None,
        }
        return told, built

    return row


def _rows(bundle: Bundle, stage: Callable[[str], None]) -> list[dict[str, Any]]:
    """One entry for each graph of a new bundle, and one for the simulation of half hardware."""
    from grmp_edge.runtime.measure.bench import BenchConfig, bench_bundle

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


def _print_int8(tried: Mapping[str, Any]) -> None:
    for method in ("static", "dynamic"):
        found = tried[method]
        ratios = ", ".join(f"{ratio:.2f} at batch {batch}" for batch, ratio in found["time_ratio"].items())
        layers = ", ".join(found["float32_layers"]) or "none"
        name = f"int8 {method}{' (kept)' if method == tried['method'] else ''}"
        print(f"{name}: mean diff {found['mean_abs']:.1e}, time / fp32 {ratios}")
        print(f"  smoothing {found['smoothing']}, layers in float32: {layers}")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns of text on stdout, the first to the left and the others to the right."""
    widths = [max(len(row[index]) for row in (header, *rows)) for index in range(len(header))]
    for row in (header, *rows):
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        print("  ".join(cells).rstrip())


@contextlib.contextmanager
def stages() -> Iterator[Callable[[str], None]]:
    """Show the stage at work on stderr: a line that changes on a terminal, a line each elsewhere."""
    if not sys.stderr.isatty():
        yield lambda text: None if ": round " in text else print(text, file=sys.stderr, flush=True)
        return
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status("starting") as status:
        yield lambda text: status.update(escape(text))


def need_export() -> None:
    """Raise MissingDependencyError where a package of the extra ``export``, or a runtime, is missing."""
    for package in ("torch", "open_clip", "safetensors", "onnx"):
        if find_spec(package) is None:
            raise MissingDependencyError(package, "export", "export")
    if find_spec("onnxruntime") is None:
        raise MissingDependencyError(
            "onnxruntime", "cpu", "the parity gate (on an NVIDIA GPU's machine: [gpu])"
        )
