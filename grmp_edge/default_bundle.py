"""The bundle that ships with grmp-edge, for whoever has none: scoring works at once, without a download."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["DEFAULT_BUNDLE", "DEFAULT_NAME", "MANIFEST", "bundle_and_sources", "resolve_bundle"]

# What it can and cannot judge is said in train/weights/README.md.
DEFAULT_BUNDLE = Path(__file__).resolve().parent / "runtime" / "default_model"
DEFAULT_NAME = "default"  # stands for it wherever a bundle is named
MANIFEST = "bundle.json"


def resolve_bundle(path: str | Path) -> Path:
    """A bundle as it was named: ``default`` is the one that ships, unless there is such a folder."""
    named = Path(path)
    return DEFAULT_BUNDLE if str(named) == DEFAULT_NAME and not named.exists() else named


def bundle_and_sources(arguments: Sequence[str]) -> tuple[Path, list[str]]:
    """Tell ``[BUNDLE] SOURCE...`` apart.

    The first argument is the bundle if it is the word ``default`` or a folder with a bundle.json, or if it
    can be nothing else: with more behind it, a bare name that is not there (so that the reader of bundles
    says what is wrong with it). Otherwise all are sources for the default bundle.

    Returns:
        (the bundle, the sources).
    """
    first = arguments[0] if arguments else ""
    if first and "://" not in first:
        named = resolve_bundle(first)
        bare = not Path(first).exists() and not set(first) & set("*?[:") and not Path(first).suffix
        missing = len(arguments) > 1 and bare and first != "-" and not first.isdigit()
        if (named / MANIFEST).is_file() or missing:
            return named, list(arguments[1:])
    return DEFAULT_BUNDLE, list(arguments)
