"""The command ``build``: a TensorRT engine on the device that will run it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from grmp_edge.cli.groups import add_command, option
from grmp_edge.cli.options import AsJson
from grmp_edge.errors import UsageError
from grmp_edge.files import as_typed

if TYPE_CHECKING:
    from grmp_edge.bundle import Bundle
    from grmp_edge.runtime.gate import DeviceCheck
    from grmp_edge.runtime.tensorrt.build import Built
    from grmp_edge.runtime.tensorrt.engine_cache import Profile

__all__ = ["parse_profile", "register", "say_triton", "write_plan"]


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    add_command(app, build, "grmp-edge build default --precision fp16")


def build(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder made by grmp-edge export.")],
    precision: Annotated[
        str | None,
        option(
            "--precision",
            "fp32, fp16, int8, int8-fp16 or fp8; default: fp16 where it is there.",
            metavar="NAME",
        ),
    ] = None,
    batch: Annotated[
        str, option("--batch", "Batch sizes the engine takes; tuned for OPT.", metavar="MIN,OPT,MAX")
    ] = "1,8,8",
    workspace: Annotated[
        int, option("--workspace", "Most scratch memory a layer may take.", metavar="MIB")
    ] = 1024,
    rebuild: Annotated[bool, option("--rebuild", "Build even if the cache has the engine.")] = False,
    rtx: Annotated[bool, option("--rtx", "With TensorRT-RTX, for GeForce and RTX cards.")] = False,
    dry_run: Annotated[
        bool, option("--dry-run", "With --rtx: build, needing no GPU, show the layers, and keep nothing.")
    ] = False,
    print_trtexec: Annotated[
        bool, option("--print-trtexec", "Build nothing; show NVIDIA's trtexec command for the same engine.")
    ] = False,
    triton: Annotated[
        Path | None,
        option("--triton", "Also put the engine into this Triton model repository.", metavar="DIR"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Build a TensorRT or TensorRT-RTX engine for this GPU.

    Compares its scores with those of the bundle's graph and keeps the engine in a cache outside the bundle.
    If the scores differ, exits with 3 and keeps no engine.
    """
    from grmp_edge.bundle import PRECISIONS, Bundle
    from grmp_edge.runtime.tensorrt.bindings import load_rtx
    from grmp_edge.runtime.tensorrt.build import BuildConfig, rehearse, trtexec_line
    from grmp_edge.runtime.tensorrt.build import build as build_engine
    from grmp_edge.runtime.tensorrt.engine_cache import EngineCache

    if precision is not None and precision not in PRECISIONS:
        raise UsageError(f"unknown precision {precision!r}", f"use {', '.join(PRECISIONS)}")
    profile = parse_profile(batch)
    loaded = Bundle.load(bundle)
    chosen = precision or ("fp16" if "fp16" in loaded.graphs else "fp32")
    config = BuildConfig(chosen, profile, workspace, rebuild)
    if dry_run and not rtx:
        raise UsageError("--dry-run needs --rtx: plain TensorRT builds only on its GPU", "add --rtx")
    if rtx and print_trtexec:
        raise UsageError("trtexec is for plain TensorRT", "leave out --rtx or --print-trtexec")
    if dry_run:
        if triton is not None:
            raise UsageError("--dry-run keeps nothing for --triton", "leave one of them out")
        trial = rehearse(loaded, config, load_rtx())
        if as_json:
            print(json.dumps({"precision": chosen, **asdict(trial)}))
        else:
            print(f"{chosen}: {trial.bytes / 1e6:.1f} MB in {trial.seconds:.1f} s; {_shares(trial.layers)}")
        print(
            f"next, on the device: grmp-edge build {as_typed(bundle)} --rtx --precision {chosen}",
            file=sys.stderr,
        )
        return
    if print_trtexec:
        if triton is not None:
            raise UsageError("--print-trtexec builds nothing for --triton", "leave one of them out")
        engine = Path(f"{loaded.id}-{chosen}.engine")
        line = trtexec_line(loaded, config, engine, Path("timing.cache"))
        print(json.dumps({"trtexec": line}) if as_json else line)
        if find_spec("tensorrt") is None:
            print("for TensorRT 10; leave --stronglyTyped out with TensorRT 11", file=sys.stderr)
        return
    cache = EngineCache()
    built = build_engine(
        loaded,
        config,
        cache,
        lambda text: print(text, file=sys.stderr, flush=True),
        load_rtx() if rtx else None,
    )
    major = int(built.key.tensorrt.split(".")[0])
    line = "" if rtx else trtexec_line(loaded, config, built.engine, cache.timing_path(built.key), major)
    for reason in built.reasons:
        print(f"not from the cache: {reason}", file=sys.stderr)
    layers = built.details.get("layers", {})
    if as_json:
        data = {"engine": str(built.engine), "cached": built.cached, "reasons": built.reasons}
        data["check"] = built.details.get("check")
        print(json.dumps({**data, "key": built.key.to_json(), "layers": layers, "trtexec": line or None}))
    else:
        print(built.engine)
        print(_shares(layers))
        print(checked(built.details.get("check")))
        if line:
            print(f"by hand: {line}", file=sys.stderr)
    if triton is not None:
        say_triton(write_plan(loaded, built, triton), triton)
    provider = "rtx" if rtx else "tensorrt"
    command = f"grmp-edge score {as_typed(bundle)} SOURCE... --provider {provider} --precision {chosen}"
    print(f"next: {command}", file=sys.stderr)


def _shares(layers: Mapping[str, int]) -> str:
    """How many layers compute in which type, as text."""
    total = max(1, layers.get("all", 0))
    shares = ", ".join(
        f"{name} {layers.get(name, 0) / total:.0%}" for name in ("fp16", "int8", "fp8", "fp32")
    )
    return f"{layers.get('all', 0)} layers: {shares}"


def write_plan(bundle: Bundle, built: Built, repository: Path) -> Path:
    """Put an engine into a Triton model repository; returns the model's folder."""
    from grmp_edge.export.triton import TritonConfig, write_triton

    config = TritonConfig(max_batch=built.key.profile.largest)
    return write_triton(bundle, repository, built.key.precision, config, built.engine)


def say_triton(model: Path, repository: Path) -> None:
    """Print on stderr where the model is and how to serve it."""
    print(
        f"Triton model: {model}; serve it with: tritonserver --model-repository={repository.resolve()}",
        file=sys.stderr,
    )


def parse_profile(batch: str) -> Profile:
    """Read ``MIN,OPT,MAX`` as a profile.

    Raises:
        UsageError: the text has another form.
    """
    from grmp_edge.runtime.tensorrt.engine_cache import Profile

    try:
        smallest, best, largest = (int(part) for part in batch.split(","))
    except ValueError:
        raise UsageError(
            f"--batch {batch!r} is not MIN,OPT,MAX", "write for instance --batch 1,8,8"
        ) from None
    return Profile(smallest, best, largest)


def checked(check: DeviceCheck | None) -> str:
    """How far an engine's scores are from its graph's, as text."""
    if check is None:
        return "not compared with the graph: the bundle records no scores; export again to have them"
    return (
        f"compared with the graph on {check['pictures']} pictures: max diff {check['max_abs']:.1e}, "
        f"mean diff {check['mean_abs']:.1e}"
    )
