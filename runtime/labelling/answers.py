"""What raters answered: an append-only log, and the labels that follow from it.

``answers.jsonl`` has one line per answer, each on the disk before the rater sees the next picture; an undo is
a line, too. ``labels.csv`` is worked out of it, and written whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np

from grmp_edge.errors import UsageError
from grmp_edge.files import csv_row, is_text, replace_file
from grmp_edge.metrics import srcc
from grmp_edge.runtime.labelling.frames import json_lines
from grmp_edge.runtime.labelling.pairs import fit_pairs

__all__ = [
    "ANSWERS",
    "CHOSEN",
    "LABELS",
    "SCALE",
    "Answer",
    "Answers",
    "Label",
    "agreement",
    "chosen_images",
    "labels_of",
    "read_answers",
    "standing",
    "wanted_images",
    "write_labels",
]

ANSWERS, LABELS = "answers.jsonl", "labels.csv"
CHOSEN = "chosen.jsonl"  # a name a line
# The five points of ITU-R BT.500 and P.910, worst first: label 1 to 5.
SCALE = ("Bad", "Poor", "Fair", "Good", "Excellent")

# What one rating is worth: the spread of one rater's repeated ratings is about three quarters of a point.
_RATING_STD = 0.75
_COMMON = 5  # pictures that two raters must share before their agreement means anything


@dataclass(frozen=True)
class Answer:
    """One answer of one rater."""

    kind: Literal["scale", "pair", "skip", "undo"]
    rater: str
    images: tuple[str, ...]  # one, or the two of a pair; none for an undo
    # Of "scale": 1..5. Of "pair": 1: the first is better, 0: the second, .5: neither. None: cannot tell.
    value: float | None = None
    at: float = 0.0  # seconds since 1970
    id: str = ""  # the client's own, so that one sent twice counts once

    def __post_init__(self) -> None:
        count = {"scale": 1, "pair": 2, "undo": 0}.get(self.kind, len(self.images))
        good = len(self.images) == count and len(set(self.images)) == count and len(self.images) <= 2
        if self.value is not None:
            limits = {"scale": (1.0, float(len(SCALE))), "pair": (0.0, 1.0)}.get(self.kind)
            good = good and limits is not None and limits[0] <= self.value <= limits[1]
        # Half a surrogate pair is no text that a browser, a csv or an answer could hold.
        good = good and is_text("".join([self.rater, *self.images, self.id]))
        if not good or not self.rater.strip() or len(self.rater) > 60 or not 0 <= self.at < 1e11:
            raise UsageError(f"no answer: {self.kind} {self.images} {self.value} by {self.rater[:60]!r}")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Answer:
        """The answer of a line.

        Raises:
            UsageError: it is none.
        """
        try:
            value, images = data.get("value"), data.get("images", [])
            if data["kind"] not in ("scale", "pair", "skip", "undo") or not isinstance(images, list):
                raise ValueError
            return cls(
                data["kind"],
                " ".join(str(data["rater"]).split()),
                tuple(str(image) for image in images),
                None if value is None else float(value),
                float(data.get("at", 0.0)),
                str(data.get("id", ""))[:80],
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            raise UsageError("no answer: it needs kind, rater, images and value") from None

    def to_json(self) -> str:
        """Its line."""
        return json.dumps({name: value for name, value in vars(self).items() if value not in (None, "", ())})


def read_answers(folder: Path) -> Iterator[Answer]:
    """All answers of a folder, in order; lines that are none are passed over."""
    for _, data in json_lines(folder / ANSWERS):
        try:
            yield Answer.from_json(data)
        except UsageError:
            continue


def standing(answers: Sequence[Answer]) -> list[Answer]:
    """The answers that no undo has taken back; an id counts once."""
    left: list[Answer] = []
    seen: set[str] = set()
    for answer in answers:
        if answer.id and answer.id in seen:
            continue
        seen.add(answer.id)
        if answer.kind != "undo":
            left.append(answer)
            continue
        last = next((at for at in range(len(left) - 1, -1, -1) if left[at].rater == answer.rater), None)
        if last is not None:
            del left[last]
    return left


def wanted_images(folder: Path) -> frozenset[str]:
    """The pictures that an answer names, or that are chosen for labelling."""
    answered = (image for answer in standing(list(read_answers(folder))) for image in answer.images)
    return frozenset([*answered, *chosen_images(folder)])


def chosen_images(folder: Path) -> list[str]:
    """The pictures that are chosen for labelling, in the order of choice."""
    return [data for _, data in json_lines(folder / CHOSEN) if isinstance(data, str)]


class Answers:
    """The log, open for adding."""

    def __init__(self, folder: Path) -> None:
        """Read what is there; the file is made with the first answer."""
        self._path = folder / ANSWERS
        self._size = -1
        self.refresh()

    def refresh(self) -> None:
        """Read the file again if another process has added to it."""
        size = self._path.stat().st_size if self._path.exists() else 0
        if size != self._size:
            self.all = list(read_answers(self._path.parent))
            self.standing = standing(self.all)
            self._size = size

    def add(self, *answers: Answer) -> int:
        """Put answers on the disk; returns how many were not there already (by their ids).

        Raises:
            OSError: they cannot be written; nothing has changed.
        """
        self.refresh()
        seen, lines = {earlier.id for earlier in self.all} - {""}, []
        for answer in answers:
            if answer.id not in seen:
                lines.append(answer.to_json())
                seen |= {answer.id} - {""}
        if not lines:
            return 0
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0)
        handle = os.open(self._path, flags, 0o600)
        try:
            size = os.fstat(handle).st_size
            # A line that a power failure cut is ended first.
            cut = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
            data = (b"\n" if cut else b"") + "".join(f"{line}\n" for line in lines).encode()
            if os.write(handle, data) != len(data):
                os.ftruncate(handle, size)
                raise OSError(28, os.strerror(28), str(self._path))
            os.fsync(handle)
        finally:
            os.close(handle)
        self.refresh()
        return len(lines)


@dataclass(frozen=True)
class Label:
    """The opinion of all raters on one picture."""

    image: str
    mos: float  # 1..5
    std: float  # of what one more rater would say, about: see labels_of
    raters: int
    answers: int


def latest_ratings(answers: Sequence[Answer]) -> dict[tuple[str, str], float | None]:
    """The last rating by (rater, picture); None: cannot tell."""
    return {(one.rater, one.images[0]): one.value for one in answers if one.kind == "scale"}


def labels_of(answers: Sequence[Answer]) -> list[Label]:
    """The labels that follow from answers that stand, in the order of the pictures' names.

    Ratings: the mean over raters, each first freed of being stricter than the others on the same pictures
    (ITU-T P.913); ``std`` is the raters' standard deviation, of a single rating that of one rater with
    himself. Pairs: strengths of a Bradley-Terry model; ``std`` is from its Hessian. Where both are there,
    strengths are brought onto the scale by the pictures that have both, and the two are averaged by variance.
    """
    ratings = latest_ratings(answers)
    by_image: dict[str, dict[str, float]] = {}
    for (rater, image), value in ratings.items():
        if value is not None:
            by_image.setdefault(image, {})[rater] = value
    offsets = _strictness(by_image)
    labels: dict[str, tuple[float, float, float]] = {}  # (mos, variance of the mos, std)
    for image, given in by_image.items():
        values = np.array([value - offsets[rater] for rater, value in given.items()])
        std = float(values.std(ddof=1)) if len(values) > 1 else _RATING_STD
        labels[image] = (float(values.mean()), max(std, 0.25) ** 2 / len(values), std)
    pairs = [one for one in answers if one.kind == "pair" and one.value is not None]
    if pairs:
        names = sorted({image for one in pairs for image in one.images})
        place = {name: index for index, name in enumerate(names)}
        won = [(place[one.images[0]], place[one.images[1]], float(one.value or 0)) for one in pairs]
        strength, covariance = fit_pairs(len(names), won)
        shared = [name for name in names if name in labels]
        slope, offset = 1.0, 3.0
        if len(shared) >= _COMMON:
            x, y = strength[[place[name] for name in shared]], np.array([labels[name][0] for name in shared])
            if x.std() > 1e-6:
                slope = max(0.2, float(((x - x.mean()) * (y - y.mean())).mean() / x.var()))
                offset = float(y.mean() - slope * x.mean())
        for name, index in place.items():
            # Logits, so that no label leaves the scale; its slope in the middle is 1.
            mos = 1 + 4 / (1 + np.exp(-(slope * strength[index] + offset - 3)))
            steep = slope * (mos - 1) * (5 - mos) / 4
            variance = float(max(steep**2 * covariance[index, index], 0.01))
            if name in labels:
                rated, own, _ = labels[name]
                mos = (mos / variance + rated / own) / (1 / variance + 1 / own)
                variance = 1 / (1 / variance + 1 / own)
            labels[name] = (float(mos), variance, float(np.sqrt(variance)))
    raters: dict[str, set[str]] = {}
    counts: dict[str, int] = {}
    for one in (*pairs, *(one for one in answers if one.kind == "scale" and one.value is not None)):
        for image in one.images:
            raters.setdefault(image, set()).add(one.rater)
            counts[image] = counts.get(image, 0) + 1
    return [
        Label(image, min(5.0, max(1.0, mos)), std, len(raters[image]), counts[image])
        for image, (mos, _, std) in sorted(labels.items())
    ]


def _strictness(by_image: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """By how much each rater is above the mean of all on the same pictures; 0 where too few are shared."""
    apart: dict[str, list[float]] = {}
    for given in by_image.values():
        mean = sum(given.values()) / len(given)
        for rater, value in given.items():
            own = apart.setdefault(rater, [])
            if len(given) > 1:
                own.append(value - mean)
    return {rater: float(np.mean(own)) if len(own) >= _COMMON else 0.0 for rater, own in apart.items()}


def agreement(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """How pairs of raters agree: SRCC over the pictures that both rated, share of pairs judged alike."""
    ratings: dict[str, dict[str, float]] = {}
    for (rater, image), value in latest_ratings(answers).items():
        if value is not None:
            ratings.setdefault(rater, {})[image] = value
    better: dict[str, dict[tuple[str, ...], float]] = {}
    for one in answers:
        if one.kind == "pair" and one.value is not None:
            turned = one.images[0] > one.images[1]
            key = tuple(sorted(one.images))
            better.setdefault(one.rater, {})[key] = 1 - one.value if turned else one.value
    found = []
    for first, second in combinations(sorted({*ratings, *better}), 2):
        a, b = ratings.get(first, {}), ratings.get(second, {})
        both = sorted(a.keys() & b.keys())
        rank = srcc([a[name] for name in both], [b[name] for name in both]) if len(both) >= _COMMON else None
        c, d = better.get(first, {}), better.get(second, {})
        judged = c.keys() & d.keys()
        alike = sum(c[key] == d[key] for key in judged) / len(judged) if len(judged) >= _COMMON else None
        if both or judged:
            found.append(
                {
                    "raters": [first, second],
                    "pictures": len(both),
                    "srcc": None if rank is None or not np.isfinite(rank) else round(rank, 3),
                    "pairs": len(judged),
                    "alike": None if alike is None else round(alike, 3),
                }
            )
    return found


def write_labels(folder: Path, labels: Sequence[Label]) -> Path:
    """Write ``labels.csv`` whole: image,mos,std,raters,answers."""
    path = folder / LABELS
    rows = [("image", "mos", "std", "raters", "answers")]
    rows += [(one.image, f"{one.mos:.4f}", f"{one.std:.4f}", one.raters, one.answers) for one in labels]  # type: ignore[misc]
    with replace_file(path, private=True) as file:
        file.write_bytes(b"".join(map(csv_row, rows)))
    return path
