"""What stands before the routes: who may ask, how much at once, and how long a body may be."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from starlette.exceptions import HTTPException

from grmp_edge.errors import UsageError

__all__ = [
    "LOGIN",
    "LOGOUT",
    "Guard",
    "ServeConfig",
    "clear_cookie",
    "is_loopback",
    "session_cookie",
    "session_valid",
]

LOGIN, LOGOUT = "/v1/login", "/v1/logout"
# Asked for without a token: probes carry none, and the page has to be there to ask for it.
_OPEN = frozenset({"/", "/healthz", "/readyz", LOGIN, LOGOUT})
_OPEN_BELOW = ("/v2/health/", "/static/")
_LOGIN_BODY = 4096  # bytes; strangers may send it
_LOGIN_TIMEOUT_S = 5.0
_SESSION_S = 7 * 86400  # a screen on a wall is logged in once a week
_LOGINS = 4  # at once, apart from the places of those who have a token

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_DRAIN_S = 2.0


@dataclass(frozen=True)
class ServeConfig:
    """How to serve, and what a stranger may cost."""

    host: str = "127.0.0.1"  # this machine alone; wider only with a token
    port: int = 8080
    token: str = field(default="", repr=False)  # asked for as `Authorization: Bearer`
    max_body: int = 32 << 20  # bytes; a 50-megapixel JPEG of a phone is 25 MB
    max_pixels: int = 50_000_000  # 150 MB decoded; an 8K frame is 33 million
    max_batch: int = 32  # pictures in one request
    # Requests in progress, their bodies in memory; more are answered 429 at once instead of queueing.
    concurrency: int = 8
    workers: int = 2  # pictures decoded and scored at a time: the network uses the other cores itself
    body_timeout_s: float = 30.0  # for a whole body; a slow sender must not hold one of the places

    def __post_init__(self) -> None:
        if not is_loopback(self.host) and not self.token:
            raise UsageError(
                f"{self.host} can be reached from other machines, and there is no token",
                "set GRMP_EDGE_TOKEN to a long random text, or serve on 127.0.0.1",
            )
        if not 0 <= self.port < 65536:
            raise UsageError(f"--port {self.port} is no port", "use 1 to 65535, or 0 for any free one")
        if min(self.max_body, self.max_pixels, self.max_batch, self.concurrency, self.workers) < 1:
            raise UsageError("limits must be 1 or more")


def is_loopback(host: str) -> bool:
    """Whether a host is this machine alone: ``localhost`` or an address, and no name that looks like one."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Refused(HTTPException):  # Starlette's own, so that it becomes an answer also below the routes
    pass


class Guard:
    """ASGI middleware that refuses before anything is read or decoded."""

    def __init__(self, app: App, config: ServeConfig, answered: Callable[[str, int, float], None]) -> None:
        """``answered(path, status, seconds)`` is told of each request."""
        self._app, self._config, self._answered = app, config, answered
        self._busy = {"work": 0, "login": 0}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0

        async def watched(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        login = scope["path"] in (LOGIN, LOGOUT)
        kind, places = ("login", _LOGINS) if login else ("work", self._config.concurrency)
        max_body = _LOGIN_BODY if login else self._config.max_body
        timeout_s = _LOGIN_TIMEOUT_S if login else self._config.body_timeout_s
        taken = False
        try:
            headers = {key.lower(): value for key, value in scope["headers"]}
            self._check(scope, headers, max_body)
            if scope["method"] == "POST":
                if self._busy[kind] >= places:
                    raise _Refused(429, "too many requests at once; try again")
                self._busy[kind] += 1
                taken = True
            await self._app(scope, self._limited(receive, max_body, timeout_s), watched)
        except _Refused as refused:
            if not status:
                if refused.status_code != 408:
                    await _drain(receive, self._config.max_body)
                await _answer(watched, refused.status_code, refused.detail)
        finally:
            self._busy[kind] -= taken
            self._answered(scope["path"], status or 500, time.perf_counter() - start)

    def _check(self, scope: Scope, headers: dict[bytes, bytes], max_body: int) -> None:
        # Browsers say so when the page of another site asks. It could not read the answer, but would have
        # pictures decoded and places taken here; only a link that leads here is fine.
        other = headers.get(b"sec-fetch-site") == b"cross-site"
        if other and headers.get(b"sec-fetch-mode") != b"navigate":
            raise _Refused(403, "not for pages of other sites")
        if self._config.token:
            if not self._allowed(scope, headers):
                raise _Refused(401, "a token is needed: Authorization: Bearer TOKEN")
        else:
            # A web page that made its name point here (DNS rebinding) still sends that name.
            host = headers.get(b"host", b"").decode("latin-1").rpartition("]")
            name = host[0].lstrip("[") if host[1] else host[2].partition(":")[0]
            if not is_loopback(name):
                raise _Refused(421, "this server answers to localhost only")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            raise _Refused(400, "Content-Length is no number")
        if int(length) > max_body:
            raise _Refused(413, f"the body is longer than {max_body} bytes")

    def _allowed(self, scope: Scope, headers: dict[bytes, bytes]) -> bool:
        token, path = self._config.token, scope["path"]
        given = headers.get(b"authorization", b"")
        if hmac.compare_digest(given, b"Bearer " + token.encode()):
            return True
        if path in _OPEN or path.startswith(_OPEN_BELOW):
            return True
        # A session reads only: whatever page it is that makes a browser POST, the cookie is not enough.
        cookies = headers.get(b"cookie", b"").decode("latin-1")
        return scope["method"] == "GET" and session_valid(token, cookies)

    def _limited(self, receive: Receive, max_body: int, timeout_s: float) -> Receive:
        size = 0
        end: float | None = None

        async def limited() -> MutableMapping[str, Any]:
            nonlocal size, end
            now = asyncio.get_running_loop().time()
            end = now + timeout_s if end is None else end
            try:
                message = await asyncio.wait_for(receive(), max(0.0, end - now))
            except asyncio.TimeoutError:
                raise _Refused(408, "the body took too long") from None
            if message["type"] == "http.request":
                size += len(message.get("body", b""))
                if size > max_body:
                    if message.get("more_body", False):
                        await _drain(receive, max_body)
                    raise _Refused(413, f"the body is longer than {max_body} bytes")
                if not message.get("more_body", False):
                    end = float("inf")  # what comes after the body is the end of the connection
            return message

        return limited


async def _drain(receive: Receive, limit: int) -> None:
    """Throw away the rest of a body, within limits: a client cut off while it sends never sees the answer."""

    async def read() -> None:
        size = 0
        while size <= limit:
            message = await receive()
            size += len(message.get("body", b""))
            if not message.get("more_body", False):
                return

    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(read(), _DRAIN_S)


async def _answer(send: Send, status: int, detail: str) -> None:
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    if status == 429:
        headers.append((b"retry-after", b"1"))
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"detail": detail}).encode()})


# A page's session is a cookie: neither EventSource nor an <img> can send the token as a header.


def _cookie_name(token: str) -> str:
    # Cookies are shared by all ports of a host: two servers must not log each other's pages out.
    return "grmp_edge_" + _sign(token, "name")[:12]


def _sign(token: str, text: str) -> str:
    return hmac.new(token.encode(), f"grmp-edge session {text}".encode(), hashlib.sha256).hexdigest()


def session_cookie(token: str, secure: bool) -> str:
    """The value of a Set-Cookie header: proof that the token was known, and not the token."""
    expires = str(int(time.time()) + _SESSION_S)
    return _cookie_header(f"{_cookie_name(token)}={expires}.{_sign(token, expires)}", _SESSION_S, secure)


def clear_cookie(token: str, secure: bool) -> str:
    """The value of a Set-Cookie header that takes it back."""
    return _cookie_header(f"{_cookie_name(token)}=", 0, secure)


def _cookie_header(pair: str, age_s: int, secure: bool) -> str:
    return f"{pair}; Max-Age={age_s}; Path=/; HttpOnly; SameSite=Strict" + ("; Secure" if secure else "")


def session_valid(token: str, cookies: str) -> bool:
    """Whether a Cookie header holds a session of this token that is not over."""
    name = _cookie_name(token)
    for pair in cookies.split(";"):
        key, _, value = pair.strip().partition("=")
        if key != name:
            continue
        expires, _, signature = value.partition(".")
        right = hmac.compare_digest(signature.encode(), _sign(token, expires).encode())
        if right and expires.isdigit() and int(expires) > time.time():
            return True
    return False
