"""The command ``serve``: scores over HTTP."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from grmp_edge.cli_options import Precision, PrecisionOption, Provider, ProviderOption, Threads
from grmp_edge.errors import MissingDependencyError

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command()(serve)


def serve(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder made by grmp-edge export.")],
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
    threads: Threads = None,
) -> None:
    """Score pictures over HTTP until Ctrl-C: POST one to /score."""
    from grmp_edge.runtime import Scorer

    try:
        import uvicorn

        from grmp_edge.runtime.serve import ServeConfig, listen, make_app
    except ModuleNotFoundError as error:
        if error.name in ("fastapi", "uvicorn", "starlette", "anyio"):
            raise MissingDependencyError(error.name, "serve", "serving") from None
        raise

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Ctrl-C and SIGTERM are how it is meant to end; uvicorn would raise them again afterwards."""
            numbers = (signal.SIGINT, signal.SIGTERM)
            before = {number: signal.signal(number, self.handle_exit) for number in numbers}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

    config = ServeConfig(
        host=host,
        port=port,
        token=os.environ.get("GRMP_EDGE_TOKEN", ""),  # not an option: others see those in the process list
        max_body=max_mb << 20,
        max_pixels=max_megapixels * 1_000_000,
        concurrency=concurrency,
    )
    with Scorer.open(bundle, precision.value, provider.value, threads) as scorer, listen(config) as door:
        settings = uvicorn.Config(
            make_app(scorer, config),
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=5,
        )
        shown = f"[{host}]" if ":" in host else host
        at = f"http://{shown}:{door.getsockname()[1]}"
        typer.echo(f"serving {bundle} at {at}; next: curl --data-binary @photo.jpg {at}/score", err=True)
        Server(settings).run(sockets=[door])
