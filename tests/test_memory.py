"""The pools of memory of many threads."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# Eight threads hold memory at once; glibc itself then says how many pools there are.
COUNT = """
import ctypes, sys, threading
from grmp_edge.runtime.service import limit_arenas
print(limit_arenas() if sys.argv[1] == "limit" else None, flush=True)
held, ready = threading.Event(), threading.Barrier(9)
def work():
    blocks = [bytearray(20_000) for _ in range(20)]
    ready.wait()
    held.wait()
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
ready.wait()
ctypes.CDLL("libc.so.6").malloc_stats()
held.set()
"""


@pytest.mark.skipif(
    not hasattr(os, "confstr") or "CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="no glibc"
)
def test_threads_share_two_pools() -> None:
    found = {}
    clean = {key: value for key, value in os.environ.items() if key != "MALLOC_ARENA_MAX"}
    for kind, more in (("limit", {}), ("plain", {}), ("limit", {"MALLOC_ARENA_MAX": "3"})):
        done = subprocess.run(
            [sys.executable, "-c", COUNT, kind], capture_output=True, text=True, check=True, timeout=60,
            env={**clean, **more, "PYTHONPATH": str(Path(__file__).parents[1])},
        )  # fmt: skip
        pools = len(re.findall(r"^Arena \d+:", done.stderr, re.MULTILINE))
        found[kind, bool(more)] = (done.stdout.strip(), pools)
    assert found["limit", False] == ("True", 2)
    assert found["plain", False][1] > 2
    assert found["limit", True] == ("False", 3)
