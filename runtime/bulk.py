"""Many pictures: decoded on threads during inference, results in order, memory bounded."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeAlias

from grmp_edge.errors import GrmpError, ImageError, UsageError
from grmp_edge.runtime.scorer import Prepared, Scorer, in_order
from grmp_edge.runtime.sources.sources import Failure, Listed, Picture, Sampling, decode_listed
from grmp_edge.score import Origin, Score

__all__ = ["BulkConfig", "cores", "score_bulk"]

# How long closing waits for threads. A read may hang for ever and is abandoned; a run always ends.
_STOP_READING_S, _STOP_RUNNING_S = 1.0, 60.0
# Failures that may wait for a batch to fill, in batches: a million broken files must not pile up.
_FAILURES = 4


def cores() -> int:
    """How many CPU cores this process may use (a container or taskset may allow fewer than exist)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class BulkConfig:
    """How many pictures are in flight at once."""

    batch: int = 8  # views per inference, if one picture has no more: where CPUs stop gaining
    # Threads that read, decode and squash. None: one per core, at most 8 (inference is slower). What they
    # prepare ahead is bounded, so they do not starve inference.
    workers: int | None = None
    # Concurrent inferences. On a CPU, several with one thread each use the cores better than one with several
    # threads, which wait for each other at every operator; on a GPU one fills the device.
    runs: int = 1
    frames_ahead: int = 16  # prepared frames held per video, 150 kB a view at 224 pixels
    # An incomplete batch runs when nothing has arrived for this long: frames from a slow pipe must not wait
    # for those of the next few seconds.
    max_wait_s: float = 0.25

    def __post_init__(self) -> None:
        workers = 1 if self.workers is None else self.workers
        if min(self.batch, self.runs, self.frames_ahead, workers) < 1 or self.max_wait_s <= 0:
            raise UsageError("batch, workers, runs and frames_ahead must be 1 or more")


# None: nothing more for now, so an incomplete batch should not wait.
_Item: TypeAlias = "Listed | Picture | Failure | None"
_Result: TypeAlias = "Prepared | Failure | None"


def score_bulk(
    scorer: Scorer,
    items: Iterable[_Item],
    config: BulkConfig | None = None,
    sampling: Sampling | None = None,
    after: Callable[[Listed], int] = lambda _: -1,
) -> Generator[Score | Failure, None, None]:
    """Score a stream as :meth:`Scorer.score_many` does, with decoding on threads beside inference.

    Args:
        scorer: on a CPU best opened with ``threads=1`` if ``config.runs`` is more than 1.
        items: from :func:`list_sources`, read a little ahead of the results; a None asks for everything
            before it to be finished before the next item is taken.
        config: how much at once.
        sampling: which frames of videos to take; default all.
        after: for a video, the index of the last frame to skip.

    Yields:
        In the order of ``items``: a Score for each picture and a Failure for each that cannot be read.

    Raises:
        BackendError: inference failed.
    """
    config = config or BulkConfig()
    decoder = _Decoder(scorer, sampling or Sampling(), config, after)
    runners = _Threads(config.runs, "run")
    pending: deque[tuple[list[Prepared | Failure], Future[list[Score]]]] = deque()
    waiting: list[Prepared | Failure] = []
    try:
        for item in decoder.results(items):
            if item is not None:
                waiting.append(item)
            views = sum(len(entry.views.pixels) for entry in waiting if isinstance(entry, Prepared))
            full = views >= config.batch
            if (waiting and item is None) or full or len(waiting) >= _FAILURES * config.batch:
                pending.append((waiting, _run(scorer, runners, waiting)))
                waiting = []
            # One batch more than there are runs, so that no run ends without the next one ready.
            while pending and (item is None or len(pending) > config.runs):
                batch, scores = pending.popleft()
                yield from in_order(batch, scores.result())
        if waiting:
            pending.append((waiting, _run(scorer, runners, waiting)))
        while pending:
            batch, scores = pending.popleft()
            yield from in_order(batch, scores.result())
    finally:
        decoder.close()
        runners.close(_STOP_RUNNING_S)


def _run(scorer: Scorer, runners: _Threads, waiting: list[Prepared | Failure]) -> Future[list[Score]]:
    future: Future[list[Score]] = Future()
    batch = [item for item in waiting if isinstance(item, Prepared)]

    def work() -> None:
        try:
            scores = scorer.score_prepared([item.origin for item in batch], [item.views for item in batch])
            future.set_result(scores)
        except BaseException as error:
            future.set_exception(error)

    runners.put(work)
    return future


class _Threads:
    """Threads that run jobs, first come, first served.

    Daemons, unlike those of concurrent.futures: a read from a pipe that nobody writes to must not stop the
    program from ending at Ctrl-C.
    """

    def __init__(self, count: int, name: str) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{index}", daemon=True) for index in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def put(self, job: Callable[[], object]) -> None:
        self._jobs.put(job)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def close(self, wait_s: float) -> None:
        for _ in self._threads:
            self._jobs.put(None)
        until = time.monotonic() + wait_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))


class _End:
    """Marks the end of a source; with the error, if it was a bug and not the source's fault."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


class _Decoder:
    """Sources in, prepared pictures out, in order, with a bounded number of both ahead.

    Each source has its own queue, filled by one thread. The threads take the sources in order, so the one
    whose results are due is always in progress, however full the queues behind it are.
    """

    def __init__(
        self, scorer: Scorer, sampling: Sampling, config: BulkConfig, after: Callable[[Listed], int]
    ) -> None:
        self._scorer, self._sampling, self._config, self._after = scorer, sampling, config, after
        self._threads = _Threads(config.workers or min(8, cores()), "decode")
        self._queues: deque[queue.Queue[Any]] = deque()
        self._stopping = threading.Event()

    def results(self, listed: Iterable[_Item]) -> Iterator[_Result]:
        """Prepared pictures and failures; None: nothing more for now."""
        items = iter(listed)
        ahead = self._config.batch * (self._config.runs + 1)
        more, idle = True, False
        while True:
            while more and not idle and len(self._queues) < ahead:
                try:
                    item = next(items)
                except StopIteration:
                    more = False
                else:
                    idle = item is None
                    if item is not None:
                        self._open(item)
            if not self._queues:
                if not more:
                    return
                idle = False
                yield None
                continue
            try:
                result = self._queues[0].get(timeout=self._config.max_wait_s)
            except queue.Empty:
                yield None
                continue
            if not isinstance(result, _End):
                yield result
                continue
            self._queues.popleft()
            if result.error is not None:
                raise result.error

    def _open(self, item: Listed | Picture | Failure) -> None:
        # At least two: a picture and the end, so that no thread waits because of a single picture.
        out: queue.Queue[Any] = queue.Queue(max(2, self._config.frames_ahead))
        self._queues.append(out)
        if isinstance(item, Failure):
            out.put(item)
            out.put(_End())
        else:
            self._threads.put(lambda: self._fill(item, out))

    def _fill(self, item: Listed | Picture, out: queue.Queue[Any]) -> None:
        end = _End()
        try:
            if not self._stopping.is_set():
                for result in self._prepared(item):
                    out.put(result)
                    if self._stopping.is_set():
                        break
        except BaseException as error:
            end = _End(error)
        out.put(end)

    def _prepared(self, item: Listed | Picture) -> Iterator[Prepared | Failure]:
        name = item.source if isinstance(item, Picture) else str(item)
        prepare = self._scorer.prepare
        try:
            if isinstance(item, Picture):
                yield Prepared(item.origin, prepare(item.image))
                return
            for frame in decode_listed(item, self._sampling, self._after(item)):
                origin = Origin(name, frame.index, frame.time_s, frame.damage, frame.note)
                yield Prepared(origin, prepare(frame.image, frame.bgr))
        except GrmpError as error:
            yield Failure(name, error)
        except MemoryError:
            yield Failure(name, ImageError(f"{name}: too large for this machine's memory", "make it smaller"))

    def close(self) -> None:
        """Stop the threads; their unfinished work is dropped."""
        self._stopping.set()
        for out in self._queues:  # a thread waiting for room wakes up and sees that it should end
            while True:
                try:
                    out.get_nowait()
                except queue.Empty:
                    break
        self._threads.close(_STOP_READING_S)
