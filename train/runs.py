"""One training run on disk: data in, checkpoint out, resumable."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from grmp_edge import __version__
from grmp_edge.errors import CheckpointError, UsageError
from grmp_edge.files import sha256_file
from grmp_edge.metrics import srcc_interval
from grmp_edge.train.data.labelled import (
    Labelled,
    SplitConfig,
    content_digest,
    data_digest,
    refuse_no_test_part,
    split_indices,
)
from grmp_edge.train.finetune.choose import (
    learn_head,
    prefers_qgr,
    put_start_head,
    report_line,
    twin_part,
)
from grmp_edge.train.finetune.config import FinetuneConfig, Part
from grmp_edge.train.finetune.loop import finetune, predict_part
from grmp_edge.train.finetune.seen import predict_labelled, preprocess_of, see, twin_count
from grmp_edge.train.meta import MetaConfig, meta_train
from grmp_edge.train.network.backbone import BackboneConfig, embedded_backbone, load_backbone
from grmp_edge.train.network.model import GrmpIqa
from grmp_edge.train.network.settings import PromptConfig, settings_for
from grmp_edge.train.presets import leaks
from grmp_edge.train.session.checkpoint import (
    CheckpointWriter,
    backbone_settings,
    load_checkpoint,
    load_parameters,
    read_state,
    refuse_unfinished,
)
from grmp_edge.train.session.curves import CurveKind, curves_for
from grmp_edge.train.session.precision import resolve_precision
from grmp_edge.train.session.progress import Reporter, Silent
from grmp_edge.train.session.ranks import current_team, local_device
from grmp_edge.train.session.resume import begin_or_continue, goes_on, lead_state
from grmp_edge.train.tasks import Task, whole_set_task

__all__ = [
    "ModelConfig",
    "build_network",
    "pick_device",
    "put_shipped_prompts",
    "run_finetune",
    "run_pretrain",
]


@dataclass(frozen=True)
class ModelConfig:
    """Backbone, prompts, and where to compute."""

    backbone: BackboneConfig
    prompts: PromptConfig
    device: str = "auto"  # cuda where there is one
    seed: int = 0  # of the prompts' initial values
    # Start from the meta-learned prompts that ship with an embedded backbone, not from random ones; for other
    # backbones and other weights there are none.
    shipped_prompts: bool = False

    @classmethod
    def of(cls, backbone: BackboneConfig, normalization: str = "", **other: Any) -> ModelConfig:
        """Choose the prompts that go with a backbone, and their normalisation unless one is given."""
        prompts = settings_for(backbone.name).prompts
        if normalization:
            prompts = replace(prompts, normalization=normalization)
        return cls(backbone=backbone, prompts=prompts, **other)


def pick_device(wish: str) -> torch.device:
    """Choose the device for ``auto``, ``cpu`` or ``cuda[:n]``; each of several processes gets its own GPU.

    Raises:
        UsageError: no such device, or CUDA is not available.
    """
    if wish == "auto":
        return local_device(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        device = torch.device(wish)
    except RuntimeError:
        raise UsageError(f"--device {wish!r} is not a device", "use auto, cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: this PyTorch sees no CUDA device", "use --device cpu")
    return local_device(device)


def run_pretrain(
    output: Path,
    model: ModelConfig,
    phases: Sequence[Sequence[Task]],
    data: dict[str, Any],
    config: MetaConfig,
    resume: bool = False,
    reporter: Reporter | None = None,
    target: Labelled | None = None,
    preset: str | None = None,
    curves: CurveKind = "none",
) -> dict[str, Any]:
    """Meta-pre-train prompts into the checkpoint ``output``.

    Args:
        output: the folder to write.
        model: what to build.
        phases: the tasks, by phase.
        data: plain JSON that describes where the tasks came from; a resumed run must have the same.
        config: the settings.
        resume: continue the run in ``output``; with more epochs also a finished one.
        reporter: receives the progress.
        target: choose the epoch by SRCC on the whole of this set instead of on held-out tasks, as the
            released code does; the result is marked. It is judged by the whole of each picture, squashed
            as the tasks' are.
        preset: the name of the preset that the settings come from, for config.json.
        curves: how training curves are drawn beside the checkpoint.

    Returns:
        The run's progress: ``history``, ``best_srcc``, ``held_out_tasks``; and ``leaks``.
    """
    reporter, team = reporter or Silent(), current_team()
    network, settings = build_network(model)
    config = replace(config, precision=resolve_precision(config.precision, network.ctx.device))
    settings |= {"stage": "pretrain", "meta": asdict(config), "data": data, "mos": None}
    settings["meta_select_on"] = "held-out tasks" if target is None else "target set"
    settings |= {"preset": preset, "leaks": leaks(None, settings)}
    judge = None
    if target is not None:
        every = range(len(target))
        settings["target"] = {"name": target.name, "digest": content_digest(target, every)}
        judge = whole_set_task(target, target.quality(target.scale_of(every)))
    writer = CheckpointWriter(output, settings, curves_for(curves, output) if team.leads else None)
    state = begin_or_continue(writer, resume, reporter)
    if state is None or goes_on(state, config.epochs, output):
        meta_train(network, phases, config, writer, state, reporter, judge)
        state = lead_state(read_state(output) if team.leads else None)
        assert state is not None
    return {**state.progress, "leaks": settings["leaks"]}


def run_finetune(
    output: Path,
    model: ModelConfig,
    start: Path | None,
    data: Labelled,
    split_config: SplitConfig,
    config: FinetuneConfig,
    resume: bool = False,
    reporter: Reporter | None = None,
    allow_unfinished: bool = False,
    preset: str | None = None,
    curves: CurveKind = "none",
    announce: bool = False,
) -> dict[str, Any]:
    """Fine-tune into the checkpoint ``output``.

    Args:
        output: the folder to write.
        model: what to build, if there is no ``start``.
        start: a pre-training checkpoint to begin from; its backbone and prompts then hold.
        data: the labelled pictures.
        split_config: how many labels, and the parts for validation and testing.
        config: the settings.
        resume: continue the run in ``output``; with more epochs also a finished one, unless its
            learning rate has fallen below the least.
        reporter: receives the progress.
        allow_unfinished: also start from a pre-training run that is incomplete.
        preset: the name of the preset that the settings come from, for config.json.
        curves: how training curves are drawn beside the checkpoint.
        announce: say first how long it will take.

    Returns:
        The run's progress: ``history``, ``metrics`` by part (zero_shot, validation, test; cross_validation
        where a head is learned and nothing is tested on), ``epoch``, ``leaks``.

    Raises:
        UsageError: the test part is to choose the epoch, and there is none.
        CheckpointError: ``start`` is no pre-training checkpoint or an unfinished one, or ``output`` holds a
            run of other settings.
    """
    reporter, team = reporter or Silent(), current_team()
    # Reject too few pictures before the work.
    refuse_no_test_part(config.select_on, len(split_indices(data, split_config).test))
    if start is not None:
        loaded = load_checkpoint(start, model.backbone.pretrained or None)
        if loaded.config.get("stage") != "pretrain":
            # Its last blocks are no longer CLIP's, and the teacher must be plain CLIP.
            raise CheckpointError(f"{start}: is not a pre-training checkpoint", f"try {start / 'pretrain'}")
        if not allow_unfinished:
            refuse_unfinished(start)
        network = loaded.model.to(pick_device(model.device))
        settings: dict[str, Any] = {
            "backbone": loaded.config["backbone"],
            "prompts": loaded.config["prompts"],
            "seed": loaded.config["seed"],
        }
        settings["versions"] = _versions()
        settings["pretrained_by"] = {
            "meta": loaded.config.get("meta"),
            "data": loaded.config.get("data"),
            "meta_select_on": loaded.config.get("meta_select_on"),
        }
    else:
        network, settings = build_network(model)
        settings["pretrained_by"] = put_shipped_prompts(network, model)
    if data.memo is None:  # what is seen before learning is not looked at again after it
        data = replace(data, memo={})
    method = config.method
    config = replace(config, precision=resolve_precision(config.precision, network.ctx.device), method=method)
    split = split_indices(data, split_config)
    if config.label_scale == "drawn":
        data = replace(data, scale=None)
    scale = data.scale_of([*split.train, *split.validation])
    quality = data.quality(scale)
    used = [*split.train, *split.validation, *split.test]
    a, b = len(split.train), len(split.train) + len(split.validation)
    raw = (data.mos[used] - scale.low) / (scale.high - scale.low)
    places = {"train": slice(0, a), "validation": slice(a, b), "test": slice(b, None)}
    parts: dict[str, Part] = {}
    if method in ("head", "ridge"):
        digest = content_digest(data, used)
    else:
        reporter.start("reading pictures", len(used))
        pixels, crops = data.viewed(used, preprocess_of(network), reporter.step)
        for name, at in places.items():
            own = None if crops is None else crops.take(range(len(used))[at])
            parts[name] = Part(pixels[at], quality[used][at], raw[at], own)
        digest = data_digest(pixels, data.mos[used])
    found_leaks = leaks(config, settings["pretrained_by"])
    settings |= {
        "stage": "finetune",
        "preset": preset,
        "leaks": found_leaks,
        "finetune": asdict(config),
        "split": asdict(split_config),
        "mos": asdict(scale),
        "data": {
            "name": data.name,
            "digest": digest,
            "counts": {name: len(used[at]) for name, at in places.items()},
            "images": [str(data.paths[i].resolve()) for i in used],
        },
    }
    writer = CheckpointWriter(output, settings, curves_for(curves, output) if team.leads else None)
    state = begin_or_continue(writer, resume, reporter)
    done = state is not None and state.progress.get("head") and state.progress["complete"]
    if done or (state is not None and not goes_on(state, config.epochs, output, config.min_lr)):
        assert state is not None
        return {**state.progress, "leaks": found_leaks}

    def measure(name: str) -> dict[str, Any] | None:
        """Agreement on a part, None if it is too small."""
        rows = used[places[name]]
        if len(rows) < 2:
            return None
        if parts:
            return measured(parts[name], predict_part(network, parts[name], team=team))
        labelled = Part(_BLANK, quality[rows], raw[places[name]])
        return measured(labelled, predict_labelled(network, data, rows, reporter.step))

    if announce:
        views = len(used) + (twin_count(split.train) if network.native else 0)
        rounds = 1 if method in ("head", "ridge") else 3 * config.epochs
        reporter.note(_about(network, views * rounds, method in ("head", "ridge")))
    if not parts and len(used) > a:
        reporter.start("looking at pictures", len(used) - a)
    before = {f"zero_shot_{name}": measure(name) for name in places if name != "train"}
    qgr = method != "head" and method != "ridge"
    told: dict[str, Any] = {}  # of the comparison, where there was one
    if method == "both" and state is None:
        qgr, compared, by_qgr = prefers_qgr(network, data, split.train, parts["train"], config, reporter)
        told["compared"] = {"start": compared["start"], "head": compared["ridge"], "qgr": by_qgr}
        told["chosen"] = "qgr" if qgr else "head"
        reporter.note(report_line({**compared, "chosen": "QGR" if qgr else compared["chosen"]}, by_qgr))
    honest = None
    if not qgr:
        learned_quality = quality[list(split.train)]
        # Where nothing is tested on, cross-validation gives the figure, and all labels are learned from.
        final, honest = learn_head(
            network, data, split.train, learned_quality, config, reporter, not split.test
        )
    else:
        judge = parts["test"] if config.select_on == "test" else parts["validation"]
        if state is not None:
            # Only prompts and head: finetune restores the trained blocks after the teacher has copied the
            # plain CLIP.
            names = {name for name, _ in network.prompt_parameters()} | set(network.head())
            load_parameters(network, {n: t for n, t in state.weights.items() if n in names}, output)
        else:
            put_start_head(network, parts["train"])
        learned = parts["train"]
        if learned.crops is not None:
            learned = replace(learned, twins=twin_part(network, data, split.train))
        final = finetune(
            network, learned, judge if len(judge.images) else None, config, writer, state, reporter
        )
    metrics = {**before, **{name: measure(name) for name in places}}
    if honest is not None:
        metrics["cross_validation"] = measured(Part(_BLANK, learned_quality, raw[places["train"]]), honest)
    progress = {
        **final.progress,
        **told,
        "metrics": {name: measured for name, measured in metrics.items() if measured},
        # The published protocol of the released code: honest only if it is declared.
        "selected_on_test": config.select_on == "test",
        "leaks": found_leaks,
    }
    if team.leads:
        writer.save(replace(final, progress=progress))
    return progress


def put_shipped_prompts(network: GrmpIqa, model: ModelConfig) -> dict[str, str] | None:
    """Put the prompts that ship with an embedded backbone into it, if ``model`` asks for them.

    Returns:
        Which they are, for config.json; None if there are none, or others were asked for.
    """
    embedded = embedded_backbone(model.backbone.name)
    if not model.shipped_prompts or not embedded or model.backbone.pretrained:
        return None
    path = embedded.prompts_path
    load_parameters(network, embedded.load_prompts(), path)
    return {"prompts": path.name, "sha256": sha256_file(path)}


_BLANK = np.zeros((0, 0, 0, 3), np.uint8)


def measured(part: Part, predicted: npt.NDArray[np.float32]) -> dict[str, Any]:
    """Agreement on a part, with the interval of its SRCC."""
    interval = srcc_interval(predicted, part.actual)
    # A list, as it is in files of results.
    return {**part.measure(predicted), "srcc_interval": None if interval is None else [*interval]}


def _about(network: GrmpIqa, pictures: int, closed: bool) -> str:
    """How long a run will take, from the time of one picture here."""
    views = preprocess_of(network).views(np.zeros((512, 512, 3), np.uint8)).pixels
    see(network, iter([views[:1]]))  # the first takes longer
    start = time.perf_counter()
    see(network, iter([views]))
    seconds = pictures * (time.perf_counter() - start)
    most = "" if closed else "at most "
    if seconds < 90:
        return f"{most}about {seconds:.0f} seconds on this machine"
    if seconds < 5400:
        return f"{most}about {seconds / 60:.0f} minutes on this machine"
    return f"{most}about {seconds / 3600:.0f} hours on this machine"


def build_network(model: ModelConfig) -> tuple[GrmpIqa, dict[str, Any]]:
    """A network with fresh prompts on its device, and what config.json says of it."""
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
