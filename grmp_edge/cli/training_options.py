"""What the training options ask for, turned into the training room's own configs."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grmp_edge.cli import options as opt
from grmp_edge.default_bundle import EMBEDDED
from grmp_edge.errors import UsageError

if TYPE_CHECKING:
    from grmp_edge.train.data.labelled import Labelled, SplitConfig
    from grmp_edge.train.finetune.config import FinetuneConfig
    from grmp_edge.train.meta import MetaConfig
    from grmp_edge.train.presets import Preset
    from grmp_edge.train.runs import ModelConfig
    from grmp_edge.train.session.progress import Reporter
    from grmp_edge.train.tasks import Task

__all__ = [
    "MetaChoice",
    "ModelChoice",
    "TargetChoice",
    "TaskChoice",
    "TuningChoice",
    "preset_of",
    "scale_of_labels",
]


@dataclass(frozen=True)
class ModelChoice:
    """Backbone, weights, normalisation, device."""

    backbone: str | None
    weights: str
    quick_gelu: bool | None
    normalization: opt.Normalization | None
    seed: int
    device: str
    preset: opt.PresetChoice = opt.PresetChoice.default
    shipped_prompts: bool = False  # instead of random ones, where there is no pre-training to begin from

    @property
    def name(self) -> str:
        """The backbone's."""
        return self.backbone or EMBEDDED

    def name_after(self, start: Path | None) -> str:
        """The backbone of a pre-training checkpoint, else that of the options."""
        if start is None:
            return self.name
        try:
            return str(json.loads((start / "config.json").read_bytes())["backbone"]["name"])
        except (OSError, ValueError, KeyError, TypeError):
            return self.name  # no checkpoint, which is told when it is loaded

    def config(self) -> ModelConfig:
        """For ``run_pretrain`` and ``run_finetune``."""
        from grmp_edge.train.network.backbone import BackboneConfig
        from grmp_edge.train.runs import ModelConfig

        return ModelConfig.of(
            BackboneConfig(self.name, self.weights, self.quick_gelu),
            self.normalization.value if self.normalization else preset_of(self.preset).normalization,
            device=self.device,
            seed=self.seed,
            shipped_prompts=self.shipped_prompts,
        )

    def check_start(self, start: Path) -> None:
        """Raise UsageError if a given option contradicts a pre-training checkpoint, whose settings hold."""
        try:
            found = json.loads((start / "config.json").read_bytes())
            has = {"backbone": found["backbone"]["name"], "normalization": found["prompts"]["normalization"]}
        except (OSError, ValueError, KeyError, TypeError):
            return  # no checkpoint, which is told when it is loaded
        given = {"backbone": self.backbone, "normalization": self.normalization and self.normalization.value}
        for option, wanted in given.items():
            if wanted and wanted != has[option]:
                raise UsageError(
                    f"--{option} {wanted} contradicts --from {start}, which has {has[option]}",
                    f"leave --{option} out, or pre-train with it: grmp-edge train pretrain",
                )


@dataclass(frozen=True)
class TaskChoice:
    """Where the meta-learning tasks come from."""

    photos: Path | None
    meta_data: list[str] | None
    distortions: str | None
    max_photos: int | None
    seed: int

    def build(self, reporter: Reporter, preset: Preset) -> tuple[list[list[Task]], dict[str, Any]]:
        """The phases of tasks, and what config.json says of them."""
        from grmp_edge.train import tasks as t
        from grmp_edge.train.data.named_sets import notes_of, read_spec

        if self.meta_data:
            if self.photos:
                raise UsageError("--photos and --meta-data are two sources of tasks", "give one of them")
            sets = [read_spec(spec) for spec in self.meta_data]
            for data in sets:
                for note in notes_of(data):
                    reporter.note(f"note: {note}")
            phases = [t.labelled_tasks(data) for data in sets]
            said = {
                "meta_data": [data.name for data in sets],
                "pictures": [len(d) for d in sets],
            }
        else:
            config = t.SyntheticConfig(seed=self.seed)
            if self.distortions:
                config = t.SyntheticConfig(
                    tuple(self.distortions.replace(" ", "").split(",")), seed=self.seed
                )
            if self.photos:
                photographs = t.load_photographs(self.photos, config.max_side, self.max_photos)
            else:
                photographs = t.procedural_photographs(self.max_photos or 24, seed=self.seed)
                reporter.note("no --photos given: tasks are made from computer-made pictures")
            phases = [t.synthetic_tasks(photographs, config)]
            said = {
                "photos": str(self.photos.resolve()) if self.photos else "procedural",
                "count": len(photographs),
                "distortions": list(config.distortions),
            }
        phases = preset.tasks(phases)
        reporter.note(
            f"{sum(map(len, phases))} tasks of {', '.join(str(len(p[0].quality)) for p in phases)} pictures"
        )
        return phases, said


@dataclass(frozen=True)
class MetaChoice:
    """Settings of meta-pre-training."""

    epochs: int | None  # None, as below: what goes with the backbone
    inner_lr: float | None
    outer_lr: float | None
    support_batch: int
    query_batch: int
    reset_per_task: bool | None
    seed: int
    precision: opt.TrainPrecisionChoice = opt.TrainPrecisionChoice.auto

    def config(self, backbone: str, preset: Preset) -> MetaConfig:
        """For ``run_pretrain``."""
        return preset.meta(
            backbone,
            epochs=self.epochs,
            inner_lr=self.inner_lr,
            outer_lr=self.outer_lr,
            support_batch=self.support_batch,
            query_batch=self.query_batch,
            reset_per_task=self.reset_per_task,
            seed=self.seed,
            precision=self.precision.value,
        )


@dataclass(frozen=True)
class TuningChoice:
    """Labelled data and settings of fine-tuning."""

    data: str
    images: Path | None
    mos_range: str | None
    labels: int | None
    test_fraction: float
    validation_fraction: float | None
    epochs: int | None
    lr: float | None
    batch: int | None
    calibrate: bool | None
    text_rate: float | None
    no_qgr: bool
    strength: float | None
    projection: opt.ProjectionChoice
    select_on_test: bool | None
    seed: int
    preset: opt.PresetChoice = opt.PresetChoice.default
    precision: opt.TrainPrecisionChoice = opt.TrainPrecisionChoice.auto

    def check(self, backbone: str) -> None:
        """Read and divide the csv before any long work, so that what is wrong in it is told at once."""
        from grmp_edge.train.data.labelled import split_indices
        from grmp_edge.train.data.named_sets import notes_of
        from grmp_edge.train.runs import refuse_no_test_part

        refuse_no_test_part(self.config(backbone).select_on, self.test_fraction)
        data = self.labelled()
        for note in notes_of(data):
            print(f"note: {note}", file=sys.stderr)
        split = split_indices(data, self.split(backbone))
        data.scale_of([*split.train, *split.validation])

    def split(self, backbone: str) -> SplitConfig:
        """How the csv is divided."""
        return preset_of(self.preset).split(
            backbone,
            labels=self.labels,
            test_fraction=self.test_fraction,
            validation_fraction=self.validation_fraction,
            seed=self.seed,
        )

    def labelled(self) -> Labelled:
        """The csv, read and checked."""
        from grmp_edge.train.data.named_sets import read_spec

        return read_spec(self.data, self.images, scale_of_labels(self.mos_range))

    def config(self, backbone: str) -> FinetuneConfig:
        """For ``run_finetune``."""
        from grmp_edge.train.network.settings import CALIBRATION_STEPS

        steps = {None: None, False: 0, True: CALIBRATION_STEPS}[self.calibrate]
        selects = {None: None, False: "validation", True: "test"}[self.select_on_test]
        return preset_of(self.preset).finetune(
            backbone,
            epochs=self.epochs,
            lr=self.lr,
            batch=self.batch,
            qgr=not self.no_qgr,
            qgr_strength=self.strength,
            projection=self.projection.value,
            seed=self.seed,
            precision=self.precision.value,
            calibration_steps=steps,
            text_rate=self.text_rate,
            select_on=selects,
        )


@dataclass(frozen=True)
class TargetChoice:
    """The labelled set that chooses the pre-training epoch, where the preset has it so."""

    data: str | None
    images: Path | None
    mos_range: str | None

    def labelled(self, preset: Preset) -> Labelled | None:
        """The set, or None where held-out tasks choose.

        Raises:
            UsageError: it is needed and not given.
        """
        from grmp_edge.train.data.named_sets import read_spec

        if preset.meta_select_on == "held-out tasks":
            return None
        if self.data is None:
            raise UsageError(
                f"--preset {preset.name} chooses the pre-training epoch on the target set",
                "give it with --data, or use --preset default",
            )
        return read_spec(self.data, self.images, scale_of_labels(self.mos_range))


def preset_of(choice: opt.PresetChoice) -> Preset:
    """The preset of an option."""
    from grmp_edge.train.presets import preset_named

    return preset_named(choice.value)


def scale_of_labels(text: str | None) -> tuple[float, float] | None:
    """The two ends in ``LOW,HIGH``; None where nothing is given.

    Raises:
        UsageError: it is not two numbers in order.
    """
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = 0.0
    if not low < high:
        raise UsageError(f"--mos-range {text!r} is not a range", "write LOW,HIGH, for instance 0,100")
    return low, high
