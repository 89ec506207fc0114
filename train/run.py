"""One training run on disk: data in, checkpoint out, resumable."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from grmp_edge import __version__
from grmp_edge.errors import CheckpointError, UsageError
from grmp_edge.preprocess import Preprocess
from grmp_edge.train.backbone import EMBEDDED, BackboneConfig, load_backbone
from grmp_edge.train.checkpoint import (
    CheckpointWriter,
    State,
    backbone_settings,
    load_checkpoint,
    load_parameters,
)
from grmp_edge.train.data import Labelled, SplitConfig, data_digest, split_indices
from grmp_edge.train.finetune import FinetuneConfig, Part, finetune, predict
from grmp_edge.train.meta import MetaConfig, meta_train
from grmp_edge.train.model import GrmpIqa, PromptConfig
from grmp_edge.train.progress import Reporter, Silent
from grmp_edge.train.tasks import Task

__all__ = ["ModelConfig", "pick_device", "run_finetune", "run_pretrain"]


@dataclass(frozen=True)
class ModelConfig:
    """Backbone, prompts, and where to compute."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    prompts: PromptConfig = field(default_factory=PromptConfig)
    device: str = "auto"  # cuda where there is one
    seed: int = 0  # of the prompts' initial values

    @classmethod
    def of(cls, backbone: BackboneConfig, normalization: str | None = None, **other: Any) -> ModelConfig:
        """Choose the normalisation that goes with a backbone unless one is named.

        The embedded backbone was trained with CLIP's; for CLIP's own weights the reference uses ImageNet's.
        """
        chosen = normalization or ("clip" if backbone.name == EMBEDDED else "imagenet")
        return cls(backbone=backbone, prompts=PromptConfig(normalization=chosen), **other)


def pick_device(wish: str) -> torch.device:
    """``auto``, ``cpu`` or ``cuda[:n]`` to a device that is there.

    Raises:
        UsageError: CUDA is asked for and not available.
    """
    if wish == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wish)
    except RuntimeError:
        raise UsageError(f"--device {wish!r} is not a device", "use auto, cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: this PyTorch sees no CUDA device", "use --device cpu")
    return device


def run_pretrain(
    output: Path,
    model: ModelConfig,
    phases: Sequence[Sequence[Task]],
    data: dict[str, Any],
    config: MetaConfig,
    resume: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Meta-pre-train prompts into the checkpoint ``output``.

    Args:
        output: the folder to write.
        model: what to build.
        phases: the tasks, by phase.
        data: plain JSON that describes where the tasks came from; a resumed run must have the same.
        config: the settings.
        resume: continue the run that is there.
        reporter: told of the progress.

    Returns:
        The run's progress: ``history``, ``best_srcc``, ``held_out_tasks``.
    """
    reporter = reporter or Silent()
    network, settings = _build(model)
    settings |= {"stage": "pretrain", "meta": asdict(config), "data": data, "mos": None}
    writer = CheckpointWriter(output, settings)
    state = _resume(writer, resume)
    if state is None or not state.progress["complete"]:
        meta_train(network, phases, config, writer, state, reporter)
        state = writer.resume()
        assert state is not None
    return state.progress


def run_finetune(
    output: Path,
    model: ModelConfig,
    start: Path | None,
    data: Labelled,
    split_config: SplitConfig,
    config: FinetuneConfig,
    resume: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Fine-tune into the checkpoint ``output``.

    Args:
        output: the folder to write.
        model: what to build, if there is no ``start``.
        start: a pre-training checkpoint to begin from; its backbone and prompts then hold.
        data: the labelled pictures.
        split_config: how many labels, and what is kept for validation and testing.
        config: the settings.
        resume: continue the run that is there.
        reporter: told of the progress.

    Returns:
        The run's progress: ``history``, ``metrics`` by part (zero_shot, validation, test), ``epoch``.
    """
    reporter = reporter or Silent()
    split = split_indices(data, split_config)
    scale = data.scale_of([*split.train, *split.validation])
    quality = data.quality(scale)
    if start is not None:
        loaded = load_checkpoint(start, model.backbone.pretrained or None)
        if loaded.config.get("stage") != "pretrain":
            # Its last blocks are no longer CLIP's, and the teacher must be plain CLIP.
            raise CheckpointError(f"{start}: is not a pre-training checkpoint", f"try {start / 'pretrain'}")
        network = loaded.model.to(pick_device(model.device))
        settings = {key: loaded.config[key] for key in ("backbone", "prompts", "seed")}
        settings["versions"] = _versions()
        settings["pretrained_by"] = {key: loaded.config.get(key) for key in ("meta", "data")}
    else:
        network, settings = _build(model)
        settings["pretrained_by"] = None
    config = config.for_backbone(network.backbone.name)
    side = Preprocess.for_size(network.image.size).resize
    used = [*split.train, *split.validation, *split.test]
    reporter.start("reading pictures", len(used))
    pixels = data.squashed(used, side, reporter.step)
    a, b = len(split.train), len(split.train) + len(split.validation)
    raw = (data.mos[used] - scale.low) / (scale.high - scale.low)
    places = {"train": slice(0, a), "validation": slice(a, b), "test": slice(b, None)}
    parts = {name: Part(pixels[at], quality[used][at], raw[at]) for name, at in places.items()}
    settings |= {
        "stage": "finetune",
        "finetune": asdict(config),
        "split": asdict(split_config),
        "mos": asdict(scale),
        "data": {
            "name": data.name,
            "digest": data_digest(pixels, data.mos[used]),
            "counts": {name: len(part.images) for name, part in parts.items()},
            "images": [str(data.paths[i].resolve()) for i in used],
        },
    }
    writer = CheckpointWriter(output, settings)
    state = _resume(writer, resume)
    if state is not None and state.progress["complete"]:
        return state.progress
    before = {f"zero_shot_{name}": _measure(network, part) for name, part in parts.items() if name != "train"}
    judge = parts["test"] if config.select_on == "test" else parts["validation"]
    if state is not None:
        # Only the prompts: the trained blocks come back inside, after the teacher has copied the plain CLIP.
        prompts = {name for name, _ in network.prompt_parameters()}
        load_parameters(network, {n: t for n, t in state.weights.items() if n in prompts}, output)
    final = finetune(
        network, parts["train"], judge if len(judge.images) else None, config, writer, state, reporter
    )
    metrics = {**before, **{name: _measure(network, part) for name, part in parts.items()}}
    progress = {
        **final.progress,
        "metrics": {name: found for name, found in metrics.items() if found},
        # The published protocol of the released code, honest only when it is told.
        "selected_on_test": config.select_on == "test",
    }
    writer.save(replace(final, progress=progress))
    return progress


def _measure(network: GrmpIqa, part: Part) -> dict[str, float | None] | None:
    return part.measure(predict(network, part.images)) if len(part.images) > 1 else None


def _build(model: ModelConfig) -> tuple[GrmpIqa, dict[str, Any]]:
    backbone = load_backbone(model.backbone)
    torch.manual_seed(model.seed)
    network = GrmpIqa(backbone, model.prompts).eval().to(pick_device(model.device))
    settings = {
        "backbone": backbone_settings(backbone, model.backbone),
        "prompts": asdict(model.prompts),
        "seed": model.seed,
        "versions": _versions(),
    }
    return network, settings


def _versions() -> dict[str, str]:
    return {
        "grmp-edge": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "open_clip_torch", "numpy")},
    }


def _resume(writer: CheckpointWriter, resume: bool) -> State | None:
    if not resume:
        writer.refuse_overwrite()
        return None
    return writer.resume()
