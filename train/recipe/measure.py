"""What the weights can do, on pictures held out from their training: the figures of the model card."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from grmp_edge.metrics import srcc
from grmp_edge.preprocess import Preprocess, read_image
from grmp_edge.train.network.hybrid import NATIVE, SIZE
from grmp_edge.train.network.words import CAUSES
from grmp_edge.train.recipe.faults import FAULTS, HEALTHY, Picture, Random, apply, disk, jpeg_at, video
from grmp_edge.train.recipe.learn import picture_logits, view_logits
from grmp_edge.train.recipe.sources import Record, photographs
from grmp_edge.train.recipe.store import Views
from grmp_edge.train.recipe.upper import Upper
from grmp_edge.views import EVEN, Aggregate, sigmoid

__all__ = [
    "RANKED",
    "FaultFigures",
    "calibration_error",
    "clip_frames",
    "fault_figures",
    "local_fault",
    "local_figures",
    "local_views",
    "measured_views",
    "zero_shot",
]

# Mild levels that a clean picture must be above, by name.
RANKED = ("jpeg_q30", "h264_quarter", "noise5", "blur1", "defocus2")
LOCAL = ("local_blur", "local_smear", "local_drop")
_PLAIN = 0.5  # the severity that is plain to see
_FALL, _STAYS = 0.15, 0.1  # how far a score falls at a plain fault, and may fall where nothing is wrong
_PLACES = (0.1, 0.37, 0.63, 0.9)  # of a clip, from which frames are taken
_PICTURES = 18  # held-out photographs, the largest set first
_CELLS = 6

Float64Array: TypeAlias = "npt.NDArray[np.float64]"


@dataclass
class FaultFigures:
    """Shares of pictures, 0..1, by fault."""

    ranked: dict[str, float] = field(default_factory=dict)  # clean above it
    falls: dict[str, float] = field(default_factory=dict)  # by a plain fault, by 0.15 or more
    stays: dict[str, float] = field(default_factory=dict)  # by less than 0.1 where nothing is wrong
    clean: dict[str, float] = field(default_factory=dict)  # the clean pictures' scores
    first_cause: float = 0.0  # right, over all plain faults
    alarms: float = 0.0  # healthy pictures with a cause above 0.5
    # Expected calibration error of each cause (Guo et al., ICML 2017, equation 3), all states alike.
    calibration: dict[str, float] = field(default_factory=dict)


def clip_frames(folder: Path) -> Iterator[tuple[str, Picture]]:
    """Four frames of each clip below a folder, with their names."""
    for path in sorted(folder.glob("*.mp4")):
        reader = cv2.VideoCapture(str(path))
        count = int(reader.get(cv2.CAP_PROP_FRAME_COUNT))
        for place in _PLACES:
            reader.set(cv2.CAP_PROP_POS_FRAMES, int(place * count))
            good, frame = reader.read()
            if good:
                yield f"video/{path.stem}/{place}", np.ascontiguousarray(frame[:, :, ::-1], np.uint8)
        reader.release()


def measured_views(root: Path) -> Iterator[tuple[Record, Picture]]:
    """The whole and four crops of each state of held-out photographs and of clips' frames."""
    preprocess = Preprocess.for_size(SIZE, NATIVE)
    for source, picture in _pictures(root):
        rng = np.random.default_rng(zlib.crc32(source.encode()))
        ranked = () if source.startswith("video") else RANKED
        for state in ("clean", *ranked, *FAULTS, *HEALTHY):
            shown = _state(state, picture, rng)
            for index, view in enumerate(preprocess.views(shown).pixels):
                yield Record(source=source, kind=state, view=index), view


def local_views(root: Path) -> Iterator[tuple[Record, Picture]]:
    """Six crops of pictures with a fault in one sixth of the frame."""
    preprocess = Preprocess.for_size(SIZE, _CELLS)
    for source, picture in _pictures(root):
        cell = int(np.random.default_rng(zlib.crc32(source.encode()) + 1).integers(_CELLS))
        for state in ("clean", *LOCAL):
            shown = picture if state == "clean" else local_fault(state, picture, cell)
            for index, view in enumerate(preprocess.views(shown).pixels[1:]):
                yield Record(source=source, kind=state, view=index, cell=cell), view


def local_fault(name: str, picture: Picture, cell: int) -> Picture:
    """Put a fault into one cell of a grid of 2 x 3 (3 x 2 in portrait)."""
    height, width = picture.shape[:2]
    rows, columns = (2, 3) if width >= height else (3, 2)
    row, column = divmod(cell, columns)
    tall, wide = height // rows, width // columns
    part = np.s_[row * tall : (row + 1) * tall, column * wide : (column + 1) * wide]
    made: Picture = picture.copy()
    inside = np.ascontiguousarray(picture[part])
    if name == "local_blur":
        made[part] = cv2.GaussianBlur(inside, (0, 0), 4)
    elif name == "local_smear":
        spread = cv2.GaussianBlur(inside, (0, 0), sigmaX=14, sigmaY=6).astype(np.float32)
        made[part] = np.clip(spread * 0.8 + 160 * 0.2, 0, 255).astype(np.uint8)
    else:
        y, x = np.mgrid[: inside.shape[0], : inside.shape[1]]
        middle = np.array(inside.shape[:2]) / 2
        far = np.hypot((y - middle[0]) / (0.42 * inside.shape[0]), (x - middle[1]) / (0.42 * inside.shape[1]))
        mask = np.clip((1 - far) * 6, 0, 1)[:, :, None]
        turned = cv2.GaussianBlur(inside[::-1, ::-1], (0, 0), 8).astype(np.float32)
        made[part] = np.clip(inside * (1 - mask) + (turned * 0.75 + 45) * mask, 0, 255).astype(np.uint8)
    return made


def fault_figures(upper: Upper, aggregate: Aggregate, views: Views, clips: bool) -> FaultFigures:
    """The figures of a store of :func:`measured_views`, of photographs or of ``clips``' frames."""
    logits = view_logits(upper.eval(), views)
    size = 1 + NATIVE
    states: dict[str, dict[str, Float64Array]] = {}
    for at in range(0, len(views), size):
        row = views.rows[at]
        if row["source"].startswith("video") == clips:
            of_views = logits[at : at + size]
            picture = np.concatenate([aggregate(of_views)[:1], EVEN(of_views)[1:]])
            states.setdefault(row["source"], {})[row["kind"]] = picture
    figures = FaultFigures(clean={name: float(sigmoid(own["clean"][0])) for name, own in states.items()})
    for kind in (*RANKED, *FAULTS, *HEALTHY):
        pairs = [(own["clean"][0], own[kind][0]) for own in states.values() if kind in own]
        if not pairs:
            continue
        clean, shown = np.array(pairs).T
        fall = sigmoid(clean) - sigmoid(shown)
        if kind in RANKED:
            figures.ranked[kind] = float((clean > shown).mean())
        elif kind in FAULTS:
            figures.falls[kind] = float((fall >= _FALL).mean())
        else:
            figures.stays[kind] = float((fall < _STAYS).mean())
    names = list(CAUSES)
    figures.first_cause = _mean(
        names[int(np.argmax(own[kind][1:]))] in fault.causes
        for own in states.values()
        for kind, fault in FAULTS.items()
        if kind in own
    )
    figures.alarms = _mean(
        float(sigmoid(own[kind][1:]).max()) > 0.5
        for own in states.values()
        for kind in ("clean", *HEALTHY)
        if kind in own
    )
    shown = [
        (sigmoid(own[kind][1:]), [kind in FAULTS and name in FAULTS[kind].causes for name in names])
        for own in states.values()
        for kind in ("clean", *FAULTS, *HEALTHY)
        if kind in own
    ]
    said, true = (np.array(part, np.float64) for part in zip(*shown, strict=True))
    figures.calibration = {
        name: calibration_error(said[:, index], true[:, index]) for index, name in enumerate(names)
    }
    return figures


def calibration_error(said: Float64Array, true: Float64Array, bins: int = 10) -> float:
    """How far probabilities (n,) are from the shares of what is true (n,), in bins of equal width."""
    which = np.minimum((said * bins).astype(int), bins - 1)
    gaps = np.bincount(which, said - true, bins)
    return float(np.abs(gaps).sum() / len(said))


def local_figures(upper: Upper, views: Views) -> dict[str, float]:
    """Of a store of :func:`local_views`: how often the faulty cell's score falls most, by fault."""
    scores = sigmoid(view_logits(upper.eval(), views)[:, 0]).reshape(-1, _CELLS)
    right: dict[str, list[bool]] = {}
    clean = scores[0]
    for row, own in zip(views.rows[::_CELLS], scores, strict=True):
        if row["kind"] == "clean":
            clean = own
        else:
            right.setdefault(row["kind"], []).append(int(np.argmax(clean - own)) == row["cell"])
    return {kind: _mean(values) for kind, values in right.items()}


def zero_shot(upper: Upper, aggregate: Aggregate, labelled: Views) -> float:
    """SRCC of scores with those of people, over a whole labelled set."""
    mos = np.array([row["mos"] for row in labelled.rows[:: 1 + NATIVE]])
    return srcc(picture_logits(upper.eval(), labelled, aggregate), mos)


def _mean(values: object) -> float:
    return float(np.mean(list(values)))  # type: ignore[call-overload]


def _pictures(root: Path) -> Iterator[tuple[str, Picture]]:
    for name, path in photographs(root, held_out=True)[:_PICTURES]:
        yield f"{name}/{path.stem}", read_image(path)
    yield from clip_frames(root / "video")


def _state(state: str, picture: Picture, rng: Random) -> Picture:
    if state == "clean":
        return picture
    if state in FAULTS or state in HEALTHY:
        return apply(state, picture, _PLAIN, rng)
    if state == "jpeg_q30":
        return jpeg_at(picture, 30)
    if state == "h264_quarter":  # of the bitrate that is visually lossless, crf 20: about crf 30
        most = video(picture, "h264", 20)[1] / 4
        shown = picture
        for crf in range(29, 35):
            shown, size = video(picture, "h264", crf)
            if size <= most:
                break
        return shown
    if state == "noise5":
        return np.clip(picture + rng.normal(0, 5, picture.shape) + 0.5, 0, 255).astype(np.uint8)
    if state == "blur1":
        return np.asarray(cv2.GaussianBlur(picture, (0, 0), 1.0), np.uint8)
    return np.asarray(cv2.filter2D(picture, -1, disk(2.0), borderType=cv2.BORDER_REFLECT_101), np.uint8)
