"""A bundle's graph to a TensorRT engine, on the device that will run it. Needs neither torch nor onnx.

One path for TensorRT 10.3 to 11: precision is decided in the ONNX file, the network is strongly typed, and
the builder is asked for nothing but a profile of batch sizes and a limit of workspace.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from grmp_edge.bundle import Bundle
from grmp_edge.errors import BackendError, MissingDependencyError, UsageError
from grmp_edge.export.tensorrt_api import TensorRT
from grmp_edge.files import replace_file
from grmp_edge.runtime.engine_cache import EngineCache, EngineKey, Profile
from grmp_edge.runtime.gpu import Gpu, find_gpu

__all__ = ["BuildConfig", "Built", "build", "count_types", "load_tensorrt", "trtexec_line"]


@dataclass(frozen=True)
class BuildConfig:
    """What is built."""

    precision: str = "fp16"  # what GPUs are fast in
    profile: Profile = field(default_factory=Profile)
    # A ceiling for a tactic's scratch memory, not what is used; a Jetson shares its memory with the CPU.
    workspace_mib: int = 1024
    rebuild: bool = False  # also where the cache has the engine

    def __post_init__(self) -> None:
        if self.workspace_mib < 1:
            raise UsageError(f"{self.workspace_mib} MiB of workspace", "give 1 or more")


@dataclass(frozen=True)
class Built:
    """An engine in the cache."""

    engine: Path
    key: EngineKey
    cached: bool  # it was there already
    reasons: list[str]  # why one in the cache could not be used
    details: Mapping[str, Any]  # layers by type, seconds


def check_graph(bundle: Bundle, precision: str) -> Path:
    """The graph to build from.

    Raises:
        BundleError: the bundle has none of that precision.
        UsageError: TensorRT cannot read it.
    """
    path = bundle.graph(precision)
    if precision == "int8" and bundle.parity.get("int8", {}).get("method") == "dynamic":
        raise UsageError(
            f"{path}: quantised dynamically, which TensorRT does not read (DynamicQuantizeLinear)",
            "build another with --precision fp16 or fp32",
        )
    return path


def load_tensorrt() -> TensorRT:
    """Import TensorRT.

    Raises:
        MissingDependencyError: it is not installed.
        BackendError: it does not load, or is older than 10.3.
    """
    if importlib.util.find_spec("tensorrt") is None:
        raise MissingDependencyError("tensorrt", "tensorrt", "building an engine")
    try:
        trt = cast(TensorRT, importlib.import_module("tensorrt"))
        version = _version(trt)
    except Exception as error:  # the bindings raise what the loader raises
        raise BackendError(
            f"tensorrt is installed but does not load: {' '.join(str(error).split())[:200]}",
            "install its libraries too: pip install 'grmp-edge[tensorrt]'; on a Jetson: JetPack's packages",
        ) from None
    if version < (10, 3):
        raise BackendError(
            f"TensorRT {trt.__version__} is too old", "install 10.3 or newer (JetPack 6.1 and up)"
        )
    return trt


def build(
    bundle: Bundle,
    config: BuildConfig,
    cache: EngineCache | None = None,
    progress: Callable[[str], None] = lambda _: None,
    trt: TensorRT | None = None,
    gpu: Gpu | None = None,
) -> Built:
    """Take the engine from the cache or build it and put it there.

    Raises:
        BundleError, UsageError: the bundle has no such graph, or TensorRT cannot read it.
        MissingDependencyError, BackendError: TensorRT or the GPU is missing, or the build failed.
    """
    path = check_graph(bundle, config.precision)
    cache = cache or EngineCache()
    trt = trt or load_tensorrt()
    gpu = gpu or find_gpu()
    graph = bundle.graphs[config.precision]
    key = EngineKey(
        onnx_sha256=graph.sha256,
        tensorrt=trt.__version__,
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        precision=config.precision,
        input=graph.input,
        size=bundle.input_size,
        profile=config.profile,
        workspace_mib=config.workspace_mib,
        flags=("strongly_typed",),
    )
    found = cache.lookup(key)
    if found.engine is not None and not config.rebuild:
        sidecar = json.loads(found.engine.with_suffix(".json").read_text(encoding="utf-8"))
        return Built(found.engine, key, True, [], sidecar)
    reasons = ["asked to rebuild"] if found.engine is not None else found.reasons
    progress(f"building {config.precision} on {gpu.name} with TensorRT {trt.__version__}: takes minutes")
    start = time.monotonic()
    plan, layers = _build(trt, path, key, cache.timing_path(key))
    details = {"layers": layers, "seconds": round(time.monotonic() - start, 1), "bundle": bundle.id}
    return Built(cache.store(key, plan, details), key, False, reasons, details)


def _build(trt: TensorRT, path: Path, key: EngineKey, timing: Path) -> tuple[bytes, dict[str, int]]:
    messages: list[str] = []
    logger = _logger(trt, messages)
    builder = trt.Builder(logger)
    flags = 0
    if _version(trt) < (11, 0):
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        errors = [str(parser.get_error(index)) for index in range(parser.num_errors)]
        last = " ".join((errors or messages or ["no reason given"])[-1].split())[:300]
        raise BackendError(
            f"{path}: TensorRT {trt.__version__} does not read it: {last}",
            "build another --precision, or report it",
        )
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, key.workspace_mib << 20)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or the inspector names no types
    profile = builder.create_optimization_profile()
    shapes = [
        (batch, key.size, key.size, 3)
        for batch in (key.profile.smallest, key.profile.best, key.profile.largest)
    ]
    profile.set_shape(key.input, *shapes)
    if config.add_optimization_profile(profile) < 0:
        raise BackendError(f"TensorRT refuses the batch sizes {key.profile}: {' '.join(messages[-1:])}")
    known = timing.read_bytes() if timing.is_file() else b""
    if not config.set_timing_cache(config.create_timing_cache(known), False):
        config.set_timing_cache(config.create_timing_cache(b""), False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _failure(messages, key)
    with replace_file(timing) as temporary:
        temporary.write_bytes(bytes(config.get_timing_cache().serialize()))
    content = bytes(plan)
    engine = trt.Runtime(logger).deserialize_cuda_engine(content)
    if engine is None:
        raise _failure(messages, key)
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return content, count_types(json.loads(text))


def _failure(messages: Sequence[str], key: EngineKey) -> BackendError:
    text = " ".join(messages)
    last = " ".join(messages[-1].split())[:300] if messages else "no reason given"
    if re.search(
        r"out of memory|outofmemory|cudaErrorMemoryAllocation|allocation.*failed", text, re.IGNORECASE
    ):
        return BackendError(
            f"the GPU's memory is not enough to build for batches up to {key.profile.largest} ({last})",
            "stop other programs on the GPU, or lower the last number of --batch, or --workspace",
        )
    if re.search(r"workspace", text, re.IGNORECASE):
        return BackendError(
            f"no tactic fits into {key.workspace_mib} MiB of workspace ({last})", "raise --workspace"
        )
    return BackendError(
        f"TensorRT failed to build the engine: {last}", "try another --precision or report it"
    )


def count_types(information: Mapping[str, Any]) -> dict[str, int]:
    """How many layers of a built engine compute in which type.

    Args:
        information: the engine inspector's JSON, built with detailed verbosity.

    Returns:
        Layers by the type of their first output: ``fp16``, ``fp32``, ``int8`` and ``other``; and ``all``.
    """
    counts = {"all": 0, "fp16": 0, "fp32": 0, "int8": 0, "other": 0}
    for layer in information.get("Layers", []):
        # With brief verbosity a layer is only its name.
        outputs = layer.get("Outputs", []) if isinstance(layer, dict) else []
        text = str(outputs[0].get("Format/Datatype", "")) if outputs else ""
        counts["all"] += 1
        counts[_type_of(text)] += 1
    return counts


def _type_of(text: str) -> str:
    # "Half" in one version, "Row major linear FP16 format" in another.
    for name, pattern in (("fp16", r"fp16|half"), ("int8", r"\bint8"), ("fp32", r"fp32|float")):
        if re.search(pattern, text, re.IGNORECASE):
            return name
    return "other"


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
    parts += [f"--memPoolSize=workspace:{config.workspace_mib}M", f"--timingCacheFile={timing}"]
    parts += ["--profilingVerbosity=detailed", "--skipInference"]
    return shlex.join(parts)


def _version(trt: TensorRT) -> tuple[int, int]:
    major, minor = [*trt.__version__.split("."), "0"][:2]
    return int(major), int(minor)


def _logger(trt: TensorRT, messages: list[str]) -> Any:
    base: Any = trt.ILogger

    class Logger(base):  # type: ignore[misc]
        """Keeps errors; the rest, thousands of lines, goes nowhere."""

        def __init__(self) -> None:
            base.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                messages.append(message)

    return Logger()
