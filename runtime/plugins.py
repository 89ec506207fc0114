"""Execution providers that come as plugins: a package of their own beside plain onnxruntime.

``plugin:openvino`` is what the package onnxruntime-ep-openvino brings, ``plugin:openvino:gpu`` the same on a
GPU alone, ``plugin:/opt/ep.so`` a shared library of another maker. So one environment has several providers,
where of the builds onnxruntime, onnxruntime-gpu and so on it can have only one.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
from pathlib import Path
from typing import Any

from grmp_edge.errors import BackendError, first_line
from grmp_edge.install import install_line, pip_line

__all__ = ["PLUGIN", "check_name", "library_of", "plugin_devices"]

PLUGIN = "plugin:"
_KINDS = ("cpu", "gpu", "npu")
# Whose packages are known. A line that installs whatever was mistyped would be an invitation.
_RTX = "nv-tensorrt-rtx"  # its package has another name
_ON_INDEX = ("openvino", "webgpu")

_lock = threading.Lock()
_registered: dict[str, frozenset[str]] = {}  # by name, onnxruntime's names of its providers


def check_name(provider: str) -> tuple[str, str]:
    """The name and the kind of device in ``plugin:NAME`` or ``plugin:NAME:DEVICE``; no kind is empty.

    Raises:
        BackendError: it is neither.
    """
    name, _, kind = provider.removeprefix(PLUGIN).partition(":")
    if not name or (kind and kind not in _KINDS):
        raise BackendError(
            f"unknown provider {provider!r}",
            f"use {PLUGIN}NAME or {PLUGIN}NAME:DEVICE, of {', '.join(_KINDS)}",
        )
    return name, kind


def plugin_devices(ort: Any, provider: str) -> list[Any]:
    """Onnxruntime's devices (OrtEpDevice) for a plugin; its library is loaded once in a process.

    Raises:
        BackendError: the plugin is not installed, does not load, or supports no device of this machine.
    """
    name, kind = check_name(provider)
    if not hasattr(ort, "register_execution_provider_library"):
        raise BackendError(f"onnxruntime {ort.__version__} takes no plugins", "update onnxruntime")
    with _lock:
        if name not in _registered:
            _registered[name] = _register(ort, name)
    devices = [device for device in ort.get_ep_devices() if device.ep_name in _registered[name]]
    suitable = [device for device in devices if not kind or _kind(device) == kind]
    if not suitable:
        others = ", ".join(sorted({_kind(device) for device in devices}))
        raise BackendError(
            f"plugin {name!r} supports no {kind or 'device'} of this machine",
            f"it supports: {others}" if others else "use another --provider, or add --allow-cpu",
        )
    return suitable


def library_of(provider: str) -> str:
    """The path of the shared library behind ``plugin:NAME`` or ``plugin:NAME:DEVICE``.

    Raises:
        BackendError: the plugin is not installed.
    """
    return _library(check_name(provider)[0])[0]


def _register(ort: Any, name: str) -> frozenset[str]:
    before = {device.ep_name for device in ort.get_ep_devices()}
    library, own = _library(name)
    try:
        ort.register_execution_provider_library(name, library)
    except Exception as error:  # onnxruntime's exceptions have no common base but this
        raise BackendError(
            f"plugin {name!r} does not load: {first_line(error)}",
            "install the driver and the versions that its maker names",
        ) from None
    return own or frozenset(device.ep_name for device in ort.get_ep_devices()) - before


def _library(name: str) -> tuple[str, frozenset[str]]:
    """The path of a plugin's shared library, and the names of its providers where its package says them."""
    if "/" in name or name.endswith((".so", ".dll", ".dylib")):
        if not Path(name).is_file():
            raise BackendError(f"plugin {name!r}: no such file", f"write {PLUGIN}NAME for an installed one")
        return str(Path(name).resolve()), frozenset()
    module = f"onnxruntime_ep_{name.replace('-', '_')}"
    if not module.isidentifier() or importlib.util.find_spec(module) is None:
        raise BackendError(f"plugin {name!r} is not installed", _remedy(name))
    try:
        package = importlib.import_module(module)
        return str(package.get_library_path()), frozenset(package.get_ep_names())
    except Exception as error:  # what a maker's package raises
        raise BackendError(
            f"plugin {name!r} does not load: {first_line(error)}", "reinstall its package"
        ) from None


def _remedy(name: str) -> str:
    if name == _RTX:
        return f"run: {install_line('rtx')}"
    if name in _ON_INDEX:
        return f"run: {pip_line('install', f'onnxruntime-ep-{name}')}"
    known = ", ".join((*_ON_INDEX, _RTX))
    return f"known are {known}; or give the path of its library, {PLUGIN}/opt/NAME.so"


def _kind(device: Any) -> str:
    return str(device.device.type).rpartition(".")[2].lower()
