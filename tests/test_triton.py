"""The Triton model repository, its config read by the server's own protobuf definition."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from conftest import write_tiny_bundle
from google.protobuf import text_format

from grmp_edge.bundle import Bundle
from grmp_edge.errors import BundleError, UsageError
from grmp_edge.export.triton import TritonConfig, triton_config, write_triton


def model_config() -> Any:
    """tritonclient's model_config_pb2, without the rest of its package, which wants grpc."""
    package = importlib.util.find_spec("tritonclient")
    assert package is not None and package.submodule_search_locations
    path = Path(next(iter(package.submodule_search_locations)), "grpc", "model_config_pb2.py")
    spec = importlib.util.spec_from_file_location("triton_model_config_pb2", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PB = model_config()


def parsed(text: str) -> Any:
    return text_format.Parse(text, PB.ModelConfig())  # refuses unknown fields and values


@pytest.mark.parametrize("gpu", [False, True])
def test_the_server_understands_the_config(gpu: bool, tiny_bundle: Bundle) -> None:
    settings = TritonConfig(max_batch=16, queue_delay_us=500, instances=2)
    config = parsed(triton_config(tiny_bundle, "fp32", "iqa", settings, gpu))
    assert (config.name, config.backend, config.max_batch_size) == ("iqa", "onnxruntime", 16)
    (images,), (scores,) = config.input, config.output
    assert (images.name, images.data_type, list(images.dims)) == ("images", PB.TYPE_UINT8, [32, 32, 3])
    assert (scores.name, scores.data_type, list(scores.dims)) == ("scores", PB.TYPE_FP32, [1])
    assert scores.HasField("reshape") and list(scores.reshape.shape) == []
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 8, 16]
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    (group,) = config.instance_group
    assert group.count == 2
    assert group.kind == (PB.ModelInstanceGroup.KIND_GPU if gpu else PB.ModelInstanceGroup.KIND_CPU)
    assert config.parameters["grmp_edge.bundle"].string_value == tiny_bundle.id


def test_an_engine_is_served_as_a_plan(tiny_bundle: Bundle, tmp_path: Path) -> None:
    engine = tmp_path / "an.engine"
    engine.write_bytes(b"a plan")
    model = write_triton(tiny_bundle, tmp_path / "models", "fp32", TritonConfig(max_batch=4), engine)
    assert {path.name for path in (model / "1").iterdir()} == {"model.plan"}
    config = parsed((model / "config.pbtxt").read_text())
    assert (config.backend, config.max_batch_size) == ("tensorrt", 4)
    assert (model / "1" / config.default_model_filename).read_bytes() == b"a plan"
    # TensorRT runs on GPUs only, whatever the precision.
    assert config.instance_group[0].kind == PB.ModelInstanceGroup.KIND_GPU
    assert list(config.dynamic_batching.preferred_batch_size) == [4]


def test_the_repository_is_laid_out_as_the_server_wants(tiny_bundle: Bundle, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    (repository / "other").mkdir(parents=True)
    model = write_triton(tiny_bundle, repository)
    found = {str(path.relative_to(repository)) for path in repository.rglob("*") if path.is_file()}
    assert model == repository / "tiny.bundle"
    assert (
        found == {"tiny.bundle/config.pbtxt", "tiny.bundle/1/model.onnx"} and (repository / "other").is_dir()
    )
    config = parsed((model / "config.pbtxt").read_text())
    assert config.name == model.name  # or the server refuses it
    # The file's own signature is what the config says, the batch in front.
    session = onnxruntime.InferenceSession(
        str(model / "1" / config.default_model_filename), providers=["CPUExecutionProvider"]
    )
    (images,), (scores,) = session.get_inputs(), session.get_outputs()
    assert images.name == config.input[0].name and images.shape[1:] == list(config.input[0].dims)
    assert scores.name == config.output[0].name and len(scores.shape) == 1
    # Written again over itself, but over nothing else.
    assert write_triton(write_tiny_bundle(tiny_bundle.path, shift=1.0), repository) == model
    (repository / "other").rename(tmp_path / "kept")
    (tmp_path / "kept" / "tiny.bundle").mkdir()
    with pytest.raises(UsageError, match="not a Triton model"):
        write_triton(tiny_bundle, tmp_path / "kept")
    with pytest.raises(BundleError, match="no fp16"):
        write_triton(tiny_bundle, repository, "fp16")
    with pytest.raises(UsageError):
        TritonConfig(max_batch=0)
