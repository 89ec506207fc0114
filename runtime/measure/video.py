"""A video scored end to end, compared with a plain loop, in turn in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from grmp_edge.bundle import Bundle
from grmp_edge.errors import SourceError, UsageError
from grmp_edge.runtime.backends import open_session
from grmp_edge.runtime.bulk import BulkConfig, cores, score_bulk
from grmp_edge.runtime.scorer import Scorer
from grmp_edge.runtime.sources.sources import Failure, Sampling
from grmp_edge.runtime.video.files import read_video
from grmp_edge.score import Origin
from grmp_edge.views import Views, sigmoid

__all__ = ["PLAIN", "VideoBenchConfig", "VideoTiming", "bench_video"]

PLAIN = "plain loop"


@dataclass(frozen=True)
class VideoBenchConfig:
    """What is measured."""

    rounds: int = 3  # each side in turn, so that other load slows all alike
    every: int = 1  # score each N-th frame
    batch: int = 8
    threads: int | None = None  # cores to use; None: all that this process may

    def __post_init__(self) -> None:
        if min(self.rounds, self.every, self.batch, self.threads or 1) < 1:
            raise UsageError("rounds, every, batch and threads must be 1 or more")


@dataclass(frozen=True)
class VideoTiming:
    """The speed of one side on the whole file."""

    name: str
    frames: int  # scored
    seconds: float  # median over the rounds
    frames_per_s: float
    speedup: float  # the plain loop's time in the same round over this one's; median over the rounds
    # The share of the time that is not the network's, by timing the same runs of the network alone: 0 is as
    # fast as the network allows.
    outside_network: float
    difference: float  # the largest, of a frame's score from the plain loop's


@dataclass
class _Side:
    score: Callable[[], npt.NDArray[np.float64]]  # end to end
    network: Callable[[], object]  # the same runs of the network alone
    cv2_threads: int
    scores: npt.NDArray[np.float64] | None = None


def bench_video(
    bundle: Bundle,
    path: Path,
    config: VideoBenchConfig | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> list[VideoTiming]:
    """Score ``path`` with a plain loop and with this project, on the CPU, in turn.

    The plain loop is VideoCapture.read, cvtColor, resize and one run of the network per frame, with OpenCV's
    and onnxruntime's defaults and the graph of the first precision.

    Raises:
        SourceError: the video cannot be read.
        BackendError: a graph does not load.
    """
    config = config or VideoBenchConfig()
    allowed = config.threads or cores()
    precisions = tuple(bundle.graphs)
    progress("reading the video once")
    prepared = _prepare(bundle, path, config.every)
    default_threads = cv2.getNumThreads()
    sides = {PLAIN: _plain(bundle, precisions[0], path, config, prepared, default_threads)}
    scorers = []
    try:
        for precision in precisions:
            scorers.append(Scorer.open(bundle, precision, "cpu", threads=1))
            sides[f"grmp-edge {precision}"] = _ours(scorers[-1], path, config, prepared, min(8, allowed))
        times = _alternate(sides, config.rounds, progress)
    finally:
        cv2.setNumThreads(default_threads)
        for scorer in scorers:
            scorer.close()
    return [_timing(name, side, times, sides[PLAIN]) for name, side in sides.items()]


def _prepare(bundle: Bundle, path: Path, every: int) -> list[Views]:
    frames = read_video(path, Sampling(every))
    prepared = [bundle.preprocess.views(frame.image, frame.bgr) for frame in frames]
    if not prepared:
        raise SourceError(f"{path}: no frame to score", "give a longer video, or a smaller --every")
    return prepared


def _plain(
    bundle: Bundle,
    precision: str,
    path: Path,
    config: VideoBenchConfig,
    prepared: Sequence[Views],
    cv2_threads: int,
) -> _Side:
    session, graph = (
        open_session(bundle.graph(precision), config.threads, spinning=True),
        bundle.graphs[precision],
    )

    def run(pixels: npt.NDArray[np.uint8]) -> float:
        if not graph.logits:
            return float(session.run([graph.output], {graph.input: pixels})[0][0])
        logits = session.run([graph.logits], {graph.input: pixels})[0]
        return float(sigmoid(bundle.aggregate(logits[:, 0])))

    def score() -> npt.NDArray[np.float64]:
        capture, index, values = cv2.VideoCapture(str(path)), 0, []
        while True:
            ok, bgr = capture.read()
            if not ok:
                break
            if index % config.every == 0:
                rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
                values.append(run(bundle.preprocess.views(np.asarray(rgb, np.uint8)).pixels))
            index += 1
        capture.release()
        return np.array(values)

    return _Side(score, lambda: [run(views.pixels) for views in prepared], cv2_threads)


def _ours(
    scorer: Scorer,
    path: Path,
    config: VideoBenchConfig,
    prepared: Sequence[Views],
    runs: int,
) -> _Side:
    bulk = BulkConfig(config.batch, runs=runs)

    def score() -> npt.NDArray[np.float64]:
        return _values(score_bulk(scorer, [path], bulk, Sampling(config.every)))

    def network() -> object:
        from concurrent.futures import ThreadPoolExecutor

        batches = [prepared[at : at + config.batch] for at in range(0, len(prepared), config.batch)]
        origins = [[Origin("")] * len(batch) for batch in batches]
        with ThreadPoolExecutor(runs) as pool:
            return list(pool.map(scorer.score_prepared, origins, batches))

    return _Side(score, network, cv2_threads=1)


def _values(results: Any) -> npt.NDArray[np.float64]:
    values = []
    for result in results:
        if isinstance(result, Failure):
            raise result.error
        values.append(result.value)
    return np.array(values)


def _alternate(
    sides: dict[str, _Side], rounds: int, progress: Callable[[str], None]
) -> dict[str, tuple[list[float], list[float]]]:
    """For each side, the seconds end to end and of its network alone, by round."""
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in sides}
    for round_ in range(rounds + 1):
        for name, side in sides.items():
            progress(f"warming up {name}" if round_ == 0 else f"round {round_} of {rounds}: {name}")
            cv2.setNumThreads(side.cv2_threads)
            start = time.perf_counter()
            side.scores = side.score()
            middle = time.perf_counter()
            side.network()
            if round_:
                times[name][0].append(middle - start)
                times[name][1].append(time.perf_counter() - middle)
    return times


def _timing(
    name: str, side: _Side, times: dict[str, tuple[list[float], list[float]]], plain: _Side
) -> VideoTiming:
    whole, network = times[name]
    assert side.scores is not None and plain.scores is not None
    if len(side.scores) != len(plain.scores):
        raise SourceError(
            f"{name} scored {len(side.scores)} frames and the plain loop {len(plain.scores)}",
            "give another video",
        )
    seconds = statistics.median(whole)
    outside = statistics.median(1 - alone / own for own, alone in zip(whole, network, strict=True))
    return VideoTiming(
        name=name,
        frames=len(side.scores),
        seconds=round(seconds, 3),
        frames_per_s=round(len(side.scores) / seconds, 2),
        speedup=round(statistics.median(a / b for a, b in zip(times[PLAIN][0], whole, strict=True)), 3),
        outside_network=round(outside, 3),
        difference=float(np.abs(side.scores - plain.scores).max()),
    )
