"""A protocol's folder: its settings, and one JSON file per finished split. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from grmp_edge.errors import CheckpointError, DataError
from grmp_edge.files import replace_file
from grmp_edge.train.data.labelled import Labelled
from grmp_edge.train.evaluate.protocol import label_name

__all__ = ["data_settings", "finished", "keep", "same_settings", "split_file"]


def split_file(output: Path, labels: int | None, split: int) -> Path:
    """Where a finished split is kept."""
    return output / "splits" / f"{label_name(labels)}-{split:02d}.json"


def data_settings(data: Labelled) -> dict[str, Any]:
    """What tells one labelled set from another without reading its pictures."""
    digest = hashlib.sha256("\n".join(path.name for path in data.paths).encode())
    digest.update(np.ascontiguousarray(data.mos, dtype=np.float64).tobytes())
    return {
        "name": data.name,
        "pictures": len(data),
        "digest": digest.hexdigest(),
        "scale": asdict(data.scale) if data.scale else None,
    }


def same_settings(output: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings into an empty folder, or compare them with what is there.

    Raises:
        CheckpointError: the folder holds finished splits of other settings; the first that differs is named.
    """
    file = output / "protocol.json"
    wanted = json.loads(json.dumps(dict(settings)))
    if not file.exists() or not any((output / "splits").glob("*.json")):  # nothing to disagree with
        with replace_file(file) as temporary:
            temporary.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
        return
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        raise CheckpointError(f"{file}: damaged", "choose another -o") from None
    for key in wanted:
        if found.get(key) != wanted[key]:
            raise CheckpointError(
                f"{output}: holds an evaluation of other settings ({key} differs)",
                "use the same settings and data, or another -o",
            )


def finished(file: Path) -> dict[str, Any] | None:
    """A finished split, or None where there is none.

    Raises:
        DataError: the file is damaged.
    """
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_bytes())
        found["metrics"], found["labels"], found["split"]
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{file}: damaged", "remove it, and that split is run again") from None
    return dict(found)


def keep(file: Path, found: Mapping[str, Any]) -> None:
    """Write a finished split."""
    with replace_file(file) as temporary:
        temporary.write_text(json.dumps(found), encoding="utf-8")
