"""A bound on how long anybody waits for a native call that may never return."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["within"]

_T = TypeVar("_T")

# For ending as asked: a call that comes back while Python ends would abort the process.
_GRACE_S = 10.0


def within(seconds: float, call: Callable[[], _T], stop: Callable[[], object]) -> _T:
    """What ``call`` returns or raises, on a thread of its own.

    After ``seconds``, ``stop`` asks it to end; whether it does or not, it is abandoned, and keeps no process
    from ending.

    Raises:
        TimeoutError: it has not returned by then.
    """
    result: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            result.append(call())
        except BaseException as error:  # raised again where it is waited for
            errors.append(error)

    thread = threading.Thread(target=run, name="bounded call", daemon=True)
    thread.start()
    try:
        thread.join(seconds)
    except BaseException:  # Ctrl-C
        stop()
        raise
    if thread.is_alive():
        stop()
        thread.join(_GRACE_S)
        raise TimeoutError
    if errors:
        raise errors.pop()
    value: _T = result[0]
    return value
