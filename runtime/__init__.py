"""Scoring without torch: backends, sources, the Scorer.

with Scorer.open("my.bundle") as scorer:
    print(scorer.score("photo.jpg").value)
"""

from __future__ import annotations

from grmp_edge.runtime.backends import Backend, BackendOptions
from grmp_edge.runtime.scorer import Scorer
from grmp_edge.runtime.sources.sources import Failure, Picture, Sampling, read_sources
from grmp_edge.score import MosScale, Score

__all__ = [
    "Backend",
    "BackendOptions",
    "Failure",
    "MosScale",
    "Picture",
    "Sampling",
    "Score",
    "Scorer",
    "read_sources",
]
