"""The recipe of the shipped model: meta-learned prompts for the embedded backbone, and the default bundle.

python -m grmp_edge.export.default_model --photos DIR --work DIR

Pictures are graded by their scene statistics and the faults added to them, not by people. Only the text side
is fine-tuned, so that the graphs share the image tower's weights with the backbone's own file
(``export/shared_weights.py``).
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console

from grmp_edge.default_bundle import DEFAULT_BUNDLE, EMBEDDED
from grmp_edge.errors import GrmpError
from grmp_edge.export.pipeline import ExportConfig, export_bundle
from grmp_edge.export.shared_weights import share_weights
from grmp_edge.files import replace_folder
from grmp_edge.preprocess import squash
from grmp_edge.train.data.labelled import SplitConfig, read_csv
from grmp_edge.train.finetune.config import FinetuneConfig
from grmp_edge.train.meta import MetaConfig
from grmp_edge.train.network.backbone import BackboneConfig
from grmp_edge.train.network.embedded import EMBEDDED_PATH, PROMPTS_PATH, save_prompts
from grmp_edge.train.recipe.faults import quality_of
from grmp_edge.train.recipe.groups import SQUASHED, Source, graded_group, load_photos, statistics
from grmp_edge.train.recipe.scene_quality import appeal, perceived_quality
from grmp_edge.train.runs import ModelConfig, run_finetune, run_pretrain
from grmp_edge.train.session.checkpoint import load_checkpoint
from grmp_edge.train.session.progress import Reporter
from grmp_edge.train.tasks import SyntheticConfig, Task, synthetic_tasks

__all__ = ["DefaultConfig", "make_default", "scene_aware_tasks", "write_graded"]


@dataclass(frozen=True)
class DefaultConfig:
    """Everything that decides the shipped prompts and bundle, given the backbone."""

    seed: int = 1
    photographs: int = 12  # of those not held out; with 25 types at 6 levels, 1,800 pictures per epoch
    groups: int = 100  # of graded pictures for fine-tuning, each one photograph in 4 states
    unshrunk: float = 0.7  # as in the backbone's training
    varied: float = 0.6  # likewise: the share in other light, colours and focus
    validation: float = 0.2  # of the graded pictures, to choose the epoch
    epochs: int = 8  # the prompts start close to their final values
    batch: int = 32  # nine steps per epoch
    lr: float = 0.3  # more than for a handful of labels: there are 400, and the image tower is frozen
    qgr_strength: float = 5.0  # as published
    held_out: int = 7  # as for the backbone: these photographs are never trained on


def scene_aware_tasks(photographs: Sequence[Source], config: SyntheticConfig) -> list[Task]:
    """Distortion tasks graded by level and by the photograph's appeal, as in the backbone's training."""
    tasks = synthetic_tasks([(source.name, source.image) for source in photographs], config)
    scenes = [statistics(squash(source.image, SQUASHED)) for source in photographs]
    weights = {source.name: appeal(scene, scene) for source, scene in zip(photographs, scenes, strict=True)}

    def grade(task: Task) -> Task:
        grades = [
            perceived_quality(float(quality), weights[name])
            for quality, name in zip(task.quality, task.references, strict=True)
        ]
        return replace(task, quality=np.array(grades, np.float32))

    return [grade(task) for task in tasks]


def write_graded(folder: Path, sources: Sequence[Source], config: DefaultConfig) -> Path:
    """Write graded pictures as 244 x 244 PNG with a ``labels.csv``; returns the path of the latter.

    The label is 100 times the perceived quality of scene and faults; states of one picture share a reference.
    """
    rows = []
    with replace_folder(folder) as target:
        for number in range(config.groups):
            rng = np.random.default_rng([config.seed, number])
            source = sources[number % len(sources)]
            base, pictures, plans = graded_group(rng, source, config.unshrunk, varied=config.varied)
            scene = statistics(base)
            for state, (picture, faults) in enumerate(zip(pictures, plans, strict=True)):
                name = f"{number:04d}-{state}.png"
                if not cv2.imwrite(str(target / name), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)):
                    raise OSError(f"cannot write {target / name}")
                quality = perceived_quality(quality_of(faults), appeal(scene, statistics(picture)))
                rows.append((name, round(100 * quality, 2), source.name))
        with (target / "labels.csv").open("w", newline="", encoding="utf-8") as stream:
            table = csv.writer(stream)
            table.writerow(("image", "mos", "reference"))
            table.writerows(rows)
    return folder / "labels.csv"


def make_default(
    photos: Sequence[Path], work: Path, bundle: Path, prompts: Path, config: DefaultConfig, reporter: Reporter
) -> None:
    """Make the prompts and the bundle. Stages that are finished in ``work`` are not repeated.

    Args:
        photos: folders of clean photographs.
        work: for checkpoints and the graded pictures.
        bundle, prompts: what to write.
        config: the recipe.
        reporter: receives the progress.

    Raises:
        GrmpError: a stage failed.
    """
    work.mkdir(parents=True, exist_ok=True)
    training, _ = load_photos(photos, config.held_out)
    photographs = [source for source in training if source.weight == 1.0]
    spread = [photographs[i * len(photographs) // config.photographs] for i in range(config.photographs)]
    model = ModelConfig.of(BackboneConfig(), seed=config.seed)
    tasks = scene_aware_tasks(spread, SyntheticConfig(seed=config.seed))
    described = {"photographs": [source.name for source in spread], "seed": config.seed}
    pretrained = work / "pretrain"
    run_pretrain(
        pretrained,
        model,
        [tasks],
        described,
        MetaConfig.of(EMBEDDED),
        resume=pretrained.exists(),
        reporter=reporter,
    )
    save_prompts(dict(load_checkpoint(pretrained).model.prompt_parameters()), prompts)
    labels = write_graded(work / "graded", photographs, config)
    tuned = work / "finetune"
    run_finetune(
        tuned,
        model,
        pretrained,
        read_csv(labels, mos_range=(0, 100)),
        SplitConfig(labels=None, test_fraction=0.1, validation_fraction=config.validation, seed=config.seed),
        FinetuneConfig.of(
            EMBEDDED,
            epochs=config.epochs,
            batch=config.batch,
            lr=config.lr,
            qgr_strength=config.qgr_strength,
            evaluate_every=1,
            image_blocks=0,
            calibration_steps=0,  # computed grades have no noise, and the scale is that of pre-training
            average=False,  # 320 pictures need no averaging of weights
            seed=config.seed,
        ),
        resume=tuned.exists(),
        reporter=reporter,
    )
    whole = export_bundle(tuned, work / "bundle", ExportConfig(fp16=True, int8=True), reporter.note)
    share_weights(whole, EMBEDDED_PATH, bundle)


class _Lines:
    """Progress in a line every ten seconds."""

    def __init__(self, console: Console) -> None:
        self.console, self.stage, self.total, self.done, self.printed = console, "", 0, 0, 0.0

    def start(self, stage: str, total: int, done: int = 0) -> None:
        """A stage of ``total`` steps begins, of which ``done`` are done already."""
        self.stage, self.total, self.done = stage, total, done

    def step(self, count: int = 1, **metrics: float) -> None:
        """``count`` more steps are done."""
        self.done += count
        if time.monotonic() - self.printed > 10 or self.done == self.total:
            self.printed = time.monotonic()
            words = "  ".join(f"{name} {value:.3f}" for name, value in metrics.items())
            self.console.print(f"{self.stage}: {self.done} of {self.total}  {words}", soft_wrap=True)

    def note(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and make both; returns the exit code."""
    parser = argparse.ArgumentParser(description="make the shipped prompts and the default bundle")
    parser.add_argument("--photos", type=Path, nargs="+", required=True, help="folders of clean photographs")
    parser.add_argument(
        "--work", type=Path, required=True, help="for checkpoints; may hold an unfinished run"
    )
    parser.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE)
    parser.add_argument("--prompts", type=Path, default=PROMPTS_PATH)
    parser.add_argument("--seed", type=int, default=DefaultConfig.seed)
    given = parser.parse_args(arguments)
    console = Console(stderr=True)
    try:
        make_default(
            given.photos, given.work, given.bundle, given.prompts, DefaultConfig(given.seed), _Lines(console)
        )
    except GrmpError as error:
        console.print(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        console.print("stopped; continue with the same --work")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
