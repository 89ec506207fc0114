"""HTTP requests with the credentials in their address, and errors that do not show them."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.client
import ipaddress
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from grmp_edge.errors import SourceError, UsageError
from grmp_edge.redact import scrub, split_credentials

__all__ = ["PRIVATE", "check_private", "http_errors", "open_url"]

# Which requests may reach this machine and its networks: those to an address that was named, but not where
# a public one redirects; none; or all.
PRIVATE = ("named", "never", "always")


def check_private(private: str) -> None:
    """Raise UsageError unless it is one of :data:`PRIVATE`."""
    if private not in PRIVATE:
        raise UsageError(f"unknown choice of private addresses {private!r}", f"use {', '.join(PRIVATE)}")


def open_url(url: str, timeout_s: float, private: str = "named") -> Any:
    """Open an http or https address; user and password in it serve for basic or digest authentication.

    Args:
        url: the address.
        timeout_s: for connecting and for each read, in seconds.
        private: one of :data:`PRIVATE`.

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
        handlers = [_Digest(passwords), _Basic(passwords)]
    allowed = functools.cache(lambda: private == "always" or (private == "named" and _private(address)))
    opener = urllib.request.OpenerDirector()  # not build_opener's, which knows ftp, file and data too
    for handler in (
        urllib.request.ProxyHandler(),
        _Connections(allowed),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
        *handlers,
    ):
        opener.add_handler(handler)
    return opener.open(address, timeout=timeout_s)


class _Connections(urllib.request.AbstractHTTPHandler):
    """Connects to no private address that is not allowed, whatever its name meant a moment before."""

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def __init__(self, allowed: Callable[[], bool]) -> None:
        super().__init__()
        self._allowed = allowed

    def http_open(self, req: Any) -> Any:
        return self._open(req, http.client.HTTPConnection)

    def https_open(self, req: Any) -> Any:
        return self._open(req, http.client.HTTPSConnection)

    def _open(self, req: Any, kind: Callable[..., Any]) -> Any:
        def connection(*arguments: Any, **settings: Any) -> Any:
            made = kind(*arguments, **settings)
            if not req.has_proxy():  # which is usually of this network itself
                made._create_connection = self._connect
            return made

        if req.has_proxy() and _private(req.full_url) and not self._allowed():
            raise OSError(_REFUSED)
        return self.do_open(connection, req)

    def _connect(self, *arguments: Any, **settings: Any) -> socket.socket:
        connected = socket.create_connection(*arguments, **settings)
        if not _is_public(connected.getpeername()[0]) and not self._allowed():
            connected.close()
            raise OSError(_REFUSED)
        return connected


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a few redirects, over http and https."""

    max_redirections = 5
    max_repeats = 2

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """The next request.

        Raises:
            OSError: it leads where it must not.
        """
        scheme = urlsplit(newurl).scheme
        if scheme not in ("http", "https"):
            fp.close()
            raise OSError(f"redirected to {scheme}:, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_REFUSED = "it leads to a private address, which is refused: score --private-addresses"


def _private(url: str) -> bool:
    """Whether a host has an address of this machine or its networks; a name that nobody knows has none."""
    try:
        found = socket.getaddrinfo(urlsplit(url).hostname or "", None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return not all(_is_public(str(entry[4][0])) for entry in found)


def _is_public(address: str) -> bool:
    """Whether a numeric address is none of this machine or its networks."""
    found = ipaddress.ip_address(address.partition("%")[0])
    return (getattr(found, "ipv4_mapped", None) or found).is_global


def _again(retry: Callable[..., Any], request: urllib.request.Request, refused: Any, *more: Any) -> Any:
    """Ask again with credentials; urllib leaves the connection of the first answer open."""
    answer = None
    try:
        answer = retry(request, refused, *more)
    except BaseException:
        refused.close()
        raise
    if answer is not None:
        refused.close()
    return answer


class _Basic(urllib.request.HTTPBasicAuthHandler):
    def http_error_401(self, req: urllib.request.Request, fp: Any, *more: Any) -> Any:
        return _again(super().http_error_401, req, fp, *more)


class _Digest(urllib.request.HTTPDigestAuthHandler):
    """Digest authentication with SHA-256 (RFC 7616) as well, and names and passwords of any characters."""

    passwd: Any  # urllib's own, which its types leave out

    def http_error_401(self, req: urllib.request.Request, fp: Any, *more: Any) -> Any:
        return _again(super().http_error_401, req, fp, *more)

    def get_algorithm_impls(self, algorithm: str) -> tuple[Callable[[str], str], Callable[[str, str], str]]:
        name = {"MD5": "md5", "SHA": "sha1", "SHA-256": "sha256"}.get(algorithm.upper())
        if name is None:
            raise ValueError(f"digest authentication by {algorithm} is not supported")

        def digest(text: str) -> str:
            return hashlib.new(name, text.encode(), usedforsecurity=False).hexdigest()

        return digest, lambda secret, data: digest(f"{secret}:{data}")

    def get_authorization(self, req: urllib.request.Request, chal: Mapping[str, str]) -> str | None:
        header: str | None = super().get_authorization(req, chal)
        user = self.passwd.find_user_password(chal.get("realm"), req.full_url)[0]
        if header is None or user is None:
            return header
        # As a quoted string of the header, and not as urllib writes it; bytes of UTF-8 as http.client sends.
        quoted = user.replace("\\", "\\\\").replace('"', '\\"').encode().decode("latin-1")
        return header.replace(f'username="{user}"', f'username="{quoted}"', 1)


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
