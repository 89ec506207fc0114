"""The command ``import-reference``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from grmp_edge.cli import options as opt
from grmp_edge.errors import MissingDependencyError

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add ``import-reference`` to the app."""
    app.command(name="import-reference")(import_reference)


def import_reference(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="State dict released with GRMP-IQA (.pt or .safetensors).")
    ],
    output: opt.Output = Path("runs/reference"),
    normalization: Annotated[
        opt.Normalization, typer.Option("--normalization", help="What the model was trained with.")
    ] = opt.Normalization.imagenet,
    backbone: Annotated[
        str, typer.Option("--backbone", help="ViT of open_clip; default: told by the shapes.")
    ] = "",
    quick_gelu: Annotated[
        bool, typer.Option("--quick-gelu/--no-quick-gelu", help="Activation; OpenAI's CLIP has QuickGELU.")
    ] = True,
    clip: Annotated[
        Path | None,
        typer.Option("--clip", help="CLIP's own weights, for a FILE without any token embeddings."),
    ] = None,
    mos_range: Annotated[
        str | None, typer.Option("--mos-range", help="Scale of the labels it was trained on, LOW,HIGH.")
    ] = None,
    as_json: opt.AsJson = False,
) -> None:
    """Turn a state dict that the authors of GRMP-IQA released into a checkpoint that can be exported."""
    from importlib.util import find_spec

    from grmp_edge.cli.training_options import scale_of_labels

    for package in ("torch", "open_clip", "safetensors"):
        if find_spec(package) is None:
            raise MissingDependencyError(package, "train", "importing a checkpoint")
    from grmp_edge.score import MosScale
    from grmp_edge.train.import_released import ImportConfig, import_reference

    limits = scale_of_labels(mos_range)
    mos = MosScale(*limits) if limits else None
    config = ImportConfig(backbone, normalization.value, quick_gelu, mos, clip)
    found = import_reference(file, output, config)
    if as_json:
        print(json.dumps({"checkpoint": str(output), **found}))
    else:
        print(f"backbone         {found['backbone']}, normalization {normalization.value}")
        print(f"prompts          {found['visual_tokens']} visual a block, {found['text_tokens']} text")
        print(f"token embeddings {found['tokens']}")
        if found["ignored"]:
            print(f"not needed       {', '.join(found['ignored'])}")
    print(
        f"checkpoint: {output}\nnext: grmp-edge export {output} --fp16 -o bundles/{output.name}",
        file=sys.stderr,
    )
