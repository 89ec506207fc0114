"""The parity gate on the device: does a built engine score as the graph it was built from?

A bundle records what each of its graphs gives on a few pictures that any machine can make, and the limits it
was exported with; see docs/bundle.md, ``parity.check`` and ``parity.gate``. The export judged how far the
graph may be from PyTorch. Here the engine must stay as near to the graph, by the same limits and function.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from grmp_edge.bundle import Bundle
from grmp_edge.check_pictures import NAME, check_pictures
from grmp_edge.errors import BundleError, ParityError
from grmp_edge.files import sha256_bytes
from grmp_edge.parity import VerdictReport, judge, limit_for

__all__ = ["EngineCheck", "check_engine", "check_set"]


class EngineCheck(VerdictReport):
    """How an engine scored beside its graph."""

    pictures: int  # compared


def check_set(bundle: Bundle, precision: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64]] | None:
    """The pictures, uint8 (n, S, S, 3), and what the graph of ``precision`` gives on them, float64 (n,).

    None where the bundle records no scores, or scores of pictures that this version cannot make.

    Raises:
        BundleError: the pictures made here are not those that were scored.
    """
    check = bundle.parity.get("check")
    if not isinstance(check, dict) or check.get("pictures") != NAME or precision not in check["scores"]:
        return None
    pictures = check_pictures(int(check["count"]), bundle.input_size, int(check["seed"]))
    if sha256_bytes(pictures.tobytes()) != check["sha256"]:
        raise BundleError(
            f"{bundle.path}: this machine makes other check pictures than the bundle records",
            "report it with the versions of grmp-edge doctor",
        )
    return pictures, np.asarray(check["scores"][precision], np.float64)


def check_engine(
    bundle: Bundle, precision: str, run: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
) -> EngineCheck | None:
    """Judge the scores that ``run`` gives by those the bundle records for the graph of ``precision``.

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
    verdict = judge(reference, run(pictures).astype(np.float64), limit_for(bundle.parity, precision))
    if verdict.problem:
        raise ParityError(
            f"the {precision} engine does not score as its graph does: {verdict.problem}",
            "the engine was not kept; build another --precision, or report it",
        )
    return {"pictures": len(pictures), **verdict.to_json()}
