"""How far saving a frame moves its score, and what it takes on disk: which format `collect` should write.

    python tests/field/saving.py PICTURE_OR_CLIP...

One frame of a clip is taken in ten seconds.
"""

from __future__ import annotations

import sys

import cv2
import numpy as np

from grmp_edge.preprocess import swap_red_blue
from grmp_edge.runtime import Scorer
from grmp_edge.runtime.sources.sources import Picture, Sampling, read_sources

_444 = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
WAYS = {
    "png": (".png", [cv2.IMWRITE_PNG_COMPRESSION, 3]),
    "jpeg 90": (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 90]),
    "jpeg 95": (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 95]),
    "jpeg 95 4:4:4": (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 95, *_444]),
    "jpeg 98 4:4:4": (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 98, *_444]),
    "webp 98": (".webp", [cv2.IMWRITE_WEBP_QUALITY, 98]),
}


def main() -> None:
    moved: dict[str, list[float]] = {name: [] for name in WAYS}
    sizes: dict[str, list[float]] = {name: [] for name in WAYS}
    with Scorer.open(threads=1) as scorer:
        for picture in read_sources(sys.argv[1:], Sampling(fps=0.1)):
            if not isinstance(picture, Picture):
                print(picture.error, file=sys.stderr)
                continue
            before = scorer.score(picture.image).value
            for name, (suffix, options) in WAYS.items():
                data = cv2.imencode(suffix, swap_red_blue(picture.image), options)[1].tobytes()
                moved[name].append(abs(scorer.score(data).value - before))
                sizes[name].append(len(data) * 8 / picture.image[..., 0].size)
    print(f"{len(moved['png'])} frames; how far scores moved, and bits a pixel")
    for name, values in moved.items():
        print(
            f"{name:15} mean {np.mean(values):.4f}  95% {np.percentile(values, 95):.4f}  "
            f"most {np.max(values):.4f}  {np.mean(sizes[name]):5.2f}"
        )


main()
