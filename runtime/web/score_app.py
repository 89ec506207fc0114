"""Scoring over HTTP: pictures in, scores out, KServe v2 health and metadata, metrics for Prometheus."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Sequence

import anyio
import anyio.to_thread
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import UploadFile

from grmp_edge.errors import GrmpError, ImageError, UsageError
from grmp_edge.picture_header import TooLargeError, UnknownKindError
from grmp_edge.runtime.scorer import Scorer
from grmp_edge.runtime.web import prometheus
from grmp_edge.runtime.web.dashboard import Dashboard
from grmp_edge.runtime.web.dashboard_app import EVENTS, add_dashboard, add_health, add_metrics
from grmp_edge.runtime.web.decoding import Decoders
from grmp_edge.runtime.web.event_stream import Followers
from grmp_edge.runtime.web.guard import Guard, ServeConfig
from grmp_edge.runtime.web.kserve import MODEL, add_kserve
from grmp_edge.runtime.web.openapi import BATCH, SCORE, add_docs, new_app
from grmp_edge.score import Origin, Score

__all__ = ["MODEL", "ServeConfig", "listen", "make_app"]

SILENT_MS = 30_000  # longer than a phone takes from one network to another


def make_app(
    scorer: Scorer, config: ServeConfig, dashboard: Dashboard | None = None
) -> tuple[Guard, Followers]:
    """The ASGI application and its event streams; the caller closes the scorer.

    Routes: ``POST /score`` (an encoded picture as the body, or a form's one file), ``POST /batch`` (a form's
    files), ``GET /metrics``, those of KServe v2 (:mod:`~grmp_edge.runtime.web.kserve`), ``/docs``,
    ``/openapi.json``, ``/healthz`` and ``/readyz``.
    ``?camera=NAME`` names the picture's source, in the answer and in the metrics' camera label;
    ``?tiles=1`` asks for the score of each native crop.
    With a dashboard its routes too (:func:`~grmp_edge.runtime.web.dashboard_app.add_dashboard`).
    """
    metrics = prometheus.RequestMetrics(scorer) if prometheus.AVAILABLE else None
    limiter = anyio.CapacityLimiter(config.workers)
    decoders = Decoders(scorer.bundle.preprocess, config.pictures, config.workers)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with decoders:
            decoders.start()
            yield

    app = new_app("grmp-edge", lifespan=lifespan)

    def work(pictures: Sequence[bytes], names: Sequence[str], tiles: bool) -> list[Score | GrmpError]:
        prepared, results = [], dict[int, Score | GrmpError]()
        for index, data in enumerate(pictures):
            try:
                prepared.append((index, decoders.views(data, names[index])))
            except GrmpError as error:
                results[index] = error
        start = time.perf_counter()
        origins = [Origin(names[index]) for index, _ in prepared]
        scores = scorer.score_prepared(origins, [views for _, views in prepared], tiles)
        if prepared and metrics is not None:
            metrics.inference(time.perf_counter() - start)
        results.update({index: score for (index, _), score in zip(prepared, scores, strict=True)})
        return [results[index] for index in range(len(pictures))]

    async def run(
        pictures: Sequence[bytes], names: Sequence[str], request: Request
    ) -> list[Score | GrmpError]:
        camera, tiles = _camera(request), request.query_params.get("tiles", "0") not in ("", "0", "false")
        results = await anyio.to_thread.run_sync(work, pictures, names, tiles, limiter=limiter)
        if metrics is not None:
            for result in results:
                metrics.result(camera, result)
        return results

    @app.post("/score", **SCORE)
    async def score(request: Request) -> Response:
        """The score of one picture: its bytes as the body, or a form with one file."""
        if request.headers.get("content-type", "").startswith("multipart/form-data"):
            async with request.form(max_files=1, max_fields=0) as form:
                files = [file for _, file in form.multi_items() if isinstance(file, UploadFile)]
                data, name = (await files[0].read(), files[0].filename) if files else (b"", None)
        else:
            data, name = await request.body(), None
        (result,) = await run([data], [_camera(request) or name or "upload"], request)
        if isinstance(result, Score):
            return Response(result.to_json(), media_type="application/json")
        return JSONResponse({"detail": str(result)}, _status(result))

    @app.post("/batch", **BATCH)
    async def batch(request: Request) -> Response:
        """The scores of a form's files, in their order."""
        async with request.form(max_files=config.max_batch, max_fields=0) as form:
            files = [file for _, file in form.multi_items() if isinstance(file, UploadFile)]
            pictures = [await file.read() for file in files]
        names = [file.filename or f"image {index}" for index, file in enumerate(files)]
        if not files:
            return JSONResponse({"detail": "no files; send multipart/form-data (curl -F a=@1.jpg)"}, 422)
        results = await run(pictures, names, request)
        body = ",".join(
            result.to_json() if isinstance(result, Score) else _failure(name, result)
            for name, result in zip(names, results, strict=True)
        )
        return Response(f'{{"results":[{body}]}}', media_type="application/json")

    add_kserve(app, scorer, run, limiter, config.max_batch)
    add_metrics(app, metrics, None if dashboard is None else dashboard.metrics)
    add_health(app, (lambda: True) if dashboard is None else dashboard.ready)
    followers = Followers() if dashboard is None else add_dashboard(app, dashboard, config)

    add_docs(app)

    def answered(path: str, status: int, seconds: float) -> None:
        if metrics is not None:
            # Any other path was made up by a client; a stream lasts as long as its reader stays.
            known = path if path in routes else "other"
            metrics.answered(known, status, None if known == EVENTS else seconds)

    routes = {getattr(route, "path", "") for route in app.routes}
    return Guard(app, config, answered), followers


def _status(error: GrmpError) -> int:
    kinds = ((TooLargeError, 413), (UnknownKindError, 415), (ImageError, 422))
    return next((status for kind, status in kinds if isinstance(error, kind)), 500)


def _failure(name: str, error: GrmpError) -> str:
    return json.dumps({"source": name, "error": str(error), "status": _status(error)})


def _camera(request: Request) -> str:
    return request.query_params.get("camera", "")[:80]


def listen(config: ServeConfig) -> socket.socket:
    """Open the socket to listen on.

    Raises:
        UsageError: the address is taken, or not an address of this machine.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        door = socket.create_server((config.host, config.port), family=family, backlog=128)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {config.host}:{config.port} ({error.strerror or error})",
            "choose another port",
        ) from None
    # A phone may leave the network silently, and a client may stop reading. Connections inherit this limit:
    # they are dropped when sent data is not taken for this long, not after a quarter of an hour or never.
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        door.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENT_MS)
    return door
