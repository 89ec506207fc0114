"""A running watch takes over its bundle's next version: no restart, and no frame lost."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from grmp_edge.bundle import Bundle
from grmp_edge.default_bundle import MANIFEST
from grmp_edge.errors import BundleError, GrmpError, first_line
from grmp_edge.runtime.live.live import Live
from grmp_edge.runtime.scorer import Scorer

__all__ = ["following"]

_LOOK_S = 2.0
_STOP_S = 10.0  # for a load in progress to end


@contextlib.contextmanager
def following(
    live: Live, folder: Path, load: Callable[[Bundle], Scorer], tell: Callable[[str], object]
) -> Iterator[None]:
    """Look at a bundle's folder while the block runs, and hand new versions to ``live``.

    The new one is loaded and tried beside the old, which scores on until the moment of change. One that
    cannot be used is reported, once for each reason, and tried again: it may not have been copied whole yet.

    Args:
        live: what runs.
        folder: the bundle's.
        load: opens a new version.
        tell: called with a line on each change.
    """
    over = threading.Event()
    thread = threading.Thread(
        target=_follow, args=(live, folder, load, tell, over), name="bundle", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(_STOP_S)


def _follow(
    live: Live,
    folder: Path,
    load: Callable[[Bundle], Scorer],
    tell: Callable[[str], object],
    over: threading.Event,
) -> None:
    seen, told = _mark(folder), ""
    while not over.wait(_LOOK_S):
        mark = _mark(folder)
        if mark is None or mark == seen:  # for a moment between two renames there is none
            continue
        try:
            bundle = Bundle.load(folder)
            if bundle.id != live.scorer.bundle.id:
                if bundle.preprocess != live.scorer.bundle.preprocess:
                    raise BundleError("it reads pictures in another way", "start grmp-edge watch again")
                scorer = load(bundle)
                try:
                    # A graph may load and then fail; and the first run is the slowest.
                    scorer.score(np.full((64, 64, 3), 128, np.uint8))
                except BaseException:
                    scorer.close()
                    raise
                live.take_over(scorer)
                tell(
                    f"{folder} changed: scoring with model {bundle.id} now; "
                    "each camera's memory begins anew, or where it left off with that model"
                )
            seen, told = mark, ""
        except (GrmpError, OSError) as error:
            reason = first_line(error)
            if reason != told:
                told = reason
                tell(f"{folder} changed, and cannot be used ({reason}); the old model scores on")


def _mark(folder: Path) -> tuple[int, int, int] | None:
    """What changes with the file that makes a bundle."""
    try:
        status = (folder / MANIFEST).stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
