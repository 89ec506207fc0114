"""Between FFmpeg and an RTSP camera: tells FFmpeg at once that a frame is whole.

FFmpeg's H.264 and H.265 parsers end a frame where the next one begins, so that over RTSP each frame waits for
the next one: 67 ms at 15 frames a second. The camera has said earlier that it is whole, by the marker bit
of its last RTP packet (RFC 6184 5.1, RFC 7798 4.1), which FFmpeg does not look at. Behind each such packet
this relay puts one of its own with an access unit delimiter, with which a next frame may begin: the parser
then hands over what it has. The numbers of the packets that follow are raised, so that none seems lost.

A camera whose marker bits do not fall where its time stamps change, or whose time stamps go back (B-frames),
is left as it is from there on; one that sends its packets beside the connection is opened without a relay.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from grmp_edge.errors import SourceError
from grmp_edge.redact import scrub, split_credentials
from grmp_edge.runtime.video.config import CaptureConfig

__all__ = ["RtspRelay", "wait_for_rtsp", "with_delimiters"]

# By encoding: an access unit delimiter that allows any kind of slice (H.264 7.3.2.4; H.265 7.3.2.5).
_DELIMITERS = {"H264": b"\x09\xf0", "H265": b"\x46\x01\x50"}
_RTPMAP = re.compile(rb"a=rtpmap:(\d+) +(H26[45])/90000", re.IGNORECASE)
_TRANSPORT = re.compile(rb"^transport: *(.*)$", re.IGNORECASE | re.MULTILINE)
_MAX_STEP = 10 * 90_000  # RTP's clock runs at 90 kHz for video: frames ten seconds apart
_MAX_TEXT = 1 << 16  # bytes of one answer
_PORTS = {"rtsp": 554, "rtsps": 322}

_TRIAL = 4  # frames whose marker bits are looked at before they are relied on

# Sources that do not send their packets through the connection, seen by a relay that was in vain.
_BESIDE: set[str] = set()


@dataclass
class _Channel:
    """What is known of the video on one interleaved channel."""

    trial: int  # well-marked frames still to be seen
    added: int = 0  # packets put in
    frame: int | None = None  # the last frame's time stamp
    packet: tuple[int, bool] | None = None  # the last packet's time stamp and marker bit
    sound: bool = True  # its marker bits can be relied on

    def look(self, stamp: int, marker: bool) -> None:
        """Take in a packet's time stamp and marker bit."""
        if self.packet is not None:
            before, ended = self.packet
            ahead = (stamp - before) & 0xFFFFFFFF
            self.sound = self.sound and ended == (ahead != 0) and ahead < 1 << 31
        self.packet = (stamp, marker)


class _Connection:
    """What is known of one connection."""

    def __init__(self, trial: int = _TRIAL) -> None:
        self.trial = trial
        self.types: dict[int, bytes] = {}  # payload types that are video, with their delimiters
        self.channels: dict[int, _Channel] = {}
        self.beside = False  # packets are not sent through it


def with_delimiters(data: bytearray, state: _Connection) -> bytes:
    """Take whole messages off the front of what a server sent; what is to be passed on instead.

    ``data`` is what has come of an RTSP connection (RFC 2326 10.12: ``$``, channel, length, packet; or an
    answer in text); what is not whole stays in it.

    Raises:
        ValueError: it is neither.
    """
    out = bytearray()
    while len(data) >= 4:
        if data[0] == 0x24:
            size = 4 + int.from_bytes(data[2:4], "big")
            if len(data) < size:
                break
            packet = bytes(data[:size])
            del data[:size]
            out += _packet(packet, state)
            continue
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if len(data) > _MAX_TEXT:
                raise ValueError("it does not speak RTSP")
            break
        found = re.search(rb"(?im)^content-length: *(\d+)", data[:end])
        size = end + 4 + (int(found.group(1)) if found else 0)
        if size > _MAX_TEXT:
            raise ValueError("an answer without an end")
        if len(data) < size:
            break
        transport = _TRANSPORT.search(data[:end])
        state.beside |= transport is not None and b"interleaved" not in transport.group(1).lower()
        for kind, name in _RTPMAP.findall(data[:size]):
            state.types[int(kind)] = _DELIMITERS[name.decode().upper()]
        out += data[:size]
        del data[:size]
    return bytes(out)


def _packet(packet: bytes, state: _Connection) -> bytes:
    channel, rtp = packet[1], bytearray(packet[4:])
    if len(rtp) < 12 or rtp[0] >> 6 != 2 or rtp[1] & 0x7F not in state.types or 72 <= rtp[1] & 0x7F <= 76:
        return packet  # sound, or RTCP
    known = state.channels.setdefault(channel, _Channel(state.trial))
    marker, stamp = bool(rtp[1] & 0x80), int.from_bytes(rtp[4:8], "big")
    known.look(stamp, marker)
    number = int.from_bytes(rtp[2:4], "big") + known.added
    rtp[2:4] = (number & 0xFFFF).to_bytes(2, "big")
    passed = packet[:4] + bytes(rtp)
    if not marker or not known.sound:
        return passed
    last, known.frame = known.frame, stamp
    if known.trial > 0:
        known.trial -= 1
        return passed
    known.added += 1
    # The next frame takes its time stamp from here, so it is foretold: as far on as this one was.
    step = (stamp - (stamp if last is None else last)) & 0xFFFFFFFF
    if step > _MAX_STEP:  # a clock that jumped
        step = 0
    kind = rtp[1] & 0x7F
    own = bytes((0x80, kind)) + ((number + 1) & 0xFFFF).to_bytes(2, "big")
    own += ((stamp + step) & 0xFFFFFFFF).to_bytes(4, "big") + bytes(rtp[8:12]) + state.types[kind]
    return passed + b"$" + bytes((channel,)) + len(own).to_bytes(2, "big") + own


class RtspRelay:
    """One connection through to a camera, on threads of its own. ``url`` is what FFmpeg opens."""

    @staticmethod
    def helps(config: CaptureConfig) -> bool:
        """Whether it is wanted for a camera, and can do anything."""
        wanted = config.policy == "latest" if config.low_delay is None else config.low_delay
        return wanted and config.source.startswith("rtsp://") and config.source not in _BESIDE

    def __init__(self, config: CaptureConfig) -> None:
        """Connects to nothing yet.

        Raises:
            SourceError: the address cannot be understood.
        """
        try:
            parts = urlsplit(config.source)
            self._target = (parts.hostname or "", parts.port or 554)
        except ValueError as error:
            raise SourceError(
                f"{config.label}: {scrub(str(error))}", "escape its user and password"
            ) from None
        self._source, self._timeout_s = config.source, config.open_timeout_s
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(config.open_timeout_s)
        userinfo, at, _ = parts.netloc.rpartition("@")
        here = f"{userinfo}{at}127.0.0.1:{self._listener.getsockname()[1]}"
        self.url = urlunsplit(parts._replace(netloc=here))
        self._threads = [threading.Thread(target=self._run, name=f"relay {config.label}", daemon=True)]
        self._threads[0].start()

    def _run(self) -> None:
        """Pass what FFmpeg says on to the camera, and what the camera says back by another thread."""
        with contextlib.suppress(OSError):
            with self._listener:
                client, _ = self._listener.accept()
            self._sockets.append(client)
            with client:
                server = socket.create_connection(self._target, self._timeout_s)
                self._sockets.append(server)
                with server:
                    server.settimeout(None)
                    client.settimeout(None)
                    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    back = threading.Thread(target=self._back, args=(server, client), daemon=True)
                    back.start()
                    with contextlib.suppress(OSError):
                        while data := client.recv(1 << 16):
                            server.sendall(data)
                    self._end()
                    back.join()

    def _back(self, server: socket.socket, client: socket.socket) -> None:
        data, state = bytearray(), _Connection()
        with contextlib.suppress(OSError, ValueError):
            while piece := server.recv(1 << 16):
                data += piece
                client.sendall(with_delimiters(data, state))
                if state.beside:
                    _BESIDE.add(self._source)
                    break
        self._end()

    def _end(self) -> None:
        for end in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connection; its threads end by it."""
        self._end()
        self._threads[0].join(1.0)


def wait_for_rtsp(config: CaptureConfig) -> None:
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
        if not b"RTSP/".startswith(answer[:5]) or len(answer) > _MAX_TEXT:
            raise ValueError("it does not speak RTSP")
    with contextlib.suppress(OSError):
        server.shutdown(socket.SHUT_RDWR)
