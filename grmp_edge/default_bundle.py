"""The bundle that ships with grmp-edge, so that scoring works at once, without a download."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from grmp_edge.errors import UsageError
from grmp_edge.redact import safe_name

__all__ = [
    "DEFAULT_BUNDLE",
    "DEFAULT_NAME",
    "EMBEDDED",
    "MANIFEST",
    "bundle_and_sources",
    "is_checkpoint",
    "looks_like_model",
    "resolve_bundle",
]

# train/weights/README.md says what it can and cannot judge.
DEFAULT_BUNDLE = Path(__file__).resolve().parent / "runtime" / "default_model"
EMBEDDED = "embedded-l0"  # the backbone inside
DEFAULT_NAME = "default"  # stands for it wherever a bundle is named
MANIFEST = "bundle.json"

_CHECKPOINT = "weights.safetensors"  # in the folder that training writes
_GRAPHS = ("model.onnx", "model.fp16.onnx", "model.int8.onnx")  # as bundles name them
_WEIGHTS = frozenset({".ckpt", ".engine", ".onnx", ".plan", ".pt", ".pth", ".safetensors"})


def resolve_bundle(path: str | Path) -> Path:
    """The path of a named bundle: ``default`` is the one that ships, unless a folder has that name."""
    named = Path(path)
    return DEFAULT_BUNDLE if str(named) == DEFAULT_NAME and not named.exists() else named


def bundle_and_sources(arguments: Sequence[str], bundle: Path | None = None) -> tuple[Path, list[str]]:
    """Split the arguments ``[BUNDLE] SOURCE...``.

    The first one is the bundle if it is the word ``default``, if it looks like a model of any kind, or if it
    can be nothing else: a bare name that does not exist, followed by more. Loading it then explains what is
    wrong. Otherwise all arguments are sources for the default bundle.

    Args:
        arguments: as given.
        bundle: named by an option; all arguments are sources then.

    Returns:
        (the bundle, the sources).

    Raises:
        UsageError: a model is named behind the first place.
    """
    if bundle is not None:
        return resolve_bundle(bundle), list(arguments)
    first, named = arguments[0] if arguments else "", DEFAULT_BUNDLE
    sources = list(arguments)
    if first and "://" not in first:
        path = resolve_bundle(first)
        bare = not Path(first).exists() and not set(first) & set("*?[:") and not Path(first).suffix
        missing = len(arguments) > 1 and bare and first != "-" and not first.isdigit()
        if missing or looks_like_model(path):
            named, sources = path, list(arguments[1:])
    for source in sources:
        if looks_like_model(Path(source)):
            raise UsageError(
                f"{safe_name(source)}: a model among the sources",
                "name the bundle first; if its pictures are to be scored, give the bundle by --bundle",
            )
    return named, sources


def looks_like_model(path: Path) -> bool:
    """Whether a path is meant as a bundle, or is a checkpoint, graph or weights: no source of pictures."""
    if path.suffix.lower() == ".bundle" or path.name == MANIFEST:
        return True
    if path.is_dir():
        return any((path / name).is_file() for name in (MANIFEST, _CHECKPOINT, *_GRAPHS))
    return path.suffix.lower() in _WEIGHTS


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is what training writes."""
    return (folder / _CHECKPOINT).is_file()
