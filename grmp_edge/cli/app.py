"""The command line's frame: one app, and one way for every command to fail.

``grmp-edge --help`` must be instant, and scoring must work without torch: a command's module is imported when
the command is asked for, and imports nothing heavy at its top, but what it needs when it runs.
"""

from __future__ import annotations

import errno
import functools
import importlib
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, cast

import typer

from grmp_edge import __version__
from grmp_edge.cli.groups import Group, option
from grmp_edge.errors import GrmpError

__all__ = ["app", "main"]


# In the order of use, which is the order of --help; with each one's summary there, so that --help need not
# import its module.
_COMMANDS = {
    "data": "Make and inspect data sets.",
    "collect": "Collect frames to label: few, and unlike each other.",
    "label": "Label frames in the browser, by ratings or by pairs.",
    "train": "Train on a few labelled pictures.",
    "evaluate": "Measure agreement with human scores on a labelled set.",
    "export": "Fold a checkpoint into a bundle of ONNX graphs.",
    "calibrate": "Fit an exported bundle to your labels, on the device.",
    "score": "Score pictures and videos: 0 is bad, 1 is good.",
    "watch": "Score live cameras, and alert when one goes bad.",
    "check": "Look once at each of many cameras, for cron.",
    "serve": "Score pictures and cameras over HTTP.",
    "memory": "Show or change what is usual for each camera.",
    "bench": "Time a bundle, a video, or what folding saves.",
    "build": "Build a TensorRT or TensorRT-RTX engine for this GPU.",
    "doctor": "Show what works here, and what to install for the rest.",
    "import-reference": "Turn released GRMP-IQA weights into a checkpoint.",
}


@functools.cache
def _load(name: str) -> Any:
    part = typer.Typer(rich_markup_mode=None)
    importlib.import_module(f"grmp_edge.cli.{name.replace('-', '_')}").register(part)
    return typer.main.get_group(part).commands[name]


class _Commands(Mapping[str, Any]):
    """Every command by its name, its module imported when it is asked for."""

    def __getitem__(self, name: str) -> Any:
        if name not in _COMMANDS:
            raise KeyError(name)
        return _load(name)

    def __iter__(self) -> Iterator[str]:
        return iter(_COMMANDS)

    def __len__(self) -> int:
        return len(_COMMANDS)


class _Frame(Group):
    """Turns whatever a command raises into one line on stderr and an exit status."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = cast("Any", _Commands())  # typer only reads it

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def invoke(self, ctx: Any) -> Any:
        if ctx.params.get("debug"):
            return super().invoke(ctx)
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # a full disk is met here, not in Python's last breath
            return result
        except GrmpError as error:
            line, status = str(error), error.exit_code
        except KeyboardInterrupt as error:
            # As shells report a process ended by a signal.
            line, status = "interrupted", 128 + int(error.args[0] if error.args else signal.SIGINT)
        except BrokenPipeError:
            # The reader (head, less) has gone. Python would complain again when it flushes stdout at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(141) from None  # as shells report a process ended by SIGPIPE
        except OSError as error:  # a full disk, a folder without permission: no bug of ours
            line, status = _of_the_system(error), 1
        except Exception as error:
            if isinstance(error, (typer.Exit, typer.Abort)) or hasattr(error, "format_message"):
                raise  # typer's own: a wrong option, an orderly exit
            line = f"unexpected {type(error).__name__}: {error}; for the traceback: grmp-edge --debug COMMAND"
            status = 1
        typer.echo(f"error: {' '.join(line.split())}", err=True)
        raise typer.Exit(status)


def _of_the_system(error: OSError) -> str:
    """An error of the operating system, with the file and what can be done."""
    name = error.filename
    if name is None and error.errno == errno.ENOSPC:  # whoever writes a file names it
        name = "standard output"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at exit
    remedy = {
        errno.ENOSPC: "make room on the disk",
        errno.EDQUOT: "make room on the disk",
        errno.EROFS: "choose a place that can be written",
        errno.EACCES: "check its permissions",
    }.get(error.errno or 0)
    return "".join(
        (f"{name}: " if name else "", error.strerror or str(error), f"; {remedy}" if remedy else "")
    )


app = typer.Typer(
    cls=_Frame,
    name="grmp-edge",
    help="Image quality without a reference: train on a few labelled pictures, export, score.",
    no_args_is_help=True,
    # Plain help: drawing it with rich doubles the time of --help.
    rich_markup_mode=None,
    # As wide as the terminal, instead of 80 columns at most.
    context_settings={"max_content_width": 10_000},
    epilog="grmp-edge data sample\ngrmp-edge score sample-data/samples",
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"grmp-edge {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, option("--debug", "Show the traceback when something fails.")] = False,
    version: Annotated[
        bool, option("--version -V", "Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the ``grmp-edge`` command."""
    # Closed by the shell (>&-): Python has none then, and the next file to be opened would take its number.
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: PTH123, SIM115
    app(prog_name="grmp-edge")
