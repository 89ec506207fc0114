"""The squashed pictures of meta-learning tasks, kept: distorting and squashing anew each visit is slow."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from grmp_edge.preprocess import squash

if TYPE_CHECKING:
    from grmp_edge.train.tasks import Task

__all__ = ["PictureCache"]

UInt8Array = npt.NDArray[np.uint8]


class PictureCache:
    """Reads tasks' pictures squashed to a square, and keeps as many as fit ``budget`` bytes.

    What is kept stays: each picture is as likely to be wanted again as any other, so letting one go for
    another gains nothing. A budget of 0 keeps none. Of 24 photographs, 25 distortions and 6 levels, the
    squares of 256 (support) and 224 pixels (query) are 1.25 GB.
    """

    def __init__(self, budget: int = 0) -> None:
        self.budget, self.used = budget, 0
        # By identity: tasks of two sets may share a name, and this holds them, so no identity comes twice.
        self.kept: dict[tuple[int, int, int], UInt8Array] = {}
        self.tasks: dict[int, Task] = {}

    def squashed(self, task: Task, indices: Sequence[int], side: int) -> list[UInt8Array]:
        """Pictures of a task, each uint8 (side, side, 3) RGB and not to be written to."""
        self.tasks[id(task)] = task
        missing = [index for index in indices if (id(task), index, side) not in self.kept]
        fresh: dict[int, UInt8Array] = {}
        if missing:
            read: Callable[[int], UInt8Array] = lambda index: squash(task.read(index), side)  # noqa: E731
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
                fresh = dict(zip(missing, pool.map(read, missing), strict=True))
        found = [fresh[i] if i in fresh else self.kept[id(task), i, side] for i in indices]
        for index, pixels in fresh.items():
            if self.used + pixels.nbytes <= self.budget:
                self.kept[id(task), index, side] = pixels
                self.used += pixels.nbytes
        return found
