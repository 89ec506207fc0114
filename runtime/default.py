"""The bundle that ships with grmp-edge, for whoever has none: scoring works at once, without a download."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from grmp_edge.bundle import MANIFEST

__all__ = ["DEFAULT_BUNDLE", "bundle_and_sources"]

# What it can and cannot judge is said in train/weights/README.md.
DEFAULT_BUNDLE = Path(__file__).resolve().parent / "default_model"


def bundle_and_sources(arguments: Sequence[str]) -> tuple[Path, list[str]]:
    """Tell ``[BUNDLE] SOURCE...`` apart: a first argument that is a folder with a bundle.json is the bundle.

    Returns:
        (the bundle, the default one if none is named; the sources).
    """
    first = arguments[0] if arguments else ""
    if first and "://" not in first and (Path(first) / MANIFEST).is_file():
        return Path(first), list(arguments[1:])
    return DEFAULT_BUNDLE, list(arguments)
