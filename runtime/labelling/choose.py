"""Which of many frames to ask about: spread evenly over predicted quality and cameras, no two alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from grmp_edge.runtime.labelling.frames import Frame
from grmp_edge.runtime.labelling.looks import LOOK_SIZE, SAME

__all__ = ["choose_frames"]

_WINDOW = 9  # candidates around each place in the order of quality
_ALIKE = 2 * SAME  # nearer than this to a chosen frame, another is asked about if there is one


def choose_frames(frames: Sequence[Frame], count: int, taken: Sequence[int] = (), seed: int = 0) -> list[int]:
    """The frames to label next, as indices; the first of a longer choice are the choice of fewer.

    Places in the order of predicted quality are visited so that any number of them is spread evenly (van der
    Corput's sequence). Around each, the camera that was asked about least comes first. Spreading over looks,
    too, made labels less useful than drawing (docs/experiments.md): unusual pictures teach little of others.

    Args:
        frames: all; those without a score stand at random places.
        count: how many to choose.
        taken: those that are chosen already.
        seed: of what is left to chance.
    """
    rng = np.random.default_rng([seed, len(taken)])
    values = np.array([np.nan if frame.value is None else frame.value for frame in frames])
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
        index = int(rng.choice([index for index in unlike if asked[frames[index].camera] == least]))
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
