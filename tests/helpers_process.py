"""Commands in processes of their own that need not load torch again: each is a fork of one that has.

Loading torch and open_clip takes six seconds of CPU, more than most commands under test. The process that is
forked has run nothing, so that its children inherit loaded code alone.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any
from unittest import mock

__all__ = ["COMMAND", "EAGER", "RANDOM", "ROOT", "Process", "Served", "environment", "run", "start"]

ROOT = Path(__file__).resolve().parent.parent
# open_clip's own way to add a model, one so small that its training costs nothing: --backbone tiny-clip.
_TINY = f"import open_clip; open_clip.add_model_config({str(ROOT / 'tests' / 'tiny-clip.json')!r})"
RANDOM = ["--backbone", "tiny-clip", "--weights", "random", "--device", "cpu"]
COMMAND = f"{_TINY}; from grmp_edge.cli import main; main()"
# The command, saving at every evaluation instead of every 15 seconds.
EAGER = f"from grmp_edge.train.finetune import loop; loop._SAVE_EVERY_S = 0; {COMMAND}"


def environment(**more: str) -> dict[str, str]:
    """Of a command: wide lines, one thread."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200", **more}


@functools.cache
def _forks() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    rooms = ["grmp_edge.train.runs", "grmp_edge.train.evaluate.splits", "grmp_edge.export.pipeline"]
    others = [
        "grmp_edge.runtime.web.dashboard_app",
        "grmp_edge.runtime.web.label_app",
        "grmp_edge.runtime.web.score_app",
        "grmp_edge.runtime.web.server",
        "onnxruntime",
        "uvicorn.protocols.http.h11_impl",
        "pydantic",
        "rich.console",
        "matplotlib.figure",
        "matplotlib.backends.backend_svg",
    ]
    context.set_forkserver_preload([*rooms, *others])
    with mock.patch.dict(os.environ, environment()):
        forkserver.ensure_running()
    return context


def _become(
    code: str, arguments: list[str], variables: dict[str, str], files: Sequence[str | Connection[Any, Any]]
) -> None:
    """Be what ``python -c code arguments`` is."""
    for number, file in enumerate(files, start=1):
        place = os.open(file, os.O_WRONLY | os.O_APPEND) if isinstance(file, str) else file.fileno()
        os.dup2(place, number)
        os.close(place) if isinstance(file, str) else file.close()
    os.environ.clear()
    os.environ.update(variables)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["grmp-edge", *arguments]
    exec(compile(code, "<command>", "exec"), {"__name__": "__main__"})


class _Fork:
    """Begins at once."""

    def __init__(self, *given: object) -> None:
        self._process = _forks().Process(target=_become, args=given, daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def send_signal(self, number: signal.Signals) -> None:
        if self._process.exitcode is None:
            os.kill(self.pid, number)


class Process(_Fork):
    """As much of ``subprocess.Popen`` as the tests use."""

    def __init__(self, code: str, arguments: list[str], variables: Mapping[str, str]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._files = [Path(self._folder.name, name) for name in ("stdout", "stderr")]
        for file in self._files:
            file.touch()
        super().__init__(code, arguments, dict(variables), list(map(str, self._files)))

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def communicate(self, timeout: float = 600.0) -> tuple[str, str]:
        """Wait for its end, once, and return what it wrote to stdout and stderr."""
        self._process.join(timeout)
        out, err = (file.read_text(encoding="utf-8") for file in self._files)
        if self._process.exitcode is None:
            self._process.kill()
            raise TimeoutError(f"no end within {timeout:g} s; it said: {out}{err}")
        self._folder.cleanup()
        return out, err


class Served(_Fork):
    """A command that serves, with as much of ``subprocess.Popen`` as the tests use; stdout is thrown away."""

    def __init__(self, arguments: Sequence[str], variables: Mapping[str, str]) -> None:
        reader, writer = _forks().Pipe(duplex=False)
        super().__init__(COMMAND, list(arguments), environment(**variables), [os.devnull, writer])
        writer.close()
        self.stderr = os.fdopen(os.dup(reader.fileno()), encoding="utf-8")
        reader.close()

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float = 60.0) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutError(f"no end within {timeout:g} s")
        return self._process.exitcode


def start(*arguments: object, code: str = COMMAND, **variables: str) -> Process:
    """Begin ``grmp-edge ARGUMENTS``, or ``code`` with them; ``variables``: more of the environment."""
    return Process(code, [str(one) for one in arguments], environment(**variables))


def run(*arguments: object, code: str = COMMAND) -> subprocess.CompletedProcess[str]:
    """``start`` it, and wait."""
    process = start(*arguments, code=code)
    out, err = process.communicate()
    return subprocess.CompletedProcess([str(one) for one in arguments], process.returncode or 0, out, err)
