"""RTSP: asking whether a camera answers, and a relay that hands FFmpeg each frame once it is complete.

FFmpeg's H.264 and H.265 parsers end a frame where the next one begins, so that over RTSP each frame waits for
the next one: 67 ms at 15 frames a second. The camera has already marked the frame as complete, by the marker
bit of its last RTP packet (RFC 6184 5.1, RFC 7798 4.1), which FFmpeg ignores. After each such packet this
relay inserts one of its own with an access unit delimiter, which can only begin a new frame: the parser then
releases the one it holds. The sequence numbers of later packets are raised, so that none seems lost.

A camera whose marker bits do not coincide with changes of its time stamps, or whose time stamps go backwards
(B-frames), is left alone from there on; one that sends its packets outside the connection (UDP) is opened
without a relay next time.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

from grmp_edge.errors import SourceError
from grmp_edge.redact import scrub, split_credentials
from grmp_edge.runtime.video.config import CaptureConfig
from grmp_edge.runtime.video.rtsp_login import Login, messages

__all__ = ["RtspRelay", "escaped", "with_delimiters"]

# Access unit delimiters that allow any slice type, by codec (H.264 7.3.2.4; H.265 7.3.2.5).
_DELIMITERS = {"H264": b"\x09\xf0", "H265": b"\x46\x01\x50"}
_RTPMAP = re.compile(rb"a=rtpmap:(\d+) +(H26[45])/90000", re.IGNORECASE)
_TRANSPORT = re.compile(rb"^transport: *(.*)$", re.IGNORECASE | re.MULTILINE)
_MAX_STEP = 10 * 90_000  # ten seconds between frames; RTP's video clock runs at 90 kHz

_TRIAL = 4  # frames whose marker bits are checked before they are relied on

# Sources whose packets did not come through the connection, so that the relay was useless.
_BESIDE: set[str] = set()
# Sources that ask for digests by SHA-256, and are read through a relay whatever the policy.
_BY_SHA256: set[str] = set()


@dataclass
class _Channel:
    """The state of one interleaved video channel."""

    trial: int  # correctly marked frames still to be seen
    added: int = 0  # packets inserted
    frame: int | None = None  # the last frame's time stamp
    packet: tuple[int, bool] | None = None  # the last packet's time stamp and marker bit
    reliable: bool = True  # whether its marker bits match its time stamps

    def look(self, stamp: int, marker: bool) -> None:
        """Check a packet's time stamp and marker bit against the previous packet's."""
        if self.packet is not None:
            before, ended = self.packet
            ahead = (stamp - before) & 0xFFFFFFFF
            self.reliable = self.reliable and ended == (ahead != 0) and ahead < 1 << 31
        self.packet = (stamp, marker)


class _Connection:
    """The state of one connection."""

    def __init__(self, trial: int = _TRIAL, login: Login | None = None, delimited: bool = True) -> None:
        """``delimited``: whether frames are to be marked; ``login``: what answers the camera, if anything."""
        self.trial, self.login, self.delimited = trial, login, delimited
        self.types: dict[int, bytes] = {}  # video payload types, with their delimiters
        self.channels: dict[int, _Channel] = {}
        self.beside = False  # packets are sent outside it


def with_delimiters(data: bytearray, state: _Connection) -> bytes:
    """Remove the complete messages from the front of ``data`` and return the bytes to pass on instead.

    Args:
        data: received on an RTSP connection (RFC 2326 10.12: ``$``, channel, length, packet; or an answer in
            text); an incomplete message stays in it.
        state: the connection's, updated.

    Raises:
        ValueError: ``data`` is neither.
    """
    out = bytearray()
    for message in messages(data):
        if message[0] == 0x24:
            out += _packet(message, state) if state.delimited else message
            continue
        transport = _TRANSPORT.search(message)
        state.beside |= transport is not None and b"interleaved" not in transport.group(1).lower()
        for kind, name in _RTPMAP.findall(message):
            state.types[int(kind)] = _DELIMITERS[name.decode().upper()]
        out += message if state.login is None else state.login.answer(message)
    return bytes(out)


def _packet(packet: bytes, state: _Connection) -> bytes:
    channel, rtp = packet[1], bytearray(packet[4:])
    if len(rtp) < 12 or rtp[0] >> 6 != 2 or rtp[1] & 0x7F not in state.types or 72 <= rtp[1] & 0x7F <= 76:
        return packet  # audio, or RTCP
    video = state.channels.setdefault(channel, _Channel(state.trial))
    marker, stamp = bool(rtp[1] & 0x80), int.from_bytes(rtp[4:8], "big")
    video.look(stamp, marker)
    number = int.from_bytes(rtp[2:4], "big") + video.added
    rtp[2:4] = (number & 0xFFFF).to_bytes(2, "big")
    passed = packet[:4] + bytes(rtp)
    if not marker or not video.reliable:
        return passed
    last, video.frame = video.frame, stamp
    if video.trial > 0:
        video.trial -= 1
        return passed
    video.added += 1
    # FFmpeg gives the next frame this time stamp, so it is predicted from the last interval.
    step = (stamp - (stamp if last is None else last)) & 0xFFFFFFFF
    if step > _MAX_STEP:  # a clock that jumped
        step = 0
    kind = rtp[1] & 0x7F
    own = bytes((0x80, kind)) + ((number + 1) & 0xFFFF).to_bytes(2, "big")
    own += ((stamp + step) & 0xFFFFFFFF).to_bytes(4, "big") + bytes(rtp[8:12]) + state.types[kind]
    return passed + b"$" + bytes((channel,)) + len(own).to_bytes(2, "big") + own


def escaped(source: str) -> str:
    """The address with user and password percent-encoded, as FFmpeg requires."""
    bare, user, password = split_credentials(source)
    if not user and not password:
        return source
    scheme, _, rest = bare.partition("://")
    secret = f":{quote(password, safe='')}" if password else ""
    return f"{scheme}://{quote(user, safe='')}{secret}@{rest}"


def _low_delay(config: CaptureConfig) -> bool:
    return config.policy == "latest" if config.low_delay is None else config.low_delay


def _own(client: socket.socket) -> bool:
    """Whether the other end of a local connection is this process's too: by the kernel's tables, on Linux."""
    port, here = client.getpeername()[1], client.getsockname()[1]
    try:
        for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            ends = [int(end.rpartition(":")[2], 16) for end in fields[1:3]]
            if ends == [port, here]:
                return f"socket:[{fields[9]}]" in map(_target, Path("/proc/self/fd").iterdir())
    except (OSError, ValueError, IndexError):
        pass
    return True  # no such tables, or the connection is over


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:  # closed meanwhile
        return ""


class RtspRelay:
    """One relayed connection to a camera, on its own threads. FFmpeg opens :attr:`url`."""

    @staticmethod
    def helps(config: CaptureConfig) -> bool:
        """Whether a camera should have a relay, and one would have an effect."""
        wanted = _low_delay(config) and config.source not in _BESIDE
        return config.source.startswith("rtsp://") and (wanted or config.source in _BY_SHA256)

    @staticmethod
    def log_in(config: CaptureConfig) -> bool:
        """Read a camera that asks for SHA-256 through a relay from now on; False: it cannot, or is."""
        if not config.source.startswith("rtsp://") or config.source in _BY_SHA256:
            return False
        _BY_SHA256.add(config.source)
        return True

    def __init__(self, config: CaptureConfig) -> None:
        """Listen on a local port; the camera is contacted when FFmpeg connects.

        Raises:
            SourceError: the address cannot be parsed.
        """
        try:
            parts = urlsplit(escaped(config.source))
            self._target = (parts.hostname or "", parts.port or 554)
        except ValueError as error:
            raise SourceError(
                f"{config.label}: {scrub(str(error))}", "escape its user and password"
            ) from None
        self._source, self._timeout_s = config.source, config.open_timeout_s
        self._login = Login(config.source)
        self._delimited = _low_delay(config)
        self._label = config.label
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(config.open_timeout_s)
        userinfo, at, _ = parts.netloc.rpartition("@")
        here = f"{userinfo}{at}127.0.0.1:{self._listener.getsockname()[1]}"
        self.url = urlunsplit(parts._replace(netloc=here))
        self._threads: list[threading.Thread] = []

    def connect(self) -> None:
        """Connect to the camera; wait for FFmpeg on a thread.

        Raises:
            SourceError: the camera does not answer.
        """
        remedy = "check that the camera is on, and its address"
        try:
            server = socket.create_connection(self._target, self._timeout_s)
        except TimeoutError:
            raise SourceError(f"{self._label}: no answer after {self._timeout_s:.1f} s", remedy) from None
        except OSError as error:
            raise SourceError(f"{self._label}: {scrub(error.strerror or str(error))}", remedy) from None
        self._sockets.append(server)
        run = threading.Thread(target=self._run, args=(server,), name=f"relay {self._label}", daemon=True)
        self._threads.append(run)
        run.start()

    def _run(self, server: socket.socket) -> None:
        """Pass FFmpeg's requests to the camera, and its answers back on another thread."""
        with server, contextlib.suppress(OSError):
            with self._listener:
                client, _ = self._listener.accept()
                while not _own(client):  # another program, which would get the camera's pictures
                    client.close()
                    client, _ = self._listener.accept()
            self._sockets.append(client)
            with client:
                server.settimeout(None)
                client.settimeout(None)
                server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                back = threading.Thread(target=self._back, args=(server, client), daemon=True)
                back.start()
                data = bytearray()
                with contextlib.suppress(OSError, ValueError):
                    while piece := client.recv(1 << 16):
                        data += piece
                        for message in messages(data):
                            server.sendall(self._login.request(message))
                self._end()
                back.join()

    def _back(self, server: socket.socket, client: socket.socket) -> None:
        data, state = bytearray(), _Connection(login=self._login, delimited=self._delimited)
        with contextlib.suppress(OSError, ValueError):
            while piece := server.recv(1 << 16):
                data += piece
                client.sendall(with_delimiters(data, state))
                if state.beside and self._source not in _BY_SHA256:
                    _BESIDE.add(self._source)
                    break
        self._end()

    def _end(self) -> None:
        for end in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connection, and with it the threads."""
        self._end()
        for thread in self._threads:
            thread.join(1.0)
        self._listener.close()
