"""The page for labelling over HTTP: pictures, answers, and training from them."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio.to_thread
import cv2
from fastapi import Request
from fastapi.responses import JSONResponse, Response

from grmp_edge.errors import GrmpError, UsageError
from grmp_edge.preprocess import fit_within, read_image, swap_red_blue
from grmp_edge.runtime.labelling.checks import UInt8Array, blurred, original_of
from grmp_edge.runtime.labelling.frames import SHOWN_BY_BROWSERS
from grmp_edge.runtime.labelling.learning import Learning
from grmp_edge.runtime.labelling.sitting import Mode, Sitting
from grmp_edge.runtime.web.dashboard_app import FRESH, add_files, add_login, is_json
from grmp_edge.runtime.web.guard import Guard, ServeConfig
from grmp_edge.runtime.web.openapi import new_app

__all__ = ["make_label_app"]

_KINDS = {".avif": "image/avif", ".bmp": "image/bmp", ".gif": "image/gif", ".png": "image/png",
          ".webp": "image/webp"}  # fmt: skip
_SMALL = 240  # pixels a side: an example beside the scale
_MOST = 200  # pictures chosen at once


def make_label_app(sitting: Sitting, learning: Learning, config: ServeConfig) -> Guard:
    """The ASGI application of ``grmp-edge label``.

    Routes: ``GET /``, ``/static/...``, ``/v1/label?rater=&mode=&image=`` (the next task),
    ``/v1/label/frames/{name}?small=`` (a picture), ``/v1/label/training``; ``POST /v1/label`` (an answer, an
    undo), ``/v1/label/more`` (``{"count": 20}``), ``/v1/label/training`` (``{}``), and the login.
    """
    app = new_app("grmp-edge label", openapi_url=None)
    add_files(app, "label.html")
    add_login(app, config.token)
    small = functools.lru_cache(maxsize=1000)(_small)

    def shown(rater: str, mode: str, image: str | None = None) -> Response:
        name = " ".join(rater.split())[:60] or "me"
        kind: Mode = "pair" if mode == "pair" else "scale"
        state = sitting.state(name, kind, image)
        state |= {"login": bool(config.token), "training": learning.state()}
        return JSONResponse(state, headers=FRESH)

    @app.get("/v1/label")
    def label(rater: str = "me", mode: str = "scale", image: str | None = None) -> Response:
        return shown(rater, mode, image)

    @app.post("/v1/label")
    async def answer(request: Request) -> Response:
        data = await _json(request)

        def work() -> Response:
            given = sitting.add(data)
            return shown(given.rater, str(data.get("mode", "scale")))

        return await _answered(work)

    @app.post("/v1/label/more")
    async def more(request: Request) -> Response:
        data = await _json(request)

        def work() -> Response:
            count = data.get("count", 20)
            if not isinstance(count, int) or not 1 <= count <= _MOST:
                raise UsageError(f"count is 1 to {_MOST}")
            return JSONResponse({"added": sitting.more(count)}, headers=FRESH)

        return await _answered(work)

    @app.get("/v1/label/training")
    def training() -> Response:
        return JSONResponse(learning.state(), headers=FRESH)

    @app.post("/v1/label/training")
    async def train(request: Request) -> Response:
        await _json(request)

        def work() -> Response:
            sitting.reload()  # labels of a picture that was removed would end the training
            learning.start(sitting.labels)
            return JSONResponse(learning.state(), headers=FRESH)

        return await _answered(work)

    @app.get("/v1/label/frames/{name}")
    def picture(name: str, small_one: bool = False) -> Response:
        if original_of(name) not in sitting.frames:
            return JSONResponse({"detail": "no such picture"}, 404, FRESH)
        path = sitting.folder / original_of(name)
        # A collected frame never changes; only this browser keeps it.
        headers = {**FRESH, "Cache-Control": "private, max-age=3600"}
        try:
            if small_one:
                return Response(
                    small(path, path.stat().st_mtime_ns), media_type="image/jpeg", headers=headers
                )
            if name != path.name:
                return _png(blurred(read_image(path)), headers)
            if path.suffix.lower() in SHOWN_BY_BROWSERS:
                kind = _KINDS.get(path.suffix.lower(), "image/jpeg")
                return Response(path.read_bytes(), media_type=kind, headers=headers)
            return _png(read_image(path), headers)
        except (GrmpError, OSError) as error:
            return JSONResponse({"detail": str(error)}, 404, FRESH)

    return Guard(app, config, lambda path, status, seconds: None)


def _png(image: UInt8Array, headers: Mapping[str, str]) -> Response:
    data = cv2.imencode(".png", swap_red_blue(image))[1].tobytes()
    return Response(data, media_type="image/png", headers=headers)


def _small(path: Path, _: int) -> bytes:
    image = swap_red_blue(fit_within(read_image(path), _SMALL, _SMALL))
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()


async def _json(request: Request) -> Mapping[str, Any]:
    try:
        data = json.loads(await request.body()) if is_json(request) else None
    except (ValueError, RecursionError):
        data = None
    return data if isinstance(data, dict) else {}


async def _answered(work: Any) -> Response:
    try:
        answer: Response = await anyio.to_thread.run_sync(work)
        return answer
    except GrmpError as error:
        return JSONResponse({"detail": str(error)}, 422, FRESH)
    except OSError as error:
        return JSONResponse({"detail": f"not saved: {error.strerror or error}"}, 507, FRESH)
