"""The Scorer: a bundle, a backend and the preprocessing between them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from grmp_edge.bundle import Bundle
from grmp_edge.errors import GrmpError
from grmp_edge.preprocess import decode_image, read_image, to_rgb8
from grmp_edge.runtime.backends import Backend, BackendOptions, open_backend
from grmp_edge.runtime.sources.sources import Failure, Picture, Sampling, read_sources
from grmp_edge.score import Score

__all__ = ["ImageLike", "Scorer"]

# A path, the bytes of a picture file, or decoded pixels: uint8 (H, W, 3) RGB (grey, RGBA and uint16 are
# turned into that by grmp_edge.preprocess.to_rgb8).
ImageLike: TypeAlias = str | Path | bytes | npt.NDArray[np.generic]

UInt8Array: TypeAlias = npt.NDArray[np.uint8]


class Scorer:
    """Scores pictures with one graph of a bundle. Make one with :meth:`open`; close it or use ``with``.

    May be used from several threads at once.
    """

    def __init__(self, bundle: Bundle, backend: Backend, precision: str) -> None:
        self.bundle = bundle
        self.backend = backend
        self.precision = precision

    @classmethod
    def open(
        cls,
        bundle: str | Path | Bundle,
        precision: str = "fp32",
        provider: str = "auto",
        threads: int | None = None,
        allow_cpu: bool = False,
    ) -> Scorer:
        """Check a bundle and make one of its graphs ready to run.

        Args:
            bundle: the folder, or one already loaded.
            precision: ``fp32``, ``fp16`` or ``int8``; the bundle must have it.
            provider: ``auto``, ``cpu``, ``cuda`` or ``tensorrt``; see :class:`BackendOptions`.
            threads: CPU threads for the network; None leaves it to the backend.
            allow_cpu: run on the CPU if the provider asked for does not work; ``backend.fallback`` then
                says why.

        Raises:
            BundleError: the bundle is missing or damaged, or lacks the precision.
            MissingDependencyError: no backend is installed.
            BackendError: the provider does not work here, or the graph does not load.
        """
        options = BackendOptions(provider, threads, allow_cpu)
        if not isinstance(bundle, Bundle):
            bundle = Bundle.load(bundle)
        path = bundle.graph(precision)
        backend = open_backend(path, bundle.graphs[precision], bundle.input_size, options, bundle)
        return cls(bundle, backend, precision)

    def score(self, image: ImageLike, name: str | None = None) -> Score:
        """Score one picture; ``name`` is what the result calls it (default: its path).

        Raises:
            ImageError: it cannot be read, or is no picture.
        """
        return self.score_batch([image], None if name is None else [name])[0]

    def score_batch(self, images: Sequence[ImageLike], names: Sequence[str] | None = None) -> list[Score]:
        """Score several pictures in one run of the network, in order.

        Raises:
            ImageError: one of them cannot be read; none is scored then. :meth:`score_many` goes on.
        """
        if names is not None and len(names) != len(images):
            raise ValueError(f"{len(names)} names for {len(images)} images")
        pictures = [
            Picture(_pixels(image), names[index] if names is not None else _name(image, index))
            for index, image in enumerate(images)
        ]
        return self._run(pictures, [self.prepare(picture.image) for picture in pictures])

    def score_many(
        self,
        pictures: Iterable[str | Path | Picture | Failure],
        batch_size: int = 8,
        sampling: Sampling | None = None,
    ) -> Iterator[Score | Failure]:
        """Score a stream in batches; at most ``batch_size`` prepared pictures are held.

        Args:
            pictures: names as :func:`read_sources` takes them (files, folders, globs, videos), decoded
                pictures, or failures met on the way, which are passed on.
            batch_size: pictures in one run of the network. 8 is where CPUs stop gaining.
            sampling: which frames of videos to take; default all.

        Yields:
            In the order of ``pictures``: a Score for each picture and a Failure for each that cannot be read.
        """
        if batch_size < 1:
            raise ValueError(f"a batch of {batch_size} pictures")
        # What waits for the batch to fill, in order; failures wait too, so that the order holds.
        waiting: list[Picture | Failure] = []
        batch: list[UInt8Array] = []
        for item in _decoded(pictures, sampling):
            if isinstance(item, Picture):
                try:
                    batch.append(self.prepare(item.image))
                except GrmpError as error:
                    waiting.append(Failure(item.source, error))
                else:
                    # Only its name is still needed: a 4K frame is 25 MB.
                    waiting.append(Picture(_NO_PIXELS, item.source, item.frame, item.time_s))
            else:
                waiting.append(item)
            if len(batch) == batch_size or not batch:
                yield from self._finish(waiting, batch)
                waiting, batch = [], []
        yield from self._finish(waiting, batch)

    def prepare(self, image: UInt8Array) -> UInt8Array:
        """Preprocess uint8 (H, W, 3) RGB into the network's input, uint8 (size, size, 3) RGB."""
        return self.bundle.preprocess(image)

    def score_prepared(self, pictures: Sequence[Picture], batch: Sequence[UInt8Array]) -> list[Score]:
        """Score what :meth:`prepare` made, in one run of the network.

        Args:
            pictures: what the results take their names and frame numbers from; the pixels are not looked at.
            batch: for each picture its network input, uint8 (size, size, 3) RGB.
        """
        return self._run(pictures, batch)

    def _finish(self, waiting: list[Picture | Failure], batch: list[UInt8Array]) -> Iterator[Score | Failure]:
        scores = iter(self._run([item for item in waiting if isinstance(item, Picture)], batch))
        for item in waiting:
            yield next(scores) if isinstance(item, Picture) else item

    def _run(self, pictures: Sequence[Picture], batch: Sequence[UInt8Array]) -> list[Score]:
        if not batch:
            return []
        start = time.perf_counter()
        values = self.backend.run(np.stack(batch))
        latency_ms = (time.perf_counter() - start) * 1000.0 / len(batch)
        mos = self.bundle.mos
        return [
            Score(
                value=float(value),
                source=picture.source,
                model=self.bundle.id,
                mos=mos.to_mos(float(value)) if mos is not None else None,
                frame=picture.frame,
                time_s=picture.time_s,
                latency_ms=latency_ms,
            )
            for picture, value in zip(pictures, values, strict=True)
        ]

    def close(self) -> None:
        """Release the backend; scoring afterwards raises BackendError."""
        self.backend.close()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


_NO_PIXELS: UInt8Array = np.zeros((0, 0, 3), np.uint8)


def _decoded(
    pictures: Iterable[str | Path | Picture | Failure], sampling: Sampling | None
) -> Iterator[Picture | Failure]:
    if isinstance(pictures, (str, Path)):  # a str would be walked letter by letter
        pictures = [pictures]
    for item in pictures:
        if isinstance(item, (Picture, Failure)):
            yield item
        else:
            yield from read_sources([item], sampling)


def _pixels(image: ImageLike) -> UInt8Array:
    if isinstance(image, (str, Path)):
        return read_image(image)
    if isinstance(image, bytes):
        return decode_image(image)
    return to_rgb8(np.asarray(image))


def _name(image: ImageLike, index: int) -> str:
    return str(image) if isinstance(image, (str, Path)) else f"image {index}"
