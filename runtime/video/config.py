"""How one live source is opened and read."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from grmp_edge.errors import UsageError
from grmp_edge.redact import safe_name

__all__ = ["DECODE", "HARDWARE", "POLICIES", "CaptureConfig", "check_positive"]

POLICIES = ("latest", "every")
DECODE = ("auto", "all", "key")
HARDWARE = ("cuda", "qsv", "vaapi", "drm")  # as FFmpeg names them


@dataclass(frozen=True)
class CaptureConfig:
    """One live source. Times are in seconds."""

    source: str  # 0, /dev/video0, rtsp://, http://, gst:PIPELINE, file:PATH
    name: str = ""  # what results call it; empty: the source without its credentials
    # latest: the newest frame only, so that a score describes the present; every: a short queue, in order.
    policy: str = "latest"
    _: KW_ONLY
    max_fps: float | None = None  # frames scored a second; None: as many as arrive and the network manages
    open_timeout_s: float = 10.0  # a waking camera needs some seconds; a network refusal is instant
    read_timeout_s: float = 10.0  # longer than the gap between key frames of most cameras
    # rtsp:// only: frames arrive one interval earlier, through a local relay. None: on under `latest`, where
    # the age of every frame matters; `every` does not repay the relay's work.
    low_delay: bool | None = None
    # Streams and files: all frames, key frames only (a tenth of the work, and less), or `auto`: key frames
    # where max_fps is reached with them, or is 1 or less and one comes every two seconds, as is usual.
    decode: str = "auto"
    hardware: str | None = None  # decodes there if it can, else in software, and says so; None: software
    score_damaged: bool = False  # a frame that the decoder knows not to be whole says nothing of the camera
    loop: bool = True  # a file starts again at its end, since a camera would not stop either

    def __post_init__(self) -> None:
        if not self.source:
            raise UsageError("a camera has an empty source", "give a device, a URL, gst: or file:")
        if self.policy not in POLICIES:
            raise UsageError(f"unknown policy {self.policy!r}", f"use {' or '.join(POLICIES)}")
        if self.decode not in DECODE:
            raise UsageError(f"unknown decode {self.decode!r}", f"use {', '.join(DECODE)}")
        if self.hardware is not None and self.hardware not in HARDWARE:
            raise UsageError(f"unknown hardware {self.hardware!r}", f"use {', '.join(HARDWARE)}")
        check_positive(self, "max_fps", "open_timeout_s", "read_timeout_s")

    @property
    def label(self) -> str:
        """The name to show: never with a credential."""
        address = "://" in self.name and "@" in self.name
        return (safe_name(self.name) if address else self.name) or safe_name(self.source)


def check_positive(config: CaptureConfig, *fields: str) -> None:
    """Reject numbers that are not above zero; None is allowed.

    Raises:
        UsageError: naming the camera and the first bad field.
    """
    for name in fields:
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise UsageError(f"camera {config.label}: {name} is {value}", "use a positive number")
