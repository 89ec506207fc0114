"""The checkpoint: a folder with ``weights.safetensors`` (only what was trained) and ``config.json``.

Everything that changes during training, including the state to resume from, is in the one weights file, which
is replaced by a rename: a kill at any moment leaves the previous state intact. ``config.json`` has every
setting, for people and for export.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from grmp_edge.errors import CheckpointError
from grmp_edge.files import replace_file
from grmp_edge.score import MosScale
from grmp_edge.train.network.backbone import Backbone, BackboneConfig, load_backbone
from grmp_edge.train.network.model import GrmpIqa
from grmp_edge.train.network.settings import PromptConfig
from grmp_edge.train.session.resume_rules import difference, version_notes

__all__ = [
    "Checkpoint", "CheckpointConfig", "CheckpointWriter", "State", "load_checkpoint", "read_config",
    "read_state", "refuse_unfinished",
]  # fmt: skip

FORMAT_VERSION = 1
WEIGHTS = "weights.safetensors"
CONFIG = "config.json"
_RESUME = "resume."


class CheckpointConfig(TypedDict, total=False):
    """The content of config.json; keys that only one stage writes may be missing."""

    format_version: int
    stage: str  # "pretrain" or "finetune"
    backbone: dict[str, Any]  # see :func:`backbone_settings`
    prompts: dict[str, Any]  # of PromptConfig
    seed: int
    versions: dict[str, str]  # of the packages that trained it
    preset: str | None
    leaks: list[str]  # what makes its figures dishonest, one sentence each
    mos: dict[str, float] | None  # the labels' scale, of MosScale
    data: dict[str, Any]  # where tasks or labels came from; of labels also ``images`` and ``digest``
    progress: dict[str, Any]  # a readable copy of State.progress
    # Of meta-pre-training.
    meta: dict[str, Any]  # of MetaConfig
    meta_select_on: str
    target: dict[str, Any]
    # Of fine-tuning.
    finetune: dict[str, Any]  # of FinetuneConfig
    split: dict[str, Any]  # of SplitConfig
    pretrained_by: dict[str, Any] | None


@dataclass(frozen=True)
class State:
    """The content of a weights file."""

    weights: dict[str, Tensor]  # the selected parameters, by their name in the model
    resume: dict[str, Tensor]  # what the next epoch starts from; empty if the run cannot be continued
    progress: dict[str, Any]  # epoch, learning rate, history, ...; always has ``complete``


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint, ready to score or export."""

    path: Path
    model: GrmpIqa  # in evaluation mode, with the trained weights
    mos: MosScale | None  # the scale of the labels; None if it was not fine-tuned
    config: CheckpointConfig
    images: list[Path]  # the labelled pictures it was trained with, which may no longer exist


class CheckpointWriter:
    """Writes a training run's folder: the settings once, the state after every evaluation.

    ``on_save`` is called with the progress after every save; ``notes`` has :meth:`resume`'s remarks.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        on_save: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        self.folder, self.on_save = folder, on_save
        self.notes: list[str] = []
        # Through JSON, so that it compares equal to what a later run reads back.
        self.settings: dict[str, Any] = json.loads(json.dumps(dict(settings)))

    def save(self, state: State) -> None:
        """Replace the weights file, then the readable copy of its progress in config.json."""
        tensors = {name: _plain(tensor) for name, tensor in state.weights.items()}
        tensors.update({_RESUME + name: _plain(tensor) for name, tensor in state.resume.items()})
        metadata = {"format": "grmp-edge checkpoint", "progress": json.dumps(state.progress)}
        if not (self.folder / CONFIG).exists():
            self._write_config(state.progress)  # first: weights alone could not be resumed
        with replace_file(self.folder / WEIGHTS) as temporary:
            save_file(tensors, temporary, metadata=metadata)
        self._write_config(state.progress)
        if self.on_save:
            self.on_save(state.progress)

    def _write_config(self, progress: dict[str, Any]) -> None:
        content = {"format_version": FORMAT_VERSION, **self.settings, "progress": progress}
        with replace_file(self.folder / CONFIG) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def resume(self) -> State | None:
        """The state to continue from, or None if nothing has been written yet.

        The number of epochs, the location of the data and package versions may have changed since (see
        :mod:`grmp_edge.train.session.resume_rules`).

        Raises:
            CheckpointError: the folder's run had other settings; the message names the first that differs.
        """
        if not (self.folder / WEIGHTS).is_file():
            return None
        recorded = read_config(self.folder)
        reason = difference(recorded, self.settings)
        if reason:
            raise CheckpointError(
                f"{self.folder}: cannot resume, {reason}",
                "use the same settings and data, or another output folder",
            )
        self.notes = version_notes(recorded, self.settings)
        return read_state(self.folder)

    def refuse_overwrite(self) -> None:
        """Raise CheckpointError if the folder holds a run, which only ``--resume`` may touch."""
        if (self.folder / WEIGHTS).exists() or (self.folder / CONFIG).exists():
            raise CheckpointError(
                f"{self.folder}: already holds a training run",
                "continue it with --resume, or choose another -o",
            )


def read_state(folder: Path) -> State:
    """Read a weights file.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise CheckpointError(
            f"{folder}: not a checkpoint (it has no {WEIGHTS})", "train one with: grmp-edge train"
        )
    try:
        with safe_open(path, framework="pt") as file:
            progress = json.loads((file.metadata() or {})["progress"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged ({error})", "train again, or copy it again") from None
    return State(
        weights={name: tensor for name, tensor in tensors.items() if not name.startswith(_RESUME)},
        resume={name[len(_RESUME) :]: tensor for name, tensor in tensors.items() if name.startswith(_RESUME)},
        progress=progress,
    )


def refuse_unfinished(folder: Path) -> None:
    """Raise CheckpointError if the run in ``folder`` was stopped before its last epoch."""
    config = read_config(folder)
    progress = config.get("progress") or {}
    if progress.get("complete", True):
        return
    settings = config.get("meta") if config.get("stage") == "pretrain" else config.get("finetune")
    total = (settings or {}).get("epochs", "?")
    raise CheckpointError(
        f"{folder}: holds an unfinished run (epoch {progress.get('epoch', '?')} of {total})",
        f"finish it with the command that made it and --resume -o {folder}, or use it as it is with "
        "--allow-unfinished",
    )


def load_checkpoint(path: Path, weights: str | None = None) -> Checkpoint:
    """Rebuild the model of a checkpoint.

    Args:
        path: the folder.
        weights: the backbone's weights (tag or file), if they are no longer where training read them.

    Raises:
        CheckpointError: the folder is not a checkpoint or is damaged, or the backbone's weights are not those
            it was trained on.
        ModelError: the backbone cannot be loaded.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such checkpoint", "train one with: grmp-edge train")
    config = read_config(path)
    state = read_state(path)
    try:
        model = GrmpIqa(_same_backbone(path, config["backbone"], weights), PromptConfig(**config["prompts"]))
        scale = config.get("mos")
        mos = MosScale(**scale) if scale else None
        images = [Path(name) for name in config.get("data", {}).get("images", [])]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path / CONFIG}: damaged ({type(error).__name__}: {error})", "train again"
        ) from None
    load_parameters(model, state.weights, path)
    for name, _ in model.prompt_parameters():
        if name not in state.weights:
            raise CheckpointError(f"{path / WEIGHTS}: damaged (it lacks {name!r})", "train again")
    return Checkpoint(path, model.eval(), mos, config, images)


def backbone_settings(backbone: Backbone, config: BackboneConfig) -> dict[str, Any]:
    """The backbone as config.json records it."""
    return {
        **asdict(config),
        "pretrained": backbone.pretrained,
        "quick_gelu": backbone.quick_gelu,
        "digest": backbone.digest,
    }


def _same_backbone(path: Path, recorded: Mapping[str, Any], weights: str | None) -> Backbone:
    digest = recorded["digest"]
    config = BackboneConfig(**{key: value for key, value in recorded.items() if key != "digest"})
    if weights:
        config = replace(config, pretrained=weights)
    elif config.pretrained == "shipped":
        config = replace(config, pretrained="")
    elif (path / config.pretrained).is_file():  # inside the checkpoint, so that the folder can be moved
        config = replace(config, pretrained=str(path / config.pretrained))
    backbone = load_backbone(config)
    if backbone.digest != digest:
        raise CheckpointError(
            f"{path}: was trained on other weights of {config.name} "
            f"(digest {digest[:12]}, these have {backbone.digest[:12]})",
            "give the original weights with --weights",
        )
    return backbone


def load_parameters(model: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Copy tensors into the parameters, or buffers of the head, of the same names.

    Raises:
        CheckpointError: a name or shape does not match the model.
    """
    own: dict[str, Tensor] = dict(model.named_parameters())
    if isinstance(model, GrmpIqa):
        own |= model.head()
    for name, tensor in tensors.items():
        if name not in own or own[name].shape != tensor.shape:
            raise CheckpointError(
                f"{source / WEIGHTS}: the tensor {name!r} {tuple(tensor.shape)} does not match the model",
                "train again with this version",
            )
        with torch.no_grad():
            own[name].copy_(tensor)


def copy_parameters(parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, Tensor]:
    """Detached copies by name."""
    return {name: parameter.detach().clone() for name, parameter in parameters}


def read_config(folder: Path) -> CheckpointConfig:
    """Read a checkpoint's config.json.

    Raises:
        CheckpointError: it is missing, damaged, or of a newer version.
    """
    path = folder / CONFIG
    try:
        content: CheckpointConfig = json.loads(path.read_bytes())
        version = int(content["format_version"])
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder}: not a checkpoint (it has no {CONFIG})", "train one with: grmp-edge train"
        ) from None
    except (ValueError, KeyError, TypeError, OSError):
        raise CheckpointError(
            f"{path}: damaged (not a checkpoint's settings)", "train again, or copy it again"
        ) from None
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: version {version} is newer than this grmp-edge reads ({FORMAT_VERSION})",
            "update grmp-edge",
        )
    return content


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()
