"""The command ``doctor``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from grmp_edge.runtime.measure.footprint import Footprint

__all__ = ["doctor"]


def doctor(
    footprint: Annotated[
        bool, typer.Option("--footprint", help="Instead: the disk and memory that scoring takes here.")
    ] = False,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help="With --footprint: measure a process that scores with it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Show what works here, and what to install for the rest."""
    from grmp_edge.errors import UsageError

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

    found = measure(bundle)
    if as_json:
        typer.echo(json.dumps({"installed": found.installed, **asdict(found)}, indent=2))
    else:
        _print_footprint(found)


def _print_footprint(found: Footprint) -> None:
    small = 0
    for name, size in found.packages.items():
        if size >= 1e6:
            typer.echo(f"{size / 1e6:8.1f} MB  {name}")
        else:
            small += size
    typer.echo(f"{small / 1e6:8.1f} MB  the rest, each under 1 MB")
    typer.echo(f"{found.installed / 1e6:8.1f} MB  installed, without Python itself")
    if found.memory is None:
        typer.echo("memory: add --bundle BUNDLE to measure a process that scores")
        return
    rows = (
        ("resident with the scoring code loaded", found.memory.imported),
        ("resident with the bundle open", found.memory.opened),
        ("resident while scoring 1080p frames one by one", found.memory.scoring),
        ("resident at most", found.memory.peak),
    )
    for what, size in rows:
        typer.echo(f"{size / 1e6:8.1f} MB  {what}")
