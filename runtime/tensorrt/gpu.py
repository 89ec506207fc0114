"""Which GPU this is, asked of NVIDIA's driver itself: the same three calls on servers and on Jetsons."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from grmp_edge.errors import BackendError

__all__ = ["Gpu", "find_gpu"]

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR in cuda.h


@dataclass(frozen=True)
class Gpu:
    """A device as engines depend on it."""

    name: str
    compute_capability: str  # such as 8.7


def find_gpu(index: int = 0) -> Gpu:
    """Ask the driver; ``index`` counts as CUDA_VISIBLE_DEVICES leaves them.

    Raises:
        BackendError: there is no driver or no such device.
    """
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise BackendError(
            "no NVIDIA driver on this machine (libcuda.so.1 does not load)",
            "build on the device that will run the engine, or see: grmp-edge doctor",
        ) from None
    device, value = ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    _check(cuda.cuInit(0), "cuInit")
    _check(cuda.cuDeviceGet(ctypes.byref(device), index), "cuDeviceGet")
    _check(cuda.cuDeviceGetName(name, len(name), device), "cuDeviceGetName")
    capability = []
    for attribute in (_MAJOR, _MINOR):
        _check(cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device), "cuDeviceGetAttribute")
        capability.append(value.value)
    return Gpu(name.value.decode("utf-8", "replace"), "{}.{}".format(*capability))


def _check(status: int, call: str) -> None:
    if status:
        raise BackendError(f"the NVIDIA driver's {call} failed with status {status}", "see: nvidia-smi")
