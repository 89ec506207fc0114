"""The command group ``data``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from grmp_edge.cli import options as opt
from grmp_edge.errors import UsageError

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add ``data`` to the app."""
    group = typer.Typer(help="Make and look at data sets.", rich_markup_mode=None, add_completion=False)
    group.callback()(_group)
    group.command()(sample)
    group.command()(check)
    group.command()(preview)
    app.add_typer(group, name="data")


def _group() -> None:
    """Make and look at data sets."""


def sample(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("sample-data"),
    pictures: Annotated[int, typer.Option("--pictures", min=12, help="Labelled pictures to make.")] = 60,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")] = 0,
) -> None:
    """Write a small labelled set, sample pictures and a clip, all computer-made, to try things on."""
    from grmp_edge.cli.progress import TrainProgress
    from grmp_edge.train.data.sample import SampleConfig, write_samples

    with TrainProgress() as progress:
        progress.start("making pictures", pictures)
        write_samples(output, SampleConfig(pictures=pictures, seed=seed), progress.step)
    print(
        f"sample data: {output} (labels.csv, images/, samples/, clip.mp4)\n"
        f"next: grmp-edge train --data {output / 'labels.csv'} --labels 48",
        file=sys.stderr,
    )


def check(
    spec: Annotated[
        str,
        typer.Argument(
            metavar="SPEC",
            help="A data set as NAME:PATH (livec, tid2013, kadid10k, koniq10k, spaq, bid, cid2013, pipal, "
            "agiqa3k, mat, csv), or the path of a csv.",
        ),
    ],
    images: opt.Images = None,
    mos_range: opt.MosRange = None,
    read: Annotated[
        bool, typer.Option("--read/--no-read", help="Decode every picture, to find damaged ones.")
    ] = True,
    as_json: opt.AsJson = False,
) -> None:
    """Read a labelled data set as training would, and print what was found."""
    from grmp_edge.cli.progress import TrainProgress
    from grmp_edge.cli.training_options import scale_of_labels
    from grmp_edge.train.data.describe import describe
    from grmp_edge.train.data.named_sets import read_spec

    data = read_spec(spec, images, scale_of_labels(mos_range))
    if read:
        with TrainProgress() as progress:
            progress.start("reading pictures", len(data))
            for start in range(0, len(data), 64):  # held 64 at a time
                data.squashed(range(start, min(start + 64, len(data))), 32, progress.step)
    found = describe(data) | {"read": read}
    print(json.dumps(found)) if as_json else _print_found(found)
    for note in found["notes"]:
        print(f"note: {note}", file=sys.stderr)
    tasks = (
        f"train pretrain --meta-data {spec}" if found["distortions"] else f"train --data {spec} --labels 50"
    )
    print(f"next: grmp-edge {tasks}", file=sys.stderr)


def _print_found(found: dict[str, Any]) -> None:
    from grmp_edge.train.data.describe import histogram_lines

    mos, scale = found["mos"], found["scale"]
    said = f"{scale[0]:g} to {scale[1]:g}" if scale else "not declared, as observed"
    print(f"{found['name']}: {found['images']} pictures{', all readable' if found['read'] else ''}")
    print(f"scale        {said}; higher is better")
    print(
        f"scores       {mos['min']:.2f} to {mos['max']:.2f}, mean {mos['mean']:.2f}, "
        f"median {mos['median']:.2f}, std {mos['std']:.2f}"
    )
    print("\n".join(histogram_lines(found)))
    if found["parts"]:
        print(f"parts        {', '.join(f'{name} {count}' for name, count in found['parts'].items())}")
    print(f"references   {found['references'] or 'not known'}")
    if found["duplicates"]:
        print(f"duplicates   {found['duplicates']} pictures are named more than once")
    if found["distortions"]:
        print(f"distortions  {len(found['distortions'])} types")
        for name, count in found["distortions"].items():
            print(f"  {name or '(none)':36} {count:>6}")
    else:
        print("distortions  not known")


def preview(
    output: Annotated[Path, typer.Option("--output", "-o", help="Picture to write.")] = Path("sheet.png"),
    picture: Annotated[Path | None, typer.Option("--picture", help="Distort this picture.")] = None,
    photos: Annotated[
        Path | None,
        typer.Option(
            "--photos", help="Distort the pictures of this folder, in turn; default: computer-made."
        ),
    ] = None,
    distortions: opt.Distortions = None,
    cell: Annotated[int, typer.Option("--cell", min=32, max=384, help="Side of a picture, pixels.")] = 192,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")] = 0,
) -> None:
    """Draw a contact sheet of the distortion types: the pristine picture and five levels of each."""
    from grmp_edge.cli.progress import TrainProgress
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
        f"{f' --photos {photos}' if photos else ''}",
        file=sys.stderr,
    )
