"""The embedded backbone: a small open_clip CLIP whose weights ship with the project, so no download.

The file holds float16 values and only the token rows in use: of the tokenizer's 49,408 words the captions of
the recipe use a few hundred, and the whole table would be as large as the image tower.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from grmp_edge.default_bundle import DEFAULT_BUNDLE, EMBEDDED
from grmp_edge.errors import ModelError
from grmp_edge.files import replace_file
from grmp_edge.train.network.merging import merge_from, merging_blocks
from grmp_edge.train.network.settings import (
    CALIBRATION_STEPS,
    BackboneSettings,
    EmbeddedBackbone,
    LearningSettings,
    MetaSettings,
    PromptConfig,
)

__all__ = [
    "BACKBONE",
    "EMBEDDED_PATH",
    "EMBEDDED_SHA256",
    "PROMPTS_PATH",
    "WEIGHTS",
    "Shape",
    "build_embedded",
    "load_embedded",
    "load_prompts",
    "save_embedded",
    "save_prompts",
    "thinned",
    "token_ids_of",
]

# One copy serves training and, in the default bundle, scoring.
EMBEDDED_PATH = DEFAULT_BUNDLE / f"{EMBEDDED}.safetensors"
# Of the shipped file; changes whenever the weights are trained anew.
EMBEDDED_SHA256 = "579523a0343d0de21465eba8e5e5bb5778d312e2148633209643b80086ce4383"
WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
# Meta-learned on synthetic distortions for exactly these weights (export/default_model.py).
PROMPTS_PATH = WEIGHTS / f"{EMBEDDED}.prompts.safetensors"

_FORMAT = "grmp-edge-embedded-1"
_PROMPTS_FORMAT = "grmp-edge-prompts-1"
_TABLE = "token_embedding.weight"
_BLOCKS = "visual.transformer.resblocks."
_EMBED_DIM = 256
# Head width 64 as in every ViT of CLIP.
_VISION = {
    "width": 256,
    "head_width": 64,
    "mlp_ratio": 4.0,
    "patch_size": 16,
    "image_size": 224,
}
# Narrow: the captions are short and use few words. Context and vocabulary are the standard tokenizer's.
_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 3}


@dataclass(frozen=True)
class Shape:
    """What differs between the network that the recipe starts with and the one that ships."""

    layers: int = 5  # of the image tower: 4.3 M parameters
    merge: int | None = 2  # the block before which tokens merge: all later ones cost a quarter; None: none


def build_embedded(shape: Shape | None = None) -> CLIP:
    """Make the network with random weights from torch's global generator.

    Args:
        shape: None is the one that ships.

    Returns:
        An ordinary ``open_clip.model.CLIP``, but that a block may merge its tokens; float32 on the CPU, in
        training mode. Images: (N, 3, 224, 224) with CLIP's mean and std; texts: (N, 77) int64 of the standard
        tokenizer, features (N, 256).
    """
    shape = shape or Shape()
    model = CLIP(embed_dim=_EMBED_DIM, vision_cfg={**_VISION, "layers": shape.layers}, text_cfg=dict(_TEXT))
    if shape.merge is not None:
        merge_from(model.visual, shape.merge)
    return model


def thinned(model: CLIP, blocks: Sequence[int], merge: int | None) -> CLIP:
    """Copy a network with some of its image blocks only.

    Args:
        model: of the architecture of ``build_embedded``.
        blocks: which to keep, ascending.
        merge: index, among the kept blocks, of the one before which tokens merge; None: none.

    Raises:
        ModelError: a block does not exist, or the one that merges is not among the kept ones.
    """
    count = len(model.visual.transformer.resblocks)
    if list(blocks) != sorted(set(blocks)) or not blocks or blocks[0] < 0 or blocks[-1] >= count:
        raise ModelError(f"blocks {list(blocks)} cannot be kept of {count}", "name some of them, ascending")
    if merge is not None and not 0 <= merge < len(blocks):
        raise ModelError(
            f"of {len(blocks)} blocks none is number {merge}", "count from 0 among the kept ones"
        )
    made = build_embedded(Shape(len(blocks), merge))
    state = model.state_dict()
    weights = {name: value for name, value in state.items() if not name.startswith(_BLOCKS)}
    for place, index in enumerate(blocks):
        own = f"{_BLOCKS}{index}."
        weights |= {
            f"{_BLOCKS}{place}.{name.removeprefix(own)}": value
            for name, value in state.items()
            if name.startswith(own)
        }
    made.load_state_dict(weights)
    return made


def token_ids_of(texts: Iterable[str]) -> list[int]:
    """List the standard tokenizer's ids for texts, with start, end and padding, ascending."""
    tokenizer = SimpleTokenizer()
    ids = {0, tokenizer.sot_token_id, tokenizer.eot_token_id}
    for text in set(texts):
        ids.update(tokenizer.encode(text))
    return sorted(ids)


def save_embedded(
    model: CLIP, path: Path, token_ids: Iterable[int], metadata: Mapping[str, str] | None = None
) -> str:
    """Write the weights as float16 safetensors, atomically.

    Args:
        model: of the architecture of ``build_embedded``.
        path: the file to write.
        token_ids: the rows of the token table to keep; all others come back as their mean.
        metadata: further strings for the file's header (recipe, seed, data).

    Returns:
        The SHA-256 of the file, in hex.

    Raises:
        ModelError: a weight is not finite in float16, or a token id is outside the table.
    """
    state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    table = state.pop(_TABLE).float()
    ids = torch.tensor(sorted(set(token_ids)), dtype=torch.int64)
    if len(ids) == 0 or int(ids[0]) < 0 or int(ids[-1]) >= len(table):
        raise ModelError(f"token ids must be 1 or more of 0..{len(table) - 1}", "use token_ids_of(captions)")
    tensors = {name: value.to(torch.float16).contiguous() for name, value in state.items()}
    tensors["token_embedding.rows"] = table[ids].to(torch.float16)
    tensors["token_embedding.fallback"] = table[ids].mean(dim=0).to(torch.float16)
    for name, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise ModelError(f"{name} is not finite in float16", "train again with a lower learning rate")
    tensors["token_embedding.ids"] = ids.to(torch.int32)
    header = {**(metadata or {}), "format": _FORMAT, "name": EMBEDDED}
    merging = merging_blocks(model.visual.transformer.resblocks)
    if merging:
        header["merge"] = str(merging[0])
    data = save(tensors, metadata=header)
    with replace_file(path) as temporary:
        temporary.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def load_embedded(path: Path | None = None) -> CLIP:
    """Load the backbone.

    Args:
        path: a file of ``save_embedded``; None takes the shipped weights and checks their SHA-256.

    Returns:
        The network in float32 on the CPU, in evaluation mode, with the whole token table filled in.

    Raises:
        ModelError: the file is missing, damaged, altered, or of another architecture.
    """
    file = EMBEDDED_PATH if path is None else Path(path)
    remedy = "reinstall grmp-edge" if path is None else "give a file written by save_embedded"
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read the embedded backbone {file}: {error.strerror}", remedy) from error
    if path is None and hashlib.sha256(data).hexdigest() != EMBEDDED_SHA256:
        raise ModelError(f"the embedded backbone {file} was altered: its SHA-256 differs", remedy)
    try:
        tensors = load(data)
        ids = tensors.pop("token_embedding.ids").long()
        rows = tensors.pop("token_embedding.rows").float()
        fallback = tensors.pop("token_embedding.fallback").float()
        shape = _shape_of(data, tensors)
    except (SafetensorError, KeyError, ValueError) as error:
        raise ModelError(f"{file} is not an embedded backbone: {error}", remedy) from error
    # The random values are all replaced, so the caller's random stream must not feel them.
    with torch.random.fork_rng(devices=[]):
        model = build_embedded(shape)
    table = fallback.repeat(model.vocab_size, 1)
    table[ids] = rows
    try:
        model.load_state_dict({**{name: value.float() for name, value in tensors.items()}, _TABLE: table})
    except RuntimeError as error:
        raise ModelError(f"{file} does not fit the architecture {EMBEDDED}: {error}", remedy) from error
    return model.eval()


def _shape_of(data: bytes, tensors: Mapping[str, torch.Tensor]) -> Shape:
    """Read the shape off a file of ``save_embedded``; ValueError: impossible shape."""
    length = int.from_bytes(data[:8], "little")
    merge = json.loads(data[8 : 8 + length]).get("__metadata__", {}).get("merge")
    layers = sum(name.startswith(_BLOCKS) and name.endswith(".ln_1.weight") for name in tensors)
    shape = Shape(layers, None if merge is None else int(merge))
    if shape.merge is not None and not 0 <= shape.merge < layers:
        raise ValueError(f"{layers} blocks of which number {merge} merges")
    return shape


def save_prompts(prompts: Mapping[str, torch.Tensor], path: Path, backbone: str | None = None) -> None:
    """Write meta-learned prompts as float16 safetensors, atomically.

    Args:
        prompts: the model's ``prompt_parameters`` by name.
        path: the file to write.
        backbone: SHA-256 of the backbone's file that they were learned for; None: the shipped one's.
    """
    tensors = {name: value.detach().cpu().to(torch.float16).contiguous() for name, value in prompts.items()}
    header = {"format": _PROMPTS_FORMAT, "backbone": backbone or EMBEDDED_SHA256}
    with replace_file(path) as temporary:
        temporary.write_bytes(save(tensors, metadata=header))


def load_prompts(path: Path = PROMPTS_PATH) -> dict[str, torch.Tensor]:
    """Read the shipped meta-learned prompts: float32, by the names of ``prompt_parameters``.

    Raises:
        ModelError: the file is missing or damaged, or was learned for other weights.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot read the prompts {path}: {error}", "reinstall grmp-edge") from error
    if header.get("format") != _PROMPTS_FORMAT or header.get("backbone") != EMBEDDED_SHA256:
        raise ModelError(f"{path}: prompts of another backbone", "reinstall grmp-edge")
    return tensors


BACKBONE = EmbeddedBackbone(
    name=EMBEDDED,
    settings=BackboneSettings(
        # It was trained with CLIP's normalisation, and its later blocks see 49 places, among which a hundred
        # prompts would be the majority: half of them rank better (docs/experiments.md, 31).
        prompts=PromptConfig(visual_tokens=50, normalization="clip"),
        # Tasks are reset, so one epoch at the reference's beta moves the prompts by a hundredth of ten small
        # steps; and it is for CPUs, where fifty epochs take hours.
        meta=MetaSettings(epochs=3, inner_lr=1e-3, outer_lr=1.0),
        finetune=LearningSettings(
            # Few steps, as more unlearn what it knew (docs/experiments.md, 17 and 19).
            epochs=12,
            batch=16,
            # The reference's was found for CLIP's logit scale of 100; here it is 17, and gradients fall
            # with it.
            lr=0.5,
            qgr_strength=1.0,  # its view of scenes is too dim to be worth more (docs/experiments.md, 17)
            # Its scores lie near 1 on photographs, and it lost order in finding the labels' scale; once
            # calibrated, its text side fits the errors of few labels first (docs/experiments.md, 19).
            calibration_steps=CALIBRATION_STEPS,
            text_rate=0.0,
            average=True,  # swings less than the weights of one epoch (docs/experiments.md, 19)
            image_blocks=3,  # of five: all that work on merged tokens (docs/experiments.md, 32)
        ),
        lr_with_text=0.03,
        # Of its few epochs, whose weights are averaged, a handful of pictures chooses no better than the
        # schedule, and they are missed in training (docs/experiments.md, 19).
        validation_fraction=0.0,
    ),
    build=build_embedded,
    load=load_embedded,
    load_prompts=load_prompts,
    prompts_path=PROMPTS_PATH,
)
