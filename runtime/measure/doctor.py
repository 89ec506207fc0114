"""Which parts of grmp-edge work on this machine, tried out one by one, and what to install for the others."""

from __future__ import annotations

import importlib
import importlib.util
import platform
import shutil
import subprocess
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal

import numpy as np

from grmp_edge import __version__
from grmp_edge.errors import GrmpError, MissingDependencyError
from grmp_edge.install import install_line, pip_line, where_from
from grmp_edge.runtime.backends import PROVIDERS, load_onnxruntime, open_session
from grmp_edge.runtime.measure.probe import FLOAT, operator_graph
from grmp_edge.runtime.tensorrt.bindings import load_rtx

__all__ = ["Part", "can_score", "examine"]

# Looked up by their metadata alone: importing torch takes seconds.
_EXTRAS = {
    "train": ("torch", "open_clip_torch", "safetensors"),
    "export": ("onnx",),
    "serve": ("fastapi", "uvicorn"),
    "mqtt": ("paho-mqtt",),
    "hub": ("huggingface_hub",),
}


@dataclass(frozen=True)
class Part:
    """One part that was examined."""

    name: str
    status: Literal["ok", "missing", "broken"]  # broken: it is there and does not work
    detail: str  # a version, a device, or what went wrong
    remedy: str = ""  # what to run, if anything


def examine() -> list[Part]:
    """Examine everything, in the order it is shown. Providers are named ``provider cpu`` and so on."""
    parts = [
        Part("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        Part("grmp-edge", "ok", f"{__version__}, {where_from()}"),
        _imported("numpy", "numpy", install_line()),
        _imported("opencv", "cv2", install_line()),
        _pyav(),
    ]
    parts += _onnxruntime()
    parts += [_gpu(), _tensorrt(), _rtx()]
    for extra, packages in _EXTRAS.items():
        parts += [_installed(package, extra) for package in packages]
    return parts


def can_score(parts: list[Part]) -> bool:
    """Whether at least one provider ran its graph."""
    return any(part.name.startswith("provider ") and part.status == "ok" for part in parts)


def _imported(name: str, module: str, remedy: str) -> Part:
    try:
        return Part(name, "ok", str(importlib.import_module(module).__version__))
    except Exception as error:  # a missing system library can surface as anything
        return Part(name, "broken", _one_line(error), remedy)


def _installed(package: str, extra: str) -> Part:
    try:
        return Part(package, "ok", metadata.version(package))
    except metadata.PackageNotFoundError:
        return Part(package, "missing", f"for [{extra}]", install_line(extra))


def _pyav() -> Part:
    remedy = install_line("video")
    if importlib.util.find_spec("av") is None:
        return Part("pyav", "missing", "video is left to OpenCV, which cannot tell damaged frames", remedy)
    part = _imported("pyav", "av", remedy)
    if part.status != "ok":
        return part
    version = getattr(importlib.import_module("av"), "ffmpeg_version_info", "of unknown version")
    return Part("pyav", "ok", f"{part.detail}, with FFmpeg {version}")


def _onnxruntime() -> list[Part]:
    try:
        ort = load_onnxruntime("cpu")
    except GrmpError as error:
        status: Literal["missing", "broken"] = (
            "missing" if importlib.util.find_spec("onnxruntime") is None else "broken"
        )
        return [Part("onnxruntime", status, error.message, error.remedy.removeprefix("run: "))]
    builds = [name for name in ("onnxruntime", "onnxruntime-gpu") if _installed(name, "").status == "ok"]
    parts = [Part("onnxruntime", "ok", f"{ort.__version__} ({', '.join(builds) or 'own build'})")]
    if len(builds) > 1:
        remedy = f"{pip_line('uninstall', 'onnxruntime', 'onnxruntime-gpu')}; {install_line('gpu')}"
        parts = [Part("onnxruntime", "broken", "the CPU and the GPU build overwrite each other", remedy)]
    return parts + [_provider(ort, name) for name in PROVIDERS]


def _provider(ort: Any, name: str) -> Part:
    """Create a session on one provider, run it and check the result."""
    label, full = f"provider {name}", PROVIDERS[name]
    if full not in ort.get_available_providers():
        remedy = f"{pip_line('uninstall', 'onnxruntime')}; {install_line('gpu')}"
        return Part(label, "missing", "not in this onnxruntime", remedy)
    try:
        # A GPU provider that fails to load would silently leave its nodes to the CPU.
        session = open_session(
            operator_graph("Add", (FLOAT, FLOAT), FLOAT, 1), providers={full: {}}, cpu_nodes=name == "cpu"
        )
        if full not in session.get_providers():
            raise RuntimeError("it does not load (CUDA, cuDNN or TensorRT libraries are missing)")
        values = np.arange(4, dtype=np.float32)
        result = session.run(None, {"x0": values, "x1": values})[0]
        if not np.array_equal(result, values + values):
            raise RuntimeError(f"gave {result} for {values} + {values}")
    except Exception as error:  # onnxruntime's exceptions have no common base but this
        remedy = (
            "" if name == "cpu" else "install the CUDA, cuDNN (and TensorRT) versions this onnxruntime names"
        )
        return Part(label, "broken", _one_line(error), remedy)
    return Part(label, "ok", "a session was created and run")


def _gpu() -> Part:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Part("gpu", "missing", "no nvidia-smi on this machine")
    query = "--query-gpu=name,compute_cap,memory.total,driver_version"
    try:
        run = subprocess.run(
            [tool, query, "--format=csv,noheader"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Part("gpu", "broken", _one_line(error), "check the NVIDIA driver")
    return Part("gpu", "ok", "; ".join(run.stdout.strip().splitlines()))


def _tensorrt() -> Part:
    remedy = f"{install_line('tensorrt')} (on a Jetson: JetPack's own packages)"
    if importlib.util.find_spec("tensorrt") is None:
        return Part("tensorrt", "missing", "for native engines", remedy)
    try:
        return Part("tensorrt", "ok", str(importlib.import_module("tensorrt").__version__))
    except Exception as error:  # the bindings raise what the loader raises
        return Part("tensorrt", "broken", _one_line(error), remedy)


def _rtx() -> Part:
    try:
        return Part("tensorrt-rtx", "ok", load_rtx().__version__)
    except MissingDependencyError as error:
        detail = "for native engines on GeForce and RTX cards"
        return Part("tensorrt-rtx", "missing", detail, error.remedy.removeprefix("run: "))
    except GrmpError as error:
        return Part("tensorrt-rtx", "broken", error.message, error.remedy)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
