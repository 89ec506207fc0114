"""The embedded backbone: a small open_clip CLIP whose weights ship with the project, so no download.

A file holds one set of weights above the stem, with the prompts that were learned with them; the stem is
frozen, has a file of its own and serves all sets. Values are float16, constants float32, and of the
tokenizer's 49,408 words only those of the project's own sentences have their rows: the whole table would be
larger than all the rest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from grmp_edge.default_bundle import DEFAULT_BUNDLE, EMBEDDED
from grmp_edge.errors import ModelError
from grmp_edge.files import replace_file
from grmp_edge.train.network.hybrid import NATIVE, build_hybrid
from grmp_edge.train.network.settings import (
    EmbeddedBackbone,
)
from grmp_edge.train.network.stem import Stem, read_stem
from grmp_edge.train.network.words import cause_prompts, quality_prompts, scene_prompts
from grmp_edge.views import Aggregate

__all__ = [
    "BACKBONE",
    "DEFAULT_PATH",
    "DIGESTS_PATH",
    "EMBEDDED_PATH",
    "STEM_PATH",
    "WEIGHTS",
    "load_embedded",
    "load_prompts",
    "load_shipped_stem",
    "own_token_ids",
    "save_embedded",
    "token_ids_of",
]

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
# Never saw a person's score: the start of users' fine-tuning, and what protocols are measured with.
EMBEDDED_PATH = WEIGHTS / f"{EMBEDDED}.safetensors"
# In the default bundle, whose graphs read their weights from both; the second is the model that ships.
STEM_PATH = DEFAULT_BUNDLE / "lite0-stem.safetensors"
DEFAULT_PATH = DEFAULT_BUNDLE / f"{EMBEDDED}.default.safetensors"
# SHA-256 of the shipped files, by name; written by `python -m grmp_edge.train.recipe convert --ship`.
DIGESTS_PATH = WEIGHTS / "digests.json"

_FORMAT = "grmp-edge-hybrid-1"
_TABLE = "token_embedding.weight"
_STEM = "visual.stem."
_PROMPTS = "prompts."
_CONTEXT = 4  # learned text vectors before the quality words
# What standardises the stem's outputs: kept exactly, so that statistics are the same in every set.
_EXACT = ("_mean", "_std", "cause_bias")


def token_ids_of(texts: Iterable[str]) -> list[int]:
    """List the standard tokenizer's ids for texts, with start, end and padding, ascending."""
    tokenizer = SimpleTokenizer()
    ids = {0, tokenizer.sot_token_id, tokenizer.eot_token_id}
    for text in set(texts):
        ids.update(tokenizer.encode(text))
    return sorted(ids)


def own_token_ids() -> list[int]:
    """The ids of all that the project asks with: qualities, scenes and causes."""
    return token_ids_of([*quality_prompts(_CONTEXT), *scene_prompts(), *cause_prompts()])


def save_embedded(
    clip: CLIP,
    prompts: Mapping[str, Tensor],
    path: Path,
    token_ids: Iterable[int] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> str:
    """Write a set of weights as safetensors, atomically: all but the stem.

    Args:
        clip: of the architecture of ``build_hybrid``, with ``native`` and ``aggregate``.
        prompts: the model's ``prompt_parameters`` by name.
        path: the file to write.
        token_ids: the rows of the token table to keep, by default ``own_token_ids``; all others come back as
            their mean.
        metadata: further strings for the file's header (recipe, seed, data).

    Returns:
        The SHA-256 of the file, in hex.

    Raises:
        ModelError: a weight is not finite in float16, or a token id is outside the table.
    """
    state = {name: value.detach().cpu() for name, value in clip.state_dict().items()}
    table = state.pop(_TABLE).float()
    ids = torch.tensor(sorted(set(own_token_ids() if token_ids is None else token_ids)), dtype=torch.int64)
    if len(ids) == 0 or int(ids[0]) < 0 or int(ids[-1]) >= len(table):
        raise ModelError(f"token ids must be 1 or more of 0..{len(table) - 1}", "use token_ids_of(texts)")
    upper = {name: value for name, value in state.items() if not name.startswith(_STEM)}
    upper |= {_PROMPTS + name: value.detach().cpu() for name, value in prompts.items()}
    tensors = {
        name: value.to(torch.float32 if name.endswith(_EXACT) else torch.float16).contiguous()
        for name, value in upper.items()
    }
    tensors["token_embedding.rows"] = table[ids].to(torch.float16)
    tensors["token_embedding.fallback"] = table[ids].mean(dim=0).to(torch.float16)
    for name, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise ModelError(f"{name} is not finite in float16", "train again with a lower learning rate")
    tensors["token_embedding.ids"] = ids.to(torch.int32)
    aggregate: Aggregate = getattr(clip, "aggregate", Aggregate())
    header = {
        **(metadata or {}),
        "format": _FORMAT,
        "name": EMBEDDED,
        "native": str(getattr(clip, "native", NATIVE)),
        "aggregate": json.dumps(aggregate.to_json()),
    }
    data = save(tensors, metadata=header)
    with replace_file(path) as temporary:
        temporary.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def load_embedded(path: Path | None = None) -> CLIP:
    """Load the backbone: the stem that ships, and a set of weights above it.

    Args:
        path: a file of ``save_embedded``; None takes the shipped weights and checks their SHA-256.

    Returns:
        The network in float32 on the CPU, in evaluation mode, with the whole token table filled in.

    Raises:
        ModelError: the file is missing, damaged, altered, or of another architecture.
    """
    file, data, remedy = _read(path)
    try:
        tensors = load(data)
        header = _header(data)
        ids = tensors.pop("token_embedding.ids").long()
        rows = tensors.pop("token_embedding.rows").float()
        fallback = tensors.pop("token_embedding.fallback").float()
        native, recorded = int(header["native"]), json.loads(header["aggregate"])
        aggregate = Aggregate(*(float(recorded[key]) for key in ("whole", "native", "shift")))
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ModelError(f"{file} is not an embedded backbone: {error}", remedy) from error
    # The random values are all replaced, so the caller's random stream must not feel them.
    with torch.random.fork_rng(devices=[]):
        clip = build_hybrid()
    table = fallback.repeat(clip.vocab_size, 1)
    table[ids] = rows
    upper = {name: value.float() for name, value in tensors.items() if not name.startswith(_PROMPTS)}
    stem = {_STEM + name: value for name, value in load_shipped_stem().state_dict().items()}
    try:
        clip.load_state_dict({**upper, **stem, _TABLE: table})
    except RuntimeError as error:
        raise ModelError(f"{file} does not fit the architecture {EMBEDDED}: {error}", remedy) from error
    clip.native, clip.aggregate = native, aggregate
    return clip.eval()


def load_prompts(path: Path | None = None) -> dict[str, Tensor]:
    """Read the prompts that a set of weights was learned with: float32, by ``prompt_parameters``' names.

    Args:
        path: a file of ``save_embedded``; None takes the shipped weights and checks their SHA-256.

    Raises:
        ModelError: the file is missing, damaged or altered, or holds no prompts.
    """
    file, data, remedy = _read(path)
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise ModelError(f"{file} is not an embedded backbone: {error}", remedy) from error
    prompts = {
        name.removeprefix(_PROMPTS): value.float()
        for name, value in tensors.items()
        if name.startswith(_PROMPTS)
    }
    if not prompts:
        raise ModelError(f"{file}: holds no prompts", remedy)
    return prompts


def load_shipped_stem() -> Stem:
    """Load the stem that ships, and check its SHA-256.

    Raises:
        ModelError: the file is missing, damaged or altered.
    """
    data = _bytes(STEM_PATH, "the stem", _REINSTALL)
    _check(STEM_PATH, data)
    try:
        return read_stem(data)
    except (SafetensorError, RuntimeError) as error:
        raise ModelError(f"{STEM_PATH} is not the stem: {error}", _REINSTALL) from error


_REINSTALL = "reinstall grmp-edge"


def _read(path: Path | None) -> tuple[Path, bytes, str]:
    """A file of ``save_embedded``, its content, and what to do about errors; the shipped one is checked."""
    file = EMBEDDED_PATH if path is None else Path(path)
    remedy = _REINSTALL if path is None else "give a file written by save_embedded"
    data = _bytes(file, "the embedded backbone", remedy)
    if path is None:
        _check(file, data)
    return file, data, remedy


def _bytes(file: Path, what: str, remedy: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {what} {file}: {error.strerror}", remedy) from error


def _check(file: Path, data: bytes) -> None:
    """Compare a shipped file with its recorded digest."""
    digests = json.loads(_bytes(DIGESTS_PATH, "the list of digests", _REINSTALL))
    if hashlib.sha256(data).hexdigest() != digests.get(file.name):
        raise ModelError(f"{file} was altered: its SHA-256 differs", _REINSTALL)


def _header(data: bytes) -> dict[str, str]:
    """The strings in the header of safetensors; empty where there are none."""
    length = int.from_bytes(data[:8], "little")
    header: dict[str, str] = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    return header


BACKBONE = EmbeddedBackbone(
    name=EMBEDDED,
    build=build_hybrid,
    load=load_embedded,
    load_prompts=load_prompts,
    prompts_path=EMBEDDED_PATH,
)
