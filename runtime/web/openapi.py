"""What the OpenAPI description says of requests and answers, and the page that shows it without a network."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, RedirectResponse
from pydantic import BaseModel, Field

__all__ = ["BATCH", "SCORE", "add_docs"]


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


_PICTURE = {"type": "string", "format": "binary"}
_QUERY = [
    {"name": "camera", "in": "query", "schema": {"type": "string", "maxLength": 80}},
    {"name": "tiles", "in": "query", "schema": {"type": "boolean"}},
]
_FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": words}
    for status, words in (
        (401, "a token is needed"),
        (403, "asked from a page of another site"),
        (408, "the body did not arrive in time"),
        (413, "too large"),
        (415, "not a supported format"),
        (422, "not a whole picture"),
        (429, "too many requests at once"),
    )
}


def _body(kinds: dict[str, dict[str, Any]]) -> dict[str, Any]:
    content = {kind: {"schema": schema} for kind, schema in kinds.items()}
    return {"parameters": _QUERY, "requestBody": {"required": True, "content": content}}


def _form(schema: dict[str, Any], name: str) -> dict[str, Any]:
    return {"type": "object", "required": [name], "properties": {name: schema}}


_FORM = "multipart/form-data"
_KINDS = ("application/octet-stream", "image/jpeg", "image/png", "image/webp")

# Arguments of the routes.
SCORE: dict[str, Any] = {
    "responses": {200: {"model": ScoreAnswer}, **_FAILURES},
    "openapi_extra": _body({**dict.fromkeys(_KINDS, _PICTURE), _FORM: _form(_PICTURE, "file")}),
}
BATCH: dict[str, Any] = {
    "responses": {200: {"model": BatchAnswer}, **_FAILURES},
    "openapi_extra": _body({_FORM: _form({"type": "array", "items": _PICTURE}, "files")}),
}


def add_docs(app: FastAPI) -> None:
    """Add ``/docs``: every route, with what it takes and answers; plain HTML, nothing fetched."""

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
