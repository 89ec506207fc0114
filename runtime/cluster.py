"""Scoring on a Ray cluster: names go out, scores come back in order; the Scorer is an actor of Ray Data."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from grmp_edge.bundle import Bundle
from grmp_edge.errors import BackendError, GrmpError, MissingDependencyError, UsageError
from grmp_edge.files import Closing
from grmp_edge.runtime.bulk import BulkConfig, score_bulk
from grmp_edge.runtime.choose import AUTO
from grmp_edge.runtime.scorer import Scorer
from grmp_edge.runtime.sources.sources import Failure, Listed, Remote, Sampling
from grmp_edge.score import Score, Tile

__all__ = ["LOCAL", "RayConfig", "RayScorer"]

LOCAL = "local"  # instead of an address: a cluster on this machine, started and ended with the scorer

_ROWS = 256  # results of a video in one block


@dataclass(frozen=True)
class RayConfig:
    """Which cluster to use, and how much of it."""

    address: str = LOCAL  # or what ray.init takes: auto, HOST:PORT, ray://HOST:PORT
    actors: int = 1  # scorers, spread over the cluster's nodes
    cpus: float = 1.0  # cores that Ray reserves for each; a scorer runs as many threads
    gpus: float = 0.0  # GPUs, or fractions of one, for each
    batch: int = 8  # views per inference, if one picture has no more: where CPUs stop gaining
    workers: int | None = None  # decoding threads in each scorer; None: as many as it has cores
    # Names handed to a scorer at once: enough to keep its threads busy, few enough to balance the load.
    names: int = 64
    # Names listed before they are distributed: bounds the driver's memory. The scorers restart for each such
    # part, which costs a second or two every half hour.
    part: int = 50_000
    # Of a local cluster. Only names and scores pass through it, never pixels.
    object_store_bytes: int = 100 << 20

    def __post_init__(self) -> None:
        workers = 1 if self.workers is None else self.workers
        if min(self.actors, self.batch, self.names, self.part, workers) < 1:
            raise UsageError("actors, workers, batch, names and part must be 1 or more")
        if self.cpus < 0 or self.gpus < 0:
            raise UsageError("a scorer's share of CPUs and GPUs cannot be negative")


@dataclass(frozen=True)
class _Job:
    """What an actor is created from; sent to it."""

    bundle: str
    precision: str
    provider: str
    threads: int
    allow_cpu: bool
    config: BulkConfig
    sampling: Sampling = field(default_factory=Sampling)
    tiles: bool = False


class _Row(TypedDict):
    """One input on its way to an actor: Ray's columns hold plain values only."""

    name: bytes  # bytes, since a name that is not UTF-8 fits no text column
    remote: str  # which private addresses an address may lead to; "": a file
    after: int  # index of the last frame of a video to skip
    error: bytes  # a failure as JSON, which the actor passes on; else empty


class RayScorer(Closing):
    """Scores what :func:`list_sources` lists on a cluster, with the same results as locally.

    The bundle and the pictures must have the same paths on every node, such as in a shared folder.
    """

    def __init__(
        self,
        bundle: str | Path,
        precision: str = "fp32",
        provider: str = "auto",
        threads: int | None = None,
        allow_cpu: bool = False,
        config: RayConfig | None = None,
        sampling: Sampling | None = None,
        tiles: bool = False,
    ) -> None:
        """Connect, or start a local cluster.

        Raises:
            UsageError: the precision is ``auto``.
            BundleError: the bundle is missing or damaged, or lacks the precision.
            MissingDependencyError: ray is not installed.
            BackendError: there is no cluster at the address.
        """
        self.config = config or RayConfig()
        if precision == AUTO:
            raise UsageError(
                "--precision auto is each machine's own choice, and a cluster's scores must not depend on it",
                "run grmp-edge bench on one of its machines, and name the precision",
            )
        loaded = Bundle.load(bundle)
        loaded.graph(precision)
        self.model_id = loaded.id
        cores = threads or max(1, int(self.config.cpus))
        self._job = _Job(
            str(Path(bundle).absolute()), precision, provider, cores, allow_cpu,
            BulkConfig(self.config.batch, self.config.workers or cores), sampling or Sampling(), tiles,
        )  # fmt: skip
        self._ray = _connect(self.config)

    def results(
        self,
        items: Iterable[Listed | Failure | None],
        last_frame: Callable[[str], int] | None = None,
    ) -> Generator[Score | Failure, None, None]:
        """Yield a Score for each picture and frame and a Failure for each that cannot be read, in order.

        Args:
            items: from :func:`list_sources`, without standard input.
            last_frame: for a video, by name, the index of the last frame to skip.

        Raises:
            BackendError: the cluster failed, or could not start a scorer.
        """
        names = (item for item in items if item is not None)
        while part := [_to_row(item, last_frame) for item in islice(names, self.config.part)]:
            yield from self._part(part)

    def _part(self, rows: list[_Row]) -> Iterator[Score | Failure]:
        data = importlib.import_module("ray.data")
        # One block per call: a block is also what Ray reschedules when a task fails.
        blocks = -(-len(rows) // self.config.names)
        scored = data.from_items(rows, override_num_blocks=blocks).map_batches(
            _Actor,
            fn_constructor_args=(self._job,),
            batch_size=None,
            batch_format="numpy",
            concurrency=self.config.actors,
            num_cpus=self.config.cpus,
            num_gpus=self.config.gpus or None,
        )
        try:
            for row in scored.iter_rows():
                yield _from_json(row["result"])
        except GrmpError:
            raise
        except Exception as error:  # Ray wraps what an actor raises, and has many errors of its own
            raise BackendError(f"scoring on Ray failed: {_reason(error)}", "see Ray's logs") from None

    def close(self) -> None:
        """Leave the cluster; a local one ends."""
        self._ray.shutdown()


class _Actor:
    """One scorer on one node; Ray Data creates it once and hands it batch after batch."""

    def __init__(self, job: _Job) -> None:
        import cv2

        cv2.setNumThreads(1)  # pictures are decoded in parallel already
        self._job = job
        self._scorer = Scorer.open(
            job.bundle, job.precision, job.provider, job.threads, job.allow_cpu, job.tiles
        )

    def __call__(
        self, batch: dict[str, npt.NDArray[np.generic]]
    ) -> Iterator[dict[str, npt.NDArray[np.object_]]]:
        """From the columns of :class:`_Row` to a column ``result`` of JSON, in the same order."""
        columns = [batch[name].tolist() for name in ("name", "remote", "after", "error")]
        rows = list(zip(*columns, strict=True))
        after = {os.fsdecode(name): int(last) for name, _, last, error in rows if not error}
        results = score_bulk(
            self._scorer,
            (_from_row(name, remote, error) for name, remote, _, error in rows),
            self._job.config,
            self._job.sampling,
            lambda listed: -1 if isinstance(listed, Remote) else after[str(listed)],
        )
        while block := [_to_json(result) for result in islice(results, _ROWS)]:
            yield {"result": np.array(block, dtype=object)}


def _to_row(item: Listed | Failure, last_frame: Callable[[str], int] | None) -> _Row:
    if isinstance(item, Failure):
        return {"name": b"", "remote": "", "after": -1, "error": _to_json(item)}
    name = item.url if isinstance(item, Remote) else str(item)
    last = -1 if last_frame is None else last_frame(name)
    remote = item.private if isinstance(item, Remote) else ""
    return {"name": os.fsencode(name), "remote": remote, "after": last, "error": b""}


def _from_row(name: bytes, remote: str, error: bytes) -> Listed | Failure:
    if error:
        failure = _from_json(error)
        assert isinstance(failure, Failure)
        return failure
    return Remote(os.fsdecode(name), remote) if remote else Path(os.fsdecode(name))


def _to_json(result: Score | Failure) -> bytes:
    if isinstance(result, Score):
        return json.dumps(asdict(result)).encode("ascii")
    error = result.error
    return json.dumps({"failed": result.source, "message": error.message, "remedy": error.remedy}).encode(
        "ascii"
    )


def _from_json(data: bytes) -> Score | Failure:
    row = json.loads(data)
    if "failed" in row:
        return Failure(row["failed"], GrmpError(row["message"], row["remedy"]))
    if row["tiles"] is not None:
        row["tiles"] = tuple(Tile(**tile) for tile in row["tiles"])
    if row["interval"] is not None:
        row["interval"] = tuple(row["interval"])
    return Score(**row)


def _connect(config: RayConfig) -> Any:
    # Before ray is imported; an existing cluster has its own setting.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Its lines on stderr would break up our progress line; errors arrive as exceptions anyway.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    try:
        with _stderr_closed():
            ray = importlib.import_module("ray")
            data = importlib.import_module("ray.data")
    except ImportError as error:
        raise MissingDependencyError(error.name or "ray", "ray", "scoring on Ray") from None
    settings: dict[str, Any] = {"address": config.address}
    if config.address == LOCAL:
        # By default its workers run at a low priority, and starve on a busy machine.
        os.environ.setdefault("RAY_worker_niceness", "0")
        settings = {
            "address": LOCAL,
            # What the scorers need, even if the machine has fewer cores: they then share them.
            "num_cpus": max(1, int(-(-config.actors * config.cpus // 1))) + 1,
            "object_store_memory": config.object_store_bytes,
            "include_dashboard": False,
        }
    try:
        with _stderr_closed():
            ray.init(**settings, log_to_driver=False, logging_level=logging.ERROR, configure_logging=True)
    except Exception as error:  # the type depends on the kind of address
        raise BackendError(
            f"no Ray cluster at {config.address}: {_reason(error)}",
            "check the address; --ray local starts one on this machine",
        ) from None
    context = data.DataContext.get_current()
    context.execution_options.preserve_order = True  # needed to resume a file of scores
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray


@contextlib.contextmanager
def _stderr_closed() -> Iterator[None]:
    """Drop what Ray's C++ code prints to stderr; errors arrive as exceptions anyway."""
    sys.stderr.flush()
    saved = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


def _reason(error: BaseException) -> str:
    """The last line of text: Ray puts the actor's traceback before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:300]
