"""The events, state and counters of a live camera, and the delay before it is tried again."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import get_args

import numpy as np
import numpy.typing as npt

from grmp_edge.runtime.live.config import CameraConfig
from grmp_edge.runtime.live.no_picture import Verdict
from grmp_edge.views import Views

__all__ = ["CameraEvent", "CameraState", "CameraStats", "LiveFrame", "backoff"]

UInt8Array = npt.NDArray[np.uint8]


class CameraState(str, Enum):
    """The state of a camera."""

    NOT_STARTED = "not_started"  # its first frame has not arrived yet
    RUNNING = "running"
    RESTARTING = "restarting"  # lost, and tried again
    ERROR = "error"  # cannot work as configured, or its reads hang; not tried again
    STOPPED = "stopped"  # a file that has ended, or stopped on purpose


@dataclass(frozen=True)
class LiveFrame:
    """A frame worth scoring."""

    camera: str
    image: UInt8Array  # (H, W, 3) BGR, as decoded
    views: Views  # the whole, prepared; crops are added when it is scored
    captured_s: float  # time.monotonic() of its arrival, less the time it is known to have spent in buffers
    index: int  # counts all frames received from this camera, scored or not, from 0
    damage: str = ""  # what the decoder says is wrong with it, where such frames are scored


@dataclass(frozen=True)
class CameraEvent:
    """A change of a camera's state or of what its picture shows."""

    camera: str
    state: CameraState
    picture: Verdict
    detail: str = ""  # why, in one line without credentials
    retry_s: float | None = None  # seconds until the next attempt
    repeated: bool = False  # the present state, told again: nothing has changed


@dataclass
class CameraStats:
    """Counters since the start."""

    state: CameraState = CameraState.NOT_STARTED
    picture: Verdict = "ok"
    detail: str = ""
    frames: int = 0  # received
    dropped: int = 0  # worth scoring, but replaced by a newer frame before their turn
    stale: int = 0  # arrived in a burst from a buffer, with newer frames right behind
    thinned: int = 0  # skipped to respect max_fps
    expired: int = 0  # older than max_age_s when their turn came
    damaged: int = 0  # could not be decoded
    skipped: Counter[str] = field(default_factory=Counter)  # by verdict: repeated, frozen, black, no_signal
    connects: int = 0  # times the source was opened
    hangs: int = 0  # reads abandoned because they did not return in time
    fps: float = 0.0  # received per second, over the last frames
    size: tuple[int, int] | None = None  # (width, height) now

    @property
    def reconnects(self) -> int:
        """How often the source was reopened."""
        return max(0, self.connects - 1)

    def not_scored(self) -> dict[str, int]:
        """Frames received but not scored, by reason."""
        return {
            "replaced": self.dropped, "stale": self.stale, "thinned": self.thinned, "expired": self.expired,
            "damaged": self.damaged, **{verdict: self.skipped[verdict] for verdict in get_args(Verdict)[1:]},
        }  # fmt: skip


def backoff(config: CameraConfig, failures: int) -> float:
    """Seconds to wait after ``failures`` failures in a row (1, 2, ...): doubling, with jitter, within limits.

    Jitter keeps the cameras behind one dead switch from reconnecting all at once.
    """
    full = config.backoff_min_s * 2.0 ** min(failures - 1, 30)
    delay = min(full, config.backoff_max_s) * random.uniform(0.5, 1.0)
    return max(delay, min(config.backoff_min_s, config.backoff_max_s))
