"""A TensorRT engine run natively: with TensorRT and the driver alone, neither torch nor onnxruntime.

There is one stream, page-locked memory for input and output, and for each batch size in use an execution
context with a CUDA graph of copy, network and copy, so that a run is a single launch. NVIDIA's guide asks for
one context per graph: setting another shape changes what a captured graph of the same context relies on. The
contexts share one scratch memory, which is safe because a lock admits one run at a time.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from grmp_edge.bundle import Graph
from grmp_edge.errors import BackendError
from grmp_edge.runtime.tensorrt.bindings import Context, Engine, TensorRT, is_rtx, make_logger
from grmp_edge.runtime.tensorrt.cuda import CudaDriver, DeviceBuffer, PinnedBuffer
from grmp_edge.runtime.tensorrt.engine_cache import Profile
from grmp_edge.views import checked_logits, logit

__all__ = ["NativeConfig", "NativeDetails", "TensorRTBackend"]

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class NativeConfig:
    """How an engine is run."""

    # Hundreds of kernel launches cost the CPU more than a small batch costs the GPU; a graph is one launch.
    cuda_graphs: bool = True
    # Batch sizes kept ready. Cameras share batches of any size up to 8; more would only occupy memory.
    batch_sizes: int = 8

    def __post_init__(self) -> None:
        if self.batch_sizes < 1:
            raise BackendError(f"{self.batch_sizes} batch sizes", "keep 1 or more ready")


class NativeDetails(TypedDict):
    """What a backend has in use."""

    batches: list[int]  # the smallest, best and largest that the engine takes
    cuda_graphs: list[int]  # batch sizes with a captured graph
    cuda_graphs_refused: str | None  # why capturing was given up


@dataclass
class _Ready:
    """One batch size in use."""

    context: Context
    runs: int = 0
    graph: int = 0  # captured, or 0


class TensorRTBackend:
    """An engine ready to run.

    Several threads may run it; they take turns, and ``close`` waits for the current run. ``close`` frees all
    memory on the device, without waiting for the garbage collector.
    """

    fallback: str | None = None  # it never runs anywhere else

    def __init__(
        self,
        plan: bytes,
        graph: Graph,
        size: int,
        trt: TensorRT,
        config: NativeConfig | None = None,
        cuda: CudaDriver | None = None,
    ) -> None:
        """Deserialise ``plan``, an engine of the bundle's ``graph`` for ``size`` x ``size`` pictures.

        Raises:
            BackendError: it is not an engine for this TensorRT and GPU, its inputs and outputs are not those
                of the bundle, or the GPU is out of memory.
        """
        self.provider = "rtx" if is_rtx(trt) else "tensorrt"
        self.name = f"TensorRT{'-RTX' if is_rtx(trt) else ''} {trt.__version__} native"
        self.config = config or NativeConfig()
        self.graphs_refused = "" if self.config.cuda_graphs else "not asked for"
        self._trt, self._lock, self._closed = trt, threading.Lock(), False
        self._messages: list[str] = []
        self._ready: OrderedDict[int, _Ready] = OrderedDict()
        self._input, self._output, self._logits, self._size = graph.input, graph.output, graph.logits, size
        self._shapes: dict[str, tuple[int, ...]] = {}  # of the engine's outputs, by name, behind the batch
        self._results: dict[str, tuple[PinnedBuffer, DeviceBuffer]] = {}  # of the engine's outputs, by name
        self._buffers: list[DeviceBuffer | PinnedBuffer] = []
        self._stream = 0
        self._cuda = cuda or CudaDriver()
        # Kept alive: all of TensorRT's objects hold a bare pointer to the logger.
        self._logger = make_logger(trt, self._messages)
        self._runtime: Any = None
        self._engine: Engine | None = None
        try:
            with self._cuda.current():
                self._runtime = trt.Runtime(self._logger)
                self._engine = self._runtime.deserialize_cuda_engine(plan)
                if self._engine is None:
                    raise BackendError(
                        f"TensorRT {trt.__version__} cannot load the engine: {self._last()}",
                        "build it again on this machine: grmp-edge build BUNDLE --rebuild",
                    )
                self.profile = self._check()
                self._allocate()
        except BaseException:
            self.close()
            raise

    @property
    def details(self) -> NativeDetails:
        """What is in use."""
        with self._lock:
            captured = sorted(batch for batch, ready in self._ready.items() if ready.graph)
        return {
            "batches": [self.profile.smallest, self.profile.best, self.profile.largest],
            "cuda_graphs": captured,
            "cuda_graphs_refused": self.graphs_refused or None,
        }

    def run(self, batch: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Score uint8 (N, size, size, 3) RGB into float32 (N,), of any N; see :meth:`raw`.

        Raises:
            BackendError: the run failed, or gave something other than numbers in 0..1.
        """
        scores = self.raw(batch)
        # Half precision may exceed 1 by its rounding; anything further off is not a probability.
        if not np.all((scores >= -1e-3) & (scores <= 1 + 1e-3)):
            raise BackendError(
                f"the engine gave {scores.tolist()[:4]} for {len(batch)} pictures, not a number in 0..1 each",
                "build it again with --rebuild, or try another --precision or --provider",
            )
        clipped: npt.NDArray[np.float32] = np.clip(scores, 0.0, 1.0)
        return clipped

    def read(self, batch: npt.NDArray[np.uint8]) -> Float64Array:
        """Read uint8 (N, size, size, 3) RGB into logits, float64 (N, 1 + causes), the score's first.

        Of a graph without logits they are those of :meth:`run`, to the last bit.

        Raises:
            BackendError: the run failed, or gave something other than finite numbers.
        """
        if not self._logits:
            return logit(self.run(batch))[:, None]
        return checked_logits(self.raw(batch, self._logits), len(batch))

    def raw(self, batch: npt.NDArray[np.uint8], output: str = "") -> npt.NDArray[np.float32]:
        """The scores (N,), or another named output (N, ...), without checking or clipping.

        Batches too large for the engine are run in parts; those too small are filled up with their last
        picture. A picture's score does not depend on its neighbours.
        """
        if batch.dtype != np.uint8 or batch.shape[1:] != (self._size, self._size, 3):
            raise BackendError(
                f"pictures {batch.dtype} {batch.shape} for an engine that reads uint8 "
                f"(batch, {self._size}, {self._size}, 3)"
            )
        with self._lock:
            if self._closed:
                raise BackendError("the scorer is closed", "open another with Scorer.open")
            output = output or self._output
            if not len(batch):
                return np.zeros((0, *self._results[output][0].array.shape[1:]), np.float32)
            largest = self.profile.largest
            with self._cuda.current():
                parts = [self._part(batch[at : at + largest], output) for at in range(0, len(batch), largest)]
        return np.concatenate(parts)

    def close(self) -> None:
        """Free everything on the device and in page-locked memory. A second call does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            with suppress(BackendError), self._cuda.current():
                if self._stream:
                    self._free(lambda: self._cuda.synchronize(self._stream))
                while self._ready:
                    self._free(lambda: self._forget(self._ready.popitem()[1]))
                # In this order: each of TensorRT's objects must go before the one that made it.
                self._engine = None
                self._runtime = None
                for buffer in self._buffers:
                    self._free(buffer.free)
                if self._stream:
                    self._free(lambda: self._cuda.destroy_stream(self._stream))
            self._free(self._cuda.close)

    def _free(self, step: Callable[[], None]) -> None:
        # After a fault on the device every call fails, and the fault was raised where it happened.
        with suppress(BackendError):
            step()

    # No local variable refers to the engine or a context: an exception's traceback would keep them alive
    # longer than the objects that made them.

    @property
    def _built(self) -> Engine:
        assert self._engine is not None
        return self._engine

    def _check(self) -> Profile:
        """Compare the engine's inputs and outputs with the bundle's; returns the batch sizes it takes."""
        trt = self._trt
        names = [self._built.get_tensor_name(index) for index in range(self._built.num_io_tensors)]
        outputs = [self._output, *([self._logits] if self._logits else [])]
        if sorted(names) != sorted([self._input, *outputs]):
            raise self._other(f"has the tensors {', '.join(names)}")
        for name, mode, dtype, axes in (
            (self._input, trt.TensorIOMode.INPUT, trt.DataType.UINT8, 4),
            (self._output, trt.TensorIOMode.OUTPUT, trt.DataType.FLOAT, 1),
            *((name, trt.TensorIOMode.OUTPUT, trt.DataType.FLOAT, 2) for name in outputs[1:]),
        ):
            actual, kind = tuple(self._built.get_tensor_shape(name)), self._built.get_tensor_dtype(name)
            fits = len(actual) == axes and (axes < 4 or actual[1:] == (self._size, self._size, 3))
            if self._built.get_tensor_mode(name) != mode or kind != dtype or not fits:
                raise self._other(f"has {name} as {kind} {actual}")
            if mode == trt.TensorIOMode.OUTPUT:
                self._shapes[name] = actual[1:]
        shapes = self._built.get_tensor_profile_shape(self._input, 0)
        smallest, best, largest = (int(shape[0]) for shape in shapes)
        return Profile(smallest, best, largest)

    def _other(self, words: str) -> BackendError:
        return BackendError(f"the engine {words}, unlike the bundle's graph", "build it again with --rebuild")

    def _allocate(self) -> None:
        cuda, count = self._cuda, self.profile.largest
        self._stream = cuda.create_stream()
        # Each is registered at once, so that close frees it if the next one fails. An engine that needs no
        # scratch memory still gets an address.
        self._scratch = self._register(DeviceBuffer(cuda, max(int(self._built.device_memory_size_v2), 256)))
        self._host_in = self._register(PinnedBuffer(cuda, (count, self._size, self._size, 3), np.uint8))
        self._device_in = self._register(DeviceBuffer(cuda, self._host_in.size))
        for name, shape in self._shapes.items():
            host = self._register(PinnedBuffer(cuda, (count, *shape), np.float32))
            self._results[name] = host, self._register(DeviceBuffer(cuda, host.size))

    def _register(self, buffer: Any) -> Any:
        self._buffers.append(buffer)
        return buffer

    def _part(self, batch: npt.NDArray[np.uint8], output: str) -> npt.NDArray[np.float32]:
        count = max(len(batch), self.profile.smallest)
        host = self._host_in.array
        host[: len(batch)] = batch
        host[len(batch) : count] = batch[-1]
        ready = self._take(count)
        # The first run of a size includes TensorRT's own set-up, which cannot be captured; and a size that
        # never returns needs no graph.
        if not ready.graph and ready.runs and not self.graphs_refused:
            try:
                ready.graph = self._cuda.capture(self._stream, lambda: self._queue(ready, count))
            except BackendError as error:
                self.graphs_refused = error.message
        if ready.graph:
            self._cuda.launch(ready.graph, self._stream)
        else:
            self._queue(ready, count)
        self._cuda.synchronize(self._stream)
        ready.runs += 1
        result: npt.NDArray[np.float32] = self._results[output][0].array[: len(batch)].copy()
        return result

    def _queue(self, ready: _Ready, count: int) -> None:
        """Queue copy in, run and copy out, without waiting; this is also what a graph captures."""
        cuda, stream = self._cuda, self._stream
        cuda.copy_in(self._device_in, self._host_in, count * self._host_in.array[0].nbytes, stream)
        del self._messages[:]
        if not ready.context.execute_async_v3(stream):
            raise BackendError(
                f"TensorRT failed on a batch of {count}: {self._last()}",
                "build the engine again with --rebuild, or try another --provider",
            )
        for host, device in self._results.values():
            cuda.copy_out(host, device, count * host.array[0].nbytes, stream)

    def _take(self, count: int) -> _Ready:
        """The context of a batch size, made if needed; the least recently used one makes room for it."""
        if count in self._ready:
            self._ready.move_to_end(count)
            return self._ready[count]
        while len(self._ready) >= self.config.batch_sizes:
            self._forget(self._ready.popitem(last=False)[1])
        ready = _Ready(self._context(count))
        self._ready[count] = ready
        return ready

    def _context(self, count: int) -> Context:
        del self._messages[:]
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._built.create_execution_context(strategy)
        if context is None:
            raise BackendError(
                f"TensorRT cannot make the engine ready: {self._last()}",
                "stop other programs on the GPU, or build for smaller batches",
            )
        context.set_device_memory(self._scratch.pointer, self._scratch.size)
        if (
            context.set_input_shape(self._input, (count, self._size, self._size, 3))
            and context.set_tensor_address(self._input, self._device_in.pointer)
            and all(context.set_tensor_address(name, of[1].pointer) for name, of in self._results.items())
            and not context.infer_shapes()
            and all(
                tuple(context.get_tensor_shape(name)) == (count, *shape)
                for name, shape in self._shapes.items()
            )
        ):
            return context
        del context
        raise BackendError(
            f"the engine does not take a batch of {count}: {self._last()}", "build it again with --rebuild"
        )

    def _forget(self, ready: _Ready) -> None:
        graph, ready.graph = ready.graph, 0
        del ready.context  # the last reference: it is destroyed here
        if graph:
            self._cuda.destroy_graph(graph)

    def _last(self) -> str:
        return " ".join(self._messages[-1].split())[:300] if self._messages else "no reason given"
