"""How live cameras are read and scored; every default has its reason."""

from __future__ import annotations

from dataclasses import dataclass, field

from grmp_edge.errors import UsageError
from grmp_edge.redact import safe_name
from grmp_edge.runtime.live.alert import AlertRule

__all__ = ["POLICIES", "CameraConfig", "LiveConfig"]

POLICIES = ("latest", "every")


@dataclass(frozen=True)
class CameraConfig:
    """One camera. Times are in seconds."""

    source: str  # 0, /dev/video0, rtsp://, http://, gst:PIPELINE, file:PATH
    name: str = ""  # what results call it; empty: the source without its credentials
    # latest: the newest frame only, so that a score speaks of now; every: a short queue, in order.
    policy: str = "latest"
    queue: int = 32  # frames held under `every`: two seconds at 15 a second, 200 MB at 1080p
    max_fps: float | None = None  # frames scored a second; None: as many as come and the network manages
    max_age_s: float | None = None  # a frame older than this is dropped instead of scored; None: never
    open_timeout_s: float = 10.0  # a camera that wakes up needs some seconds; a network refusal is instant
    read_timeout_s: float = 10.0  # longer than the gap between key frames of most cameras
    # When a read outlives its own timeout by this much, the thread in it is given up and replaced.
    hang_grace_s: float = 5.0
    backoff_min_s: float = 1.0  # gentle to a camera that restarts, quick after a dropped connection
    backoff_max_s: float = 60.0  # a camera back after a weekend is seen within a minute
    stable_s: float = 10.0  # frames for so long, and the next failure starts at backoff_min_s again
    freeze_after_s: float = 5.0  # identical frames for so long are told as a frozen camera
    # rtsp:// only: frames are handed over one interval earlier, through a relay of our own. None: under
    # `latest`, where every frame's age counts; `every` is better off without the relay's work.
    low_delay: bool | None = None
    loop: bool = True  # a file: starts again at its end, as a camera would not stop
    alert: AlertRule = field(default_factory=AlertRule)

    def __post_init__(self) -> None:
        if not self.source:
            raise UsageError("a camera has an empty source", "give a device, a URL, gst: or file:")
        if self.policy not in POLICIES:
            raise UsageError(f"unknown policy {self.policy!r}", f"use {' or '.join(POLICIES)}")
        positive = (
            "queue", "max_fps", "max_age_s", "open_timeout_s", "read_timeout_s", "hang_grace_s",
            "backoff_min_s", "backoff_max_s", "stable_s", "freeze_after_s",
        )  # fmt: skip
        for key in positive:
            value = getattr(self, key)
            if value is not None and not value > 0:
                raise UsageError(f"camera {self.label}: {key} is {value}", "use a positive number")

    @property
    def label(self) -> str:
        """The name to show: never with a credential."""
        return self.name or safe_name(self.source)


@dataclass(frozen=True)
class LiveConfig:
    """How the cameras share one network."""

    batch: int = 8  # where CPUs stop gaining
    # How long a frame waits for others to share its run. One frame of 15 a second is 67 ms apart: this
    # gathers cameras that tick together and costs a lone one little.
    max_wait_s: float = 0.01

    def __post_init__(self) -> None:
        if self.batch < 1 or self.max_wait_s < 0:
            raise UsageError(f"a batch of {self.batch} with a wait of {self.max_wait_s} s", "use 1 or more")
