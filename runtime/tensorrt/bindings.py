"""The part of TensorRT's Python API that is used here, as types: its wheels carry no stubs.

Written after the docstrings of the bindings of 10.3 and 11.4; what differs between them is noted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

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
        """From bytes, none for an empty one."""

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        """False where the cache is of another device or version."""

    def get_timing_cache(self) -> TimingCache:
        """As it is after a build."""

    def clear_flag(self, flag: Any) -> None:
        """Take a BuilderFlag back; TF32 is set by default."""


class Network(Protocol):
    """INetworkDefinition."""

    num_layers: int


class Context(Protocol):
    """IExecutionContext. It must not outlive its engine, nor memory that it was told of its use."""

    def set_device_memory(self, memory: int, size: int) -> None:
        """Scratch memory for a USER_MANAGED context: 256-byte aligned, at least device_memory_size_v2."""

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        """False where the shape is outside the profile."""

    def get_tensor_shape(self, name: str) -> Sequence[int]:
        """With -1 for what is not known yet."""

    def infer_shapes(self) -> list[str]:
        """Names of tensors that are insufficiently specified; none where it can be run."""

    def set_tensor_address(self, name: str, memory: int) -> bool:
        """A device address, which must stay valid until the stream has been synchronised."""

    def execute_async_v3(self, stream_handle: int) -> bool:
        """Queue a run; False where it failed, and the logger was told why."""


class Engine(Protocol):
    """ICudaEngine. It must not outlive its runtime."""

    num_io_tensors: int
    device_memory_size_v2: int  # of scratch memory that a context needs

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
        """An IHostMemory, or None where it failed and the logger was told why."""


class Parser(Protocol):
    """OnnxParser."""

    num_errors: int

    def parse_from_file(self, model: str) -> bool:
        """False where it failed; data files are looked for beside the model."""

    def get_error(self, index: int) -> Any:
        """An IParserError; its text is ``str`` of it."""


class TensorRT(Protocol):
    """The module."""

    __version__: str
    ILogger: Any
    NetworkDefinitionCreationFlag: Any  # STRONGLY_TYPED is needed in 10 and the only way in 11
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
