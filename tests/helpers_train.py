"""Small CLIPs and labelled pictures for the tests of training; every weight is random, also the norms'."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import open_clip
import torch
from conftest import Float32Array, UInt8Array
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.tokenizer import SimpleTokenizer

from grmp_edge.bundle import Bundle, write_bundle
from grmp_edge.export.fold import FoldedModel
from grmp_edge.export.graph.emit import build_onnx
from grmp_edge.export.graph.save import data_file, save_graph
from grmp_edge.export.precision.quantize import GpuMethod, Method, build_int8, layers
from grmp_edge.preprocess import NORMALIZATIONS, Preprocess
from grmp_edge.train.network.backbone import Backbone, state_digest
from grmp_edge.train.network.model import GrmpIqa
from grmp_edge.train.network.settings import PromptConfig
from grmp_edge.train.session.progress import Silent
from grmp_edge.train.tasks import Task

Tensors = dict[str, torch.Tensor]
GPU_METHODS: tuple[GpuMethod, ...] = ("int8-fp16", "fp8")

TINY_CLIP = "tiny-clip"  # for open_clip to make: a run on files costs little
open_clip.add_model_config(Path(__file__).with_name(f"{TINY_CLIP}.json"))
PROMPTS = PromptConfig(visual_tokens=5, dropout=0.0, normalization="clip")


class Stop(Silent):
    """Raises KeyboardInterrupt at the n-th step."""

    def __init__(self, at: int) -> None:
        self.left = at

    def step(self, count: int = 1, **metrics: float) -> None:
        self.left -= count
        if self.left <= 0:
            raise KeyboardInterrupt


@functools.lru_cache(1)
def tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer()


def tiny_clip(
    seed: int = 0,
    *,
    size: int = 32,
    patch: int = 8,
    layers: int = 4,
    text_layers: int = 3,
    quick_gelu: bool = False,
    custom_text: bool = False,
    layer_scale: float | None = None,
) -> torch.nn.Module:
    torch.manual_seed(seed)
    vision = {
        "layers": layers,
        "width": 24,
        "head_width": 8,
        "patch_size": patch,
        "image_size": size,
        "ls_init_value": layer_scale,
    }
    text = {"width": 16, "heads": 2, "layers": text_layers, "ls_init_value": layer_scale}
    kind = CustomTextCLIP if custom_text else CLIP
    clip = kind(embed_dim=12, vision_cfg=vision, text_cfg=text, quick_gelu=quick_gelu)
    with torch.no_grad():
        for name, parameter in clip.named_parameters():
            if "ln_" in name or "gamma" in name or name.endswith("bias"):
                # Identity norms and zero biases would hide one that is left out or used twice.
                parameter.add_(0.3 * torch.randn_like(parameter))
    clip.eval().requires_grad_(False)
    assert isinstance(clip, torch.nn.Module)
    return clip


def tiny_backbone(seed: int = 0, quick_gelu: bool = False, **options: Any) -> Backbone:
    clip = tiny_clip(seed, quick_gelu=quick_gelu, **options)
    return Backbone("tiny", "random", quick_gelu, state_digest(clip), clip, tokenizer())


def tiny_model(seed: int = 0, prompts: PromptConfig = PROMPTS, **options: Any) -> GrmpIqa:
    backbone = tiny_backbone(seed, **options)
    torch.manual_seed(seed + 1)
    model = GrmpIqa(backbone, prompts).eval()
    with torch.no_grad():
        model.prompt_norm.weight.add_(0.3 * torch.randn_like(model.prompt_norm.weight))
        model.prompt_norm.bias.add_(0.3 * torch.randn_like(model.prompt_norm.bias))
    return model


def pictures(count: int, size: int = 32, seed: int = 0) -> UInt8Array:
    """Random coarse pictures, uint8 (count, size, size, 3)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 7, 7, 3), dtype=np.uint8)
    return np.stack([cv2.resize(one, (size, size), interpolation=cv2.INTER_LINEAR) for one in coarse])


def blurred(count: int, size: int, seed: int = 0) -> tuple[UInt8Array, Float32Array]:
    """Noise blurred by a random strength, and quality 1 (sharp) to 0: a question a tiny model can answer."""
    rng = np.random.default_rng(seed)
    quality = rng.random(count).astype(np.float32)
    images = []
    for value in quality:
        noise = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
        images.append(cv2.GaussianBlur(noise, (0, 0), 0.3 + 3 * (1 - float(value))))
    return np.stack(images), quality


def memory_task(name: str, references: int = 5, each: int = 3, size: int = 40, seed: int = 0) -> Task:
    """A task whose pictures are in memory."""
    images = pictures(references * each, size, seed)
    rng = np.random.default_rng(seed + 99)
    owners = tuple(f"r{i // each}" for i in range(references * each))
    return Task(name, owners, rng.random(len(owners)).astype(np.float32), images.__getitem__)


def write_labelled(folder: Path, count: int = 12, size: int = 48, seed: int = 0) -> Path:
    """PNG files of ``blurred`` noise and the csv that labels them 0..100."""
    folder.mkdir(parents=True, exist_ok=True)
    images, quality = blurred(count, size, seed)
    lines = ["image,mos"]
    for index, (image, value) in enumerate(zip(images, quality, strict=True)):
        cv2.imwrite(str(folder / f"{index}.png"), image)
        lines.append(f"{index}.png,{100 * value:.2f}")
    path = folder / "labels.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def parameters_of(model: torch.nn.Module) -> Tensors:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def bundle_of(
    folded: FoldedModel, folder: Path, method: Method = "static", gpu: Sequence[GpuMethod] = GPU_METHODS
) -> Bundle:
    """A bundle of a network's graphs, not judged; ``gpu``: the eight-bit ones of GPUs."""
    files = {precision: folder / f"{precision}.onnx" for precision in ("fp32", "fp16", "int8", *gpu)}
    for kind in gpu:
        steps = dict.fromkeys(layers(folded), 0.1)
        save_graph(partial(build_int8, folded, kind, steps, frozenset(), None), files[kind])
    scales = dict.fromkeys(layers(folded), 0.1) if method == "static" else {}
    save_graph(lambda weights: build_onnx(folded, weights=weights), files["fp32"])
    save_graph(lambda weights: build_onnx(folded, "fp16", weights=weights), files["fp16"])
    save_graph(lambda weights: build_int8(folded, method, scales, weights=weights), files["int8"])
    data = [data_file(file) for file in files.values() if data_file(file).exists()]
    return write_bundle(
        folder / "b",
        {precision: (file, 17) for precision, file in files.items()},
        files=data,
        backbone={},
        preprocess=Preprocess.for_size(folded.size),
        normalization=NORMALIZATIONS["clip"],
        mos=None,
        parity={},
        provenance={},
    )
