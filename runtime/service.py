"""Running for months: systemd's notification protocol, and a limit on what threads cost in memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

__all__ = ["end_at_once", "interrupt", "limit_arenas", "notify", "on_end_signals", "supervised"]

_M_ARENA_MAX = -8  # of glibc's malloc.h


def notify(state: str) -> bool:
    """Send ``state`` (``READY=1``, ``WATCHDOG=1``, ...) to systemd; False if systemd does not listen.

    Source: sd_notify(3). Never raises: a failed notification must not end the service.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):  # Linux's abstract names begin with a NUL
        address = f"\0{address[1:]}"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as client:
            client.sendto(state.encode(), address)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def on_end_signals(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Call ``handler`` on Ctrl-C, SIGTERM and SIGHUP while the block runs; on the main thread.

    A SIGHUP that is ignored, as under nohup, stays so.
    """
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def end_at_once(number: int) -> None:
    """The next signal of this number ends the program, whatever it does."""
    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def interrupt(number: int, frame: object) -> None:
    """A handler that ends a command as Ctrl-C does, so that it keeps what it has.

    Raises:
        KeyboardInterrupt: always, with the signal's number.
    """
    raise KeyboardInterrupt(number)


@contextlib.contextmanager
def supervised(beat_s: Callable[[], float]) -> Iterator[None]:
    """Tell systemd that the service is ready, alive while the block runs, and stopping.

    If the unit sets WatchdogSec, a notification goes out at half that interval as long as the work's last
    beat is more recent than the interval: a service that hangs falls silent, and systemd restarts it.

    Args:
        beat_s: returns the time.monotonic() of the last progress.
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
    """The unit's WatchdogSec in seconds; 0 if it has none, or if it is meant for another process."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    text = os.environ.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isdecimal() else 0.0


def limit_arenas(count: int = 2) -> bool:
    """Limit glibc to ``count`` memory arenas for all threads; whether it did.

    By default each new thread may get its own arena, up to eight per core: frames of short-lived threads
    spread over all of them, and free memory in one arena serves no other. Call it before threads start.
    ``MALLOC_ARENA_MAX`` in the environment takes precedence. Does nothing with another C library.
    """
    if "MALLOC_ARENA_MAX" in os.environ:
        return False
    try:
        return bool(ctypes.CDLL("libc.so.6").mallopt(_M_ARENA_MAX, count))
    except (OSError, AttributeError):
        return False
