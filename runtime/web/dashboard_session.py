"""The cookie of a page that has shown the token: neither EventSource nor a picture can send a header."""

from __future__ import annotations

import hashlib
import hmac
import time

__all__ = ["clear_cookie", "session_cookie", "session_valid"]

_LIFETIME_S = 7 * 86400  # a screen on a wall is logged in once a week


def _name(token: str) -> str:
    # Cookies are shared by all ports of a host: two servers must not log each other's pages out.
    return "grmp_edge_" + _sign(token, "name")[:12]


def _sign(token: str, text: str) -> str:
    return hmac.new(token.encode(), f"grmp-edge session {text}".encode(), hashlib.sha256).hexdigest()


def session_cookie(token: str, secure: bool) -> str:
    """The value of a Set-Cookie header: proof that the token was known, and not the token."""
    expires = str(int(time.time()) + _LIFETIME_S)
    return _attributes(f"{_name(token)}={expires}.{_sign(token, expires)}", _LIFETIME_S, secure)


def clear_cookie(token: str, secure: bool) -> str:
    """The value of a Set-Cookie header that takes it back."""
    return _attributes(f"{_name(token)}=", 0, secure)


def _attributes(pair: str, age_s: int, secure: bool) -> str:
    return f"{pair}; Max-Age={age_s}; Path=/; HttpOnly; SameSite=Strict" + ("; Secure" if secure else "")


def session_valid(token: str, cookies: str) -> bool:
    """Whether a Cookie header holds a session of this token that is not over."""
    name = _name(token)
    for pair in cookies.split(";"):
        key, _, value = pair.strip().partition("=")
        if key != name:
            continue
        expires, _, signature = value.partition(".")
        right = hmac.compare_digest(signature.encode(), _sign(token, expires).encode())
        if right and expires.isdigit() and int(expires) > time.time():
            return True
    return False
