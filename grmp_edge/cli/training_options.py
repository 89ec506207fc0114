"""The options of training in groups, and what each group becomes: the training room's own settings."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from grmp_edge.cli import options as opt
from grmp_edge.cli.groups import PERFORMANCE, option
from grmp_edge.cli.options import PAPER
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
    "AllowUnfinished",
    "MetaEpochs",
    "MetaOptions",
    "ModelOptions",
    "NoMpp",
    "PresetName",
    "RunOptions",
    "SetOptions",
    "SplitOptions",
    "TaskOptions",
    "TestData",
    "TestImages",
    "TrainPrecision",
    "TuningOptions",
    "scale_of_labels",
]

# As in grmp_edge.train.session.precision, which loads torch.
TrainPrecision = Literal["auto", "fp32", "bf16", "fp16"]

PresetName = Literal["default", "reference"]  # of grmp_edge.train.presets

PresetOption = Annotated[
    PresetName,
    option(
        "--preset",
        "reference: as the released code does, including its leaks of test data; results are "
        "marked. For the differences: grmp-edge train presets. Options that are given "
        "override it.",
    ),
]
AllowUnfinished = Annotated[
    bool, option("--allow-unfinished", "Also start from a pre-training run that is incomplete.")
]
TestData = Annotated[
    str | None,
    option(
        "--test-data", "Test on this set instead of a part of --data; a column split in the csv does it, too."
    ),
]
TestImages = Annotated[
    Path | None, option("--test-images", "Folder of the pictures of --test-data; default: as for --data.")
]
NoMpp = Annotated[bool, option("--no-mpp", "Fine-tune from fresh prompts, without meta-pre-training.", PAPER)]
MetaEpochs = Annotated[
    int | None,
    option(
        "--meta-epochs",
        "Epochs of meta-pre-training; default: 3 for the embedded backbone, else 50.",
        PAPER,
        min=1,
    ),
]


@dataclass(frozen=True)
class ModelOptions:
    """Backbone, weights, normalisation, device."""

    backbone: Annotated[
        str | None,
        option(
            "--backbone",
            "embedded-l0, or any ViT of open_clip such as ViT-B-16; default: that of --from, "
            "else embedded-l0.",
        ),
    ] = None
    weights: Annotated[
        str,
        option(
            "--weights",
            "Weights of the backbone: an open_clip tag, a file, or 'random'; default: shipped, or 'openai'.",
        ),
    ] = ""
    quick_gelu: Annotated[
        bool | None,
        option(
            "--quick-gelu/--no-quick-gelu",
            "Activation of the weights in a file; default: read from the file.",
            PAPER,
        ),
    ] = None
    normalization: Annotated[
        opt.Normalization | None,
        option(
            "--normalization",
            "Default: that of --from, else what the embedded backbone's stem was trained with, and imagenet "
            "for others, as the released code.",
            PAPER,
        ),
    ] = None
    preset: PresetOption = "default"
    seed: opt.Seed = 0
    device: Annotated[str, option("--device", "auto, cpu or cuda.", PERFORMANCE)] = "auto"

    @property
    def name(self) -> str:
        """The backbone's."""
        return self.backbone or EMBEDDED

    @property
    def ships(self) -> bool:
        """Whether weights and prompts of the backbone ship with the project, and are asked for."""
        from grmp_edge.train.network.settings import EMBEDDED_SETTINGS

        return not self.weights and self.name in EMBEDDED_SETTINGS

    def name_after(self, start: Path | None) -> str:
        """The backbone of a pre-training checkpoint, or of the options if there is none."""
        if start is None:
            return self.name
        try:
            return str(json.loads((start / "config.json").read_bytes())["backbone"]["name"])
        except (OSError, ValueError, KeyError, TypeError):
            return self.name  # no valid checkpoint: loading it raises the error

    def config(self, shipped_prompts: bool = False) -> "ModelConfig":
        """Settings for ``run_pretrain`` and ``run_finetune``.

        Args:
            shipped_prompts: without a pre-training checkpoint, start from the prompts that ship with the
                embedded backbone instead of random ones.
        """
        from grmp_edge.train.network.backbone import BackboneConfig
        from grmp_edge.train.runs import ModelConfig

        return ModelConfig.of(
            BackboneConfig(self.name, self.weights, self.quick_gelu),
            self.normalization or "",
            device=self.device,
            seed=self.seed,
            shipped_prompts=shipped_prompts,
        )

    def check_start(self, start: Path) -> None:
        """Raise UsageError if an option contradicts a pre-training checkpoint, whose settings apply."""
        try:
            config = json.loads((start / "config.json").read_bytes())
            has = {
                "backbone": config["backbone"]["name"],
                "normalization": config["prompts"]["normalization"],
            }
        except (OSError, ValueError, KeyError, TypeError):
            return  # no valid checkpoint: loading it raises the error
        for name, value in (("backbone", self.backbone), ("normalization", self.normalization)):
            if value and value != has[name]:
                raise UsageError(
                    f"--{name} {value} contradicts --from {start}, which has {has[name]}",
                    f"leave --{name} out, or pre-train with it: grmp-edge train pretrain",
                )


@dataclass(frozen=True)
class TaskOptions:
    """Where the meta-learning tasks come from."""

    photos: Annotated[
        Path | None,
        option(
            "--photos", "Pristine photographs to make distortion tasks from; default: computer-made pictures."
        ),
    ] = None
    meta_data: Annotated[
        list[str] | None,
        option(
            "--meta-data",
            "Labelled set as tasks: tid2013:DIR, kadid10k:DIR, or a csv with a column "
            "distortion; repeat for more phases.",
        ),
    ] = None
    distortions: opt.Distortions = None
    max_photos: Annotated[
        int | None, option("--max-photos", "Use no more than this many photographs.", PAPER, min=2)
    ] = None
    seed: opt.Seed = 0

    @property
    def given(self) -> bool:
        """Whether any source of tasks is given."""
        return any((self.photos, self.meta_data, self.distortions, self.max_photos))

    def build(self, reporter: "Reporter", preset: "Preset") -> "tuple[list[list[Task]], dict[str, Any]]":
        """Make the phases of tasks, and their description for config.json.

        Raises:
            UsageError: both --photos and --meta-data are given.
        """
        from grmp_edge.train import tasks as t
        from grmp_edge.train.data.named_sets import read_spec

        description: dict[str, Any]
        if self.meta_data:
            if self.photos:
                raise UsageError("--photos and --meta-data are two sources of tasks", "give one of them")
            sets = [read_spec(spec) for spec in self.meta_data]
            for data in sets:
                for note in data.notes:
                    reporter.note(f"note: {note}")
            phases = [t.labelled_tasks(data) for data in sets]
            description = {
                "meta_data": [data.name for data in sets],
                "pictures": [len(d) for d in sets],
                "labels": "scaled by task",
            }
        else:
            config = t.SyntheticConfig(seed=self.seed)
            if self.distortions:
                config = replace(config, distortions=tuple(self.distortions.replace(" ", "").split(",")))
            if self.photos:
                photographs = t.load_photographs(self.photos, config.max_side, self.max_photos)
            else:
                photographs = t.procedural_photographs(self.max_photos or 24, seed=self.seed)
                reporter.note("no --photos given: tasks are made from computer-made pictures")
            phases = [t.synthetic_tasks(photographs, config)]
            description = {
                "photos": str(self.photos.resolve()) if self.photos else "procedural",
                "count": len(photographs),
                "distortions": list(config.distortions),
            }
        phases = preset.tasks(phases)
        reporter.note(
            f"{sum(map(len, phases))} tasks of {', '.join(str(len(p[0].quality)) for p in phases)} pictures"
        )
        return phases, description


@dataclass(frozen=True)
class MetaOptions:
    """Settings of meta-pre-training; None: the default of the backbone."""

    meta_epochs: MetaEpochs = None
    inner_lr: Annotated[
        float | None,
        option(
            "--inner-lr",
            "Adam's learning rate within a task; default: 1e-3 for embedded, else 1e-4.",
            PAPER,
            min=0.0,
        ),
    ] = None
    outer_lr: Annotated[
        float | None,
        option(
            "--outer-lr",
            "Beta, how far the prompts follow the tasks; default: 1 for embedded, else 1e-2.",
            PAPER,
            min=0.0,
        ),
    ] = None
    support_batch: Annotated[int, option("--support-batch", "Pictures in a support batch.", PAPER, min=1)] = (
        75
    )
    query_batch: Annotated[int, option("--query-batch", "Pictures in a query batch.", PAPER, min=1)] = 50
    reset_per_task: Annotated[
        bool | None,
        option(
            "--reset-per-task/--no-reset-per-task",
            "Adapt each task from the shared prompts (the default), or carry the adapted prompts "
            "on, as the released code does.",
            PAPER,
        ),
    ] = None
    seed: opt.Seed = 0

    def config(self, backbone: str, preset: "Preset", precision: TrainPrecision) -> "MetaConfig":
        """Settings for ``run_pretrain``."""
        return preset.meta(
            backbone,
            epochs=self.meta_epochs,
            inner_lr=self.inner_lr,
            outer_lr=self.outer_lr,
            support_batch=self.support_batch,
            query_batch=self.query_batch,
            reset_per_task=self.reset_per_task,
            seed=self.seed,
            precision=precision,
        )


@dataclass(frozen=True)
class SetOptions:
    """How a labelled set is read."""

    images: opt.Images = None
    mos_range: opt.MosRange = None
    image_column: Annotated[
        str | None,
        option("--image-column", "Column of a csv with file names; default: image, or a guess."),
    ] = None
    mos_column: Annotated[
        str | None, option("--mos-column", "Column of a csv with the scores; default: mos, or a guess.")
    ] = None
    average: Annotated[
        bool, option("--average", "A csv may name a picture several times: take the mean of its scores.")
    ] = False

    def read(
        self, spec: str, preset: PresetName = "default", test: str | None = None, images: Path | None = None
    ) -> "Labelled":
        """Read and check a labelled set, ``SET:PATH`` or a csv, as a preset has it.

        Args:
            spec: the set.
            preset: the preset.
            test: a further set to test on, of the same kind.
            images: its folder of pictures.
        """
        from grmp_edge.train.data.labelled import CsvConfig
        from grmp_edge.train.data.named_sets import read_spec
        from grmp_edge.train.presets import preset_named

        config = CsvConfig(self.image_column, self.mos_column, self.average)
        every = preset_named(preset).livec_training_pictures
        scale = scale_of_labels(self.mos_range)
        data = read_spec(spec, self.images, scale, config, every)
        if test is None:
            return data
        from grmp_edge.train.data.sides import with_test

        return with_test(data, read_spec(test, images or self.images, scale, config, every))


@dataclass(frozen=True)
class SplitOptions:
    """How a labelled set is divided."""

    test_fraction: Annotated[
        float | None,
        option(
            "--test-fraction",
            "Share of the set for testing; default: 0.2, or 0 where cross-validation within the labels gives "
            "the figure (--method head) and where --labels takes them all.",
            min=0.0,
            max=0.9,
        ),
    ] = None
    validation_fraction: Annotated[
        float | None,
        option(
            "--validation-fraction",
            "Share of the labels that chooses the epoch; 0: a fixed schedule; default: 0 for the "
            "embedded backbone and with --preset reference, else 0.2.",
            PAPER,
            min=0.0,
            max=0.9,
        ),
    ] = None
    seed: opt.Seed = 0
    preset: PresetOption = "default"

    @property
    def tested(self) -> float:
        """The share for testing where there must be a test part."""
        return 0.2 if self.test_fraction is None else self.test_fraction

    def fitting(self, count: int, labels: int | None, tuning: "FinetuneConfig") -> "SplitOptions":
        """With a share for testing: all ``count`` pictures are learned from where no test part is needed."""
        if self.test_fraction is not None or tuning.select_on == "test":
            return replace(self, test_fraction=self.tested)
        room = labels is not None and labels <= count - round(0.2 * count)
        needed = room if labels is not None else tuning.method != "head"
        return replace(self, test_fraction=0.2 if needed else 0.0)

    def config(self, backbone: str, labels: int | None = None) -> "SplitConfig":
        """Settings of the split; ``labels``: how many to learn from, None for all outside the test part."""
        from grmp_edge.train.presets import preset_named

        return preset_named(self.preset).split(
            backbone,
            labels=labels,
            test_fraction=self.tested,
            validation_fraction=self.validation_fraction,
            seed=self.seed,
        )


@dataclass(frozen=True)
class TuningOptions:
    """Settings of fine-tuning; None: the default of the backbone and the preset."""

    epochs: Annotated[
        int | None,
        option(
            "--epochs",
            "Most epochs of fine-tuning; default: 12 for the embedded backbone, else 2000.",
            PAPER,
            min=1,
        ),
    ] = None
    lr: Annotated[
        float | None,
        option(
            "--lr", "SGD's learning rate; default: 0.5 for the embedded backbone, else 1e-3.", PAPER, min=0.0
        ),
    ] = None
    batch: Annotated[
        int | None,
        option(
            "--batch",
            "Pictures in a fine-tuning step; default: 16 for the embedded backbone, else 192.",
            PAPER,
            min=1,
        ),
    ] = None
    calibrate: Annotated[
        bool | None,
        option(
            "--calibrate/--no-calibrate",
            "Fit the scores to the labels' scale before learning their order; default: yes for "
            "the embedded backbone, else no.",
            PAPER,
        ),
    ] = None
    text_rate: Annotated[
        float | None,
        option(
            "--text-rate",
            "Learning rate of the text side as a fraction of --lr; default: 0 for the embedded "
            "backbone, else 1.",
            PAPER,
            min=0.0,
        ),
    ] = None
    method: Annotated[
        Literal["head", "qgr", "both"] | None,
        option(
            "--method",
            "head: regression on the frozen network, in seconds; qgr: the paper's training; both: the one "
            "that ranks better within the labels. Default: head for the embedded backbone as it ships, else "
            "qgr, as with any of its options.",
        ),
    ] = None
    no_qgr: Annotated[bool, option("--no-qgr", "Fine-tune without gradient regularisation.", PAPER)] = False
    strength: Annotated[
        float | None,
        option(
            "--lambda",
            "Strength of the regularisation, 1 being the orthogonal projection; default: 1 for "
            "the embedded backbone, else 5.",
            PAPER,
            min=0.0,
        ),
    ] = None
    projection: Annotated[
        Literal["per_tensor", "global"],
        option("--projection", "Project each tensor's gradient, or all as one.", PAPER),
    ] = "per_tensor"
    select_on_test: Annotated[
        bool | None,
        option(
            "--select-on-test/--no-select-on-test",
            "Choose the epoch on the test part, as the released code does; the result is marked.",
            PAPER,
        ),
    ] = None
    seed: opt.Seed = 0
    preset: PresetOption = "default"
    mos_range: opt.MosRange = None

    @property
    def of_qgr(self) -> bool:
        """Whether any setting of QGR's own is given."""
        own = (self.epochs, self.lr, self.batch, self.calibrate, self.text_rate, self.strength)
        return any(value is not None for value in own) or self.no_qgr or self.preset != "default"

    def config(self, backbone: str, precision: TrainPrecision, shipped: bool = False) -> "FinetuneConfig":
        """Settings for ``run_finetune``; ``shipped``: it starts from an embedded backbone as it ships."""
        from grmp_edge.train.network.settings import CALIBRATION_STEPS
        from grmp_edge.train.presets import preset_named

        return preset_named(self.preset).finetune(
            backbone,
            method=self.method or ("head" if shipped and not self.of_qgr else None),
            epochs=self.epochs,
            lr=self.lr,
            batch=self.batch,
            qgr=not self.no_qgr,
            qgr_strength=self.strength,
            projection=self.projection,
            seed=self.seed,
            precision=precision,
            calibration_steps={None: None, False: 0, True: CALIBRATION_STEPS}[self.calibrate],
            text_rate=self.text_rate,
            select_on={None: None, False: "validation", True: "test"}[self.select_on_test],
            label_scale="declared" if self.mos_range else None,
        )


@dataclass(frozen=True)
class RunOptions:
    """How a run proceeds, whatever it trains."""

    curves: Annotated[
        Literal["png", "tensorboard", "none"],
        option(
            "--curves",
            "Training curves beside the checkpoint: curves.png, event files in tensorboard/, or none.",
        ),
    ] = "png"
    resume: Annotated[
        bool,
        option(
            "--resume",
            "Continue the run in the output folder: same data, seed and settings, but more "
            "epochs are allowed.",
        ),
    ] = False
    as_json: opt.AsJson = False
    precision: Annotated[
        TrainPrecision,
        option(
            "--precision",
            "Matrix products in training; auto: bf16 if the GPU has it, else fp32. Weights stay fp32.",
            PERFORMANCE,
        ),
    ] = "auto"


def scale_of_labels(text: str | None) -> tuple[float, float] | None:
    """The two ends in ``LOW,HIGH``; None for None.

    Raises:
        UsageError: not two numbers in ascending order.
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
