"""A model repository for NVIDIA's Triton server.

::

    DIR/NAME/config.pbtxt
    DIR/NAME/1/model.onnx      with its data files beside it
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from grmp_edge.bundle import Bundle
from grmp_edge.errors import UsageError
from grmp_edge.files import replace_folder

__all__ = ["TritonConfig", "triton_config", "write_triton"]

_GRAPH, _PLAN = "model.onnx", "model.plan"


@dataclass(frozen=True)
class TritonConfig:
    """How the server runs the model."""

    max_batch: int = 32  # GPUs get faster up to about here; the engine's memory grows with it
    # How long a request waits for others to share its batch: far less than the 33 ms of a camera's frame.
    queue_delay_us: int = 2000
    instances: int = 1  # on each device; two overlap copying and computing, for twice the memory

    def __post_init__(self) -> None:
        if min(self.max_batch, self.instances) < 1 or self.queue_delay_us < 0:
            raise UsageError("Triton's batch and instances must be 1 or more, its delay 0 or more")


def triton_config(
    bundle: Bundle, precision: str, name: str, config: TritonConfig, gpu: bool, plan: bool = False
) -> str:
    """The text of config.pbtxt.

    Args:
        bundle: what is served.
        precision: which graph.
        name: of the model, for clients.
        config: batching and instances.
        gpu: run it on GPUs, else on the CPU.
        plan: the model is a TensorRT engine instead of a graph, and runs on GPUs in any case.
    """
    graph, size = bundle.graphs[precision], bundle.input_size
    preferred = [batch for batch in (4, 8, 16, 32, 64) if batch <= config.max_batch] or [config.max_batch]
    # With max_batch_size set, Triton adds the batch dimension itself: dims are those of one picture. A score
    # is a scalar, which dims cannot express, hence one number, reshaped away.
    return f'''# grmp-edge {bundle.id}, {precision}: uint8 RGB pixels {size} x {size} to a score of 0..1
name: "{name}"
backend: "{"tensorrt" if plan else "onnxruntime"}"
default_model_filename: "{_PLAN if plan else _GRAPH}"
max_batch_size: {config.max_batch}
input [
  {{
    name: "{graph.input}"
    data_type: TYPE_UINT8
    dims: [ {size}, {size}, 3 ]
  }}
]
output [
  {{
    name: "{graph.output}"
    data_type: TYPE_FP32
    dims: [ 1 ]
    reshape: {{ shape: [ ] }}
  }}
]
dynamic_batching {{
  preferred_batch_size: [ {", ".join(str(batch) for batch in preferred)} ]
  max_queue_delay_microseconds: {config.queue_delay_us}
}}
instance_group [
  {{
    count: {config.instances}
    kind: {"KIND_GPU" if gpu or plan else "KIND_CPU"}
  }}
]
parameters {{
  key: "grmp_edge.bundle"
  value: {{ string_value: "{bundle.id}" }}
}}
'''


def write_triton(
    bundle: Bundle,
    repository: Path,
    precision: str | None = None,
    config: TritonConfig | None = None,
    engine: Path | None = None,
) -> Path:
    """Write a model into a repository. One of the same name is replaced as a whole, or not at all.

    Args:
        bundle: what to serve; it is copied.
        repository: the server's ``--model-repository``; other models in it are not touched.
        precision: by default fp16, for GPUs, if the bundle has it; else int8 or fp32 on the CPU.
        config: batching and instances; an engine takes no larger batch than its profile's.
        engine: a TensorRT engine of that graph, to be served instead of it; it needs the same kind of GPU and
            the same version of TensorRT as it was built with.

    Returns:
        The model's folder, named after the bundle's.

    Raises:
        BundleError: the bundle has no such graph.
        UsageError: the folder exists and is not a Triton model.
    """
    chosen = precision or next(name for name in ("fp16", "int8", "fp32") if name in bundle.graphs)
    source = bundle.graph(chosen)
    # Model names are part of URLs.
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", bundle.path.resolve().name)
    target = repository / name
    if target.exists() and not (target / "config.pbtxt").is_file():
        raise UsageError(f"{target}: exists and is not a Triton model", "choose another folder with --triton")
    with replace_folder(target) as folder:
        version = folder / "1"
        version.mkdir()
        if engine is not None:
            shutil.copyfile(engine, version / _PLAN)
        else:
            shutil.copyfile(source, version / _GRAPH)
            for data in bundle.data_files(chosen):
                shutil.copyfile(data, version / data.name)
        gpu, settings = chosen == "fp16", config or TritonConfig()
        text = triton_config(bundle, chosen, name, settings, gpu, plan=engine is not None)
        (folder / "config.pbtxt").write_text(text, encoding="utf-8")
    return target
