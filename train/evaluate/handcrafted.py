"""Hand-crafted no-reference metrics to compare with: BRISQUE, NIQE and the variance of the Laplacian.

Each computes a few features and a score from a picture at its own size. NIQE needs the extra ``baselines``,
BRISQUE the extra ``brisque``; none needs torch.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from grmp_edge.errors import MissingDependencyError, UsageError
from grmp_edge.train.evaluate import niqe

__all__ = ["METRICS", "Brisque", "Laplacian", "Metric", "Niqe", "metrics_named"]

UInt8Array = npt.NDArray[np.uint8]
Float = npt.NDArray[np.float64]


class Metric(Protocol):
    """A hand-crafted metric."""

    @property
    def title(self) -> str:
        """The name in tables."""

    @property
    def about(self) -> str:
        """Where it comes from, one clause; cached results depend on it."""

    def measure(self, image: UInt8Array) -> tuple[Float, float]:
        """Features (k,) and score of a uint8 (H, W, 3) RGB picture; a higher score is better.

        Both are nan where a picture has no texture to measure.
        """


class Brisque:
    """36 features and the pretrained SVR of the package ``brisque`` (Mittal et al., TIP 2012)."""

    title = "BRISQUE"

    def __init__(self) -> None:
        if find_spec("brisque") is None:
            raise MissingDependencyError("brisque", "brisque", "BRISQUE")
        from importlib.metadata import version

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # from the package's imports of scipy
            import brisque

        self.model: Any = brisque.BRISQUE(url=False)
        self.about = f"features and pretrained SVR of the package brisque {version('brisque')}"

    def measure(self, image: UInt8Array) -> tuple[Float, float]:
        """36 features; the pretrained SVR's score, which grows with distortion, negated."""
        from skimage.color import rgb2gray  # its weights are those the SVR was trained with

        grey = rgb2gray(image)
        half = cv2.resize(grey, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_CUBIC)
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # from flat pictures, which give nan
            # Flattened one by one: the package's own score() fails with NumPy 2.4.
            values = [
                value for scale in (grey, half) for value in self.model.calculate_brisque_features(scale)
            ]
        features = np.array([float(np.ravel(value)[0]) for value in values])
        if not np.isfinite(features).all():
            return features, math.nan
        return features, -float(self.model.calculate_image_quality_score(features))


class Niqe:
    """36 features (means over blocks) and their distance from photographs' (Mittal et al., SPL 2013)."""

    title = "NIQE"

    def __init__(self, photos: Path | None = None, on_photo: Callable[[], None] | None = None) -> None:
        """With the authors' model of good photographs, or one fitted to the pictures in a folder."""
        if photos is None:
            self.pristine = niqe.published()
            self.about = "the authors' model of photographs"
            return
        from grmp_edge.image_files import images_below
        from grmp_edge.preprocess import read_image

        files = images_below(photos)
        if not files:
            raise UsageError(
                f"--niqe-photos {photos}: no pictures there", "give a folder of good photographs"
            )
        greys = (_grey(read_image(file)) for file in files)
        self.pristine = niqe.fit_pristine(grey for grey in greys if min(grey.shape) >= niqe.BLOCK)
        self.about = f"a model fitted to {len(files)} photographs of {photos.name}"

    def measure(self, image: UInt8Array) -> tuple[Float, float]:
        """36 features (the mean over blocks); the distance, negated."""
        blocks = niqe.block_features(_grey(image))
        if not len(blocks):
            return np.full(36, math.nan), math.nan
        return blocks.mean(0), -niqe.distance(blocks, self.pristine)


class Laplacian:
    """The variance of the Laplacian, the usual measure of focus (Pech-Pacheco et al., ICPR 2000)."""

    title = "Laplacian variance"
    about = "its logarithm at full, half and quarter size as features"

    def measure(self, image: UInt8Array) -> tuple[Float, float]:
        """3 features: the logarithm at three sizes; the score is the variance at full size."""
        grey = _grey(image)
        variances = []
        for _ in range(3):
            variances.append(float(cv2.Laplacian(grey, cv2.CV_64F).var()))
            half = cv2.resize(grey, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
            grey = np.asarray(half, np.float64)
        return np.log(np.array(variances) + 1e-3), variances[0]


METRICS = ("brisque", "niqe", "laplacian")


def metrics_named(names: Sequence[str], niqe_photos: Path | None = None) -> dict[str, Metric]:
    """The metrics with these names, ready to measure.

    Raises:
        UsageError: a name is unknown.
        MissingDependencyError: a metric's package is not installed.
    """
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise UsageError(f"--baselines: {unknown[0]!r} is unknown", f"use {', '.join(METRICS)}")
    make: dict[str, Callable[[], Metric]] = {
        "brisque": Brisque,
        "niqe": lambda: Niqe(niqe_photos),
        "laplacian": Laplacian,
    }
    return {name: make[name]() for name in dict.fromkeys(names)}


def _grey(image: UInt8Array) -> Float:
    """Luminance 0..255, rounded to whole levels as in both metrics' published code."""
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float64)
