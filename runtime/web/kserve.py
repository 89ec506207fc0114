"""The Open Inference Protocol (KServe v2) over HTTP: health, metadata, ``infer`` with JSON or binary tensors.

A client sends either ``picture``, encoded pictures as BYTES, each of which gets the score that ``/score``
gives; or the graph's own input, prepared views as UINT8, and gets the graph's outputs.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anyio
import anyio.to_thread
import numpy as np
import numpy.typing as npt
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from grmp_edge import __version__
from grmp_edge.errors import BackendError, GrmpError, UsageError
from grmp_edge.runtime.scorer import Scorer
from grmp_edge.runtime.web.openapi import INFER
from grmp_edge.score import Score
from grmp_edge.views import sigmoid

__all__ = ["MODEL", "PICTURE", "add_kserve"]

MODEL = "grmp-edge"  # the model's name in the protocol
PICTURE = "picture"  # the input of encoded pictures
_LENGTH = "inference-header-content-length"  # where a body's JSON ends and its tensors begin
_MOST_VIEWS = 256  # of one request: 38 MB, a tenth of a second on a GPU

Array = npt.NDArray[Any]
ScorePictures = Callable[[Sequence[bytes], Sequence[str], Request], Any]


def add_kserve(
    app: FastAPI, scorer: Scorer, score_pictures: ScorePictures, limiter: anyio.CapacityLimiter, most: int
) -> None:
    """Add the protocol's routes.

    Args:
        app: where to.
        scorer: the model.
        score_pictures: awaited with encoded pictures, their names and the request; gives a Score or an error
            for each.
        limiter: of the threads that score.
        most: pictures in one request.
    """
    bundle = scorer.bundle
    graph, size = bundle.graphs[scorer.precision], bundle.input_size
    columns = 1 + len(bundle.causes)
    views = {"name": graph.input, "datatype": "UINT8", "shape": [-1, size, size, 3]}
    value = {"name": graph.output, "datatype": "FP32", "shape": [-1]}
    logits = {"name": graph.logits, "datatype": "FP32", "shape": [-1, columns]}
    causes = {"name": "causes", "datatype": "FP32", "shape": [-1, len(bundle.causes)]}

    def run_views(pixels: Array) -> dict[str, Array]:
        found = scorer.backend.read(pixels)
        outputs: dict[str, Array] = {graph.output: sigmoid(found[:, 0]).astype("<f4")}
        if graph.logits:
            outputs[graph.logits] = found.astype("<f4")
        return outputs

    async def infer(request: Request) -> Response:
        try:
            header, tensors = _read(await request.body(), request.headers.get(_LENGTH))
            if PICTURE in tensors and len(tensors) == 1:
                pictures = _strings(*tensors[PICTURE], most)
                names = [f"{PICTURE} {index}" for index in range(len(pictures))]
                outputs = _scored(await score_pictures(pictures, names, request), bundle.causes, graph.output)
            elif graph.input in tensors and len(tensors) == 1:
                pixels = _views(*tensors[graph.input], size)
                outputs = await anyio.to_thread.run_sync(run_views, pixels, limiter=limiter)
            else:
                raise UsageError(f"inputs {sorted(tensors)}", f"send {PICTURE} or {graph.input}, one of them")
            return _answer(header, outputs, bundle.id)
        except GrmpError as error:
            # By the protocol, a request that cannot be answered is a bad one.
            return JSONResponse({"error": str(error)}, 500 if isinstance(error, BackendError) else 400)

    async def metadata() -> dict[str, object]:
        return {
            "name": MODEL,
            "versions": [bundle.id],
            "platform": f"{scorer.backend.name}_{scorer.backend.provider}",
            "inputs": [views, {"name": PICTURE, "datatype": "BYTES", "shape": [-1]}],
            "outputs": [value, *([logits] if graph.logits else []), *([causes] if bundle.causes else [])],
        }

    async def model_ready() -> dict[str, object]:
        return {"name": MODEL, "ready": True}  # the graph is loaded before the port opens

    @app.get("/v2", tags=["Open Inference Protocol"])
    async def server() -> dict[str, object]:
        return {"name": "grmp-edge", "version": __version__, "extensions": ["binary_tensor_data"]}

    @app.get("/v2/health/live", tags=["Open Inference Protocol"])
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready", tags=["Open Inference Protocol"])
    async def ready() -> dict[str, bool]:
        return {"ready": True}

    for version in ("", f"/versions/{bundle.id}"):
        base = f"/v2/models/{MODEL}{version}"
        shown = {"tags": ["Open Inference Protocol"], "include_in_schema": not version}
        app.get(base, **shown)(metadata)  # type: ignore[arg-type]
        app.get(f"{base}/ready", **shown)(model_ready)  # type: ignore[arg-type]
        app.post(f"{base}/infer", **shown, **INFER)(infer)  # type: ignore[arg-type]


def _read(body: bytes, length: str | None) -> tuple[dict[str, Any], dict[str, tuple[str, list[int], Any]]]:
    """Take a request apart: its JSON, and each input's (datatype, shape, bytes or list).

    To the JSON is added which outputs are ``asked`` for, each with whether in binary, and whether all are.
    """
    try:
        end = len(body) if length is None else int(length)
        if not 0 <= end <= len(body):
            raise ValueError(f"{_LENGTH} is {length} of {len(body)} bytes")
        header = json.loads(body[:end])
        tensors: dict[str, tuple[str, list[int], Any]] = {}
        for tensor in header["inputs"]:
            size = tensor.get("parameters", {}).get("binary_data_size")
            data: Any = tensor["data"] if size is None else body[end : end + int(size)]
            if size is not None:
                if len(data) != int(size):
                    raise ValueError(f"{tensor['name']} has {len(data)} of its {size} bytes")
                end += int(size)
            shape = [int(side) for side in tensor["shape"]]
            if any(side < 0 for side in shape):
                raise ValueError(f"a shape of {shape}")
            tensors[str(tensor["name"])] = str(tensor["datatype"]), shape, data
        usual = (header.get("parameters") or {}).get("binary_data_output", False)
        asked = header.get("outputs") or []
        asked = {str(own["name"]): (own.get("parameters") or {}).get("binary_data", usual) for own in asked}
        header |= {"asked": asked, "binary": usual}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise UsageError(
            f"not a request of the Open Inference Protocol: {type(error).__name__} {error}",
            "send inputs with name, datatype, shape and data",
        ) from None
    return header, tensors


def _views(datatype: str, shape: list[int], data: Any, size: int) -> Array:
    """Prepared views, uint8 (N, S, S, 3)."""
    right = len(shape) == 4 and shape[1:] == [size, size, 3] and 1 <= shape[0] <= _MOST_VIEWS
    if datatype != "UINT8" or not right:
        raise UsageError(
            f"{datatype} {shape}", f"send UINT8 [N, {size}, {size}, 3] with N up to {_MOST_VIEWS}"
        )
    if isinstance(data, bytes):
        if len(data) != math.prod(shape):
            raise UsageError(f"{len(data)} bytes for a shape of {shape}", "send one byte for each value")
        return np.frombuffer(data, np.uint8).reshape(shape)
    try:
        values = np.asarray(data)
        if values.dtype.kind not in "iu" or values.size != math.prod(shape):
            raise ValueError(f"{values.size} values of {values.dtype}")
        if values.min() < 0 or values.max() > 255:
            raise ValueError("a value outside 0..255")
    except ValueError as error:
        raise UsageError(f"data of {shape}: {error}", "send whole numbers from 0 to 255") from None
    return values.astype(np.uint8).reshape(shape)


def _strings(datatype: str, shape: list[int], data: Any, most: int) -> list[bytes]:
    """Encoded pictures: four bytes of length before each, little-endian."""
    if datatype != "BYTES" or len(shape) not in (1, 2) or not isinstance(data, bytes):
        raise UsageError(f"{PICTURE} as {datatype} {shape}", "send BYTES [N] as binary data")
    pictures: list[bytes] = []
    at = 0
    while at < len(data):
        if len(data) - at < 4 or (size := struct.unpack_from("<I", data, at)[0]) > len(data) - at - 4:
            raise UsageError(f"{PICTURE} {len(pictures)} is cut short", "send its length in four bytes first")
        pictures.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    if len(pictures) != math.prod(shape) or not 1 <= len(pictures) <= most:
        raise UsageError(f"{len(pictures)} pictures as {shape}", f"send as many as you say, up to {most}")
    return pictures


def _scored(results: Sequence[Score | GrmpError], causes: Sequence[str], output: str) -> dict[str, Array]:
    for result in results:
        if isinstance(result, GrmpError):
            raise result
    scores = [result for result in results if isinstance(result, Score)]
    outputs: dict[str, Array] = {output: np.array([score.value for score in scores], "<f4")}
    if causes:
        rows = [[(score.causes or {})[name] for name in causes] for score in scores]
        outputs["causes"] = np.array(rows, "<f4")
    return outputs


def _answer(header: Mapping[str, Any], outputs: Mapping[str, Array], version: str) -> Response:
    """The outputs that were asked for, all by default; in binary where that was asked for."""
    asked: dict[str, bool] = header["asked"]
    unknown = sorted(set(asked) - set(outputs))
    if unknown:
        raise UsageError(f"no output {unknown[0]!r}", f"ask for {', '.join(outputs)}")
    told, tail = [], b""
    for name, values in outputs.items():
        if asked and name not in asked:
            continue
        tensor: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": list(values.shape)}
        if asked.get(name, header["binary"]):
            tensor["parameters"] = {"binary_data_size": values.nbytes}
            tail += values.tobytes()
        else:
            tensor["data"] = [round(value, 7) for value in values.ravel().tolist()]
        told.append(tensor)
    answer: dict[str, Any] = {"model_name": MODEL, "model_version": version, "outputs": told}
    if "id" in header:
        answer["id"] = header["id"]
    head = json.dumps(answer).encode()
    if not tail:
        return Response(head, media_type="application/json")
    return Response(head + tail, media_type="application/octet-stream", headers={_LENGTH: str(len(head))})
