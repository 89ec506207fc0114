"""NVIDIA's own command line for the same engine, so that one can build by hand."""

from __future__ import annotations

import shlex
from pathlib import Path

from grmp_edge.bundle import Bundle
from grmp_edge.runtime.tensorrt.build import BuildConfig, check_graph

__all__ = ["trtexec_line"]


def trtexec_line(bundle: Bundle, config: BuildConfig, engine: Path, timing: Path, major: int = 10) -> str:
    """The same build by NVIDIA's trtexec, as one shell command.

    Args:
        bundle: what to build from.
        config: how.
        engine: the file to write.
        timing: the timing cache's file.
        major: TensorRT's major version: from 11 on all networks are strongly typed and the option is gone.
    """
    path = check_graph(bundle, config.precision)
    graph, size = bundle.graphs[config.precision], bundle.input_size
    sizes = {"min": config.profile.smallest, "opt": config.profile.best, "max": config.profile.largest}
    parts = ["trtexec", f"--onnx={path}", f"--saveEngine={engine}"]
    if major < 11:
        parts.append("--stronglyTyped")
    parts += [f"--{name}Shapes={graph.input}:{batch}x{size}x{size}x3" for name, batch in sizes.items()]
    if config.precision == "fp32":
        parts.append("--noTF32")
    parts += [f"--memPoolSize=workspace:{config.workspace_mib}M", f"--timingCacheFile={timing}"]
    parts += ["--profilingVerbosity=detailed", "--skipInference"]
    return shlex.join(parts)
