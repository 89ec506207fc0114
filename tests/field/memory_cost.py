"""What the memory and the alarms of many cameras cost: CPU for each frame, memory, and disk after a year.

python tests/field/memory_cost.py                # 50 cameras, 5 scores a second
python tests/field/memory_cost.py --days 365     # and the file of one camera after a year
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from simulate import DAY, START, World

from grmp_edge.runtime.live.alarms import CameraAlarms
from grmp_edge.runtime.live.alert import AlertRule
from grmp_edge.runtime.live.tamper import Tamper
from grmp_edge.score import Tile
from grmp_edge.views import cover


def resident() -> int:
    """Bytes of memory in use now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cameras", type=int, default=50)
    parser.add_argument("--fps", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--days", type=int, default=0)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    rule, folder = AlertRule(preset="normal"), Path(tempfile.mkdtemp())
    rng = np.random.default_rng(0)
    scene = cv2.resize(rng.integers(0, 255, (54, 96, 3), dtype=np.uint8), (1920, 1080)).astype(np.int16)
    frames = [(scene + rng.integers(-3, 4, scene.shape)).clip(0, 255).astype(np.uint8) for _ in range(4)]
    before = resident()
    size = (1920, 1080)
    tiles = [Tile(box.left, box.top, 224, 224, 0.6) for box in cover(size[1], size[0], 224)]
    cameras = [
        CameraAlarms(rule, f"camera {index}", "m", folder, Tamper(), now=0.0)
        for index in range(options.cameras)
    ]
    for alarms in cameras:  # known for three days, so that every test runs
        for minute in range(3 * 1440):
            alarms.memory.add(START + 60.0 * minute, 0.6)
            if minute % 10 == 0:
                alarms.parts.add(START + 60.0 * minute, tiles, size)
    scoring = looking = 0.0
    for number in range(options.seconds * options.fps):
        now = 3 * DAY + number / options.fps
        value = 0.6 + 0.02 * float(rng.normal())
        for alarms in cameras:
            began = time.thread_time()
            alarms.score(now, START + now, value, tiles, size)
            middle = time.thread_time()
            alarms.picture(now, START + now, frames[number % 4])
            scoring, looking = scoring + middle - began, looking + time.thread_time() - middle
    count = options.cameras * options.seconds * options.fps
    after = resident()
    for alarms in cameras:
        alarms.save(now)
    stored = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{options.cameras} cameras, {options.fps} frames of 1080p a second, {options.seconds} s:")
    for name, spent in (("scores", scoring), ("pictures", looking)):
        share = 100 * spent / options.seconds
        print(f"  {name:9} {spent / count * 1e6:6.1f} us of CPU each, {share:.1f} % of a core")
    print(f"  memory    {(after - before) / 1e6:.1f} MB for all; disk {stored / 1024:.0f} KB for all")
    if options.days:
        world = World("day and night", 0, 60)
        alarms = CameraAlarms(rule, "year", "m", folder, Tamper(), now=0.0)
        for day in range(options.days):
            for index, value in enumerate(world.one_day(day).tolist()):
                now = day * DAY + index * 60.0
                alarms.score(now, START + now, value, tiles, size)
            for hour in range(0, 24, 2):
                for second in range(8):
                    now = day * DAY + hour * 3600.0 + second
                    alarms.picture(now, START + now, frames[0])
        alarms.save(now)
        stored = (folder / "year.json").stat().st_size
        print(f"  disk      {stored / 1024:.1f} KB for a camera after {options.days} days")


if __name__ == "__main__":
    main()
