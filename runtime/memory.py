"""Keeping the memory of a program that runs for months with many threads from creeping up."""

from __future__ import annotations

import ctypes
import os

__all__ = ["limit_arenas"]

_M_ARENA_MAX = -8  # of glibc's malloc.h


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
