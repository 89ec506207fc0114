"""The command ``serve``: pictures and cameras scored over HTTP; and the live page beside ``watch``."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from grmp_edge.cli.groups import add_command, option
from grmp_edge.cli.live_plan import (
    SourceOptions,
    close_sinks,
    describe_memory,
    plan_streams,
    tell_warning,
)
from grmp_edge.cli.options import BackendOptions, PrecisionOption, model_name
from grmp_edge.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    import socket

    from grmp_edge.runtime import Scorer
    from grmp_edge.runtime.live.config import Streams
    from grmp_edge.runtime.live.live import Live
    from grmp_edge.runtime.sinks.queue import QueuedSink
    from grmp_edge.runtime.web.score_app import ServeConfig

__all__ = ["needs_serve", "register", "serve_beside", "server_token"]


_SHORT = 16  # characters; a shorter token can be found by trying


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    add_command(app, serve, "grmp-edge serve --port 8080")


def serve(
    *,
    given: SourceOptions,
    host: Annotated[
        str,
        option(
            "--host", "Address to listen on; if other machines can reach it, GRMP_EDGE_TOKEN must be set."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, option("--port", "Port to listen on; 0: any free one, printed on stderr.")] = 8080,
    max_mb: Annotated[int, option("--max-mb", "Largest request body, in MB.", min=1)] = 32,
    max_megapixels: Annotated[int, option("--max-megapixels", "Largest picture, in megapixels.", min=1)] = 50,
    max_decoded_mb: Annotated[
        int, option("--max-decoded-mb", "Memory for decoding pictures, in MB, shared by all.", min=64)
    ] = 280,
    concurrency: Annotated[
        int, option("--concurrency", "Requests handled at once; more get status 429.", min=1)
    ] = 8,
    precision: PrecisionOption = "fp32",
    backend: BackendOptions,
) -> None:
    """Score pictures and cameras over HTTP.

    POST a picture to /score. With cameras, also serves a live page of them. Runs until Ctrl-C.
    """
    with needs_serve():
        from grmp_edge.picture_header import PictureLimits
        from grmp_edge.runtime.service import limit_arenas, supervised
        from grmp_edge.runtime.web.score_app import ServeConfig, listen, make_app
        from grmp_edge.runtime.web.server import Server, address

    limit_arenas()
    model, sources = given.named()
    config = ServeConfig(
        host=host,
        port=port,
        token=server_token(),
        max_body=max_mb << 20,
        pictures=PictureLimits(max_megapixels * 1_000_000, max_decoded_mb << 20),
        concurrency=concurrency,
    )
    plan = plan_streams(sources, given.streams) if sources or given.streams else None
    with contextlib.ExitStack() as stack:
        scorer = stack.enter_context(backend.open(model, precision))
        served = model_name(model, scorer.bundle.id)
        door = stack.enter_context(listen(config))
        at = address(host, door)
        if plan is None:
            typer.echo(f"serving {served} at {at}; next: curl --data-binary @photo.jpg {at}/score", err=True)
            with supervised(time.monotonic):
                Server(*make_app(scorer, config), tell=tell_warning).run(sockets=[door])
            return
        count = f"{len(plan.cameras)} camera" + "s" * (len(plan.cameras) != 1)
        typer.echo(f"serving {served} and {count} at {at}; next: open {at}/ in a browser", err=True)
        live, errors = _serve_cameras(stack, scorer, plan, config, door)
    if live.hanging:
        # Python must not end under a thread inside OpenCV, as in grmp-edge watch.
        for error in errors:
            typer.echo(f"error: {error}", err=True)
        sys.stderr.flush()
        os._exit(1 if errors else 0)
    if errors:
        raise errors[0]


def _serve_cameras(
    stack: contextlib.ExitStack, scorer: Scorer, plan: Streams, config: ServeConfig, door: socket.socket
) -> tuple[Live, list[BaseException]]:
    """Serve and watch until a signal ends it; the sinks close with the stack."""
    from grmp_edge.runtime.live.live import Live
    from grmp_edge.runtime.service import supervised
    from grmp_edge.runtime.sinks.make import make_sink
    from grmp_edge.runtime.web.dashboard import Dashboard
    from grmp_edge.runtime.web.score_app import make_app
    from grmp_edge.runtime.web.server import Server, cameras_in_background

    sinks: list[QueuedSink] = []
    stack.callback(close_sinks, sinks)
    for sink in plan.sinks:
        sinks.append(make_sink(sink, tell_warning))
    live = Live(scorer, plan.cameras, plan.live, tell=tell_warning)
    describe_memory(live)
    dashboard = Dashboard(live, sinks)
    sinks.append(dashboard.sink)
    server = Server(*make_app(scorer, config, dashboard), tell=tell_warning)
    errors: list[BaseException] = []
    ended = threading.Event()

    def over() -> None:
        ended.set()
        for status in live.status():
            if status.stats.state.value == "error":
                typer.echo(f"error: {status.stats.detail}", err=True)
        typer.echo("no camera gives frames any more; pictures sent are still scored", err=True)

    with (
        supervised(lambda: time.monotonic() if ended.is_set() else live.beat_s),
        cameras_in_background(live, sinks, server, errors, over),
    ):
        server.run(sockets=[door])
    return live, errors


@contextlib.contextmanager
def serve_beside(live: Live, sinks: Sequence[QueuedSink], where: str) -> Iterator[QueuedSink]:
    """Serve the live page of a watch while the block runs; yields the sink that feeds it.

    Raises:
        UsageError: ``where`` is no address, or is in use, or other machines can reach it and no token is set.
        MissingDependencyError: the extra ``serve`` is not installed.
    """
    with needs_serve():
        from grmp_edge.runtime.web.dashboard import Dashboard
        from grmp_edge.runtime.web.dashboard_app import make_watch_app
        from grmp_edge.runtime.web.score_app import ServeConfig, listen
        from grmp_edge.runtime.web.server import Server, address, in_background

    host, port = _where(where)
    config = ServeConfig(host=host, port=port, token=server_token())
    with listen(config) as door:
        dashboard = Dashboard(live, sinks)
        server = Server(*make_watch_app(dashboard, config), tell=tell_warning)
        typer.echo(f"live page at {address(host, door)}/", err=True)
        with in_background(server, door):
            yield dashboard.sink


def server_token() -> str:
    """The token that the environment sets; empty: none."""
    # Not an option: the process list would show it to other users.
    token = os.environ.get("GRMP_EDGE_TOKEN", "")
    if 0 < len(token) < _SHORT:
        tell_warning(f"GRMP_EDGE_TOKEN has {len(token)} characters; make one with: openssl rand -hex 16")
    return token


def _where(text: str) -> tuple[str, int]:
    """Split HOST:PORT or [IPV6]:PORT; a bare PORT is on 127.0.0.1."""
    host, _, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not port.isascii() or not port.isdigit() or (":" in bare and not host.startswith("[")):
        raise UsageError(f"--http {text}: no address", "write 8080, 127.0.0.1:8080 or [::1]:8080")
    return bare or "127.0.0.1", int(port)


@contextlib.contextmanager
def needs_serve() -> Iterator[Any]:
    """Name the extra to install if a part of the server is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name in ("fastapi", "uvicorn", "starlette", "anyio"):
            raise MissingDependencyError(error.name, "serve", "serving") from None
        raise
