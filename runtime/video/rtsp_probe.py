"""Whether an RTSP server answers at all: asked before OpenCV, whose opening of one stream holds up all."""

from __future__ import annotations

import contextlib
import socket
import time
from urllib.parse import urlsplit

from grmp_edge.errors import SourceError
from grmp_edge.redact import scrub, split_credentials
from grmp_edge.runtime.live.config import CameraConfig

__all__ = ["wait_for_rtsp"]

_PORTS = {"rtsp": 554, "rtsps": 322}
_MAX_ANSWER = 1 << 16


def wait_for_rtsp(config: CameraConfig) -> None:
    """Ask the server of ``config.source`` for its methods and wait for any answer.

    That is RTSP's OPTIONS (RFC 2326, 10.1), which needs no password. An ``rtsps://`` server is only
    connected to. Takes at most ``open_timeout_s``.

    Raises:
        SourceError: it does not answer, or not in RTSP.
    """
    remedy = "check that the camera is on, and its address"
    try:
        bare, _, _ = split_credentials(config.source)
        parts = urlsplit(bare)
        host, port = parts.hostname, parts.port or _PORTS[parts.scheme]
    except (ValueError, KeyError):
        return  # a password that is not escaped, for one: FFmpeg may read it all the same
    if not host:
        return
    until = time.monotonic() + config.open_timeout_s
    try:
        with socket.create_connection((host, port), config.open_timeout_s) as server:
            if parts.scheme == "rtsp":
                _ask(server, bare, until)
    except TimeoutError:
        waited = config.open_timeout_s
        raise SourceError(f"{config.label}: no answer after {waited:.1f} s", remedy) from None
    except OSError as error:
        raise SourceError(f"{config.label}: {scrub(error.strerror or str(error))}", remedy) from None
    except ValueError as error:
        raise SourceError(f"{config.label}: {error}", remedy) from None


def _ask(server: socket.socket, url: str, until: float) -> None:
    server.sendall(f"OPTIONS {url} RTSP/1.0\r\nCSeq: 1\r\nUser-Agent: grmp-edge\r\n\r\n".encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        rest = until - time.monotonic()
        if rest <= 0:
            raise TimeoutError
        server.settimeout(rest)
        data = server.recv(4096)
        if not data:
            raise ConnectionResetError("the server closed the connection")
        answer += data
        if not b"RTSP/".startswith(answer[:5]) or len(answer) > _MAX_ANSWER:
            raise ValueError("it does not speak RTSP")
    with contextlib.suppress(OSError):
        server.shutdown(socket.SHUT_RDWR)
