"""What runs a graph: a small protocol, and onnxruntime behind it.

Another backend (:mod:`grmp_edge.runtime.tensorrt.backend`) is another class with the same members, chosen in
:func:`open_backend`. Every session of onnxruntime is opened by :func:`open_session`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from grmp_edge.bundle import Bundle, Graph
from grmp_edge.errors import BackendError, MissingDependencyError, UsageError, first_line
from grmp_edge.files import user_folder
from grmp_edge.install import install_line, pip_line
from grmp_edge.runtime.bound import BoundRuns
from grmp_edge.runtime.machine import check_once
from grmp_edge.runtime.plugins import PLUGIN, check_name, plugin_devices
from grmp_edge.runtime.within import within
from grmp_edge.views import checked_logits, logit

__all__ = [
    "NATIVE",
    "PROVIDERS",
    "Backend",
    "BackendOptions",
    "OnnxRuntimeBackend",
    "Runner",
    "Session",
    "asked_as",
    "bind",
    "graph_runner",
    "load_onnxruntime",
    "open_backend",
    "open_session",
    "resolve_provider",
]

# Our names for onnxruntime's execution providers.
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}

# What runs engines of its own, without onnxruntime. TensorRT is also a provider of onnxruntime.
NATIVE = ("tensorrt", "rtx")

# A graph from elsewhere may be made to run for ever, or to load for ever: constants are computed then.
# ViT-B/16 takes a third of a second on two cores. Only on the CPU: elsewhere engines are built, for minutes.
_FIRST_S, _LOAD_S, _FOR_EACH_S = 60.0, 300.0, 60.0

UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Runner = Callable[[UInt8Array], Float32Array]  # (N, size, size, 3) to (N,)


@dataclass(frozen=True)
class BackendOptions:
    """How to run a graph.

    ``provider`` is ``auto``, ``cpu``, ``cuda``, ``tensorrt``, ``rtx`` or ``plugin:NAME``
    (:mod:`grmp_edge.runtime.plugins`). Only ``auto`` may fall back to the CPU; a provider asked for by name
    that does not work is an error.
    """

    # CUDA where it works, else the CPU. Never TensorRT unasked: its engine takes minutes to build.
    provider: str = "auto"
    # None: onnxruntime's own choice, a pinned thread for each physical core. A number leaves the other
    # cores to decoding cameras or to other programs.
    threads: int | None = None
    # The CPU instead of an error where a provider asked for by name does not work. Off, since nobody notices
    # in time that a service meant for a GPU is ten times too slow.
    allow_cpu: bool = False

    def __post_init__(self) -> None:
        if self.provider.startswith(PLUGIN):
            check_name(self.provider)
        elif self.provider not in ("auto", *PROVIDERS, *NATIVE):
            names = ", ".join(dict.fromkeys(("auto", *PROVIDERS, *NATIVE)))
            raise UsageError(
                f"unknown provider {self.provider!r}", f"give --provider {names} or {PLUGIN}NAME"
            )
        if self.threads is not None and self.threads < 1:
            raise BackendError(f"{self.threads} threads cannot run a graph", "use 1 or more")


class Backend(Protocol):
    """A graph ready to run."""

    @property
    def name(self) -> str:
        """The library, such as ``onnxruntime``."""

    @property
    def provider(self) -> str:
        """Where it runs in fact: ``cpu``, ``cuda``, ``tensorrt``, ``rtx``, or a plugin's provider."""

    @property
    def fallback(self) -> str | None:
        """Why it runs on the CPU though another provider was asked for or available; else None."""

    def run(self, batch: UInt8Array) -> Float32Array:
        """Score uint8 (N, size, size, 3) RGB into float32 (N,)."""

    def read(self, batch: UInt8Array) -> Float64Array:
        """Read uint8 (N, size, size, 3) RGB into logits, float64 (N, 1 + causes), the score's first.

        Of a graph without logits they are those of :meth:`run`, to the last bit."""

    def close(self) -> None:
        """Release the graph and its memory."""


def open_backend(
    path: Path, graph: Graph, size: int, options: BackendOptions, bundle: Bundle | None = None
) -> Backend:
    """Make the graph at ``path`` ready to run and check that it reads ``size`` x ``size`` pictures.

    ``bundle`` is the bundle it belongs to. With it the provider ``tensorrt`` is native where TensorRT's
    bindings can be imported, and onnxruntime's elsewhere; and the graph is judged before its first score on
    this machine (:func:`grmp_edge.runtime.machine.check_once`).

    Raises:
        MissingDependencyError: no backend is installed; the message names the extra.
        BackendError: the provider asked for does not work here and ``options.allow_cpu`` is off, or the
            graph does not load.
        ParityError: the graph computes something else here than where it was exported.
    """
    precision = next((name for name, own in bundle.graphs.items() if own == graph), "") if bundle else ""
    try:
        if bundle and precision and options.provider in NATIVE:
            from grmp_edge.runtime.tensorrt.bindings import installed_tensorrt, load_rtx
            from grmp_edge.runtime.tensorrt.build import open_native

            trt = load_rtx() if options.provider == "rtx" else installed_tensorrt()
            if trt is not None:
                return open_native(bundle, precision, trt=trt)
        digest = bundle.graph_digest(precision) if bundle and precision else graph.sha256
        backend = OnnxRuntimeBackend(path, graph, size, options, digest)
    except BackendError as error:
        fallback = options.allow_cpu or options.provider == "auto"
        on_cpu = options.provider == "cpu" or (
            options.provider == "auto" and resolve_provider("auto") == "cpu"
        )
        if on_cpu or not fallback:
            raise
        backend = OnnxRuntimeBackend(path, graph, size, replace(options, provider="cpu"))
        backend.fallback = error.message
    if bundle and precision:
        try:
            check_once(bundle, precision, backend.raw, asked_as(backend, options.provider))
        except BaseException:
            backend.close()
            raise
    return backend


def asked_as(backend: Backend, provider: str) -> str:
    """Where a backend runs, by the name to ask for it: a plugin's own is none of ours.

    Args:
        backend: an open one.
        provider: the one that was asked for.
    """
    return provider if provider.startswith(PLUGIN) and not backend.fallback else backend.provider


class OnnxRuntimeBackend:
    """A graph run by onnxruntime. Runs from several threads at once are allowed."""

    name = "onnxruntime"
    fallback: str | None = None

    def __init__(
        self, path: Path, graph: Graph, size: int, options: BackendOptions, digest: str = ""
    ) -> None:
        """``digest`` identifies the graph's content; only TensorRT's engine cache needs it."""
        self._session: Session | None = None
        self._bound: BoundRuns | None = None
        self._ran = False
        if options.provider.startswith(PLUGIN):
            devices = plugin_devices(load_onnxruntime(), options.provider)
            session = open_session(path, options.threads, devices=devices)
            self.provider = session.get_providers()[0]
            _check_assigned(session, options.provider, self.provider)
        else:
            session = self._known(path, options, digest or graph.sha256)
        self._input, self._output, self._logits = graph.input, graph.output, graph.logits
        _check_signature(session, path, graph, size)
        self._session = session

    def _known(self, path: Path, options: BackendOptions, digest: str) -> Session:
        """A session on one of :data:`PROVIDERS`."""
        chosen = resolve_provider(options.provider)
        # The CPU stays as the last provider, for the odd shape computation a GPU provider leaves to it.
        names = dict.fromkeys([PROVIDERS[chosen], PROVIDERS["cpu"]])
        providers = {name: _provider_options(name, path, digest) for name in names}
        if chosen == "cuda" and (captured := self._with_cuda_graphs(path, options, providers)) is not None:
            self.provider = chosen
            return captured
        session = open_session(path, options.threads, providers=providers)
        used = session.get_providers()[0]
        # onnxruntime only logs that a provider fails to load, and uses the CPU.
        if used != PROVIDERS[chosen] and options.provider != "auto":
            raise BackendError(
                f"provider {chosen!r} does not work here: onnxruntime would run on {used}",
                "see what is missing with: grmp-edge doctor; or add --allow-cpu",
            )
        if used != PROVIDERS[chosen]:
            self.fallback = f"provider {chosen!r} does not load (see what is missing with: grmp-edge doctor)"
        self.provider = next((name for name, full in PROVIDERS.items() if full == used), used)
        return session

    def _with_cuda_graphs(
        self, path: Path, options: BackendOptions, providers: Mapping[str, Mapping[str, str]]
    ) -> Session | None:
        """A session that runs each batch size as one CUDA graph; None where that does not work."""
        cuda = PROVIDERS["cuda"]
        try:
            session = open_session(
                path,
                options.threads,
                providers={**providers, cuda: {**providers[cuda], "enable_cuda_graph": "1"}},
            )
            if session.get_providers()[0] != cuda:
                return None
            bound = bind(session, "cuda")
            image = session.get_inputs()[0]
            probe = np.zeros((1, *image.shape[1:]), np.uint8)
            for _ in range(3):  # plain, captured, replayed
                bound.run(probe, session.get_outputs()[0].name)
        except BackendError:  # a node is left to the CPU, or something cannot be captured
            return None
        self._bound = bound
        return session

    def run(self, batch: UInt8Array) -> Float32Array:
        """Score uint8 (N, size, size, 3) RGB into float32 (N,).

        Raises:
            BackendError: the run failed, or gave something other than N numbers in 0..1.
        """
        scores = self.raw(batch)
        # Half precision may exceed 1 by its rounding; anything further off is not a probability.
        if len(scores) != len(batch) or not np.all((scores >= -1e-3) & (scores <= 1 + 1e-3)):
            raise BackendError(
                f"the graph gave {scores.tolist()[:4]} for {len(batch)} pictures, not a number in 0..1 each",
                "export the checkpoint again, or try another --precision or --provider",
            )
        clipped: Float32Array = np.clip(scores, 0.0, 1.0)
        return clipped

    def read(self, batch: UInt8Array) -> Float64Array:
        """Read uint8 (N, size, size, 3) RGB into logits, float64 (N, 1 + causes), the score's first.

        Of a graph without logits they are those of :meth:`run`, to the last bit.

        Raises:
            BackendError: the run failed, or gave something other than finite numbers.
        """
        if not self._logits:
            return logit(self.run(batch))[:, None]
        return checked_logits(self.raw(batch, self._logits), len(batch))

    def raw(self, batch: UInt8Array, output: str = "") -> Float32Array:
        """The scores (N,), or another named output (N, ...), without checking or clipping."""
        if self._session is None:
            raise BackendError("the scorer is closed", "open another with Scorer.open")
        if self._bound is not None:
            return self._bound.run(batch, output or self._output)
        try:
            result = self._run(self._session, output or self._output, batch)
        except TimeoutError:
            raise BackendError(
                f"the graph's first run, on a batch of {len(batch)}, has not ended after "
                f"{_first_s(batch):.0f} s, and may never",
                "ask whoever made the bundle, or run a smaller network",
            ) from None
        except Exception as error:  # onnxruntime's exceptions have no common base but this
            raise BackendError(
                f"onnxruntime failed on a batch of {len(batch)}: {first_line(error)}"
            ) from None
        values = np.asarray(result, dtype=np.float32)
        return values if output else values.reshape(-1)

    def _run(self, session: Session, output: str, batch: UInt8Array) -> npt.NDArray[Any]:
        """One output. The first run of a session is bounded in time, on the CPU."""
        if self._ran or self.provider != "cpu":
            return np.asarray(session.run([output], {self._input: batch})[0])
        options = load_onnxruntime().RunOptions()
        result = within(
            _first_s(batch),
            lambda: session.run([output], {self._input: batch}, options),
            lambda: setattr(options, "terminate", True),
        )
        self._ran = True
        return np.asarray(result[0])

    def close(self) -> None:
        """Release the session and its memory."""
        if self._bound is not None:
            self._bound.close()
        self._session = None


def _first_s(batch: UInt8Array) -> float:
    return _FIRST_S + _FOR_EACH_S * len(batch)


def load_onnxruntime(provider: str = "auto") -> Any:
    """Import onnxruntime, its telemetry switched off.

    Raises:
        MissingDependencyError: it is not installed.
        BackendError: it is installed and does not load.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        gpu = provider in ("cuda", "tensorrt") or (
            provider == "auto" and shutil.which("nvidia-smi") is not None
        )
        raise MissingDependencyError("onnxruntime", "gpu" if gpu else "cpu", "scoring")
    # From 1.29 on it reports each session to its maker unless this is set before it is loaded. A camera's
    # scores are nobody else's business; whoever wants to report sets it to 0.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise BackendError(
            f"onnxruntime is installed but does not load: {first_line(error)}",
            f"reinstall it: {pip_line('install', '--force-reinstall', 'onnxruntime')}",
        ) from None


def resolve_provider(provider: str) -> str:
    """The provider to try: ``auto`` is CUDA where onnxruntime has it, else the CPU.

    Raises:
        MissingDependencyError, BackendError: there is no onnxruntime, or it does not have the provider.
    """
    ort = load_onnxruntime(provider)
    if provider not in ("auto", *PROVIDERS):
        raise BackendError(f"provider {provider!r} needs a bundle, not a graph alone", "give the bundle")
    available = ort.get_available_providers()
    if provider == "auto":
        return "cuda" if PROVIDERS["cuda"] in available else "cpu"
    if PROVIDERS[provider] not in available:
        remedy = f"run: {pip_line('uninstall', 'onnxruntime')}; {install_line('gpu')}; or add --allow-cpu"
        if provider == "tensorrt":  # the native backend needs no onnxruntime
            remedy = f"install TensorRT with its Python bindings (docs/tensorrt.md), or {remedy}"
        raise BackendError(
            f"provider {provider!r} is not in the installed onnxruntime {ort.__version__}", remedy
        )
    return provider


class Session(Protocol):
    """What is used of onnxruntime's InferenceSession, which carries no types."""

    def run(
        self, outputs: Sequence[str] | None, inputs: Mapping[str, npt.NDArray[Any]], options: Any = None
    ) -> list[Any]:
        """The named outputs, or all; ``options`` are onnxruntime's RunOptions."""

    def get_inputs(self) -> Sequence[Any]:
        """Each with a name, a type and a shape."""

    def get_outputs(self) -> Sequence[Any]:
        """As :meth:`get_inputs`."""

    def get_providers(self) -> list[str]:
        """In use, the first one preferred."""

    def end_profiling(self) -> str:
        """The path of the file that was recorded."""

    def get_provider_graph_assignment_info(self) -> Sequence[Any]:
        """The parts of the graph with the ``ep_name`` that takes each; for ``devices`` only."""


def open_session(
    model: Path | bytes,
    threads: int | None = None,
    *,
    optimize: bool = True,
    spinning: bool = False,
    providers: Mapping[str, Mapping[str, str]] | None = None,
    cpu_nodes: bool = True,
    devices: Sequence[Any] = (),
    profile: Path | None = None,
) -> Session:
    """Open a session of onnxruntime, on the CPU unless ``providers`` says otherwise.

    Args:
        model: an ONNX file, or its content.
        threads: for each operator; None is onnxruntime's choice, one for each physical core.
        optimize: False keeps every node as written, casts included.
        spinning: True, onnxruntime's default, lets the worker threads spin between two runs. That takes the
            cores from decoding the next pictures: on two busy cores it cost a quarter of the pictures a
            second, and a third more CPU time for each.
        providers: onnxruntime's names of the providers in order of preference, with their options.
        cpu_nodes: False refuses a graph of which a GPU provider would leave nodes to the CPU.
        devices: a plugin's (OrtEpDevice), instead of ``providers``; what it does not take runs on the CPU.
        profile: the beginning of a file's name, to record each operator there until ``end_profiling``.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        BackendError: the graph does not load.
    """
    ort = load_onnxruntime("cpu")
    settings = ort.SessionOptions()
    level = ort.GraphOptimizationLevel
    # ENABLE_ALL is the default already, named because the parity gate's figures were taken with it.
    settings.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    # A vision transformer is one chain of operators: nothing to run side by side, only inside each.
    settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    settings.inter_op_num_threads = 1
    settings.intra_op_num_threads = threads or 0
    if profile is not None:
        settings.enable_profiling, settings.profile_file_prefix = True, str(profile)
    if not spinning:
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not cpu_nodes:
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    # Errors come as exceptions; onnxruntime's own lines would only surround our single one.
    settings.log_severity_level = 4
    ort.set_default_logger_severity(4)
    source = str(model) if isinstance(model, Path) else model
    named: list[Any] | None = [
        (name, dict(own)) for name, own in (providers or {PROVIDERS["cpu"]: {}}).items()
    ]
    if devices:
        named = None  # they stand in the settings
        settings.add_provider_for_devices(list(devices), {})
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")

    def load() -> Any:
        # Without enable_fallback=0 onnxruntime answers a failing GPU, now or in a later run, by printing
        # to stdout and continuing on the CPU.
        return ort.InferenceSession(source, sess_options=settings, providers=named, enable_fallback=0)

    def stop() -> None:
        if hasattr(settings, "set_load_cancellation_flag"):  # onnxruntime 1.21
            settings.set_load_cancellation_flag(True)

    name = source if isinstance(source, str) else "the graph"
    on_cpu = not devices and set(providers or ()) <= {PROVIDERS["cpu"]}
    try:
        session = within(_LOAD_S, load, stop) if on_cpu else load()
    except TimeoutError:
        raise BackendError(
            f"{name}: is not loaded after {_LOAD_S:.0f} s, and may never be",
            "ask whoever made the bundle, or run a smaller network",
        ) from None
    except Exception as error:  # onnxruntime's exceptions have no common base but this
        raise BackendError(
            f"{name}: onnxruntime {ort.__version__} cannot load it: {first_line(error)}",
            "update onnxruntime, or export the checkpoint again",
        ) from None
    session.disable_fallback()  # older versions of onnxruntime do not know enable_fallback
    opened: Session = session
    return opened


def bind(session: Session, device: str) -> BoundRuns:
    """Bind a session's only input and its outputs to memory on a device, ``cuda`` or ``cpu``."""
    outputs = [(value.name, tuple(value.shape[1:])) for value in session.get_outputs()]
    return BoundRuns(load_onnxruntime(), session, session.get_inputs()[0].name, outputs, device)


def graph_runner(session: Session) -> Runner:
    """A function that runs a session with one input on a batch and gives its first output."""
    name = session.get_inputs()[0].name

    def run(batch: UInt8Array) -> Float32Array:
        return np.asarray(session.run(None, {name: batch})[0])

    return run


def _check_assigned(session: Session, asked: str, provider: str) -> None:
    """A plugin that takes nothing of a graph would leave all of it to the CPU, and nobody would notice."""
    if provider not in {part.ep_name for part in session.get_provider_graph_assignment_info()}:
        raise BackendError(
            f"{asked} takes no part of this graph: all of it would run on the CPU",
            "try another --precision or --provider, or add --allow-cpu",
        )


def _provider_options(name: str, path: Path, digest: str) -> dict[str, str]:
    """onnxruntime's options for a provider; all are strings there."""
    if name == PROVIDERS["cuda"]:
        # The default tries every convolution algorithm at every new batch size; there is one convolution.
        # TF32, on by default, keeps ten bits, and a float32 graph would fail the gate by it.
        return {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
    if name == PROVIDERS["tensorrt"]:
        # An engine takes minutes to build, and only this keeps it for the next start.
        cache = user_folder("cache") / "onnxruntime"
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


def _check_signature(session: Session, path: Path, graph: Graph, size: int) -> None:
    inputs = [(value.name, value.type, value.shape[1:]) for value in session.get_inputs()]
    outputs = [value.name for value in session.get_outputs()]
    needed = {graph.output, *([graph.logits] if graph.logits else [])}
    if inputs != [(graph.input, "tensor(uint8)", [size, size, 3])] or not needed <= set(outputs):
        seen = ", ".join(f"{value.name} {value.type} {value.shape}" for value in session.get_inputs())
        raise BackendError(
            f"{path}: reads {seen}, but the bundle promises {graph.input} uint8 (batch, {size}, {size}, 3)",
            "export the checkpoint again",
        )
