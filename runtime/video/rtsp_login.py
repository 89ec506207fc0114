"""RTSP's messages, and digest authentication by SHA-256 (RFC 7616) put into those that pass by.

FFmpeg answers MD5 alone, and nothing where a camera offers SHA-256 last. So a challenge by SHA-256 is passed
on as one by MD5, and what FFmpeg answers to it is replaced by what the camera asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
import socket
import ssl
from collections.abc import Iterator
from urllib.parse import urlsplit

from grmp_edge.redact import split_credentials

__all__ = ["SHA256", "Login", "challenges", "messages"]

SHA256 = "SHA-256"
_MAX_TEXT = 1 << 16  # bytes of one message in text
_CHALLENGE = re.compile(r"(?im)^www-authenticate:[ \t]*([^\r\n]*)\r?\n")
_ANSWER = re.compile(r"(?im)^authorization:[^\r\n]*\r?\n")
_FIELD = re.compile(r'([\w-]+)=(?:"((?:\\.|[^"\\])*)"|([^\s,"]+))')


def messages(data: bytearray) -> Iterator[bytes]:
    """Remove the complete messages from the front of ``data``; an incomplete one stays in it.

    Args:
        data: received on an RTSP connection (RFC 2326 10.12): ``$``, channel, length, packet; or a request or
            answer in text.

    Raises:
        ValueError: ``data`` is neither.
    """
    while len(data) >= 4:
        if data[0] == 0x24:
            size = 4 + int.from_bytes(data[2:4], "big")
        else:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                if len(data) > _MAX_TEXT:
                    raise ValueError("it does not speak RTSP")
                return
            length = re.search(rb"(?im)^content-length: *(\d+)", data[:end])
            size = end + 4 + (int(length[1]) if length else 0)
            if size > _MAX_TEXT:
                raise ValueError("an answer without an end")
        if len(data) < size:
            return
        message = bytes(data[:size])
        del data[:size]
        yield message


def _fields(challenge: str) -> dict[str, str]:
    """The parameters of a digest challenge, their names in small letters."""
    return {name.lower(): quoted or plain for name, quoted, plain in _FIELD.findall(challenge)}


def _algorithm(challenge: str) -> str:
    """By which a challenge wants to be answered; of other schemes than digest, the scheme."""
    scheme = challenge.split(maxsplit=1)[:1]
    if not scheme or scheme[0].lower() != "digest":
        return scheme[0] if scheme else ""
    return _fields(challenge).get("algorithm", "MD5").upper()


class Login:
    """Of one connection: answers a camera that asks for SHA-256. Anything else passes as it is."""

    def __init__(self, source: str) -> None:
        """``source``: the camera's address, with user and password."""
        _, self._user, self._password = split_credentials(source)
        self._asked: dict[str, str] = {}
        self._count = 0

    def answer(self, message: bytes) -> bytes:
        """A message from the camera, as FFmpeg is to see it."""
        if message[:1] == b"$":
            return message
        text = message.decode("latin-1")
        asked = [_fields(one) for one in _CHALLENGE.findall(text) if _algorithm(one) == SHA256]
        if not asked:
            return message
        self._asked, self._count = asked[0], 0
        stale = "".join(f', stale="{value}"' for key, value in self._asked.items() if key == "stale")
        plain = f'WWW-Authenticate: Digest realm="grmp-edge", nonce="0"{stale}\r\n'
        head, end, rest = _CHALLENGE.sub("", text).partition("\r\n\r\n")
        return f"{head}\r\n{plain}{end[2:]}{rest}".encode("latin-1")

    def request(self, message: bytes) -> bytes:
        """A message from FFmpeg, as the camera is to see it."""
        if not self._asked or message[:1] == b"$":
            return message
        text = message.decode("latin-1")
        method, _, rest = text.partition(" ")
        own = self._authorization(method, rest.partition(" ")[0])
        return _ANSWER.sub(lambda _: own, text, count=1).encode("latin-1")

    def _authorization(self, method: str, uri: str) -> str:
        self._count += 1
        realm, nonce = self._asked.get("realm", ""), self._asked.get("nonce", "")
        secret = _hashed(f"{self._user}:{_unquoted(realm)}:{self._password}")
        asked = _hashed(f"{method}:{uri}")
        fields = {"username": _quoted(self._user), "realm": realm, "nonce": nonce, "uri": uri}
        plain = {"algorithm": SHA256}
        if "auth" in re.split(r"[\s,]+", self._asked.get("qop", "")):
            count, own = f"{self._count:08x}", secrets.token_hex(8)
            proof = _hashed(f"{secret}:{_unquoted(nonce)}:{count}:{own}:auth:{asked}")
            fields["cnonce"] = own
            plain |= {"qop": "auth", "nc": count}
        else:
            proof = _hashed(f"{secret}:{_unquoted(nonce)}:{asked}")
        fields["response"] = proof
        if "opaque" in self._asked:
            fields["opaque"] = self._asked["opaque"]
        written = [f'{key}="{value}"' for key, value in fields.items()]
        written += [f"{key}={value}" for key, value in plain.items()]
        return f"Authorization: Digest {', '.join(written)}\r\n"


def _hashed(text: str) -> str:
    # A challenge's bytes came as Latin-1; what was typed has other characters, in UTF-8.
    return hashlib.sha256(text.encode()).hexdigest()


def _quoted(text: str) -> str:
    """As a quoted string of a header; its UTF-8 is written byte by byte."""
    return text.replace("\\", "\\\\").replace('"', '\\"').encode().decode("latin-1")


def _unquoted(text: str) -> str:
    plain = re.sub(r"\\(.)", r"\1", text)
    with contextlib.suppress(UnicodeDecodeError):
        return plain.encode("latin-1").decode()
    return plain


def challenges(source: str, timeout_s: float) -> list[str]:
    """What a camera lets users in by, asked once without any: ``MD5``, ``SHA-256``, ``Basic``, in its order.

    Empty where it does not say so in time.
    """
    address = split_credentials(source)[0]
    data = bytearray()
    with contextlib.suppress(OSError, ValueError):
        parts = urlsplit(address)
        secure = parts.scheme == "rtsps"
        place = parts.hostname or "", parts.port or (322 if secure else 554)
        with contextlib.ExitStack() as stack:
            door = stack.enter_context(socket.create_connection(place, timeout_s))
            if secure:  # as FFmpeg, which checks no certificate
                door = stack.enter_context(ssl._create_unverified_context().wrap_socket(door))
            door.sendall(
                f"DESCRIBE {address} RTSP/1.0\r\nCSeq: 1\r\nAccept: application/sdp\r\n\r\n".encode()
            )
            while piece := door.recv(4096):
                data += piece
                for answer in messages(data):
                    return list(map(_algorithm, _CHALLENGE.findall(answer.decode("latin-1"))))
    return []
