"""What the OpenAPI description says of requests and answers, and the page that shows it without a network."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect

from grmp_edge import __version__

__all__ = ["BATCH", "INFER", "JSON_BODY", "JPEG", "LOGIN_BODY", "SCORE", "add_docs", "answers", "new_app"]


class TileAnswer(BaseModel):
    """The score of one native crop, and its place in pixels."""

    left: int
    top: int
    width: int
    height: int
    value: float


class ScoreAnswer(BaseModel):
    """The quality of one picture; higher is better."""

    value: float = Field(ge=0, le=1)
    source: str
    model: str
    mos: float | None = Field(None, description="on the scale of the training labels")
    latency_ms: float | None = None
    causes: dict[str, float] | None = Field(None, description="what is wrong, each 0 to 1")
    tiles: list[TileAnswer] | None = Field(None, description="with ?tiles=1")
    damage: str | None = Field(None, description="parts of the picture are missing or wrong")
    note: str | None = Field(None, description="what else makes the score doubtful")
    interval: list[float] | None = Field(
        None, description="where people's opinion lies in most cases", min_length=2, max_length=2
    )


class FailedPicture(BaseModel):
    """A picture of a batch that has no score."""

    source: str
    error: str
    status: int = Field(description="what /score would have answered with")


class BatchAnswer(BaseModel):
    """In the order of the files."""

    results: list[ScoreAnswer | FailedPicture]


class ErrorAnswer(BaseModel):
    """Why there is no answer, and the remedy."""

    detail: str


class TensorAnswer(BaseModel):
    """A tensor of the Open Inference Protocol; without ``data`` it follows the JSON as bytes."""

    name: str
    datatype: str
    shape: list[int]
    data: list[float] | None = None
    parameters: dict[str, int] | None = None


class InferAnswer(BaseModel):
    """What the model computed."""

    model_name: str
    model_version: str
    outputs: list[TensorAnswer]
    id: str | None = None


class InferError(BaseModel):
    """Why there is no answer, by the name that the protocol gives it."""

    error: str


_PICTURE = {"type": "string", "format": "binary"}
_QUERY = [
    {"name": "camera", "in": "query", "schema": {"type": "string", "maxLength": 80}},
    {"name": "tiles", "in": "query", "schema": {"type": "boolean"}},
]
_REFUSALS = {
    401: "a token is needed, or it is wrong",
    403: "asked from a page of another site",
    404: "there is none",
    408: "the body did not arrive in time",
    413: "too large",
    415: "not a supported format",
    422: "not a whole picture, or not the body that is asked for",
    429: "too many requests at once",
}


def answers(*refusals: int, **given: Any) -> dict[int | str, dict[str, Any]]:
    """The responses of a route: ``given`` for 200, and an error's body for each of ``refusals``."""
    told: dict[int | str, dict[str, Any]] = {200: given} if given else {}
    for status in refusals:
        told[status] = {"model": ErrorAnswer, "description": _REFUSALS[status]}
    return told


def _body(kinds: dict[str, dict[str, Any]]) -> dict[str, Any]:
    content = {kind: {"schema": schema} for kind, schema in kinds.items()}
    return {"parameters": _QUERY, "requestBody": {"required": True, "content": content}}


def _form(schema: dict[str, Any], name: str) -> dict[str, Any]:
    return {"type": "object", "required": [name], "properties": {name: schema}}


_FORM = "multipart/form-data"
_KINDS = ("application/octet-stream", "image/jpeg", "image/png", "image/webp")

# Arguments of the routes.
_SCORED = (401, 403, 408, 413, 415, 422, 429)
SCORE: dict[str, Any] = {
    "responses": answers(*_SCORED, model=ScoreAnswer),
    "openapi_extra": _body({**dict.fromkeys(_KINDS, _PICTURE), _FORM: _form(_PICTURE, "file")}),
}
BATCH: dict[str, Any] = {
    "responses": answers(*_SCORED, model=BatchAnswer),
    "openapi_extra": _body({_FORM: _form({"type": "array", "items": _PICTURE}, "files")}),
}
_TENSORS = {"type": "array", "items": {"type": "object"}}
INFER: dict[str, Any] = {
    "responses": {
        200: {"model": InferAnswer},
        400: {"model": InferError, "description": "not a request that can be answered"},
        500: {"model": InferError, "description": "the network failed"},
    },
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "required": ["inputs"],
                        "properties": {"id": {"type": "string"}, "inputs": _TENSORS, "outputs": _TENSORS},
                    }
                },
                "application/octet-stream": {"schema": _PICTURE},
            },
        }
    },
}
JPEG: dict[str, Any] = {
    "response_class": Response,
    "responses": answers(401, 404, 422, content={"image/jpeg": {"schema": _PICTURE}}, description="a JPEG"),
}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


JSON_BODY = _json({"type": "object"})  # {}: no form of another site can send it
LOGIN_BODY = _json({"type": "object", "required": ["token"], "properties": {"token": {"type": "string"}}})


def new_app(title: str, **options: Any) -> FastAPI:
    """An application of which errors are one line, ``{"detail": "..."}``; routes are described by name."""
    app = FastAPI(
        title=title,
        version=__version__,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,  # clients are generated with these names
        **options,
    )

    @app.exception_handler(RequestValidationError)
    async def refused(_: Request, error: RequestValidationError) -> JSONResponse:
        words = "; ".join(f"{one['loc'][-1]}: {one['msg']}" for one in error.errors())
        return JSONResponse({"detail": words}, 422)

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=499)  # as nginx counts them; uvicorn would log a traceback of each

    return app


def add_docs(app: FastAPI) -> None:
    """Add ``/docs``: every route, with what it takes and answers; plain HTML, nothing fetched.

    The description gets what FastAPI cannot know: the token, which not every server asks for.
    """
    describe = app.openapi

    def described() -> dict[str, Any]:
        document = describe()
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{}, {"token": []}]
        return document

    app.openapi = described  # type: ignore[method-assign]

    if not any(getattr(route, "path", "") == "/" for route in app.routes):

        @app.get("/", include_in_schema=False)
        async def root() -> RedirectResponse:
            return RedirectResponse("docs")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(_page(app.openapi()))


def _page(described: dict[str, Any]) -> str:
    from html import escape

    rows = []
    for path, methods in described["paths"].items():
        for method, route in methods.items():
            takes = ", ".join(route.get("requestBody", {}).get("content", {})) or "-"
            answers = ", ".join(route.get("responses", {}))
            words = (route.get("description") or route.get("summary") or "").split("\n")[0]
            cells = (f"{method.upper()} {path}", words, takes, answers)
            rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    title = escape(f"{described['info']['title']} {described['info']['version']}")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><title>{title}</title></head><body><h1>{title}</h1>'
        '<p>The same for programs, in full: <a href="openapi.json">openapi.json</a>.</p>'
        '<table><thead><tr><th scope="col">route</th><th scope="col">what</th><th scope="col">body</th>'
        f'<th scope="col">answers</th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
        "<pre>curl --data-binary @photo.jpg http://127.0.0.1:8080/score\n"
        "curl -F file=@photo.jpg http://127.0.0.1:8080/score</pre></body></html>"
    )
