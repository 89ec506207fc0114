"""One sitting of labelling: which picture or pair each rater sees next, and what has come of it so far."""

from __future__ import annotations

import hashlib
import json
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from grmp_edge.bundle import Bundle
from grmp_edge.errors import BundleError, ImageError, UsageError
from grmp_edge.files import as_typed, replace_file
from grmp_edge.preprocess import read_image
from grmp_edge.runtime.calibrate import see
from grmp_edge.runtime.graph_head import ViewReader
from grmp_edge.runtime.labelling.answers import (
    CHOSEN,
    LABELS,
    SCALE,
    Answer,
    Answers,
    Label,
    agreement,
    chosen_images,
    labels_of,
    write_labels,
)
from grmp_edge.runtime.labelling.checks import attention, check_due, original_of, without_checks
from grmp_edge.runtime.labelling.choose import Sight, choose_frames
from grmp_edge.runtime.labelling.frames import Frame, read_frames
from grmp_edge.runtime.labelling.pairs import next_pair

__all__ = ["Mode", "Sitting"]

Float64Array = npt.NDArray[np.float64]

Mode = Literal["scale", "pair"]
_PAIRS = 3  # asked for each picture: docs/experiments.md compares with ratings
_SHARED = 5  # every so many pairs, one that another rater judged is asked again, to see whether they agree
_RANGE = 5  # pictures shown before the first answer: what bad and good mean here


class Sitting:
    """The state behind the page. Safe on several threads."""

    def __init__(self, folder: Path, count: int = 50, model: Path | None = None, checks: int = 0) -> None:
        """Read the folder; chooses ``count`` pictures unless that was done before.

        Args:
            folder: of frames.
            count: how many are to be labelled.
            model: the bundle that training writes. Once it is there, more pictures are chosen by its scores
                and by what its head is unsure of.
            checks: distorted twins among the pictures, for each rater; see
                :mod:`grmp_edge.runtime.labelling.checks`.

        Raises:
            SourceError: there is no such folder, or no picture in it.
            UsageError: too few pictures to label, or ``count`` is too small.
        """
        if count < 4:
            raise UsageError(
                f"--count {count}: nothing can be learned from so few", "use 4 or more; 50 will do"
            )
        self.folder, self._model, self._checks = folder, model, checks
        self._lock = threading.RLock()
        self._looking = threading.Lock()
        self._seen_by, self._seen = "", dict[str, tuple[float, Float64Array]]()
        self._rng = np.random.default_rng()
        self._read()
        self._answers = Answers(folder)
        if not self._answers.all and (folder / LABELS).exists():  # the next answer would overwrite it
            raise UsageError(
                f"{folder / LABELS}: labels that no answer here has given",
                f"move it away, then take it in: grmp-edge label {as_typed(folder)} --import FILE",
            )
        if len(self.frames) < 2:
            raise UsageError(f"{folder}: a single picture", "collect more: grmp-edge collect CAMERA")
        answered = [image for one in self._answers.standing for image in one.images]
        self.chosen = [
            name for name in dict.fromkeys([*chosen_images(folder), *answered]) if name in self.frames
        ]
        if len(self.chosen) < count:
            self.more(count - len(self.chosen))
        self._write()

    def _read(self) -> None:
        self.frames: dict[str, Frame] = {frame.image: frame for frame in read_frames(self.folder)}

    @property
    def labels(self) -> list[Label]:
        """What follows from all answers on pictures that are still there."""
        with self._lock:
            there = self.frames.keys()
            return labels_of([one for one in self.standing if there >= set(one.images)])

    @property
    def standing(self) -> list[Answer]:
        """The answers that no undo has taken back, without those of checks."""
        with self._lock:
            return without_checks(self._answers.standing)

    def more(self, count: int) -> int:
        """Choose more pictures to label, of those collected since then, too; returns how many there were."""
        self.look()
        with self._lock:
            self._read()
            order = list(self.frames)
            place = {name: index for index, name in enumerate(order)}
            self.chosen = [name for name in self.chosen if name in place]
            taken = [place[name] for name in self.chosen]
            fresh = choose_frames(
                [self.frames[name] for name in order], count, taken, sight=self._sight(order)
            )
            self.chosen += [order[index] for index in fresh]
            with replace_file(self.folder / CHOSEN, private=True) as file:
                file.write_text("".join(f"{json.dumps(name)}\n" for name in self.chosen), encoding="utf-8")
            return len(fresh)

    def look(self) -> None:
        """Have the trained model look at all pictures, for :meth:`more`: a tenth of a second each, once."""
        if self._model is None or not self._model.is_dir() or not self._answers.standing:
            return
        with self._looking, tempfile.TemporaryDirectory() as folder:
            try:
                bundle = Bundle.load(self._model)
                if bundle.id != self._seen_by:
                    self._seen_by, self._seen = bundle.id, {}
                left = [frame.image for frame in read_frames(self.folder) if frame.image not in self._seen]
                read = ViewReader(bundle, Path(folder)) if left else None
            except BundleError:  # damaged, or of a kind whose head cannot be read: chosen as at first
                self._seen_by, self._seen = "", {}
                return
            for name in left:
                try:
                    picture = read_image(self.folder / name)
                except ImageError:
                    continue
                assert read is not None
                seen, _ = see(bundle, read, [picture], lambda: None)
                point = seen.statistics[0] if seen.statistics.shape[1] else seen.features[0]
                self._seen[name] = float(seen.logits[0]), point

    def _sight(self, order: Sequence[str]) -> Sight | None:
        seen = dict(self._seen)  # another thread may be looking at more
        if not seen:
            return None
        values, points = zip(*seen.values(), strict=True)
        usual = float(np.median(values)), np.mean(points, axis=0)  # of a picture that cannot be read
        told = [seen.get(name, usual) for name in order]
        return Sight(np.array([value for value, _ in told]), np.stack([point for _, point in told]))

    def add(self, data: Mapping[str, Any]) -> Answer:
        """Take in an answer as the page sends it: it is on the disk when this returns.

        Raises:
            UsageError: it is no answer, or names a picture that is not there.
        """
        answer = Answer.from_json({**data, "at": round(time.time(), 3)})
        with self._lock:
            for image in answer.images:
                if original_of(image) not in self.frames:
                    raise UsageError(f"no such picture: {image[:80]}", "load the page again")
            if self._answers.add(answer):
                self._write()
        return answer

    def import_answers(self, answers: Sequence[Answer]) -> int:
        """Take in answers of another tool; those that are there, by their id, are passed over."""
        with self._lock:
            added = self._answers.add(*answers)
            self._write()
            return added

    def reload(self) -> None:
        """Look which pictures are there; the labels follow.

        Raises:
            SourceError: none is.
        """
        with self._lock:
            self._read()
            self._write()

    def _write(self) -> None:
        if self._answers.all:
            write_labels(self.folder, self.labels)

    def state(self, rater: str, mode: Mode, image: str | None = None) -> dict[str, Any]:
        """What the page shows a rater.

        Args:
            rater: name.
            mode: ratings or pairs.
            image: a picture to be asked about next, whether it was answered or not.
        """
        with self._lock:
            self._answers.refresh()
            standing = self.standing
            judged = [one for one in self._answers.standing if one.rater == rater]
            own = without_checks(judged)
            labels = self.labels
            if image is not None and image in self.frames and mode == "scale":
                tasks: list[list[str]] = [[image]]
            elif mode == "scale":
                tasks = self._to_rate(rater, own)
            else:
                tasks = self._to_compare(rater, own)
            given = Counter(one.rater for one in standing if one.kind != "skip")
            done, total = self._progress(own, mode)
            if tasks and image is None and (check := check_due(judged, mode, self._checks, total)):
                tasks.insert(0, check)
            return {
                "rater": rater,
                "mode": mode,
                "scale": SCALE,
                "total": total,
                "done": done,
                "task": tasks[0] if tasks else None,
                "following": sorted({name for task in tasks[1:3] for name in task}),
                "can_undo": bool(judged),
                "first": not own,
                "anchors": _anchors(labels),
                "range": self._range(),
                "pictures": len(self.frames),
                "chosen": len(self.chosen),
                "labels": len(labels),
                "raters": dict(given),
                "agreement": agreement(standing),
                "attention": attention(self._answers.standing),
            }

    def _progress(self, own: Sequence[Answer], mode: Mode) -> tuple[int, int]:
        if mode == "scale":
            chosen = set(self.chosen)
            return len({one.images[0] for one in own if one.kind == "scale"} & chosen), len(self.chosen)
        count = len(self.chosen)
        done = sum(one.kind == "pair" for one in own)
        return done, max(done, min(_PAIRS * count, count * (count - 1) // 2))

    def _to_rate(self, rater: str, own: Sequence[Answer]) -> list[list[str]]:
        """What is left, in an order of this rater's own: skipped ones last."""
        rated = {one.images[0] for one in own if one.kind == "scale"}
        skipped = Counter(one.images[0] for one in own if one.kind == "skip" and len(one.images) == 1)
        left = [name for name in self.chosen if name not in rated]
        return [[name] for name in sorted(left, key=lambda name: (skipped[name], _shuffle(rater, name)))]

    def _to_compare(self, rater: str, own: Sequence[Answer]) -> list[list[str]]:
        done, total = self._progress(own, "pair")
        if done >= total:
            return []
        place = {name: index for index, name in enumerate(self.chosen)}
        pairs = [one for one in self.standing if one.kind in ("pair", "skip") and len(one.images) == 2]
        pairs = [one for one in pairs if all(name in place for name in one.images)]
        mine = {frozenset(one.images) for one in pairs if one.rater == rater}
        if done % _SHARED == _SHARED - 1:
            for one in pairs:
                if one.rater != rater and one.kind == "pair" and frozenset(one.images) not in mine:
                    return [list(one.images)]
        closed = {(min(a, b), max(a, b)) for a, b in ([place[name] for name in pair] for pair in mine)}
        judged = [
            (place[one.images[0]], place[one.images[1]], one.value)
            for one in pairs
            if one.kind == "pair" and one.value is not None
        ]
        pair = next_pair(len(self.chosen), judged, self._rng, frozenset(closed))
        return [] if pair is None else [[self.chosen[pair[0]], self.chosen[pair[1]]]]

    def _range(self) -> list[str]:
        """Pictures from the worst to the best by the model, to see before the first answer."""
        scored = [name for name in self.chosen if self.frames[name].value is not None]
        scored.sort(key=lambda name: self.frames[name].value or 0.0)
        if len(scored) < _RANGE:
            return []
        return [scored[round(at * (len(scored) - 1) / (_RANGE - 1))] for at in range(_RANGE)]


def _anchors(labels: Sequence[Label]) -> list[str | None]:
    """For each point of the scale, the labelled picture that is nearest to it."""
    anchors: list[str | None] = []
    for point in range(1, len(SCALE) + 1):
        near = min(labels, key=lambda label: abs(label.mos - point), default=None)
        anchors.append(near.image if near is not None and abs(near.mos - point) <= 0.5 else None)
    return anchors


def _shuffle(rater: str, name: str) -> bytes:
    return hashlib.sha256(f"{rater}\0{name}".encode("utf-8", "surrogateescape")).digest()
