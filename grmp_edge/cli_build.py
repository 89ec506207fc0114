"""The command ``build``: a TensorRT engine on the device that will run it."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from grmp_edge.errors import UsageError

__all__ = ["register"]


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
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Build a TensorRT engine for this GPU, into a cache outside the bundle."""
    from grmp_edge.bundle import PRECISIONS, Bundle
    from grmp_edge.export.to_tensorrt import BuildConfig, trtexec_line
    from grmp_edge.export.to_tensorrt import build as build_engine
    from grmp_edge.runtime.engine_cache import EngineCache, Profile

    if precision is not None and precision not in PRECISIONS:
        raise UsageError(f"unknown precision {precision!r}", f"use {', '.join(PRECISIONS)}")
    try:
        smallest, best, largest = (int(part) for part in batch.split(","))
    except ValueError:
        raise UsageError(
            f"--batch {batch!r} is not MIN,OPT,MAX", "write for instance --batch 1,8,8"
        ) from None
    loaded = Bundle.load(bundle)
    chosen = precision or ("fp16" if "fp16" in loaded.graphs else "fp32")
    config = BuildConfig(chosen, Profile(smallest, best, largest), workspace, rebuild)
    if print_trtexec:
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
        print(json.dumps({**data, "key": built.key.to_json(), "layers": layers, "trtexec": line}))
    else:
        print(built.engine)
        total = max(1, layers.get("all", 0))
        shares = ", ".join(f"{name} {layers.get(name, 0) / total:.0%}" for name in ("fp16", "int8", "fp32"))
        print(f"{layers.get('all', 0)} layers: {shares}")
        print(f"by hand: {line}", file=sys.stderr)
    print(f"next: trtexec --loadEngine={built.engine} --useCudaGraph", file=sys.stderr)
