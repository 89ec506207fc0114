"""Names of sources that are safe to show in logs, scores and metrics: credentials are removed."""

from __future__ import annotations

import hashlib
import os
import re
from itertools import pairwise
from urllib.parse import quote, quote_plus, unquote

from grmp_edge.errors import UsageError

__all__ = ["from_environment", "has_password", "safe_name", "scrub", "slug", "split_credentials"]

# Query values that tell apart the streams of one camera are shown; any other may be a key.
_SHOWN = frozenset({"camera", "channel", "fps", "height", "id", "profile", "resolution", "stream", "subtype",
                    "width"})  # fmt: skip
# GStreamer properties such as user-pw=secret, and the same words in other programs' error messages.
_SECRET = re.compile(
    r"(?i)\b([a-z_-]*(?:user-id|user-pw|user|passw(?:or)?d|pwd|secret|token|api[_-]?key))\s*=\s*"
    r"(\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'|[^\s!&]+)"
)
# An address whose scheme was left out or mistyped.
_BARE = re.compile(r"(?!(?:file|gst):)[^\s:@/]+:\S*@(?=[\[A-Za-z0-9])")
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
_HOST = r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~-]+)(?::[0-9]{0,5})?"
_WHOLE_HOST = re.compile(_HOST + r"(?=[/?#]|$)")
_TEXT_HOST = re.compile(_HOST + r"(?=[/?#\s\"'!),;]|$)")  # in a text, an address may end with its host

# Passwords that were taken from addresses, however they may be written in other programs' messages.
_known: set[str] = set()
_LONGEST = 180  # characters of a slug: file systems take 255 bytes, with what is put around it
_SHORTEST = 4  # a shorter one would be found in ordinary words


def safe_name(source: str) -> str:
    """A source without its user, password and unknown query values; bytes that are not UTF-8 are escaped.

    >>> safe_name("rtsp://admin:secret@10.0.0.5:554/live?channel=1&auth=abc")
    'rtsp://10.0.0.5:554/live?channel=1&auth=***'
    """
    source = source.encode("utf-8", "backslashreplace").decode()
    if _SCHEME.match(source):
        return _SECRET.sub(r"\1=***", _clean(source, _WHOLE_HOST))
    return _masked(_BARE.sub("***@", source, count=1) if _BARE.match(source) else source)


def scrub(text: str) -> str:
    """Any text, such as an error message, with credentials masked, also those known from other addresses."""
    clean = _masked(text)
    for secret in sorted(_known.copy(), key=len, reverse=True):
        clean = clean.replace(secret, "***")
    return clean


def _masked(text: str) -> str:
    starts = [match.start() for match in _SCHEME.finditer(text)]
    parts = [text[: starts[0]] if starts else text]
    parts += [_clean(text[at:end], _TEXT_HOST) for at, end in pairwise([*starts, len(text)])]
    return _SECRET.sub(r"\1=***", "".join(parts))


def _clean(address: str, host: re.Pattern[str]) -> str:
    """An address, perhaps with a text after it, without its credentials. In doubt, more is left out."""
    scheme, _, rest = address.partition("://")
    rest = rest[_userinfo(rest, host, cautious=True) :]
    end = re.search(r"[\s\"'!]", rest) if host is _TEXT_HOST else None
    rest, after = (rest[: end.start()], rest[end.start() :]) if end else (rest, "")
    path, _, query = rest.partition("#")[0].partition("?")
    if query:
        query = "?" + "&".join(_clean_pair(pair) for pair in query.split("&"))
    return f"{scheme}://{path}{query}{after}"


def _userinfo(rest: str, host: re.Pattern[str], cautious: bool = False) -> int:
    """Where ``user:password@`` ends in what follows ``://``; 0 if there is none.

    By RFC 3986 it ends at the first slash at the latest; passwords are typed as they are, and may hold
    slashes, question marks and more. So whatever has no host in front of the first slash is taken for one.

    Args:
        rest: the address without its scheme.
        host: what a host looks like.
        cautious: also where an address is right by the RFC, but another reading would have a password.
    """
    head = re.split("[/?#]", rest, maxsplit=1)[0]
    places = [match.end() for match in re.finditer("@", rest)]
    hosts = [at for at in places if host.match(rest, at)]
    proper = head.rfind("@") + 1
    if proper in hosts or (not proper and host.match(rest)):
        doubtful = proper or re.match(r"[^\[/?#]*:[0-9]*[/?#]", rest)
        return hosts[-1] if cautious and doubtful and hosts else proper
    if hosts:
        return hosts[-1]
    return places[-1] if places and cautious else proper


def _clean_pair(pair: str) -> str:
    key, equals, value = pair.partition("=")
    if not equals:
        return "***"  # a bare token
    return f"{key}={value if key.lower() in _SHOWN else '***'}"


def slug(name: str) -> str:
    """A name as one word of letters, digits, ``_`` and ``-``, for MQTT topics and file names.

    A name that is such a word, of 180 characters at most, is returned unchanged. In any other, all else is
    replaced, its end is kept, and a piece of its SHA-256 is appended: names that differ only in punctuation
    stay distinct, the same in every run.

    >>> slug("gate"), slug("gate.1"), slug("gate 1")
    ('gate', 'gate_1-4c8a47', 'gate_1-76ffb8')
    """
    word = re.sub(r"[^A-Za-z0-9_-]+", "_", name)
    if word == name and 0 < len(word) <= _LONGEST:
        return word
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:6]
    return f"{word.strip('_')[-_LONGEST:] or 'camera'}-{digest}"


def split_credentials(url: str) -> tuple[str, str, str]:
    """(url without user and password, user, password).

    The two may be typed as they are, whatever they hold; ``%`` and two hexadecimal digits is an escape.
    """
    scheme, _, rest = url.partition("://")
    end = _userinfo(rest, _WHOLE_HOST)
    for at in {end, _userinfo(rest, _WHOLE_HOST, cautious=True)} - {0}:
        password = rest[: at - 1].partition(":")[2]
        plain = unquote(password)
        written = {password, plain, quote(plain, safe=""), quote(plain), quote_plus(plain)}
        _known.update(text for text in written if len(text) >= _SHORTEST)
    if not end:
        return url, "", ""
    user, _, password = rest[: end - 1].partition(":")
    return f"{scheme}://{rest[end:]}", unquote(user), unquote(password)


def from_environment(text: str, where: str) -> str:
    """``text`` with each ``${NAME}`` replaced by that variable of the environment.

    Raises:
        UsageError: a variable is not set; the message begins with ``where``.
    """

    def look_up(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise UsageError(f"{where}: ${{{name}}} is not set in the environment", f"export {name}=...")
        return os.environ[name]

    return re.sub(r"\$\{(\w+)\}", look_up, text)


def has_password(source: str) -> bool:
    """Whether an address or pipeline, as it is written, holds a password, and not the name of a variable."""
    if _SCHEME.match(source):
        password = split_credentials(source)[2]
        return bool(password) and not re.fullmatch(r"\$\{\w+\}", password)
    return source.startswith("gst:") and safe_name(source) != source
