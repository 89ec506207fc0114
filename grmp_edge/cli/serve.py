"""The command serve: scores over HTTP, of pictures sent to it and of cameras; and the page beside a watch."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from grmp_edge.cli.options import (
    AllowCpu,
    Precision,
    PrecisionOption,
    Provider,
    ProviderOption,
    StreamsFile,
    Threads,
    named_bundle,
    open_scorer,
)
from grmp_edge.cli.watch import close_sinks, plan_streams
from grmp_edge.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    import socket

    from grmp_edge.runtime import Scorer
    from grmp_edge.runtime.live.config import Streams
    from grmp_edge.runtime.live.live import Live
    from grmp_edge.runtime.sinks.queue import QueuedSink
    from grmp_edge.runtime.web.score_app import ServeConfig

__all__ = ["register", "serve_beside"]


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command()(serve)


def serve(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[BUNDLE] [SOURCE...]",
            help="Folder made by grmp-edge export (without it, the model that ships); then cameras to score "
            "as well, named as for grmp-edge watch.",
        ),
    ] = None,
    streams: StreamsFile = None,
    host: Annotated[
        str, typer.Option("--host", help="Where to listen; wider than this machine needs GRMP_EDGE_TOKEN.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="0: any free one, which is told on stderr.")] = 8080,
    max_mb: Annotated[int, typer.Option("--max-mb", min=1, help="Largest request body, in MB.")] = 32,
    max_megapixels: Annotated[
        int, typer.Option("--max-megapixels", min=1, help="Largest picture, told by its header.")
    ] = 50,
    concurrency: Annotated[
        int, typer.Option("--concurrency", min=1, help="Requests at once; more are answered 429.")
    ] = 8,
    precision: PrecisionOption = Precision.fp32,
    provider: ProviderOption = Provider.auto,
    allow_cpu: AllowCpu = False,
    threads: Threads = None,
) -> None:
    """Score pictures over HTTP until Ctrl-C: POST one to /score. With cameras, also a live page of them."""
    with _needs_serve():
        from grmp_edge.runtime.service import limit_arenas, supervised
        from grmp_edge.runtime.web.score_app import ServeConfig, listen, make_app
        from grmp_edge.runtime.web.server import Server, address

    limit_arenas()
    bundle, sources = named_bundle(arguments)
    config = ServeConfig(
        host=host,
        port=port,
        token=_token(),
        max_body=max_mb << 20,
        max_pixels=max_megapixels * 1_000_000,
        concurrency=concurrency,
    )
    plan = plan_streams(sources, streams, {}, {}, None) if sources or streams else None
    with contextlib.ExitStack() as stack:
        scorer = stack.enter_context(open_scorer(bundle, precision, provider, threads, allow_cpu))
        door = stack.enter_context(listen(config))
        at = address(host, door)
        if plan is None:
            typer.echo(f"serving {bundle} at {at}; next: curl --data-binary @photo.jpg {at}/score", err=True)
            with supervised(time.monotonic):
                Server(*make_app(scorer, config)).run(sockets=[door])
            return
        count = f"{len(plan.cameras)} camera" + "s" * (len(plan.cameras) != 1)
        typer.echo(f"serving {bundle} and {count} at {at}; next: open {at}/ in a browser", err=True)
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
    """Serve and watch until it is told to end; the sinks are closed with the stack."""
    from grmp_edge.runtime.live.live import Live
    from grmp_edge.runtime.service import supervised
    from grmp_edge.runtime.sinks.make import make_sink
    from grmp_edge.runtime.web.dashboard import Dashboard
    from grmp_edge.runtime.web.score_app import make_app
    from grmp_edge.runtime.web.server import Server, cameras_in_background

    sinks: list[QueuedSink] = []
    stack.callback(close_sinks, sinks)
    for sink in plan.sinks:
        sinks.append(make_sink(sink))
    live = Live(scorer, plan.cameras, plan.live)
    dashboard = Dashboard(live, sinks)
    sinks.append(dashboard.sink)
    server = Server(*make_app(scorer, config, dashboard))
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
    """Serve the page of a watch while the block runs; gives the sink that it learns from.

    Raises:
        UsageError: ``where`` is no address, is taken, or can be reached from elsewhere and there is no token.
        MissingDependencyError: the extra ``serve`` is not installed.
    """
    with _needs_serve():
        from grmp_edge.runtime.web.dashboard import Dashboard
        from grmp_edge.runtime.web.dashboard_app import make_watch_app
        from grmp_edge.runtime.web.score_app import ServeConfig, listen
        from grmp_edge.runtime.web.server import Server, address, in_background

    host, port = _where(where)
    config = ServeConfig(host=host, port=port, token=_token())
    with listen(config) as door:
        dashboard = Dashboard(live, sinks)
        server = Server(*make_watch_app(dashboard, config))
        typer.echo(f"live page at {address(host, door)}/", err=True)
        with in_background(server, door):
            yield dashboard.sink


def _token() -> str:
    # Not an option: others see those in the process list.
    return os.environ.get("GRMP_EDGE_TOKEN", "")


def _where(text: str) -> tuple[str, int]:
    """HOST:PORT, [IPV6]:PORT, or a PORT of this machine alone."""
    host, _, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not port.isascii() or not port.isdigit() or (":" in bare and not host.startswith("[")):
        raise UsageError(f"--http {text}: no address", "write 8080, 127.0.0.1:8080 or [::1]:8080")
    return bare or "127.0.0.1", int(port)


@contextlib.contextmanager
def _needs_serve() -> Iterator[Any]:
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name in ("fastapi", "uvicorn", "starlette", "anyio"):
            raise MissingDependencyError(error.name, "serve", "serving") from None
        raise
