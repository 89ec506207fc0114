"""The anti-aliased squash of the released code's meta-pre-training; all else squashes as bundles do."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["smooth_squash"]

Float32Array = npt.NDArray[np.float32]


def smooth_squash(image: npt.NDArray[np.uint8], side: int) -> Float32Array:
    """Resize uint8 (H, W, 3) to float32 (side, side, 3) in 0..255, anti-aliased and bilinear.

    It is scikit-image's ``resize`` of floats: a Gaussian whose deviation is half the pixels that are lost,
    then linear interpolation between the pixels' centres.
    """
    pixels = image.astype(np.float32)
    for axis in (0, 1):
        length = image.shape[axis]
        ratio = length / side
        sigma = max(0.0, (ratio - 1) / 2)
        if sigma > 0:
            kernel = cv2.getGaussianKernel(2 * int(4 * sigma + 0.5) + 1, sigma, cv2.CV_64F)
            one = np.ones((1, 1))
            along_x, along_y = (one, kernel) if axis == 0 else (kernel, one)
            filtered = cv2.sepFilter2D(pixels, -1, along_x, along_y, borderType=cv2.BORDER_REFLECT_101)
            pixels = np.asarray(filtered, np.float32)
        place = (np.arange(side) + 0.5) * ratio - 0.5
        before = np.floor(place).astype(np.int64)
        share = (place - before).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        first = np.take(pixels, _mirrored(before, length), axis)
        second = np.take(pixels, _mirrored(before + 1, length), axis)
        pixels = first + share * (second - first)
    return pixels


def _mirrored(index: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
    """Indices at most one outside 0..length-1, reflected at the outermost pixels."""
    last = length - 1
    mirrored: npt.NDArray[np.int64] = np.clip(last - np.abs(last - np.abs(index)), 0, last)
    return mirrored
