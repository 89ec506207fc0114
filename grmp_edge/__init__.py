"""grmp-edge: learned no-reference image quality, from labelled frames to camera streams."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
