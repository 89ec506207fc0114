"""Which of many frames to ask about: spread evenly over predicted quality and cameras, no two alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from grmp_edge.runtime.labelling.frames import Frame
from grmp_edge.runtime.labelling.looks import LOOK_SIZE, SAME

__all__ = ["Sight", "choose_frames"]

Float64Array = npt.NDArray[np.float64]

_WINDOW = 9  # candidates around each place in the order of quality
_ALIKE = 2 * SAME  # nearer than this to a chosen frame, another is asked about if there is one


_PENALTY = 0.3  # of the head's ridge regression, as training mostly finds it


@dataclass(frozen=True)
class Sight:
    """What a model that learned from the first labels makes of all frames."""

    values: Float64Array  # (n,), its scores
    points: Float64Array  # (n, D), what its head is linear in


class _Doubt:
    """The variance of the head's score of each frame, given those that are labelled or will be."""

    def __init__(self, points: Float64Array, taken: Sequence[int]) -> None:
        centred = points - points[list(taken) or slice(None)].mean(axis=0)
        self._points = centred / (np.sqrt((centred**2).sum(axis=1).mean()) + 1e-9)
        self.variance = (self._points**2).sum(axis=1)
        self._rows: list[Float64Array] = []  # of the Cholesky factor, by label

    def label(self, index: int) -> None:
        known = sum((row[index] * row for row in self._rows), np.zeros(len(self._points)))
        row = (self._points @ self._points[index] - known) / np.sqrt(self.variance[index] + _PENALTY)
        self._rows.append(row)
        self.variance = np.maximum(self.variance - row**2, 0.0)


def choose_frames(
    frames: Sequence[Frame], count: int, taken: Sequence[int] = (), seed: int = 0, sight: Sight | None = None
) -> list[int]:
    """The frames to label next, as indices; the first of a longer choice are the choice of fewer.

    Places in the order of predicted quality are visited so that any number of them is spread evenly (van der
    Corput's sequence). Around each, the camera that was asked about least comes first. Spreading over looks,
    too, made labels less useful than drawing (docs/experiments.md): unusual pictures teach little of others.
    After a first training the places are by the new model's scores, and the frame that its head is least sure
    of is taken.

    Args:
        frames: all; those without a score stand at random places.
        count: how many to choose.
        taken: those that are chosen already.
        seed: of what is left to chance.
        sight: what the model that was trained from ``taken`` makes of the frames.
    """
    rng = np.random.default_rng([seed, len(taken)])
    values = np.array([np.nan if frame.value is None else frame.value for frame in frames])
    doubt = None
    if sight is not None:
        values, doubt = sight.values, _Doubt(sight.points, taken)
    # By rank: scores that lie close together are to be told apart, too.
    middle = (
        np.nanquantile(values, rng.random(len(frames)))
        if np.isfinite(values).any()
        else rng.random(len(frames))
    )
    order = np.argsort(np.where(np.isfinite(values), values, middle), kind="stable").tolist()
    looks = np.stack([np.full(LOOK_SIZE, np.nan) if f.look is None else f.look for f in frames])
    nearest: npt.NDArray[np.float64] = np.full(len(frames), np.inf)
    asked: Counter[str | None] = Counter()
    chosen = set()

    def note(index: int) -> None:
        chosen.add(index)
        asked[frames[index].camera] += 1
        nearest[:] = np.fmin(nearest, np.linalg.norm(looks - looks[index], axis=1))
        if doubt is not None:
            doubt.label(index)

    for index in taken:
        note(index)
    fresh: list[int] = []
    for step in range(len(taken), len(taken) + min(count, len(frames) - len(chosen))):
        at = _corput(step) * len(order)
        left = [place for place in range(len(order)) if order[place] not in chosen]
        window = sorted(left, key=lambda place: abs(place - at))[:_WINDOW]
        near = [order[place] for place in window]
        unlike = [index for index in near if not nearest[index] < _ALIKE] or near
        least = min(asked[frames[index].camera] for index in unlike)
        fair = [index for index in unlike if asked[frames[index].camera] == least]
        index = int(rng.choice(fair)) if doubt is None else max(fair, key=doubt.variance.__getitem__)
        note(index)
        fresh.append(index)
    return fresh


def _corput(index: int) -> float:
    """The place in 0..1 of a number of van der Corput's sequence: 0, 1/2, 1/4, 3/4, 1/8, ..."""
    place, share = 0.0, 0.5
    while index:
        place += share * (index % 2)
        index, share = index // 2, share / 2
    return place
