"""Batches for the backbone's training, made by a separate process."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from queue import Empty, Full
from typing import Any

import cv2
import numpy as np

from grmp_edge.errors import DataError
from grmp_edge.train.recipe.config import RecipeConfig
from grmp_edge.train.recipe.groups import Batch, Source, make_batch, procedural_sources
from grmp_edge.train.recipe.real_photos import add_wild

__all__ = ["batches_of"]


def _hand_over(queue: Any, batch: Batch) -> None:
    """Wait for room, and exit once the training process is gone."""
    while True:
        try:
            return queue.put(batch, timeout=5)  # type: ignore[no-any-return]
        except Full:
            parent = multiprocessing.parent_process()
            if parent is not None and not parent.is_alive():
                sys.exit(1)


def _produce(queue: Any, photos: Sequence[Source], wild: Sequence[Source], config: RecipeConfig) -> None:
    """Make batches in a separate process; the n-th depends on the seed and n alone."""
    cv2.setNumThreads(1)
    pool = procedural_sources(np.random.default_rng([config.seed, 0]), config.procedural)
    try:
        for n in range(1, config.steps + 2):
            rng = np.random.default_rng([config.seed, n])
            pool[n % len(pool)] = procedural_sources(rng, 1)[0]
            # A third of the draws is procedural, whatever the number of photographs.
            share = 0.5 * sum(photo.weight for photo in photos) / len(pool)
            sources = [*photos, *(Source(p.name, p.image, p.scene, share) for p in pool)]
            batch = make_batch(
                rng,
                sources,
                config.groups,
                config.unshrunk,
                config.scenes_differ,
                config.varied,
                config.fault_logits,
            )
            if config.wild:
                batch = add_wild(rng, batch, wild, config.wild.groups)
            _hand_over(queue, batch)
    except KeyboardInterrupt:
        pass


@contextmanager
def batches_of(
    photos: Sequence[Source], wild: Sequence[Source], config: RecipeConfig
) -> Iterator[Iterator[Batch]]:
    """Run the producer and yield its batches; it stops at the end of the block.

    Args:
        photos: clean photographs; procedural pictures are added.
        wild: real photographs of any quality, drawn from where ``config.wild`` is set.
        config: the recipe.

    Raises:
        DataError: on taking a batch, if the producer has ended.
    """
    context = multiprocessing.get_context("spawn")
    queue: Any = context.Queue(maxsize=8)
    worker = context.Process(target=_produce, args=(queue, photos, wild, config), daemon=True)
    worker.start()

    def take() -> Iterator[Batch]:
        while True:
            try:
                yield queue.get(timeout=5)
            except Empty:
                if not worker.is_alive():
                    raise DataError(
                        "the process that makes pictures ended", "see its message above"
                    ) from None

    try:
        yield take()
    finally:
        worker.terminate()
        worker.join()
