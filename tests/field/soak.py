"""Does it hold for long? Cameras with faults all the while, and dead ones; nothing may grow.

    python tests/field/soak.py [--minutes 60] [--cameras 50] [--dead 40] [--bundle BUNDLE] [--json FILE]

Of the cameras, so many are dead: half of them refuse the connection, half take it and say nothing, and all
are tried again and again. Half of the others stand behind proxies; every few seconds one of them is cut off,
held up for longer than its read timeout, or damaged, or one of the servers is killed and started again. The
results go to a JSON lines file and a database.

The first quarter of the time is left out (caches fill); the rest is cut into twelve blocks, and a line is
fitted to the medians of their memory. Single samples would not do: each resembles the one before, so that a
line through them is far less certain than its error says. Each is taken after malloc_trim, so that it is what
the program holds, and not what the allocator keeps in reserve. Exit code 0: zero growth lies within twice the
slope's standard error, or all of it is below a megabyte, and threads and descriptors end as they were; 1: not
so, or a picture was scored that must not be; 2: memory wanders by more than one part in fifty, so that the
run was too short to tell.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import random
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from parts import FPS, Watcher, bundle_or_tiny, slope, usage

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from helpers_live import Proxy, free_port, rtsp_server

from grmp_edge.runtime.live.config import CameraConfig
from grmp_edge.runtime.live.live import Live
from grmp_edge.runtime.scorer import Scorer
from grmp_edge.runtime.service import limit_arenas
from grmp_edge.runtime.sinks.make import make_sink

_READ_TIMEOUT_S = 3.0
_SAMPLE_S = 1.0
_BLOCKS = 12
_LEAST_MB = 1.0  # a growth that nobody could tell from the allocator's pages


class Faults:
    """One fault after the other, each at one of the cameras behind a proxy."""

    def __init__(self, ports: list[int], proxies: list[Proxy], servers: list[contextlib.ExitStack]) -> None:
        self._ports, self._proxies, self._servers = ports, proxies, servers
        self._random = random.Random(0)
        self._undo: list[tuple[float, Any]] = []
        self.made = {"cut": 0, "held": 0, "damaged": 0, "killed": 0}

    def step(self, now: float) -> None:
        """End what has lasted long enough and begin something else."""
        for at, undo in list(self._undo):
            if now >= at:
                undo()
                self._undo.remove((at, undo))
        if self._undo:
            return
        kind = self._random.choice(list(self.made))
        proxy = self._random.choice(self._proxies)
        self.made[kind] += 1
        if kind == "held":
            proxy.flow.clear()
            self._undo.append((now + 1.5 * _READ_TIMEOUT_S, proxy.flow.set))
        elif kind == "damaged":
            proxy.damage = True
            self._undo.append((now + 3.0, lambda: setattr(proxy, "damage", False)))
        elif kind == "cut":
            proxy.cut()
            self._undo.append((now + 3.0, lambda: None))
        else:
            which = self._random.randrange(len(self._servers))
            self._servers[which].close()
            self._undo.append(
                (now + 2.0, lambda: self._servers[which].enter_context(rtsp_server(self._ports[which])))
            )

    def end(self) -> None:
        """Undo what is still going on."""
        for _, undo in self._undo:
            undo()
        self._undo.clear()


def trim() -> None:
    """Give what malloc holds and nobody uses back to the system, where the C library is glibc."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def dead_ports(stack: contextlib.ExitStack, count: int) -> list[int]:
    """Ports of cameras that will never answer: nobody listens, or somebody who says nothing."""
    ports = []
    for number in range(count):
        if number % 2:
            silent = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=64))
            ports.append(silent.getsockname()[1])
        else:
            ports.append(free_port())
    return ports


def soak(bundle: Path, minutes: float, cameras: int, dead: int) -> dict[str, Any]:
    """Run it with so many cameras that work, and so many that are dead; figures for people and programs."""
    behind = max(1, cameras // 2)
    ports = [free_port() for _ in range(max(1, min(4, cameras // 2)))]  # several cameras share a server
    samples: list[tuple[float, float, int, int]] = []
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(contextlib.ExitStack()) for _ in ports]
        for port, server in zip(ports, servers, strict=True):
            server.enter_context(rtsp_server(port))
        proxies = [Proxy(ports[i % len(ports)]) for i in range(behind)]
        for proxy in proxies:
            stack.callback(proxy.close)
        configs = []
        for i in range(cameras):
            port = proxies[i].port if i < behind else ports[i % len(ports)]
            url = f"rtsp://127.0.0.1:{port}/live"
            configs.append(CameraConfig(url, f"cam{i}", read_timeout_s=_READ_TIMEOUT_S, backoff_max_s=4.0))
        alive = list(configs)
        configs += [
            CameraConfig(
                f"rtsp://127.0.0.1:{port}/live", f"dead{i}", open_timeout_s=_READ_TIMEOUT_S, backoff_max_s=4.0
            )
            for i, port in enumerate(dead_ports(stack, dead))
        ]
        scorer = stack.enter_context(Scorer.open(bundle, provider="cpu", threads=1))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        live = Live(scorer, configs)
        with Watcher(live) as watcher:
            watcher.keep = 200  # what it remembers must not look like a leak
            watcher.sinks += [
                make_sink({"kind": "jsonl", "path": folder / "a.jsonl", "max_bytes": 1 << 20}),
                make_sink({"kind": "sqlite", "path": folder / "a.db"}),
            ]
            for config in alive:
                if watcher.wait(config.name, 1, 120.0) is None:
                    sys.exit(f"error: {config.name} gives no scores")
            faults, began = Faults(ports, proxies, servers), time.monotonic()
            before = usage()
            while (now := time.monotonic()) - began < minutes * 60.0:
                # A while without faults at the end, so that threads can be compared.
                if now - began < minutes * 60.0 - 15.0:
                    faults.step(now)
                else:
                    faults.end()
                trim()
                found = usage()
                samples.append((now - began, found.rss_mb, found.threads, found.descriptors))
                time.sleep(_SAMPLE_S)
            after = usage()
            statuses = live.status()
        for sink in watcher.sinks:
            sink.close()
    settled = [sample for sample in samples if sample[0] >= 0.25 * samples[-1][0]]
    blocks = [
        settled[len(settled) * i // _BLOCKS : len(settled) * (i + 1) // _BLOCKS] for i in range(_BLOCKS)
    ]
    hours = [statistics.mean(sample[0] for sample in block) / 3600.0 for block in blocks]
    levels = [statistics.median(sample[1] for sample in block) for block in blocks]
    grown, error = slope(hours, levels)
    rate = sum(status.scored for status in statuses) / (minutes * 60.0)
    return {
        "minutes": minutes, "cameras": cameras, "dead": dead, "fps": FPS, "scores_per_s": rate,
        "connects": sum(status.stats.connects for status in statuses),
        "hangs": sum(status.stats.hangs for status in statuses), "faults": faults.made,
        "rss_mb": [before.rss_mb, after.rss_mb], "rss_mb_per_hour": grown, "standard_error": error,
        "hours": hours[-1] - hours[0], "levels_mb": levels,
        "rss_mb_range": [min(s[1] for s in settled), max(s[1] for s in settled)],
        "threads": [before.threads, after.threads], "descriptors": [before.descriptors, after.descriptors],
        "false": sum(seen.repeated + seen.synthetic for seen in watcher.seen.values()),
        "torn": sum(seen.torn for seen in watcher.seen.values()),
        "running_at_the_end": sum(status.stats.state.value == "running" for status in statuses),
        "samples": samples,
    }  # fmt: skip


def problems(found: dict[str, Any]) -> list[str]:
    """What is not as it must be."""
    told = []
    grown = found["rss_mb_per_hour"] * found["hours"]
    if found["rss_mb_per_hour"] > 2.0 * found["standard_error"] and grown > _LEAST_MB:
        told.append(f"memory grows, by {grown:.1f} MB in {found['hours'] * 60:.0f} min")
    if found["threads"][1] > found["threads"][0]:
        told.append(f"threads: {found['threads'][0]} -> {found['threads'][1]}")
    # One more at the moment of the count: a camera that is just being opened again, a database's journal.
    if found["descriptors"][1] > found["descriptors"][0] + 2:
        told.append(f"descriptors: {found['descriptors'][0]} -> {found['descriptors'][1]}")
    if found["false"]:
        told.append(f"{found['false']} false scores")
    if found["running_at_the_end"] < found["cameras"]:
        told.append(f"only {found['running_at_the_end']} cameras run at the end")
    return told


def undecided(found: dict[str, Any]) -> bool:
    """Whether memory wanders so much that a growth of one part in fifty would not show."""
    uncertain = 2.0 * found["standard_error"] * found["hours"]
    return bool(uncertain > max(_LEAST_MB, found["levels_mb"][-1] / 50))


def main() -> int:
    """Soak, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--cameras", type=int, default=50)
    parser.add_argument("--dead", type=int, default=40, help="of the cameras")
    parser.add_argument("--bundle", type=Path, help="default: a network of a few operators")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.minutes < 1.0:
        parser.error("--minutes: at least 1")
    if not 0 <= options.dead < options.cameras:
        parser.error("--dead: fewer than --cameras")
    limit_arenas()  # as `watch` does
    with bundle_or_tiny(options.bundle) as bundle:
        found = soak(bundle, options.minutes, options.cameras - options.dead, options.dead)
    if options.json:
        options.json.write_text(json.dumps(found) + "\n")
    low, high = found["rss_mb_range"]
    print(f"{found['cameras']} cameras at {FPS} a second and {found['dead']} dead ones, ", end="")
    print(f"{found['minutes']:g} min, {found['faults']}")
    print(
        f"{found['scores_per_s']:.1f} scores a second, {found['connects']} connections, {found['hangs']} hung"
    )
    print(f"memory {low:.1f} to {high:.1f} MB, slope {found['rss_mb_per_hour']:+.2f} MB/h", end=" ")
    print(f"+- {found['standard_error']:.2f} (standard error)")
    print(f"threads {found['threads']}, descriptors {found['descriptors']}", end=", ")
    print(f"false scores {found['false']}, damaged pictures scored {found['torn']}")
    told = problems(found)
    if told:
        print(f"DOES NOT HOLD: {'; '.join(told)}")
        return 1
    if undecided(found):
        print("UNDECIDED: memory wanders too much for so short a time; run it for longer")
        return 2
    print("holds: zero growth is within the noise")
    return 0


if __name__ == "__main__":
    sys.exit(main())
