"""How `watch` shows its cameras: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from grmp_edge.runtime.live.live import CameraStatus
    from grmp_edge.runtime.sinks.queue import Record, ScoreRecord

__all__ = ["Trends", "plain_line", "status_table"]

_BARS = "▁▂▃▄▅▆▇█"


def plain_line(record: Record) -> str:
    """An event as a line to read."""
    from grmp_edge.runtime.report import printable

    at = time.strftime("%H:%M:%S", time.localtime(record["at"]))
    name = printable(record["camera"])
    cause = f": {printable(record['cause'])}" if record["event"] != "camera" and "cause" in record else ""
    if record["event"] == "score":
        return f"{at}  {record['value']:.4f}  age {record['age_ms']:6.1f} ms  {name}{cause}"
    if record["event"] == "alert":
        word = "ALERT" if record["raised"] else "clear"
        if record["kind"] not in ("low", "drop") or "value" not in record or "limit" not in record:
            detail = f": {printable(record['detail'])}" if record.get("detail") else ""
            return f"{at}  {word}  {record['kind'].replace('_', ' ')}  {name}{detail}"
        what = "score" if record["kind"] == "low" else "drop to"
        return f"{at}  {word}  {what} {record['value']:.4f}, limit {record['limit']:.4f}  {name}{cause}"
    detail = f": {printable(record['detail'])}" if "detail" in record else ""
    picture = "" if record["picture"] == "ok" else f", picture {record['picture']}"
    retry = f", again in {record['retry_s']:.0f} s" if "retry_s" in record else ""
    return f"{at}  {record['state']}{picture}  {name}{detail}{retry}"


class Trends:
    """The last scores of each camera, a mean a second."""

    def __init__(self, seconds: int = 30) -> None:
        self._seconds = seconds
        self._means: dict[str, deque[tuple[int, list[float]]]] = {}

    def add(self, record: ScoreRecord) -> None:
        """Add the record of a score."""
        means = self._means.setdefault(record["camera"], deque(maxlen=self._seconds))
        second = int(record["at"])
        if not means or means[-1][0] != second:
            means.append((second, []))
        means[-1][1].append(record["value"])

    def line(self, camera: str) -> str:
        """A bar for each second, lowest at 0 and highest at 1."""
        means = [statistics.fmean(values) for _, values in list(self._means.get(camera, ())) if values]
        return "".join(_BARS[min(7, int(value * 8))] for value in means)


_COLOURS = {"running": "green", "restarting": "yellow", "error": "red"}  # by state; others are dim


def status_table(statuses: Sequence[CameraStatus], trends: Trends, lost: int) -> Table:
    """A table of all cameras; ``lost``: how many events the sinks could not take."""
    from rich.table import Table
    from rich.text import Text

    from grmp_edge.runtime.report import printable

    now = time.monotonic()
    caption = f"{lost} events lost by sinks; Ctrl-C ends" if lost else "Ctrl-C ends"
    table = Table(caption=caption, caption_justify="left")
    causes = any(status.last is not None and status.last.causes for status in statuses)
    for name in (
        "score",
        "trend",
        *(["cause"] if causes else []),
        "state",
        "fps",
        "age",
        "dropped",
        "camera",
    ):
        right = name in ("score", "fps", "age", "dropped")
        table.add_column(name, justify="right" if right else "left", no_wrap=name != "camera")
    for status in statuses:
        stats, last = status.stats, status.last
        state = stats.state.value + ("" if stats.picture == "ok" else f", {stats.picture}")
        if status.alerts:
            state += f", ALERT {'+'.join(status.alerts)}"
        # From capture to now, not to the result: the age grows while nothing arrives.
        age = "-" if last is None or last.captured_s is None else _seconds(now - last.captured_s)
        colour = "red" if status.alerts or stats.picture != "ok" else _COLOURS.get(stats.state.value, "dim")
        detail = f"\n{printable(stats.detail)}" if stats.detail else ""
        table.add_row(
            "-" if last is None else f"{last.value:.4f}",
            trends.line(status.camera),
            *([Text(printable((last and last.cause) or "-"))] if causes else []),
            Text(state, style=colour),
            f"{stats.fps:.1f}",
            age,
            str(stats.dropped + stats.stale + stats.expired),
            Text(printable(status.camera)).append(detail, style="dim"),
        )
    return table


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 10 else f"{value:.0f} s"
