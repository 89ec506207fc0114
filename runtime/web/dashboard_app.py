"""The dashboard over HTTP: its page, the JSON it reads, its pictures, health, and the login."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import anyio.to_thread
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from grmp_edge.errors import MissingDependencyError
from grmp_edge.runtime.web import prometheus
from grmp_edge.runtime.web.dashboard import STEPS, Cursor, Dashboard
from grmp_edge.runtime.web.event_stream import Followers
from grmp_edge.runtime.web.guard import LOGIN, LOGOUT, Guard, ServeConfig, clear_cookie, session_cookie
from grmp_edge.runtime.web.openapi import JPEG, JSON_BODY, LOGIN_BODY, answers, new_app
from grmp_edge.runtime.web.prometheus import CameraMetrics, RequestMetrics

__all__ = [
    "EVENTS",
    "FRESH",
    "add_dashboard",
    "add_files",
    "add_health",
    "add_login",
    "add_metrics",
    "is_json",
    "make_watch_app",
]

EVENTS = "/v1/events"
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_METRICS = answers(401) | {501: {"description": "prometheus_client is not installed"}}
_STREAM = answers(401, 429, content={"text/event-stream": {}}, description="server-sent events")
_STATIC = Path(__file__).resolve().parent.parent / "static"
_KINDS = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FIRST_PICTURE_S = 3.0  # how long the first request waits for a frame

# Nothing from other hosts, nothing inline, and text never becomes markup, such as a camera's name.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
SAFE = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
FRESH = {"Cache-Control": "no-store", **SAFE}


def make_watch_app(dashboard: Dashboard, config: ServeConfig) -> tuple[Guard, Followers]:
    """The ASGI application of ``watch --http``: the dashboard, ``/metrics`` and health, but no scoring."""
    app = new_app("grmp-edge watch", openapi_url=None)
    followers = add_dashboard(app, dashboard, config)
    add_health(app, dashboard.ready)
    add_metrics(app, dashboard.metrics)
    return Guard(app, config, lambda path, status, seconds: None), followers


def add_health(app: FastAPI, ready: Callable[[], bool]) -> None:
    """Add ``/healthz`` (200 while the server runs) and ``/readyz`` (503 unless ``ready()``)."""

    @app.get("/healthz")
    async def healthz() -> dict[str, bool]:
        return {"live": True}

    @app.get("/readyz", responses={503: {"description": "not yet, or no more"}})
    async def readyz(response: Response) -> dict[str, bool]:
        is_ready = await anyio.to_thread.run_sync(ready)
        response.status_code = 200 if is_ready else 503
        return {"ready": is_ready}


def add_metrics(app: FastAPI, *metrics: RequestMetrics | CameraMetrics | None) -> None:
    """Add ``/metrics``: 501 and the remedy where prometheus_client is not installed."""

    def text() -> str:
        return "".join(part.text() for part in metrics if part is not None)

    @app.get("/metrics", response_class=PlainTextResponse, responses=_METRICS)
    async def scrape() -> Response:
        if not prometheus.AVAILABLE:
            error = MissingDependencyError("prometheus_client", "serve", "/metrics")
            return PlainTextResponse(f"{error}\n", 501)
        return PlainTextResponse(await anyio.to_thread.run_sync(text), media_type=METRICS_TYPE)


def add_dashboard(app: FastAPI, dashboard: Dashboard, config: ServeConfig) -> Followers:
    """Add the page, its events, the JSON API and the login; close the returned followers on shutdown.

    Routes: ``GET /``, ``/static/...``, ``/v1/events`` (server-sent), ``/v1/cameras``,
    ``/v1/cameras/{name}/history?since=&step=``, ``/v1/cameras/{name}/thumbnail.jpg``,
    ``/v1/cameras/{name}/usual``, ``/v1/alerts/{number}.jpg``,
    ``POST /v1/cameras/{name}/accept`` (what it shows now is its normal),
    ``POST /v1/alerts/again`` (all states and alerts to the sinks, once more),
    ``POST /v1/login``, ``/v1/logout``. A camera is addressed by its name or its id.
    """
    followers = Followers()
    dashboard.count_clients = lambda: followers.count
    add_files(app)
    add_login(app, config.token)

    def update(cursor: Cursor) -> Mapping[str, object]:
        dashboard.thumbnails.watch()
        return {**dashboard.update(cursor), "login": bool(config.token)}

    @app.get(EVENTS, response_class=Response, responses=_STREAM)
    async def events() -> Response:
        cursor = dashboard.cursor()
        answer = followers.follow(lambda: update(cursor))
        answer.headers.update(SAFE)
        return answer

    @app.get("/v1/cameras", responses=answers(401))
    async def cameras() -> Response:
        states = await anyio.to_thread.run_sync(dashboard.cameras)
        return JSONResponse({"cameras": states}, headers=FRESH)

    @app.get("/v1/cameras/{name:path}/history", responses=answers(401, 404, 422))
    async def history(name: str, since: float = 0.0, step: int = 1) -> Response:
        camera = dashboard.find(name)
        if camera is None:
            return _unknown()
        if step not in STEPS or not 0 <= since < 1e12:
            words = " or ".join(map(str, STEPS))
            return JSONResponse({"detail": f"step is {words}, since seconds since 1970"}, 422, FRESH)
        scores = await anyio.to_thread.run_sync(dashboard.history, camera, since, step)
        return JSONResponse(scores, headers=FRESH)

    @app.get("/v1/cameras/{name:path}/usual", responses=answers(401, 404))
    async def usual(name: str) -> Response:
        camera = dashboard.find(name)
        return _unknown() if camera is None else JSONResponse(dashboard.usual(camera), headers=FRESH)

    @app.get("/v1/alerts/{number}.jpg", **JPEG)
    async def alert_picture(number: int) -> Response:
        picture = dashboard.picture(number)
        if picture is None:
            return JSONResponse({"detail": "no picture of this alert"}, 404, FRESH)
        return Response(picture, media_type="image/jpeg", headers=FRESH)

    @app.post(
        "/v1/cameras/{name:path}/accept",
        status_code=204,
        responses=answers(401, 403, 404, 422),
        openapi_extra=JSON_BODY,
    )
    async def accept(name: str, request: Request) -> Response:
        camera = dashboard.find(name)
        if camera is None:
            return _unknown()
        if not is_json(request):
            return JSONResponse({"detail": "send JSON: {}"}, 422, FRESH)
        dashboard.accept(camera)
        return Response(status_code=204, headers=FRESH)

    @app.post("/v1/alerts/again", status_code=204, responses=answers(401, 403, 422), openapi_extra=JSON_BODY)
    async def again(request: Request) -> Response:
        if not is_json(request):
            return JSONResponse({"detail": "send JSON: {}"}, 422, FRESH)
        dashboard.again()
        return Response(status_code=204, headers=FRESH)

    @app.get("/v1/cameras/{name:path}/thumbnail.jpg", **JPEG)
    async def thumbnail(name: str, request: Request) -> Response:
        camera = dashboard.find(name)
        if camera is None:
            return _unknown()
        picture = await anyio.to_thread.run_sync(dashboard.thumbnails.get, camera)
        for _ in range(round(_FIRST_PICTURE_S / 0.1)):
            if picture is not None:
                break
            await anyio.sleep(0.1)
            picture = await anyio.to_thread.run_sync(dashboard.thumbnails.get, camera)
        if picture is None:
            detail = "no picture of this camera yet"
            return JSONResponse({"detail": detail}, 404, {"Retry-After": "5", **FRESH})
        tag = f'"{dashboard.clock.read()[0]}-{picture.number}"'
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={"ETag": tag, **FRESH})
        return Response(picture.jpeg, media_type="image/jpeg", headers={"ETag": tag, **FRESH})

    return followers


def is_json(request: Request) -> bool:
    """Whether a request carries JSON: what no form of another site can send."""
    return request.headers.get("content-type", "").partition(";")[0].strip() == "application/json"


def _unknown() -> Response:
    return JSONResponse({"detail": "no such camera"}, 404, FRESH)


def add_files(app: FastAPI, page: str = "index.html") -> None:
    """Serve ``page`` at / and all files of the pages, which are read once.

    A line ``<!-- NAME -->`` of the page stands for the file of that name.
    """
    files = {path.name: path.read_bytes() for path in _STATIC.iterdir() if path.suffix in _KINDS}
    files[page] = re.sub(rb"<!-- (\S+) -->\n", lambda match: files[match[1].decode()], files[page])

    def answer(name: str, request: Request) -> Response:
        tag = f'"{hashlib.sha256(files[name]).hexdigest()[:16]}"'
        headers = {"Cache-Control": "no-cache", "ETag": tag, **SAFE}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(files[name], media_type=_KINDS[Path(name).suffix], headers=headers)

    @app.get("/", include_in_schema=False)
    async def root(request: Request) -> Response:
        return answer(page, request)

    @app.get("/static/{name}", include_in_schema=False)
    async def file(name: str, request: Request) -> Response:
        return answer(name, request) if name in files else JSONResponse({"detail": "not found"}, 404)


def add_login(app: FastAPI, token: str) -> None:
    """Exchange the token for a cookie. Accepts JSON only, which no form of another site can send."""

    def secure(request: Request) -> bool:
        return request.url.scheme == "https"  # a proxy on this machine sends X-Forwarded-Proto

    @app.post(LOGIN, status_code=204, responses=answers(401, 422), openapi_extra=LOGIN_BODY)
    async def login(request: Request) -> Response:
        body = await request.body()
        try:
            given = json.loads(body)["token"]
        except (ValueError, TypeError, KeyError, RecursionError):
            given = None
        if not is_json(request):
            given = None
        if not isinstance(given, str):
            return JSONResponse({"detail": 'send JSON: {"token": "..."}'}, 422, FRESH)
        if not token:
            return Response(status_code=204, headers=FRESH)
        if not hmac.compare_digest(given.encode("utf-8", "replace"), token.encode()):
            return JSONResponse({"detail": "wrong token"}, 401, FRESH)
        return Response(
            status_code=204, headers={"Set-Cookie": session_cookie(token, secure(request)), **FRESH}
        )

    @app.post(LOGOUT, status_code=204)
    async def logout(request: Request) -> Response:
        return Response(
            status_code=204, headers={"Set-Cookie": clear_cookie(token, secure(request)), **FRESH}
        )
