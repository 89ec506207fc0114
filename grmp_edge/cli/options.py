"""The options that several commands share. Each is declared once; so are its default and its help."""

# No postponed annotations: typer reads them when it starts, and reading them from text takes time.

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from grmp_edge.cli.groups import PERFORMANCE, option

if TYPE_CHECKING:
    from grmp_edge.bundle import Bundle
    from grmp_edge.runtime import Scorer

PAPER = "Settings of the method"  # a section of --help
AsJson = Annotated[bool, option("--json", "Print the result as one JSON object on stdout.")]
Output = Annotated[Path, option("--output -o", "Checkpoint folder to write.")]
Seed = Annotated[int, option("--seed", "Seed of everything random.")]
SampleSeed = Annotated[int, option("--seed", "Seed of everything random.", min=0)]
Images = Annotated[Path | None, option("--images", "Folder that the file names in the csv are relative to.")]
MosRange = Annotated[
    str | None, option("--mos-range", "Scale of the labels, LOW,HIGH; default: the range observed.")
]
Distortions = Annotated[
    str | None, option("--distortions", "Distortion types, comma-separated; default: all 25.", PAPER)
]

# The choices stand here once more: the modules that own them load numpy, OpenCV or torch.
Normalization = Literal["imagenet", "clip"]
Precision = Literal["auto", "fp32", "fp16", "int8", "int8-fp16", "fp8"]

PrecisionOption = Annotated[
    Precision,
    option("--precision", "Which graph of the bundle; auto: the fastest here, by measuring.", PERFORMANCE),
]


@dataclass(frozen=True)
class BackendOptions:
    """Where a bundle's graph runs."""

    provider: Annotated[
        str,
        option(
            "--provider",
            "Where to run: cpu, cuda, tensorrt, rtx or plugin:NAME; auto: CUDA where it works, else the CPU.",
            PERFORMANCE,
            metavar="NAME",
        ),
    ] = "auto"
    allow_cpu: Annotated[
        bool,
        option(
            "--allow-cpu", "If the --provider asked for does not work, warn and use the CPU.", PERFORMANCE
        ),
    ] = False
    threads: Annotated[
        int | None,
        option(
            "--threads", "CPU threads for the network; default: the backend's choice.", PERFORMANCE, min=1
        ),
    ] = None

    def open(self, bundle: "Path | Bundle", precision: str, tiles: bool = False) -> "Scorer":
        """Open a bundle; warns on stderr if the CPU is used instead of the provider asked for."""
        from grmp_edge.runtime import Scorer

        scorer = Scorer.open(bundle, precision, self.provider, self.threads, self.allow_cpu, tiles)
        if scorer.backend.fallback is not None:
            typer.echo(f"warning: running on the CPU: {scorer.backend.fallback}", err=True)
        if scorer.chosen:
            typer.echo(f"precision auto: {scorer.precision}; {scorer.chosen}", err=True)
        return scorer


BundleOption = Annotated[
    Path | None, option("--bundle", "The bundle, instead of the first argument; all arguments are sources.")
]


def named_bundle(arguments: list[str] | None, bundle: Path | None) -> tuple[Path, list[str]]:
    """Split ``[BUNDLE] SOURCE...`` into the bundle and the sources; a hint on stderr for the default one."""
    from grmp_edge.default_bundle import DEFAULT_BUNDLE, bundle_and_sources

    named, sources = bundle_and_sources(arguments or [], bundle)
    if named == DEFAULT_BUNDLE:
        typer.echo(
            "using the model that ships; fifty labels of your own make a better one: grmp-edge train --help",
            err=True,
        )
    return named, sources


def typed_address(address: str) -> str:
    """An address of the command line, with each ``${NAME}`` from the environment; warns of a password."""
    from grmp_edge.redact import from_environment, has_password, safe_name

    if has_password(address):
        typer.echo(
            f"warning: {safe_name(address)}: other users of this machine see its password in the list of "
            "processes (ps); write '${NAME}' in its place and set NAME in the environment, or use --streams",
            err=True,
        )
    return from_environment(address, "the command line")


def model_name(bundle: Path, model_id: str) -> str:
    """A bundle as messages name it: its path, or ``default``, and its id, which is in every score."""
    from grmp_edge.default_bundle import DEFAULT_BUNDLE, DEFAULT_NAME

    return f"{DEFAULT_NAME if bundle == DEFAULT_BUNDLE else bundle} (model {model_id})"
