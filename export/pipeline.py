"""From a checkpoint to a bundle: load, fold, write the graphs, pass the gate, and only then replace."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grmp_edge import __version__
from grmp_edge.bundle import BackboneReport, Bundle, refuse_other, write_bundle
from grmp_edge.errors import MissingDependencyError
from grmp_edge.export.fault_check import fault_shares, fault_warning
from grmp_edge.export.fold import FoldedModel, fold
from grmp_edge.export.gate_images import gate_images
from grmp_edge.export.graph.emit import OPSET, build_onnx
from grmp_edge.export.graph.save import data_file, save_graph
from grmp_edge.export.mapped import Spool
from grmp_edge.export.parity import Gate, ParityConfig
from grmp_edge.export.precision.half import HalfConfig, float32_blocks
from grmp_edge.export.precision.int8 import Int8Config, choose_gpu, choose_int8
from grmp_edge.export.precision.quantize import GPU_OPSETS, GpuMethod
from grmp_edge.files import folder_beside
from grmp_edge.parity import Int8GraphReport, Int8Report, ParityReport
from grmp_edge.preprocess import NORMALIZATIONS, Normalization, Preprocess
from grmp_edge.train.session.checkpoint import Checkpoint, load_checkpoint

__all__ = ["GRAPH_FILES", "ExportConfig", "export_bundle", "export_model"]

GRAPH_FILES = {
    "fp32": "model.onnx",
    "fp16": "model.fp16.onnx",
    "int8": "model.int8.onnx",
    "int8-fp16": "model.int8-fp16.onnx",
    "fp8": "model.fp8.onnx",
}


@dataclass(frozen=True)
class ExportConfig:
    """What to export and how to check it."""

    fp16: bool = False  # float32 runs everywhere; half pays on GPUs only
    int8: bool = False  # pays on CPUs with integer dot products; costs accuracy that the gate measures
    gpu: tuple[GpuMethod, ...] = ()  # eight bits with half, for GPUs: "int8-fp16", "fp8"
    # Folder or csv of pictures from which int8 takes its ranges; None: those of the gate.
    calibration: Path | None = None
    # Folder or csv of pictures for the gate; None: those of training, or procedural ones.
    images: Path | None = None
    weights: str | None = None  # the backbone's weights, if they are no longer where the checkpoint says
    parity: ParityConfig = field(default_factory=ParityConfig)
    half: HalfConfig = field(default_factory=HalfConfig)
    quantize: Int8Config = field(default_factory=Int8Config)


def export_bundle(
    checkpoint: Path,
    output: Path,
    config: ExportConfig | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Export a checkpoint. ``output`` is replaced in one step at the end, or left as it was.

    Args:
        checkpoint: a folder made by training.
        output: the bundle to make.
        config: what to export.
        progress: called with a description of each stage.

    Raises:
        MissingDependencyError: onnxruntime, which the gate needs, is not installed.
        CheckpointError, ModelError: the checkpoint cannot be loaded.
        DataError, ImageError: the pictures for the gate cannot be read.
        ParityError: a graph exceeds its limit.
        BundleError: ``output`` exists and is not a bundle.
    """
    config = config or ExportConfig()
    if find_spec("onnxruntime") is None:
        purpose = "the parity gate (for an NVIDIA GPU the extra is [gpu] instead)"
        raise MissingDependencyError("onnxruntime", "cpu", purpose)
    # Refused before minutes of work; write_bundle checks it again.
    refuse_other(output)
    progress("loading the checkpoint")
    return export_model(load_checkpoint(checkpoint, config.weights), output, config, progress)


def export_model(
    loaded: Checkpoint, output: Path, config: ExportConfig, progress: Callable[[str], None] = lambda _: None
) -> Bundle:
    """Export what a checkpoint holds; see :func:`export_bundle`. Its model is used up."""
    model = loaded.model
    preprocess = Preprocess.for_size(model.image.size, model.native)
    images, source = gate_images(config.images, loaded.images, preprocess, config.parity.images)
    faults = fault_shares(model, loaded.images, progress)
    if warning := fault_warning(faults):
        progress(warning)
    progress("folding")
    folded = fold(model)
    normalization = NORMALIZATIONS[model.config.normalization]
    with folder_beside(output) as folder:
        metadata = _metadata(loaded, folded, normalization, preprocess)
        backbone, provenance, mos = _backbone(loaded, folded), _provenance(loaded), loaded.mos
        aggregate, causes, reads = model.aggregate, folded.causes, folded.reads
        # On disk instead of in memory, so that PyTorch's weights go once the reference is scored.
        spool = Spool(folded, folder / "folded")
        del folded
        gate = Gate(model, images, config.parity, progress)
        del loaded, model
        stages = _Stages(spool, folder, metadata, progress)
        report: ParityReport = {"images": source}
        if faults:
            report["faults"] = faults
        stages.fp32(gate)
        if config.fp16:
            report["fp32_blocks"] = stages.fp16(gate, config.half)
        if config.int8 or config.gpu:
            ranges, words = images, source
            if config.calibration is not None:
                ranges, words = gate_images(
                    config.calibration, (), preprocess, config.quantize.images, fill=False
                )
        if config.int8:
            report["int8"] = {"calibration": words, **stages.int8(gate, ranges, config.quantize)}
        if config.gpu:
            report["gpu"] = {
                method: stages.gpu(gate, ranges, config.quantize, method) for method in config.gpu
            }
        report = {**gate.report(), **report}
        progress(f"writing {output}")
        return write_bundle(
            output,
            {precision: (file, GPU_OPSETS.get(precision, OPSET)) for precision, file in stages.files.items()},
            files=[data_file(file) for file in stages.files.values() if data_file(file).exists()],
            backbone=backbone,
            preprocess=preprocess,
            normalization=normalization,
            mos=mos,
            parity=report,
            provenance=provenance,
            aggregate=aggregate,
            causes=causes,
            logits="logits" if reads else "",
        )


class _Stages:
    """Writes the graphs into a folder, each checked before the next."""

    def __init__(
        self, spool: Spool, folder: Path, metadata: Mapping[str, str], progress: Callable[[str], None]
    ) -> None:
        self.folded, self.release = spool.folded, spool.release
        self.folder, self.metadata, self.progress = folder, metadata, progress
        self.files: dict[str, Path] = {}

    def _file(self, precision: str) -> Path:
        self.files[precision] = self.folder / GRAPH_FILES[precision]
        self.progress(f"writing {GRAPH_FILES[precision]}")
        return self.files[precision]

    def _described(self, precision: str) -> dict[str, str]:
        return {**self.metadata, "grmp_edge.precision": precision}

    def fp32(self, gate: Gate) -> None:
        file = self._file("fp32")
        save_graph(
            lambda weights: build_onnx(self.folded, metadata=self._described("fp32"), weights=weights), file
        )
        self.release()
        self.progress(f"checking {file.name}")
        remedy = "nothing was written; please report it with the checkpoint"
        gate.accept("fp32", gate.judge("fp32", file), remedy)
        gate.record("fp32", file)

    def fp16(self, gate: Gate, config: HalfConfig) -> list[int]:
        """Returns the indices of the blocks that had to stay in float32."""
        remedy = "nothing was written; export without --fp16"
        wide, simulated = float32_blocks(self.folded, gate, self.folder, self.progress, self.release, config)
        file = self._file("fp16")
        described = self._described("fp16")
        save_graph(
            lambda weights: build_onnx(self.folded, "fp16", wide, metadata=described, weights=weights), file
        )
        self.release()
        self.progress(f"checking {file.name}")
        # A CPU computes the file's half operators in float32 between casts; hence the simulation as well.
        gate.accept("fp16", gate.judge("fp16", file), remedy)
        gate.accept("fp16_simulated", simulated, remedy)
        gate.record("fp16", file)
        return sorted(wide)

    def int8(self, gate: Gate, ranges: npt.NDArray[np.uint8], config: Int8Config) -> Int8Report:
        """Returns a report on what was tried."""
        file = self._file("int8")
        metadata = self._described("int8")
        chosen, tried = choose_int8(
            self.folded, self.files["fp32"], ranges, gate, file, config, metadata, self.progress
        )
        gate.accept("int8", chosen.verdict, "nothing was written; export without --int8")
        gate.record("int8", file)
        return tried

    def gpu(
        self, gate: Gate, ranges: npt.NDArray[np.uint8], config: Int8Config, method: GpuMethod
    ) -> Int8GraphReport:
        """Returns what :func:`choose_gpu` found for a method."""
        file, metadata = self._file(method), self._described(method)
        chosen = choose_gpu(self.folded, ranges, gate, file, config, metadata, method, self.progress)
        gate.accept(method, chosen.verdict, f"nothing was written; export without --{method}")
        gate.record(method, file)
        return chosen.to_json()


def _metadata(
    loaded: Checkpoint, folded: FoldedModel, normalization: Normalization, preprocess: Preprocess
) -> dict[str, str]:
    """What a user of the ONNX file alone should know, as strings."""
    return {
        "grmp_edge.version": __version__,
        "grmp_edge.backbone": loaded.model.backbone.name,
        "grmp_edge.input": f"images: uint8 (batch, {folded.size}, {folded.size}, 3), RGB",
        "grmp_edge.preprocess": f"OpenCV bicubic to {preprocess.resize}x{preprocess.resize}, "
        f"centre {preprocess.crop}x{preprocess.crop}",
        "grmp_edge.output": "scores: float32 (batch,), 0 is bad, 1 is good"
        + (
            f"; logits: float32 (batch, {1 + len(folded.causes)}), of the score, then of "
            + (", ".join(folded.causes) or "nothing else")
            if folded.reads
            else ""
        ),
        "grmp_edge.normalization": f"{normalization.name}, in the graph",
        "grmp_edge.visual_prompts": f"{folded.prompts} in each of {len(folded.blocks)} blocks, folded",
    }


def _backbone(loaded: Checkpoint, folded: FoldedModel) -> BackboneReport:
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
    training: dict[str, Any] = {
        key: value for key, value in loaded.config.items() if key not in ("format_version", "mos")
    }
    for part, name in (("data", "name"), ("backbone", "pretrained")):
        if isinstance(training.get(part), dict) and training[part].get(name):
            training[part] = {**training[part], name: Path(training[part][name]).name}
    for part, name in (("data", "images"), ("progress", "history")):  # long, and in the checkpoint
        if isinstance(training.get(part), dict):
            training[part] = {key: value for key, value in training[part].items() if key != name}
    return {"exported_by": f"grmp-edge {__version__}", "checkpoint": loaded.path.name, "training": training}
