"""Does the model still see plain faults? Distorted twins of training pictures must score lower than these."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from grmp_edge.errors import ImageError
from grmp_edge.preprocess import read_image
from grmp_edge.train.finetune.seen import head_of, preprocess_of, see
from grmp_edge.train.network.model import GrmpIqa
from grmp_edge.train.pictures.twins import TWINS, twin

__all__ = ["LEAST", "fault_shares", "fault_warning"]

# The share of pictures whose score a fault must lower.
LEAST = 0.9
# Enough to tell .9 from less; each is looked at once for every fault.
_PICTURES = 10


def fault_shares(
    model: GrmpIqa, paths: Sequence[Path], progress: Callable[[str], None] = lambda _: None
) -> dict[str, float]:
    """The share of training pictures whose score each fault lowers, by fault.

    Empty for a network without native crops, which cannot see what compression and noise do to a large
    picture, and where none of the pictures can be read.
    """
    if not model.native:
        return {}
    named = [path for path in paths if path.is_file()]
    places = np.linspace(0, len(named) - 1, min(len(named), _PICTURES)).round().astype(int)
    pictures = []
    for place in places.tolist():
        try:
            pictures.append(read_image(named[place]))
        except ImageError:
            continue
    if not pictures:
        return {}
    progress(f"checking {len(TWINS)} faults on {len(pictures)} pictures of training")
    preprocess, head = preprocess_of(model), head_of(model)

    def views(kind: str) -> Iterator[npt.NDArray[np.uint8]]:
        for index, picture in enumerate(pictures):
            yield preprocess.views(twin(picture, kind, index) if kind else picture).pixels

    clean = head(see(model, views("")))
    return {kind: float((head(see(model, views(kind))) < clean).mean()) for kind in TWINS}


def fault_warning(shares: dict[str, float]) -> str:
    """What to tell the user; empty if every fault is seen."""
    missed = [f"{kind} ({share:.0%})" for kind, share in shares.items() if share < LEAST]
    if not missed:
        return ""
    return (
        f"warning: plain faults that lower the score of fewer than {LEAST:.0%} of the training pictures: "
        f"{', '.join(missed)}; label a few such pictures"
    )
