"""What the training commands share: the live progress, what they say at the end, the list of presets."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grmp_edge.cli import options as opt
from grmp_edge.errors import MissingDependencyError

if TYPE_CHECKING:
    from grmp_edge.cli.progress import TrainProgress

__all__ = ["GO_ON", "finish", "need_torch", "presets", "working"]


def presets(as_json: opt.AsJson = False) -> None:
    """Tell in what --preset reference differs from the default, and why."""
    from grmp_edge.train.presets import PRESETS, differences

    found = differences(PRESETS["default"], PRESETS["reference"])
    if as_json:
        print(json.dumps([vars(item) for item in found]))
        return
    for item in found:
        print(f"{item.field}: default {_word(item.first)}, reference {_word(item.second)}")
        print(f"    {item.reason}")
    print("next: grmp-edge train --preset reference --data LABELS.csv", file=sys.stderr)


def _word(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value) or "the backbone's"


def finish(result: dict[str, Any], output: Path, as_json: bool, then: str) -> None:
    """Print a run's result, and what to run next."""
    said = {key: value for key, value in result.items() if key not in ("history", "lr", "waited")}
    if as_json:
        print(json.dumps({"checkpoint": str(output), **said}))
    else:
        for name, found in result.get("metrics", {}).items():
            numbers = "  ".join(
                f"{key.upper()} {'-' if value is None else format(value, '.3f')}"
                for key, value in found.items()
                if key != "count"
            )
            print(f"{name:20} {numbers}  ({found['count']} pictures)")
        for leak in result.get("leaks", ()):
            print(f"not an honest figure: {leak}")
        if result.get("held_out_tasks"):
            best = "-" if result["best_srcc"] is None else f"{result['best_srcc']:.3f}"
            print(f"held-out tasks  SRCC {best}  ({', '.join(result['held_out_tasks'])})")
    print(f"checkpoint: {output}\nnext: {then}", file=sys.stderr)


GO_ON = "the same command with --resume goes on from the last save"


def need_torch() -> None:
    """Raise MissingDependencyError where training's packages are not installed."""
    from importlib.util import find_spec

    for package in ("torch", "open_clip", "safetensors"):
        if find_spec(package) is None:
            raise MissingDependencyError(package, "train", "training")


@contextmanager
def working(
    then: str = GO_ON,
) -> Iterator[TrainProgress]:
    """Live progress; Ctrl-C says how to go on."""
    from grmp_edge.cli.progress import TrainProgress

    try:
        with TrainProgress() as reporter:
            yield reporter
    except KeyboardInterrupt:
        print(f"stopped; {then}", file=sys.stderr)
        raise
