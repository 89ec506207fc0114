"""A protocol's folder: its settings, and one JSON file per finished split. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from grmp_edge.errors import CheckpointError, DataError
from grmp_edge.files import replace_file, sha256_bytes
from grmp_edge.train.data.labelled import Labelled
from grmp_edge.train.evaluate.protocol import SplitResult, label_name

__all__ = [
    "check_settings", "data_settings", "read_result", "split_file", "without_predictions", "write_result",
]  # fmt: skip


def split_file(output: Path, labels: int | None, split: int) -> Path:
    """The file of a finished split."""
    return output / "splits" / f"{label_name(labels)}-{split:02d}.json"


def data_settings(data: Labelled) -> dict[str, Any]:
    """What distinguishes one labelled set from another without reading its pictures."""
    digest = hashlib.sha256("\n".join(path.name for path in data.paths).encode())
    digest.update(np.ascontiguousarray(data.mos, dtype=np.float64).tobytes())
    return {
        "name": data.name,
        "pictures": len(data),
        "digest": digest.hexdigest(),
        "scale": asdict(data.scale) if data.scale else None,
        **({} if data.fixed is None else {"fixed": sha256_bytes("\n".join(data.fixed).encode())}),
    }


def check_settings(
    output: Path,
    settings: Mapping[str, Any],
    complete: Callable[[dict[str, Any]], dict[str, Any]] = lambda recorded: recorded,
) -> None:
    """Write the settings into a folder without finished splits, else compare them with those there.

    ``complete`` brings recorded settings of older versions into today's form.

    Raises:
        CheckpointError: the folder holds finished splits of other settings; the first that differs is named.
    """
    file = output / "protocol.json"
    current = json.loads(json.dumps(dict(settings)))
    if not file.exists() or not any((output / "splits").glob("*.json")):
        with replace_file(file) as temporary:
            temporary.write_text(json.dumps(current, indent=2) + "\n", encoding="utf-8")
        return
    try:
        recorded = complete(json.loads(file.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"{file}: damaged", "choose another -o") from None
    for key in current:
        if recorded.get(key) != current[key]:
            raise CheckpointError(
                f"{output}: holds an evaluation of other settings ({key} differs)",
                "use the same settings and data, or another -o",
            )


def read_result(file: Path) -> SplitResult | None:
    """A finished split, or None if it has not been run.

    Raises:
        DataError: the file is damaged.
    """
    if not file.is_file():
        return None
    try:
        result: SplitResult = json.loads(file.read_bytes())
        result["metrics"], result["labels"], result["split"]
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{file}: damaged", "remove it, and that split is run again") from None
    return result


def write_result(file: Path, result: SplitResult) -> None:
    """Write a finished split."""
    with replace_file(file) as temporary:
        temporary.write_text(json.dumps(result), encoding="utf-8")


def without_predictions(result: SplitResult, method: str) -> SplitResult:
    """A result as tables have it: with the name of what was tested, without the pictures' predictions."""
    named: SplitResult = {**result, "method": method}
    named.pop("predictions", None)
    return named
