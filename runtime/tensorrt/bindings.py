"""TensorRT's Python bindings: loading them, a logger for them, and types of the part of the API used here.

Their wheels carry no stubs. The types were written from the docstrings of the bindings of 10.3 and 11.4, and
of TensorRT-RTX 1.7, which is the same API for GeForce and RTX cards; differences are noted.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any, Protocol, cast

from grmp_edge.errors import BackendError, GrmpError, MissingDependencyError, first_line
from grmp_edge.install import install_line, pip_line

__all__ = [
    "Builder",
    "BuilderConfig",
    "Context",
    "Engine",
    "Network",
    "Parser",
    "Profile",
    "Runtime",
    "TensorRT",
    "TimingCache",
    "installed_tensorrt",
    "is_rtx",
    "load_rtx",
    "load_tensorrt",
    "make_logger",
    "version",
]


class TimingCache(Protocol):
    """ITimingCache."""

    def serialize(self) -> Any:
        """An IHostMemory, which has the buffer protocol."""


class Profile(Protocol):
    """IOptimizationProfile."""

    def set_shape(self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> None:
        """Raises ValueError where the three do not fit together."""


class BuilderConfig(Protocol):
    """IBuilderConfig."""

    profiling_verbosity: Any

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        """In bytes."""

    def add_optimization_profile(self, profile: Profile) -> int:
        """Its index, or -1 where it is not valid."""

    def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache:
        """From bytes; no bytes make an empty one."""

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        """False where the cache is of another device or version."""

    def get_timing_cache(self) -> TimingCache:
        """With the timings of the last build."""

    def clear_flag(self, flag: Any) -> None:
        """Clear a BuilderFlag; TF32 is set by default."""


class Network(Protocol):
    """INetworkDefinition."""

    num_layers: int

    def get_layer(self, index: int) -> Any:
        """An ILayer; its outputs' types are known, since the network is strongly typed."""


class Context(Protocol):
    """IExecutionContext. It must not outlive its engine, nor the memory it was given."""

    def set_device_memory(self, memory: int, size: int) -> None:
        """Scratch memory for a USER_MANAGED context: 256-byte aligned, at least device_memory_size_v2."""

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        """False where the shape is outside the profile."""

    def get_tensor_shape(self, name: str) -> Sequence[int]:
        """With -1 for sizes not known yet."""

    def infer_shapes(self) -> list[str]:
        """Names of tensors that are not fully specified; empty where it can run."""

    def set_tensor_address(self, name: str, memory: int) -> bool:
        """A device address, which must stay valid until the stream has been synchronised."""

    def execute_async_v3(self, stream_handle: int) -> bool:
        """Queue a run; False where it failed, with the reason in the log."""


class Engine(Protocol):
    """ICudaEngine. It must not outlive its runtime."""

    num_io_tensors: int
    device_memory_size_v2: int  # bytes of scratch memory that a context needs

    def create_engine_inspector(self) -> Any:
        """An IEngineInspector."""

    def get_tensor_name(self, index: int) -> str:
        """Of an input or output."""

    def get_tensor_mode(self, name: str) -> Any:
        """A TensorIOMode."""

    def get_tensor_dtype(self, name: str) -> Any:
        """A DataType."""

    def get_tensor_shape(self, name: str) -> Sequence[int]:
        """With -1 for free dimensions."""

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> Sequence[Sequence[int]]:
        """The smallest, the best and the largest shape."""

    def create_execution_context(self, strategy: Any = ...) -> Context | None:
        """``strategy`` is an ExecutionContextAllocationStrategy; None where memory was short."""


class Runtime(Protocol):
    """IRuntime. The logger must outlive it."""

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
        """None where the bytes are not an engine of this version and device."""


class Builder(Protocol):
    """Builder."""

    def create_network(self, flags: int = 0) -> Network:
        """``flags`` are NetworkDefinitionCreationFlag as bits."""

    def create_builder_config(self) -> BuilderConfig:
        """An empty one."""

    def create_optimization_profile(self) -> Profile:
        """An empty one."""

    def build_serialized_network(self, network: Network, config: BuilderConfig) -> Any:
        """An IHostMemory, or None where it failed, with the reason in the log."""


class Parser(Protocol):
    """OnnxParser."""

    num_errors: int

    def parse_from_file(self, model: str) -> bool:
        """False where it failed; data files are searched beside the model."""

    def get_error(self, index: int) -> Any:
        """An IParserError; its text is ``str`` of it."""


class TensorRT(Protocol):
    """The module."""

    __version__: str
    ILogger: Any
    # STRONGLY_TYPED is needed in 10, and the only way in 11 and in TensorRT-RTX.
    NetworkDefinitionCreationFlag: Any
    MemoryPoolType: Any
    BuilderFlag: Any
    ProfilingVerbosity: Any
    LayerInformationFormat: Any
    DataType: Any
    TensorIOMode: Any
    ExecutionContextAllocationStrategy: Any

    def Builder(self, logger: Any) -> Builder:  # noqa: N802
        """A builder."""

    def OnnxParser(self, network: Network, logger: Any) -> Parser:  # noqa: N802
        """A parser that fills a network."""

    def Runtime(self, logger: Any) -> Runtime:  # noqa: N802
        """Deserialises engines."""


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
        installed = version(trt)
    except Exception as error:  # the bindings raise what the loader raises
        raise BackendError(
            f"tensorrt is installed but does not load: {' '.join(str(error).split())[:200]}",
            f"install its libraries too: {install_line('tensorrt')}; on a Jetson: JetPack's packages",
        ) from None
    if installed < (10, 3):
        raise BackendError(
            f"TensorRT {trt.__version__} is too old", "install 10.3 or newer (JetPack 6.1 and up)"
        )
    return trt


def load_rtx() -> TensorRT:
    """Import TensorRT-RTX.

    Raises:
        MissingDependencyError: one of its two wheels is not installed.
        BackendError: it does not load.
    """
    for module, package in _RTX.items():
        if importlib.util.find_spec(module) is None:
            raise MissingDependencyError(package, "rtx", "an engine of TensorRT-RTX")
    try:
        # The plugin of onnxruntime brings the libraries, and loads them where the bindings find them.
        *_, trt = [importlib.import_module(module) for module in _RTX]
        version(cast(TensorRT, trt))
    except Exception as error:  # the bindings raise what the loader raises
        raise BackendError(
            f"TensorRT-RTX is installed but does not load: {first_line(error)}",
            f"reinstall both of its wheels: {pip_line('uninstall', *_RTX.values())}; {install_line('rtx')}",
        ) from None
    return cast(TensorRT, trt)


# Modules and the packages that bring them, in the order in which they load.
_RTX = {
    "onnxruntime_ep_nv_tensorrt_rtx": "onnxruntime-ep-nv-tensorrt-rtx-cu13",
    "tensorrt_rtx_bindings": "tensorrt-rtx-cu13-bindings",
}


def is_rtx(trt: TensorRT) -> bool:
    """Whether it is TensorRT-RTX, which counts its versions from 1."""
    return version(trt) < (10, 0)


def installed_tensorrt() -> TensorRT | None:
    """The bindings where they load and are new enough; else None: onnxruntime's provider may still work."""
    try:
        return load_tensorrt()
    except GrmpError:
        return None


def version(trt: TensorRT) -> tuple[int, int]:
    """Major and minor."""
    major, minor = [*trt.__version__.split("."), "0"][:2]
    return int(major), int(minor)


def make_logger(trt: TensorRT, messages: list[str]) -> Any:
    """A logger that appends errors to ``messages`` and drops the rest, which is thousands of lines."""
    base: Any = trt.ILogger

    class Logger(base):  # type: ignore[misc]
        """TensorRT calls ``log`` from any of its threads."""

        def __init__(self) -> None:
            base.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                messages.append(message)

    return Logger()
