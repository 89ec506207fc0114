"""Training commands that run as several processes, started by torchrun or its environment variables."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TypeVar, cast

import typer

from grmp_edge.cli.requirements import need_torch

__all__ = ["RESUME_HINT", "as_team", "leads"]

RESUME_HINT = "the same command with --resume continues from the last save"

Command = TypeVar("Command", bound=Callable[..., None])


def leads() -> bool:
    """Whether this process is rank 0 of a team, or alone; without torch."""
    return os.environ.get("RANK", "0") == "0"


def as_team(command: Command, hint: str = RESUME_HINT) -> Command:
    """Let a training command run as one rank of a team; only rank 0 prints.

    The rank that fails first reports the error, once. The command has the option group ``model``; ``hint``
    says how an interrupted one goes on.
    """

    @functools.wraps(command)
    def run(**options: Any) -> None:
        context = options.get("context")
        if os.environ.get("WORLD_SIZE", "1") == "1" or (context and context.invoked_subcommand):
            command(**options)
            return
        need_torch()
        from grmp_edge.train.session.ranks import PeerFailedError, joined

        try:
            with joined(options["model"].device) as team, ExitStack() as stack:
                if not team.leads:
                    nowhere = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
                    stack.enter_context(redirect_stdout(nowhere))
                    stack.enter_context(redirect_stderr(nowhere))
                command(**options)
        except PeerFailedError as error:
            if error.status == 130 and os.environ.get("RANK") == "0":  # another rank was interrupted first
                typer.echo(f"stopped; {hint}", err=True)
            raise typer.Exit(error.status) from None

    return cast(Command, run)
