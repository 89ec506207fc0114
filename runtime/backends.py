"""What runs a graph: a small protocol, and onnxruntime behind it.

Another backend (:mod:`grmp_edge.runtime.tensorrt.backend`) is another class with the same members, chosen in
:func:`open_backend`.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from grmp_edge.bundle import Bundle, Graph
from grmp_edge.errors import BackendError, MissingDependencyError, first_line
from grmp_edge.runtime.tensorrt.engine_cache import default_cache

__all__ = ["PROVIDERS", "Backend", "BackendOptions", "OnnxRuntimeBackend", "load_onnxruntime", "open_backend"]

# Our names for onnxruntime's execution providers.
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


@dataclass(frozen=True)
class BackendOptions:
    """How to run a graph.

    ``provider`` is ``auto``, ``cpu``, ``cuda`` or ``tensorrt``. Only ``auto`` may end up elsewhere than on
    the GPU; a provider asked for by name and not working is an error.
    """

    # CUDA where it works, else the CPU. Never TensorRT unasked: its engine takes minutes to build.
    provider: str = "auto"
    # None: onnxruntime's own choice, a pinned thread for each physical core. A number leaves the other
    # cores to decoding cameras or to neighbours.
    threads: int | None = None
    # A provider asked for by name that does not work: the CPU instead of an error. Off, since a service
    # that was to run on a GPU and is ten times too slow without a word is found out too late.
    allow_cpu: bool = False

    def __post_init__(self) -> None:
        if self.provider != "auto" and self.provider not in PROVIDERS:
            raise BackendError(f"unknown provider {self.provider!r}", f"use auto, {', '.join(PROVIDERS)}")
        if self.threads is not None and self.threads < 1:
            raise BackendError(f"{self.threads} threads cannot run a graph", "use 1 or more")


class Backend(Protocol):
    """A graph ready to run."""

    @property
    def name(self) -> str:
        """The library, such as ``onnxruntime``."""

    @property
    def provider(self) -> str:
        """Where it really runs: ``cpu``, ``cuda`` or ``tensorrt``."""

    @property
    def fallback(self) -> str | None:
        """Why it runs on the CPU though another provider was asked for, or was there to use; else None."""

    def run(self, batch: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Score uint8 (N, size, size, 3) RGB into float32 (N,)."""

    def close(self) -> None:
        """Release the graph and its memory."""


def open_backend(
    path: Path, graph: Graph, size: int, options: BackendOptions, bundle: Bundle | None = None
) -> Backend:
    """Make the graph at ``path`` ready to run and check that it reads ``size`` x ``size`` pictures.

    ``bundle`` is what it belongs to; with it the provider ``tensorrt`` is native where TensorRT's bindings
    import, and onnxruntime's elsewhere.

    Raises:
        MissingDependencyError: no backend is installed; the message names the extra.
        BackendError: the provider asked for does not work here and ``options.allow_cpu`` is off, or the
            graph does not load.
    """
    precision = next((name for name, own in bundle.graphs.items() if own == graph), "") if bundle else ""
    try:
        if bundle and precision and options.provider == "tensorrt":
            from grmp_edge.runtime.tensorrt.build import open_native
            from grmp_edge.runtime.tensorrt.tensorrt_load import installed_tensorrt

            if (trt := installed_tensorrt()) is not None:
                return open_native(bundle, precision, trt=trt)
        digest = bundle.graph_digest(precision) if bundle and precision else graph.sha256
        return OnnxRuntimeBackend(path, graph, size, options, digest)
    except BackendError as error:
        if options.provider == "cpu" or not (options.allow_cpu or options.provider == "auto"):
            raise
        backend = OnnxRuntimeBackend(path, graph, size, replace(options, provider="cpu"))
        backend.fallback = error.message
        return backend


class OnnxRuntimeBackend:
    """A graph run by onnxruntime. Runs from several threads at once are allowed."""

    name = "onnxruntime"
    fallback: str | None = None

    def __init__(
        self, path: Path, graph: Graph, size: int, options: BackendOptions, digest: str = ""
    ) -> None:
        """``digest`` stands for the graph's content; only TensorRT's engine cache needs it."""
        ort = load_onnxruntime(options.provider)
        wanted = _choose(ort, options.provider)
        self._session: Any = None
        session = _create(ort, path, options, wanted, digest or graph.sha256)
        used = session.get_providers()[0]
        # onnxruntime only logs it when a provider fails to load, and goes on with the CPU.
        if used != PROVIDERS[wanted] and options.provider != "auto":
            raise BackendError(
                f"provider {wanted!r} does not work here: onnxruntime would run on {used}",
                "see what is missing with: grmp-edge doctor; or add --allow-cpu",
            )
        if used != PROVIDERS[wanted]:
            self.fallback = f"provider {wanted!r} does not load (see what is missing with: grmp-edge doctor)"
        session.disable_fallback()  # older versions of onnxruntime do not know enable_fallback
        self.provider = next((name for name, full in PROVIDERS.items() if full == used), used)
        self._input, self._output = graph.input, graph.output
        _check_signature(session, path, graph, size)
        self._session = session

    def run(self, batch: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Score uint8 (N, size, size, 3) RGB into float32 (N,).

        Raises:
            BackendError: the run failed, or gave something other than N numbers in 0..1.
        """
        if self._session is None:
            raise BackendError("the scorer is closed", "open another with Scorer.open")
        try:
            result = self._session.run([self._output], {self._input: batch})[0]
        except Exception as error:  # onnxruntime's exceptions have no common base but this
            raise BackendError(
                f"onnxruntime failed on a batch of {len(batch)}: {first_line(error)}"
            ) from None
        scores = np.asarray(result, dtype=np.float32).reshape(-1)
        # Half precision may pass 1 by its rounding; anything further off is no probability.
        if len(scores) != len(batch) or not np.all((scores >= -1e-3) & (scores <= 1 + 1e-3)):
            raise BackendError(
                f"the graph gave {scores.tolist()[:4]} for {len(batch)} pictures, not a number in 0..1 each",
                "export the checkpoint again, or try another --precision or --provider",
            )
        clipped: npt.NDArray[np.float32] = np.clip(scores, 0.0, 1.0)
        return clipped

    def close(self) -> None:
        """Release the session and its memory."""
        self._session = None


def load_onnxruntime(provider: str = "auto") -> Any:
    """Import onnxruntime.

    Raises:
        MissingDependencyError: it is not installed.
        BackendError: it is installed and does not load.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        gpu = provider in ("cuda", "tensorrt") or (
            provider == "auto" and shutil.which("nvidia-smi") is not None
        )
        raise MissingDependencyError("onnxruntime", "gpu" if gpu else "cpu", "scoring")
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise BackendError(
            f"onnxruntime is installed but does not load: {first_line(error)}",
            "reinstall it: pip install --force-reinstall onnxruntime",
        ) from None


def _choose(ort: Any, provider: str) -> str:
    available = ort.get_available_providers()
    if provider == "auto":
        return "cuda" if PROVIDERS["cuda"] in available else "cpu"
    if PROVIDERS[provider] not in available:
        remedy = "run: pip uninstall onnxruntime; pip install 'grmp-edge[gpu]'; or add --allow-cpu"
        if provider == "tensorrt":  # which the native backend needs no onnxruntime for
            remedy = f"install TensorRT with its Python bindings (docs/tensorrt.md), or {remedy}"
        raise BackendError(
            f"provider {provider!r} is not in the installed onnxruntime {ort.__version__}", remedy
        )
    return provider


def _create(ort: Any, path: Path, options: BackendOptions, wanted: str, digest: str) -> Any:
    settings = ort.SessionOptions()
    # The default already, named because the parity gate's figures were taken with it.
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    # A vision transformer is one chain of operators: nothing to run side by side, only inside each.
    settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    settings.inter_op_num_threads = 1
    settings.intra_op_num_threads = options.threads or 0
    # Otherwise the worker threads spin while the next pictures are decoded, taking the cores from that:
    # on two busy cores spinning cost a quarter of the pictures a second and a third more CPU time each.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # What matters comes as an exception; onnxruntime's own lines would only surround our single one.
    settings.log_severity_level = 4
    ort.set_default_logger_severity(4)
    # The CPU stays as the last provider, for the odd shape computation a GPU provider leaves to it.
    names = dict.fromkeys([PROVIDERS[wanted], PROVIDERS["cpu"]])
    providers = [(name, _provider_options(name, path, digest)) for name in names]
    try:
        # Without enable_fallback=0 onnxruntime answers a failing GPU, now or in a later run, by printing
        # to stdout and going on with the CPU.
        return ort.InferenceSession(str(path), sess_options=settings, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions have no common base but this
        raise BackendError(
            f"{path}: onnxruntime {ort.__version__} cannot load it: {first_line(error)}",
            "update onnxruntime, or export the checkpoint again",
        ) from None


def _provider_options(name: str, path: Path, digest: str) -> dict[str, str]:
    """onnxruntime's options for a provider; all are strings there."""
    if name == PROVIDERS["cuda"]:
        # The default tries every convolution algorithm at every new batch size; there is one convolution.
        return {"cudnn_conv_algo_search": "HEURISTIC"}
    if name == PROVIDERS["tensorrt"]:
        # An engine takes minutes to build, and only this keeps it for the next start.
        cache = default_cache() / "onnxruntime"
        return {
            "trt_engine_cache_enable": "1",
            # A folder for each graph: onnxruntime names an engine after the graph's names and shapes, so
            # that it would take the engine of one bundle for another with other weights.
            "trt_engine_cache_path": str(cache / "engines" / digest[:16]),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(cache / "timings"),
            # Where the file has half types they must be allowed; its norms are float32 and must stay so.
            "trt_fp16_enable": "1" if path.name.endswith(".fp16.onnx") else "0",
            "trt_layer_norm_fp32_fallback": "1",
        }
    return {}


def _check_signature(session: Any, path: Path, graph: Graph, size: int) -> None:
    inputs = {value.name: value for value in session.get_inputs()}
    outputs = {value.name: value for value in session.get_outputs()}
    found = inputs.get(graph.input)
    if (
        found is None
        or len(inputs) != 1
        or graph.output not in outputs
        or found.type != "tensor(uint8)"
        or found.shape[1:] != [size, size, 3]
    ):
        seen = ", ".join(f"{value.name} {value.type} {value.shape}" for value in session.get_inputs())
        raise BackendError(
            f"{path}: reads {seen}, but the bundle promises {graph.input} uint8 (batch, {size}, {size}, 3)",
            "export the checkpoint again",
        )
