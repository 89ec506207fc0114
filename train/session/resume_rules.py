"""What may differ between a run and its continuation: more epochs, where the data lies, newer packages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["difference", "version_notes"]

# Told for people, or following from settings that are compared.
_NOT_COMPARED = frozenset(
    # picture_bytes changes what is read again, not what is learned.
    {"progress", "format_version", "versions", "preset", "leaks", "meta.picture_bytes"}
)
# Where the labelled pictures lie; the digest beside it is of what they show.
_PLACES = frozenset({"data.name", "data.images"})
_MAY_RISE = frozenset({"finetune.epochs", "meta.epochs"})
# What runs did that were begun before the setting existed.
_BEFORE = {
    "meta_select_on": "held-out tasks",
    "pretrained_by.meta_select_on": "held-out tasks",
    "meta.precision": "fp32",
    "finetune.precision": "fp32",
    "finetune.calibration_steps": 0,
    "finetune.text_rate": 1.0,
    "finetune.average": False,
}


def difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The first setting that forbids continuing, with both values; "" where there is none.

    Args:
        found: the settings of the run that is there.
        wanted: the settings that are asked for now.
    """
    digest = bool((wanted.get("data") or {}).get("digest")) if isinstance(wanted.get("data"), dict) else False
    for key in [*wanted, *found]:
        if key not in _NOT_COMPARED:
            said = _differ(found.get(key), wanted.get(key), key, digest)
            if said:
                return said
    return ""


def version_notes(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """One line where packages differ in more than a patch release: rounding, and so results, may differ."""
    before, now = found.get("versions") or {}, wanted.get("versions") or {}
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


def _differ(found: Any, wanted: Any, name: str, digest: bool) -> str:
    if name in _NOT_COMPARED or (digest and name in _PLACES):
        return ""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in [*wanted, *found]:
            inner = _differ(found.get(key), wanted.get(key), f"{name}.{key}", digest)
            if inner:
                return inner
        return ""
    if found is None and name in _BEFORE:
        found = _BEFORE[name]
    if found == wanted:
        return ""
    rises = ""
    if name in _MAY_RISE and isinstance(found, int) and isinstance(wanted, int):
        if wanted > found:
            return ""
        rises = " (epochs may only be raised)"
    return f"{name} was {_short(found)}, now {_short(wanted)}{rises}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
