"""Decoding strangers' pictures in processes of their own, within a memory budget that they share."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path

import numpy as np

import grmp_edge
from grmp_edge.errors import BackendError, DamagedError, ImageError
from grmp_edge.files import Closing
from grmp_edge.picture_header import PictureLimits
from grmp_edge.preprocess import Preprocess
from grmp_edge.runtime.web.decode_worker import FAILED, REPLY, REQUEST, received
from grmp_edge.views import Views, spread

__all__ = ["Decoders"]

_OVERHEAD = (
    24 << 20
)  # bytes beside a picture's: the decoder's tables, the views, what the allocator rounds up
_MAX_REASON = 1 << 16  # bytes
_TIMEOUT_S = 30.0  # for one picture; the slowest kinds of 50 megapixels take five
_NOTHING = subprocess.DEVNULL
_WORKER = "grmp_edge.runtime.web.decode_worker"
_SECRETS = ("GRMP_EDGE_TOKEN",)  # a process that a stranger might take over need not know them


class Decoders(Closing):
    """So many processes, for as many threads; each is started by :meth:`start`, or when it is needed."""

    def __init__(self, preprocess: Preprocess, limits: PictureLimits, count: int) -> None:
        """``count``: the threads that call :meth:`views` at once."""
        self._preprocess, self._limits = preprocess, limits
        self._budget = _Budget(limits.memory)
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(count):
            self._idle.put(None)

    def start(self) -> None:
        """Start all processes; returns before they are ready."""
        with contextlib.ExitStack() as stack:
            for _ in range(self._idle.qsize()):
                stack.enter_context(self._worker())

    def views(self, data: bytes, name: str) -> Views:
        """Check a picture's header, decode it elsewhere, and return what the network reads of it.

        Raises:
            ImageError: it is not a picture, or beyond the limits; the message begins with ``name``.
            BackendError: a process cannot be started.
        """
        header = self._limits.check(data, name)
        whole = self._limits.memory
        needed = min(header.memory + header.memory // 8 + _OVERHEAD, whole)
        reason: list[str] = []
        # What a header says and what a decoder needs are two things: with little, then with all there is.
        for memory in dict.fromkeys((needed, whole)):
            with self._budget.taken(memory), self._worker() as worker:
                answer = worker.ask(data, memory)
            if isinstance(answer, Views):
                return answer
            reason = answer
        message, remedy, damaged = reason or (
            f"cannot be decoded within {whole >> 20} MB",
            "send a simpler picture",
            "",
        )
        raise (DamagedError if damaged else ImageError)(f"{name}: {message}", remedy)

    @contextlib.contextmanager
    def _worker(self) -> Iterator[_Worker]:
        worker = self._idle.get()
        try:
            if worker is None or worker.broken:
                worker = _Worker(self._preprocess, self._limits.pixels)
            yield worker
        finally:
            self._idle.put(worker)  # a broken one too, in whose place another is started

    def close(self) -> None:
        """End the processes; those that decode now end with it."""
        with contextlib.suppress(queue.Empty):
            while True:
                worker = self._idle.get_nowait()
                if worker is not None:
                    worker.close()


class _Budget:
    """Bytes that are taken and given back; who asks for many is served in turn, not when nobody else asks."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._turn = threading.Lock()
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """Wait for ``size`` bytes, and have them while the block runs."""
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._free >= size)
            self._free -= size
        try:
            yield
        finally:
            with self._changed:
                self._free += size
                self._changed.notify()


class _Worker(Closing):
    """One process, and the socket to it. Used by one thread at a time."""

    def __init__(self, preprocess: Preprocess, max_pixels: int) -> None:
        self.broken = False
        self._preprocess = preprocess
        self._door, theirs = socket.socketpair()
        self._door.settimeout(_TIMEOUT_S)
        home = str(Path(grmp_edge.__file__).resolve().parent.parent)
        path = os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {key: value for key, value in os.environ.items() if key not in _SECRETS} | {
            "PYTHONPATH": path,
            "OPENCV_IO_MAX_IMAGE_PIXELS": str(max_pixels),
            "OPENBLAS_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", _WORKER, str(theirs.fileno()), *map(str, astuple(preprocess))]
        try:
            with theirs:
                # Their stderr is what C libraries say of a damaged picture.
                self._process = subprocess.Popen(
                    command, stdin=_NOTHING, stdout=_NOTHING, stderr=_NOTHING,
                    pass_fds=[theirs.fileno()], env=environment,
                )  # fmt: skip
        except OSError as error:
            self._door.close()
            raise BackendError(f"no process to decode pictures can be started ({error.strerror})") from None

    def ask(self, data: bytes, memory: int) -> Views | list[str]:
        """The views of an encoded picture; or why not, the remedy, and "damaged"; or []: out of memory."""
        try:
            self._door.sendall(REQUEST.pack(memory, len(data)))
            self._door.sendall(data)
            kind, height, size = REPLY.unpack(self._read(REPLY.size))
            if kind == FAILED:
                reason: list[str] = json.loads(self._read(min(size, _MAX_REASON)))
                return reason
            side = self._preprocess.crop
            boxes = spread(height, size, self._preprocess.native, side)
            shape = (1 + len(boxes), side, side, 3)
            pixels = np.frombuffer(self._read(int(np.prod(shape))), np.uint8)
            return Views(pixels.reshape(shape), boxes)
        except (OSError, ValueError, struct.error):  # it crashed, hangs, or was ended for its memory
            self.close()
            return []

    def _read(self, size: int) -> bytearray:
        data = received(self._door, size)
        if len(data) < size:
            raise ConnectionResetError
        return data

    def close(self) -> None:
        """End the process."""
        self.broken = True
        self._door.close()
        self._process.kill()
        self._process.wait()
