"""The views of pictures on which the parity gate compares scores."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from grmp_edge.errors import DataError, ImageError
from grmp_edge.image_files import images_below
from grmp_edge.preprocess import Preprocess, read_image

__all__ = ["gate_images"]

Images = npt.NDArray[np.uint8]


def gate_images(
    source: Path | None,
    recorded: Sequence[Path],
    preprocess: Preprocess,
    count: int,
    seed: int = 0,
    fill: bool = True,
) -> tuple[Images, str]:
    """Collect pictures: the user's, else those of training, else distorted procedural ones.

    If there are fewer than ``count``, procedural pictures make up the number, unless ``fill`` is False.

    Args:
        source: a folder (searched with its subfolders) or a csv with a column ``image``; None for
            ``recorded``.
        recorded: pictures of the training; missing and damaged ones are skipped.
        preprocess: the graph's preprocessing.
        count: how many pictures; from more, evenly spaced ones are taken.
        seed: of the procedural pictures.
        fill: see above; there is always at least one picture.

    Returns:
        All their views, uint8 (n, crop, crop, 3), and a description of how many come from where.

    Raises:
        DataError: ``source`` is missing or names no picture.
        ImageError: a picture of ``source`` cannot be read.
    """
    named = _listed(source) if source is not None else [path for path in recorded if path.is_file()]
    pictures = []
    for path in _spaced(named, count):
        try:
            pictures.append(preprocess.views(read_image(path)).pixels)
        except ImageError:
            if source is not None:
                raise
    parts = []
    if pictures:
        parts.append(f"{len(pictures)} {f'from {source.name}' if source is not None else 'of training'}")
    if len(pictures) < (count if fill else 1):
        missing = count - len(pictures)
        pictures += _procedural(missing, preprocess, seed)
        parts.append(f"{missing} computer-made and distorted (seed {seed})")
    views = np.concatenate(pictures)
    words = "pictures: " + ", ".join(parts)
    return views, words + (f"; {len(views)} views" if preprocess.native else "")


def _listed(source: Path) -> list[Path]:
    if source.is_dir():
        paths = images_below(source)
    elif source.is_file():
        paths = _named_in(source)
    else:
        raise DataError(
            f"{source}: no such file or folder", "give --images a folder, or a csv with a column image"
        )
    if not paths:
        raise DataError(f"{source}: names no picture", "give --images a folder, or a csv with a column image")
    return paths


def _named_in(path: Path) -> list[Path]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as csv ({error})", "save it as UTF-8 text") from None
    names = [row.get("image") or row.get("img_name") for row in rows]
    paths = []
    for name in names:
        places = (path.parent / name, path.parent / "images" / name) if name else ()
        paths += [place for place in places if place.is_file()][:1]
    return paths


def _spaced(paths: Sequence[Path], count: int) -> list[Path]:
    if len(paths) <= count:
        return list(paths)
    return [paths[index] for index in np.linspace(0, len(paths) - 1, count).round().astype(int)]


def _procedural(count: int, preprocess: Preprocess, seed: int) -> list[Images]:
    from grmp_edge.train.pictures.distort import DISTORTIONS, distort
    from grmp_edge.train.pictures.procedural import procedural_image

    rng = np.random.default_rng(seed)
    kinds = sorted(DISTORTIONS)
    pictures = []
    for index in range(count):
        # Large enough for crops that differ.
        picture = procedural_image(rng, max(32, preprocess.resize) * (2 if preprocess.native else 1))
        # Every sixth picture stays clean; the others go through all kinds and levels of distortion.
        if index % 6:
            picture = distort(picture, kinds[index % len(kinds)], index % 5 + 1, rng)
        pictures.append(preprocess.views(picture).pixels)
    return pictures
