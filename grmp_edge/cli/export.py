"""The command ``export``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from grmp_edge.cli.groups import add_command, option
from grmp_edge.cli.progress import stages
from grmp_edge.cli.requirements import need_export
from grmp_edge.cli.tables import print_table
from grmp_edge.errors import GrmpError, UsageError
from grmp_edge.files import as_typed

if TYPE_CHECKING:
    from grmp_edge.bundle import Bundle
    from grmp_edge.export.precision.quantize import GpuMethod
    from grmp_edge.runtime.tensorrt.build import Built
    from grmp_edge.runtime.tensorrt.engine_cache import Profile

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    add_command(app, export, "grmp-edge export runs/grmp-edge --fp16")


def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Folder made by grmp-edge train.")],
    output: Annotated[
        Path | None,
        option("--output -o", "Folder to make; default: bundles/CHECKPOINT's name.", metavar="BUNDLE"),
    ] = None,
    fp16: Annotated[bool, option("--fp16", "Also write a half-precision graph, for GPUs.")] = False,
    int8: Annotated[
        bool,
        option("--int8", "Also write an eight-bit graph, for CPUs with VNNI or dot-product instructions."),
    ] = False,
    int8_fp16: Annotated[
        bool, option("--int8-fp16", "Also write a graph of eight bits and half, for GPUs.")
    ] = False,
    fp8: Annotated[
        bool, option("--fp8", "Also write a graph of FP8 and half, for GPUs from Ada and Hopper on.")
    ] = False,
    calibration: Annotated[
        Path | None,
        option(
            "--calibration",
            "Pictures for the ranges of eight bits: a folder or a csv; default: those of the gate.",
            metavar="SOURCE",
        ),
    ] = None,
    tensorrt: Annotated[
        bool,
        option("--tensorrt", "Then build a TensorRT engine for this machine's GPU and compare its scores."),
    ] = False,
    batch: Annotated[
        str | None,
        option(
            "--batch",
            "With --tensorrt: batch sizes, default 1,8,8; with --triton: MAX is the server's largest.",
            metavar="MIN,OPT,MAX",
        ),
    ] = None,
    triton: Annotated[
        Path | None,
        option(
            "--triton",
            "Also write the model, with --tensorrt the engine, into this Triton model repository.",
            metavar="DIR",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        option(
            "--images",
            "Pictures for the parity gate: a folder or a csv; default: those of training.",
            metavar="SOURCE",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        option("--weights", "The backbone's weights, if they were moved since training.", metavar="FILE"),
    ] = None,
    layout: Annotated[
        Literal["nhwc-uint8", "nchw-float"],
        option(
            "--layout",
            "nchw-float: also write graphs that read float32 planes, for DeepStream, beside the bundle.",
        ),
    ] = "nhwc-uint8",
    as_json: Annotated[bool, option("--json", "The result as one JSON object on stdout.")] = False,
) -> None:
    """Fold a checkpoint into a bundle of ONNX graphs.

    Checks that the graphs score as PyTorch does. If they do not, exits with 3 and leaves an older bundle as
    it was.
    """
    need_export()
    from grmp_edge.export.pipeline import ExportConfig, export_bundle

    methods: dict[GpuMethod, bool] = {"int8-fp16": int8_fp16, "fp8": fp8}
    gpu = tuple(method for method, asked in methods.items() if asked)
    if calibration is not None and not int8 and not gpu:
        raise UsageError("--calibration belongs to --int8, --int8-fp16 and --fp8")
    if batch is not None and not tensorrt and triton is None:
        raise UsageError("--batch belongs to --tensorrt and --triton", "add one of them, or leave it out")
    from grmp_edge.cli.build import parse_profile, say_triton, write_plan
    from grmp_edge.export.triton import TritonConfig, write_triton

    profile = parse_profile(batch or "1,8,8")
    engine = _engine(fp16, profile) if tensorrt else None
    target = output or Path("bundles") / checkpoint.resolve().name
    config = ExportConfig(fp16, int8, gpu, calibration, images, weights)
    with stages() as stage:
        bundle = export_bundle(checkpoint, target, config, stage)
        rows = _rows(bundle, stage)
        planar: list[Path] = []
        if layout == "nchw-float":
            from grmp_edge.export.planar import planar_folder, write_planar

            stage("writing graphs that read planes")
            planar = write_planar(bundle, planar_folder(target))
        if triton is not None and engine is None:
            stage(f"writing a Triton model into {triton}")
            model = write_triton(bundle, triton, config=TritonConfig(profile.largest) if batch else None)
        # The bundle is complete even if the engine fails, so its table is shown before the error.
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
        if planar:
            result["planar"] = [str(file) for file in planar]
        print(json.dumps(result))
    else:
        reference = bundle.parity["reference"]
        print(f"{target} (id {bundle.id}), compared with unfolded PyTorch; {bundle.parity['images']}")
        print_table(
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
        blocks = bundle.parity.get("fp32_blocks")
        if blocks:
            print(f"fp16 alone fails the gate; blocks left in float32: {', '.join(map(str, blocks))}")
        if "int8" in bundle.parity:
            _print_int8(bundle.parity["int8"])
        links = bundle.parity["links"]
        if any(link["srcc_needed"] is None and name != "fp32" for name, link in links.items()):
            print(f"the scores spread too little (std {reference['std']:.1e}) to ask for a rank correlation")
        for file in planar:
            print(f"planar: {file}")
    if failed is not None:
        raise failed
    if triton is not None:
        say_triton(model, triton)
    native = f" --provider tensorrt --precision {'fp16' if fp16 else 'fp32'}" if tensorrt else ""
    print(f"next: grmp-edge score {as_typed(target)} SOURCE...{native}", file=sys.stderr)


def _small(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _engine(
    fp16: bool, profile: Profile
) -> Callable[[Bundle, Callable[[str], None]], tuple[dict[str, Any], Built]]:
    """Check now what an engine needs; returns the function that builds it, with its row of the table."""
    from grmp_edge.runtime.tensorrt.bindings import load_tensorrt
    from grmp_edge.runtime.tensorrt.build import BuildConfig, build
    from grmp_edge.runtime.tensorrt.cuda import find_gpu

    config = BuildConfig("fp16" if fp16 else "fp32", profile)
    try:
        trt, gpu = load_tensorrt(), find_gpu()
    except GrmpError as error:
        error.remedy += "; or export without --tensorrt, and run grmp-edge build on the device"
        raise

    def build_row(bundle: Bundle, stage: Callable[[str], None]) -> tuple[dict[str, Any], Built]:
        built = build(bundle, config, progress=stage, trt=trt, gpu=gpu)
        check: Mapping[str, object] = built.details.get("check") or {}
        row = {
            "file": built.engine.name,
            "bytes": built.engine.stat().st_size,
            "precision": f"{config.precision}, TensorRT {trt.__version__}",
            **{key: check.get(key) for key in ("max_abs", "mean_abs", "srcc", "srcc_needed")},
            "cpu_ms": None,
        }
        return row, built

    return build_row


def _rows(bundle: Bundle, stage: Callable[[str], None]) -> list[dict[str, Any]]:
    """One entry for each graph of a new bundle, and one for the simulation of half hardware."""
    from grmp_edge.runtime.bench import BenchConfig, bench_bundle

    stage("timing the graphs on this CPU")
    timings = bench_bundle(bundle, BenchConfig(batches=(1,), runs=5)).timings
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
                "cpu_ms": None if simulated else milliseconds.get(name),
            }
        )
    return rows


def _print_int8(methods: Mapping[str, Any]) -> None:
    for method in ("static", "dynamic"):
        outcome = methods[method]
        ratios = ", ".join(f"{ratio:.2f} at batch {batch}" for batch, ratio in outcome["time_ratio"].items())
        layers = ", ".join(outcome["float32_layers"]) or "none"
        name = f"int8 {method}{' (kept)' if method == methods['method'] else ''}"
        print(f"{name}: mean diff {outcome['mean_abs']:.1e}, time / fp32 {ratios}")
        print(f"  smoothing {outcome['smoothing']}, layers in float32: {layers}")
