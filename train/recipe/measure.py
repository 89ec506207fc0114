"""How well a backbone ranks the levels of each distortion, without any fine-tuning, on clean pictures.

python -m grmp_edge.train.recipe.measure --photos DIR
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from rich.console import Console
from rich.table import Table

from grmp_edge.errors import DataError, GrmpError
from grmp_edge.preprocess import squash
from grmp_edge.train.network.embedded import load_embedded
from grmp_edge.train.network.model import GrmpIqa
from grmp_edge.train.pictures.distort import DISTORTIONS, LEVELS, Image, distort
from grmp_edge.train.recipe.captions import QUALITY_PAIRS
from grmp_edge.train.recipe.groups import Source, load_photos
from grmp_edge.train.recipe.objective import normalise
from grmp_edge.train.session.checkpoint import load_checkpoint

__all__ = ["Judge", "judge_of", "level_scores", "ranking_report", "shown", "zero_shot"]

# Scores (224, 224, 3) uint8 pictures: (N,), higher is better.
Judge: TypeAlias = "Callable[[Sequence[Image]], NDArray[np.float32]]"


def shown(image: Image) -> Image:
    """Squash (H, W, 3) uint8 to 244 a side by bicubic and take the middle 224, as scoring does."""
    return squash(image, 244)[10:234, 10:234]


@torch.no_grad()
def zero_shot(model: CLIP, images: Sequence[Image], batch: int = 64) -> NDArray[np.float32]:
    """Score (224, 224, 3) uint8 pictures by "high quality." against "low quality.": (N,) in 0..1."""
    text = model.encode_text(SimpleTokenizer()(list(QUALITY_PAIRS[0])), normalize=True)
    axis = model.logit_scale.exp() * (text[0] - text[1])
    scores = []
    for i in range(0, len(images), batch):
        pixels = normalise(torch.from_numpy(np.stack(images[i : i + batch])))
        scores.append(torch.sigmoid(model.encode_image(pixels, normalize=True) @ axis))
    return np.asarray(torch.cat(scores).numpy(), np.float32)


@torch.no_grad()
def _trained(model: GrmpIqa, images: Sequence[Image], batch: int = 64) -> NDArray[np.float32]:
    parts = [model(torch.from_numpy(np.stack(images[i : i + batch]))) for i in range(0, len(images), batch)]
    return np.asarray(torch.cat(parts).numpy(), np.float32)


def judge_of(model: CLIP | GrmpIqa) -> Judge:
    """Score by a backbone's quality words, or by a model with learned prompts."""
    return partial(_trained, model) if isinstance(model, GrmpIqa) else partial(zero_shot, model)


def level_scores(judge: Judge, sources: Sequence[Source], kind: str, seed: int) -> NDArray[np.float32]:
    """Score each picture clean and at the five levels of one distortion: (N, 6).

    Pictures are shrunk to at most 384 a side first: the strengths of the levels are meant for such sizes.
    """
    pictures = []
    for i, source in enumerate(sources):
        size = min(384, *source.image.shape[:2])
        base = np.asarray(cv2.resize(source.image, (size, size), interpolation=cv2.INTER_AREA), np.uint8)
        pictures.append(shown(base))
        for level in LEVELS:
            pictures.append(shown(distort(base, kind, level, np.random.default_rng([seed, i]))))
    return judge(pictures).reshape(len(sources), 6)


def ranking_report(judge: Judge, sources: Sequence[Source], seed: int = 1) -> Table:
    """Tabulate, for each distortion, the share of neighbouring levels (clean counted as 0) ranked rightly."""
    table = Table("distortion", "neighbours right", "from clean to worst", "clean above worst")
    table.title = f"{len(sources)} held-out pictures"
    shares = []
    for kind in DISTORTIONS:
        scores = level_scores(judge, sources, kind, seed)
        right = (scores[:, :-1] > scores[:, 1:]).mean(axis=0)
        shares.append(float(right.mean()))
        steps = " ".join(f"{step:.2f}" for step in right)
        table.add_row(kind, f"{shares[-1]:.3f}", steps, f"{float((scores[:, 0] > scores[:, -1]).mean()):.2f}")
    table.add_row("mean", f"{float(np.mean(shares)):.3f}", "", "")
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and measure; returns the exit code."""
    parser = argparse.ArgumentParser(description="rank the levels of distortions of held-out photographs")
    parser.add_argument("--photos", type=Path, nargs="+", required=True, help="folders of clean photographs")
    parser.add_argument("--weights", type=Path, help="a backbone of the recipe; default: the one that ships")
    parser.add_argument("--checkpoint", type=Path, help="a trained model instead of a backbone")
    parser.add_argument("--held-out", type=int, default=7, help="every Nth is measured on; 1: all")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(arguments)
    console = Console(stderr=True)
    try:
        _, held = load_photos(given.photos, given.held_out)
        if not held:
            raise DataError("--held-out 0 leaves no photograph to measure on", "give 1 or more")
        model = load_checkpoint(given.checkpoint).model if given.checkpoint else load_embedded(given.weights)
        output = Console(width=None if sys.stdout.isatty() else 110)  # a file's lines would be cut at 80
        output.print(ranking_report(judge_of(model), held, given.seed))
    except GrmpError as error:
        console.print(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
