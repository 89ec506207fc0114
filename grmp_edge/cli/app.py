"""The command line's frame: one app, and one way for every command to fail.

Nothing heavy is imported here or at the top of the cli_* modules: ``grmp-edge --help`` must be instant,
and scoring must work without torch. Each command imports its room when it runs.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from grmp_edge import __version__
from grmp_edge.cli import bench as cli_bench
from grmp_edge.cli import build as cli_build
from grmp_edge.cli import data as cli_data
from grmp_edge.cli import evaluate as cli_evaluate
from grmp_edge.cli import export as cli_export
from grmp_edge.cli import reference as cli_reference
from grmp_edge.cli import score as cli_score
from grmp_edge.cli import serve as cli_serve
from grmp_edge.cli import train as cli_train
from grmp_edge.cli import watch as cli_watch
from grmp_edge.errors import GrmpError

__all__ = ["app", "main"]


class _Frame(TyperGroup):
    """Turns whatever a command raises into one line on stderr and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        if ctx.params.get("debug"):
            return super().invoke(ctx)
        try:
            return super().invoke(ctx)
        except GrmpError as error:
            line, status = str(error), error.exit_code
        except KeyboardInterrupt:
            line, status = "interrupted", 130  # as shells report a process ended by SIGINT
        except BrokenPipeError:
            # The reader (head, less) has gone. Python would complain again when it flushes stdout at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(141) from None  # as shells report a process ended by SIGPIPE
        except OSError as error:  # a full disk, a folder without permission: no bug of ours
            line, status = str(error), 1
        except Exception as error:
            if isinstance(error, (typer.Exit, typer.Abort)) or hasattr(error, "format_message"):
                raise  # typer's own: a wrong option, a wanted exit
            line = f"unexpected {type(error).__name__}: {error}; for the traceback: grmp-edge --debug COMMAND"
            status = 1
        typer.echo(f"error: {' '.join(line.split())}", err=True)
        raise typer.Exit(status)


app = typer.Typer(
    cls=_Frame,
    name="grmp-edge",
    help="Image quality without a reference: train on a few labelled pictures, export, score.",
    no_args_is_help=True,
    add_completion=False,
    # Plain help: drawing it with rich doubles the time of --help.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"grmp-edge {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback when something fails.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


for _room in (
    cli_bench,
    cli_build,
    cli_data,
    cli_train,
    cli_evaluate,
    cli_export,
    cli_reference,
    cli_score,
    cli_watch,
    cli_serve,
):
    _room.register(app)


def main() -> None:
    """Entry point of the ``grmp-edge`` command."""
    app(prog_name="grmp-edge")
