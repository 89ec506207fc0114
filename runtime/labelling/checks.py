"""Attention checks: distorted twins of pictures that a rater has judged, whose order is known anyway."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from grmp_edge.runtime.labelling.answers import Answer, latest_ratings

__all__ = ["attention", "blurred", "check_due", "is_check", "original_of", "without_checks"]

UInt8Array = npt.NDArray[np.uint8]

_MARK = "~twin"  # behind a picture's name
_AFTER = 5  # answers between a picture and its twin: nobody shall compare from memory
_GOOD = 3  # points from which a blurred copy must get fewer


def original_of(name: str) -> str:
    """The picture of a twin; any other name as it is."""
    return name.removesuffix(_MARK)


def is_check(answer: Answer) -> bool:
    """Whether a twin was judged."""
    return any(image.endswith(_MARK) for image in answer.images)


def without_checks(answers: Sequence[Answer]) -> list[Answer]:
    """The answers that say something of the pictures."""
    return [answer for answer in answers if not is_check(answer)]


def blurred(image: UInt8Array) -> UInt8Array:
    """The twin of uint8 (H, W, 3): so far out of focus that nobody who looks calls it as good."""
    return np.asarray(cv2.GaussianBlur(image, (0, 0), max(2.0, max(image.shape) / 120)), np.uint8)


def check_due(own: Sequence[Answer], mode: str, count: int, total: int) -> list[str] | None:
    """The check that a rater is given next, as a task; None: not yet, or no more.

    Args:
        own: the rater's answers, in order.
        mode: "scale" or "pair".
        count: checks in a sitting.
        total: answers in a sitting.
    """
    kind = [one for one in own if one.kind == mode]
    given, plain = sum(map(is_check, kind)), without_checks(kind)
    if given >= count or len(plain) < (given + 1) * max(_AFTER, total // (count + 1)):
        return None
    met = {original_of(image) for one in own if is_check(one) for image in one.images}
    for one in plain[:-_AFTER]:
        image = one.images[0]
        if image not in met and one.value is not None and (mode == "pair" or one.value >= _GOOD):
            # The twin stands now on this side, now on that.
            return [image + _MARK] if mode == "scale" else [image, image + _MARK][:: 1 if given % 2 else -1]
    return None


def attention(answers: Sequence[Answer]) -> dict[str, tuple[int, int]]:
    """By rater, (checks passed, given): a twin gets fewer points than its original, or is the worse one."""
    ratings = latest_ratings(answers)
    passed, given = Counter[str](), Counter[str]()
    for one in answers:
        if not is_check(one) or one.kind not in ("scale", "pair"):
            continue
        given[one.rater] += 1
        if one.kind == "pair":
            good = one.value == (0.0 if one.images[0].endswith(_MARK) else 1.0)
        else:
            first = ratings.get((one.rater, original_of(one.images[0])))
            good = one.value is not None and first is not None and one.value < first
        passed[one.rater] += good
    return {rater: (passed[rater], number) for rater, number in given.items()}
