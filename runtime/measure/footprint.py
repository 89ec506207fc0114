"""What scoring costs in disk space and memory: the installed packages, and a separate process."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from grmp_edge.errors import BackendError
from grmp_edge.score import Score

__all__ = ["Footprint", "Memory", "installed_sizes", "measure"]

_PICTURES = 50  # enough for every buffer to be allocated


@dataclass(frozen=True)
class Memory:
    """Resident memory of a separate process, in bytes."""

    imported: int  # after importing grmp_edge.runtime, without a backend
    opened: int  # after opening the bundle
    scoring: int  # after 50 pictures of 1080p, one by one as from a camera
    peak: int


@dataclass(frozen=True)
class Footprint:
    """Disk and memory; bytes."""

    packages: dict[str, int]  # by distribution, largest first
    memory: Memory | None  # None: no bundle was given

    @property
    def installed(self) -> int:
        """All packages together."""
        return sum(self.packages.values())


def measure(bundle: Path | None = None, precision: str = "fp32", threads: int | None = None) -> Footprint:
    """Measure the installed packages that scoring needs and, with a bundle, a new process that scores.

    Raises:
        BackendError: the process failed; the message ends with its last line.
    """
    return Footprint(installed_sizes(), None if bundle is None else _memory(bundle, precision, threads))


def installed_sizes(extras: tuple[str, ...] = ("cpu", "gpu")) -> dict[str, int]:
    """Bytes on disk of grmp-edge and its installed dependencies, with these extras.

    From each distribution's own record of its files, which need not list compiled Python files.
    """
    sizes: dict[str, int] = {}
    waiting = ["grmp-edge"]
    while waiting:
        name = _normal(waiting.pop())
        if name in sizes:
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        sizes[name] = sum(_size(Path(str(file.locate()))) for file in distribution.files or ())
        own = extras if name == "grmp-edge" else ()
        waiting += [needed for text in distribution.requires or () if (needed := _needed(text, own))]
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def _needed(requirement: str, extras: tuple[str, ...]) -> str:
    """The name in a requirement; empty if it belongs to another extra."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", requirement)
    return "" if name is None or (extra and extra[1] not in extras) else name[0]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # removed by hand
        return 0


def _memory(bundle: Path, precision: str, threads: int | None) -> Memory:
    command = [sys.executable, "-m", __name__, str(bundle), precision, str(threads or 0)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        last = (run.stderr.strip().splitlines() or [f"it ended with status {run.returncode}"])[-1]
        raise BackendError(f"{bundle}: memory cannot be measured: {last}", "see: grmp-edge doctor")
    return Memory(**json.loads(run.stdout))


def _resident(field: str) -> int:
    """Bytes, from /proc: ``VmRSS`` is the current value, ``VmHWM`` the peak."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    match = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def _score(bundle: str, precision: str, threads: int) -> Memory:
    import numpy as np

    from grmp_edge.runtime.scorer import Scorer

    imported = _resident("VmRSS")
    with Scorer.open(bundle, precision, threads=threads or None) as scorer:
        opened = _resident("VmRSS")
        rng = np.random.default_rng(0)
        frame = rng.integers(0, 256, (1080, 1920, 3), np.uint8)
        for _ in range(_PICTURES):
            result = scorer.score(frame)
            assert isinstance(result, Score)
        return Memory(imported, opened, _resident("VmRSS"), _resident("VmHWM"))


if __name__ == "__main__":
    from dataclasses import asdict

    print(json.dumps(asdict(_score(sys.argv[1], sys.argv[2], int(sys.argv[3])))))
