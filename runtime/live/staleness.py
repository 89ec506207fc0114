"""The true arrival time of live frames: buffers on the way deliver old frames in a burst."""

from __future__ import annotations

from collections import deque

__all__ = ["ArrivalClock"]

_WINDOW_S = 30.0  # camera clocks drift and jump, so older measurements are dropped
_BURST = 0.7  # frames that arrive faster than this share of their spacing come from a buffer
_JITTER_S = 0.1  # on top of two frames' spacing: ordinary network jitter
_SETTLE_S = 10.0  # of stream time: if the burst still lasts then, the time stamps mean nothing

_ODD = 4  # stamps that jump or repeat before time stamps are ignored


class ArrivalClock:
    """Compares a stream's time stamps with the local clock. One for each connection; not thread-safe.

    The smallest recent difference marks an undelayed frame; a frame with a larger one spent the rest in a
    buffer. A delay common to all frames cannot be measured here and is left out.
    """

    def __init__(self) -> None:
        self._last: tuple[float, float] | None = None  # (arrival, time stamp)
        self._first_stamp: float | None = None
        self._minima: deque[tuple[float, float]] = deque()  # (arrival, difference), differences rising
        self._settled = False  # the initial burst, of frames from before the stream was opened, is over
        self._odd = 0

    def step(self, now: float, stamp: float | None) -> tuple[float, bool]:
        """Take a frame.

        Args:
            now: when it arrived, monotonic seconds.
            stamp: its time in the stream in seconds; None if the stream has no time stamps.

        Returns:
            When it would have arrived without buffers (at most ``now``), and whether it is stale: part of a
            burst, with newer frames right behind it.
        """
        if stamp is None:
            return now, False
        last, self._last = self._last, (now, stamp)
        if last is None:
            self._first_stamp = stamp
            return now, True  # only the second frame shows whether this began a burst
        gap, spacing = now - last[0], stamp - last[1]
        if not 0 < spacing < _WINDOW_S:  # a jump or a repeated stamp voids earlier measurements
            self._minima.clear()
            self._first_stamp = stamp
            self._odd += 1
            # OpenCV stamps the first two frames alike; if that continues, the stream has no time stamps.
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
        """Seconds that the frame took longer than an undelayed one."""
        minima = self._minima
        while minima and minima[-1][1] >= difference:
            minima.pop()
        minima.append((now, difference))
        while now - minima[0][0] > _WINDOW_S:
            minima.popleft()
        return difference - minima[0][1]
