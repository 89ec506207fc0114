"""How old a live frame is when its score comes, and where the time goes.

    python tests/field/age.py [--bundle BUNDLE] [--via rtsp|mjpeg] [--seconds 30] [--b-frames 0] [--low-delay]

A real camera server draws the time into each picture; it is read back from the picture that was scored. So
nothing depends on what the code under test says of itself. The bound: the median age is at most one interval
between frames and one run of the network. Exit code 1 where it is not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parts import FPS, Float64Array, UInt8Array, bundle_or_tiny, mjpeg_server, stamp

from grmp_edge.runtime.live.config import CameraConfig
from grmp_edge.runtime.live.live import Live, LiveScore
from grmp_edge.runtime.scorer import Scorer
from grmp_edge.runtime.video.capture import Capture, open_capture
from grmp_edge.views import Box, Views

STEPS = (
    ("to_here", "drawn, encoded, sent, received, decoded: until grab() has it"),
    ("convert", "YUV to BGR: retrieve()"),
    ("check", "frozen, black, no signal?"),
    ("prepare", "resized for the network"),
    ("hand_over", "to the scoring thread, and waiting for its turn"),
    ("network", "one run of the network"),
    ("deliver", "to whoever asked"),
)
FIRST_S = 30.0  # for the first score


class Timed:
    """A capture, and when each frame was where."""

    def __init__(self, inner: Capture) -> None:
        self._inner = inner
        self.stamp_s, self.overtaken, self.close = inner.stamp_s, inner.overtaken, inner.close
        self.passed_over, self.notice, self.damage = inner.passed_over, inner.notice, inner.damage
        self.times: dict[str, float] = {}

    def grab(self) -> None:
        self._inner.grab()
        self.times = {"grabbed": time.monotonic()}

    def retrieve(self) -> UInt8Array:
        image = self._inner.retrieve()
        self.times["converted"] = time.monotonic()
        return image


class TimedScorer:
    """A scorer that notes when it prepares and runs; one camera, so that notes and frames go in pairs."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer, self.bundle, self.summarise = scorer, scorer.bundle, scorer.summarise
        self.capture: Timed | None = None
        self.notes: dict[bytes, dict[str, float]] = {}  # by the whole view's pixels
        self.runs: list[tuple[float, float, dict[str, float]]] = []

    def prepare(self, image: UInt8Array, bgr: bool = False, boxes: Sequence[Box] | None = None) -> Views:
        began = time.monotonic()
        prepared = self._scorer.prepare(image, bgr, boxes)
        assert self.capture is not None
        note = {**self.capture.times, "checked": began, "prepared": time.monotonic()}
        self.notes = {**dict(list(self.notes.items())[-8:]), prepared.pixels[0].tobytes(): note}
        return prepared

    def read(self, batch: Sequence[Views]) -> list[Float64Array]:
        notes = self.notes
        own = [notes.get(views.pixels[0].tobytes()) for views in batch]
        began = time.monotonic()
        result = self._scorer.read(batch)
        ended = time.monotonic()
        self.runs.extend((began, ended, note or {}) for note in own)
        return result


def measure(
    scorer: Scorer, source: str, seconds: float, low_delay: bool | None = None, settle: float = 5.0
) -> dict[str, Any]:
    """The medians in milliseconds, of the frames that came after the first ``settle`` seconds."""
    timed = TimedScorer(scorer)

    def opener(config: CameraConfig) -> Timed:
        timed.capture = Timed(open_capture(config))
        return timed.capture

    rows: list[dict[str, float]] = []
    unread = 0
    with Live(timed, [CameraConfig(source, "camera", low_delay=low_delay)], opener=opener) as live:  # type: ignore[arg-type]
        began = 0.0
        timer = threading.Timer(FIRST_S, live.stop)
        timer.start()
        for event in live.events():
            now = time.monotonic()
            if not isinstance(event, LiveScore):
                continue
            if not began:
                began = now
                timer.cancel()
                timer = threading.Timer(settle + seconds, live.stop)
                timer.start()
            run_began, run_ended, note = timed.runs[-1]
            drawn = stamp(event.image)
            if now - began < settle or not note:
                continue
            if drawn is None:
                unread += 1
                continue
            at = [drawn[0], note["grabbed"], note["converted"], note["checked"], note["prepared"], run_began]
            at += [run_ended, now]
            row = {name: (b - a) * 1000 for (name, _), a, b in zip(STEPS, at[:-1], at[1:], strict=True)}
            rows.append(row | {"age": (now - drawn[0]) * 1000, "said": event.score.age_ms or 0.0})
        stats = live.status()[0].stats
    if len(rows) < 10:
        sys.exit(f"error: only {len(rows)} frames in {seconds} s ({stats.detail or 'no detail'})")
    ages = sorted(row["age"] for row in rows)
    return {
        "frames": len(rows), "unread": unread, "dropped": stats.dropped, "size": stats.size,
        "age_ms": {"median": statistics.median(ages), "p95": ages[int(0.95 * len(ages))], "max": ages[-1]},
        "said_ms": statistics.median(row["said"] for row in rows),
        "steps_ms": {name: statistics.median(row[name] for row in rows) for name, _ in STEPS},
    }  # fmt: skip


def main() -> int:
    """Measure and print; 0 if the bound holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--bundle", type=Path, help="default: a network of a few operators")
    parser.add_argument("--via", choices=("rtsp", "mjpeg"), default="rtsp")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--size", default="384x288", help="of the pictures, over RTSP")
    parser.add_argument("--b-frames", type=int, default=0, help="what the camera's encoder uses")
    parser.add_argument("--threads", type=int, help="of the network")
    parser.add_argument("--no-low-delay", action="store_true", help="the camera's setting low_delay = false")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(bundle_or_tiny(options.bundle))
        if options.via == "mjpeg":
            source = stack.enter_context(mjpeg_server())
        else:
            from helpers_live import free_port, rtsp_server

            port = free_port()
            width, height = map(int, options.size.split("x"))
            stack.enter_context(rtsp_server(port, width, height, FPS, options.b_frames))
            source = f"rtsp://127.0.0.1:{port}/live"
        scorer = stack.enter_context(Scorer.open(path, threads=options.threads))
        found = measure(scorer, source, options.seconds, False if options.no_low_delay else None)
    interval, network = 1000.0 / FPS, found["steps_ms"]["network"]
    bound, age = interval + network, found["age_ms"]["median"]
    found |= {"via": options.via, "interval_ms": interval, "bound_ms": bound, "held": age <= bound}
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{options.via}, {found['size']}, {FPS} frames a second, {found['frames']} scored frames")
    print(f"| step | median ms | what |\n|---|---|---|\n| interval | {interval:.1f} | between two frames |")
    for name, what in STEPS:
        print(f"| {name} | {found['steps_ms'][name]:.1f} | {what} |")
    print(
        f"age: median {age:.1f} ms, 95 % {found['age_ms']['p95']:.1f}, most {found['age_ms']['max']:.1f}; ",
        end="",
    )
    print(f"age_ms of the scores says {found['said_ms']:.1f} (from the frame's arrival)")
    print(f"bound: {interval:.1f} + {network:.1f} = {bound:.1f} ms: {'held' if age <= bound else 'NOT HELD'}")
    return 0 if age <= bound else 1


if __name__ == "__main__":
    sys.exit(main())
