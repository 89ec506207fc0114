"""Does a change slow the server? Pictures a second and CPU for each, of two commits in turn.

    python tests/field/serve_load.py BEFORE [AFTER] [--clients 1 8 50] [--seconds 4] [--rounds 5]

BEFORE and AFTER are commits (default: AFTER is the checkout as it is). Both servers run all the time; each is
asked in turn, by so many clients that keep their connections, to score 720p JPEGs with the default model. CPU
is that of the server and its children. Exit code 1: by the median of the pairs' ratios AFTER answers fewer
than .95 of BEFORE's pictures, by the clock and by CPU alike: on a busy machine the clock says little.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
LEAST = 0.95


def picture() -> bytes:
    rng = np.random.default_rng(0)
    coarse = cv2.resize(rng.integers(0, 240, (45, 80, 3), dtype=np.uint8), (1280, 720))
    noisy = np.asarray(coarse, np.uint8) + rng.integers(0, 12, coarse.shape, dtype=np.uint8)
    return bytes(cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, 85])[1])


@contextlib.contextmanager
def checkout(commit: str | None) -> Iterator[Path]:
    if commit is None:
        yield ROOT
        return
    with tempfile.TemporaryDirectory(prefix="serve-load-") as folder:
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, stdout=subprocess.PIPE)
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        yield Path(folder)


@contextlib.contextmanager
def server(folder: Path) -> Iterator[tuple[int, int]]:
    """Its port and its process' number."""
    process = subprocess.Popen(
        [sys.executable, "-m", "grmp_edge", "serve", "--port", "0", "--concurrency", "64"],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        lines = ""
        while not (found := re.search(r" at http://\S+?:(\d+);", lines)):
            line = process.stderr.readline()
            assert line, f"{folder}: {lines}"
            lines += line
        yield int(found[1]), process.pid
    finally:
        process.terminate()
        process.communicate()


def cpu_s(pid: int) -> float:
    """CPU seconds of a process and its children, of threads that have ended too."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    children = [child for task in tasks for child in (task / "children").read_text().split()]
    ticks = 0
    for one in (pid, *children):
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # in user mode and in the kernel
    return ticks / os.sysconf("SC_CLK_TCK")


def ask(port: int, clients: int, seconds: float, data: bytes) -> int:
    """How many pictures were scored."""
    done = [0] * clients
    end = time.monotonic() + seconds

    def run(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while time.monotonic() < end:
            connection.request("POST", "/score", data)
            answer = connection.getresponse()
            answer.read()
            done[number] += answer.status == 200
        connection.close()

    asking = [threading.Thread(target=run, args=(number,)) for number in range(clients)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    return sum(done)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before")
    parser.add_argument("after", nargs="?")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 50])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    data, slower = picture(), False
    with contextlib.ExitStack() as stack:
        both = [
            stack.enter_context(server(stack.enter_context(checkout(commit))))
            for commit in (options.before, options.after)
        ]
        for port, _ in both:
            ask(port, 4, 2.0, data)  # warm
        for clients in options.clients:
            rates: list[list[float]] = [[], []]
            costs: list[list[float]] = [[], []]
            for turn in range(options.rounds):
                for side in (0, 1) if turn % 2 else (1, 0):
                    port, pid = both[side]
                    cpu, began = cpu_s(pid), time.monotonic()
                    count = ask(port, clients, options.seconds, data)
                    rates[side].append(count / (time.monotonic() - began))
                    costs[side].append((cpu_s(pid) - cpu) / max(1, count))
            speed, frugality = (
                statistics.median(new / old for old, new in zip(*pair, strict=True))
                for pair in (rates, (costs[1], costs[0]))
            )
            slower |= speed < LEAST and frugality < LEAST
            rate, cost = (list(map(statistics.median, pair)) for pair in (rates, costs))
            print(
                f"{clients:3} clients: {rate[0]:6.1f} -> {rate[1]:6.1f} pictures/s (x{speed:.3f}), "
                f"{cost[0] * 1e3:6.2f} -> {cost[1] * 1e3:6.2f} ms CPU each (x{1 / frugality:.3f})",
                flush=True,
            )
    return int(slower)


if __name__ == "__main__":
    sys.exit(main())
