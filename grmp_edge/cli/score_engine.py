"""What the command ``score`` runs on: this machine or a Ray cluster; and what it is given to score."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from grmp_edge.cli.options import Precision, Provider, open_scorer

if TYPE_CHECKING:
    from grmp_edge.runtime import Failure, Sampling, Score, Scorer
    from grmp_edge.runtime.score_file import Done
    from grmp_edge.runtime.sources.sources import Listed
    from grmp_edge.runtime.sources.stdin import RawFormat

__all__ = ["Engine", "ModelChoice", "RayChoice", "listing", "open_engine"]


@dataclass(frozen=True)
class ModelChoice:
    """Which graph to run, and how."""

    bundle: Path
    precision: Precision
    provider: Provider
    threads: int | None
    allow_cpu: bool


@dataclass(frozen=True)
class RayChoice:
    """Which cluster, and how much of it."""

    address: str
    actors: int
    cpus: float
    gpus: float


class Engine(Protocol):
    """Turns what was found into results, in order."""

    model_id: str

    def results(
        self, found: Iterable[Listed | Failure | None], last_frame: Callable[[str], int] | None
    ) -> Iterator[Score | Failure]:
        """Score everything; of a video, frames up to ``last_frame(name)`` are passed over."""


@contextlib.contextmanager
def open_engine(
    model: ModelChoice, cluster: RayChoice | None, batch: int, workers: int | None, sampling: Sampling
) -> Iterator[Engine]:
    """Make ready to score here, or on a Ray cluster."""
    if cluster is not None:
        from grmp_edge.runtime.cluster import RayConfig, RayScorer

        config = RayConfig(
            cluster.address, cluster.actors, cluster.cpus, cluster.gpus, batch=batch, workers=workers
        )
        with RayScorer(
            model.bundle,
            model.precision.value,
            model.provider.value,
            model.threads,
            model.allow_cpu,
            config,
            sampling,
        ) as remote:
            yield remote
        return
    import cv2

    from grmp_edge.runtime.bulk import BulkConfig, cores

    # Pictures are decoded side by side; OpenCV splitting each of them too would only take turns.
    cv2.setNumThreads(1)
    # Several runs of one thread instead of one of several; at most 8, since each holds its own memory.
    runs = min(8, cores()) if model.threads is None else 1
    threads = model.threads or max(1, cores() // runs)
    with open_scorer(model.bundle, model.precision, model.provider, threads, model.allow_cpu) as scorer:
        if scorer.backend.provider != "cpu":
            runs = 1
        yield _Local(scorer, BulkConfig(batch, workers, runs), sampling)


class _Local:
    def __init__(self, scorer: Scorer, config: object, sampling: Sampling) -> None:
        self.model_id = scorer.bundle.id
        self._scorer, self._config, self._sampling = scorer, config, sampling

    def results(
        self, found: Iterable[Listed | Failure | None], last_frame: Callable[[str], int] | None
    ) -> Iterator[Score | Failure]:
        from grmp_edge.runtime.bulk import BulkConfig, score_bulk

        assert isinstance(self._config, BulkConfig)
        return score_bulk(
            self._scorer,
            found,
            self._config,
            self._sampling,
            lambda listed: -1 if last_frame is None else last_frame(str(listed)),
        )


@contextlib.contextmanager
def listing(
    sources: list[str], raw: RawFormat | None, follow: bool, done: Done | None
) -> Iterator[Iterator[Listed | Failure | None]]:
    """What there is to score, without what ``done`` has; with ``follow`` Ctrl-C and SIGTERM end it."""
    if not follow:
        from grmp_edge.runtime.sources.sources import list_sources

        found = list_sources(sources, raw)
        yield (item for item in found if done is None or not _is_done(item, done))
        return
    from grmp_edge.runtime.sources.follow import follow as follow_folders

    stop = threading.Event()
    skip = (lambda path: path in done) if done is not None else (lambda path: False)

    def end(number: int, frame: object) -> None:
        stop.set()
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield follow_folders([Path(source) for source in sources], stop, skip=skip)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_done(item: Listed | Failure, done: Done) -> bool:
    from grmp_edge.runtime import Failure
    from grmp_edge.runtime.sources.sources import Remote

    if isinstance(item, Remote) and item.url != str(item):
        return False  # what is hidden of an address may be all that tells it from another
    return (item.source if isinstance(item, Failure) else str(item)) in done
