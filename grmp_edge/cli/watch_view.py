"""How `watch` shows its cameras: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from grmp_edge.runtime.live.events import CameraState
from grmp_edge.runtime.live.live import CameraStatus
from grmp_edge.runtime.report import printable
from grmp_edge.runtime.sinks.queue import Message, Record, ScoreRecord, Throttle, Writer

__all__ = ["LineWriter", "Trends", "plain_line", "status_table"]

_BARS = "▁▂▃▄▅▆▇█"


class LineWriter(Writer):
    """Writes a line an event to a file descriptor, on its sink's thread.

    Straight to the descriptor: a reader that stopped reading must not hold Python's own lock on stdout, at
    which the whole program would wait when it ends.
    """

    def __init__(
        self,
        line: Callable[[Record], str | None],
        gone: Callable[[], None],
        descriptor: int = 1,
        interval_s: float = 0.0,
    ) -> None:
        """``gone`` is called when the reader has closed its end; ``interval_s`` thins a camera's scores."""
        self._line, self._gone, self._descriptor = line, gone, descriptor
        self._throttle = Throttle(interval_s)
        self._cut = False  # only a part of the last line could be written

    def wants(self, record: Record) -> bool:
        """Changes and alerts all, scores as often as asked."""
        return self._throttle.passes(record)

    def write(self, message: Message) -> None:
        """Write one line, whole."""
        text = self._line(message.record)
        if text is None:
            return
        data = (text + "\n").encode("utf-8", "backslashreplace")
        if self._cut:  # by a full disk: only that line is lost, and not this one
            data = b"\n" + data
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
                self._cut = bool(data)
        except BrokenPipeError:
            self._gone()
            raise


def plain_line(record: Record) -> str:
    """An event as a line to read."""
    at = time.strftime("%H:%M:%S", time.localtime(record["at"]))
    name = printable(record["camera"])
    if record["event"] == "score":
        return f"{at}  {record['value']:.4f}  age {record['age_ms']:6.1f} ms  {name}"
    if record["event"] == "alert":
        word = "ALERT" if record["raised"] else "clear"
        what = "score" if record["kind"] == "low" else "drop to"
        return f"{at}  {word}  {what} {record['value']:.4f}, limit {record['limit']:.4f}  {name}"
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
        """Take in a score's record."""
        means = self._means.setdefault(record["camera"], deque(maxlen=self._seconds))
        second = int(record["at"])
        if not means or means[-1][0] != second:
            means.append((second, []))
        means[-1][1].append(record["value"])

    def line(self, camera: str) -> str:
        """A bar for each second, lowest at 0 and highest at 1."""
        means = [statistics.fmean(values) for _, values in list(self._means.get(camera, ())) if values]
        return "".join(_BARS[min(7, int(value * 8))] for value in means)


_COLOURS = {
    CameraState.RUNNING: "green", CameraState.RESTARTING: "yellow", CameraState.NOT_STARTED: "dim",
    CameraState.ERROR: "red", CameraState.STOPPED: "dim",
}  # fmt: skip


def status_table(statuses: Sequence[CameraStatus], trends: Trends, lost: int) -> Any:
    """A rich table of all cameras; ``lost`` is what the sinks could not take."""
    from rich.table import Table
    from rich.text import Text

    now = time.monotonic()
    caption = f"{lost} events lost by sinks; Ctrl-C ends" if lost else "Ctrl-C ends"
    table = Table(caption=caption, caption_justify="left")
    for name in ("score", "trend", "state", "fps", "age", "dropped", "camera"):
        right = name in ("score", "fps", "age", "dropped")
        table.add_column(name, justify="right" if right else "left", no_wrap=name != "camera")
    for status in statuses:
        stats, last = status.stats, status.last
        state = stats.state.value + ("" if stats.picture == "ok" else f", {stats.picture}")
        if status.alerts:
            state += f", ALERT {'+'.join(status.alerts)}"
        # From capture to now, not to the result: what one sees here grows when nothing comes.
        age = "-" if last is None or last.captured_s is None else _seconds(now - last.captured_s)
        colour = "red" if status.alerts or stats.picture != "ok" else _COLOURS[stats.state]
        detail = f"\n{printable(stats.detail)}" if stats.detail else ""
        table.add_row(
            "-" if last is None else f"{last.value:.4f}",
            trends.line(status.camera),
            Text(state, style=colour),
            f"{stats.fps:.1f}",
            age,
            str(stats.dropped + stats.stale + stats.expired),
            Text(printable(status.camera)).append(detail, style="dim"),
        )
    return table


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 10 else f"{value:.0f} s"
