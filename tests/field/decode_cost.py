"""CPU time per frame of a stream, at one score a second: OpenCV, all frames decoded, or key frames only.

    python tests/field/decode_cost.py [--seconds 8] [--rounds 3] [--gop 50]

Needs the ffmpeg program, which makes a 1080p clip of 25 frames a second. Runs the ways in turn. OpenCV grabs
each frame and retrieves one a second, as this program did before it read streams by PyAV. Exit code 1: `auto`
takes more than an eighth of that.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2

from grmp_edge.runtime.video.base import DamagedFrame
from grmp_edge.runtime.video.capture import open_capture
from grmp_edge.runtime.video.config import CaptureConfig

MAX_FPS = 1.0
LEAST = 8.0


def make(path: Path, gop: int) -> None:
    encoder = ["-c:v", "libx264", "-preset", "veryfast", "-b:v", "4M", "-g", str(gop), "-sc_threshold", "0"]
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc2=s=1920x1080:r=25", "-t", "8"]
    noise = ["-vf", "noise=alls=6:allf=t", "-pix_fmt", "yuv420p"]
    once = path.with_name("once.mp4")
    subprocess.run([*command, *noise, *encoder, str(once)], check=True)
    # Longer than it is played: at the end of a file `auto` begins anew.
    again = ["ffmpeg", "-v", "error", "-stream_loop", "7", "-i", str(once), "-c", "copy", str(path)]
    subprocess.run(again, check=True)


class Grabbed:
    """A clip by OpenCV at its own speed."""

    def __init__(self, path: Path) -> None:
        self._capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
        self._began, self._frames = time.monotonic(), 0
        self.close = self._capture.release

    def grab(self) -> None:
        self._frames += 1
        if not self._capture.grab():
            self._capture.set(cv2.CAP_PROP_POS_FRAMES, 0)
        time.sleep(max(0.0, self._began + self._frames / 25 - time.monotonic()))

    def passed_over(self) -> bool:
        return False

    def retrieve(self) -> object:
        return self._capture.retrieve()


def cost(path: Path, decode: str, seconds: float) -> tuple[float, float]:
    """CPU milliseconds per frame of the stream, and pictures taken a second."""
    capture = (
        Grabbed(path)
        if decode == "opencv"
        else open_capture(CaptureConfig(f"file:{path}", decode=decode, max_fps=MAX_FPS))
    )
    warm = time.monotonic() + 7.0  # three key frames, by which `auto` decides
    while time.monotonic() < warm:
        capture.grab()
    frames = pictures = 0
    due, began, cpu = 0.0, time.monotonic(), time.process_time()
    while (now := time.monotonic()) - began < seconds:
        capture.grab()
        frames += 1
        if capture.passed_over() or now < due - 0.25 / MAX_FPS:
            continue
        due = max(due + 1 / MAX_FPS, now + 0.75 / MAX_FPS)
        try:
            capture.retrieve()
            pictures += 1
        except DamagedFrame:
            pass
    used = time.process_time() - cpu
    capture.close()
    return 1000 * used / frames, pictures / seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gop", type=int, default=50)
    options = parser.parse_args()
    costs: dict[str, list[float]] = {"opencv": [], "all": [], "key": [], "auto": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        make(path, options.gop)
        for _ in range(options.rounds):
            for decode, found in costs.items():
                milliseconds, rate = cost(path, decode, options.seconds)
                found.append(milliseconds)
                print(
                    f"{decode}: {milliseconds:.2f} ms of CPU per frame, {rate:.2f} pictures a second",
                    flush=True,
                )
    for decode, found in costs.items():
        ratio = statistics.median(a / b for a, b in zip(costs["opencv"], found, strict=True))
        print(f"{decode}: median {statistics.median(found):.2f} ms, opencv / {decode} {ratio:.1f}")
    return int(ratio < LEAST)  # of `auto`, the last


if __name__ == "__main__":
    sys.exit(main())
