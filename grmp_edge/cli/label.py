"""The command ``label``: the page on which frames are labelled, and labels of other tools."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from grmp_edge.cli.groups import add_command, option
from grmp_edge.cli.serve import needs_serve, server_token
from grmp_edge.errors import UsageError
from grmp_edge.files import as_typed, is_text

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    add_command(
        app,
        label,
        "grmp-edge data sample\ngrmp-edge collect sample-data/images -o frames\ngrmp-edge label frames",
    )


def label(
    folder: Annotated[
        Path, typer.Argument(metavar="FRAMES", help="Folder of grmp-edge collect, or any pictures.")
    ],
    *,
    count: Annotated[int, option("--count -n", "How many pictures to choose for labelling.")] = 50,
    checks: Annotated[
        int,
        option(
            "--checks",
            "Blurred copies of a rater's own pictures among them, to see who pays attention; no labels.",
            min=0,
            max=20,
        ),
    ] = 0,
    host: Annotated[str, option("--host", "Address to listen on; beyond this machine only with a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, option("--port", "Port to listen on; 0: any free one, printed on stderr.")] = 8090,
    bundle: Annotated[
        Path | None,
        option("--bundle", "Bundle to compare with, and to start from without torch; default: what ships."),
    ] = None,
    output: Annotated[
        Path | None,
        option(
            "--output -o",
            "Bundle that training on the page writes; default: bundles/FRAMES. A grmp-edge watch that runs "
            "with it takes it over.",
            metavar="BUNDLE",
        ),
    ] = None,
    take_in: Annotated[
        Path | None,
        option("--import", "Take in labels of Label Studio (csv, json), CVAT (csv) or image,mos; no page."),
    ] = None,
    give_out: Annotated[
        Path | None,
        option("--export", "Write all answers as a csv that Label Studio and CVAT scripts read; no page."),
    ] = None,
    as_json: Annotated[bool, option("--json", "With --import and --export: the result as JSON.")] = False,
) -> None:
    """Label frames in the browser, by ratings or by pairs.

    Every answer is on the disk at once, and FRAMES/labels.csv follows. Runs until Ctrl-C; goes on where it
    stopped.
    """
    from grmp_edge.bundle import Bundle, refuse_other
    from grmp_edge.default_bundle import DEFAULT_BUNDLE, resolve_bundle
    from grmp_edge.runtime.labelling.answers import LABELS
    from grmp_edge.runtime.labelling.exchange import export_answers, import_answers
    from grmp_edge.runtime.labelling.frames import is_picture
    from grmp_edge.runtime.labelling.learning import Learning, commands
    from grmp_edge.runtime.labelling.sitting import Sitting

    start = Bundle.load(resolve_bundle(bundle)).path if bundle else DEFAULT_BUNDLE
    target = output or Path("bundles") / folder.resolve().name
    refuse_other(target)  # now, and not after an hour of labels
    if target.is_dir():
        print(f"{target} has been trained: it looks at the pictures before more are chosen", file=sys.stderr)
    sitting = Sitting(folder, count, target, checks)
    for path in sorted(folder.iterdir()):
        if is_picture(path.name) and not is_text(path.name):
            print(f"left out: {path}: its name is not UTF-8; rename it", file=sys.stderr)

    def following() -> list[str]:
        lines = commands(folder, start, target, find_spec("torch") is not None)
        return [f"grmp-edge {shlex.join(line)}" for line in lines]

    if take_in is not None or give_out is not None:
        result = {}
        if take_in is not None:
            result["imported"] = sitting.import_answers(import_answers(take_in, list(sitting.frames)))
        if give_out is not None:
            result["exported"] = export_answers(give_out, sitting.standing)
        if as_json:
            print(json.dumps({**result, "labels": len(sitting.labels)}))
        else:
            for name, number in result.items():
                print(f"{number} answers {name}; {len(sitting.labels)} labels in {folder / LABELS}")
        print(f"next: {following()[0]}", file=sys.stderr)
        return
    with needs_serve():
        from grmp_edge.runtime.web.label_app import make_label_app
        from grmp_edge.runtime.web.score_app import ServeConfig, listen
        from grmp_edge.runtime.web.server import Server, address
    if as_json:
        raise UsageError("--json belongs to --import and --export")
    config = ServeConfig(host=host, port=port, token=server_token())
    learning = Learning(folder, start, target, sitting.look)
    with contextlib.closing(learning), listen(config) as door:
        at = address(host, door)
        print(
            f"label page at {at}/ ({len(sitting.chosen)} of {len(sitting.frames)} pictures chosen)",
            file=sys.stderr,
        )
        Server(make_label_app(sitting, learning, config)).run(sockets=[door])
    labels = len(sitting.labels)
    print(f"{labels} labels in {folder / LABELS}", file=sys.stderr)
    if labels >= 4:
        lines = [*following(), f"grmp-edge watch {as_typed(target)} CAMERA"]
        print("next: " + "\n      ".join(lines), file=sys.stderr)
