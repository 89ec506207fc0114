"""What the training options ask for, turned into the training room's own configs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grmp_edge import cli_options as opt
from grmp_edge.errors import UsageError

if TYPE_CHECKING:
    from grmp_edge.train.data import Labelled, SplitConfig
    from grmp_edge.train.finetune import FinetuneConfig
    from grmp_edge.train.meta import MetaConfig
    from grmp_edge.train.progress import Reporter
    from grmp_edge.train.run import ModelConfig
    from grmp_edge.train.tasks import Task

__all__ = ["MetaChoice", "ModelChoice", "TaskChoice", "TuningChoice", "do_finetune", "do_pretrain"]


@dataclass(frozen=True)
class ModelChoice:
    """Backbone, weights, normalisation, device."""

    backbone: str
    weights: str
    quick_gelu: bool | None
    normalization: opt.Normalization | None
    seed: int
    device: str

    def config(self) -> ModelConfig:
        """For ``run_pretrain`` and ``run_finetune``."""
        from grmp_edge.train.backbone import BackboneConfig
        from grmp_edge.train.run import ModelConfig

        backbone = BackboneConfig(self.backbone, self.weights, self.quick_gelu)
        wanted = self.normalization.value if self.normalization else None
        return ModelConfig.of(backbone, wanted, device=self.device, seed=self.seed)


@dataclass(frozen=True)
class TaskChoice:
    """Where the meta-learning tasks come from."""

    photos: Path | None
    meta_data: list[str] | None
    distortions: str | None
    max_photos: int | None
    seed: int

    def build(self, reporter: Reporter) -> tuple[list[list[Task]], dict[str, Any]]:
        """The phases of tasks, and what config.json says of them."""
        from grmp_edge.train import tasks as t
        from grmp_edge.train.datasets import read_spec

        if self.meta_data:
            if self.photos:
                raise UsageError("--photos and --meta-data are two sources of tasks", "give one of them")
            sets = [read_spec(spec) for spec in self.meta_data]
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
    reset_per_task: bool
    seed: int

    def config(self, backbone: str) -> MetaConfig:
        """For ``run_pretrain``."""
        from grmp_edge.train.meta import MetaConfig

        usual = MetaConfig.for_backbone(backbone)
        return replace(
            usual,
            epochs=usual.epochs if self.epochs is None else self.epochs,
            inner_lr=usual.inner_lr if self.inner_lr is None else self.inner_lr,
            outer_lr=usual.outer_lr if self.outer_lr is None else self.outer_lr,
            support_batch=self.support_batch,
            query_batch=self.query_batch,
            reset_per_task=self.reset_per_task,
            seed=self.seed,
        )


@dataclass(frozen=True)
class TuningChoice:
    """Labelled data and settings of fine-tuning."""

    data: str
    images: Path | None
    mos_range: str | None
    labels: int | None
    test_fraction: float
    validation_fraction: float
    epochs: int
    lr: float | None
    batch: int
    no_qgr: bool
    strength: float
    projection: opt.ProjectionChoice
    select_on_test: bool
    seed: int

    def check(self) -> None:
        """Read and divide the csv before any long work, so that what is wrong in it is told at once."""
        from grmp_edge.train.data import split_indices

        data = self.labelled()
        split = split_indices(data, self.split())
        data.scale_of([*split.train, *split.validation])

    def split(self) -> SplitConfig:
        """How the csv is divided."""
        from grmp_edge.train.data import SplitConfig

        return SplitConfig(self.labels, self.test_fraction, self.validation_fraction, self.seed)

    def labelled(self) -> Labelled:
        """The csv, read and checked."""
        from grmp_edge.train.datasets import read_spec

        return read_spec(self.data, self.images, _range(self.mos_range))

    def config(self) -> FinetuneConfig:
        """For ``run_finetune``."""
        from grmp_edge.train.finetune import FinetuneConfig

        return FinetuneConfig(
            epochs=self.epochs,
            lr=self.lr,
            batch=self.batch,
            qgr=not self.no_qgr,
            qgr_strength=self.strength,
            projection=self.projection.value,
            select_on="test" if self.select_on_test else "validation",
            seed=self.seed,
        )


def do_pretrain(
    output: Path, model: ModelChoice, tasks: TaskChoice, meta: MetaChoice, resume: bool, reporter: Reporter
) -> dict[str, Any]:
    """Run the first stage into ``output``."""
    from grmp_edge.train.run import run_pretrain

    phases, said = tasks.build(reporter)
    return run_pretrain(output, model.config(), phases, said, meta.config(model.backbone), resume, reporter)


def do_finetune(
    output: Path,
    model: ModelChoice,
    start: Path | None,
    tuning: TuningChoice,
    resume: bool,
    reporter: Reporter,
) -> dict[str, Any]:
    """Run the second stage into ``output``."""
    from grmp_edge.train.run import run_finetune

    return run_finetune(
        output, model.config(), start, tuning.labelled(), tuning.split(), tuning.config(), resume, reporter
    )


def refuse_overwrite(output: Path) -> None:
    """Raise CheckpointError if the folder holds a run."""
    from grmp_edge.train.checkpoint import CheckpointWriter

    CheckpointWriter(output, {}).refuse_overwrite()


def _range(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = 0.0
    if not low < high:
        raise UsageError(f"--mos-range {text!r} is not a range", "write LOW,HIGH, for instance 0,100")
    return low, high
