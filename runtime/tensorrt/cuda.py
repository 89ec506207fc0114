"""What scoring needs of CUDA: the device's name, memory, one stream and graphs, through the driver alone.

libcuda.so.1 comes with every NVIDIA driver, on servers as on Jetsons, and its versioned names never change.
The runtime library (libcudart) has another file name for each CUDA and is often not on the loader's path, and
the bindings of ``cuda-python`` are one more package. TensorRT works in the same primary context either way.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import POINTER, byref, c_char, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from grmp_edge.errors import BackendError

__all__ = ["CudaDriver", "DeviceBuffer", "Gpu", "PinnedBuffer", "find_gpu"]

_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: never waits for what others do in the default stream
# CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may go on allocating while this one captures.
_THREAD_LOCAL = 1
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR

# Arguments as cuda.h declares them; all give a CUresult. The names with _v2 are those that cuda.h maps the
# plain ones to. CUdeviceptr is 64 bits wide; the handles are pointers.
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (POINTER(c_char), c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (POINTER(c_void_p),),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemAllocHost_v2": (POINTER(c_void_p), c_size_t),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cuGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_uint64),
    "cuGraphDestroy": (c_void_p,),
    "cuGraphExecDestroy": (c_void_p,),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
}


@dataclass(frozen=True)
class Gpu:
    """A device as engines depend on it."""

    name: str
    compute_capability: str  # such as 8.7


def find_gpu(index: int = 0, library: Any = None) -> Gpu:
    """The GPU ``index`` as CUDA_VISIBLE_DEVICES counts; ``library`` stands in for libcuda in tests.

    Raises:
        BackendError: there is no driver or no such device.
    """
    driver = _Driver(library)
    device, value = c_int(), c_int()
    name = ctypes.create_string_buffer(256)
    driver.call("cuInit", 0)
    driver.call("cuDeviceGet", byref(device), index)
    driver.call("cuDeviceGetName", name, len(name), device)
    capability = []
    for attribute in (_MAJOR, _MINOR):
        driver.call("cuDeviceGetAttribute", byref(value), attribute, device)
        capability.append(value.value)
    return Gpu(name.value.decode("utf-8", "replace"), "{}.{}".format(*capability))


class _Driver:
    """libcuda with its prototypes."""

    def __init__(self, library: Any = None) -> None:
        self.library = library if library is not None else _load()
        for name, arguments in _SIGNATURES.items():
            try:
                function = getattr(self.library, name)
            except AttributeError:
                raise BackendError(
                    f"the NVIDIA driver has no {name}: it is older than CUDA 11.4", "update the driver"
                ) from None
            function.argtypes, function.restype = arguments, c_int

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function.

        Raises:
            BackendError: it did not give CUDA_SUCCESS.
        """
        status = getattr(self.library, name)(*arguments)
        if status == 0:
            return
        text = c_char_p()
        self.library.cuGetErrorName(status, byref(text))
        words = text.value.decode("ascii", "replace") if text.value else f"status {status}"
        if status == _OUT_OF_MEMORY:
            raise BackendError(
                f"the GPU's memory is not enough ({name}: {words})",
                "stop other programs on the GPU, or build for smaller batches: grmp-edge build --batch 1,1,1",
            )
        raise BackendError(f"the NVIDIA driver's {name} failed with {words}", "see: nvidia-smi")


class CudaDriver:
    """One device through the driver, its primary context retained until :meth:`close`.

    The driver has a current context for each thread: every call except ``close`` belongs inside
    :meth:`current`. Handles and addresses are plain integers.
    """

    def __init__(self, index: int = 0, library: Any = None) -> None:
        """Open device ``index`` as CUDA_VISIBLE_DEVICES counts; ``library`` stands in for libcuda in tests.

        Raises:
            BackendError: there is no driver, it is too old, or no such device.
        """
        driver = _Driver(library)
        self._library, self._call = driver.library, driver.call
        device, context = c_int(), c_void_p()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", byref(device), index)
        self._call("cuDevicePrimaryCtxRetain", byref(context), device)
        self._device, self._context = device.value, context.value

    def close(self) -> None:
        """Release the context; nothing made in it may be used afterwards. A second call does nothing."""
        if self._context is not None:
            self._context = None
            self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the context current in this thread, and restore the previous one afterwards.

        Raises:
            BackendError: it was closed.
        """
        if self._context is None:
            raise BackendError("the CUDA context is closed", "open another scorer")
        self._call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent_v2", byref(c_void_p()))

    def create_stream(self) -> int:
        """A new stream; in the default one TensorRT would synchronise the whole device."""
        stream = c_void_p()
        self._call("cuStreamCreate", byref(stream), _NON_BLOCKING)
        return stream.value or 0

    def destroy_stream(self, stream: int) -> None:
        """Destroy a stream; the driver finishes the queued work first."""
        self._call("cuStreamDestroy_v2", stream)

    def synchronize(self, stream: int) -> None:
        """Wait for the queued work; an error in it is raised here."""
        self._call("cuStreamSynchronize", stream)

    def copy_in(self, target: DeviceBuffer, source: PinnedBuffer, size: int, stream: int) -> None:
        """Queue a copy of the first ``size`` bytes to the device."""
        self._call("cuMemcpyHtoDAsync_v2", target.pointer, source.pointer, size, stream)

    def copy_out(self, target: PinnedBuffer, source: DeviceBuffer, size: int, stream: int) -> None:
        """Queue a copy of the first ``size`` bytes from the device."""
        self._call("cuMemcpyDtoHAsync_v2", target.pointer, source.pointer, size, stream)

    def capture(self, stream: int, work: Callable[[], None]) -> int:
        """Record what ``work`` queues as a graph, without running it; :meth:`launch` runs the graph as one.

        Returns:
            The executable graph, to be freed with :meth:`destroy_graph`.

        Raises:
            BackendError: something in it cannot be captured. The stream stays usable.
        """
        graph, made = c_void_p(), c_void_p()
        self._call("cuStreamBeginCapture_v2", stream, _THREAD_LOCAL)
        try:
            work()
        except BaseException:
            # The stream stays in capture and refuses work until this call, which is expected to fail too.
            if not self._library.cuStreamEndCapture(stream, byref(graph)) and graph.value:
                self._library.cuGraphDestroy(graph)
            raise
        self._call("cuStreamEndCapture", stream, byref(graph))
        try:
            self._call("cuGraphInstantiateWithFlags", byref(made), graph, 0)
        finally:
            self._call("cuGraphDestroy", graph)
        return made.value or 0

    def launch(self, graph: int, stream: int) -> None:
        """Queue a captured graph."""
        self._call("cuGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        """Free a captured graph."""
        self._call("cuGraphExecDestroy", graph)


class DeviceBuffer:
    """Memory on the device, aligned to at least 256 bytes; to be freed in the context it was allocated in."""

    def __init__(self, cuda: CudaDriver, size: int) -> None:
        self._cuda, self.size = cuda, size
        pointer = c_uint64()
        cuda._call("cuMemAlloc_v2", byref(pointer), size)
        self.pointer = pointer.value

    def free(self) -> None:
        """Free the memory. A second call does nothing."""
        if self.pointer:
            pointer, self.pointer = self.pointer, 0
            self._cuda._call("cuMemFree_v2", pointer)


class PinnedBuffer:
    """Page-locked host memory, which the device copies from and to without the CPU; ``array`` is a view."""

    def __init__(self, cuda: CudaDriver, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        self._cuda = cuda
        self.size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        pointer = c_void_p()
        cuda._call("cuMemAllocHost_v2", byref(pointer), self.size)
        self.pointer = pointer.value or 0
        memory = (ctypes.c_uint8 * self.size).from_address(self.pointer)
        self.array: npt.NDArray[Any] = np.ctypeslib.as_array(memory).view(dtype).reshape(shape)

    def free(self) -> None:
        """Free the memory; ``array`` must not be used afterwards. A second call does nothing."""
        if self.pointer:
            pointer, self.pointer = self.pointer, 0
            self.array = np.zeros(0, self.array.dtype)
            self._cuda._call("cuMemFreeHost", pointer)


def _load() -> Any:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise BackendError(
            "no NVIDIA driver on this machine (libcuda.so.1 does not load)",
            "run it on the device that has the GPU, or see: grmp-edge doctor",
        ) from None
