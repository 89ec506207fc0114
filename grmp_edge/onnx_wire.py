"""The names of an ONNX file's external data files, read from its bytes without onnx or protobuf.

Weights inside the file are skipped by their length, unread. Field numbers are those of onnx.proto.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

__all__ = ["external_files"]

# By message, the fields that lead to tensors and the message each of them holds.
_FOLLOW: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},  # external_data, pairs of strings
}
_DEEPEST = 100  # protobuf's own limit


def external_files(path: Path) -> list[str]:
    """The ``location`` of every external weight as written, without repetition, in order.

    Raises:
        ValueError: it is not an ONNX file.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        try:
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise ValueError("it is empty") from None
        with content:
            try:
                return list(dict.fromkeys(_locations(content, 0, len(content), "model", 0)))
            except IndexError:
                raise ValueError("it ends in the middle") from None


def _locations(data: mmap.mmap, at: int, end: int, message: str, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        raise ValueError("its messages are nested too deeply")
    follow = _FOLLOW[message]
    for number, start, stop in _fields(data, at, end):
        child = follow.get(number)
        if child == "entry":
            pair = {field: data[a:b] for field, a, b in _fields(data, start, stop)}
            if pair.get(1) == b"location":
                yield pair.get(2, b"").decode("utf-8", "replace")
        elif child is not None:
            yield from _locations(data, start, stop, child, depth + 1)


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of every field with a length; the others are stepped over."""
    while at < end:
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            _, at = _varint(data, at)
        elif kind == 1:
            at += 8
        elif kind == 5:
            at += 4
        elif kind == 2:
            size, at = _varint(data, at)
            if size > end - at:
                raise ValueError("a length in it reaches past its end")
            yield number, at, at + size
            at += size
        else:
            raise ValueError(f"it has a field of the unknown kind {kind}")
    if at != end:
        raise ValueError("a field in it reaches past its end")


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number in it does not end")
