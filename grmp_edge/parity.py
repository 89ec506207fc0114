"""The parity gate: does a graph or an engine score as its reference does?

The export judges every graph with :func:`judge`, and the device every engine it builds. The limits travel in
the bundle, so that both use the same; docs/bundle.md specifies them under ``parity.gate``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import MappingProxyType
from typing import Any, TypedDict, cast

import numpy as np
import numpy.typing as npt

from grmp_edge.check_pictures import NAME
from grmp_edge.errors import BundleError
from grmp_edge.metrics import srcc

__all__ = [
    "LIMITS",
    "RULE",
    "CheckReport",
    "GateReport",
    "Int8GraphReport",
    "Int8Report",
    "Limit",
    "LinkReport",
    "ParityReport",
    "ReferenceReport",
    "Verdict",
    "VerdictReport",
    "checked_parity",
    "gate_report",
    "judge",
    "limit_for",
]

# The name of what `judge` does with a limit. Another way of judging must get another name. The older rule is
# this one with every `near` 0.
RULE = "worst-mean-srcc-2"
_OLDER = "worst-mean-srcc-1"

# The fields of a recorded limit, and those of them that may be null.
_OPTIONAL = ("worst", "mean", "srcc")
_ALWAYS = (*_OPTIONAL, "spread")

# A bundle from elsewhere must not have the device make pictures for ever. Exports record 16.
_MOST_PICTURES, _LARGEST_SEED = 256, 4000

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Limit:
    """What one precision must reach, in scores of 0..1; None is not asked for."""

    worst: float | None  # of the absolute differences
    mean: float | None  # of the absolute differences
    srcc: float | None  # Spearman's rank correlation
    # SRCC is demanded only where the reference's standard deviation is at least this. Where all pictures
    # score alike, as with an untrained model, their order is rounding noise. It is always reported.
    spread: float = 0.0
    # Two pictures whose reference scores are nearer than this may change places: within the tolerance neither
    # order is wrong. Of 32 pictures, three such pairs are enough to fail .999.
    near: float = 0.0


LIMITS: Mapping[str, Limit] = MappingProxyType(
    {
        # Folding is exact but for float32 rounding, which measures near 1e-7; a wrong constant is far above.
        "fp32": Limit(worst=1e-4, mean=None, srcc=None),
        # Half keeps eleven bits, and a difference this small is far below what people agree on. Ranking is
        # what a quality score is used for.
        "fp16": Limit(worst=5e-3, mean=None, srcc=0.999, spread=0.02, near=5e-3),
        # Eight bits move single scores visibly; what an application notices is their order and their mean.
        "int8": Limit(worst=None, mean=0.01, srcc=0.99, spread=0.01),
        "int8-fp16": Limit(worst=None, mean=0.01, srcc=0.99, spread=0.01),
        "fp8": Limit(worst=None, mean=0.01, srcc=0.99, spread=0.01),
    }
)


class VerdictReport(TypedDict):
    """How two sets of scores compare; null where there is no such number, or no such demand."""

    max_abs: float | None
    mean_abs: float | None
    srcc: float | None
    srcc_apart: float | None  # without the pairs that may change places; what srcc_needed is asked of
    tolerance: float | None  # of max_abs
    mean_tolerance: float | None
    srcc_needed: float | None


class LinkReport(VerdictReport):
    """One graph against the reference."""

    against: str
    passed: bool


class Int8GraphReport(LinkReport):
    """One of the eight-bit graphs that were tried."""

    smoothing: float
    float32_layers: list[str]
    time_ratio: dict[str, float]  # by batch size, to the float32 graph on the exporting CPU


class Int8Report(TypedDict, total=False):
    """Which eight-bit graphs were tried, and which one is in the bundle."""

    method: str  # static or dynamic
    calibration: str  # where the pictures for the ranges came from
    static: Int8GraphReport
    dynamic: Int8GraphReport


class CheckReport(TypedDict):
    """What the graphs give on pictures that any machine can make."""

    pictures: str
    seed: int
    count: int
    sha256: str
    scores: dict[str, list[float]]  # by precision, and of the ``reference``


class ReferenceReport(TypedDict):
    """The scores that the graphs were compared with."""

    model: str
    images: int
    mean: float
    std: float


class GateReport(TypedDict):
    """How the graphs were judged, and engines are to be."""

    rule: str
    limits: dict[str, dict[str, Any]]  # by precision, the fields of Limit


class ParityReport(TypedDict, total=False):
    """A bundle's ``parity``; bundles of older versions lack some of it."""

    images: str  # where the pictures came from
    reference: ReferenceReport
    links: dict[str, LinkReport]
    gate: GateReport
    check: CheckReport
    fp32_blocks: list[int]
    int8: Int8Report
    gpu: dict[str, Int8GraphReport]  # by precision: eight bits with half, for GPUs
    faults: dict[str, float]  # the share of training pictures whose score each plain fault lowers


@dataclass(frozen=True)
class Verdict:
    """How scores compare with the reference's."""

    max_abs: float
    mean_abs: float
    srcc: float  # nan where all scores are equal
    srcc_apart: float  # without pairs of the reference nearer than the limit's ``near``
    limit: Limit  # as demanded: srcc is None where the reference spreads too little
    problem: str  # empty: passed

    def to_json(self) -> VerdictReport:
        """Plain JSON; what is not a number becomes null."""
        return {
            "max_abs": _finite(self.max_abs),
            "mean_abs": _finite(self.mean_abs),
            "srcc": _finite(self.srcc),
            "srcc_apart": _finite(self.srcc_apart),
            "tolerance": self.limit.worst,
            "mean_tolerance": self.limit.mean,
            "srcc_needed": self.limit.srcc,
        }


def judge(reference: Scores, scores: Scores, limit: Limit) -> Verdict:
    """Compare scores (n,) with the reference's (n,), both float64 in the same order."""
    difference = np.abs(scores - reference)
    worst, mean, rank = float(difference.max()), float(difference.mean()), srcc(scores, reference)
    apart = _srcc_apart(scores, reference, limit.near) if limit.near else rank
    if float(reference.std()) < limit.spread:
        limit = replace(limit, srcc=None)
    finite = np.isfinite(scores)
    count = f"{len(scores)} pictures"
    problem = ""
    if not finite.all():
        problem = f"{int((~finite).sum())} of {len(scores)} scores are not numbers (an overflow)"
    elif limit.worst is not None and not worst <= limit.worst:
        measured = f"mean {mean:.2g}, SRCC {rank:.5f}, {count}"
        problem = f"worst difference {worst:.2g}, tolerance {limit.worst:g} ({measured})"
    elif limit.mean is not None and not mean <= limit.mean:
        measured = f"worst {worst:.2g}, SRCC {rank:.5f}, {count}"
        problem = f"mean difference {mean:.2g}, tolerance {limit.mean:g} ({measured})"
    elif limit.srcc is not None and not apart >= limit.srcc:
        measured = f"worst difference {worst:.2g}, mean {mean:.2g}, {count}"
        near = f" without pairs nearer than {limit.near:g}" if limit.near else ""
        problem = f"SRCC {apart:.5f}{near}, needed {limit.srcc:g} ({measured})"
    return Verdict(worst, mean, rank, apart, limit, problem)


def _srcc_apart(scores: Scores, reference: Scores, near: float) -> float:
    """Spearman's rank correlation of (n,) without the swapped pairs nearer than ``near`` in the reference.

    1 - 12 / (n^3 - n) times the sum, over all pairs that change places, of the difference of their ranks is
    Spearman's correlation where no scores are equal. A pair that becomes equal counts half.
    """
    order = np.argsort(reference, kind="stable")
    reference, scores = reference[order], scores[order]
    n = len(order)
    ranks = np.arange(n)
    swapped = (scores[:, None] > scores) + 0.5 * (scores[:, None] == scores)
    pairs = (ranks - ranks[:, None]) * swapped * (reference - reference[:, None] >= near)
    total = float(np.triu(pairs, 1).sum())
    return 1 - 12 * total / (n**3 - n) if np.isfinite(scores).all() and n > 1 else math.nan


def gate_report(limits: Mapping[str, Limit]) -> GateReport:
    """The gate as a bundle records it, for :func:`limit_for`."""
    return {"rule": RULE, "limits": {precision: asdict(limit) for precision, limit in limits.items()}}


def checked_parity(parity: Mapping[str, Any]) -> ParityReport:
    """A bundle's ``parity`` whose ``gate`` and ``check``, if any, are complete and can be judged by.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: they are not.
    """
    gate = parity.get("gate")
    if gate is not None and gate["rule"] in (RULE, _OLDER):
        for limit in gate["limits"].values():
            for name in (*_ALWAYS, *(["near"] if "near" in limit else [])):
                if not (_is_number(limit[name]) or (limit[name] is None and name in _OPTIONAL)):
                    raise ValueError(f"its parity.gate has a {name} that is no number")
    check = parity.get("check")
    if check is not None and check["pictures"] == NAME:
        for key, least, most in (("count", 1, _MOST_PICTURES), ("seed", 0, _LARGEST_SEED)):
            if type(check[key]) is not int or not least <= check[key] <= most:
                raise ValueError(f"its parity.check has a {key} that is not {least} to {most}")
        if not isinstance(check["sha256"], str):
            raise ValueError("its parity.check has no sha256")
        for name, scores in check["scores"].items():
            if len(scores) != check["count"] or not all(map(_is_number, scores)):
                raise ValueError(f"its parity.check has scores of {str(name)[:40]} that are no numbers")
    return cast(ParityReport, parity)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def limit_for(parity: ParityReport, precision: str) -> Limit:
    """The limit that a bundle's ``parity`` records for a precision; this version's own where it has none.

    Raises:
        BundleError: this version does not know the gate's rule.
    """
    gate = parity.get("gate")
    if gate is None:  # the bundle was made before it was recorded
        return LIMITS[precision]
    if gate["rule"] not in (RULE, _OLDER):
        raise BundleError(
            f"the bundle's parity gate has the unknown rule {gate['rule']!r}",
            "update grmp-edge, or export the checkpoint again with this version",
        )
    if precision not in gate["limits"]:
        return LIMITS[precision]
    recorded = {"near": 0.0, **gate["limits"][precision]}  # the older rule has no near
    return Limit(**{field.name: recorded[field.name] for field in fields(Limit)})


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
