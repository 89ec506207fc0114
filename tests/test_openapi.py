"""The description of the HTTP interface: valid, and true of what the server answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
from conftest import encode, make_image
from helpers_dashboard import running, write_video
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate

from grmp_edge.bundle import Bundle

TOKEN = "s3cret-s3cret-s3cret"
PNG = encode(make_image(seed=1), "PNG")
JSON = {"Content-Type": "application/json"}


def check(described: dict[str, Any], template: str, answer: httpx.Response) -> None:
    """Assert that the description has this status for this route, with this kind of body and its fields."""
    route = described["paths"][template][answer.request.method.lower()]
    told = route["responses"].get(str(answer.status_code))
    assert told is not None, f"{template} does not say {answer.status_code}: {answer.text[:200]}"
    kind = answer.headers.get("content-type", "").partition(";")[0]
    if not kind:
        assert answer.status_code == 204
        return
    assert kind in told.get("content", {}), f"{template} {answer.status_code} does not say {kind}"
    if kind == "application/json":
        schema = told["content"][kind].get("schema", {})
        OAS31Validator({**schema, "components": described["components"]}).validate(answer.json())
        if "$ref" in schema:  # nothing is answered that a generated client would not know
            named = described["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
            assert set(answer.json()) <= set(named["properties"])


def test_the_description_is_valid_and_true(tiny_bundle: Bundle, tmp_path: Path) -> None:
    write_video(tmp_path / "v.avi")
    (tmp_path / "streams.toml").write_text(
        f'[[camera]]\nname = "gate"\nsource = "file:{tmp_path / "v.avi"}"\n'
    )
    options = ("--port", "0", "--streams", tmp_path / "streams.toml")
    with running("serve", tiny_bundle, *options, token=TOKEN) as server:
        client = server.client
        assert client.get("/openapi.json").status_code == 401
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        described = client.get("/openapi.json").json()
        validate(described)
        names = [route["operationId"] for path in described["paths"].values() for route in path.values()]
        assert len(set(names)) == len(names) and {"score", "batch", "infer", "cameras"} <= set(names)
        assert all(name.isidentifier() for name in names)
        infer = "/v2/models/grmp-edge/infer"
        pixels = {"name": "images", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": [9] * 32 * 32 * 3}
        camera = "/v1/cameras/{name}/"
        asked: list[tuple[str, str, dict[str, Any], int]] = [
            ("POST", "/score", {"content": PNG}, 200),
            ("POST", "/score", {"content": PNG, "params": {"tiles": True}}, 200),
            ("POST", "/score", {"files": {"file": ("a.png", PNG)}}, 200),
            ("POST", "/score", {"content": b"text"}, 415),
            ("POST", "/score", {"content": PNG[:-20]}, 422),
            ("POST", "/batch", {"files": [("files", ("a.png", PNG)), ("files", ("b.png", b"no"))]}, 200),
            ("POST", "/batch", {"content": b""}, 422),
            ("GET", "/v2", {}, 200),
            ("GET", "/v2/health/live", {}, 200),
            ("GET", "/v2/health/ready", {}, 200),
            ("GET", "/v2/models/grmp-edge", {}, 200),
            ("GET", "/v2/models/grmp-edge/ready", {}, 200),
            ("POST", infer, {"json": {"inputs": [pixels]}}, 200),
            ("POST", infer, {"json": {"inputs": []}}, 400),
            ("GET", "/healthz", {}, 200),
            ("GET", "/metrics", {}, 200),
            ("GET", "/v1/cameras", {}, 200),
            ("GET", f"{camera}history", {}, 200),
            ("GET", f"{camera}history", {"params": {"step": 7}}, 422),
            ("GET", f"{camera}history", {"params": {"step": "x"}}, 422),
            ("GET", f"{camera}usual", {}, 200),
            ("GET", f"{camera}thumbnail.jpg", {}, 200),
            ("POST", f"{camera}accept", {"json": {}}, 204),
            ("POST", f"{camera}accept", {}, 422),
            ("GET", "/v1/alerts/{number}.jpg", {}, 404),
            ("POST", "/v1/alerts/again", {"json": {}}, 204),
            ("POST", "/v1/login", {"json": {"token": TOKEN}}, 204),
            ("POST", "/v1/login", {"json": {"token": "x"}}, 401),
            ("POST", "/v1/login", {"content": b"{"}, 422),
            ("POST", "/v1/logout", {"json": {}}, 204),
        ]
        for method, template, more, status in asked:
            path = template.replace("{name}", "gate").replace("{number}", "7")
            answer = client.request(method, path, **more)
            assert answer.status_code == status, (method, path, answer.text)
            check(described, template, answer)
        for part in ("history", "usual", "thumbnail.jpg"):
            answer = client.get(f"/v1/cameras/nobody/{part}")
            assert answer.status_code == 404
            check(described, camera + part, answer)
        ready = client.get("/readyz")
        check(described, "/readyz", ready)
        with client.stream("GET", "/v1/events") as events:
            assert events.headers["content-type"].startswith("text/event-stream")
        left = set(described["paths"]) - {template for _, template, _, _ in asked}
        assert left == {"/readyz", "/v1/events"}
        del client.headers["Authorization"]
        for method, template in (("POST", "/score"), ("GET", "/v1/cameras")):
            check(described, template, client.request(method, template))
        assert json.dumps(described["security"]) == '[{}, {"token": []}]'
