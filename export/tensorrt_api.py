"""The part of TensorRT's Python API that is used here, as types: its wheels carry no stubs.

Written after the docstrings of the bindings of 10.3 and 11.4; what differs between them is noted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

__all__ = ["Builder", "BuilderConfig", "Engine", "Network", "Parser", "Profile", "TensorRT", "TimingCache"]


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


class Network(Protocol):
    """INetworkDefinition."""

    num_layers: int


class Engine(Protocol):
    """ICudaEngine."""

    def create_engine_inspector(self) -> Any:
        """An IEngineInspector."""


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
        """False where it failed."""

    def get_error(self, index: int) -> Any:
        """An IParserError; its text is ``str`` of it."""


class TensorRT(Protocol):
    """The module."""

    __version__: str
    ILogger: Any
    NetworkDefinitionCreationFlag: Any  # STRONGLY_TYPED is needed in 10 and the only way in 11
    MemoryPoolType: Any
    ProfilingVerbosity: Any
    LayerInformationFormat: Any

    def Builder(self, logger: Any) -> Builder:  # noqa: N802
        """A builder."""

    def OnnxParser(self, network: Network, logger: Any) -> Parser:  # noqa: N802
        """A parser that fills a network."""

    def Runtime(self, logger: Any) -> Any:  # noqa: N802
        """Has ``deserialize_cuda_engine(bytes) -> Engine | None``."""
