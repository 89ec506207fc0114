"""The errors a user can meet: what went wrong, where, and the remedy, in one line.

The command line prints ``str(error)`` and exits with ``error.exit_code``; a program catches
:class:`GrmpError` or a subclass.
"""

from __future__ import annotations

from grmp_edge.install import install_line

__all__ = [
    "BackendError",
    "BundleError",
    "CheckpointError",
    "DamagedError",
    "DataError",
    "GrmpError",
    "ImageError",
    "MissingDependencyError",
    "ModelError",
    "ParityError",
    "SourceError",
    "UsageError",
    "first_line",
]


class GrmpError(Exception):
    """Base class of all errors raised here: ``message`` says what and where, ``remedy`` what to do."""

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
    """The options or settings do not fit together."""

    exit_code = 2


class ImageError(GrmpError):
    """A picture cannot be read, or an array is not an image."""


class DamagedError(ImageError):
    """A picture can be decoded, but the decoder knows that parts of it are missing or wrong."""


class SourceError(GrmpError):
    """A source of pictures (file, folder, glob, video) is missing or unreadable."""


class DataError(GrmpError):
    """A labelled data set is wrong: a missing image, a bad score, too few rows."""


class ModelError(GrmpError):
    """A backbone is unknown or unsupported, or its weights do not fit."""


class CheckpointError(GrmpError):
    """A checkpoint is missing, damaged, or from an incompatible version."""


class BundleError(GrmpError):
    """A bundle is missing, damaged, or has a schema this version cannot read."""


class ParityError(GrmpError):
    """An exported graph's scores differ from the PyTorch model's by more than the gate allows."""

    exit_code = 3


class BackendError(GrmpError):
    """An inference backend or execution provider does not work on this machine."""


class MissingDependencyError(GrmpError):
    """An optional package is not installed; the remedy names the extra."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed",
            f"run: {install_line(extra)}",
        )
        self.package = package
        self.extra = extra


def first_line(error: BaseException, limit: int = 300) -> str:
    """The first line of another library's error, at most ``limit`` characters; its type if it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:limit]
