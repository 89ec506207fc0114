"""TensorRT's bindings: where they are, whether they load, and a logger for them."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any, cast

from grmp_edge.errors import BackendError, GrmpError, MissingDependencyError
from grmp_edge.runtime.tensorrt.bindings import TensorRT

__all__ = ["installed_tensorrt", "load_tensorrt", "make_logger", "version"]


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
        found = version(trt)
    except Exception as error:  # the bindings raise what the loader raises
        raise BackendError(
            f"tensorrt is installed but does not load: {' '.join(str(error).split())[:200]}",
            "install its libraries too: pip install 'grmp-edge[tensorrt]'; on a Jetson: JetPack's packages",
        ) from None
    if found < (10, 3):
        raise BackendError(
            f"TensorRT {trt.__version__} is too old", "install 10.3 or newer (JetPack 6.1 and up)"
        )
    return trt


def installed_tensorrt() -> TensorRT | None:
    """The bindings where they import and are new enough, else None: onnxruntime's provider may still work."""
    try:
        return load_tensorrt()
    except GrmpError:
        return None


def version(trt: TensorRT) -> tuple[int, int]:
    """Major and minor."""
    major, minor = [*trt.__version__.split("."), "0"][:2]
    return int(major), int(minor)


def make_logger(trt: TensorRT, messages: list[str]) -> Any:
    """A logger that keeps errors in ``messages``; the rest, thousands of lines, goes nowhere."""
    base: Any = trt.ILogger

    class Logger(base):  # type: ignore[misc]
        """TensorRT calls ``log`` from whichever thread it is in."""

        def __init__(self) -> None:
            base.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                messages.append(message)

    return Logger()
