"""Importing the authors' released state dicts: one of their models becomes one of our checkpoints.

The layout is that of the released GRMP-IQA code: the whole, partly fine-tuned model in one file. A
checkpoint of ours holds prompts beside a CLIP known by name and digest; here that CLIP exists nowhere else,
so its weights go into the checkpoint's folder as ``backbone.safetensors``. Such a checkpoint is for scoring
and export: fine-tuning needs plain CLIP as a teacher, which is not in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grmp_edge import __version__
from grmp_edge.errors import CheckpointError, ModelError
from grmp_edge.files import replace_folder, sha256_file
from grmp_edge.score import MosScale
from grmp_edge.train.network.backbone import (
    BackboneConfig,
    embedded_backbone,
    load_backbone,
    read_state_dict,
)
from grmp_edge.train.network.model import GrmpIqa
from grmp_edge.train.network.settings import PromptConfig
from grmp_edge.train.network.words import QUALITY_WORDS, quality_prompts
from grmp_edge.train.session.checkpoint import CheckpointWriter, State, backbone_settings

__all__ = ["BACKBONE_FILE", "ImportConfig", "import_reference"]

BACKBONE_FILE = "backbone.safetensors"

# The names of the released code.
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
# A model with any other setting is not built like OpenAI's.
_KEYS = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}
_VISION_KEYS = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"}
_TEXT_KEYS = {"context_length", "vocab_size", "width", "heads", "layers"}


@dataclass(frozen=True)
class ImportConfig:
    """What cannot be read from the file."""

    backbone: str = ""  # empty: the model of open_clip whose shapes fit; the released ones are ViT-B-16
    normalization: str = "imagenet"  # the released models were trained with it
    quick_gelu: bool = True  # OpenAI's CLIP has it
    mos: MosScale | None = None  # the labels' scale, to report scores on it
    # CLIP's own weights, for a file without token embeddings; otherwise the few that the quality prompts use
    # come from the prompt learner's buffers.
    clip: Path | None = None


def import_reference(file: Path, output: Path, config: ImportConfig | None = None) -> dict[str, Any]:
    """Turn a released state dict into a checkpoint.

    Args:
        file: a pickle of tensors (loaded with ``weights_only=True``) or safetensors, perhaps wrapped in
            ``state_dict`` and with ``module.`` before the names; half precision stays half in the folder.
        output: the checkpoint's folder, written whole or not at all.
        config: see there.

    Returns:
        Plain JSON: ``backbone``, ``tokens`` (where the token embeddings came from), ``ignored`` (names in the
        file that were not needed), ``visual_tokens``, ``text_tokens``.

    Raises:
        ModelError: the file is no such state dict; the message names the tensor that is missing, does not fit
            or is not finite.
        CheckpointError: ``output`` holds something already.
    """
    config = config or ImportConfig()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CheckpointError(f"{output}: exists already", "choose another -o, or remove it")
    if not file.is_file():
        raise ModelError(f"{file}: no such file", "give a state dict released with GRMP-IQA")
    state, _ = read_state_dict(file)
    names = _split_names(state)
    lacking = _missing_tensor(names)
    if lacking:
        raise ModelError(f"{file}: lacks {lacking!r}", "give a state dict released with GRMP-IQA")
    for name, tensor in {**names.clip, **names.prompts}.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{file}: {name!r} is not finite", "download it again")
    backbone = config.backbone.replace("/", "-") or _infer_backbone(names, file)
    if embedded_backbone(backbone):
        raise ModelError(f"{file}: {backbone} is not a CLIP of the released models", "omit --backbone")
    prompts = PromptConfig(
        visual_tokens=names.prompts["prompt_embeddings"].shape[1],
        text_tokens=names.prompts["ctx"].shape[0],
        normalization=config.normalization,
    )
    table, tokens = _token_table(file, backbone, names.clip, names.learner, prompts.text_tokens, config.clip)
    with replace_folder(output) as folder:
        from safetensors.torch import save_file

        whole = {**names.clip, "token_embedding.weight": table}
        save_file(
            {name: tensor.contiguous().clone() for name, tensor in whole.items()}, folder / BACKBONE_FILE
        )
        chosen = BackboneConfig(backbone, str(folder / BACKBONE_FILE), config.quick_gelu)
        loaded = load_backbone(chosen)
        _check_prompts(file, GrmpIqa(loaded, prompts), names.prompts)
        settings = {
            # Relative: the folder may be moved.
            "backbone": {**backbone_settings(loaded, chosen), "pretrained": BACKBONE_FILE},
            "prompts": asdict(prompts),
            "seed": 0,
            "versions": {"grmp-edge": __version__, "torch": torch.__version__},
            "stage": "import",
            "data": {},
            "mos": asdict(config.mos) if config.mos else None,
            "imported": {
                "file": file.name,
                "sha256": sha256_file(file),
                "tokens": tokens,
                "ignored": names.ignored,
            },
        }
        progress = {"stage": "import", "complete": True, "history": []}
        weights = {name: tensor.float() for name, tensor in names.prompts.items()}
        CheckpointWriter(folder, settings).save(State(weights, {}, progress))
    return {
        "backbone": backbone,
        "tokens": tokens,
        "ignored": names.ignored,
        "visual_tokens": prompts.visual_tokens,
        "text_tokens": prompts.text_tokens,
    }


def _check_prompts(file: Path, model: GrmpIqa, prompts: Mapping[str, Tensor]) -> None:
    """Raise ModelError if a prompt tensor has another shape than the model's; names are the reference's."""
    for name, parameter in model.prompt_parameters():
        if prompts[name].shape != parameter.shape:
            raise ModelError(
                f"{file}: {name!r} is {tuple(prompts[name].shape)}, {model.backbone.name} needs "
                f"{tuple(parameter.shape)}",
                "give the backbone it was trained on with --backbone",
            )


def _token_table(
    file: Path,
    backbone: str,
    clip: Mapping[str, Tensor],
    learner: Mapping[str, Tensor],
    context: int,
    source: Path | None,
) -> tuple[Tensor, str]:
    """The token embeddings (vocabulary, W), and where they came from in words."""
    import open_clip

    ids = open_clip.get_tokenizer(backbone)(quality_prompts(context))
    table = clip.get("token_embedding.weight")
    origin = "the file's own table"
    if table is None and source is not None:
        given, _ = read_state_dict(source)
        table = given.get("token_embedding.weight")
        if table is None:
            raise ModelError(
                f"{source}: has no token_embedding.weight", "give CLIP's own weights with --clip"
            )
        origin = f"the table of {source.name}"
    buffers = _learner_rows(file, ids, learner, context)
    if table is not None:
        if table.ndim != 2 or (buffers and len(table) <= max(buffers)):
            raise ModelError(f"{file}: the token table has the shape {tuple(table.shape)}", "give CLIP's own")
        for token, row in buffers.items():
            # Half precision in one place and single in the other is a rounding apart.
            if row.shape != table[token].shape or not torch.allclose(
                row.float(), table[token].float(), rtol=2e-3, atol=1e-4
            ):
                raise ModelError(
                    f"{file}: the prompt learner's words are not those of {' and '.join(QUALITY_WORDS)!r} "
                    f"in {origin}",
                    "give the CLIP that it was trained on with --clip",
                )
        return table, origin
    if not buffers:
        raise ModelError(
            f"{file}: has neither token embeddings nor prompt_learner2.token_prefix and token_suffix",
            "give CLIP's own weights with --clip",
        )
    config = open_clip.get_model_config(backbone)
    first = next(iter(buffers.values()))
    # Words outside the quality prompts are unknown: NaN, so that using one cannot go unnoticed.
    rows = int(config["text_cfg"].get("vocab_size", 49408)) if config else 49408
    table = torch.full((rows, len(first)), float("nan"), dtype=first.dtype)
    for token, row in buffers.items():
        table[token] = row
    # The places of the learned context are replaced before they are read, but must be finite.
    table[ids[0, 1 : 1 + context]] = 0
    return table, "the prompt learner's buffers (only the words of the quality prompts)"


def _learner_rows(file: Path, ids: Tensor, learner: Mapping[str, Tensor], context: int) -> dict[int, Tensor]:
    """Token embeddings by id from the buffers: prefix (2, 1, W), suffix (2, length - 1 - context, W)."""
    prefix, suffix = learner.get("token_prefix"), learner.get("token_suffix")
    if prefix is None or suffix is None:
        return {}
    length = ids.shape[1] - 1 - context
    if prefix.shape[:2] != (2, 1) or suffix.shape[:2] != (2, length) or prefix.shape[2] != suffix.shape[2]:
        raise ModelError(
            f"{file}: the prompt learner's buffers {tuple(prefix.shape)} and {tuple(suffix.shape)} are not "
            f"(2, 1, W) and (2, {length}, W)",
            "only models of the two prompts 'high quality.' and 'low quality.' can be imported",
        )
    rows: dict[int, Tensor] = {}
    for sentence in range(2):
        places = [(int(ids[sentence, 0]), prefix[sentence, 0])]
        end = int(ids[sentence].argmax())  # what follows the end of text never reaches the score
        places += [
            (int(ids[sentence, i]), suffix[sentence, i - 1 - context]) for i in range(1 + context, end + 1)
        ]
        for token, row in places:
            if not bool(torch.isfinite(row.float()).all()):
                raise ModelError(f"{file}: the prompt learner's buffers are not finite", "download it again")
            if token in rows and not torch.equal(rows[token], row):
                raise ModelError(
                    f"{file}: the prompt learner's words are not {' and '.join(QUALITY_WORDS)!r}",
                    "only models of these two prompts can be imported",
                )
            rows[token] = row
    return rows


@dataclass
class _Names:
    """A released state dict, sorted."""

    clip: dict[str, Tensor] = field(default_factory=dict)  # by OpenAI's names
    prompts: dict[str, Tensor] = field(default_factory=dict)  # by GrmpIqa's names
    learner: dict[str, Tensor] = field(default_factory=dict)  # token_prefix, token_suffix
    ignored: list[str] = field(default_factory=list)


def _split_names(state: Mapping[str, Tensor]) -> _Names:
    """Sort the tensors of a state dict; those of no part are listed as ignored."""
    names = _Names()
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


def _missing_tensor(names: _Names) -> str:
    """The first required tensor that is missing, by the reference's name; empty if there is none.

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


def _infer_backbone(names: _Names, file: Path) -> str:
    """The model of open_clip whose shapes are those of the tensors.

    Raises:
        ModelError: there is none.
    """
    import open_clip

    conv, text = names.clip["visual.conv1.weight"], names.clip["positional_embedding"]
    patch = int(conv.shape[-1])
    size = round((len(names.clip["visual.positional_embedding"]) - 1) ** 0.5) * patch
    shape = (
        {"image_size": size, "layers": _layers(names, "visual."), "width": len(conv), "patch_size": patch},
        {"context_length": len(text), "width": text.shape[1], "layers": _layers(names, "")},
        names.clip["visual.proj"].shape[1],
    )
    fitting: list[str] = []
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        vision, words = config["vision_cfg"], {"context_length": 77, **config["text_cfg"]}
        plain = set(vision) <= _VISION_KEYS and set(words) <= _TEXT_KEYS and set(config) <= _KEYS
        same = shape == (
            {key: vision.get(key) for key in shape[0]},
            {key: words.get(key) for key in shape[1]},
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


def _layers(names: _Names, tower: str) -> int:
    start = f"{tower}transformer.resblocks."
    return len({name.removeprefix(start).split(".")[0] for name in names.clip if name.startswith(start)})
