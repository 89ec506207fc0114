"""What is known of a live camera: its state, its counters, its frames, and when it is tried again."""

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

__all__ = ["CameraEvent", "CameraState", "CameraStats", "LiveFrame", "backoff"]

UInt8Array = npt.NDArray[np.uint8]


class CameraState(str, Enum):
    """What a camera is doing."""

    NOT_STARTED = "not_started"  # its first frame has not come yet
    RUNNING = "running"
    RESTARTING = "restarting"  # lost; it is tried again
    ERROR = "error"  # cannot work as it is; not tried again, or its reads hang
    STOPPED = "stopped"  # a file that has ended, or stopped on purpose


@dataclass(frozen=True)
class LiveFrame:
    """A frame worth scoring."""

    camera: str
    image: UInt8Array  # (H, W, 3) BGR, as decoded
    prepared: UInt8Array  # (size, size, 3) RGB, what the network reads
    captured_s: (
        float  # time.monotonic() when it was received, less what it is known to have waited on its way
    )
    index: int  # counts every frame received from this camera, scored or not, from 0


@dataclass(frozen=True)
class CameraEvent:
    """A camera's state, or what its picture shows, has just changed."""

    camera: str
    state: CameraState
    picture: Verdict
    detail: str = ""  # why, in one line without credentials
    retry_s: float | None = None  # when it is tried again


@dataclass
class CameraStats:
    """Counters since the start; a snapshot of them is a copy."""

    state: CameraState = CameraState.NOT_STARTED
    picture: Verdict = "ok"
    detail: str = ""
    frames: int = 0  # received
    dropped: int = 0  # worth scoring, and replaced by a newer one before their turn
    stale: int = 0  # came in a burst out of a buffer, with newer ones right behind
    thinned: int = 0  # passed over for max_fps
    expired: int = 0  # older than max_age_s when their turn came
    damaged: int = 0  # could not be decoded
    skipped: Counter[str] = field(default_factory=Counter)  # by verdict: repeated, frozen, black, no_signal
    connects: int = 0  # times the source was opened
    hangs: int = 0  # reads that never came back in time
    fps: float = 0.0  # received, over the last frames
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
    """Seconds to wait after so many failures in a row (1, 2, ...): doubling, with jitter, within limits.

    The jitter keeps the cameras of one dead switch from coming back all at once.
    """
    full = config.backoff_min_s * 2.0 ** min(failures - 1, 30)
    delay = min(full, config.backoff_max_s) * random.uniform(0.5, 1.0)
    return max(delay, min(config.backoff_min_s, config.backoff_max_s))
