"""Sets beside each other: a test set of its own, the same picture in two sets, labels of two scales."""

from __future__ import annotations

import numpy as np

from grmp_edge.errors import DataError
from grmp_edge.score import MosScale
from grmp_edge.train.data.copies import same_files
from grmp_edge.train.data.labelled import Labelled

__all__ = ["refuse_other_scale", "refuse_shared", "with_test"]

# Labels that fill less of the scale they are said to be on are of another: stars on a scale of percents.
_LEAST_SHARE = 0.15
# How far labels may pass the ends of a scale that was only observed, as a share of it.
_BEYOND = 0.5
_FEW = 10  # of fewer labels, the range says nothing


def with_test(data: Labelled, test: Labelled) -> Labelled:
    """One set of which ``data`` is learned from and ``test`` is tested on.

    Raises:
        DataError: a picture is in both, the labels are of two scales, or a set is not one of picture files.
    """
    for one in (data, test):
        if not all(path.is_file() for path in one.paths):
            raise DataError(f"{one.name}: has no picture files", "give a csv, or a set as downloaded")
    if data.scale and test.scale and data.scale != test.scale:
        raise DataError(
            f"{test.name}: labels of {test.scale.low:g}..{test.scale.high:g}, those of {data.name} are of "
            f"{data.scale.low:g}..{data.scale.high:g}",
            "state the scale of both with --mos-range",
        )
    scale = data.scale or test.scale
    if scale is None:
        refuse_other_scale(test, MosScale(float(data.mos.min()), float(data.mos.max())), data.name)
    refuse_shared(data, test)
    both = data.references is not None and test.references is not None
    return Labelled(
        f"{data.name}, tested on {test.name}",
        (*data.paths, *test.paths),
        np.concatenate([data.mos, test.mos]),
        (*(data.references or ()), *(test.references or ())) if both else None,
        None,
        scale,
        notes=(*data.notes, *test.notes),
        fixed=("train",) * len(data) + ("test",) * len(test),
    )


def refuse_shared(data: Labelled, other: Labelled) -> None:
    """Raise DataError if a picture is in both sets, under whatever names."""
    names = same_files((*data.paths, *other.paths))
    own = {name: index for index, name in enumerate(names[: len(data)])}
    shared = [(own[name], index) for index, name in enumerate(names[len(data) :]) if name in own]
    if shared:
        more = f" (and {len(shared) - 1} more)" if len(shared) > 1 else ""
        first, second = data.paths[shared[0][0]], other.paths[shared[0][1]]
        raise DataError(
            f"{other.name}: {second} is the same picture as {first}, which is learned from{more}",
            "remove it from one of them",
        )


def refuse_other_scale(data: Labelled, scale: MosScale, owner: str) -> None:
    """Raise DataError if a set's labels, whose scale is not declared, can hardly be on ``scale``."""
    if data.scale is not None or len(data) < _FEW:
        return
    low, high = float(data.mos.min()), float(data.mos.max())
    span = scale.high - scale.low
    outside = low < scale.low - _BEYOND * span or high > scale.high + _BEYOND * span
    if outside or high - low < _LEAST_SHARE * span:
        raise DataError(
            f"{data.name}: labels of {low:g}..{high:g} are hardly on the scale of {owner}, "
            f"{scale.low:g}..{scale.high:g}",
            "state their own scale with --mos-range LOW,HIGH",
        )
