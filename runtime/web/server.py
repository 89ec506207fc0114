"""Runs a web application beside the cameras, on the main thread or on its own."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import math
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import uvicorn

from grmp_edge.runtime.live.live import Live
from grmp_edge.runtime.service import on_end_signals
from grmp_edge.runtime.sinks.queue import QueuedSink, to_record
from grmp_edge.runtime.web.connections import Connection
from grmp_edge.runtime.web.event_stream import Followers
from grmp_edge.runtime.web.guard import Guard

__all__ = ["Server", "address", "cameras_in_background", "in_background"]

_AT_ONCE = 8  # connections taken before those before are looked at: each has a descriptor meanwhile
_BACKLOG = 128  # connections that the system keeps waiting
_TELL_S = 60.0
_GRACE_S = 5  # seconds for answers in progress at shutdown


class Server(uvicorn.Server):
    """uvicorn that ends quietly on a signal, after its event streams, and whose connections are limited."""

    def __init__(
        self,
        app: Guard,
        followers: Followers | None = None,
        *,
        tell: Callable[[str], object] = lambda _: None,
    ) -> None:
        """``tell`` is called with what an operator should know."""
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",
                http=cast(Any, functools.partial(Connection, app.config.connections)),
                ws="none",
                backlog=_AT_ONCE,
                log_level="error",  # below it are lines about requests that are none, as many as anyone likes
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=_GRACE_S,
            )
        )
        self._followers = followers
        self._tell, self._told = tell, -math.inf

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        asyncio.get_running_loop().set_exception_handler(self._failed)
        await super().startup(sockets)
        for door in sockets or ():
            door.listen(_BACKLOG)  # asyncio takes one number for both

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Say that descriptors are short once a minute: asyncio does so thousands of times a second."""
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in (errno.EMFILE, errno.ENFILE):
            loop.default_exception_handler(context)
        elif time.monotonic() - self._told >= _TELL_S:
            self._told = time.monotonic()
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            self._tell(
                f"no connection can be taken: {error.strerror} (the limit is {limit}); "
                "raise it with ulimit -n, or LimitNOFILE= in a systemd unit"
            )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end it normally; uvicorn would raise them again afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        with on_end_signals(self.handle_exit):
            yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the streams first: they never end by themselves, and would delay the shutdown."""
        if self._followers is not None:
            self._followers.close()
        await super().shutdown(sockets)


@contextlib.contextmanager
def in_background(server: Server, door: socket.socket) -> Iterator[None]:
    """Serve on a thread while the block runs."""
    thread = threading.Thread(target=server.run, args=([door],), name="http server", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(_GRACE_S + 2.0)


@contextlib.contextmanager
def cameras_in_background(
    live: Live,
    sinks: Sequence[QueuedSink],
    server: Server,
    errors: list[BaseException],
    over: Callable[[], None],
) -> Iterator[None]:
    """Score live cameras on a thread while the block runs.

    If the network fails, the exception goes into ``errors`` and the server stops too, since it cannot score
    any more. ``over()`` is called on that thread once every camera has ended.
    """
    ending = threading.Event()

    def run() -> None:
        try:
            live.again()  # what was raised before a restart still is
            for event in live.events():
                record = to_record(event)
                for sink in sinks:
                    sink.put(event, record)
            if not ending.is_set():
                over()
        except BaseException as error:  # the main thread reports it
            errors.append(error)
            server.should_exit = True

    thread = threading.Thread(target=run, name="live cameras", daemon=True)
    with live:
        thread.start()
        try:
            yield
        finally:
            ending.set()
            live.stop()
            thread.join(10.0)


def address(host: str, door: socket.socket) -> str:
    """The URL for a browser."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{door.getsockname()[1]}"
