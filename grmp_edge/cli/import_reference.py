"""The command ``import-reference``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from grmp_edge.cli import options as opt
from grmp_edge.cli.groups import add_command, option
from grmp_edge.cli.requirements import need_torch
from grmp_edge.cli.training_options import scale_of_labels
from grmp_edge.files import as_typed

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add ``import-reference`` to the app."""
    add_command(
        app, import_reference, "grmp-edge import-reference RELEASED.pt -o runs/released", "import-reference"
    )


def import_reference(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="State dict released with GRMP-IQA (.pt or .safetensors).")
    ],
    output: opt.Output = Path("runs/reference"),
    normalization: Annotated[
        opt.Normalization, option("--normalization", "What the model was trained with.")
    ] = "imagenet",
    backbone: Annotated[
        str, option("--backbone", "ViT of open_clip; default: inferred from the shapes.")
    ] = "",
    quick_gelu: Annotated[
        bool, option("--quick-gelu/--no-quick-gelu", "Activation; OpenAI's CLIP has QuickGELU.")
    ] = True,
    clip: Annotated[
        Path | None, option("--clip", "CLIP's own weights, if FILE has no token embeddings.")
    ] = None,
    mos_range: Annotated[
        str | None, option("--mos-range", "Scale of the labels it was trained on, LOW,HIGH.")
    ] = None,
    as_json: opt.AsJson = False,
) -> None:
    """Turn released GRMP-IQA weights into a checkpoint."""
    need_torch("importing a checkpoint")
    from grmp_edge.score import MosScale
    from grmp_edge.train.import_released import ImportConfig, import_reference

    limits = scale_of_labels(mos_range)
    mos = MosScale(*limits) if limits else None
    config = ImportConfig(backbone, normalization, quick_gelu, mos, clip)
    result = import_reference(file, output, config)
    if as_json:
        print(json.dumps({"checkpoint": str(output), **result}))
    else:
        print(f"backbone         {result['backbone']}, normalization {normalization}")
        print(f"prompts          {result['visual_tokens']} visual a block, {result['text_tokens']} text")
        print(f"token embeddings {result['tokens']}")
        if result["ignored"]:
            print(f"not needed       {', '.join(result['ignored'])}")
    print(
        f"checkpoint: {output}\nnext: grmp-edge export {as_typed(output)} --fp16 "
        f"-o {as_typed(Path('bundles') / output.name)}",
        file=sys.stderr,
    )
