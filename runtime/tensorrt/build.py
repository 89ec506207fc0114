"""From a bundle's graph to a TensorRT engine, on the device that will run it. Needs neither torch nor onnx.

One path for TensorRT 10.3 to 11 and TensorRT-RTX: the ONNX file decides the precision, the network is
strongly typed, and the builder gets only a profile of batch sizes and a limit for the workspace. An engine is
stored only if it scores as the graph does (:mod:`grmp_edge.runtime.gate`).

TensorRT-RTX builds without a GPU, since it chooses its kernels on the device that runs them. It has no
timings to keep.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from grmp_edge.bundle import Bundle
from grmp_edge.errors import BackendError, UsageError
from grmp_edge.files import replace_file
from grmp_edge.runtime.gate import DeviceCheck, check_scores, check_set
from grmp_edge.runtime.tensorrt.backend import NativeConfig, TensorRTBackend
from grmp_edge.runtime.tensorrt.bindings import TensorRT, is_rtx, load_tensorrt, make_logger, version
from grmp_edge.runtime.tensorrt.cuda import CudaDriver, Gpu, find_gpu
from grmp_edge.runtime.tensorrt.engine_cache import EngineCache, EngineKey, Profile

__all__ = [
    "BuildConfig",
    "Built",
    "EngineDetails",
    "Rehearsal",
    "build",
    "check_graph",
    "count_types",
    "open_native",
    "rehearse",
    "trtexec_line",
]


@dataclass(frozen=True)
class BuildConfig:
    """What is built."""

    precision: str = "fp16"  # what GPUs are fast in
    profile: Profile = field(default_factory=Profile)
    # An upper bound on a tactic's scratch memory, not what is used; a Jetson shares its memory with the CPU.
    workspace_mib: int = 1024
    rebuild: bool = False  # even if the cache has the engine

    def __post_init__(self) -> None:
        if self.workspace_mib < 1:
            raise UsageError(f"{self.workspace_mib} MiB of workspace", "give 1 or more")


class EngineDetails(TypedDict, total=False):
    """What an engine's sidecar says besides its key."""

    layers: dict[str, int]  # by the type they compute in, as `count_types` gives them
    seconds: float  # that the build took
    bundle: str  # the id of the bundle it was built from
    check: DeviceCheck | None  # how it scored; None: nothing to compare with


@dataclass(frozen=True)
class Built:
    """An engine in the cache."""

    engine: Path
    key: EngineKey
    cached: bool  # found in the cache, not built
    reasons: list[str]  # why no engine of the cache could be used
    details: EngineDetails


@dataclass(frozen=True)
class Rehearsal:
    """An engine that was built, but neither run nor stored."""

    bytes: int
    layers: dict[str, int]  # of the network, by the type of their first output, as `count_types` gives them
    seconds: float


def check_graph(bundle: Bundle, precision: str) -> Path:
    """The path of the graph to build from.

    Raises:
        BundleError: the bundle has no graph of that precision.
        UsageError: TensorRT cannot read it.
    """
    path = bundle.graph(precision)
    if precision == "int8" and bundle.parity.get("int8", {}).get("method") == "dynamic":
        raise UsageError(
            f"{path}: quantised dynamically, which TensorRT does not read (DynamicQuantizeLinear)",
            "build another with --precision fp16 or fp32",
        )
    return path


def build(
    bundle: Bundle,
    config: BuildConfig,
    cache: EngineCache | None = None,
    progress: Callable[[str], None] = lambda _: None,
    trt: TensorRT | None = None,
    gpu: Gpu | None = None,
    cuda: Callable[[], CudaDriver] = CudaDriver,
) -> Built:
    """Take the engine from the cache, or build it, compare its scores and store it there.

    Args:
        bundle: what to build from.
        config: what to build.
        cache: where to look for it and to store it; by default the user's own.
        progress: called with a description of each step.
        trt: the bindings; by default the installed ones.
        gpu: the device to build on; by default the first one.
        cuda: opens that device.

    Raises:
        BundleError, UsageError: the bundle has no such graph, or TensorRT cannot read it.
        MissingDependencyError, BackendError: TensorRT or the GPU is missing, or the build failed.
        ParityError: the engine does not score as the graph does; it is not stored.
    """
    path = check_graph(bundle, config.precision)
    cache = cache or EngineCache()
    trt = trt or load_tensorrt()
    gpu = gpu or find_gpu()
    key = engine_key(bundle, config, trt, gpu)
    cached = cache.lookup(key)
    if cached.engine is not None and not config.rebuild:
        sidecar = json.loads(cached.engine.with_suffix(".json").read_text(encoding="utf-8"))
        return Built(cached.engine, key, True, [], sidecar)
    reasons = ["asked to rebuild"] if cached.engine is not None else cached.reasons
    progress(f"building {config.precision} on {gpu.name} with TensorRT {trt.__version__}: takes minutes")
    start = time.monotonic()
    messages: list[str] = []
    logger = make_logger(trt, messages)  # it must outlive everything TensorRT makes below
    plan, _ = _plan(trt, logger, messages, path, key, None if is_rtx(trt) else cache.timing_path(key))
    layers = _inspect(trt, logger, messages, plan, key)
    seconds = round(time.monotonic() - start, 1)
    check = _check(trt, plan, bundle, config.precision, cuda, progress)
    details: EngineDetails = {"layers": layers, "seconds": seconds, "bundle": bundle.id, "check": check}
    return Built(cache.store(key, plan, details), key, False, reasons, details)


def rehearse(bundle: Bundle, config: BuildConfig, trt: TensorRT) -> Rehearsal:
    """Build an engine of TensorRT-RTX on a machine without its GPU: does the graph build at all, and as what?

    Raises:
        BundleError, UsageError: the bundle has no such graph, or TensorRT cannot read it.
        BackendError: the build failed.
    """
    path = check_graph(bundle, config.precision)
    messages: list[str] = []
    logger = make_logger(trt, messages)
    key = engine_key(bundle, config, trt, Gpu("any", ""))
    start = time.monotonic()
    plan, layers = _plan(trt, logger, messages, path, key, None)
    return Rehearsal(len(plan), layers, round(time.monotonic() - start, 1))


def _check(
    trt: TensorRT,
    plan: bytes,
    bundle: Bundle,
    precision: str,
    cuda: Callable[[], CudaDriver],
    progress: Callable[[str], None],
) -> DeviceCheck | None:
    if check_set(bundle, precision) is None:
        progress("not compared: the bundle records no scores to compare with; export it again to add them")
        return None
    progress("comparing the engine's scores with those of its graph")
    # Without graphs: each batch size is run once or twice here.
    backend = TensorRTBackend(
        plan, bundle.graphs[precision], bundle.input_size, trt, NativeConfig(cuda_graphs=False), cuda()
    )
    try:
        return check_scores(bundle, precision, backend.raw)
    finally:
        backend.close()


def open_native(
    bundle: Bundle,
    precision: str,
    trt: TensorRT | None = None,
    gpu: Gpu | None = None,
    cache: EngineCache | None = None,
    cuda: Callable[[], CudaDriver] = CudaDriver,
) -> TensorRTBackend:
    """A bundle's graph on TensorRT: a cached engine, whatever batches it was built for, or a new one.

    A build takes minutes and is announced on the logger ``grmp_edge``, which writes to stderr by default.

    Raises: as :func:`build` and :class:`TensorRTBackend`.
    """
    check_graph(bundle, precision)
    trt, gpu, cache = trt or load_tensorrt(), gpu or find_gpu(), cache or EngineCache()
    config = BuildConfig(precision)
    engine = cache.latest(engine_key(bundle, config, trt, gpu))
    if engine is None:
        engine = build(bundle, config, cache, logging.getLogger("grmp_edge").warning, trt, gpu, cuda).engine
    graph = bundle.graphs[precision]
    return TensorRTBackend(engine.read_bytes(), graph, bundle.input_size, trt, cuda=cuda())


def engine_key(bundle: Bundle, config: BuildConfig, trt: TensorRT, gpu: Gpu) -> EngineKey:
    """Everything that an engine of this bundle depends on, on this machine."""
    # float32 means float32: TF32, TensorRT's default, keeps ten bits and would exceed the gate's 1e-4.
    flags = ("strongly_typed", *(("no_tf32",) if config.precision == "fp32" else ()))
    if is_rtx(trt):
        flags = (*flags, "rtx")
    return EngineKey(
        onnx_sha256=bundle.graph_digest(config.precision),
        tensorrt=trt.__version__,
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        precision=config.precision,
        input=bundle.graphs[config.precision].input,
        size=bundle.input_size,
        profile=config.profile,
        workspace_mib=config.workspace_mib,
        flags=flags,
    )


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


def _plan(
    trt: TensorRT, logger: Any, messages: list[str], path: Path, key: EngineKey, timing: Path | None
) -> tuple[bytes, dict[str, int]]:
    """The engine's bytes, and the network's layers by type; ``timing`` is the timing cache's file."""
    builder = trt.Builder(logger)
    flags = 0
    if version(trt) < (11, 0):
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        errors = [str(parser.get_error(index)) for index in range(parser.num_errors)]
        last = " ".join((errors or messages or ["no reason given"])[-1].split())[:300]
        raise BackendError(
            f"{path}: TensorRT {trt.__version__} cannot read it: {last}",
            "build another --precision, or report it",
        )
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, key.workspace_mib << 20)
    if "no_tf32" in key.flags:
        config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or the inspector names no types
    profile = builder.create_optimization_profile()
    shapes = [
        (batch, key.size, key.size, 3)
        for batch in (key.profile.smallest, key.profile.best, key.profile.largest)
    ]
    profile.set_shape(key.input, *shapes)
    if config.add_optimization_profile(profile) < 0:
        raise BackendError(f"TensorRT refuses the batch sizes {key.profile}: {' '.join(messages[-1:])}")
    if timing is not None:
        timings = timing.read_bytes() if timing.is_file() else b""
        if not config.set_timing_cache(config.create_timing_cache(timings), False):
            config.set_timing_cache(config.create_timing_cache(b""), False)
    layers = count_types({"Layers": [_described(network.get_layer(i)) for i in range(network.num_layers)]})
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _failure(messages, key)
    if timing is not None:
        with replace_file(timing) as temporary:
            temporary.write_bytes(bytes(config.get_timing_cache().serialize()))
    return bytes(plan), layers


def _described(layer: Any) -> dict[str, Any]:
    """A network's layer as the engine inspector describes one."""
    return {"Outputs": [{"Format/Datatype": str(layer.get_output(0).dtype)}] if layer.num_outputs else []}


def _inspect(trt: TensorRT, logger: Any, messages: list[str], plan: bytes, key: EngineKey) -> dict[str, int]:
    """The layers of a finished engine by the type that they compute in."""
    runtime = trt.Runtime(logger)  # it must outlive its engine
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise _failure(messages, key)
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    del inspector, engine
    return count_types(json.loads(text))


def _failure(messages: Sequence[str], key: EngineKey) -> BackendError:
    text = " ".join(messages)
    last = " ".join(messages[-1].split())[:300] if messages else "no reason given"
    # TensorRT-RTX says how much it asked for; what exceeds the workspace was refused for that.
    asked = re.search(r"Requested size was (\d+)", text)
    small = BackendError(
        f"no tactic fits into {key.workspace_mib} MiB of workspace ({last})", "raise --workspace"
    )
    if asked and int(asked[1]) > key.workspace_mib << 20:
        return small
    if re.search(
        r"out of memory|outofmemory|cudaErrorMemoryAllocation|allocation.*failed", text, re.IGNORECASE
    ):
        return BackendError(
            f"the GPU's memory is not enough to build for batches up to {key.profile.largest} ({last})",
            "stop other programs on the GPU, or lower the last number of --batch, or --workspace",
        )
    if re.search(r"workspace", text, re.IGNORECASE):
        return small
    remedy = "try another --precision or report it"
    if "rtx" in key.flags and key.compute_capability.split(".")[0] not in ("", "7", "8", "12"):
        remedy = (
            f"TensorRT-RTX names compute capabilities 7.5, 8.0, 8.6, 8.9 and 12, and {key.gpu} has "
            f"{key.compute_capability}: use --provider tensorrt there"
        )
    return BackendError(f"TensorRT failed to build the engine: {last}", remedy)


def count_types(information: Mapping[str, Any]) -> dict[str, int]:
    """How many layers of a built engine compute in which type.

    Args:
        information: the engine inspector's JSON, built with detailed verbosity.

    Returns:
        Layers by the type of their first output ``fp16``, ``fp32``, ``int8``, ``fp8`` or
        ``other``; and ``all``.
    """
    counts = {"all": 0, "fp16": 0, "fp32": 0, "int8": 0, "fp8": 0, "other": 0}
    for layer in information.get("Layers", []):
        # With brief verbosity a layer is only its name.
        outputs = layer.get("Outputs", []) if isinstance(layer, dict) else []
        text = str(outputs[0].get("Format/Datatype", "")) if outputs else ""
        counts["all"] += 1
        counts[_type_of(text)] += 1
    return counts


def _type_of(text: str) -> str:
    # "Half" in one version, "Row major linear FP16 format" in another.
    patterns = {"fp16": r"fp16|half", "int8": r"\bint8", "fp8": r"fp8|e4m3", "fp32": r"fp32|float"}
    for name, pattern in patterns.items():
        if re.search(pattern, text, re.IGNORECASE):
            return name
    return "other"
