"""How the cost grows: with cameras, and with files.

    python tests/field/growth.py cameras [--counts 1,2,4,8,...] [--seconds 20] [--fps 1] [--bundle BUNDLE]
    python tests/field/growth.py files [--counts 1000,10000,100000] [--bundle BUNDLE]

Cameras: as many connections to a real RTSP server (640x480, 15 a second), watched by one process. CPU time
and memory are that process's alone, without the server's, which encodes for each. A camera breaks where less
is scored than asked for; what is then shed is counted by reason. Files: a folder of small JPEGs, scored by
the command into a JSON lines file; CPU time, peak memory and rows are those of that process. Without a bundle
the network is a few operators, and the figures are of all the rest.

Batch sizes: grmp-edge bench default --batch 1,2,4,8,16,32,64
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from parts import Watcher, bundle_or_tiny, usage

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from helpers_live import free_port, rtsp_server

from grmp_edge.runtime.live.config import CameraConfig
from grmp_edge.runtime.live.live import Live
from grmp_edge.runtime.scorer import Scorer
from grmp_edge.runtime.service import limit_arenas

_SETTLE_S = 5.0  # after the last camera gave its first score
_PICTURES = 100  # of different content; the folder's files are links to them


def cameras(bundle: Path, count: int, seconds: float, fps: float) -> dict[str, Any]:
    """Watch ``count`` cameras, each scored ``fps`` times a second, for ``seconds``."""
    with contextlib.ExitStack() as stack:
        ports = [free_port() for _ in range(min(4, count))]
        for port in ports:
            stack.enter_context(rtsp_server(port))
        configs = [
            CameraConfig(f"rtsp://127.0.0.1:{ports[index % len(ports)]}/live", f"cam{index}", max_fps=fps)
            for index in range(count)
        ]
        scorer = stack.enter_context(Scorer.open(bundle, provider="cpu", threads=1))
        live = Live(scorer, configs)
        with Watcher(live) as watcher:
            watcher.keep = 100
            for config in configs:
                if watcher.wait(config.name, 1, 180.0) is None:
                    sys.exit(f"error: {config.name} gives no scores")
            time.sleep(_SETTLE_S)
            before, cpu, start = live.status(), time.process_time(), time.monotonic()
            time.sleep(seconds)
            used, lasted, after = time.process_time() - cpu, time.monotonic() - start, live.status()
            weight = usage()
        scored = [(b.scored - a.scored) / lasted for a, b in zip(before, after, strict=True)]
        shed: Counter[str] = Counter()
        for a, b in zip(before, after, strict=True):
            shed.update(b.stats.not_scored())
            shed.subtract(a.stats.not_scored())
    return {
        "cameras": count,
        "scored_per_camera_and_s": round(sum(scored) / count, 3),
        "slowest_camera_per_s": round(min(scored), 3),
        "cpu_share_of_a_core_per_camera": round(used / lasted / count, 4),
        "memory_mb": round(weight.rss_mb, 1),
        "threads": weight.threads,
        "shed": {reason: number for reason, number in shed.items() if number},
    }


def files(bundle: Path, count: int) -> dict[str, Any]:
    """Score a folder of ``count`` files."""
    with tempfile.TemporaryDirectory() as name:
        folder, output = Path(name, "pictures"), Path(name, "scores.jsonl")
        folder.mkdir()
        rng = np.random.default_rng(0)
        for index in range(_PICTURES):
            coarse = rng.integers(0, 256, (12, 16, 3), np.uint8)
            picture = cv2.resize(coarse, (320, 240), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(f"{name}/{index}.jpg", picture)
        for index in range(count):
            os.link(f"{name}/{index % _PICTURES}.jpg", folder / f"{index:07}.jpg")
        command = [
            sys.executable,
            "-m",
            "grmp_edge",
            "score",
            str(bundle),
            str(folder),
            "--output",
            str(output),
        ]
        start = time.monotonic()
        process = subprocess.Popen([*command, "--quiet"], stderr=subprocess.PIPE)
        assert process.stderr is not None
        words = process.stderr.read().decode()
        _, status, cost = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        lasted = time.monotonic() - start
        if process.returncode:
            sys.exit(f"error: score ended with {process.returncode}: {words}")
        with output.open(encoding="utf-8") as rows:
            written = sum(1 for _ in rows)
    return {
        "files": count,
        "rows": written,
        "files_per_s": round(count / lasted, 1),
        "cpu_ms_per_file": round((cost.ru_utime + cost.ru_stime) * 1e3 / count, 2),
        "peak_memory_mb": round(cost.ru_maxrss / 1024, 1),
    }


def main() -> None:
    """Measure and print one JSON line for each count."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["cameras", "files"])
    parser.add_argument("--counts")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--fps", type=float, default=1.0)
    parser.add_argument("--bundle", type=Path)
    given = parser.parse_args()
    usual = "1,2,4,8,16,32,64" if given.what == "cameras" else "1000,10000,100000"
    limit_arenas()
    with bundle_or_tiny(given.bundle) as bundle:
        for count in map(int, (given.counts or usual).split(",")):
            if given.what == "cameras":
                result = cameras(bundle, count, given.seconds, given.fps)
            else:
                result = files(bundle, count)
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
