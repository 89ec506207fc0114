"""How long-running work reports its progress, without printing."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Reporter", "Silent"]


class Reporter(Protocol):
    """Receives progress; the command line implements it to show it live."""

    def start(self, stage: str, total: int, done: int = 0) -> None:
        """A stage of ``total`` steps begins; an earlier run did ``done`` of them."""

    def step(self, count: int = 1, **metrics: float) -> None:
        """``count`` more steps are done; the latest metrics by name, for instance loss and srcc."""

    def note(self, text: str) -> None:
        """One line that stays on the screen."""


class Silent:
    """Ignores all progress."""

    def start(self, stage: str, total: int, done: int = 0) -> None:
        """Ignore."""

    def step(self, count: int = 1, **metrics: float) -> None:
        """Ignore."""

    def note(self, text: str) -> None:
        """Ignore."""
