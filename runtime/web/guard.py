"""Access control and limits in front of the routes: tokens, sessions, concurrency, body size."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from grmp_edge.errors import UsageError
from grmp_edge.picture_header import PictureLimits
from grmp_edge.runtime.web.connections import ConnectionLimits, peer_of

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
# Open without a token: probes have none, and the page must load before it can ask for one.
_OPEN = frozenset({"/", "/healthz", "/readyz", LOGIN, LOGOUT})
_OPEN_BELOW = ("/v2/health/", "/static/")
_LOGIN_BODY = 4096  # bytes; anyone may send it
_LOGIN_TIMEOUT_S = 5.0
_SESSION_S = 7 * 86400  # a screen on a wall is logged in once a week
_LOGINS = 4  # at once, counted apart from requests with a token

# Wrong tokens of a peer before it has to wait: somebody who types one makes mistakes.
_FREE_TRIES, _LONGEST_WAIT_S, _PEERS = 5, 60.0, 1000

_DRAIN_S = 2.0


@dataclass(frozen=True)
class ServeConfig:
    """Where to serve, and what one client may cost."""

    host: str = "127.0.0.1"  # this machine only; wider only with a token
    port: int = 8080
    token: str = field(default="", repr=False)  # expected as `Authorization: Bearer`
    max_body: int = 32 << 20  # bytes; a phone's 50-megapixel JPEG is 25 MB
    pictures: PictureLimits = field(default_factory=PictureLimits)  # of one; its memory is shared by all
    max_batch: int = 32  # pictures in one request
    # Requests in progress, with their bodies in memory; more get 429 at once instead of queueing.
    concurrency: int = 8
    workers: int = 2  # pictures decoded and scored in parallel: the network uses the other cores itself
    connections: ConnectionLimits = field(default_factory=ConnectionLimits)
    body_timeout_s: float = 30.0  # for a whole body; a slow sender must not block a place

    def __post_init__(self) -> None:
        if not is_loopback(self.host) and not self.token:
            raise UsageError(
                f"{self.host} can be reached from other machines, and there is no token",
                "set GRMP_EDGE_TOKEN to a long random text, or serve on 127.0.0.1",
            )
        if not 0 <= self.port < 65536:
            raise UsageError(f"--port {self.port} is not a port", "use 1 to 65535, or 0 for any free one")
        if min(self.max_body, self.max_batch, self.concurrency, self.workers) < 1:
            raise UsageError("limits must be 1 or more")


def is_loopback(host: str) -> bool:
    """Whether a host is this machine: ``localhost`` or a loopback address, not a name like one."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Refused(HTTPException):  # a Starlette exception, so that it becomes an answer inside the routes too
    def __init__(self, status: int, detail: str, wait_s: float = 1.0) -> None:
        """``wait_s``: when to try again, of 429."""
        super().__init__(status, detail)
        self.wait_s = wait_s


class _Tries:
    """Wrong tokens by peer: after some, each next try has to wait twice as long as the one before."""

    def __init__(self) -> None:
        self._wrong: dict[str, tuple[int, float]] = {}  # how many, and when the next one may come

    def check(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """Refuse a try that comes too soon."""
        wait_s = self._wrong.get(_peer(scope), (0, 0.0))[1] - time.monotonic()
        if wait_s > 0 and _tries(scope, headers):
            raise _Refused(429, "too many wrong tokens; try again later", wait_s)

    def note(self, scope: Scope, headers: dict[bytes, bytes], status: int) -> None:
        """Count an answer."""
        if not _tries(scope, headers) or status == 429:
            return
        count, _ = self._wrong.pop(_peer(scope), (0, 0.0))
        if status == 401:
            wait_s = min(2.0 ** (count - _FREE_TRIES), _LONGEST_WAIT_S) if count >= _FREE_TRIES else 0.0
            self._wrong[_peer(scope)] = (count + 1, time.monotonic() + wait_s)
            while len(self._wrong) > _PEERS:  # the one that has not tried for longest
                del self._wrong[next(iter(self._wrong))]


def _tries(scope: Scope, headers: dict[bytes, bytes]) -> bool:
    return b"authorization" in headers or scope["path"] == LOGIN


def _peer(scope: Scope) -> str:
    client = scope.get("client")
    return peer_of(client[0]) if client else ""


class Guard:
    """ASGI middleware that rejects requests before anything is read or decoded."""

    def __init__(
        self, app: ASGIApp, config: ServeConfig, answered: Callable[[str, int, float], object]
    ) -> None:
        """``answered(path, status, seconds)`` is called after each request."""
        self._app, self.config, self._answered = app, config, answered
        self._busy = {"work": 0, "login": 0}
        self._tries = _Tries()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or reject it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0

        async def watched(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        login = scope["path"] in (LOGIN, LOGOUT)
        kind, places = ("login", _LOGINS) if login else ("work", self.config.concurrency)
        max_body = _LOGIN_BODY if login else self.config.max_body
        timeout_s = _LOGIN_TIMEOUT_S if login else self.config.body_timeout_s
        taken = False
        headers = {key.lower(): value for key, value in scope["headers"]}
        try:
            self._tries.check(scope, headers)
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
                    await _drain(receive, self.config.max_body)
                await _answer(watched, refused.status_code, refused.detail, refused.wait_s)
        finally:
            self._tries.note(scope, headers, status)
            self._busy[kind] -= taken
            self._answered(scope["path"], status or 500, time.perf_counter() - start)

    def _check(self, scope: Scope, headers: dict[bytes, bytes], max_body: int) -> None:
        if _foreign(scope["method"], headers):
            raise _Refused(403, "not for pages of other sites")
        if self.config.token:
            if not self._allowed(scope, headers):
                raise _Refused(401, "a token is needed: Authorization: Bearer TOKEN")
        else:
            # A page whose name was made to point here (DNS rebinding) still sends that name.
            host = headers.get(b"host", b"").decode("latin-1").rpartition("]")
            name = host[0].lstrip("[") if host[1] else host[2].partition(":")[0]
            if not is_loopback(name):
                raise _Refused(421, "this server answers to localhost only")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            raise _Refused(400, "Content-Length is not a number")
        if int(length) > max_body:
            raise _Refused(413, f"the body is longer than {max_body} bytes")

    def _allowed(self, scope: Scope, headers: dict[bytes, bytes]) -> bool:
        token, path = self.config.token, scope["path"]
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        if kind.lower() == b"bearer" and hmac.compare_digest(given.strip(), token.encode()):
            return True
        if path in _OPEN or path.startswith(_OPEN_BELOW):
            return True
        # A session may only read: no page can make a browser POST with the cookie alone.
        cookies = headers.get(b"cookie", b"").decode("latin-1")
        return scope["method"] == "GET" and session_valid(token, cookies)

    def _limited(self, receive: Receive, max_body: int, timeout_s: float) -> Receive:
        size = 0
        end: float | None = None

        async def limited() -> Message:
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
                    end = float("inf")  # only the end of the connection follows the body
            return message

        return limited


def _foreign(method: str, headers: dict[bytes, bytes]) -> bool:
    """Whether a page of another origin makes its reader's browser ask this.

    It could not read the answer, but would cost decoding and places here, or change something. Only following
    a link to here is fine. Browsers say so in Sec-Fetch-Site, to localhost and over TLS; elsewhere in Origin,
    with all that can change something. Other programs send neither.
    """
    site = headers.get(b"sec-fetch-site")
    if site is not None:
        link = method == "GET" and headers.get(b"sec-fetch-mode") == b"navigate"
        inside = headers.get(b"sec-fetch-dest", b"document") != b"document"  # a frame of that page
        return site not in (b"same-origin", b"none") and (inside or not link)
    origin = headers.get(b"origin")
    return origin is not None and origin.lower().partition(b"://")[2] != headers.get(b"host", b"").lower()


async def _drain(receive: Receive, limit: int) -> None:
    """Read and drop the rest of a body, within limits: a client cut off while sending misses the answer."""

    async def read() -> None:
        size = 0
        while size <= limit:
            message = await receive()
            size += len(message.get("body", b""))
            if not message.get("more_body", False):
                return

    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(read(), _DRAIN_S)


async def _answer(send: Send, status: int, detail: str, wait_s: float) -> None:
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    if status == 429:
        headers.append((b"retry-after", str(math.ceil(wait_s)).encode()))
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"detail": detail}).encode()})


# A page's session is a cookie: neither EventSource nor an <img> can send the token as a header.


def _cookie_name(token: str) -> str:
    # All ports of a host share cookies: two servers must not end each other's sessions.
    return "grmp_edge_" + _sign(token, "name")[:12]


def _sign(token: str, text: str) -> str:
    return hmac.new(token.encode(), f"grmp-edge session {text}".encode(), hashlib.sha256).hexdigest()


def session_cookie(token: str, secure: bool) -> str:
    """The value of a Set-Cookie header that proves knowledge of the token without containing it."""
    expires = str(int(time.time()) + _SESSION_S)
    return _cookie_header(f"{_cookie_name(token)}={expires}.{_sign(token, expires)}", _SESSION_S, secure)


def clear_cookie(token: str, secure: bool) -> str:
    """The value of a Set-Cookie header that deletes the session."""
    return _cookie_header(f"{_cookie_name(token)}=", 0, secure)


def _cookie_header(pair: str, age_s: int, secure: bool) -> str:
    return f"{pair}; Max-Age={age_s}; Path=/; HttpOnly; SameSite=Strict" + ("; Secure" if secure else "")


def session_valid(token: str, cookies: str) -> bool:
    """Whether a Cookie header holds an unexpired session of this token."""
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
