"""HTTP requests with the credentials in their address, and errors that do not show them."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import ipaddress
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

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
        handlers = [_Digest(passwords), _Basic(passwords)]
    opener = urllib.request.OpenerDirector()  # not build_opener's, which knows ftp, file and data too
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(address),
        *handlers,
    ):
        opener.add_handler(handler)
    return opener.open(address, timeout=timeout_s)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a few redirects, over http and https, and from a public address to no private one.

    Whoever names the address may mean a machine of this network; whoever answers there may not.
    """

    max_redirections = 5
    max_repeats = 2

    def __init__(self, address: str) -> None:
        self._address = address

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """The next request.

        Raises:
            OSError: it leads where it must not.
        """
        scheme = urlsplit(newurl).scheme
        refused = ""
        if scheme not in ("http", "https"):
            refused = f"{scheme}:"
        elif _private(newurl) and not _private(self._address):
            refused = "a private address from a public one"
        if refused:
            fp.close()
            raise OSError(f"redirected to {refused}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _private(url: str) -> bool:
    """Whether a host has an address of this machine or its networks; a name that nobody knows has none."""
    try:
        found = socket.getaddrinfo(urlsplit(url).hostname or "", None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return not all(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_global for entry in found)


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
