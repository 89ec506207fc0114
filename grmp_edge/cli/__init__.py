"""The command line: the only part that prints. ``main`` is the entry point of ``grmp-edge``."""

from __future__ import annotations

from grmp_edge.cli.app import app, main

__all__ = ["app", "main"]
