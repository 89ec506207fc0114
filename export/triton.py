"""A model repository for NVIDIA's Triton server: a folder that it loads as it is.

::

    DIR/NAME/config.pbtxt
    DIR/NAME/1/model.onnx      and beside it, by their own names, the files it keeps weights in
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

    max_batch: int = 32  # GPUs gain up to about here; the engine's memory grows with it
    # Requests wait so long for others to share their batch: far less than a camera's frame of 33 ms.
    queue_delay_us: int = 2000
    instances: int = 1  # copies on each device; two hide copying behind computing, at twice the memory

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
        name: of the model, as clients call it.
        config: batching and instances.
        gpu: run on GPUs, else on the CPU.
        plan: the model is a TensorRT engine, not a graph; it runs on GPUs in any case.
    """
    graph, size = bundle.graphs[precision], bundle.input_size
    preferred = [batch for batch in (4, 8, 16, 32, 64) if batch <= config.max_batch] or [config.max_batch]
    # The batch dimension is Triton's own where max_batch_size is set: dims are of one picture, and a score
    # is a scalar, which dims cannot say; hence one number, reshaped away.
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
    """Write the model into a repository, whole in place of one of the same name, or not at all.

    Args:
        bundle: what to serve; it need not stay.
        repository: the server's ``--model-repository``; other models in it are left alone.
        precision: default fp16, which is for GPUs, where the bundle has it; else int8 or fp32 on the CPU.
        config: batching and instances; an engine takes no larger batch than its profile's.
        engine: a TensorRT engine of that graph, to be served in its place; it runs on GPUs of the kind that
            it was built on, in servers with the same TensorRT.

    Returns:
        The model's folder, named after the bundle's.

    Raises:
        BundleError: the bundle has no such graph.
        UsageError: something else stands at that place.
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
