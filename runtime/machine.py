"""What is found out about this machine once and kept: that a graph computes what it should, which is fastest.

It is kept in the user's cache, under everything that it depends on.
"""

from __future__ import annotations

import json
import logging
import platform
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from grmp_edge.bundle import Bundle
from grmp_edge.errors import BackendError
from grmp_edge.files import replace_file, sha256_bytes, user_folder
from grmp_edge.runtime.gate import Run, check_scores
from grmp_edge.runtime.plugins import PLUGIN, library_of
from grmp_edge.runtime.tensorrt.cuda import find_gpu

__all__ = ["Remembered", "check_once", "surroundings"]

# Whoever waits for a first score waits for the check, so a slow network is judged on its first batch alone.
_SECONDS = 0.2

# All that decides how a graph is computed: another version brings other kernels, another CPU takes others.
_LIBRARIES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx-cu13-bindings",
)
_CPU = re.compile(
    r"^(vendor_id|cpu family|model|model name|stepping|flags|Features|CPU (implementer|variant|part))\s*:.*",
    re.MULTILINE,
)


def check_once(bundle: Bundle, precision: str, run: Run, provider: str) -> None:
    """Judge a graph before its first score here; again only if the graph, the machine or a library changes.

    Takes 0.2 s, or one batch where that lasts longer; then nothing. Arguments and errors as
    :func:`check_scores`; ``provider`` is where it runs. Where the bundle has nothing to compare with, a line
    on the logger ``grmp_edge`` says so.
    """
    key = {
        "graph": bundle.graph_digest(precision),
        "precision": precision,
        "check": bundle.parity.get("check"),
        "gate": bundle.parity.get("gate"),
        **surroundings(provider),
    }
    remembered = Remembered("checks", key)
    if remembered.value is None:
        verdict = check_scores(bundle, precision, run, f"graph, run here by {provider},", _SECONDS)
        if verdict is not None:
            remembered.store(dict(verdict))
        else:
            logging.getLogger("grmp_edge").warning(
                "warning: %s: the %s graph is not compared with where it was exported: the bundle records no "
                "scores that this version can compare; export it again to add them",
                bundle.path,
                precision,
            )


class Remembered:
    """Something found out about this machine, kept in the user's cache.

    ``value`` is None where nothing is known yet; the file says what it depends on.
    """

    def __init__(self, kind: str, key: Mapping[str, Any]) -> None:
        text = json.dumps(key, sort_keys=True)
        self._key = json.loads(text)
        self._name = f"{kind}/{sha256_bytes(text.encode())[:24]}.json"
        self.value: dict[str, Any] | None = None
        # A damaged file is found out again. RuntimeError: the user has no home.
        with suppress(OSError, ValueError, RuntimeError):
            data = json.loads((user_folder("cache") / self._name).read_text(encoding="utf-8"))
            if (
                isinstance(data, dict)
                and data.get("key") == self._key
                and isinstance(data.get("value"), dict)
            ):
                self.value = data["value"]

    def store(self, value: dict[str, Any]) -> None:
        """Keep it; where the cache cannot be written, it is found out again at the next start."""
        self.value = value
        text = json.dumps({"key": self._key, "value": value}, indent=2) + "\n"
        with suppress(OSError, RuntimeError), replace_file(user_folder("cache") / self._name) as temporary:
            temporary.write_text(text, encoding="utf-8")


@cache
def surroundings(provider: str) -> dict[str, str]:
    """What a graph's speed and rounding depend on besides itself: libraries, CPU, and a GPU if in use."""
    facts = {"provider": provider, "cpu": _cpu()}
    for library in _LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            facts[library] = metadata.version(library)
    if provider.startswith(PLUGIN):
        with suppress(BackendError, OSError):
            path = library_of(provider)
            state = Path(path).stat()
            facts["plugin"] = f"{path}, {state.st_size} bytes of {state.st_mtime_ns}"
    if provider != "cpu":
        with suppress(BackendError):
            gpu = find_gpu()
            facts["gpu"] = f"{gpu.name}, {gpu.compute_capability}"
    return facts


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:  # not Linux
        text = ""
    lines = [" ".join(match[0].split()) for match in _CPU.finditer(text)]
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "CPU")
    return f"{name}, {platform.machine()}, {sha256_bytes(chr(10).join(lines).encode())[:12]}"
