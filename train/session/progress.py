"""How long work reports itself, without printing."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Reporter", "Silent"]


class Reporter(Protocol):
    """What the command line implements to show live progress."""

    def start(self, stage: str, total: int, done: int = 0) -> None:
        """A stage of ``total`` steps begins, ``done`` of them done by an earlier run."""

    def step(self, count: int = 1, **metrics: float) -> None:
        """``count`` steps are done; the latest metrics by name, for instance loss and srcc."""

    def note(self, text: str) -> None:
        """One line worth keeping."""


class Silent:
    """Reports to nobody."""

    def start(self, stage: str, total: int, done: int = 0) -> None:
        """Ignore."""

    def step(self, count: int = 1, **metrics: float) -> None:
        """Ignore."""

    def note(self, text: str) -> None:
        """Ignore."""
