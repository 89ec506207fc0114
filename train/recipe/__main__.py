"""The stages of the recipe: python -m grmp_edge.train.recipe STAGE ... (--help of each lists its options)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from grmp_edge.errors import GrmpError
from grmp_edge.train.network.embedded import EMBEDDED_PATH
from grmp_edge.train.recipe.convert import ConvertConfig, convert, convert_package

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a stage; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m grmp_edge.train.recipe", description=__doc__)
    stages = parser.add_subparsers(dest="stage", required=True)
    own = stages.add_parser("convert", help="a state of the first implementation to a set of weights")
    own.add_argument("state", type=Path)
    own.add_argument("-o", "--output", type=Path, default=EMBEDDED_PATH)
    own.add_argument("--note", default="", help="what it was trained on, for the header")
    own = stages.add_parser("stem", help="the package's ImageNet weights to the stem's file")
    own.add_argument("weights", type=Path, help="efficientnet-lite0-57934424.pth")
    given = parser.parse_args(arguments)
    console = Console(stderr=True)
    try:
        if given.stage == "stem":
            console.print(convert_package(given.weights))
        else:
            console.print(convert(ConvertConfig(given.state, given.output, given.note)))
    except GrmpError as error:
        console.print(f"error: {error}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
