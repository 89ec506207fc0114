"""The sink behind ``watch`` without a table: one line per event, written to a file descriptor."""

from __future__ import annotations

import os
from collections.abc import Callable

from grmp_edge.runtime.sinks.queue import Message, Record, Throttle, Writer

__all__ = ["LineWriter"]


class LineWriter(Writer):
    """Writes one line per event to a file descriptor, on its sink's thread; the descriptor stays open.

    It bypasses sys.stdout: if the reader stopped reading, the thread would hold the lock of sys.stdout, and
    the program would wait for it at exit.
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
        self._cut = False  # only part of the last line was written

    def wants(self, record: Record) -> bool:
        """All changes and alerts; of the scores, one per camera and interval."""
        return self._throttle.passes(record)

    def write(self, message: Message) -> None:
        """Write one line, whole."""
        text = self._line(message.record)
        if text is None:
            return
        data = (text + "\n").encode("utf-8", "backslashreplace")
        if self._cut:  # a full disk cut the last line: keep this one whole
            data = b"\n" + data
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
                self._cut = bool(data)
        except BrokenPipeError:
            self._gone()
            raise
