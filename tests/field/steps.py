"""How long training steps take, old ways beside new ones: ``python -m steps``.

The ways run alternately in one process, so that what else the machine does falls on all of them alike; the
median of each is shown, per picture of a batch, and its ratio to the first. A plain matrix product takes
its turn among them: beside a fine-tuning step stands the share of that rate that it reaches.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.flop_counter import FlopCounterMode

from grmp_edge.default_bundle import EMBEDDED
from grmp_edge.preprocess import Preprocess
from grmp_edge.train.finetune.config import FinetuneConfig
from grmp_edge.train.finetune.frozen_features import CentreScores, Cut, FrozenCache, Teacher
from grmp_edge.train.finetune.step import TuningStep
from grmp_edge.train.meta import MetaConfig, adapt
from grmp_edge.train.network.backbone import RANDOM, BackboneConfig
from grmp_edge.train.network.model import GrmpIqa
from grmp_edge.train.runs import ModelConfig, build_network
from grmp_edge.train.session.precision import Numerics, Precision
from grmp_edge.train.tasks import PictureCache, SyntheticConfig, procedural_photographs, synthetic_tasks

__all__ = ["main"]

UInt8Array = npt.NDArray[np.uint8]
Ways = dict[str, Callable[[], object]]

_CUT = Cut(9, 12, False)
_SIDE = 1536  # of the matrices whose product shows what the machine can do
_PEAK = "a matrix product"


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, print; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m steps", description=__doc__)
    parser.add_argument("--backbone", default=EMBEDDED)
    parser.add_argument("--random", action="store_true", help="random weights: time does not depend on them")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--pictures", type=int, default=40, help="of a fine-tuning step, and of the judge")
    parser.add_argument("--precision", default="fp32,bf16", help="comma-separated: fp32, bf16, fp16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--cpu-time", action="store_true", help="processor time, which other work delays less"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per line on stdout")
    parser.add_argument("--only", default="", help="comma-separated: tune, frozen, judge, mpp")
    given = parser.parse_args(arguments)
    backbone = BackboneConfig(given.backbone, RANDOM if given.random else "")
    model = build_network(ModelConfig.of(backbone, device=given.device))[0]
    device = model.ctx.device
    precisions: list[Precision] = [Numerics.of(p, device).precision for p in given.precision.split(",")]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(f"{given.backbone} on {name}, {torch.get_num_threads()} threads", file=sys.stderr)
    side = Preprocess.for_size(model.image.size).resize
    images = np.random.default_rng(0).integers(0, 256, (given.pictures, side, side, 3), np.uint8)
    wanted = [part for part in given.only.split(",") if part] or ["tune", "frozen", "judge", "mpp"]
    makers = {"tune": _tuning, "frozen": _frozen, "judge": _judging, "mpp": _meta}
    for part in wanted:
        ways, count = makers[part](model, images, precisions)
        clock = time.process_time if given.cpu_time else time.perf_counter
        work = _work(ways) if part == "tune" else {}
        if work:
            ways[_PEAK] = _product(device)
            work[_PEAK] = 2.0 * _SIDE**3
        _show(part, _alternate(ways, given.rounds, device, clock), count, given.json, work)
    return 0


def _work(ways: Ways) -> dict[str, float]:
    """Floating-point operations of each way's products, counted; their caches are full afterwards."""
    counted = {}
    for label, way in ways.items():
        way()
        with FlopCounterMode(display=False) as counter:
            way()
        counted[label] = float(counter.get_total_flops())
    return counted


def _product(device: torch.device) -> Callable[[], object]:
    left, right = (torch.randn(_SIDE, _SIDE, device=device) for _ in range(2))
    return lambda: left @ right


def _tuning(model: GrmpIqa, images: UInt8Array, precisions: Sequence[Precision]) -> tuple[Ways, int]:
    """A fine-tuning step under QGR whose frozen part is in the cache, by precision."""
    _restore(model)
    teacher = Teacher(model)
    config = FinetuneConfig.of(model.backbone.name)
    quality = np.linspace(0, 1, len(images), dtype=np.float32)
    ways: Ways = {}
    for precision in precisions:
        tuned = replace(config, precision=precision)
        step = TuningStep(model, images, quality, tuned, config.cache_bytes, teacher=teacher)
        ways[precision] = lambda step=step: step.gradients(range(len(images)), _CUT)  # type: ignore[misc]
    return ways, len(images)


def _frozen(model: GrmpIqa, images: UInt8Array, precisions: Sequence[Precision]) -> tuple[Ways, int]:
    """What a view costs when it is first seen: one picture at a time, and in groups."""
    _restore(model)
    teacher, kind = Teacher(model), model.ctx.device.type
    ways: Ways = {}
    for precision in precisions:
        for group in (1, 8, 64):
            cache = FrozenCache(model, teacher, images, 0, group, Numerics(precision, kind))
            ways[f"{precision}, groups of {group}"] = (
                lambda cache=cache: cache.get(list(range(len(images))), _CUT)  # type: ignore[misc]
            )
    return ways, len(images)


def _judging(model: GrmpIqa, images: UInt8Array, precisions: Sequence[Precision]) -> tuple[Ways, int]:
    """Scoring the pictures that choose the epoch: all blocks each time, and the frozen ones kept."""
    _restore(model)
    whole, kept = CentreScores(model, images, 0), CentreScores(model, images, 4 << 30)
    return {"all blocks": whole.predict, "frozen blocks kept": kept.predict}, len(images)


def _meta(model: GrmpIqa, images: UInt8Array, precisions: Sequence[Precision]) -> tuple[Ways, int]:
    """A visit of one task (8 photographs, 6 states, both loops): pictures made anew, and kept."""
    _restore(model)
    config = MetaConfig.of(model.backbone.name)
    (task,) = synthetic_tasks(procedural_photographs(8), SyntheticConfig(("gaussian_blur",)))
    for _, parameter in model.prompt_parameters():
        parameter.requires_grad_(True)
    ways: Ways = {}
    for precision in precisions:
        visited = replace(config, precision=precision)
        for label, budget in (("made anew", 0), ("kept", 1 << 30)):
            kept = PictureCache(budget)
            ways[f"{precision}, {label}"] = (
                lambda visited=visited, kept=kept: adapt(model, task, visited, [0], kept)  # type: ignore[misc]
            )
    return ways, len(task.quality)


def _restore(model: GrmpIqa) -> None:
    model.eval().requires_grad_(False)


def _alternate(ways: Ways, rounds: int, device: torch.device, clock: Callable[[], float]) -> dict[str, float]:
    """Median seconds of each way, after one run of each that is not counted."""
    spent: dict[str, list[float]] = {label: [] for label in ways}
    for number in range(rounds + 1):
        for label, way in ways.items():
            began = clock()
            way()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number:
                spent[label].append(clock() - began)
    return {label: median(times) for label, times in spent.items()}


def _show(part: str, found: dict[str, float], count: int, as_json: bool, work: dict[str, float]) -> None:
    first = next(iter(found.values()))
    best = work[_PEAK] / found.pop(_PEAK) if work else 0.0
    for label, seconds in found.items():
        row = {"part": part, "way": label, "ms_per_picture": 1000 * seconds / count, "ratio": first / seconds}
        line = f"{part:7} {label:24} {row['ms_per_picture']:9.2f} ms/picture  {row['ratio']:5.2f}x"
        if work:
            rate = work[label] / seconds
            row |= {"gflops": rate / 1e9, "gflops_of_a_product": best / 1e9, "share": rate / best}
            line += f"  {rate / 1e9:.1f} of {best / 1e9:.1f} GFLOP/s: {rate / best:.0%}"
        print(json.dumps(row) if as_json else line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
