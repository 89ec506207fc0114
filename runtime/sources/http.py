"""Fetching one picture from a web server."""

from __future__ import annotations

from dataclasses import dataclass, field

from grmp_edge.errors import ImageError, SourceError
from grmp_edge.picture_header import PictureLimits
from grmp_edge.redact import safe_name
from grmp_edge.runtime.http_get import check_private, http_errors, open_url
from grmp_edge.runtime.within import within

__all__ = ["FetchConfig", "fetch_picture"]


@dataclass(frozen=True)
class FetchConfig:
    """Limits of a download."""

    timeout_s: float = 20.0  # for connecting and for each read: a slow server is not a dead one
    total_s: float = 300.0  # for all of it: one that sends a byte now and then is no better than a dead one
    max_bytes: int = 64 << 20  # an endless answer must not fill the memory
    # A few kB can decode to gigabytes. The largest sensors have 150 megapixels: 900 MB while decoded.
    pictures: PictureLimits = field(default_factory=lambda: PictureLimits(200_000_000, 1200 << 20))
    # named, never or always (grmp_edge.runtime.http_get). Most cameras have private addresses, so whoever
    # names one means it; for addresses that strangers write down, never.
    private: str = "named"

    def __post_init__(self) -> None:
        check_private(self.private)


def fetch_picture(url: str, config: FetchConfig | None = None) -> bytes:
    """Fetch the picture at an http or https address; user and password in it are used but never shown.

    Raises:
        SourceError: no answer, an error status, not a picture, or beyond the limits.
    """
    config = config or FetchConfig()
    name = safe_name(url)
    try:
        return within(config.total_s, lambda: _fetched(url, name, config), lambda: None)
    except TimeoutError:
        reason = f"{name}: not complete after {config.total_s:.0f} s"
        raise SourceError(reason, "try again, or download it first") from None


def _fetched(url: str, name: str, config: FetchConfig) -> bytes:
    with http_errors(name), open_url(url, config.timeout_s, config.private) as response:
        kind = response.headers.get_content_type()
        # Many servers send pictures as an octet stream; the decoder judges those.
        if not kind.startswith("image/") and kind != "application/octet-stream":
            raise SourceError(
                f"{name}: the server sends {kind}, not a picture", "for a live stream: grmp-edge watch"
            )
        data: bytes = response.read(config.max_bytes + 1)
        expected = response.headers.get("Content-Length", "")
    if len(data) > config.max_bytes:
        raise SourceError(f"{name}: more than {config.max_bytes >> 20} MB", "download it first")
    if expected.isdecimal() and len(data) < int(expected):
        raise SourceError(f"{name}: the connection broke off", "try again")
    try:
        config.pictures.check(data, name)
    except ImageError as error:
        raise SourceError(error.message, error.remedy) from None
    return data
