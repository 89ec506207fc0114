"""The bundle that ships: the default model's weights through the gate, its graphs sharing one copy of them.

python -m grmp_edge.export.default_model WEIGHTS [--images DIR]

WEIGHTS are a file of ``python -m grmp_edge.train.recipe`` (or ``convert``): what is above the stem, with its
prompts. It is copied into the bundle, where the graphs read it and the stem (``export/shared_weights.py``).
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from grmp_edge.bundle import Bundle
from grmp_edge.default_bundle import DEFAULT_BUNDLE, EMBEDDED
from grmp_edge.errors import GrmpError
from grmp_edge.export.parity import ParityConfig
from grmp_edge.export.pipeline import ExportConfig, export_model
from grmp_edge.export.shared_weights import share_weights
from grmp_edge.train.network.backbone import BackboneConfig, load_backbone
from grmp_edge.train.network.embedded import DEFAULT_PATH, STEM_PATH, load_prompts
from grmp_edge.train.network.model import GrmpIqa
from grmp_edge.train.session.checkpoint import (
    Checkpoint,
    CheckpointConfig,
    backbone_settings,
    load_parameters,
)

__all__ = ["DefaultConfig", "load_weights", "make_default"]


@dataclass(frozen=True)
class DefaultConfig:
    """What decides the shipped bundle, given its weights."""

    images: Path | None = None  # for the gate and for int8's ranges; None: computer-made ones
    pictures: int = 12  # of five views each: two cores judge the three precisions in minutes
    fp16: bool = True
    int8: bool = True


def load_weights(weights: Path) -> Checkpoint:
    """A set of weights with its own prompts, as if it were a checkpoint; ready to score or export.

    Raises:
        ModelError: the file is missing, damaged, or of another architecture.
    """
    config = BackboneConfig(EMBEDDED, str(weights))
    backbone = load_backbone(config)
    model = GrmpIqa(backbone).eval()
    load_parameters(model, load_prompts(weights), weights)
    settings = CheckpointConfig(backbone=backbone_settings(backbone, config), prompts=asdict(model.config))
    return Checkpoint(weights, model, None, settings, [])


def make_default(
    weights: Path, output: Path, config: DefaultConfig, progress: Callable[[str], None] = lambda _: None
) -> Bundle:
    """Export a set of weights as a bundle whose graphs share them.

    Args:
        weights: a file of ``save_embedded``.
        output: the bundle to write; an older one is replaced in one step.
        config: what to export.
        progress: called with a description of each stage.

    Raises:
        GrmpError: the weights cannot be loaded, or a graph fails the gate.
    """
    with tempfile.TemporaryDirectory(prefix="grmp-default-") as temporary:
        # Under the name it ships by; the bundle may be where it comes from.
        named = Path(temporary, DEFAULT_PATH.name)
        shutil.copyfile(weights, named)
        parity = ParityConfig(images=config.pictures)
        export = ExportConfig(fp16=config.fp16, int8=config.int8, images=config.images, parity=parity)
        whole = export_model(load_weights(named), Path(temporary, "bundle"), export, progress)
        return share_weights(whole, [STEM_PATH, named], output)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and make the bundle; returns the exit code."""
    parser = argparse.ArgumentParser(description="make the default bundle")
    parser.add_argument("weights", type=Path, help="the model's weights above the stem")
    parser.add_argument("--images", type=Path, help="folder of pictures for the gate and int8's ranges")
    parser.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE)
    given = parser.parse_args(arguments)
    console = Console(stderr=True)
    try:
        config = DefaultConfig(given.images)
        made = make_default(
            given.weights, given.bundle, config, lambda text: console.print(text, soft_wrap=True)
        )
    except GrmpError as error:
        console.print(f"error: {error}")
        return error.exit_code
    size = sum(path.stat().st_size for path in made.path.iterdir())
    console.print(f"{made.path}: {size / 1e6:.1f} MB, bundle {made.id}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
