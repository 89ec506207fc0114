"""From a checkpoint to a bundle: load, fold, write the graphs, pass the gate, and only then replace."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx

from grmp_edge import __version__
from grmp_edge.bundle import MANIFEST, Bundle, write_bundle
from grmp_edge.errors import BundleError, MissingDependencyError
from grmp_edge.export.fold import FoldedModel, fold
from grmp_edge.export.gate_images import gate_images
from grmp_edge.export.parity import ParityConfig, check_parity, serialize
from grmp_edge.export.to_onnx import OPSET, GraphPrecision, build_onnx
from grmp_edge.preprocess import NORMALIZATIONS, Normalization, Preprocess
from grmp_edge.train.checkpoint import Checkpoint, load_checkpoint

__all__ = ["GRAPH_FILES", "ExportConfig", "export_bundle"]

GRAPH_FILES = {"fp32": "model.onnx", "fp16": "model.fp16.onnx"}


@dataclass(frozen=True)
class ExportConfig:
    """What to export and how to check it."""

    fp16: bool = False  # float32 runs everywhere; half pays on GPUs only
    # Folder or csv of pictures for the gate; None: those of training, or procedural ones.
    images: Path | None = None
    weights: str | None = None  # the backbone's weights, where they are not found as recorded
    parity: ParityConfig = field(default_factory=ParityConfig)


def export_bundle(
    checkpoint: Path,
    output: Path,
    config: ExportConfig | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Export a checkpoint; ``output`` is replaced in one step at the end, or left as it was.

    Args:
        checkpoint: a folder made by training.
        output: the bundle to make.
        config: what to export.
        progress: told of each stage.

    Raises:
        MissingDependencyError: there is no onnxruntime for the gate.
        CheckpointError, ModelError: the checkpoint cannot be loaded.
        DataError, ImageError: the pictures for the gate cannot be read.
        ParityError: a graph is past its tolerance.
        BundleError: ``output`` exists and is not a bundle.
    """
    config = config or ExportConfig()
    if find_spec("onnxruntime") is None:
        purpose = "the parity gate (for an NVIDIA GPU the extra is [gpu] instead)"
        raise MissingDependencyError("onnxruntime", "cpu", purpose)
    if output.exists() and not (output / MANIFEST).is_file() and (output.is_file() or any(output.iterdir())):
        # Said before minutes of work; write_bundle holds to it.
        raise BundleError(f"{output}: exists and is not a bundle", "choose another output with -o")
    progress("loading the checkpoint")
    loaded = load_checkpoint(checkpoint, config.weights)
    model = loaded.model
    preprocess = Preprocess.for_size(model.image.size)
    images, source = gate_images(config.images, loaded.images, preprocess, config.parity.images)
    progress("folding")
    folded = fold(model)
    normalization = NORMALIZATIONS[model.config.normalization]
    output.parent.mkdir(parents=True, exist_ok=True)
    # Beside the output: the finished files are moved, not copied.
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.absolute().parent) as folder:
        metadata = _metadata(loaded, folded, normalization, preprocess)
        files: dict[str, Path] = {}
        precisions: tuple[GraphPrecision, ...] = ("fp32", "fp16") if config.fp16 else ("fp32",)
        for precision in precisions:
            progress(f"writing {GRAPH_FILES[precision]}")
            files[precision] = Path(folder) / GRAPH_FILES[precision]
            _write(folded, precision, metadata, files[precision])
        report = check_parity(model, folded, files, images, config.parity, progress)
        report["images"] = source
        progress(f"writing {output}")
        return write_bundle(
            output,
            {precision: (file, OPSET) for precision, file in files.items()},
            backbone=_backbone(loaded, folded),
            preprocess=preprocess,
            normalization=normalization,
            mos=loaded.mos,
            parity=report,
            provenance=_provenance(loaded),
        )


def _write(folded: FoldedModel, precision: GraphPrecision, metadata: Mapping[str, str], file: Path) -> None:
    graph = build_onnx(folded, precision, metadata={**metadata, "grmp_edge.precision": precision})
    file.write_bytes(serialize(graph))
    del graph
    # By path, so that the checker does not hold a second copy of the weights.
    onnx.checker.check_model(str(file), full_check=True)


def _metadata(
    loaded: Checkpoint, folded: FoldedModel, normalization: Normalization, preprocess: Preprocess
) -> dict[str, str]:
    """What a user of the bare ONNX file should know, as strings."""
    return {
        "grmp_edge.version": __version__,
        "grmp_edge.backbone": loaded.model.backbone.name,
        "grmp_edge.input": f"images: uint8 (batch, {folded.size}, {folded.size}, 3), RGB",
        "grmp_edge.preprocess": f"OpenCV bicubic to {preprocess.resize}x{preprocess.resize}, "
        f"centre {preprocess.crop}x{preprocess.crop}",
        "grmp_edge.output": "scores: float32 (batch,), 0 is bad, 1 is good",
        "grmp_edge.normalization": f"{normalization.name}, in the graph",
        "grmp_edge.visual_prompts": f"{folded.prompts} in each of {len(folded.blocks)} blocks, folded",
    }


def _backbone(loaded: Checkpoint, folded: FoldedModel) -> dict[str, Any]:
    backbone = loaded.model.backbone
    return {
        "name": backbone.name,
        "digest": backbone.digest,
        "quick_gelu": backbone.quick_gelu,
        "image_size": folded.size,
        "patch": folded.patch,
        "width": folded.width,
        "blocks": len(folded.blocks),
        "heads": folded.heads,
        "visual_prompts": folded.prompts,
    }


def _provenance(loaded: Checkpoint) -> dict[str, Any]:
    """The checkpoint's settings and metrics; of paths on the training machine only the last part."""
    training = {key: value for key, value in loaded.config.items() if key not in ("format_version", "mos")}
    for part, name in (("data", "name"), ("backbone", "pretrained")):
        if isinstance(training.get(part), dict) and training[part].get(name):
            training[part] = {**training[part], name: Path(training[part][name]).name}
    for part, name in (("data", "images"), ("progress", "history")):  # long, and in the checkpoint
        if isinstance(training.get(part), dict):
            training[part] = {key: value for key, value in training[part].items() if key != name}
    return {"exported_by": f"grmp-edge {__version__}", "checkpoint": loaded.path.name, "training": training}
