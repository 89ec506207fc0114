"""The command ``doctor``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from grmp_edge.cli.groups import add_command, option
from grmp_edge.cli.options import AsJson
from grmp_edge.errors import UsageError

if TYPE_CHECKING:
    from grmp_edge.runtime.measure.footprint import Footprint

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    add_command(app, doctor, "grmp-edge doctor")


def doctor(
    footprint: Annotated[
        bool, option("--footprint", "Print the disk space and memory that scoring takes here, instead.")
    ] = False,
    bundle: Annotated[
        Path | None,
        option("--bundle", "With --footprint: also measure a process that scores with this bundle."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what works here, and what to install for the rest."""
    if footprint:
        _footprint(bundle, as_json)
        return
    if bundle is not None:
        raise UsageError("--bundle belongs to --footprint", "add --footprint")
    from grmp_edge.runtime.measure.doctor import can_score, examine

    parts = examine()
    works = can_score(parts)
    if as_json:
        typer.echo(json.dumps({"can_score": works, "parts": [asdict(part) for part in parts]}, indent=2))
    else:
        for part in parts:
            remedy = f"  ->  {part.remedy}" if part.remedy else ""
            typer.echo(f"{part.status:<8} {part.name:<18} {part.detail}{remedy}")
        typer.echo("scoring works here" if works else "scoring does not work here yet")
    if not works:
        raise typer.Exit(1)


def _footprint(bundle: Path | None, as_json: bool) -> None:
    from grmp_edge.runtime.measure.footprint import measure

    footprint = measure(bundle)
    if as_json:
        typer.echo(json.dumps({"installed": footprint.installed, **asdict(footprint)}, indent=2))
    else:
        _print_footprint(footprint)


def _print_footprint(footprint: Footprint) -> None:
    small = 0
    for name, size in footprint.packages.items():
        if size >= 1e6:
            typer.echo(f"{size / 1e6:8.1f} MB  {name}")
        else:
            small += size
    typer.echo(f"{small / 1e6:8.1f} MB  the rest, each under 1 MB")
    typer.echo(f"{footprint.installed / 1e6:8.1f} MB  installed, without Python itself")
    if footprint.memory is None:
        typer.echo("memory: add --bundle BUNDLE to measure a process that scores")
        return
    rows = (
        ("resident with the scoring code loaded", footprint.memory.imported),
        ("resident with the bundle open", footprint.memory.opened),
        ("resident while scoring 1080p frames one by one", footprint.memory.scoring),
        ("resident at most", footprint.memory.peak),
    )
    for what, size in rows:
        typer.echo(f"{size / 1e6:8.1f} MB  {what}")
