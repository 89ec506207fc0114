"""The Scorer: a bundle, a backend and the preprocessing between them."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast, overload

import numpy as np
import numpy.typing as npt

from grmp_edge.arrays import from_pil, is_pil, to_rgb8
from grmp_edge.bundle import Bundle
from grmp_edge.default_bundle import DEFAULT_BUNDLE
from grmp_edge.errors import BackendError, GrmpError, ImageError, first_line
from grmp_edge.files import Closing
from grmp_edge.preprocess import Decoded, decode_picture, read_picture
from grmp_edge.redact import safe_name
from grmp_edge.runtime.backends import Backend, BackendOptions, open_backend
from grmp_edge.runtime.choose import AUTO, choose
from grmp_edge.runtime.sources.sources import Failure, Picture, Sampling, read_sources
from grmp_edge.runtime.video.files import VIDEO_SUFFIXES
from grmp_edge.score import Origin, Score, Tile
from grmp_edge.views import EVEN, Box, Views, sigmoid

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

__all__ = ["ImageLike", "Prepared", "Scorer", "in_order", "score"]


class BinaryFile(Protocol):
    """What ``open(path, "rb")`` gives."""

    def read(self, size: int = -1, /) -> bytes:
        """At most ``size`` bytes."""


class Tensor(Protocol):
    """Another library's array, which numpy reads by DLPack."""

    def __dlpack__(self) -> Any:
        """Its capsule."""

    def __dlpack_device__(self) -> tuple[int, int]:
        """Its kind of device and the device's number."""


# A path or an http address, the bytes of a picture file or an open one, or decoded pixels: uint8 (H, W, 3)
# RGB; grey, RGBA, uint16 and Pillow's images are converted by grmp_edge.arrays.
ImageLike: TypeAlias = (
    "str | Path | bytes | bytearray | memoryview | BinaryFile | npt.NDArray[np.generic] | Tensor | PilImage"
)

UInt8Array: TypeAlias = npt.NDArray[np.uint8]
Float64Array: TypeAlias = npt.NDArray[np.float64]

# Views in one run, if there are not more pictures than that: 32 uploads of 5 views each in a single run would
# take a gigabyte.
_ROOM = 32


@dataclass(frozen=True)
class Prepared:
    """One picture's network input, ready for a batch: the decoded picture, 25 MB at 4K, is gone by then."""

    origin: Origin
    views: Views


class Scorer(Closing):
    """Scores pictures with one graph of a bundle. Create it with :meth:`open`; close it or use ``with``.

    Safe to use from several threads at once.
    """

    def __init__(
        self, bundle: Bundle, backend: Backend, precision: str, tiles: bool = False, chosen: str = ""
    ) -> None:
        """``chosen``: why this precision, where it was for the machine to choose."""
        self.bundle = bundle
        self.backend = backend
        self.precision = precision
        self.tiles = tiles
        self.chosen = chosen

    @classmethod
    def open(
        cls,
        bundle: str | Path | Bundle = DEFAULT_BUNDLE,
        precision: str = "fp32",
        provider: str = "auto",
        threads: int | None = None,
        allow_cpu: bool = False,
        tiles: bool = False,
    ) -> Scorer:
        """Check a bundle and load one of its graphs.

        Args:
            bundle: its folder, or a loaded one; by default the one that ships with grmp-edge.
            precision: ``fp32``, ``fp16`` or ``int8``; the bundle must have it. ``auto``: the fastest here,
                measured at the first use and kept in the user's cache; :attr:`chosen` then says why.
            provider: ``auto``, ``cpu``, ``cuda`` or ``tensorrt``; see :class:`BackendOptions`.
            threads: CPU threads for inference; None leaves the choice to the backend.
            allow_cpu: run on the CPU if the requested provider does not work; ``backend.fallback`` then
                says why.
            tiles: give the score of each native crop, too (:attr:`Score.tiles`), unless a call says
                otherwise.

        Raises:
            BundleError: the bundle is missing or damaged, or lacks the precision.
            MissingDependencyError: no backend is installed.
            BackendError: the provider does not work here, or the graph does not load.
            ParityError: the graph computes something else here than where it was exported.
        """
        options = BackendOptions(provider, threads, allow_cpu)
        if not isinstance(bundle, Bundle):
            bundle = Bundle.load(bundle)
        chosen = ""
        if precision == AUTO:
            choice = choose(bundle, options, logging.getLogger("grmp_edge").info)
            precision, chosen = choice.precision, choice.reason
        path = bundle.graph(precision)
        backend = open_backend(path, bundle.graphs[precision], bundle.input_size, options, bundle)
        return cls(bundle, backend, precision, tiles, chosen)

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        **options: Any,
    ) -> Scorer:
        """Fetch a bundle from the Hugging Face Hub, check it, and open it.

        What is in the hub's cache is not fetched again, and serves where the hub cannot be reached. Needs the
        extra ``hub``.

        Args:
            repo_id: ``organisation/name``, or the folder of a bundle on this machine.
            revision: a branch, a tag or a commit's hash; by default the newest. A commit's hash always gives
                the same bytes.
            token: for private repositories; by default that of ``hf auth login`` or ``HF_TOKEN``.
            cache_dir: by default the hub's own.
            local_files_only: ask no server.
            force_download: fetch again what is in the cache.
            options: as for :meth:`open`.

        Raises:
            BundleError: it cannot be fetched, is damaged, or is no bundle.
            MissingDependencyError: the extra is not installed.
        """
        from grmp_edge.runtime.hub import fetch_bundle

        bundle = fetch_bundle(repo_id, revision, token, cache_dir, local_files_only, force_download)
        return cls.open(bundle, **options)

    def push_to_hub(
        self,
        repo_id: str,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Put the bundle into a repository of the Hugging Face Hub, as one commit.

        ``bundle.json`` goes with it and tells how the model was trained. A repository, a branch and a card
        that are missing are made. Needs the extra ``hub``.

        Args:
            repo_id: ``organisation/name``; a name alone is yours.
            private: whether a new repository is; by default as the organisation has it.
            token: one that may write; by default that of ``hf auth login`` or ``HF_TOKEN``.
            revision: a branch; by default ``main``.
            commit_message: by default it names the bundle.
            create_pr: open a pull request instead.

        Returns:
            The address of the commit, or of the pull request.

        Raises:
            BundleError: it was damaged since, or the hub cannot be reached or refuses it.
            MissingDependencyError: the extra is not installed.
        """
        from grmp_edge.runtime.hub import push_bundle

        return push_bundle(self.bundle, repo_id, private, token, revision, commit_message, create_pr)

    def score(
        self,
        image: ImageLike,
        name: str | None = None,
        tiles: bool | None = None,
        data_range: float | None = None,
    ) -> Score:
        """Score one picture.

        Args:
            image: a path, an http address, the bytes of a file, a file opened with ``"rb"``, an array or a
                tensor in the CPU's memory (H, W, 3) in RGB order, or one of Pillow's images.
            name: the result's ``source``; default: its path, without credentials.
            tiles: whether to give the score of each native crop; default: as :meth:`open` says.
            data_range: of an array, what white is if not the largest value of its type: 1.0 for floating
                point in 0..1, 4095 for twelve bits.

        Raises:
            ImageError: it cannot be read, or is not a picture. One that is damaged but can be decoded is
                scored, and :attr:`Score.damage` says what is wrong.
        """
        return self.score_batch([image], None if name is None else [name], tiles, data_range)[0]

    def score_batch(
        self,
        images: Sequence[ImageLike],
        names: Sequence[str] | None = None,
        tiles: bool | None = None,
        data_range: float | None = None,
    ) -> list[Score]:
        """Score several pictures as one batch, in order; the arguments are those of :meth:`score`.

        Raises:
            ImageError: one of them cannot be read; then none is scored. :meth:`score_many` carries on.
        """
        if names is not None and len(names) != len(images):
            raise ValueError(f"{len(names)} names for {len(images)} images")
        origins, batch = [], []
        for index, image in enumerate(images):
            picture = _decode(image, data_range)
            name = names[index] if names is not None else _name(image, index)
            origins.append(Origin(name, damage=picture.damage, note=picture.note))
            batch.append(self.prepare(picture.pixels))
        return self.score_prepared(origins, batch, tiles)

    def score_many(
        self,
        pictures: Iterable[ImageLike | Picture | Failure] | str | Path,
        batch_size: int = 8,
        sampling: Sampling | None = None,
        data_range: float | None = None,
    ) -> Iterator[Score | Failure]:
        """Score a stream in batches; little more than ``batch_size`` prepared views are held.

        Args:
            pictures: a list, a generator or one name: names as :func:`read_sources` takes them (files,
                folders, globs, videos), pictures as for :meth:`score`, or failures from upstream, which are
                passed on.
            batch_size: views per inference, if one picture has no more. CPUs stop gaining at 8.
            sampling: which frames of videos to score; default all.
            data_range: of arrays, as for :meth:`score`.

        Yields:
            In the order of ``pictures``: a Score for each picture and a Failure for each that cannot be read.
        """
        if batch_size < 1:
            raise ValueError(f"a batch of {batch_size} views")
        # The batch so far; failures wait in it too, so that the order holds.
        waiting: list[Prepared | Failure] = []
        ready = 0
        for item in _decoded(pictures, sampling, data_range):
            prepared = item if isinstance(item, Failure) else self._prepared(item)
            waiting.append(prepared)
            ready += len(prepared.views.pixels) if isinstance(prepared, Prepared) else 0
            if not ready or ready >= batch_size:
                yield from self._finish(waiting)
                waiting, ready = [], 0
        yield from self._finish(waiting)

    def prepare(self, image: UInt8Array, bgr: bool = False, boxes: Sequence[Box] | None = None) -> Views:
        """Preprocess uint8 (H, W, 3), RGB or (with ``bgr``) BGR, into what the network reads of it.

        ``boxes``: the native crops, by default as many as the bundle asks for; none: the whole alone.

        Raises:
            ImageError: ``image`` has another type or shape.
        """
        return self.bundle.preprocess.views(image, bgr, boxes)

    def score_prepared(
        self, origins: Sequence[Origin], batch: Sequence[Views], tiles: bool | None = None
    ) -> list[Score]:
        """Score as one batch what :meth:`prepare` returned, and where each picture came from."""
        if not batch:
            return []
        start = time.perf_counter()
        readings = self.read(batch)
        latency_ms = (time.perf_counter() - start) * 1000.0 / len(batch)
        return [
            self.summarise(origin, views.boxes, logits, latency_ms, tiles)
            for origin, views, logits in zip(origins, batch, readings, strict=True)
        ]

    def read(self, batch: Sequence[Views]) -> list[Float64Array]:
        """The logits of all views, run together: for each picture (1 + n, 1 + causes).

        Raises:
            BackendError: the network failed, or gave other causes than the bundle names.
        """
        pixels = np.concatenate([views.pixels for views in batch])
        room = max(_ROOM, len(batch))
        logits = np.concatenate(
            [self.backend.read(pixels[at : at + room]) for at in range(0, len(pixels), room)]
        )
        named, given = len(self.bundle.causes), logits.shape[1] - 1
        if given != named:
            raise BackendError(
                f"the graph gives {given} causes and the bundle names {named}", "export the checkpoint again"
            )
        return np.split(logits, np.cumsum([len(views.pixels) for views in batch])[:-1])

    def summarise(
        self,
        origin: Origin,
        boxes: Sequence[Box],
        logits: Float64Array,
        latency_ms: float | None = None,
        tiles: bool | None = None,
    ) -> Score:
        """One picture's score.

        Args:
            origin: where it came from.
            boxes: its native crops.
            logits: (1 + n, 1 + causes), of the whole and these crops.
            latency_ms: what to record.
            tiles: whether to give the score of each crop (default: as :meth:`open` says).
        """
        bundle = self.bundle
        # In float32, as graphs give scores: one that came as a score leaves with the same bits.
        value = float(np.float32(sigmoid(bundle.aggregate(logits[:, 0]))))
        shown: tuple[Tile, ...] | None = None
        if boxes and (self.tiles if tiles is None else tiles):
            values = sigmoid(logits[1:, 0]).tolist()
            shown = tuple(Tile(**asdict(box), value=own) for box, own in zip(boxes, values, strict=True))
        return Score(
            value=value,
            source=origin.source,
            model=bundle.id,
            mos=bundle.mos.to_mos(value) if bundle.mos is not None else None,
            frame=origin.frame,
            time_s=origin.time_s,
            latency_ms=latency_ms,
            causes=dict(zip(bundle.causes, sigmoid(EVEN(logits[:, 1:])).tolist(), strict=True))
            if bundle.causes
            else None,
            tiles=shown,
            damage=origin.damage or None,
            note=origin.note or None,
            interval=bundle.interval.around(value) if bundle.interval is not None else None,
        )

    def _prepared(self, picture: Picture) -> Prepared | Failure:
        try:
            return Prepared(picture.origin, self.prepare(picture.image))
        except GrmpError as error:
            return Failure(picture.source, error)

    def _finish(self, waiting: Sequence[Prepared | Failure]) -> Iterator[Score | Failure]:
        batch = [item for item in waiting if isinstance(item, Prepared)]
        scores = self.score_prepared([item.origin for item in batch], [item.views for item in batch])
        return in_order(waiting, scores)

    def close(self) -> None:
        """Release the backend; scoring afterwards raises BackendError."""
        self.backend.close()


@overload
def score(pictures: ImageLike, data_range: float | None = ...) -> Score: ...
@overload
def score(
    pictures: list[Any] | tuple[Any, ...] | Iterator[Any], data_range: float | None = ...
) -> Iterator[Score | Failure]: ...
def score(
    pictures: ImageLike | list[Any] | tuple[Any, ...] | Iterator[Any], data_range: float | None = None
) -> Score | Iterator[Score | Failure]:
    """Score with the model that ships, opened at the first call and kept.

    Args:
        pictures: one picture, as for :meth:`Scorer.score`; or a list, tuple or generator of pictures, clips,
            folders and globs, as for :meth:`Scorer.score_many`.
        data_range: of arrays, as for :meth:`Scorer.score`.

    Returns:
        The score of one picture, or an iterator of scores and failures.

    Raises:
        ImageError: the one picture cannot be read.
    """
    many = isinstance(pictures, (list, tuple, Iterator)) and not hasattr(pictures, "read")
    if many:
        return _shared().score_many(cast("Iterable[ImageLike]", pictures), data_range=data_range)
    return _shared().score(cast(ImageLike, pictures), data_range=data_range)


@functools.lru_cache(maxsize=1)
def _shared() -> Scorer:
    return Scorer.open()


def in_order(waiting: Iterable[Prepared | Failure], scores: Iterable[Score]) -> Iterator[Score | Failure]:
    """Yield ``waiting`` with each prepared picture replaced by the next of ``scores``."""
    following = iter(scores)
    for item in waiting:
        yield item if isinstance(item, Failure) else next(following)


def _decoded(
    pictures: Iterable[ImageLike | Picture | Failure] | str | Path,
    sampling: Sampling | None,
    data_range: float | None,
) -> Iterator[Picture | Failure]:
    if isinstance(pictures, (str, Path)):  # a str would be iterated letter by letter
        pictures = [pictures]
    for index, item in enumerate(pictures):
        if isinstance(item, (Picture, Failure)):
            yield item
        elif isinstance(item, (str, Path)):
            yield from read_sources([item], sampling)
        else:
            name = _name(item, index)
            try:
                decoded = _decode(item, data_range)
            except GrmpError as error:
                yield Failure(name, error)
            else:
                yield Picture(decoded.pixels, name, damage=decoded.damage, note=decoded.note)


def _decode(image: ImageLike, data_range: float | None) -> Decoded:
    """Any kind of picture, decoded.

    Raises:
        ImageError: it is none; the message names its type.
    """
    if isinstance(image, str) and image.lower().startswith(("http://", "https://")):
        from grmp_edge.runtime.sources.http import fetch_picture

        return decode_picture(fetch_picture(image), safe_name(image))
    if isinstance(image, (str, Path)):
        if Path(image).suffix.lower() in VIDEO_SUFFIXES:
            raise ImageError(
                f"{image}: a clip, which has many scores", "give a list of it, or use score_many"
            )
        return read_picture(image)
    if isinstance(image, (bytes, bytearray)) or (isinstance(image, memoryview) and image.ndim == 1):
        return decode_picture(bytes(image))
    if callable(getattr(image, "read", None)):
        return decode_picture(_read(cast(BinaryFile, image)), _name(image, 0))
    return Decoded(to_rgb8(_array(image), data_range))


def _array(image: Any) -> npt.NDArray[np.generic]:
    kind = f"{type(image).__module__}.{type(image).__qualname__}".removeprefix("builtins.")
    if is_pil(image):
        return from_pil(image)
    if not isinstance(image, np.ndarray) and hasattr(image, "__dlpack__"):
        if image.__dlpack_device__()[0] not in (1, 3):  # DLPack's numbers of plain and of page-locked memory
            raise ImageError(f"{kind}: a tensor in a GPU's memory", "copy it first: tensor.cpu()")
        try:
            return np.asarray(np.from_dlpack(image))
        except Exception as error:  # each library has its own
            raise ImageError(f"{kind}: {first_line(error)}", "give tensor.detach() of uint8") from None
    try:
        array = np.asarray(image)
    except ValueError:  # a list of unequal parts
        array = np.empty((), object)
    if array.dtype.kind not in "fiub" or not array.ndim:
        remedy = "give a path, bytes, an open file, an array or a tensor; many pictures: score_many"
        raise ImageError(f"an object of type {kind} is not a picture", remedy)
    return array


def _read(file: BinaryFile) -> bytes:
    """An open file to its end, within the limit of a download."""
    from grmp_edge.runtime.sources.http import FetchConfig

    limit = FetchConfig().max_bytes
    data = file.read(limit + 1)
    if not isinstance(data, bytes):
        raise ImageError(f"{_name(file, 0)}: read as {type(data).__name__}, not bytes", 'open it with "rb"')
    if len(data) > limit:
        raise ImageError(f"{_name(file, 0)}: more than {limit >> 20} MB", "make it smaller")
    return data


def _name(image: ImageLike, index: int) -> str:
    if isinstance(image, (str, Path)):
        return safe_name(str(image)) if "://" in str(image) else str(image)
    name = getattr(image, "name", None)  # of an open file
    return name if isinstance(name, str) and hasattr(image, "read") else f"image {index}"
