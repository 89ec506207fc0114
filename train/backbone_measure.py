"""How well a backbone ranks the levels of each distortion, without any fine-tuning, on clean pictures."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from rich.table import Table

from grmp_edge.train.backbone_data import Source
from grmp_edge.train.backbone_loss import normalise
from grmp_edge.train.captions import QUALITY_PAIRS
from grmp_edge.train.distort import DISTORTIONS, LEVELS, Image, distort

__all__ = ["level_scores", "ranking_report", "shown", "zero_shot"]


def shown(image: Image) -> Image:
    """Squash (H, W, 3) uint8 to 244 a side by bicubic and take the middle 224, as scoring does."""
    squashed = cv2.resize(image, (244, 244), interpolation=cv2.INTER_CUBIC)
    return np.asarray(squashed[10:234, 10:234], np.uint8)


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


def level_scores(model: CLIP, sources: Sequence[Source], kind: str, seed: int) -> NDArray[np.float32]:
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
    return zero_shot(model, pictures).reshape(len(sources), 6)


def ranking_report(model: CLIP, sources: Sequence[Source], seed: int = 1) -> Table:
    """Tabulate, for each distortion, the share of neighbouring levels (clean counted as 0) ranked rightly."""
    table = Table(
        "distortion", "neighbours right", "clean above worst", title=f"{len(sources)} held-out pictures"
    )
    shares = []
    for kind in DISTORTIONS:
        scores = level_scores(model, sources, kind, seed)
        right = float((scores[:, :-1] > scores[:, 1:]).mean())
        shares.append(right)
        table.add_row(kind, f"{right:.3f}", f"{float((scores[:, 0] > scores[:, -1]).mean()):.3f}")
    table.add_row("mean", f"{float(np.mean(shares)):.3f}", "")
    return table
