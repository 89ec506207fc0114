"""What the page and other clients are sent, as JSON. Times are in seconds since 1970 where named ``at``."""

from __future__ import annotations

from typing import Literal, TypedDict

from grmp_edge.runtime.live.alert import AlertKind, Severity
from grmp_edge.runtime.live.no_picture import Verdict

__all__ = ["CameraJson", "EventJson", "HistoryJson", "ThumbnailJson", "UpdateJson", "UsualJson"]


class ThumbnailJson(TypedDict):
    """The latest small picture of a camera."""

    number: int  # grows with each new picture
    at: float


class CameraJson(TypedDict):
    """A camera's state. What is not known yet is None."""

    id: str  # the camera in an address
    name: str
    state: str
    picture: Verdict
    detail: str  # why it is in this state
    score: float | None  # 0 to 1
    mos: float | None
    cause: str | None  # the likeliest one, if it is likelier than not
    causes: dict[str, float]  # each 0 to 1; empty if the model names none
    tiles: list[list[float]]  # [left, top, width, height, score] of native crops, in pixels of the frame
    scored_at: float | None
    age_s: float | None  # of the last scored frame
    latency_ms: float | None
    fps: float
    size: tuple[int, int] | None  # (width, height)
    frames: int
    scored: int
    dropped: dict[str, int]  # by reason
    reconnects: int
    alerts: tuple[str, ...]  # kinds raised now
    limits: dict[str, float]  # by kind of alert
    baseline: float | None
    doubts: tuple[str, ...]  # what is wrong with its limits, as lines to read
    days: int  # for which its usual scores are known
    trend: str  # what a slow fall leads to, of the whole or of a part, while it is raised
    part: list[float] | None  # of the picture that is worse: left, top, width, height, as shares
    thumbnail: ThumbnailJson | None


class _EventDetails(TypedDict, total=False):
    kind: AlertKind
    severity: Severity
    topic: str
    raised: bool
    value: float
    limit: float
    cause: str
    since_s: float
    state: str
    picture: Verdict
    detail: str
    retry_s: float
    has_picture: bool  # True: GET /v1/alerts/NUMBER.jpg


class EventJson(_EventDetails):
    """An alert or a change of state: its record without what a page has no use for."""

    number: int  # 1, 2, ... in the order of the events
    id: str
    event: Literal["alert", "camera"]
    camera: str
    at: float


class _NewEvents(TypedDict, total=False):
    events: list[EventJson]


class UpdateJson(_NewEvents):
    """One message to a follower: the state now, and what is new since the last message."""

    run: str  # another one: forget what you know and ask again
    version: str
    model: str
    at: float
    cameras: list[CameraJson]
    points: dict[str, list[list[float]]]  # by camera id: [time, mean, minimum] for each second


class UsualJson(TypedDict):
    """What is usual for a camera. What is not known yet is None."""

    camera: str
    days: int  # for which it is known
    bin_s: int  # seconds of a bin
    bins: list[tuple[float, float] | None]  # centre and spread of each bin of the day in UTC, from midnight
    levels: list[tuple[float, float]]  # [day's noon, median difference from normal], at most 120 days


class HistoryJson(TypedDict):
    """A camera's scores over time."""

    run: str
    camera: str
    step_s: int
    points: list[list[float]]  # [time, mean, minimum] for each step
