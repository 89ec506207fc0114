"""A camera that is covered, turned away, out of focus or blinded: its picture beside its usual one.

A frame is reduced to 160 x 96 grey pixels, and the median of some seconds of them is compared with a
reference in 60 tiles of 16 x 16, of which only those count that have texture and are usually still. The
comparison is a correlation, of grey values or of gradients, so that neither light nor its colour matters:
dusk and infrared keep the edges.
"""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import cv2
import numpy as np
import numpy.typing as npt

from grmp_edge.picture_header import read_header

__all__ = ["Tamper", "TamperKind"]

UInt8Array = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]
TamperKind = Literal["covered", "moved", "blurred", "dark", "bright"]

_WIDTH, _HEIGHT = 160, 96
_ROWS, _COLUMNS = 6, 10
_EVERY_S = 0.5  # between frames looked at while something differs
_CALM_S = 1.0  # and while nothing does
_FRAMES = 5  # behind a median: who walks through the picture within two seconds vanishes
_TEXTURE = 3.0  # grey levels of standard deviation: a tile with less shows nothing to recognise
_STILL = 0.6  # usual correlation of a tile that counts: a conveyor belt does not
_FEWEST = 5  # tiles that count; with fewer, the scene is too plain to say covered or moved
_SAME = 0.5  # correlation of a tile that still shows what it did
_CHANGED = 0.6  # share of changed tiles: a lorry at the kerb covers less
_CALM = 0.25  # share of changed tiles up to which the reference follows
_FOLLOW = 0.04  # a second: the reference is some 25 seconds old
_FADE = 0.01  # a minute, of a reference on disk: most of it is of today after two hours
_SLOTS = 12  # references kept on disk, two hours apart
_SOFT = 0.45  # of its fine detail: a picture that lost more is out of focus
_WHITE = 245  # grey level
_GLARE = 0.25  # more of the picture than usual is white
_INTACT = 0.5  # share of the tiles that must still show what they did, for a picture to be out of focus
_EMPTY = 0.4  # of the tiles with texture: a plain thing before the lens leaves fewer
_ALIGNED = 0.4  # correlation of the gradients, once the shift is undone
_GLOOM = 0.35  # of the usual light
_STIRRED = 6.0  # mean difference of two frames, in grey levels: more than people and noise make


class Tamper:
    """Watches the picture of one camera. Not thread-safe."""

    HOLD_S = 3.0  # a change must last this long
    CLEAR_S = 8.0  # and its end this long: who covers a lens moves about

    def __init__(self) -> None:
        self._frames: deque[UInt8Array] = deque(maxlen=_FRAMES)
        self._reference: FloatArray | None = None
        self._fine: FloatArray | None = None  # usual fine detail of each tile
        self._still = np.ones(_ROWS * _COLUMNS, np.float32)  # usual correlation of each tile
        self._white = 0.0  # usual share of white pixels
        self._slots: dict[int, FloatArray] = {}
        self._last = self._faded = float("-inf")
        self._kind: TamperKind | None = None
        self._next: TamperKind | None = None
        self._since = 0.0
        self._calm = False  # the last two frames are alike

    def step(self, now: float, at: float, image: UInt8Array, learn: bool = True) -> TamperKind | None:
        """Look at a frame.

        Args:
            now: monotonic seconds.
            at: seconds since 1970.
            image: uint8 (H, W, 3) BGR.
            learn: nothing else is wrong with the camera.

        Returns:
            What is wrong with its picture now; None: nothing, or not known yet.
        """
        since = now - self._last
        if since < (_CALM_S if self._calm else _EVERY_S):
            return self._kind
        self._last = now
        grey = _reduced(image)
        small = cv2.resize(grey, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_AREA).astype(np.uint8)
        # What differs is looked at more closely.
        self._calm = (
            self._kind is None
            and self._next is None
            and bool(self._frames)
            and (float(cv2.norm(small, self._frames[-1], cv2.NORM_L1)) < _STIRRED * small.size)
        )
        self._frames.append(small)
        if len(self._frames) < _FRAMES:
            return self._kind
        picture = _median(self._frames).astype(np.float32)
        fine = _fine(grey)
        if self._reference is None:
            slot = self._slots.get(_slot(at))
            self._reference = picture if slot is None else slot
            self._fine = fine if slot is None else self._fine
        if self._fine is None:
            self._fine = fine
        kind, alike = self._judge(picture, fine, _spread(small.astype(np.float32)), at)
        # One alarm for one fault: the first name stays, whatever the picture turns into meanwhile.
        if self._kind is not None and kind is not None:
            kind = self._kind
        if kind != self._next:
            self._next, self._since = kind, now
        if kind != self._kind and now - self._since >= (self.CLEAR_S if kind is None else self.HOLD_S):
            self._kind = kind
        if kind is None and self._kind is None and learn:
            self._learn(picture, fine, alike, now, at, min(since, 1.0) * _FOLLOW)
        return self._kind

    def accept(self) -> None:
        """Make the present picture the reference."""
        self._reference, self._fine, self._kind, self._next = None, None, None, None
        self._still[:] = 1.0
        self._slots.clear()

    def _judge(
        self, picture: FloatArray, fine: FloatArray, contrast: FloatArray, at: float
    ) -> tuple[TamperKind | None, FloatArray]:
        """What is wrong, and how much each tile is like its reference.

        ``fine`` and ``contrast`` are each tile's detail and standard deviation in the last frame alone.
        """
        reference = self._reference
        assert reference is not None and self._fine is not None
        alike = _alike(picture, reference)
        texture = _spread(reference)
        counted = (texture >= _TEXTURE) & (self._still >= _STILL)
        light, usual = float(picture.mean()), float(reference.mean())
        if float((picture > _WHITE).mean()) > self._white + _GLARE:
            return "bright", alike
        if light < _GLOOM * usual and _coarsely_alike(picture, reference) < 0.6:
            return "dark", alike
        if counted.sum() < _FEWEST:
            return None, alike
        changed = float((alike[counted] < _SAME).mean())
        # Where the scene is still to be seen: a lorry is no blur, and less light is less contrast.
        same = counted & (alike >= _SAME)
        detail = fine / np.maximum(self._fine, 0.1) / np.maximum(contrast / np.maximum(texture, 0.1), 0.05)
        if same.sum() >= max(_FEWEST, _INTACT * counted.sum()) and np.median(detail[same]) < _SOFT:
            return "blurred", alike
        now = _spread(picture)
        if 0.5 <= changed < _CHANGED:  # plain tiles decide: what covers them may have texture
            plain = texture < _TEXTURE
            other = int((alike[counted] < _SAME).sum()) + int((plain & (now >= 2 * _TEXTURE)).sum())
            changed = other / int(counted.sum() + plain.sum())
        if changed < _CHANGED:
            return None, alike
        slot = self._slots.get(_slot(at))
        if slot is not None:
            then = _alike(picture, slot)[counted]
            if float((then < _SAME).mean()) < _CALM:  # the lights are off, as always at this hour
                return None, alike
        if _shifted(picture, reference):
            return "moved", alike
        # What is close to the lens is out of focus or plain, and may leave a part of the scene as it was.
        # A camera that was turned shows another scene, as sharp as the first.
        sharp = float(fine.mean() / max(0.1, self._fine.mean()))
        empty = float((now >= _TEXTURE).sum()) < _EMPTY * float((texture >= _TEXTURE).sum())
        intact = float((alike[counted] > 0.8).mean())
        return ("covered" if empty or sharp < 0.5 or intact > 0.15 else "moved"), alike

    def _learn(
        self, picture: FloatArray, fine: FloatArray, alike: FloatArray, now: float, at: float, rate: float
    ) -> None:
        assert self._reference is not None and self._fine is not None
        self._still += rate * (alike - self._still)
        counted = (_spread(self._reference) >= _TEXTURE) & (self._still >= _STILL)
        if counted.any() and float((alike[counted] < _SAME).mean()) > _CALM:
            return
        self._reference = self._reference + rate * (picture - self._reference)
        # Slower: a lens that fogs up within minutes is out of focus, too.
        self._fine = self._fine + 0.1 * rate * (fine - self._fine)
        self._white += rate * (float((picture > _WHITE).mean()) - self._white)
        slot = _slot(at)
        before = self._slots.get(slot)
        if before is None:
            self._slots[slot] = self._reference
        elif now - self._faded >= 60.0:
            self._slots[slot], self._faded = before + _FADE * (self._reference - before), now

    def to_json(self) -> dict[str, object]:
        """What must survive a restart: about 30 KB."""
        slots = {}
        for slot, picture in self._slots.items():
            _, data = cv2.imencode(".jpg", np.rint(picture).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 80])
            slots[str(slot)] = base64.b64encode(data.tobytes()).decode("ascii")
        return {
            "slots": slots,
            "still": np.round(self._still, 3).tolist(),
            "fine": None if self._fine is None else np.round(self._fine, 3).tolist(),
            "white": round(self._white, 4),
            "kind": self._kind,
        }

    def restore(self, data: Mapping[str, object]) -> None:
        """Take what :meth:`to_json` gave; what is damaged is learned again."""
        try:
            for slot, text in data["slots"].items():  # type: ignore[attr-defined]
                jpeg = base64.b64decode(text)
                header = read_header(jpeg)
                if header is None or (header.width, header.height) != (_WIDTH, _HEIGHT):
                    continue
                picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE)
                if picture is not None and picture.shape == (_HEIGHT, _WIDTH):
                    self._slots[int(slot) % _SLOTS] = picture.astype(np.float32)
            still, fine = np.array(data["still"], np.float32), data["fine"]
            if still.shape == self._still.shape and np.isfinite(still).all():
                self._still = still
            if fine is not None:
                detail = np.array(fine, np.float32).reshape(_ROWS * _COLUMNS)
                self._fine = detail if np.isfinite(detail).all() else None
            self._white = min(1.0, max(0.0, float(data["white"])))  # type: ignore[arg-type]
            if data["kind"] in get_args(TamperKind):
                self._kind = self._next = data["kind"]  # type: ignore[assignment]
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, cv2.error):
            return


def _slot(at: float) -> int:
    return int(at // (86400 // _SLOTS)) % _SLOTS


def _reduced(image: UInt8Array) -> UInt8Array:
    """A frame in grey, 320 x 192. Of a large one, samples are averaged: all pixels would cost 20 times."""
    size = (4 * _WIDTH, 4 * _HEIGHT)
    if image.shape[1] >= 2 * size[0] and image.shape[0] >= 1.8 * size[1]:
        image = cv2.resize(image, size, interpolation=cv2.INTER_NEAREST).astype(np.uint8, copy=False)
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    small = cv2.resize(grey, (2 * _WIDTH, 2 * _HEIGHT), interpolation=cv2.INTER_AREA)
    return small.astype(np.uint8, copy=False)


def _median(frames: Sequence[UInt8Array]) -> UInt8Array:
    """The median of five pictures, pixel by pixel."""
    one, two, three, four, five = frames
    low = np.maximum(np.minimum(one, two), np.minimum(three, four))
    high = np.minimum(np.maximum(one, two), np.maximum(three, four))
    median: UInt8Array = np.maximum(np.minimum(low, high), np.minimum(np.maximum(low, high), five))
    return median


def _means(picture: npt.NDArray[Any]) -> FloatArray:
    """The mean of each of the 60 tiles."""
    means = cv2.resize(picture, (_COLUMNS, _ROWS), interpolation=cv2.INTER_AREA)
    return means.astype(np.float32, copy=False).ravel()


def _spread(picture: FloatArray) -> FloatArray:
    """The standard deviation of each tile."""
    mean = _means(picture)
    spread: FloatArray = np.sqrt(np.maximum(_means(picture * picture) - mean * mean, 0))
    return spread


def _fine(grey: UInt8Array) -> FloatArray:
    """Fine detail of each tile: mean second difference at 320 x 192."""
    return _means(np.abs(cv2.Laplacian(grey, cv2.CV_32F)))


def _alike(picture: FloatArray, reference: FloatArray) -> FloatArray:
    """Correlation of each tile, of grey values or of gradients, whichever is higher."""
    return np.maximum(
        _tiles_alike(picture, reference), _tiles_alike(_gradient(picture), _gradient(reference))
    )


def _tiles_alike(one: FloatArray, other: FloatArray) -> FloatArray:
    """The correlation within each tile."""
    mean, beside = _means(one), _means(other)
    norm = (_means(one * one) - mean * mean) * (_means(other * other) - beside * beside)
    alike: FloatArray = (_means(one * other) - mean * beside) / np.sqrt(np.maximum(norm, 1e-3))
    return alike


def _coarsely_alike(picture: FloatArray, reference: FloatArray) -> float:
    """The correlation of two pictures without their detail."""
    blurred = (cv2.blur(one, (9, 9)).astype(np.float32, copy=False) for one in (picture, reference))
    return _correlation(*blurred)


def _gradient(picture: FloatArray) -> FloatArray:
    smooth = cv2.GaussianBlur(picture, (3, 3), 0)
    across, down = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
    return cv2.magnitude(across, down).astype(np.float32)


def _correlation(one: FloatArray, other: FloatArray) -> float:
    """The correlation of two whole pictures."""
    one, other = one - one.mean(), other - other.mean()
    norm = float(np.sqrt(np.vdot(one, one) * np.vdot(other, other)))
    return float(np.vdot(one, other)) / max(norm, 1e-3)


def _shifted(picture: FloatArray, reference: FloatArray) -> bool:
    """Whether the picture is the reference shifted by some pixels."""
    window = cv2.createHanningWindow((_WIDTH, _HEIGHT), cv2.CV_32F)
    before, after = _gradient(reference), _gradient(picture)
    (x, y), _ = cv2.phaseCorrelate(before, after, window)
    right, down = round(x), round(y)
    if max(abs(right), abs(down)) < 2 or abs(right) > _WIDTH // 2 or abs(down) > _HEIGHT // 2:
        return False
    old = before[max(0, -down) : _HEIGHT - max(0, down), max(0, -right) : _WIDTH - max(0, right)]
    new = after[max(0, down) : _HEIGHT + min(0, down), max(0, right) : _WIDTH + min(0, right)]
    return _correlation(np.ascontiguousarray(old), np.ascontiguousarray(new)) > max(
        _ALIGNED, _correlation(before, after) + 0.2
    )
