"""The options of training and of scoring, each defined once for the commands that share it."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from grmp_edge.runtime import Scorer


class Normalization(str, Enum):  # noqa: D101
    imagenet = "imagenet"
    clip = "clip"


class ProjectionChoice(str, Enum):  # noqa: D101
    per_tensor = "per_tensor"
    global_ = "global"


class PresetChoice(str, Enum):  # noqa: D101
    default = "default"
    reference = "reference"


class CurvesChoice(str, Enum):  # noqa: D101
    png = "png"
    tensorboard = "tensorboard"
    none = "none"


class TrainPrecisionChoice(str, Enum):
    """As in grmp_edge.train.session.precision, which loads torch."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


# One definition of each option; the three commands share them.
Preset = Annotated[
    PresetChoice,
    typer.Option(
        "--preset",
        help="reference: as the released code does, its leaks of test data included; results are marked. "
        "What differs: grmp-edge train presets. Options that are given override it.",
    ),
]
Curves = Annotated[
    CurvesChoice,
    typer.Option(
        "--curves",
        help="Training curves beside the checkpoint: curves.png, event files in tensorboard/, or none.",
    ),
]
AllowUnfinished = Annotated[
    bool,
    typer.Option("--allow-unfinished", help="Begin also from a pre-training run that was not finished."),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Checkpoint folder to write.")]
Data = Annotated[
    str | None,
    typer.Option(
        "--data", help="Labelled pictures: a csv with the columns image,mos, or SET:PATH such as livec:DIR."
    ),
]
TargetData = Annotated[
    str | None,
    typer.Option("--data", help="With --preset reference: the target set that chooses the epoch."),
]
Images = Annotated[Path | None, typer.Option("--images", help="Folder the csv's names are relative to.")]
MosRange = Annotated[
    str | None, typer.Option("--mos-range", help="Scale of the labels, LOW,HIGH; default: as found.")
]
Labels = Annotated[
    int | None,
    typer.Option(
        "--labels", "-n", min=4, help="Learn from so many labels; default: all that are not for testing."
    ),
]
TestFraction = Annotated[
    float, typer.Option("--test-fraction", min=0.0, max=0.9, help="Share kept for testing.")
]
ValFraction = Annotated[
    float | None,
    typer.Option(
        "--validation-fraction",
        min=0.0,
        max=0.9,
        help="Share of the labels that chooses the epoch; 0: a fixed schedule; default: 0 for the embedded "
        "backbone and with --preset reference, else 0.2.",
    ),
]
Photos = Annotated[
    Path | None,
    typer.Option(
        "--photos",
        help="Pristine photographs to make distortion tasks from; default: computer-made pictures.",
    ),
]
MetaData = Annotated[
    list[str] | None,
    typer.Option(
        "--meta-data",
        help="Labelled set as tasks: tid2013:DIR, kadid10k:DIR, or a csv with a column distortion; "
        "repeat for more phases.",
    ),
]
Distortions = Annotated[
    str | None,
    typer.Option("--distortions", help="Types to make tasks of, comma-separated; default: all 25."),
]
MaxPhotos = Annotated[
    int | None, typer.Option("--max-photos", min=2, help="Use at most so many photographs.")
]
BackboneName = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        help="embedded-s16, or any ViT of open_clip such as ViT-B-16; default: that of --from, else "
        "embedded-s16.",
    ),
]
Weights = Annotated[
    str,
    typer.Option(
        "--weights",
        help="Weights of the backbone: an open_clip tag, a file, or 'random'; default: shipped, or 'openai'.",
    ),
]
QuickGelu = Annotated[
    bool | None,
    typer.Option(
        "--quick-gelu/--no-quick-gelu", help="Activation of the weights in a file; default: told by the file."
    ),
]
Norm = Annotated[
    Normalization | None,
    typer.Option(
        "--normalization",
        help="Default: that of --from or --preset, else clip for the embedded backbone, imagenet for others.",
    ),
]
MetaEpochs = Annotated[
    int | None,
    typer.Option(
        "--meta-epochs",
        min=1,
        help="Epochs of meta-pre-training; default: 3 for the embedded backbone, else 50.",
    ),
]
InnerLr = Annotated[
    float | None,
    typer.Option(
        "--inner-lr",
        min=0.0,
        help="Adam's learning rate within a task; default: 1e-3 for embedded, else 1e-4.",
    ),
]
OuterLr = Annotated[
    float | None,
    typer.Option(
        "--outer-lr",
        min=0.0,
        help="Beta, how far the prompts follow the tasks; default: 1 for embedded, else 1e-2.",
    ),
]
SupportBatch = Annotated[int, typer.Option("--support-batch", min=1, help="Pictures in a support batch.")]
QueryBatch = Annotated[int, typer.Option("--query-batch", min=1, help="Pictures in a query batch.")]
Reset = Annotated[
    bool | None,
    typer.Option(
        "--reset-per-task/--no-reset-per-task",
        help="Adapt each task from the shared prompts (the default), or go on as the released code does.",
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(
        "--epochs",
        min=1,
        help="At most so many epochs of fine-tuning; default: 12 for the embedded backbone, else 2000.",
    ),
]
Lr = Annotated[
    float | None,
    typer.Option(
        "--lr", min=0.0, help="SGD's learning rate; default: 0.5 for the embedded backbone, else 1e-3."
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch",
        min=1,
        help="Pictures in a fine-tuning step; default: 16 for the embedded backbone, else 192.",
    ),
]
Calibrate = Annotated[
    bool | None,
    typer.Option(
        "--calibrate/--no-calibrate",
        help="Bring the scores to the labels' scale before learning their order; default: yes for the "
        "embedded backbone, else no.",
    ),
]
TextRate = Annotated[
    float | None,
    typer.Option(
        "--text-rate",
        min=0.0,
        help="Learning rate of the text side as a part of --lr; default: 0 for the embedded backbone, "
        "else 1.",
    ),
]
NoQgr = Annotated[bool, typer.Option("--no-qgr", help="Fine-tune without gradient regularisation.")]
Lambda = Annotated[
    float | None,
    typer.Option(
        "--lambda",
        min=0.0,
        help="Strength of the regularisation, 1 being the orthogonal projection; "
        "default: 1 for the embedded backbone, else 5.",
    ),
]
ProjectionOption = Annotated[
    ProjectionChoice, typer.Option("--projection", help="Project each tensor's gradient, or all as one.")
]
SelectOnTest = Annotated[
    bool | None,
    typer.Option(
        "--select-on-test/--no-select-on-test",
        help="Choose the epoch on the test part, as the released code does; the result is marked.",
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Continue the run in the output folder: same data, seed and settings, but epochs may be raised.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
TrainPrecision = Annotated[
    TrainPrecisionChoice,
    typer.Option(
        "--precision",
        help="Matrix products in training; auto: bf16 on a GPU that has it, else fp32. Weights stay fp32.",
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on stdout.")]
From = Annotated[
    Path | None,
    typer.Option(
        "--from",
        help="Pre-training checkpoint to begin from; default: the prompts that ship with the embedded "
        "backbone, fresh ones for another.",
    ),
]
NoMpp = Annotated[
    bool, typer.Option("--no-mpp", help="Fine-tune from fresh prompts, without meta-pre-training.")
]


StreamsFile = Annotated[
    Path | None, typer.Option("--streams", help="A streams.toml with cameras, their settings and sinks.")
]


class Precision(str, Enum):
    """As in grmp_edge.bundle, which loads OpenCV."""

    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


class Provider(str, Enum):
    """As in grmp_edge.runtime.backends, which loads numpy."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    tensorrt = "tensorrt"


PrecisionOption = Annotated[Precision, typer.Option("--precision", help="Which graph of the bundle.")]
ProviderOption = Annotated[
    Provider, typer.Option("--provider", help="Where to run; auto: CUDA where it works, else the CPU.")
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="CPU threads for the network; default: the backend's choice."),
]
AllowCpu = Annotated[
    bool,
    typer.Option("--allow-cpu", help="Where the --provider asked for does not work: warn, and use the CPU."),
]


def open_scorer(
    bundle: Path, precision: Precision, provider: Provider, threads: int | None, allow_cpu: bool
) -> Scorer:
    """Open a bundle as these options ask for it; one warning on stderr if it is the CPU after all."""
    from grmp_edge.runtime import Scorer

    scorer = Scorer.open(bundle, precision.value, provider.value, threads, allow_cpu)
    if scorer.backend.fallback is not None:
        typer.echo(f"warning: running on the CPU: {scorer.backend.fallback}", err=True)
    return scorer


def named_bundle(arguments: Sequence[str] | None) -> tuple[Path, list[str]]:
    """``[BUNDLE] SOURCE...`` as (the bundle, the sources); a line on stderr if it is the default one."""
    from grmp_edge.default_bundle import DEFAULT_BUNDLE, bundle_and_sources

    bundle, sources = bundle_and_sources(arguments or [])
    if bundle == DEFAULT_BUNDLE:
        typer.echo(
            "the model that ships judges; fifty labels of your own make a better one: grmp-edge train --help",
            err=True,
        )
    return bundle, sources
