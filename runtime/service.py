"""Running for months: systemd's notification protocol, and a limit on what threads cost in memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

__all__ = ["limit_arenas", "notify", "supervised"]

_M_ARENA_MAX = -8  # of glibc's malloc.h


def notify(state: str) -> bool:
    """Send ``state`` (``READY=1``, ``WATCHDOG=1``, ...) to systemd; False where there is none to tell.

    Source: sd_notify(3). Never raises: a service must not fail over the telling.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):  # Linux's abstract names begin with a NUL
        address = f"\0{address[1:]}"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as door:
            door.sendto(state.encode(), address)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def supervised(beat_s: Callable[[], float]) -> Iterator[None]:
    """Tell systemd that the service is ready, that it lives while the block runs, and that it stops.

    Where the unit has WatchdogSec, a word goes out at half of that, as long as the work's own beat is not
    older than that: a service that hangs falls silent and is started again.

    Args:
        beat_s: time.monotonic() of the last time when the work went on.
    """
    period_s = _watchdog_s() / 2
    over = threading.Event()

    def work() -> None:
        while not over.wait(period_s):
            if time.monotonic() - beat_s() < 2 * period_s:
                notify("WATCHDOG=1")

    thread = threading.Thread(target=work, name="watchdog", daemon=True)
    notify("READY=1")
    if period_s > 0:
        thread.start()
    try:
        yield
    finally:
        notify("STOPPING=1")
        over.set()
        if period_s > 0:
            thread.join()


def _watchdog_s() -> float:
    """The unit's WatchdogSec in seconds; 0 where it has none, or it is meant for another process."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    text = os.environ.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isdecimal() else 0.0


def limit_arenas(count: int = 2) -> bool:
    """Have glibc serve all threads from ``count`` pools of memory; whether it was done.

    By default each new thread may take a pool of its own, up to eight a core: frames of changing threads are
    spread over all of them, and what is free in one serves no other. To be called before threads are started.
    ``MALLOC_ARENA_MAX`` in the environment goes before it. Does nothing where the C library is another.
    """
    if "MALLOC_ARENA_MAX" in os.environ:
        return False
    try:
        return bool(ctypes.CDLL("libc.so.6").mallopt(_M_ARENA_MAX, count))
    except (OSError, AttributeError):
        return False
