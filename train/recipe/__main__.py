"""The recipe's stages: python -m grmp_edge.train.recipe STAGE ...

In order, with DATA (pristine/, video/, livec/labels.csv) and a folder WORK for stores and weights:

    extract DATA WORK       stem outputs of all pictures: hours on two cores, once
    faults WORK             weights A before their straight row
    appeal WORK             weights A: faults, and the scenes' appeal
    scores WORK             weights B before their straight row, from the stage `faults`
    blend WORK              weights B with their straight row
    settle WORK             weights B: plain scenes join, and healthy changes weigh more
    measure WORK WEIGHTS    their figures, as JSON

What ships is made of them by ``convert`` (A) and ``python -m grmp_edge.export.default_model`` (B).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from grmp_edge.errors import GrmpError
from grmp_edge.train.network.embedded import EMBEDDED_PATH, load_embedded
from grmp_edge.train.recipe.convert import ConvertConfig, convert, convert_package
from grmp_edge.train.recipe.faults import Picture
from grmp_edge.train.recipe.learn import (
    SETTLE,
    AppealConfig,
    BlendConfig,
    FaultsConfig,
    ScoresConfig,
    add_appeal,
    blend_scores,
    learn_faults,
    learn_scores,
)
from grmp_edge.train.recipe.measure import (
    fault_figures,
    local_figures,
    local_views,
    measured_views,
    zero_shot,
)
from grmp_edge.train.recipe.sources import (
    Record,
    fault_views,
    labelled_views,
    scene_views,
    surface_views,
)
from grmp_edge.train.recipe.store import extract, read_stores
from grmp_edge.train.recipe.upper import Upper

__all__ = ["main", "stores"]

_FAULTS, _A, _SCORES, _BLEND, _B = (f"{name}.safetensors" for name in ("faults", "a", "scores", "blend", "b"))


class Lines:
    """Progress in a line every ten seconds."""

    def __init__(self, console: Console) -> None:
        self.console, self.stage, self.total, self.done, self.printed = console, "", 0, 0, 0.0

    def start(self, stage: str, total: int, done: int = 0) -> None:
        """A stage of ``total`` steps begins (0: not known), of which ``done`` are done already."""
        self.stage, self.total, self.done = stage, total, done

    def step(self, count: int = 1, **metrics: float) -> None:
        """``count`` more steps are done."""
        self.done += count
        if time.monotonic() - self.printed > 10 or self.done == self.total:
            self.printed = time.monotonic()
            words = "  ".join(f"{name} {value:.3f}" for name, value in metrics.items())
            of = f" of {self.total}" if self.total else ""
            self.console.print(f"{self.stage}: {self.done}{of}  {words}", soft_wrap=True)

    def note(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, soft_wrap=True)


def stores(data: Path) -> dict[str, Callable[[], Iterator[tuple[Record, Picture]]]]:
    """What each store holds, by its name."""
    return {
        "faults1": partial(fault_views, data, 1),
        "faults2": partial(fault_views, data, 2),
        "faults3": partial(surface_views, data, 3),
        "scenes": partial(scene_views, data, 1),
        "livec": partial(labelled_views, data / "livec" / "labels.csv"),
        "measure": partial(measured_views, data),
        "local": partial(local_views, data),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a stage; returns the exit code."""
    given = _parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        _run(given, Lines(console))
    except GrmpError as error:
        console.print(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        console.print("stopped")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m grmp_edge.train.recipe",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    stages = parser.add_subparsers(dest="stage", required=True)
    own = stages.add_parser("extract", help="stem outputs of all pictures, into WORK")
    own.add_argument("data", type=Path)
    own.add_argument("work", type=Path)
    own.add_argument("--only", help="one store: faults1, faults2, faults3, scenes, livec, measure, local")
    for stage, words in (
        ("faults", "weights A before their straight row"),
        ("appeal", "weights A"),
        ("scores", "weights B before their straight row"),
        ("blend", "weights B with their straight row"),
        ("settle", "weights B"),
    ):
        own = stages.add_parser(stage, help=words)
        own.add_argument("work", type=Path)
        if stage in ("scores", "blend", "settle"):
            own.add_argument("--fold", type=int, help="one of five, left out to measure")
    own = stages.add_parser("measure", help="figures on pictures held out, as JSON")
    own.add_argument("work", type=Path)
    own.add_argument("weights", type=Path)
    own = stages.add_parser("convert", help="a state of the first implementation to a set of weights")
    own.add_argument("state", type=Path)
    own.add_argument("-o", "--output", type=Path, default=EMBEDDED_PATH)
    own.add_argument("--note", default="", help="what it was trained on, for the header")
    own = stages.add_parser("stem", help="the package's ImageNet weights to the stem's file")
    own.add_argument("weights", type=Path, help="efficientnet-lite0-57934424.pth")
    return parser


def _run(given: argparse.Namespace, lines: Lines) -> None:
    if given.stage == "stem":
        lines.note(convert_package(given.weights))
    elif given.stage == "convert":
        lines.note(convert(ConvertConfig(given.state, given.output, given.note)))
    elif given.stage == "extract":
        for name, views in stores(given.data).items():
            if given.only in (None, name):
                extract(given.work / name, views(), lines)
    elif given.stage == "measure":
        sys.stdout.write(json.dumps(_figures(given.work, given.weights), indent=2) + "\n")
    else:
        lines.note(_learn(given.stage, given.work, getattr(given, "fold", None), lines))


def _learn(stage: str, work: Path, fold: int | None, lines: Lines) -> str:
    if stage == "faults":
        return learn_faults(Upper.load(None), work, FaultsConfig(), work / _FAULTS, lines)
    if stage == "appeal":
        return add_appeal(Upper.load(work / _FAULTS), work, AppealConfig(), work / _A, lines)
    if stage == "scores":
        config = ScoresConfig(fold=fold)
        return learn_scores(Upper.load(work / _FAULTS), work, config, work / _SCORES, lines)
    begin = work / (_SCORES if stage == "blend" else _BLEND)
    own: Any = load_embedded(begin)
    upper = Upper.load(begin)
    if stage == "blend":
        return blend_scores(upper, own.aggregate, work, BlendConfig(fold=fold), work / _BLEND, lines)
    return learn_scores(upper, work, replace(SETTLE, fold=fold), work / _B, lines, own.aggregate)


def _figures(work: Path, weights: Path) -> dict[str, Any]:
    clip: Any = load_embedded(weights)
    upper, views = Upper.load(weights), read_stores([work / "measure"])
    return {
        "photographs": asdict(fault_figures(upper, clip.aggregate, views, clips=False)),
        "clips": asdict(fault_figures(upper, clip.aggregate, views, clips=True)),
        "local": local_figures(upper, read_stores([work / "local"])),
        "livec": zero_shot(upper, clip.aggregate, read_stores([work / "livec"])),
    }


if __name__ == "__main__":
    sys.exit(main())
