"""What a frozen network sees in labelled pictures: of each its whole and its crops, aggregated."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from grmp_edge.head import Head, Seen, Twins
from grmp_edge.preprocess import Preprocess
from grmp_edge.train.data.labelled import Labelled
from grmp_edge.train.network.model import GrmpIqa
from grmp_edge.train.pictures.twins import TWINS, twin
from grmp_edge.train.session.ranks import Team, current_team
from grmp_edge.views import sigmoid

__all__ = [
    "fingerprint",
    "head_of",
    "predict_labelled",
    "preprocess_of",
    "put_head",
    "see",
    "see_labelled",
    "see_twins",
    "twin_count",
]

UInt8Array = npt.NDArray[np.uint8]

# Views computed together. On a CPU one at a time is fastest: activations of more do not fit its cache.
_BATCH = {"cuda": 128, "cpu": 1}
# Twins of the labelled pictures, at most: they cost as much as pictures do, and tell little more.
MOST_TWINS = 32


def preprocess_of(model: GrmpIqa) -> Preprocess:
    """How pictures become the model's input."""
    return Preprocess.for_size(model.image.size, model.native)


def fingerprint(model: GrmpIqa) -> str:
    """What distinguishes a model without its head from others."""
    digest = hashlib.sha256(model.backbone.digest.encode())
    for name, parameter in (*model.prompt_parameters(), *model.finetune_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def see(model: GrmpIqa, pictures: Iterator[UInt8Array]) -> Seen:
    """Aggregate the model's own logit, features and statistics over the views of each picture.

    Args:
        model: its head plays no part.
        pictures: the views (1 + crops, S, S, 3) of each.
    """
    device, texts, straight = model.ctx.device, model.quality_features(), _straight(model)
    size, aggregate = _BATCH.get(device.type, 1), model.aggregate
    rows: list[npt.NDArray[np.float64]] = []
    waiting: list[UInt8Array] = []

    def work() -> None:
        views = np.concatenate(waiting)
        parts = []
        for at in range(0, len(views), size):
            pixels = model.pixels(torch.from_numpy(views[at : at + size]).to(device))
            tokens, statistics = _read(model, pixels)
            features = model.image_head(model.image_tokens(tokens, 0, len(model.image.blocks)))
            high, low = model.logits(features, texts).unbind(dim=-1)
            own = (high - low)[:, None] + statistics @ straight[:, None]
            parts.append(torch.cat([own, features, statistics], dim=1).double().cpu().numpy())
        found = np.concatenate(parts)
        at = 0
        for views in waiting:
            # The shift belongs to the logit alone.
            row = aggregate(found[at : at + len(views)]) - aggregate.shift
            row[0] += aggregate.shift
            rows.append(row)
            at += len(views)
        waiting.clear()

    for views in pictures:
        waiting.append(views)
        if sum(map(len, waiting)) >= size:
            work()
    if waiting:
        work()
    width = int(model.image.visual.output_dim)
    table = np.stack(rows) if rows else np.zeros((0, 1 + width + len(straight)))
    return Seen(table[:, 0], table[:, 1 : 1 + width], table[:, 1 + width :])


def _read(model: GrmpIqa, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (B, L, W), and standardised statistics (B, S); S is 0 without a stem."""
    if not len(model.head_row):
        return model.image.embed(pixels), pixels.new_zeros(len(pixels), 0)
    tokens, statistics = model.image.visual.read(pixels)
    return tokens, statistics


def _straight(model: GrmpIqa) -> Tensor:
    """What the backbone's own score takes straight from the statistics, (S,)."""
    row: Tensor | None = getattr(model.clip, "statistics_row", None)
    return torch.zeros_like(model.head_row) if row is None else row.detach().to(model.head_row)


def head_of(model: GrmpIqa) -> Head:
    """A model's head, in terms of a picture's aggregated logit."""
    scale, together = float(model.head_scale), model.aggregate.whole + model.aggregate.native
    row = model.head_row.double() - scale * _straight(model).double()
    return Head(
        scale,
        model.head_weight.double().cpu().numpy(),
        row.cpu().numpy(),
        together * float(model.head_bias) + model.aggregate.shift * (1 - scale),
    )


@torch.no_grad()
def put_head(model: GrmpIqa, head: Head) -> None:
    """The reverse of :func:`head_of`, in place."""
    together = model.aggregate.whole + model.aggregate.native
    bias = (head.bias - model.aggregate.shift * (1 - head.scale)) / together
    model.head_scale.fill_(head.scale)
    model.head_weight.copy_(torch.from_numpy(head.weight))
    row = head.scale * _straight(model).double().cpu().numpy() + head.of_statistics
    model.head_row.copy_(torch.from_numpy(row))
    model.head_bias.fill_(bias)


def predict_labelled(
    model: GrmpIqa, data: Labelled, indices: Sequence[int], on_image: Callable[[], None] = lambda: None
) -> npt.NDArray[np.float32]:
    """Score the chosen pictures of a set by all their views: float32 (n,) in 0..1."""
    return sigmoid(head_of(model)(see_labelled(model, data, indices, on_image))).astype(np.float32)


def see_labelled(
    model: GrmpIqa, data: Labelled, indices: Sequence[int], on_image: Callable[[], None] = lambda: None
) -> Seen:
    """The chosen pictures of a set; what ``data.memo`` has is not computed again."""
    return _recalled(model, data, [(index, "") for index in indices], on_image)


def see_twins(
    model: GrmpIqa, data: Labelled, indices: Sequence[int], on_image: Callable[[], None] = lambda: None
) -> Twins:
    """Distorted twins of the first pictures among ``indices``, one each: the faults take turns."""
    kinds, chosen = list(TWINS), list(indices)[:MOST_TWINS]
    keys = [(index, kinds[index % len(kinds)]) for index in chosen]
    return Twins(_recalled(model, data, keys, on_image), np.arange(len(keys), dtype=np.int64))


def twin_count(indices: Sequence[int]) -> int:
    """How many pictures :func:`see_twins` makes."""
    return min(len(indices), MOST_TWINS)


def _recalled(
    model: GrmpIqa, data: Labelled, keys: Sequence[tuple[int, str]], on_image: Callable[[], None]
) -> Seen:
    """What a model sees in pictures and twins; the ranks of a team, which must all ask alike, share them."""
    mark, memo, team = fingerprint(model), data.memo, current_team()
    preprocess = preprocess_of(model)
    known = {} if memo is None else memo
    missing = [key for key in dict.fromkeys(keys) if (mark, key) not in known]

    def pictures() -> Iterator[UInt8Array]:
        for place, (index, kind) in enumerate(missing):
            if team.mine(place):
                picture = data.picture(index)
                yield preprocess.views(twin(picture, kind, index) if kind else picture).pixels
            on_image()

    seen = _shared(see(model, pictures()), len(missing), team)
    for place, key in enumerate(missing):
        known[mark, key] = (seen.logits[place], seen.features[place], seen.statistics[place])
    rows = [known[mark, key] for key in keys]
    logits, features, statistics = (np.array(part, dtype=np.float64) for part in zip(*rows, strict=True))
    return Seen(logits, features, statistics)


def _shared(own: Seen, count: int, team: Team) -> Seen:
    """All ranks' pictures, of which each has seen its own."""
    if team.size == 1:
        return own
    table = np.column_stack([own.logits, own.features, own.statistics])
    every = torch.zeros(count, table.shape[1], dtype=torch.float64)
    every[team.rank :: team.size] = torch.from_numpy(table)
    team.sum([every])
    found, width = every.numpy(), 1 + own.features.shape[1]
    return Seen(found[:, 0], found[:, 1:width], found[:, width:])
