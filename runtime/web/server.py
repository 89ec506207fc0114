"""Runs a web application beside the cameras, on the main thread or on its own."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Sequence

import uvicorn

from grmp_edge.runtime.live.live import Live
from grmp_edge.runtime.service import on_end_signals
from grmp_edge.runtime.sinks.queue import QueuedSink, to_record
from grmp_edge.runtime.web.event_stream import Followers
from grmp_edge.runtime.web.guard import Guard

__all__ = ["Server", "address", "cameras_in_background", "in_background"]

_GRACE_S = 5  # seconds for answers in progress at shutdown


class Server(uvicorn.Server):
    """uvicorn that ends quietly on a signal, after its event streams."""

    def __init__(self, app: Guard, followers: Followers | None = None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=_GRACE_S,
            )
        )
        self._followers = followers

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
