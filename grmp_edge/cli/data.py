"""The commands ``data sample``, ``data check`` and ``data preview``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from grmp_edge.cli import options as opt
from grmp_edge.cli.groups import add_command, new_group, option
from grmp_edge.cli.progress import TrainProgress
from grmp_edge.cli.training_options import SetOptions
from grmp_edge.errors import UsageError
from grmp_edge.files import as_typed

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add ``data`` to the app."""
    group = new_group("data", "Make and inspect data sets.")
    add_command(group, sample, "grmp-edge data sample")
    add_command(group, check, "grmp-edge data sample\ngrmp-edge data check sample-data/labels.csv")
    add_command(group, preview, "grmp-edge data preview -o sheet.png")
    app.add_typer(group)


def sample(
    *,
    output: Annotated[Path, option("--output -o", "Folder to write.")] = Path("sample-data"),
    pictures: Annotated[int, option("--pictures", "Labelled pictures to make.", min=12)] = 64,
    seed: opt.SampleSeed = 0,
) -> None:
    """Write a small computer-made data set to try things on.

    A labelled set, sample pictures and a video clip.
    """
    from grmp_edge.train.data.labelled import SplitConfig
    from grmp_edge.train.data.sample import SampleConfig, write_samples

    with TrainProgress() as progress:
        progress.start("making pictures", pictures)
        write_samples(output, SampleConfig(pictures=pictures, seed=seed), progress.step)
    labels = min(50, pictures - round(SplitConfig.test_fraction * pictures))
    print(
        f"sample data: {output} (labels.csv, images/, samples/, clip.mp4)\n"
        f"next: grmp-edge train --data {as_typed(output / 'labels.csv')} --labels {labels}",
        file=sys.stderr,
    )


def check(
    *,
    spec: Annotated[
        str,
        typer.Argument(
            metavar="SPEC",
            help="A data set as NAME:PATH (livec, tid2013, kadid10k, koniq10k, spaq, bid, cid2013, pipal, "
            "agiqa3k, mat, csv), or the path of a csv.",
        ),
    ],
    sets: SetOptions,
    read: Annotated[bool, option("--read/--no-read", "Decode every picture, to detect damaged ones.")] = True,
    as_json: opt.AsJson = False,
) -> None:
    """Read a labelled set as training would, and describe it."""
    from grmp_edge.train.data.describe import describe
    from grmp_edge.train.data.labelled import SplitConfig, split_indices

    data = sets.read(spec)
    if read:
        with TrainProgress() as progress:
            progress.start("reading pictures", len(data))
            for start in range(0, len(data), 64):  # held 64 at a time
                data.squashed(range(start, min(start + 64, len(data))), 32, progress.step)
    description = describe(data) | {"read": read}
    print(json.dumps(description)) if as_json else _print_description(description)
    for note in description["notes"]:
        print(f"note: {note}", file=sys.stderr)
    if description["distortions"]:
        following = f"train pretrain --meta-data {as_typed(spec)}"
    else:
        there = len(data) - len(split_indices(data, SplitConfig()).test)
        following = f"train --data {as_typed(spec)} --labels {min(50, there)}"
    print(f"next: grmp-edge {following}", file=sys.stderr)


def _print_description(description: dict[str, Any]) -> None:
    from grmp_edge.train.data.describe import histogram_lines

    mos, scale = description["mos"], description["scale"]
    limits = f"{scale[0]:g} to {scale[1]:g}" if scale else "not declared, as observed"
    readable = ", all readable" if description["read"] else ""
    print(f"{description['name']}: {description['images']} pictures{readable}")
    print(f"scale        {limits}; higher is better")
    print(
        f"scores       {mos['min']:.2f} to {mos['max']:.2f}, mean {mos['mean']:.2f}, "
        f"median {mos['median']:.2f}, std {mos['std']:.2f}"
    )
    print("\n".join(histogram_lines(description)))
    if description["parts"]:
        print(f"parts        {', '.join(f'{name} {count}' for name, count in description['parts'].items())}")
    print(f"references   {description['references'] or 'not known'}")
    if description["duplicates"]:
        print(f"duplicates   {description['duplicates']} pictures are named more than once")
    if description["distortions"]:
        print(f"distortions  {len(description['distortions'])} types")
        for name, count in description["distortions"].items():
            print(f"  {name or '(none)':36} {count:>6}")
    else:
        print("distortions  not known")


def preview(
    *,
    output: Annotated[Path, option("--output -o", "Picture to write.")] = Path("sheet.png"),
    picture: Annotated[Path | None, option("--picture", "Distort this picture.")] = None,
    photos: Annotated[
        Path | None,
        option("--photos", "Distort the pictures of this folder, in turn; default: computer-made."),
    ] = None,
    distortions: opt.Distortions = None,
    cell: Annotated[int, option("--cell", "Side of a picture, pixels.", min=32, max=384)] = 192,
    seed: opt.SampleSeed = 0,
) -> None:
    """Draw a contact sheet of the distortion types.

    One row per type: the pristine picture, then five levels of the distortion.
    """
    from grmp_edge.preprocess import read_image
    from grmp_edge.train.pictures.contact_sheet import SheetConfig, contact_sheet, write_sheet
    from grmp_edge.train.tasks import load_photographs, procedural_photographs

    if picture and photos:
        raise UsageError("--picture and --photos are two sources of pictures", "give one of them")
    config = SheetConfig(cell=cell, seed=seed)
    if distortions:
        config = SheetConfig(tuple(distortions.replace(" ", "").split(",")), cell=cell, seed=seed)
    rows = len(config.distortions)
    with TrainProgress() as progress:
        if picture:
            photographs = [(picture.name, read_image(picture))]
        elif photos:
            photographs = load_photographs(photos, 2 * config.side, rows)
        else:
            photographs = procedural_photographs(6, config.side, seed)
        progress.start("distorting", rows)
        write_sheet(contact_sheet(photographs, config, progress.step), output)
    print(
        f"contact sheet: {output} ({rows} types)\nnext: grmp-edge train pretrain"
        f"{f' --photos {as_typed(photos)}' if photos else ''}",
        file=sys.stderr,
    )
