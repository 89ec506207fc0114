"""The parity gate on the device: does what runs here score as the bundle's graph did where it was exported?

A bundle records what each of its graphs gives on a few pictures that any machine can make, and the limits it
was exported with; see docs/bundle.md, ``parity.check`` and ``parity.gate``. The export judged how far the
graph may be from PyTorch. Here an engine, or the same graph on another processor, must stay as near to the
graph, by the same limits and function.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from grmp_edge.bundle import Bundle
from grmp_edge.check_pictures import NAME, check_pictures
from grmp_edge.errors import BundleError, ParityError
from grmp_edge.files import sha256_bytes
from grmp_edge.parity import VerdictReport, judge, limit_for

__all__ = ["DeviceCheck", "Run", "check_scores", "check_set"]

_BATCH = 4  # pictures, where not all are judged

Run = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]


class DeviceCheck(VerdictReport):
    """How an engine or a graph scored beside what the bundle records."""

    pictures: int  # compared


def check_set(bundle: Bundle, precision: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64]] | None:
    """The pictures, uint8 (n, S, S, 3), and what the graph of ``precision`` gives on them, float64 (n,).

    None where the bundle records no scores, or scores of pictures that this version cannot make.

    Raises:
        BundleError: the pictures made here are not those that were scored.
    """
    check = bundle.parity.get("check")
    if check is None or check["pictures"] != NAME or precision not in check["scores"]:
        return None
    pictures = check_pictures(check["count"], bundle.input_size, check["seed"])
    if sha256_bytes(pictures.tobytes()) != check["sha256"]:
        raise BundleError(
            f"{bundle.path}: this machine makes other check pictures than the bundle records",
            "report it with the versions of grmp-edge doctor",
        )
    return pictures, np.asarray(check["scores"][precision], np.float64)


def check_scores(
    bundle: Bundle, precision: str, run: Run, name: str = "engine", seconds: float | None = None
) -> DeviceCheck | None:
    """Judge the scores that ``run`` gives by those the bundle records for the graph of ``precision``.

    Args:
        bundle: what to compare with.
        precision: of the graph.
        run: uint8 (n, S, S, 3) to scores (n,), not clipped.
        name: of what runs, for messages.
        seconds: once they are over, the pictures scored by then are enough; by default all are scored. The
            order of so few says nothing and is not demanded.

    Returns:
        The figures and the limits; None where the bundle has nothing to compare with.

    Raises:
        ParityError: a limit is exceeded; the message has the figures.
        BundleError: the bundle's gate cannot be read.
    """
    recorded = check_set(bundle, precision)
    if recorded is None:
        return None
    pictures, reference = recorded
    limit = limit_for(bundle.parity, precision)
    size = len(pictures) if seconds is None else _BATCH
    start, parts = time.monotonic(), list[npt.NDArray[np.float32]]()
    for at in range(0, len(pictures), size):
        if parts and seconds is not None and time.monotonic() - start > seconds:
            limit = replace(limit, srcc=None)
            break
        parts.append(run(pictures[at : at + size]))
    scores = np.concatenate(parts).astype(np.float64)
    verdict = judge(reference[: len(scores)], scores, limit)
    if verdict.problem:
        raise ParityError(
            f"the {precision} {name} does not score as its graph does: {verdict.problem}",
            "the engine was not kept; build another --precision, or report it"
            if name == "engine"
            else f"nothing was scored; {_others(bundle, precision)}update onnxruntime, "
            "or report it with what grmp-edge doctor prints",
        )
    return {"pictures": len(scores), **verdict.to_json()}


def _others(bundle: Bundle, precision: str) -> str:
    others = [name for name in bundle.graphs if name != precision]
    return f"use --precision {' or '.join(others)}, " if others else ""
