"""Loading the CLIP backbone: any ViT of open_clip, or the small embedded one."""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import logging
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from grmp_edge.default_bundle import EMBEDDED
from grmp_edge.errors import ModelError, first_line
from grmp_edge.train.network import embedded
from grmp_edge.train.network.settings import EmbeddedBackbone

__all__ = [
    "RANDOM",
    "Backbone",
    "BackboneConfig",
    "embedded_backbone",
    "load_backbone",
    "state_digest",
]

RANDOM = "random"
# Those whose weights ship with the project; another is one more module and its name here.
_EMBEDDED = {module.BACKBONE.name: module.BACKBONE for module in (embedded,)}


@dataclass(frozen=True)
class BackboneConfig:
    """Which CLIP, and where its weights come from."""

    # The embedded model needs no download, so it is what a fresh machine starts with.
    name: str = EMBEDDED
    # An open_clip tag such as "openai", a file (safetensors, a state dict, OpenAI's archive), or "random"
    # for shape and speed tests. Empty: the shipped weights for the embedded model, "openai" for others.
    pretrained: str = ""
    # None: as the tag says; for a file, True if it is OpenAI's archive or the name ends in -quickgelu.
    quick_gelu: bool | None = None
    # Only for "random": the weights are a function of it.
    random_seed: int = 0


@dataclass(frozen=True)
class Backbone:
    """A loaded CLIP in float32 and evaluation mode, frozen."""

    name: str
    pretrained: str  # tag, file path, "shipped" or "random"
    quick_gelu: bool
    digest: str  # SHA-256 over its tensors, the same whichever file format they came in
    clip: nn.Module
    tokenize: Callable[[list[str]], Tensor]  # texts to token ids (n, context length), int64


def embedded_backbone(name: str) -> EmbeddedBackbone | None:
    """A backbone whose weights ship with the project, by name; None for any other."""
    return _EMBEDDED.get(name)


def load_backbone(config: BackboneConfig) -> Backbone:
    """Build and load a backbone.

    Raises:
        ModelError: an unknown name or tag, a missing or unfitting file, or a tower that cannot be prompted.
    """
    if config.name in _EMBEDDED:
        return _load_embedded(_EMBEDDED[config.name], config)
    import open_clip

    name = config.name.replace("/", "-")
    if open_clip.get_model_config(name) is None:
        close = [model for model in open_clip.list_models() if model.startswith("ViT-")][:8]
        raise ModelError(
            f"backbone {config.name!r} is not a model of open_clip",
            f"use {', '.join(_EMBEDDED)} or one of {', '.join(close)}, ...",
        )
    _refuse_unpromptable(name, open_clip.get_model_config(name))
    pretrained = config.pretrained or "openai"
    if pretrained == RANDOM:
        torch.manual_seed(config.random_seed)
        quick = bool(config.quick_gelu) or name.endswith("-quickgelu")
        clip = _create(name, None, quick)
        return _finish(name, RANDOM, clip)
    if pretrained in open_clip.list_pretrained_tags_by_model(name):
        tag: Mapping[str, Any] = open_clip.get_pretrained_cfg(name, pretrained)
        quick = bool(tag.get("quick_gelu", False)) if config.quick_gelu is None else config.quick_gelu
        try:
            clip = _create(name, pretrained, quick)
        except Exception as error:  # open_clip, the hub and the network each raise their own
            raise ModelError(
                f"the weights {pretrained!r} of {name} could not be fetched ({first_line(error)})",
                "download them on a connected machine and give the file with --weights",
            ) from error
        return _finish(name, pretrained, clip)
    path = Path(pretrained)
    if not path.is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)[:6])
        raise ModelError(
            f"{pretrained!r} is neither a weights file nor a tag of {name}",
            f"give a file or one of: {tags}, ...",
        )
    state, is_openai = read_state_dict(path)
    quick = (is_openai or name.endswith("-quickgelu")) if config.quick_gelu is None else config.quick_gelu
    clip = _create(name, None, quick)
    load_state(clip, state, str(path), name)
    return _finish(name, str(path.resolve()), clip)


def read_state_dict(path: Path) -> tuple[dict[str, Tensor], bool]:
    """Read a weights file: safetensors, a PyTorch state dict, or OpenAI's TorchScript archive.

    Returns:
        The tensors by name, without ``module.`` prefixes, and whether it is OpenAI's archive.

    Raises:
        ModelError: the file is damaged, or a pickle that holds more than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return _without_wrappers(load_file(path)), False
        if _is_torchscript(path):
            # OpenAI publishes its weights so. TorchScript's own loader reads it: it builds tensors and
            # TorchScript objects only, Python's pickle is not involved and forward is never called.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                archive = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
                state = dict(archive.state_dict())
            return state, True
        with _holding_values():
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ModelError(
            f"{path}: holds objects of Python beside tensors, which could run code, and is not loaded",
            "where you trust it, load it there and save model.state_dict() alone, or safetensors",
        ) from None
    except Exception as error:  # safetensors and torch raise many kinds for a damaged file
        raise ModelError(
            f"{path}: cannot be read as weights ({first_line(error)})", "download it again"
        ) from error
    found = _unwrapped(loaded)
    if found is None:
        raise ModelError(f"{path}: is not a state dict", "save model.state_dict()")
    return _without_wrappers(found), "input_resolution" in found


def _holding_values() -> contextlib.AbstractContextManager[None]:
    """Let torch's safe unpickler also make what training scripts save beside their tensors.

    These classes can do nothing but hold values: options and numbers.
    """
    if torch.__version__ < "2.6":  # whose unpickler knows classes by one name alone
        return contextlib.nullcontext()
    scalar = np.float64(0).__reduce__()[0]  # how numpy pickles a number
    numbers = [np.dtype(kind).type for kind in ("f2", "f4", "f8", "i4", "i8", "?")]
    allowed: contextlib.AbstractContextManager[None] = torch.serialization.safe_globals(
        [
            argparse.Namespace,
            (scalar, "numpy.core.multiarray.scalar"),
            (scalar, "numpy._core.multiarray.scalar"),
            np.dtype,
            *(type(np.dtype(number)) for number in numbers),
        ]
    )
    return allowed


# Where training scripts keep the model beside an optimiser, epochs and the like.
_KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "weights")
# What DataParallel, Lightning and torch.compile put before every name.
_WRAPPERS = ("module.", "model.", "net.", "network.", "_orig_mod.")


def _unwrapped(loaded: Any) -> Mapping[str, Tensor] | None:
    """The state dict in what was loaded, however it is wrapped; None if there is none."""
    if not isinstance(loaded, Mapping) or not loaded:
        return None
    if all(isinstance(value, Tensor) for value in loaded.values()):
        return {str(name): value for name, value in loaded.items()}
    inner = (_unwrapped(loaded.get(key)) for key in _KEYS)
    return next((state for state in inner if state is not None), None)


def _without_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names as the model itself has them."""
    names = list(state)
    while prefix := next((p for p in _WRAPPERS if all(name.startswith(p) for name in names)), None):
        names = [name.removeprefix(prefix) for name in names]
    # DataParallel around a part of the model alone.
    return {name.removeprefix("module."): value for name, value in zip(names, state.values(), strict=True)}


def load_state(clip: nn.Module, state: Mapping[str, Tensor], source: str, name: str) -> None:
    """Load tensors strictly into an open_clip model, naming the first that does not fit."""
    extra = {"input_resolution", "context_length", "vocab_size"}
    state = {key: value for key, value in state.items() if key not in extra}
    if "positional_embedding" in state and not hasattr(clip, "positional_embedding"):
        from open_clip.model import convert_to_custom_text_state_dict

        state = convert_to_custom_text_state_dict(state)
    own = clip.state_dict()
    for key in [*own, *state]:
        if key not in state:
            problem = f"lacks {key!r}"
        elif key not in own:
            problem = f"has {key!r}, which {name} does not have"
        elif own[key].numel() != state[key].numel() or own[key].squeeze().shape != state[key].squeeze().shape:
            problem = f"has {key!r} of shape {tuple(state[key].shape)}, {name} needs {tuple(own[key].shape)}"
        else:
            continue
        raise ModelError(
            f"{source}: {problem}", f"choose the backbone these weights belong to instead of {name}"
        )
    clip.load_state_dict({key: value.float().reshape(own[key].shape) for key, value in state.items()})


def state_digest(module: nn.Module) -> str:
    """SHA-256 over a module's tensors in the order of their names (name, shape and float32 bytes)."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(memoryview(tensor.detach().cpu().float().contiguous().numpy()).cast("B"))
    return digest.hexdigest()


def _load_embedded(embedded: EmbeddedBackbone, config: BackboneConfig) -> Backbone:
    import open_clip

    if config.pretrained == RANDOM:
        torch.manual_seed(config.random_seed)
        clip, source = embedded.build(), RANDOM
    elif config.pretrained:
        clip, source = embedded.load(Path(config.pretrained)), str(Path(config.pretrained).resolve())
    else:
        clip, source = embedded.load(None), "shipped"
    return _finish(embedded.name, source, clip, open_clip.tokenize)


def _refuse_unpromptable(name: str, config: Mapping[str, Any]) -> None:
    """Reject an unsuitable model before anything is downloaded; the towers check the rest once built."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    if vision.get("timm_model_name") or not isinstance(vision.get("layers"), int):
        raise ModelError(
            f"backbone {name!r} has no tokens to prompt: its image tower is not one of open_clip's own ViTs",
            "choose a ViT of open_clip, for instance ViT-B-16",
        )
    if text.get("hf_model_name") or text.get("hf_tokenizer_name"):
        raise ModelError(
            f"backbone {name!r} does not read text as CLIP does", "choose ViT-B-16 or another CLIP ViT"
        )


def _create(name: str, pretrained: str | None, quick_gelu: bool) -> nn.Module:
    import open_clip

    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # open_clip warns on the root logger about what is decided here on purpose
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            clip: nn.Module = open_clip.create_model(
                name, pretrained=pretrained, precision="fp32", device="cpu", force_quick_gelu=quick_gelu
            )
    finally:
        logger.setLevel(level)
    return clip


@functools.cache  # half a second each
def _tokenizer(name: str) -> Callable[[list[str]], Tensor]:
    import open_clip

    tokenizer: Callable[[list[str]], Tensor] = open_clip.get_tokenizer(name)
    return tokenizer


def _finish(
    name: str,
    pretrained: str,
    clip: nn.Module,
    tokenizer: Callable[[list[str]], Tensor] | None = None,
) -> Backbone:
    clip.eval().requires_grad_(False)
    # What was built, not what was asked for: a name in -quickgelu has it whatever the option says.
    quick = any(type(module).__name__ == "QuickGELU" for module in clip.modules())
    return Backbone(name, pretrained, quick, state_digest(clip), clip, tokenizer or _tokenizer(name))


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())
