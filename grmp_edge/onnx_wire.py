"""Where an ONNX file keeps its weights, read from its bytes without onnx or protobuf.

Weights inside the file are skipped by their length, unread. Field numbers are those of onnx.proto.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["StoredWeight", "added_outputs", "external_files", "has_control_flow", "stored_weights"]

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
# From a model's graph, and from its functions, to their nodes, the nodes' attributes and the graphs of these.
_TO_GRAPHS = (((7,), (1,), (5,), (6, 11)), ((25,), (7,), (5,), (6, 11)))
_DEEPEST = 100  # protobuf's own limit


@dataclass(frozen=True)
class StoredWeight:
    """The bytes of a graph's weight: in the graph's own file (``location`` is empty), or in one beside it."""

    location: str
    offset: int
    length: int


def external_files(path: Path) -> list[str]:
    """The ``location`` of every external weight as written, without repetition, in order.

    Raises:
        ValueError: it is not an ONNX file.
        OSError: it cannot be read.
    """
    with _mapped(path) as content:
        return list(dict.fromkeys(_locations(content, 0, len(content), "model", 0)))


def stored_weights(path: Path) -> dict[str, StoredWeight]:
    """The weights of the main graph by name; those that are not stored as plain bytes are left out.

    Raises:
        ValueError, OSError: as for :func:`external_files`.
    """
    weights: dict[str, StoredWeight] = {}
    with _mapped(path) as content:
        for number, start, stop in _fields(content, 0, len(content)):
            if number == 7:
                for inner, a, b in _fields(content, start, stop):
                    if inner == 5:
                        name, weight = _weight(content, a, b)
                        if weight is not None:
                            weights[name] = weight
    return weights


def _weight(data: mmap.mmap, at: int, end: int) -> tuple[str, StoredWeight | None]:
    name, raw, pairs = "", None, dict[bytes, bytes]()
    for number, a, b in _fields(data, at, end):
        if number == 8:
            name = data[a:b].decode("utf-8", "replace")
        elif number == 9:
            raw = StoredWeight("", a, b - a)
        elif number == 13:
            pair = {field: data[c:d] for field, c, d in _fields(data, a, b)}
            pairs[pair.get(1, b"")] = pair.get(2, b"")
    if b"location" not in pairs:
        return name, raw
    if b"length" not in pairs:
        return name, None
    offset, length = int(pairs.get(b"offset", b"0")), int(pairs[b"length"])
    return name, StoredWeight(pairs[b"location"].decode("utf-8", "replace"), offset, length)


def added_outputs(names: Sequence[str]) -> bytes:
    """Bytes that, at the end of an ONNX file, make float32 values of its graph outputs, too.

    Protobuf merges a message that is given in two parts, and appends what is repeated.
    """

    def field(number: int, content: bytes) -> bytes:
        size, length = len(content), b""
        while size > 0x7F:
            length += bytes([size & 0x7F | 0x80])
            size >>= 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + content

    float32 = field(2, field(1, b"\x08\x01"))  # ValueInfoProto.type.tensor_type.elem_type
    outputs = b"".join(field(12, field(1, name.encode()) + float32) for name in names)
    return field(7, outputs)


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    with path.open("rb") as stream:
        try:
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise ValueError("it is empty") from None
        with content:
            try:
                yield content
            except IndexError:
                raise ValueError("it ends in the middle") from None


def has_control_flow(path: Path) -> bool:
    """Whether any node holds a graph of its own, as Loop, If and Scan do.

    Raises:
        ValueError: it is not an ONNX file.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            return any(_any(content, 0, len(content), path) for path in _TO_GRAPHS)
        except IndexError:
            raise ValueError("it ends in the middle") from None


def _any(data: mmap.mmap, at: int, end: int, path: Sequence[tuple[int, ...]]) -> bool:
    """Whether a message has a field with a length that ``path`` leads to."""
    return any(
        len(path) == 1 or _any(data, start, stop, path[1:])
        for number, start, stop in _fields(data, at, end)
        if number in path[0]
    )


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
