"""What an open live source is, and how it ends."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from grmp_edge.errors import SourceError

__all__ = ["Capture", "DamagedFrame", "EndOfStream", "PermanentSourceError"]


class PermanentSourceError(SourceError):
    """Trying again cannot help: a wrong name, or something that is not installed."""


class EndOfStream(SourceError):  # noqa: N818 - the name says that it is no fault
    """A file that is not to be looped has ended."""


class DamagedFrame(SourceError):  # noqa: N818 - one frame, not the source
    """The decoder knows that a frame is not whole; the next ones may be."""


class Capture(Protocol):
    """An open source. Used by one thread."""

    def grab(self) -> None:
        """Wait for the next frame and take it in, as cheaply as can be.

        Raises:
            SourceError: the source ended, failed or timed out.
        """

    def passed_over(self) -> bool:
        """Whether the grabbed frame is not decoded, so that there is nothing to retrieve."""

    def stamp_s(self) -> float | None:
        """The grabbed frame's time in the stream in seconds, where a network stream has one."""

    def overtaken(self) -> bool:
        """Whether a newer frame has come already, where there is no time stamp to tell it by."""

    def retrieve(self) -> npt.NDArray[np.uint8]:
        """The frame of the last :meth:`grab`, uint8 (H, W, 3) BGR.

        Raises:
            DamagedFrame: it is not whole.
            SourceError: it cannot be decoded.
        """

    def damage(self) -> str:
        """What is wrong with the frame last retrieved, where ``score_damaged`` gives it out; else empty."""

    def notice(self) -> str:
        """What the user should know of how it is read, in a few words; empty: nothing."""

    def close(self) -> None:
        """Let go of the source; never raises."""
