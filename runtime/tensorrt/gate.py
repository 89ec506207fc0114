"""The parity gate on the device: does a built engine score as the graph it was built from?

A bundle records what each of its graphs gives on a few pictures that any machine can make; see
docs/bundle.md, ``parity.check``. How far the graph itself may be from PyTorch was judged at the export; here
the device must stay as near to the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from grmp_edge.bundle import Bundle
from grmp_edge.check_pictures import NAME, check_pictures
from grmp_edge.errors import BundleError, ParityError
from grmp_edge.files import sha256_bytes
from grmp_edge.metrics import srcc

__all__ = ["check_engine", "check_set"]

# Below this spread of the scores their order is rounding noise, as in the export's gate.
_SPREAD = 0.02


def check_set(bundle: Bundle, precision: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64]] | None:
    """The pictures, uint8 (n, S, S, 3), and what the graph of ``precision`` gives on them, (n,).

    None where the bundle records none, or of a kind that this version cannot make.

    Raises:
        BundleError: the pictures made here are not those that were scored.
    """
    found = bundle.parity.get("check")
    if not isinstance(found, dict) or found.get("pictures") != NAME or precision not in found["scores"]:
        return None
    pictures = check_pictures(int(found["count"]), bundle.input_size, int(found["seed"]))
    if sha256_bytes(pictures.tobytes()) != found["sha256"]:
        raise BundleError(
            f"{bundle.path}: its check pictures come out otherwise on this machine",
            "report it with the versions of grmp-edge doctor",
        )
    return pictures, np.asarray(found["scores"][precision], np.float64)


def check_engine(
    bundle: Bundle, precision: str, run: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
) -> dict[str, Any] | None:
    """Compare what ``run`` gives with what the bundle records, within the tolerance of the precision.

    Returns:
        ``max_abs``, ``mean_abs``, ``srcc`` (null where all scores are equal), ``pictures`` and the limits;
        None where the bundle has nothing to compare with.

    Raises:
        ParityError: it is past the tolerance; the message says what was measured.
    """
    known = check_set(bundle, precision)
    if known is None:
        return None
    pictures, wanted = known
    scores = run(pictures).astype(np.float64)
    link = bundle.parity.get("links", {}).get(precision, {})
    worst, mean, needed = (link.get(name) for name in ("tolerance", "mean_tolerance", "srcc_needed"))
    if float(wanted.std()) < _SPREAD:
        needed = None
    difference = np.abs(scores - wanted)
    found = {"max_abs": float(difference.max()), "mean_abs": float(difference.mean())}
    rank = srcc(scores, wanted) if np.isfinite(scores).all() else float("nan")
    measured = (
        f"worst difference {found['max_abs']:.2g}, mean {found['mean_abs']:.2g}, SRCC {rank:.5f} "
        f"on {len(pictures)} pictures"
    )
    problem = ""
    if not np.isfinite(scores).all():
        problem = f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not numbers (an overflow)"
    elif worst is not None and not found["max_abs"] <= worst:
        problem = f"{measured}; tolerance {worst:g}"
    elif mean is not None and not found["mean_abs"] <= mean:
        problem = f"{measured}; tolerance of the mean {mean:g}"
    elif needed is not None and not rank >= needed:
        problem = f"{measured}; SRCC needed {needed:g}"
    if problem:
        raise ParityError(
            f"the {precision} engine does not score as its graph does: {problem}",
            "the engine was not kept; build another --precision, or report it",
        )
    return {
        "pictures": len(pictures),
        **found,
        "srcc": rank if np.isfinite(rank) else None,
        "tolerance": worst,
        "mean_tolerance": mean,
        "srcc_needed": needed,
    }
