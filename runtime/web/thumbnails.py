"""Small pictures of what the cameras see: only the latest, encoded only on request."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from grmp_edge.preprocess import fit_within

__all__ = ["Thumbnail", "ThumbnailConfig", "Thumbnails"]

UInt8Array = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ThumbnailConfig:
    """How large, and how often."""

    width: int = 480  # sharp on a phone's dense screen; about 25 KB
    height: int = 360  # a picture fits into both
    quality: int = 75  # of the JPEG; its artefacts stay below those that the score measures
    period_s: float = 1.0  # while somebody watches: enough to see movement
    idle_s: float = 5.0  # while nobody does: so that even the first request finds a picture
    linger_s: float = 5.0  # how long a request counts as watching; a page asks every second


@dataclass(frozen=True)
class Thumbnail:
    """One encoded picture."""

    number: int  # grows with each new picture of the camera
    captured_s: float  # time.monotonic() of its capture
    jpeg: bytes


class _Slot:
    """The state for one camera."""

    def __init__(self) -> None:
        self.due = 0.0
        self.offered: tuple[UInt8Array, float] | None = None  # a full frame, waiting to be shrunk
        self.lock = threading.Lock()  # guards the fields below; the scoring thread never takes it
        self.number = 0
        self.captured_s = 0.0
        self.small: UInt8Array | None = None
        self.jpeg: bytes | None = None


class Thumbnails:
    """The latest thumbnail of each camera.

    A frame passes three stages: :meth:`offer` on the scoring thread keeps a reference, if one is due;
    :meth:`shrink` on the dashboard's thread resizes it and releases the frame; :meth:`get` on a server's
    thread encodes it, once for all clients. A newer frame replaces an older one at every stage.
    """

    def __init__(self, cameras: Iterable[str], config: ThumbnailConfig | None = None) -> None:
        self.config = config or ThumbnailConfig()
        self._slots = {camera: _Slot() for camera in cameras}
        self._watched_until = 0.0
        self.encoded = 0  # JPEGs made since the start

    @property
    def watched(self) -> bool:
        """Whether somebody watches, or did a moment ago."""
        return time.monotonic() < self._watched_until

    def watch(self) -> None:
        """Note that somebody watches."""
        began = not self.watched
        self._watched_until = time.monotonic() + self.config.linger_s
        if began:
            for slot in self._slots.values():
                slot.due = 0.0

    def offer(self, camera: str, image: UInt8Array, captured_s: float) -> None:
        """Offer a frame, uint8 (H, W, 3) BGR, that nobody writes to any more. Returns at once."""
        slot = self._slots[camera]
        now = time.monotonic()
        if now < slot.due:
            return
        slot.due = now + (self.config.period_s if self.watched else self.config.idle_s)
        slot.offered = (image, captured_s)  # atomic: CPython assigns an attribute in one step

    def shrink(self, camera: str) -> None:
        """Shrink the frame that was offered, if any."""
        slot = self._slots[camera]
        offered, slot.offered = slot.offered, None
        if offered is None:
            return
        image, captured_s = offered
        small = fit_within(image, self.config.width, self.config.height)
        with slot.lock:
            slot.number += 1
            slot.captured_s, slot.small, slot.jpeg = captured_s, small, None

    def latest(self, camera: str) -> tuple[int, float] | None:
        """Number and time of capture (monotonic seconds) of the latest picture, without encoding it."""
        slot = self._slots[camera]
        with slot.lock:
            return (slot.number, slot.captured_s) if slot.number else None

    def get(self, camera: str) -> Thumbnail | None:
        """The latest picture; None if there has been none."""
        self.watch()
        slot = self._slots[camera]
        with slot.lock:
            if slot.small is not None:
                ok, data = cv2.imencode(".jpg", slot.small, [cv2.IMWRITE_JPEG_QUALITY, self.config.quality])
                if ok:
                    slot.jpeg = data.tobytes()
                    self.encoded += 1
                slot.small = None
            return None if slot.jpeg is None else Thumbnail(slot.number, slot.captured_s, slot.jpeg)
