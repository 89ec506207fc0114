"""The command ``build``: a TensorRT engine on the device that will run it."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from grmp_edge.errors import UsageError

if TYPE_CHECKING:
    from grmp_edge.bundle import Bundle
    from grmp_edge.runtime.tensorrt.build import Built
    from grmp_edge.runtime.tensorrt.engine_cache import Profile
    from grmp_edge.runtime.tensorrt.gate import EngineCheck

__all__ = ["parse_profile", "register", "say_triton", "write_plan"]


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command()(build)


def build(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder made by grmp-edge export.")],
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision", metavar="NAME", help="fp32, fp16 or int8; default: fp16 where it is there."
        ),
    ] = None,
    batch: Annotated[
        str,
        typer.Option("--batch", metavar="MIN,OPT,MAX", help="Batch sizes the engine takes; tuned for OPT."),
    ] = "1,8,8",
    workspace: Annotated[
        int, typer.Option("--workspace", metavar="MIB", help="Most scratch memory a layer may take.")
    ] = 1024,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Build even if the cache has the engine.")
    ] = False,
    print_trtexec: Annotated[
        bool,
        typer.Option(
            "--print-trtexec", help="Build nothing; show NVIDIA's trtexec command for the same engine."
        ),
    ] = False,
    triton: Annotated[
        Path | None,
        typer.Option(
            "--triton", metavar="DIR", help="Also put the engine into this Triton model repository."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Build a TensorRT engine for this GPU, compare its scores, and keep it in a cache outside the bundle.

    Exits with 3, and keeps no engine, if it does not score as the bundle's graph does.
    """
    from grmp_edge.bundle import PRECISIONS, Bundle
    from grmp_edge.runtime.tensorrt.build import BuildConfig, trtexec_line
    from grmp_edge.runtime.tensorrt.build import build as build_engine
    from grmp_edge.runtime.tensorrt.engine_cache import EngineCache

    if precision is not None and precision not in PRECISIONS:
        raise UsageError(f"unknown precision {precision!r}", f"use {', '.join(PRECISIONS)}")
    profile = parse_profile(batch)
    loaded = Bundle.load(bundle)
    chosen = precision or ("fp16" if "fp16" in loaded.graphs else "fp32")
    config = BuildConfig(chosen, profile, workspace, rebuild)
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
    built = build_engine(loaded, config, cache, lambda text: print(text, file=sys.stderr, flush=True))
    major = int(built.key.tensorrt.split(".")[0])
    line = trtexec_line(loaded, config, built.engine, cache.timing_path(built.key), major)
    for reason in built.reasons:
        print(f"not from the cache: {reason}", file=sys.stderr)
    layers = built.details.get("layers", {})
    if as_json:
        data = {"engine": str(built.engine), "cached": built.cached, "reasons": built.reasons}
        data["check"] = built.details.get("check")
        print(json.dumps({**data, "key": built.key.to_json(), "layers": layers, "trtexec": line}))
    else:
        print(built.engine)
        total = max(1, layers.get("all", 0))
        shares = ", ".join(f"{name} {layers.get(name, 0) / total:.0%}" for name in ("fp16", "int8", "fp32"))
        print(f"{layers.get('all', 0)} layers: {shares}")
        print(checked(built.details.get("check")))
        print(f"by hand: {line}", file=sys.stderr)
    if triton is not None:
        say_triton(write_plan(loaded, built, triton), triton)
    command = f"grmp-edge score {bundle} SOURCE... --provider tensorrt --precision {chosen}"
    print(f"next: {command}", file=sys.stderr)


def write_plan(bundle: Bundle, built: Built, repository: Path) -> Path:
    """Put an engine into a Triton model repository; returns the model's folder."""
    from grmp_edge.export.triton import TritonConfig, write_triton

    config = TritonConfig(max_batch=built.key.profile.largest)
    return write_triton(bundle, repository, built.key.precision, config, built.engine)


def say_triton(model: Path, repository: Path) -> None:
    """Tell where the model lies and how it is served, on stderr."""
    print(
        f"Triton model: {model}; serve it with: tritonserver --model-repository={repository.resolve()}",
        file=sys.stderr,
    )


def parse_profile(batch: str) -> Profile:
    """``MIN,OPT,MAX`` as a profile.

    Raises:
        UsageError: it is something else.
    """
    from grmp_edge.runtime.tensorrt.engine_cache import Profile

    try:
        smallest, best, largest = (int(part) for part in batch.split(","))
    except ValueError:
        raise UsageError(
            f"--batch {batch!r} is not MIN,OPT,MAX", "write for instance --batch 1,8,8"
        ) from None
    return Profile(smallest, best, largest)


def checked(check: EngineCheck | None) -> str:
    """How an engine scored beside its graph, in words."""
    if check is None:
        return "not compared with the graph: the bundle records no scores; export again to have them"
    return (
        f"compared with the graph on {check['pictures']} pictures: max diff {check['max_abs']:.1e}, "
        f"mean diff {check['mean_abs']:.1e}"
    )
