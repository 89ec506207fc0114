"""When a live frame really came: buffers between the camera and here hand old frames over in a burst."""

from __future__ import annotations

from collections import deque

__all__ = ["ArrivalClock"]

_WINDOW_S = 30.0  # clocks of cameras drift and jump; what was learnt longer ago is forgotten
_BURST = 0.7  # frames that come faster than this share of their own spacing come out of a buffer
_JITTER_S = 0.1  # on top of two frames' spacing, what an ordinary network does
_SETTLE_S = 10.0  # of the stream's time: a stream still bursting then has time stamps that mean nothing

_ODD = 4  # stamps that do not go on before they are not believed


class ArrivalClock:
    """Compares the stream's own time stamps with our clock. One for each connection.

    The smallest difference seen of late is the clear path; a frame that took longer waited in a buffer for
    the rest. A delay that every frame has cannot be seen from here and is not part of it.
    """

    def __init__(self) -> None:
        self._last: tuple[float, float] | None = None  # (arrival, time stamp)
        self._first_stamp: float | None = None
        self._minima: deque[tuple[float, float]] = deque()  # (arrival, difference), differences rising
        self._settled = False  # the burst from before the stream was opened is over
        self._odd = 0

    def step(self, now: float, stamp: float | None) -> tuple[float, bool]:
        """Take in a frame.

        Args:
            now: when it was received, monotonic seconds.
            stamp: its time in the stream in seconds; None: the stream has no time stamps.

        Returns:
            When it would have come on a clear path (at most ``now``), and whether it is stale: one of a burst
            out of a buffer, with newer frames right behind it.
        """
        if stamp is None:
            return now, False
        last, self._last = self._last, (now, stamp)
        if last is None:
            self._first_stamp = stamp
            return now, True  # whether it is the first of a burst shows at the second
        gap, spacing = now - last[0], stamp - last[1]
        if not 0 < spacing < _WINDOW_S:  # a jump or a repeated stamp: what was learnt is void
            self._minima.clear()
            self._first_stamp = stamp
            self._odd += 1
            # OpenCV stamps the first two frames alike; a stream that goes on so has no time stamps.
            self._settled = self._settled or self._odd >= _ODD
            return now, not self._settled
        bursting = gap < _BURST * spacing
        if not self._settled:
            assert self._first_stamp is not None
            self._settled = not bursting or stamp - self._first_stamp > _SETTLE_S
            if not self._settled:
                return now, True
        lag = self._lag(now, now - stamp)
        return now - lag, bursting and lag > 2 * spacing + _JITTER_S

    def _lag(self, now: float, difference: float) -> float:
        """How much longer than the clear path it took, in seconds."""
        minima = self._minima
        while minima and minima[-1][1] >= difference:
            minima.pop()
        minima.append((now, difference))
        while now - minima[0][0] > _WINDOW_S:
            minima.popleft()
        return difference - minima[0][1]
