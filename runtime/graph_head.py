"""A graph's head: the constants that turn a picture's features into its score, and how to replace them.

The export names them alike in all graphs (export/graph/emit.py): ``direction`` (E, 1 + causes) and ``bias``
(1 + causes,), and with a stem ``statistics.row`` (statistics, 1). They are float32 in every precision, stored
as plain bytes in the graph's file or beside it. So they are overwritten in place, and the rest of the graph
stays as it was, byte for byte. A view's logit is

    feature . direction[:, 0] / |feature| + statistics . row + bias[0]
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from grmp_edge.bundle import Bundle
from grmp_edge.errors import BundleError
from grmp_edge.head import Head
from grmp_edge.onnx_wire import StoredWeight, added_outputs, stored_weights
from grmp_edge.runtime.backends import open_session
from grmp_edge.views import logit

__all__ = ["GraphHead", "Reading", "ViewReader", "read_head", "write_head"]

Float = npt.NDArray[np.float64]
UInt8Array = npt.NDArray[np.uint8]

_AGAIN = "export the checkpoint again with this version"
_DIRECTION, _BIAS, _ROW = "direction", "bias", "statistics.row"
_STATISTICS = "statistics.scaled"


@dataclass(frozen=True)
class GraphHead:
    """The constants of the score, without those of the causes."""

    direction: Float  # (E,)
    bias: float
    row: Float = field(default_factory=lambda: np.zeros(0))  # (S,); S is 0 without a stem

    def after(self, head: Head, together: float, shift: float) -> GraphHead:
        """These constants with a head of few labels behind them.

        A picture's logit is ``together * bias + shift`` plus what is linear in its aggregated views, and the
        head is linear in that.
        """
        bias = (head.scale * (together * self.bias + shift) + head.bias - shift) / together
        return GraphHead(
            head.scale * self.direction + head.weight, bias, head.scale * self.row + head.of_statistics
        )


@dataclass(frozen=True)
class Reading:
    """What a graph makes of n views."""

    logits: Float  # (n,), of the score
    features: Float  # (n, E), of unit length
    statistics: Float  # (n, S)

    def by(self, head: GraphHead) -> Float:
        """The views' logits by other constants, (n,)."""
        logits: Float = self.features @ head.direction + head.bias
        return logits + self.statistics @ head.row if len(head.row) else logits


class ViewReader:
    """Reads what a bundle's float32 graph computes before its head; runs on the CPU.

    Args:
        bundle: it must have a float32 graph of this project's export.
        folder: an empty one, for a copy of the graph with further outputs.
        threads: of onnxruntime.

    Raises:
        BundleError: the graph was exported before its head could be replaced.
    """

    def __init__(self, bundle: Bundle, folder: Path, threads: int | None = None) -> None:
        path, graph = bundle.graph("fp32"), bundle.graphs["fp32"]
        stem = bool(len(read_head(bundle, "fp32").row))
        self.names = ["feature", *([_STATISTICS] if stem else [])]
        self.logits, self.input, self.output = bool(graph.logits), graph.input, graph.logits or graph.output
        for file in bundle.data_files("fp32"):
            shutil.copyfile(file, folder / file.name)
        probe = folder / path.name
        shutil.copyfile(path, probe)
        with probe.open("ab") as stream:
            stream.write(added_outputs(self.names))
        self.session = open_session(probe, threads)

    def __call__(self, views: UInt8Array) -> Reading:
        """Read uint8 (n, S, S, 3) RGB."""
        own, feature, *rest = (
            np.asarray(value, np.float64)
            for value in self.session.run([self.output, *self.names], {self.input: views})
        )
        features = feature.reshape(len(views), -1)
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        statistics = rest[0] if rest else np.zeros((len(views), 0))
        return Reading(own[:, 0] if self.logits else logit(own.reshape(-1)), features, statistics)


def read_head(bundle: Bundle, precision: str) -> GraphHead:
    """The head's constants of a bundle's graph.

    Raises:
        BundleError: the graph has none that could be replaced.
    """
    stored = _stored(bundle, precision)
    folder, columns = bundle.path, 1 + len(bundle.causes)
    values = {
        name: _floats(folder / (place.location or bundle.graphs[precision].file), place)
        for name, place in stored.items()
    }
    direction = values[_DIRECTION].reshape(-1, columns)[:, 0]
    return GraphHead(direction, float(values[_BIAS][0]), values.get(_ROW, np.zeros(0)))


def write_head(bundle: Bundle, head: GraphHead, folder: Path, precisions: Sequence[str]) -> None:
    """Put other constants into copies of a bundle's graphs, which lie in ``folder`` with their data files."""
    for precision in precisions:
        graph = folder / bundle.graphs[precision].file
        for name, place in _stored(bundle, precision).items():
            file = folder / place.location if place.location else graph
            values = _floats(file, place)
            if name == _DIRECTION:
                values.reshape(-1, 1 + len(bundle.causes))[:, 0] = head.direction
            elif name == _BIAS:
                values[0] = head.bias
            else:
                values[:] = head.row
            with file.open("r+b") as stream:
                stream.seek(place.offset)
                stream.write(values.astype("<f4").tobytes())


def _floats(file: Path, place: StoredWeight) -> Float:
    with file.open("rb") as stream:
        stream.seek(place.offset)
        return np.frombuffer(stream.read(place.length), "<f4").astype(np.float64)


def _stored(bundle: Bundle, precision: str) -> Mapping[str, StoredWeight]:
    """Where a graph's head is: ``direction``, ``bias`` and, with a stem, ``statistics.row``."""
    path, columns = bundle.graph(precision), 1 + len(bundle.causes)
    try:
        weights = stored_weights(path)
    except (ValueError, OSError) as error:
        raise BundleError(f"{path}: not an ONNX file ({error})", _AGAIN) from None
    head = {name: weights[name] for name in (_DIRECTION, _BIAS, _ROW) if name in weights}
    stem = any(name.startswith("stem.") for name in weights)
    lacking = [name for name in (_DIRECTION, _BIAS, *([_ROW] if stem else [])) if name not in head]
    if lacking:
        raise BundleError(f"{path}: has no constant {lacking[0]!r} that could be replaced", _AGAIN)
    if head[_BIAS].length != 4 * columns or head[_DIRECTION].length % (4 * columns):
        raise BundleError(f"{path}: its head is not float32 for {columns} outputs", _AGAIN)
    for name, place in head.items():
        shared = [
            other
            for other, there in weights.items()
            if other != name
            and there.location == place.location
            and there.offset < place.offset + place.length
            and place.offset < there.offset + there.length
        ]
        if shared:
            raise BundleError(f"{path}: {name!r} shares its bytes with {shared[0]!r}", _AGAIN)
    return head
