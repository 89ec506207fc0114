"""What may differ between a run and its continuation: more epochs, the data's location, newer packages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["difference", "version_notes"]

# Only informative, or derived from settings that are compared.
_NOT_COMPARED = frozenset(
    # picture_bytes changes how often pictures are read, not what is learned.
    {"progress", "format_version", "versions", "preset", "leaks", "meta.picture_bytes"}
)
# Where the labelled pictures are; the digest beside it is of their content.
_PLACES = frozenset({"data.name", "data.images"})
_MAY_RISE = frozenset({"finetune.epochs", "meta.epochs"})
# The behaviour of runs started before the setting existed.
_BEFORE = {
    "meta_select_on": "held-out tasks",
    "pretrained_by.meta_select_on": "held-out tasks",
    "meta.precision": "fp32",
    "finetune.precision": "fp32",
    "finetune.calibration_steps": 0,
    "finetune.text_rate": 1.0,
    "finetune.average": False,
    "finetune.method": "qgr",
    "finetune.offsets": "shared",
    "finetune.flip": "independent",
    "finetune.prompt_dropout": False,
    "finetune.label_scale": "declared",
    "meta.carry_adam": False,
    "meta.squash": "bicubic",
    "meta.labels_apart": False,
}


def difference(recorded: Mapping[str, Any], current: Mapping[str, Any]) -> str:
    """The first setting that forbids continuing, with both values; "" if there is none.

    Args:
        recorded: the settings of the run in the folder.
        current: the settings requested now.
    """
    digest = (
        bool((current.get("data") or {}).get("digest")) if isinstance(current.get("data"), dict) else False
    )
    for key in [*current, *recorded]:
        if key not in _NOT_COMPARED:
            reason = _differ(recorded.get(key), current.get(key), key, digest)
            if reason:
                return reason
    return ""


def version_notes(recorded: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """One line where packages differ in more than a patch release: rounding, and so results, may differ."""
    before, now = recorded.get("versions") or {}, current.get("versions") or {}
    moved = [
        f"{name} {before[name]} -> {now[name]}"
        for name in now
        if name in before and _minor(before[name]) != _minor(now[name])
    ]
    if not moved:
        return []
    return [f"resumed under other versions, so the result may differ a little: {', '.join(moved)}"]


def _minor(version: str) -> list[str]:
    return version.split("+")[0].split(".")[:2]


def _differ(recorded: Any, current: Any, name: str, digest: bool) -> str:
    if name in _NOT_COMPARED or (digest and name in _PLACES):
        return ""
    if isinstance(recorded, dict) and isinstance(current, dict):
        for key in [*current, *recorded]:
            inner = _differ(recorded.get(key), current.get(key), f"{name}.{key}", digest)
            if inner:
                return inner
        return ""
    if recorded is None and name in _BEFORE:
        recorded = _BEFORE[name]
    if recorded == current:
        return ""
    rises = ""
    if name in _MAY_RISE and isinstance(recorded, int) and isinstance(current, int):
        if current > recorded:
            return ""
        rises = " (epochs may only be raised)"
    return f"{name} was {_short(recorded)}, now {_short(current)}{rises}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
