"""Pictures and scores at fixed addresses on a GPU, so that onnxruntime runs a batch as one CUDA graph.

Without it every run allocates on the device and launches hundreds of kernels one by one, which costs the CPU
more than a small batch costs the GPU. A graph belongs to one batch size; the least recently used one goes.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from grmp_edge.errors import BackendError, first_line

__all__ = ["BoundRuns"]

_SIZES = 8  # batch sizes kept, as of native engines


@dataclass(frozen=True)
class _Ready:
    """One batch size in use."""

    images: Any  # OrtValue
    outputs: dict[str, Any]  # OrtValue, by name
    binding: Any
    options: Any


class BoundRuns:
    """Runs a session with its input and outputs bound to memory on ``device``; several threads take turns."""

    def __init__(
        self, ort: Any, session: Any, image: str, outputs: Sequence[tuple[str, tuple[int, ...]]], device: str
    ) -> None:
        """Bind nothing yet.

        Args:
            ort: the module onnxruntime.
            session: an InferenceSession, for CUDA graphs opened with ``enable_cuda_graph``.
            image: the input's name.
            outputs: each output's name, and its shape behind the batch; float32.
            device: ``cuda``; ``cpu`` serves the tests.
        """
        self._ort, self._session, self._device = ort, session, device
        self._image, self._outputs = image, outputs
        self._ready: OrderedDict[tuple[int, ...], _Ready] = OrderedDict()
        self._count = 0
        self._lock = threading.Lock()
        self._can_release = hasattr(session, "release_captured_graph")

    def run(self, batch: npt.NDArray[np.uint8], output: str) -> npt.NDArray[np.float32]:
        """The named output for uint8 (N, S, S, 3).

        Raises:
            BackendError: the run failed; its batch size is bound anew by the next.
        """
        with self._lock:
            try:
                ready = self._take(batch)
                ready.images.update_inplace(np.ascontiguousarray(batch))
                self._session.run_with_iobinding(ready.binding, ready.options)
                # A copy: on a CPU the array would be the bound memory itself.
                return np.array(ready.outputs[output].numpy(), np.float32)
            except Exception as error:  # onnxruntime's exceptions have no common base but this
                if (failed := self._ready.pop(batch.shape, None)) is not None:
                    self._release(failed)
                raise BackendError(
                    f"onnxruntime failed on a batch of {len(batch)}: {first_line(error)}"
                ) from None

    def close(self) -> None:
        """Free what is bound, after the current run."""
        with self._lock:
            while self._ready:
                self._release(self._ready.popitem()[1])

    def _take(self, batch: npt.NDArray[np.uint8]) -> _Ready:
        shape = batch.shape
        if shape in self._ready:
            self._ready.move_to_end(shape)
            return self._ready[shape]
        while len(self._ready) >= _SIZES:
            self._release(self._ready.popitem(last=False)[1])
        make = self._ort.OrtValue.ortvalue_from_shape_and_type
        images = make(shape, np.uint8, self._device, 0)
        outputs = {
            name: make((len(batch), *rest), np.float32, self._device, 0) for name, rest in self._outputs
        }
        binding, options = self._session.io_binding(), self._ort.RunOptions()
        binding.bind_ortvalue_input(self._image, images)
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        # Never the same number twice: a graph captured for other addresses must not be replayed. Where graphs
        # cannot be released, further sizes run without one, which is -1.
        self._count += 1
        number = self._count if self._count <= _SIZES or self._can_release else -1
        options.add_run_config_entry("gpu_graph_id", str(number))
        ready = self._ready[shape] = _Ready(images, outputs, binding, options)
        return ready

    def _release(self, ready: _Ready) -> None:
        if self._can_release:
            self._session.release_captured_graph(int(ready.options.get_run_config_entry("gpu_graph_id")))
