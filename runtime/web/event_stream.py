"""Server-sent events at a bounded cost: no queues, few followers, and no waiting for slow ones."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import anyio.to_thread
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

__all__ = ["EventsConfig", "Followers"]


@dataclass(frozen=True)
class EventsConfig:
    """How pages are kept up to date. Times are in seconds."""

    # Enough for a wall of screens and a few phones; a browser opens at most six connections per host.
    max_followers: int = 16
    # Each message is complete, so a lost one does no harm; it also serves as the heartbeat.
    period_s: float = 1.0
    retry_s: float = 3.0  # when a browser reconnects after the connection broke


class Followers:
    """All open event streams. Used only on the server's event loop.

    Nothing is queued: a follower gets the current state once its connection has taken the message before.
    A slow one gets fewer messages; one that reads nothing holds one message and its place until the system
    drops its connection (:func:`grmp_edge.runtime.web.score_app.listen` says when).
    """

    def __init__(self, config: EventsConfig | None = None) -> None:
        self.config = config or EventsConfig()
        self.count = 0
        self._closing = asyncio.Event()

    def close(self) -> None:
        """End all streams, so that a server can stop."""
        self._closing.set()

    def follow(self, message: Callable[[], Mapping[str, object]]) -> Response:
        """A response that sends ``message()``, called on a worker thread, again and again; 503 when full."""
        if self.count >= self.config.max_followers:
            detail = f"{self.count} pages follow already; close one"
            return JSONResponse({"detail": detail}, 503, {"Retry-After": "5"})
        return _Stream(self, message)

    async def run(self, message: Callable[[], Mapping[str, object]], receive: Receive, send: Send) -> None:
        """Serve one follower until it disconnects."""
        self.count += 1
        gone = asyncio.ensure_future(_disconnected(receive))
        closing = asyncio.ensure_future(self._closing.wait())
        clock = asyncio.get_running_loop().time
        body = f"retry: {self.config.retry_s * 1000:.0f}\n\n".encode()
        try:
            while not (gone.done() or closing.done()):
                began = clock()
                data = await anyio.to_thread.run_sync(message)
                body += (
                    b"data: " + json.dumps(data, separators=(",", ":"), allow_nan=False).encode() + b"\n\n"
                )
                # Waits while the connection's buffer is full; returns when the connection is gone.
                await send({"type": "http.response.body", "body": body, "more_body": True})
                body = b""
                rest = max(0.0, began + self.config.period_s - clock())
                await asyncio.wait({gone, closing}, timeout=rest, return_when=asyncio.FIRST_COMPLETED)
            if not gone.done():
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self.count -= 1
            for task in (gone, closing):
                task.cancel()
            await asyncio.gather(gone, closing, return_exceptions=True)


class _Stream(Response):
    media_type = "text/event-stream"

    def __init__(self, followers: Followers, message: Callable[[], Mapping[str, object]]) -> None:
        # Without no-transform, proxies buffer a stream to compress it; nginx has its own header.
        super().__init__(headers={"Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._followers, self._message = followers, message

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await self._followers.run(self._message, receive, send)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
