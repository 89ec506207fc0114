"""Names of sources that are safe to show in logs, scores and metrics: credentials are removed."""

from __future__ import annotations

import hashlib
import re
from urllib.parse import urlsplit

__all__ = ["safe_name", "scrub", "slug", "split_credentials"]

# Query values that tell apart the streams of one camera are shown; any other may be a key.
_SHOWN = frozenset({"camera", "channel", "fps", "height", "id", "profile", "resolution", "stream", "subtype",
                    "width"})  # fmt: skip
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://[^\s\"'!]+")
# GStreamer properties such as user-pw=secret, and the same words in other programs' error messages.
_SECRET = re.compile(
    r"(?i)\b([a-z_-]*(?:user-id|user-pw|user|passw(?:or)?d|pwd|secret|token|api[_-]?key))\s*=\s*"
    r"(\"[^\"]*\"|'[^']*'|[^\s!&]+)"
)


def safe_name(source: str) -> str:
    """A source without its user, password and unknown query values.

    >>> safe_name("rtsp://admin:secret@10.0.0.5:554/live?channel=1&auth=abc")
    'rtsp://10.0.0.5:554/live?channel=1&auth=***'
    """
    return scrub(source)


def scrub(text: str) -> str:
    """Any text (a pipeline, an error message) with its credentials masked."""
    return _SECRET.sub(r"\1=***", _URL.sub(lambda match: _clean_url(match[0]), text))


def _clean_url(url: str) -> str:
    scheme, rest = url.split("://", 1)
    cut = re.search(r"[/?#]", rest)
    authority, tail = (rest[: cut.start()], rest[cut.start() :]) if cut else (rest, "")
    if "@" in authority:
        path = tail.partition("?")[0]
        if "@" in path:  # the password may contain both; a shortened name is better than a piece of it
            return _clean_url(f"{scheme}://{path.rpartition('@')[2]}{tail[len(path) :]}")
        authority = authority.rpartition("@")[2]
    elif "@" in tail and not re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:]*)(:[0-9]*)?", authority):
        # A password with an unescaped slash: what looks like a port is not one.
        return _clean_url(f"{scheme}://{tail.rpartition('@')[2]}")
    path, _, query = tail.partition("?")
    if query:
        query = "?" + "&".join(_clean_pair(pair) for pair in query.partition("#")[0].split("&"))
    return f"{scheme}://{authority}{path.partition('#')[0]}{query}"


def _clean_pair(pair: str) -> str:
    key, equals, value = pair.partition("=")
    if not equals:
        return "***"  # a bare token
    return f"{key}={value if key.lower() in _SHOWN else '***'}"


def slug(name: str) -> str:
    """A name as one word of letters, digits, ``_`` and ``-``, for MQTT topics and file names.

    A name that is such a word is returned unchanged. In any other, all else is replaced, and a piece of the
    name's SHA-256 is appended: names that differ only in punctuation stay distinct, the same in every run.

    >>> slug("gate"), slug("gate.1"), slug("gate 1")
    ('gate', 'gate_1-4c8a47', 'gate_1-76ffb8')
    """
    word = re.sub(r"[^A-Za-z0-9_-]+", "_", name)
    if word == name and word:
        return word
    return f"{word.strip('_') or 'camera'}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def split_credentials(url: str) -> tuple[str, str, str]:
    """(url without user and password, user, password), percent-escapes of the two resolved."""
    from urllib.parse import unquote, urlunsplit

    parts = urlsplit(url)
    userinfo, _, host = parts.netloc.rpartition("@")
    user, _, password = userinfo.partition(":")
    return urlunsplit(parts._replace(netloc=host)), unquote(user), unquote(password)
