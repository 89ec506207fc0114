"""Between FFmpeg and an RTSP camera: tells FFmpeg at once that a frame is whole.

FFmpeg's H.264 and H.265 parsers end a frame where the next one begins, so that over RTSP each frame waits for
the next one: 67 ms at 15 frames a second. The camera has said earlier that it is whole, by the marker bit
of its last RTP packet (RFC 6184 5.1, RFC 7798 4.1), which FFmpeg does not look at. Behind each such packet
this relay puts one of its own with an access unit delimiter, with which a next frame may begin: the parser
then hands over what it has. The numbers of the packets that follow are raised, so that none seems lost.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from urllib.parse import urlsplit, urlunsplit

from grmp_edge.errors import SourceError
from grmp_edge.runtime.live_config import CameraConfig
from grmp_edge.runtime.names import scrub

__all__ = ["RtspRelay", "with_delimiters"]

# By encoding: an access unit delimiter that allows any kind of slice (H.264 7.3.2.4; H.265 7.3.2.5).
_DELIMITERS = {"H264": b"\x09\xf0", "H265": b"\x46\x01\x50"}
_RTPMAP = re.compile(rb"a=rtpmap:(\d+) +(H26[45])/90000", re.IGNORECASE)
_MAX_STEP = 10 * 90_000  # RTP's clock runs at 90 kHz for video: frames ten seconds apart
_MAX_TEXT = 1 << 16  # bytes of one answer


class _Numbers:
    """What is known of one connection: the payload types that are video, and how many packets were put in."""

    def __init__(self) -> None:
        self.types: dict[int, bytes] = {}
        self.added: dict[int, int] = {}  # by interleaved channel
        self.last: dict[int, int] = {}  # by channel: the last frame's time stamp


def with_delimiters(data: bytearray, state: _Numbers) -> bytes:
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
        for kind, name in _RTPMAP.findall(data[:size]):
            state.types[int(kind)] = _DELIMITERS[name.decode().upper()]
        out += data[:size]
        del data[:size]
    return bytes(out)


def _packet(packet: bytes, state: _Numbers) -> bytes:
    channel, rtp = packet[1], bytearray(packet[4:])
    if len(rtp) < 12 or rtp[0] >> 6 != 2 or rtp[1] & 0x7F not in state.types or 72 <= rtp[1] & 0x7F <= 76:
        return packet  # sound, or RTCP
    added = state.added.get(channel, 0)
    number = int.from_bytes(rtp[2:4], "big") + added
    rtp[2:4] = (number & 0xFFFF).to_bytes(2, "big")
    passed = packet[:4] + bytes(rtp)
    if not rtp[1] & 0x80:
        return passed
    state.added[channel] = added + 1
    kind = rtp[1] & 0x7F
    # The next frame takes its time stamp from here, so it is foretold: as far on as this one was.
    stamp = int.from_bytes(rtp[4:8], "big")
    step = (stamp - state.last.get(channel, stamp)) & 0xFFFFFFFF
    state.last[channel] = stamp
    if step > _MAX_STEP:  # the first, or a clock that jumped
        step = 0
    own = bytes((0x80, kind)) + ((number + 1) & 0xFFFF).to_bytes(2, "big")
    own += ((stamp + step) & 0xFFFFFFFF).to_bytes(4, "big") + bytes(rtp[8:12]) + state.types[kind]
    return passed + b"$" + bytes((channel,)) + len(own).to_bytes(2, "big") + own


class RtspRelay:
    """One connection through to a camera, on threads of its own. ``url`` is what FFmpeg opens."""

    def __init__(self, config: CameraConfig) -> None:
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
        self._timeout_s = config.open_timeout_s
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
        data, state = bytearray(), _Numbers()
        with contextlib.suppress(OSError, ValueError):
            while piece := server.recv(1 << 16):
                data += piece
                client.sendall(with_delimiters(data, state))
        self._end()

    def _end(self) -> None:
        for end in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connection; its threads end by it."""
        self._end()
        self._threads[0].join(1.0)
