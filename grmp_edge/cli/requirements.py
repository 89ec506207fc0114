"""The optional packages that commands need, checked before any work begins."""

from __future__ import annotations

import os
from importlib.util import find_spec

from grmp_edge.errors import MissingDependencyError

__all__ = ["need_export", "need_torch"]


def need_torch(purpose: str = "training") -> None:
    """Raise MissingDependencyError if a package of the extra ``train`` is not installed."""
    _need("train", purpose)


def need_export() -> None:
    """Raise MissingDependencyError if a package of the extra ``export``, or onnxruntime, is not installed."""
    _need("export", "export", "onnx")
    if find_spec("onnxruntime") is None:
        raise MissingDependencyError(
            "onnxruntime", "cpu", "the parity gate (on an NVIDIA GPU's machine: [gpu])"
        )


def _need(extra: str, purpose: str, *others: str) -> None:
    # Read when torch is loaded. Its threads wait for each other by spinning, which beside other work (a
    # camera being watched, another training) takes four times the CPU and twice as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for package in ("torch", "open_clip", "safetensors", *others):
        if find_spec(package) is None:
            raise MissingDependencyError(package, extra, purpose)
