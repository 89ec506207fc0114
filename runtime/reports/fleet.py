"""The report of ``check``: every camera of a fleet, worst first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from grmp_edge.runtime.live.check import PROBLEMS, CameraCheck
from grmp_edge.runtime.reports.page import data_uri, write_report

__all__ = ["worst_first", "write_fleet_report"]


def worst_first(checks: Sequence[CameraCheck]) -> list[CameraCheck]:
    """By verdict, then by score."""
    order = {verdict: rank for rank, verdict in enumerate(PROBLEMS)}
    return sorted(
        checks,
        key=lambda one: (order.get(one.verdict, len(order)), one.score or 0.0, one.camera),
    )


def write_fleet_report(path: Path, model: str, checks: Sequence[CameraCheck]) -> None:
    """Write the report, one HTML file.

    Raises:
        OSError: it cannot be written.
    """
    ordered = worst_first(checks)
    cameras = [(check, data_uri(check.image) if check.image is not None else "") for check in ordered]
    verdicts = Counter(check.verdict for check in ordered)
    context = {"model": model, "cameras": cameras, "verdicts": verdicts, "problems": PROBLEMS}
    write_report(path, "fleet.html.j2", context)
