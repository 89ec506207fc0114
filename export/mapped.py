"""A folded model in a mapped file, so that PyTorch's copy of the weights can be freed."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from grmp_edge.export.fold import FoldedModel

__all__ = ["Spool"]

_ALIGNED = 64


class Spool:
    """The file and its mapping. :meth:`release` returns the pages that were read to the system."""

    def __init__(self, folded: FoldedModel, path: Path) -> None:
        """Write the arrays of ``folded`` to ``path``, which is unlinked at once; the mapping keeps it."""
        with path.open("w+b") as stream:
            places: list[tuple[int, Any, tuple[int, ...]]] = []

            def write(array: Any) -> Any:
                places.append(_append(stream, array))
                return array

            _walk(folded, write)
            stream.write(b"\0")  # an empty file cannot be mapped
            stream.flush()
            self._mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        path.unlink()
        following = iter(places)
        self.folded: FoldedModel = _walk(folded, lambda _: self._view(*next(following)))

    def _view(self, offset: int, dtype: Any, shape: tuple[int, ...]) -> Any:
        count = int(np.prod(shape))
        return np.frombuffer(self._mapped, dtype, count, offset).reshape(shape)

    def release(self) -> None:
        """Drop the pages that were read; they are read again when needed."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._mapped.madvise(mmap.MADV_DONTNEED)


def _append(stream: Any, array: Any) -> tuple[int, Any, tuple[int, ...]]:
    stream.write(bytes(-stream.tell() % _ALIGNED))
    offset = stream.tell()
    stream.write(np.ascontiguousarray(array).data)
    return offset, array.dtype, array.shape


def _walk(value: Any, change: Callable[[Any], Any]) -> Any:
    """A copy of nested dataclasses and tuples with every array changed, in a fixed order."""
    if isinstance(value, np.ndarray):
        return change(value)
    if isinstance(value, tuple):
        return tuple(_walk(each, change) for each in value)
    if is_dataclass(value) and not isinstance(value, type):
        changed = {field.name: _walk(getattr(value, field.name), change) for field in fields(value)}
        return replace(value, **changed)
    return value
