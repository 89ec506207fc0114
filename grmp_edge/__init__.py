"""Learned no-reference image quality, from labelled frames to camera streams.

>>> from grmp_edge import Scorer, score  # doctest: +SKIP
>>> score("photo.jpg").value  # doctest: +SKIP
>>> with Scorer.open() as scorer:  # doctest: +SKIP
...     print(scorer.score("photo.jpg").value)
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grmp_edge.runtime.scorer import Scorer, score

__all__ = ["Scorer", "__version__", "score"]

__version__ = "0.1.0"

# OpenCV reads it once, when it is imported, and this comes before that: whatever a file's header makes us
# believe, no decoder goes beyond. Its own default is a gigapixel; the largest sensors have 150 megapixels.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", "200000000")


def __getattr__(name: str) -> object:
    """Load the scorer when it is first asked for: importing grmp_edge alone loads no numpy and no OpenCV."""
    if name in ("Scorer", "score"):
        from grmp_edge.runtime import scorer

        return getattr(scorer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
