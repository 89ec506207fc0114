"""One picture from a web server."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from grmp_edge.errors import SourceError
from grmp_edge.image_files import image_size
from grmp_edge.redact import safe_name, scrub, split_credentials

__all__ = ["FetchConfig", "fetch_picture"]


@dataclass(frozen=True)
class FetchConfig:
    """Limits of a download."""

    timeout_s: float = 20.0  # to connect and for each read: a slow server is not a dead one
    max_bytes: int = 64 << 20  # a server that never ends must not fill the memory
    max_pixels: int = 200_000_000  # a few kB can promise gigabytes; the largest sensors have 150 megapixels


def fetch_picture(url: str, config: FetchConfig | None = None) -> bytes:
    """The bytes of the picture at an http or https address; user and password in it are used, not shown.

    Raises:
        SourceError: no answer, an error status, something other than a picture, or beyond the limits.
    """
    config = config or FetchConfig()
    name = safe_name(url)
    try:
        with _opener(url).open(split_credentials(url)[0], timeout=config.timeout_s) as response:
            kind = response.headers.get_content_type()
            # Many servers send pictures as a plain stream of bytes; the decoder judges those.
            if not kind.startswith("image/") and kind != "application/octet-stream":
                raise SourceError(
                    f"{name}: the server sends {kind}, not a picture",
                    "for a live stream: grmp-edge watch",
                )
            data: bytes = response.read(config.max_bytes + 1)
            expected = response.headers.get("Content-Length", "")
    except urllib.error.HTTPError as error:
        error.close()
        remedy = "check its user and password" if error.code in (401, 403) else "check the address"
        raise SourceError(f"{name}: the server says {error.code} {error.reason}", remedy) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = scrub(str(getattr(error, "reason", error))) or type(error).__name__
        raise SourceError(f"{name}: cannot be fetched ({reason})", "check the address") from None
    if len(data) > config.max_bytes:
        raise SourceError(f"{name}: more than {config.max_bytes >> 20} MB", "download it first")
    if expected.isdecimal() and len(data) < int(expected):
        raise SourceError(f"{name}: the connection broke off", "try again")
    size = image_size(data)
    if size is not None and size[0] * size[1] > config.max_pixels:
        raise SourceError(f"{name}: {size[0]}x{size[1]} pixels are too many", "make the picture smaller")
    return data


def _opener(url: str) -> Any:
    address, user, password = split_credentials(url)
    if not user:
        return urllib.request.build_opener()
    passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
    passwords.add_password(None, address, user, password)
    return urllib.request.build_opener(
        urllib.request.HTTPBasicAuthHandler(passwords), urllib.request.HTTPDigestAuthHandler(passwords)
    )
