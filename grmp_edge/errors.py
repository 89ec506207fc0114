"""Every error a user can meet: what went wrong, where, and the remedy, in one line.

The command line prints ``str(error)`` and exits with ``error.exit_code``; a program catches
:class:`GrmpError` or one of its children.
"""

from __future__ import annotations

__all__ = [
    "BackendError",
    "BundleError",
    "CheckpointError",
    "DataError",
    "GrmpError",
    "ImageError",
    "MissingDependencyError",
    "ModelError",
    "ParityError",
    "SourceError",
    "UsageError",
]


class GrmpError(Exception):
    """Base of all errors raised on purpose; the message says what and where, ``remedy`` what to do."""

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        """One line: the message, then the remedy if there is one."""
        text = f"{self.message}; {self.remedy}" if self.remedy else self.message
        return " ".join(text.split())


class UsageError(GrmpError):
    """The options of a command do not fit together."""

    exit_code = 2


class ImageError(GrmpError):
    """A picture cannot be read or has a shape or type that is not an image."""


class SourceError(GrmpError):
    """A source of pictures (file, folder, glob, video) is missing or unreadable."""


class DataError(GrmpError):
    """A labelled data set is wrong: a missing image, a bad score, too few rows."""


class ModelError(GrmpError):
    """A backbone is unknown, of an unsupported kind, or its weights do not fit."""


class CheckpointError(GrmpError):
    """A checkpoint is missing, damaged, or made by an incompatible version."""


class BundleError(GrmpError):
    """A bundle is missing, damaged, or of a schema this version cannot read."""


class ParityError(GrmpError):
    """An exported graph does not score as the PyTorch model does, within the gate's tolerance."""

    exit_code = 3


class BackendError(GrmpError):
    """An inference backend or execution provider does not work on this machine."""


class MissingDependencyError(GrmpError):
    """An optional package is not installed; the remedy names the extra."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed",
            f"run: pip install 'grmp-edge[{extra}]'",
        )
        self.package = package
        self.extra = extra
