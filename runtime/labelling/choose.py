"""Which of many frames to ask about: few that stand for all, spread over looks and predicted quality."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from grmp_edge.runtime.labelling.frames import Frame
from grmp_edge.runtime.labelling.looks import LOOK_SIZE

__all__ = ["choose", "choose_frames"]

Float64Array = npt.NDArray[np.float64]

# How far apart the worst and the best predicted quality are, in units of the median distance of looks.
_QUALITY = 2.0


def choose(
    points: npt.NDArray[np.floating], count: int, taken: Sequence[int] = (), doubt: Float64Array | None = None
) -> list[int]:
    """The pictures whose labels stand best for all: greedy facility location.

    Each picture is as well stood for as it is near to one that is labelled. The picture that adds most comes
    next, so that the first of a longer choice are the choice of fewer.

    Args:
        points: (n, D); Euclidean distances are meant.
        count: how many to choose.
        taken: those that are labelled already.
        doubt: how unsure the model is of each, (n,), 0 or more: the unsure count more. None: all alike.
    """
    rows = np.asarray(points, np.float64)
    squares = (rows**2).sum(axis=1)
    apart = np.sqrt(np.maximum(squares[:, None] + squares[None, :] - 2 * rows @ rows.T, 0))
    width = float(np.median(apart[apart > 0])) if (apart > 0).any() else 1.0
    likeness = np.exp(-((apart / (0.5 * width)) ** 2))
    if doubt is not None:
        likeness *= (doubt / (doubt.mean() + 1e-12))[:, None]
    chosen = list(dict.fromkeys(taken))
    best = likeness[:, chosen].max(axis=1) if chosen else np.zeros(len(rows))
    fresh: list[int] = []
    for _ in range(min(count, len(rows) - len(chosen))):
        gain = np.maximum(likeness - best[:, None], 0).sum(axis=0)
        gain[[*chosen, *fresh]] = -1.0
        fresh.append(int(gain.argmax()))
        best = np.maximum(best, likeness[:, fresh[-1]])
    return fresh


def choose_frames(frames: Sequence[Frame], count: int, taken: Sequence[int] = ()) -> list[int]:
    """As :func:`choose`, by looks and predicted quality; frames without looks come last."""
    looks = np.stack([np.zeros(LOOK_SIZE) if frame.look is None else frame.look for frame in frames])
    known = np.array([frame.look is not None for frame in frames])
    values = np.array([np.nan if frame.value is None else frame.value for frame in frames])
    # By rank: scores that lie close together are to be told apart, too.
    ranks = np.zeros(len(frames))
    scored = np.flatnonzero(np.isfinite(values))
    if len(scored) > 1:
        ranks[scored] = values[scored].argsort(kind="stable").argsort(kind="stable") / (len(scored) - 1)
    some = looks[known]
    width = float(np.median(np.linalg.norm(some - some[len(some) // 2], axis=1))) if len(some) else 1.0
    points = np.column_stack([looks, _QUALITY * (width or 1.0) * ranks])
    first = np.flatnonzero(known)
    place = {int(index): row for row, index in enumerate(first)}
    fresh = [
        int(first[row]) for row in choose(points[first], count, [place[at] for at in taken if at in place])
    ]
    rest = [index for index in range(len(frames)) if not known[index] and index not in taken]
    return [*fresh, *rest][:count]
