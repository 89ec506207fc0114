"""The command line's frame: one app, and one way for every command to fail.

Nothing heavy is imported at the top of this folder's modules: ``grmp-edge --help`` must be instant, and
scoring must work without torch. Each command imports what it needs when it runs.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import Annotated, Any

import typer

from grmp_edge import __version__
from grmp_edge.cli import bench as cli_bench
from grmp_edge.cli import build as cli_build
from grmp_edge.cli import calibrate as cli_calibrate
from grmp_edge.cli import check as cli_check
from grmp_edge.cli import collect as cli_collect
from grmp_edge.cli import data as cli_data
from grmp_edge.cli import doctor as cli_doctor
from grmp_edge.cli import evaluate as cli_evaluate
from grmp_edge.cli import export as cli_export
from grmp_edge.cli import label as cli_label
from grmp_edge.cli import memory as cli_memory
from grmp_edge.cli import reference as cli_reference
from grmp_edge.cli import score as cli_score
from grmp_edge.cli import serve as cli_serve
from grmp_edge.cli import train as cli_train
from grmp_edge.cli import watch as cli_watch
from grmp_edge.cli.groups import Group, option
from grmp_edge.errors import GrmpError

__all__ = ["app", "main"]


# In the order of use, which is the order of --help.
_COMMANDS = {
    "data": cli_data,
    "collect": cli_collect,
    "label": cli_label,
    "train": cli_train,
    "evaluate": cli_evaluate,
    "export": cli_export,
    "calibrate": cli_calibrate,
    "score": cli_score,
    "watch": cli_watch,
    "check": cli_check,
    "serve": cli_serve,
    "memory": cli_memory,
    "bench": cli_bench,
    "build": cli_build,
    "doctor": cli_doctor,
    "import-reference": cli_reference,
}


class _Frame(Group):
    """Turns whatever a command raises into one line on stderr and an exit status."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(_COMMANDS)

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


for _module in _COMMANDS.values():
    _module.register(app)


def main() -> None:
    """Entry point of the ``grmp-edge`` command."""
    # Closed by the shell (>&-): Python has none then, and the next file to be opened would take its number.
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: PTH123, SIM115
    app(prog_name="grmp-edge")
