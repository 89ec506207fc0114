"""Connections: how many there may be, and how long one may take to ask for something."""

from __future__ import annotations

import asyncio
import ipaddress
import resource
import time
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["Connection", "ConnectionLimits", "peer_of"]

_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)


@dataclass(frozen=True)
class ConnectionLimits:
    """What clients may take before they are known."""

    # At once, or as many as half of the descriptors. Not hundreds more: parts of OpenCV and of the MQTT
    # client cannot use a descriptor above 1023.
    most: int = 256
    of_peer: int = 128  # of one address: a proxy in front of it is one, and so is an office behind a router
    # For a whole header, and for bytes that nobody has asked for: a phone on a bad line takes two.
    header_s: float = 10.0

    @property
    def room(self) -> int:
        """How many connections the descriptors suffice for: cameras and sinks need some again and again."""
        return min(self.most, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)


def peer_of(host: str) -> str:
    """Whom an address belongs to: an IPv6 network of 64 bits is one subscriber's."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(address.ipv4_mapped or ipaddress.ip_network((int(address), 64), strict=False))


class Connection(H11Protocol):
    """uvicorn's connection, with a place among the others and a time in which to ask.

    Where there is no place, the one that has waited longest without a request has to go: so whoever opens
    connections and says nothing keeps nobody else out. Where all are at work, the new one is refused.
    """

    def __init__(self, limits: ConnectionLimits, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._since = time.monotonic()  # of the connection, or of the end of its last request
        self._due: asyncio.TimerHandle | None = None
        self.peer = ""

    @property
    def working(self) -> bool:
        """Whether a request is in progress."""
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a place, or leave."""
        super().connection_made(transport)
        self.peer = peer_of(self.client[0]) if self.client else ""
        others = [one for one in self.connections if isinstance(one, Connection) and one.open and one != self]
        same = [one for one in others if one.peer == self.peer]
        for group, room in ((same, self._limits.of_peer), (others, self._limits.room)):
            if len(group) < room:
                continue
            idle = [one for one in group if one.open and not one.working]
            if not idle:
                transport.write(_FULL)
                transport.close()
                return
            min(idle, key=lambda one: one._since).drop()
        self._expect()

    @property
    def open(self) -> bool:
        """Whether it counts."""
        return not self.transport.is_closing()

    def drop(self) -> None:
        """End it, whatever is under way."""
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Read on; a header, once begun, has to end in time."""
        if not self.open:
            return
        super().data_received(data)
        if self.working:
            self._expect(False)
        elif self._due is None:
            self._expect()

    def on_response_complete(self) -> None:
        """Wait for the next request; whatever the last one's body still brings does not count as one."""
        self._since = time.monotonic()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the place back."""
        self._expect(False)
        super().connection_lost(exc)

    def _expect(self, request: bool = True) -> None:
        """Wait for a request for so long; or, with False, not any more."""
        if self._due is not None:
            self._due.cancel()
        self._due = self.loop.call_later(self._limits.header_s, self.drop) if request else None
