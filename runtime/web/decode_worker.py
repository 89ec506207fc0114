"""A process that decodes strangers' pictures, started by :mod:`grmp_edge.runtime.web.decoding`.

A decoder that is tricked into asking for gigabytes is refused them by the system, and one that crashes takes
nothing else with it. What comes back are the network's views, numbers and text: nothing to be unpickled.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import resource
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2

from grmp_edge.errors import DamagedError, ImageError
from grmp_edge.preprocess import Preprocess, decode_image

__all__ = ["FAILED", "REPLY", "REQUEST", "VIEWS", "received"]

REQUEST = struct.Struct("<QQ")  # bytes of memory it may take, bytes of the picture that follows
REPLY = struct.Struct("<BQQ")  # VIEWS, height and width of the picture; or FAILED, 0, bytes of the reason
VIEWS, FAILED = 0, 1

_TRIM_FROM = 64 << 20  # bytes that a picture took, from which on the C library is asked to give them back


def received(door: socket.socket, size: int) -> bytearray:
    """``size`` bytes from a socket; fewer only at its end."""
    data = bytearray(size)
    view, got = memoryview(data), 0
    while got < size:
        count = door.recv_into(view[got:])
        if not count:
            return data[:got]
        got += count
    return data


def _work(door: socket.socket, preprocess: Preprocess) -> None:
    while len(head := received(door, REQUEST.size)) == REQUEST.size:
        memory, size = REQUEST.unpack(head)
        data = bytes(received(door, size))
        if len(data) < size:
            return
        try:
            with _at_most(memory):
                image = decode_image(data, name="")
                views, (height, width) = preprocess.views(image).pixels, image.shape[:2]
                del image
            door.sendall(REPLY.pack(VIEWS, height, width))
            door.sendall(views.data)
        except (ImageError, MemoryError, cv2.error) as error:
            reason = []
            if isinstance(error, ImageError):
                damaged = "damaged" if isinstance(error, DamagedError) else ""
                reason = [error.message.removeprefix(": "), error.remedy, damaged]
            text = json.dumps(reason).encode("ascii")
            door.sendall(REPLY.pack(FAILED, 0, len(text)) + text)
        if memory > _TRIM_FROM:
            del data
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def _at_most(memory: int) -> Iterator[None]:
    """Let this process have no more than ``memory`` bytes beyond what it has, while the block runs."""
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _main() -> None:
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # it ends with the server, whose picture it may be decoding
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(1)  # the server has as many workers as it decodes pictures at once
    with (
        socket.socket(fileno=int(sys.argv[1])) as door,
        contextlib.suppress(BrokenPipeError, ConnectionResetError),
    ):
        _work(door, Preprocess(*map(int, sys.argv[2:])))


if __name__ == "__main__":
    _main()
