"""Standard input as a source: raw frames of a known size, or one encoded picture."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from grmp_edge.errors import SourceError, UsageError

__all__ = ["STDIN", "RawFormat", "read_raw_frames", "read_stdin"]

STDIN = "stdin"  # its name in results

_MAX_PICTURE = 1 << 30  # bytes of one encoded picture: an endless stream must not fill the memory


@dataclass(frozen=True)
class RawFormat:
    """The size and pixel format of raw frames, which follow each other without headers.

    ``pixels`` is one of FFmpeg's ``-pix_fmt`` names: ``rgb24`` and ``bgr24``, 3 bytes per pixel; ``gray``,
    1 byte; ``nv12``, a Y plane and an interleaved UV plane at half the size, converted by BT.601 with limited
    range, as OpenCV does.
    """

    width: int
    height: int
    pixels: str

    @classmethod
    def parse(cls, text: str) -> RawFormat:
        """Read ``WIDTHxHEIGHT:PIXELS``, such as ``1920x1080:nv12``.

        Raises:
            UsageError: the text has another form, or the size does not suit the pixel format.
        """
        match = re.fullmatch(r"(\d{1,5})x(\d{1,5}):(rgb24|bgr24|nv12|gray)", text)
        if match is None or not int(match[1]) or not int(match[2]):
            raise UsageError(f"--raw {text!r} is not WIDTHxHEIGHT:PIXELS", "PIXELS: rgb24, bgr24, nv12, gray")
        raw = cls(int(match[1]), int(match[2]), match[3])
        if raw.pixels == "nv12" and (raw.width % 2 or raw.height % 2):
            raise UsageError(f"--raw {text!r}: nv12 frames have even widths and heights", "check the size")
        return raw

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame."""
        area = self.width * self.height
        return {"gray": area, "nv12": area * 3 // 2}.get(self.pixels, area * 3)

    @property
    def bgr(self) -> bool:
        """Whether :meth:`decode` returns BGR (else RGB)."""
        return self.pixels != "rgb24"

    def decode(self, data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Convert a frame's bytes, uint8 (frame_bytes,), to uint8 (height, width, 3); a view if possible."""
        if self.pixels == "gray":
            image = cv2.cvtColor(data.reshape(self.height, self.width), cv2.COLOR_GRAY2BGR)
        elif self.pixels == "nv12":
            image = cv2.cvtColor(data.reshape(self.height * 3 // 2, self.width), cv2.COLOR_YUV2BGR_NV12)
        else:
            image = data.reshape(self.height, self.width, 3)
        return np.asarray(image, dtype=np.uint8)


def read_raw_frames(
    raw: RawFormat, every: int = 1, handle: int = 0
) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """Yield (index from 0, uint8 (height, width, 3)) of each ``every``-th frame until the input ends.

    The channel order is given by ``raw.bgr``. The frames share one buffer: each is valid until the next.

    Args:
        raw: size and layout of the frames.
        every: the frames between are read but not converted.
        handle: the file descriptor to read.

    Raises:
        SourceError: no frame came, or the last one is cut short (raised after the complete ones).
    """
    _refuse_terminal(handle)
    buffer = np.empty(raw.frame_bytes, np.uint8)
    index = 0
    while True:
        got = _fill(handle, buffer.data)
        if got < raw.frame_bytes:
            break
        if index % every == 0:
            yield index, raw.decode(buffer)
        index += 1
    if got:
        raise SourceError(
            f"{STDIN}: frame {index} is cut short ({got} of {raw.frame_bytes} bytes)",
            "check that --raw matches what is sent"
            if index
            else "check --raw, or send an encoded picture without it",
        )
    if index == 0:
        raise SourceError(f"{STDIN}: no frame came", "check the program that sends them")


def read_stdin(handle: int = 0) -> bytes:
    """All of standard input: one encoded picture.

    Raises:
        SourceError: it is a terminal, or too long for a picture.
    """
    _refuse_terminal(handle)
    data = bytearray()
    while chunk := os.read(handle, 1 << 20):
        data += chunk
        if len(data) > _MAX_PICTURE:
            raise SourceError(
                f"{STDIN}: more than {_MAX_PICTURE >> 20} MB is not a picture", "for frames, give --raw"
            )
    return bytes(data)


def _fill(handle: int, view: memoryview) -> int:
    # Not sys.stdin: a waiting thread would hold its lock, and the interpreter would abort at exit.
    got = 0
    while got < len(view):
        chunk = os.readv(handle, [view[got:]])
        if not chunk:
            break
        got += chunk
    return got


def _refuse_terminal(handle: int) -> None:
    if os.isatty(handle):
        raise SourceError(f"{STDIN}: is a terminal", "pipe a picture into it, or raw frames with --raw")
