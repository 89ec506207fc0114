"""Where the time for one large picture goes: decoding, resizing, swapping the channels, the network."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from grmp_edge.preprocess import decode_image
from grmp_edge.runtime.scorer import Scorer

__all__ = ["FRAME_SIZES", "StageTimes", "bench_frames"]

UInt8Array = npt.NDArray[np.uint8]

FRAME_SIZES = {"1080p": (1080, 1920), "4K": (2160, 3840)}  # (height, width)
_JPEG_QUALITY = 90  # as in cameras' snapshots


@dataclass(frozen=True)
class StageTimes:
    """Milliseconds for one picture in each stage, as medians."""

    size: str
    decode_ms: float  # a JPEG of quality 90 to RGB
    squash_ms: float  # bicubic to the network's size
    colour_ms: float  # BGR to RGB after resizing, as for video frames
    full_colour_ms: float  # the same before resizing, which is avoided
    network_ms: float  # a batch of one
    network_batch_ms: float  # one picture's share of a batch of 8


def bench_frames(
    scorer: Scorer, runs: int = 11, progress: Callable[[str], None] = lambda _: None
) -> list[StageTimes]:
    """Time the stages at 1080p and 4K, each ``runs`` times, on a computed scene."""
    rows = []
    small = scorer.prepare(_scene(270, 480))
    one, eight = small.pixels[:1], np.repeat(small.pixels[:1], 8, axis=0)
    for size, (height, width) in FRAME_SIZES.items():
        progress(f"stages at {size}")
        scene = _scene(height, width)
        jpeg = cv2.imencode(".jpg", scene, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()
        stages: dict[str, Callable[[], object]] = {
            "decode": lambda data=jpeg: decode_image(data),  # type: ignore[misc]
            "squash": lambda image=scene: scorer.prepare(image),  # type: ignore[misc]
            "colour": lambda: np.ascontiguousarray(one[..., ::-1]),
            "full": lambda image=scene: cv2.cvtColor(image, cv2.COLOR_BGR2RGB),  # type: ignore[misc]
            "one": lambda: scorer.backend.run(one),
            "eight": lambda: scorer.backend.run(eight),
        }
        times: dict[str, list[float]] = {name: [] for name in stages}
        for round_ in range(runs + 1):
            for name, stage in stages.items():
                start = time.perf_counter()
                stage()
                if round_:  # the first allocates and fills caches
                    times[name].append((time.perf_counter() - start) * 1e3)
        median = {name: round(statistics.median(values), 3) for name, values in times.items()}
        rows.append(
            StageTimes(
                size=size,
                decode_ms=median["decode"],
                squash_ms=median["squash"],
                colour_ms=median["colour"],
                full_colour_ms=median["full"],
                network_ms=median["one"],
                network_batch_ms=round(median["eight"] / 8, 3),
            )
        )
    return rows


def _scene(height: int, width: int) -> UInt8Array:
    """Shapes of all sizes and a little noise, so that its JPEG is about as large as a photograph's."""
    rng = np.random.default_rng(0)
    total = np.zeros((height, width, 3), np.float32)
    for cells in (4, 16, 64, 256):
        coarse = rng.standard_normal((cells, cells, 3)).astype(np.float32)
        total += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR) * (40 / cells**0.25)
    total += rng.standard_normal((height, width, 1)).astype(np.float32) * 3
    return np.asarray(np.clip(total + 120, 0, 255), dtype=np.uint8)
