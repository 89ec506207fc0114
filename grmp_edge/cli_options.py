"""The options of training and of scoring, each defined once for the commands that share it."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Normalization(str, Enum):  # noqa: D101
    imagenet = "imagenet"
    clip = "clip"


class ProjectionChoice(str, Enum):  # noqa: D101
    per_tensor = "per_tensor"
    global_ = "global"


# One definition of each option; the three commands share them.
Output = Annotated[Path, typer.Option("--output", "-o", help="Checkpoint folder to write.")]
Data = Annotated[
    str | None,
    typer.Option(
        "--data", help="Labelled pictures: a csv with the columns image,mos, or SET:PATH such as livec:DIR."
    ),
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
    float,
    typer.Option(
        "--validation-fraction",
        min=0.0,
        max=0.9,
        help="Share of the labels that chooses the epoch; 0: a fixed schedule.",
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
    str, typer.Option("--backbone", help="embedded-s16, or any ViT of open_clip such as ViT-B-16.")
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
    typer.Option("--normalization", help="Default: clip for the embedded backbone, imagenet for others."),
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
    bool,
    typer.Option(
        "--reset-per-task/--no-reset-per-task",
        help="Adapt each task from the shared prompts, or go on as the released code does.",
    ),
]
Epochs = Annotated[int, typer.Option("--epochs", min=1, help="At most so many epochs of fine-tuning.")]
Lr = Annotated[
    float | None,
    typer.Option(
        "--lr", min=0.0, help="SGD's learning rate; default: 0.1 for the embedded backbone, else 1e-3."
    ),
]
BatchSize = Annotated[int, typer.Option("--batch", min=1, help="Pictures in a fine-tuning step.")]
NoQgr = Annotated[bool, typer.Option("--no-qgr", help="Fine-tune without gradient regularisation.")]
Lambda = Annotated[
    float,
    typer.Option("--lambda", min=0.0, help="Strength of the regularisation; 1 is the orthogonal projection."),
]
ProjectionOption = Annotated[
    ProjectionChoice, typer.Option("--projection", help="Project each tensor's gradient, or all as one.")
]
SelectOnTest = Annotated[
    bool,
    typer.Option(
        "--select-on-test",
        help="Choose the epoch on the test part, as the released code does; the result is marked.",
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in the output folder.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on stdout.")]
From = Annotated[
    Path | None, typer.Option("--from", help="Pre-training checkpoint to begin from; default: fresh prompts.")
]
NoMpp = Annotated[
    bool, typer.Option("--no-mpp", help="Fine-tune from fresh prompts, without meta-pre-training.")
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
