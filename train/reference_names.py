"""Tensor names of the released GRMP-IQA state dicts, in CLIP's and in this project's terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from grmp_edge.errors import ModelError

__all__ = ["Names", "infer_backbone", "missing_tensor", "split_names"]

_LEARNER = "prompt_learner2."
_IMAGE = "image_encoder."
_TEXT = "text_encoder."
_IMAGE_PROMPTS = (
    "prompt_embeddings",
    "deep_prompt_embeddings",
    "prompt_proj.weight",
    "prompt_proj.bias",
    "prompt_norm.weight",
    "prompt_norm.bias",
)
_TABLE = "token_embedding.weight"


@dataclass
class Names:
    """A released state dict, sorted."""

    clip: dict[str, Tensor] = field(default_factory=dict)  # by OpenAI's names
    prompts: dict[str, Tensor] = field(default_factory=dict)  # by GrmpIqa's names
    learner: dict[str, Tensor] = field(default_factory=dict)  # token_prefix, token_suffix
    ignored: list[str] = field(default_factory=list)


def split_names(state: Mapping[str, Tensor]) -> Names:
    """Sort the tensors of a state dict; those that belong to no part are listed as ignored."""
    names = Names()
    for name, tensor in state.items():
        if name == _LEARNER + "ctx":
            names.prompts["ctx"] = tensor
        elif name.startswith(_LEARNER + "token_"):
            names.learner[name.removeprefix(_LEARNER)] = tensor
        elif name.removeprefix(_IMAGE) in _IMAGE_PROMPTS and name.startswith(_IMAGE):
            names.prompts[name.removeprefix(_IMAGE)] = tensor
        elif name.startswith(_IMAGE):
            names.clip["visual." + name.removeprefix(_IMAGE)] = tensor
        elif name.endswith(_TABLE):
            names.clip[_TABLE] = tensor
        elif name.startswith(_TEXT):
            names.clip[name.removeprefix(_TEXT)] = tensor
        elif name == "logit_scale":
            names.clip[name] = tensor
        else:
            names.ignored.append(name)
    return names


def missing_tensor(names: Names) -> str:
    """The first tensor, by the reference's name, without which nothing can be made; empty if all are there.

    The blocks themselves are compared when the backbone is loaded.
    """
    if "ctx" not in names.prompts:
        return _LEARNER + "ctx"
    for name in _IMAGE_PROMPTS:
        if name not in names.prompts:
            return _IMAGE + name
    for name in ("visual.conv1.weight", "visual.positional_embedding", "visual.proj"):
        if name not in names.clip:
            return _IMAGE + name.removeprefix("visual.")
    for name in ("positional_embedding", "text_projection"):
        if name not in names.clip:
            return _TEXT + name
    return "" if "logit_scale" in names.clip else "logit_scale"


def infer_backbone(names: Names, file: Path) -> str:
    """The model of open_clip whose shapes are those of the tensors.

    Raises:
        ModelError: there is none.
    """
    import open_clip

    conv, text = names.clip["visual.conv1.weight"], names.clip["positional_embedding"]
    patch = int(conv.shape[-1])
    size = round((len(names.clip["visual.positional_embedding"]) - 1) ** 0.5) * patch
    found = (
        {"image_size": size, "layers": _layers(names, "visual."), "width": len(conv), "patch_size": patch},
        {"context_length": len(text), "width": text.shape[1], "layers": _layers(names, "")},
        names.clip["visual.proj"].shape[1],
    )
    fitting: list[str] = []
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        vision, words = config["vision_cfg"], {"context_length": 77, **config["text_cfg"]}
        plain = set(vision) <= _VISION_KEYS and set(words) <= _TEXT_KEYS and set(config) <= _KEYS
        same = found == (
            {key: vision.get(key) for key in found[0]},
            {key: words.get(key) for key in found[1]},
            config["embed_dim"],
        )
        if plain and same and not name.endswith("-quickgelu"):
            fitting.append(name)
    if not fitting:
        raise ModelError(
            f"{file}: no CLIP of open_clip has {_layers(names, 'visual.')} image blocks of width {len(conv)} "
            f"over {size} pixels in patches of {patch}",
            "name the backbone with --backbone",
        )
    return min(fitting, key=lambda name: (not name.startswith("ViT-"), len(name), name))


# A model with any other setting than these is not built as OpenAI's are.
_KEYS = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}
_VISION_KEYS = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"}
_TEXT_KEYS = {"context_length", "vocab_size", "width", "heads", "layers"}


def _layers(names: Names, tower: str) -> int:
    start = f"{tower}transformer.resblocks."
    return len({name.removeprefix(start).split(".")[0] for name in names.clip if name.startswith(start)})
