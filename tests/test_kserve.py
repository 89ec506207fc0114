"""The Open Inference Protocol, asked by Triton's own client, and /score as clients of other tools ask."""

from __future__ import annotations

import json
import struct
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from conftest import encode, make_image, tiny_logits, tiny_score
from test_serve import server

from grmp_edge.bundle import Bundle

SIDE = 32


def raw_score(view: np.ndarray) -> float:
    """What the tiny graph gives for a prepared view."""
    return float(1 / (1 + np.exp(4 - view.mean() / 32)))


def test_tritons_client_reads_and_infers(tiny_bundle: Bundle) -> None:
    pictures = [encode(make_image(seed=seed), "PNG") for seed in (1, 2)]
    views = np.stack([make_image(SIDE, SIDE, seed) for seed in (3, 4, 5)])
    with server(tiny_bundle) as (at, _), triton.InferenceServerClient(at.removeprefix("http://")) as client:
        assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("grmp-edge")
        assert client.is_model_ready("grmp-edge", tiny_bundle.id)
        assert client.get_model_metadata("grmp-edge")["versions"] == [tiny_bundle.id]
        for binary in (False, True):
            tensor = triton.InferInput("images", list(views.shape), "UINT8")
            tensor.set_data_from_numpy(views, binary_data=binary)
            output = triton.InferRequestedOutput("scores", binary_data=binary)
            answer = client.infer("grmp-edge", [tensor], request_id="7", outputs=[output])
            expected = [raw_score(view) for view in views]
            np.testing.assert_allclose(answer.as_numpy("scores"), expected, atol=1e-5)
            assert answer.get_response()["id"] == "7"
        tensor = triton.InferInput("picture", [2], "BYTES")
        tensor.set_data_from_numpy(np.array(pictures, dtype=object))
        answer = client.infer("grmp-edge", [tensor])
        np.testing.assert_allclose(
            answer.as_numpy("scores"), [tiny_score(make_image(seed=seed)) for seed in (1, 2)], atol=1e-5
        )


def test_logits_and_causes_of_a_model_that_names_some(views_bundle: Bundle) -> None:
    views = np.stack([make_image(SIDE, SIDE, seed) for seed in (1, 2)])
    with server(views_bundle) as (at, _), triton.InferenceServerClient(at.removeprefix("http://")) as client:
        names = [output["name"] for output in client.get_model_metadata("grmp-edge")["outputs"]]
        assert names == ["scores", "logits", "causes"]
        tensor = triton.InferInput("images", list(views.shape), "UINT8")
        tensor.set_data_from_numpy(views)
        np.testing.assert_allclose(
            client.infer("grmp-edge", [tensor]).as_numpy("logits"), tiny_logits(views), atol=1e-4
        )
        tensor = triton.InferInput("picture", [1], "BYTES")
        picture = encode(make_image(100, 100, 9), "PNG")
        tensor.set_data_from_numpy(np.array([picture], dtype=object))
        answer = client.infer("grmp-edge", [tensor])
        plain = httpx.post(f"{at}/score", content=picture, trust_env=False).json()
        assert answer.as_numpy("scores")[0] == pytest.approx(plain["value"], abs=1e-6)
        assert answer.as_numpy("causes")[0].tolist() == pytest.approx(
            list(plain["causes"].values()), abs=1e-3
        )


def test_wrong_requests_are_named_and_the_server_goes_on(tiny_bundle: Bundle) -> None:
    good: dict[str, Any] = {"name": "images", "datatype": "UINT8", "shape": [1, SIDE, SIDE, 3]}
    pixels = make_image(SIDE, SIDE, 1).ravel().tolist()
    two = {"name": "picture", "datatype": "BYTES", "shape": [2]}

    def binary(tensor: dict[str, Any], data: bytes, size: int | None = None) -> dict[str, Any]:
        size = len(data) if size is None else size
        head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": size}}]}).encode()
        return {"content": head + data, "headers": {"Inference-Header-Content-Length": str(len(head))}}

    one = encode(make_image(seed=1), "PNG")
    wrong: list[dict[str, Any]] = [
        {"content": b"{"},
        {"content": b"[" * 100_000},
        {"content": b"{}", "headers": {"Inference-Header-Content-Length": "99"}},
        {"json": {"inputs": []}},
        {"json": {"inputs": [{**good, "data": pixels[:-1]}]}},
        {"json": {"inputs": [{**good, "data": [*pixels[:-1], 256]}]}},
        {"json": {"inputs": [{**good, "data": [*pixels[:-1], 0.5]}]}},
        {"json": {"inputs": [{**good, "data": [*pixels[:-1], [1]]}]}},
        {"json": {"inputs": [{**good, "datatype": "FP32", "data": pixels}]}},
        {"json": {"inputs": [{**good, "shape": [1, -1, SIDE, 3], "data": pixels}]}},
        {"json": {"inputs": [{**good, "shape": [257, SIDE, SIDE, 3], "data": pixels}]}},
        {"json": {"inputs": [{**good, "data": pixels}], "outputs": [{"name": "mos"}]}},
        {"json": {"inputs": [{**good, "data": pixels}], "outputs": 5}},
        {"json": {"inputs": [{**good, "data": pixels}], "outputs": [5]}},
        {"json": {"inputs": [{**good, "data": pixels}], "parameters": [5]}},
        {"content": b'{"inputs": [{"name": "images", "datatype": "UINT8", "shape": [1e999], "data": []}]}'},
        binary(good, bytes(pixels), 10**9),
        binary(good, bytes(pixels)[:-1]),
        binary(two, struct.pack("<I", len(one)) + one),
        binary(two, struct.pack("<I", 1 << 31) + one),
        binary(two, (struct.pack("<I", len(one)) + one) * 33),
        binary({**two, "shape": [1]}, struct.pack("<I", 80) + one[:80]),
    ]
    with server(tiny_bundle) as (at, _), httpx.Client(base_url=at, trust_env=False) as client:
        for request in wrong:
            answer = client.post("/v2/models/grmp-edge/infer", **request)
            assert answer.status_code == 400 and answer.json()["error"], (request, answer.text)
        answer = client.post("/v2/models/grmp-edge/infer", json={"inputs": [{**good, "data": pixels}]})
        value = answer.json()["outputs"][0]["data"][0]
        assert value == pytest.approx(raw_score(make_image(SIDE, SIDE, 1)), abs=1e-5)


def test_forms_docs_and_a_description_that_tells_the_truth(tiny_bundle: Bundle) -> None:
    one = encode(make_image(seed=1), "PNG")
    with server(tiny_bundle) as (at, _), httpx.Client(base_url=at, trust_env=False) as client:
        answer = client.post("/score", files={"file": ("gate.png", one)})
        assert answer.json()["source"] == "gate.png"
        assert answer.json()["value"] == pytest.approx(tiny_score(make_image(seed=1)), abs=1e-5)
        assert client.post("/score", files={}, headers={"Content-Type": "multipart/form-data; boundary=x"},
                           content=b"--x--\r\n").status_code == 422  # fmt: skip
        described = client.get("/openapi.json").json()
        route = described["paths"]["/score"]["post"]
        assert {"application/octet-stream", "image/jpeg", "multipart/form-data"} <= set(
            route["requestBody"]["content"]
        )
        schema = described["components"]["schemas"]["ScoreAnswer"]
        assert set(schema["required"]) == {"value", "source", "model"}
        assert set(answer.json()) <= set(schema["properties"])
        for body, status in ((b"", 422), (b"GIF89a", 415), (b"text", 415)):
            refused = client.post("/score", content=body)
            assert refused.status_code == status and set(refused.json()) == {"detail"}
            assert str(status) in route["responses"]
        page = client.get("/", follow_redirects=True)
        assert page.url.path == "/docs" and "POST /score" in page.text and "<script" not in page.text
        for method, path, status in (("GET", "/nothing", 404), ("GET", "/score", 405)):
            assert set(client.request(method, path).json()) == {"detail"}
            assert client.request(method, path).status_code == status
