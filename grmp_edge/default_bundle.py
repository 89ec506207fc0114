"""The bundle that ships with grmp-edge, so that scoring works at once, without a download."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["DEFAULT_BUNDLE", "DEFAULT_NAME", "EMBEDDED", "MANIFEST", "bundle_and_sources", "resolve_bundle"]

# train/weights/README.md says what it can and cannot judge.
DEFAULT_BUNDLE = Path(__file__).resolve().parent / "runtime" / "default_model"
EMBEDDED = "embedded-l0"  # the backbone inside
DEFAULT_NAME = "default"  # stands for it wherever a bundle is named
MANIFEST = "bundle.json"


def resolve_bundle(path: str | Path) -> Path:
    """The path of a named bundle: ``default`` is the one that ships, unless a folder has that name."""
    named = Path(path)
    return DEFAULT_BUNDLE if str(named) == DEFAULT_NAME and not named.exists() else named


def bundle_and_sources(arguments: Sequence[str]) -> tuple[Path, list[str]]:
    """Split the arguments ``[BUNDLE] SOURCE...``.

    The first one is the bundle if it is the word ``default`` or a folder with a bundle.json, or if it can be
    nothing else: a bare name that does not exist, followed by more (loading it then explains what is wrong).
    Otherwise all arguments are sources for the default bundle.

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
