"""HTTP requests with the credentials in their address, and errors that do not show them."""

from __future__ import annotations

import contextlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from grmp_edge.errors import SourceError
from grmp_edge.redact import scrub, split_credentials

__all__ = ["http_errors", "open_url"]


def open_url(url: str, timeout_s: float) -> Any:
    """Open an http or https address; user and password in it serve for basic or digest authentication.

    Args:
        url: the address.
        timeout_s: for connecting and for each read, in seconds.

    Returns:
        An ``http.client.HTTPResponse``.

    Raises:
        OSError, http.client.HTTPException, ValueError: see :func:`http_errors`.
    """
    address, user, password = split_credentials(url)
    handlers: list[urllib.request.BaseHandler] = []
    if user:
        passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        passwords.add_password(None, address, user, password)
        handlers = [
            urllib.request.HTTPDigestAuthHandler(passwords),
            urllib.request.HTTPBasicAuthHandler(passwords),
        ]
    return urllib.request.build_opener(*handlers).open(address, timeout=timeout_s)


@contextlib.contextmanager
def http_errors(name: str) -> Iterator[None]:
    """Turn the errors of a request into a SourceError of one line that starts with ``name``."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        remedy = "check its user and password" if error.code in (401, 403) else "check the address"
        raise SourceError(f"{name}: the server says {error.code} {error.reason}", remedy) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = scrub(str(getattr(error, "reason", error))) or type(error).__name__
        raise SourceError(f"{name}: cannot be fetched ({reason})", "check the address") from None
