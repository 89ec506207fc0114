"""The commands ``memory list``, ``accept``, ``seed`` and ``forget``: what is usual for each camera."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from grmp_edge.cli.groups import add_command, new_group, option
from grmp_edge.cli.options import AsJson, BackendOptions, BundleOption
from grmp_edge.errors import UsageError
from grmp_edge.files import as_typed

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add ``memory`` to the app."""
    group = new_group("memory", "Show or change what is usual for each camera.")
    add_command(group, show, "grmp-edge memory list", "list")
    add_command(group, accept, "grmp-edge memory accept gate --streams streams.toml")
    add_command(group, seed, "grmp-edge score my.bundle gate-pictures/ --output gate.jsonl\n"
                "grmp-edge memory seed gate gate.jsonl --bundle my.bundle")  # fmt: skip
    add_command(group, forget, "grmp-edge memory forget gate")
    app.add_typer(group)


Camera = Annotated[str, typer.Argument(metavar="CAMERA", help="Its name, as grmp-edge memory list shows it.")]


@dataclass(frozen=True)
class Place:
    """Where the memories are."""

    streams: Annotated[
        Path | None, option("--streams", "The streams.toml that the cameras are watched with.")
    ] = None
    memory: Annotated[Path | None, option("--memory", "The folder, if watch or serve was given one.")] = None

    def folder(self) -> Path:
        """The folder, which may not exist."""
        from grmp_edge.runtime.live.config import read_streams
        from grmp_edge.runtime.live.memory import memory_folder

        if self.memory is not None:
            return self.memory
        if self.streams is not None:
            given = read_streams(self.streams).live.memory
            if given is not None:
                return Path(given)
        return memory_folder(self.streams)

    def options(self) -> str:
        """What was given, to paste."""
        return "".join(
            f" --{name} {as_typed(value)}"
            for name, value in (("streams", self.streams), ("memory", self.memory))
            if value
        )

    def watched(self) -> str:
        """The same, and which camera where no file says it, for a watch."""
        return f"{'' if self.streams else ' CAMERA'}{self.options()}"

    def file(self, camera: str) -> Path:
        """The file of a camera.

        Raises:
            UsageError: nothing is known of it.
        """
        from grmp_edge.runtime.live.memory import memory_file

        file = memory_file(self.folder(), camera)
        if not file.exists():
            known = ", ".join(sorted(entry["camera"] for entry in _entries(self.folder()))) or "no camera"
            raise UsageError(f"nothing is known of {camera!r} in {self.folder()}", f"it knows {known}")
        return file


def _entries(folder: Path) -> list[dict[str, Any]]:
    from grmp_edge.runtime.live.memory import Memory, read_json

    entries = []
    for path in sorted(folder.glob("*.json")):
        data: Any = read_json(path)
        inner = data.get("memory") if isinstance(data.get("memory"), dict) else {}
        memory = Memory.from_json(inner, str(inner.get("model", "")))
        if memory is None:
            continue
        usual = memory.middle
        entries.append(
            {
                "camera": str(data.get("camera", path.stem)), "days": memory.days,
                "usual": None if usual is None else round(usual, 4), "raised": data.get("raised", []),
                "saved_at": data.get("at"), "model": memory.model, "bytes": path.stat().st_size,
            }
        )  # fmt: skip
    return entries


def show(*, place: Place, as_json: AsJson = False) -> None:
    """List the cameras that are remembered."""
    folder = place.folder()
    entries = _entries(folder)
    if as_json:
        print(json.dumps({"folder": str(folder), "cameras": entries}))
        return
    from grmp_edge.cli.tables import print_table

    rows = [
        [entry["camera"], str(entry["days"]), "-" if entry["usual"] is None else f"{entry['usual']:.2f}",
         ", ".join(entry["raised"]) or "-", _when(entry["saved_at"])]
        for entry in entries
    ]  # fmt: skip
    if rows:
        print_table(["camera", "days", "usual", "raised", "saved"], rows)
    print(f"{len(rows)} cameras in {folder}", file=sys.stderr)
    print(f"next: grmp-edge memory accept CAMERA{place.options()}", file=sys.stderr)


def _when(at: Any) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at)) if isinstance(at, (int, float)) else "-"


def accept(*, camera: Camera, place: Place) -> None:
    """Make what a camera shows now its normal.

    A running watch or serve does so within a second; otherwise it happens at its next start.
    """
    from grmp_edge.runtime.live.memory import ACCEPT

    file = place.file(camera)
    file.with_suffix(ACCEPT).touch()
    print(f"{camera}: asked for; its alerts clear as soon as it is watched", file=sys.stderr)
    print(f"next: grmp-edge memory list{place.options()}", file=sys.stderr)


def forget(*, camera: Camera, place: Place) -> None:
    """Forget a camera, to learn it anew."""
    from grmp_edge.runtime.live.memory import ACCEPT, BEFORE, only_user

    file = place.file(camera)
    with only_user(file.parent):
        file.unlink()
        for suffix in (BEFORE, ACCEPT):
            file.with_suffix(suffix).unlink(missing_ok=True)
    print(f"{camera}: forgotten; next: grmp-edge watch{place.watched()}", file=sys.stderr)


def seed(
    *,
    camera: Annotated[
        str, typer.Argument(metavar="CAMERA", help="Its name in streams.toml, or its address.")
    ],
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...",
            help="Scores (.jsonl or .csv of grmp-edge score --output or of watch), pictures, or folders of "
            "them. Times come from the records, or from names such as gate-20260131-235959.jpg.",
        ),
    ],
    bundle: BundleOption = None,
    place: Place,
    backend: BackendOptions,
) -> None:
    """Learn what is usual for a camera from its past.

    It is then watched well from the first day.
    """
    from grmp_edge.bundle import Bundle
    from grmp_edge.default_bundle import DEFAULT_BUNDLE
    from grmp_edge.redact import safe_name
    from grmp_edge.runtime.live.memory import BEFORE, Memory, memory_file, only_user, read_json, write_json
    from grmp_edge.runtime.live.seed import past_scores

    path, camera = bundle or DEFAULT_BUNDLE, safe_name(camera)
    model = Bundle.load(path).id
    folder = place.folder()
    file = memory_file(folder, camera)
    folder.mkdir(parents=True, exist_ok=True)
    with only_user(folder):
        data = read_json(file)
        known = data.get("memory")
        before = Memory.from_json(known, model) if isinstance(known, dict) else None
        if before is not None and before.days:
            raise UsageError(
                f"{camera} is known for {before.days} days already",
                f"first: grmp-edge memory forget {shlex.quote(camera)}{place.options()}",
            )
        scores = past_scores(paths, camera, model, lambda pictures: _scored(path, backend, pictures))
        if not scores:
            raise UsageError(
                f"no score of {camera} in {', '.join(map(str, paths))}", "check the camera's name"
            )
        memory = Memory(model)
        memory.seed(scores)
        if known and before is None:  # of another model
            write_json(file.with_suffix(BEFORE), data)
        write_json(file, {"camera": camera, "memory": memory.to_json(), "at": round(time.time(), 1)})
    timed = sum(at is not None for at, _ in scores)
    usual = memory.middle
    shown = f" --bundle {as_typed(bundle)}" if bundle else ""
    print(
        f"{camera}: {len(scores)} scores, {timed} of them with a time; "
        + ("too few to know an hour" if usual is None else f"usually {usual:.2f}")
        + f"; kept in {file}\nnext: grmp-edge watch{shown}{place.watched()}",
        file=sys.stderr,
    )


def _scored(bundle: Path, backend: BackendOptions, pictures: Iterable[Path]) -> Iterator[tuple[str, float]]:
    from grmp_edge.runtime import Failure
    from grmp_edge.runtime.bulk import score_bulk
    from grmp_edge.runtime.sources.sources import list_sources

    with backend.open(bundle, "fp32") as scorer:
        for result in score_bulk(scorer, list_sources(pictures)):
            if isinstance(result, Failure):
                typer.echo(f"left out: {result.error}", err=True)
            else:
                yield result.source, result.value
