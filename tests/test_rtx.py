"""TensorRT-RTX, whole, without a GPU: the real parser and the real builder read our graphs. `make test-rtx`.

What only a GPU can do, load and run the engine, must fail in one clear line and leave nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import write_tiny_bundle
from helpers_train import GPU_METHODS, bundle_of, tiny_model
from typer.testing import CliRunner

from grmp_edge.bundle import Bundle
from grmp_edge.cli import app
from grmp_edge.errors import BackendError, UsageError
from grmp_edge.export.fold import fold
from grmp_edge.export.precision.quantize import GpuMethod
from grmp_edge.runtime import Scorer
from grmp_edge.runtime.tensorrt.bindings import TensorRT, is_rtx, load_rtx, version
from grmp_edge.runtime.tensorrt.build import BuildConfig, Rehearsal, build, engine_key, rehearse
from grmp_edge.runtime.tensorrt.cuda import Gpu, find_gpu
from grmp_edge.runtime.tensorrt.engine_cache import EngineCache, Profile
from grmp_edge.train.network.backbone import BackboneConfig, load_backbone
from grmp_edge.train.network.model import GrmpIqa

pytestmark = pytest.mark.rtx

ADA = Gpu("NVIDIA GeForce RTX 4070", "8.9")


@pytest.fixture(scope="module")
def rtx() -> TensorRT:
    return load_rtx()


@pytest.fixture
def no_gpu() -> Iterator[None]:
    try:
        find_gpu()
    except BackendError:
        yield
    else:
        pytest.skip("not run: this machine has a GPU, and the test is of machines without")


def check_layers(precision: str, trial: Rehearsal, folded_bytes: int) -> None:
    """The types are those of the ONNX file, and the engine holds the weights once."""
    counts = trial.layers
    assert counts["all"] > 100 and trial.bytes > folded_bytes / {"fp32": 1, "fp16": 2}.get(precision, 4)
    if precision in ("fp16", "int8-fp16", "fp8"):
        assert counts["fp16"] > counts["fp32"] > 0
    assert (counts["int8"] > 0) == precision.startswith("int8") and (counts["fp8"] > 0) == (
        precision == "fp8"
    )


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_engines_of_the_default_model(precision: str, rtx: TensorRT) -> None:
    assert is_rtx(rtx) and version(rtx) >= (1, 7)
    trial = rehearse(Bundle.load("default"), BuildConfig(precision), rtx)
    assert trial.bytes > 4e6
    if precision == "int8":
        assert trial.layers["int8"] == 16  # two blocks: seven products' weights and inputs, and shared ones


@pytest.mark.parametrize(("name", "gpu"), [("ViT-B-16", GPU_METHODS), ("ViT-L-14", ())])
def test_engines_of_clips_towers(name: str, gpu: Sequence[GpuMethod], rtx: TensorRT, tmp_path: Path) -> None:
    """Eight bits of GPUs on four blocks of B/16: to the builder one is like another."""
    torch.manual_seed(0)
    folded = fold(GrmpIqa(load_backbone(BackboneConfig(name, "random"))).eval())
    width, count = folded.width, len(folded.blocks)
    bundle = bundle_of(folded, tmp_path, gpu=())
    shorter = replace(folded, blocks=folded.blocks[-4:])
    del folded
    for precision in ("fp32", "fp16", "int8"):
        trial = rehearse(bundle, BuildConfig(precision), rtx)
        check_layers(precision, trial, 12 * width * width * (count - 1) * 4)
    (tmp_path / "shorter").mkdir()
    eight = bundle_of(shorter, tmp_path / "shorter", gpu=gpu) if gpu else bundle
    for precision in gpu:
        trial = rehearse(eight, BuildConfig(precision), rtx)
        check_layers(precision, trial, 12 * width * width * 3 * 4)


def test_a_workspace_too_small_is_refused_with_the_remedy(rtx: TensorRT) -> None:
    with pytest.raises(BackendError, match="no tactic fits into 16 MiB of workspace") as caught:
        rehearse(Bundle.load("default"), BuildConfig("fp32", workspace_mib=16), rtx)
    assert caught.value.remedy == "raise --workspace"


def test_profiles_are_the_builders(rtx: TensorRT, tmp_path: Path) -> None:
    bundle = bundle_of(fold(tiny_model(layers=3)), tmp_path)
    for profile in (Profile(1, 1, 1), Profile(2, 4, 64)):
        assert rehearse(bundle, BuildConfig("fp16", profile), rtx).layers["fp16"] > 0


def test_what_tensorrt_cannot_read_is_refused(rtx: TensorRT, tmp_path: Path) -> None:
    bundle = bundle_of(fold(tiny_model(layers=3)), tmp_path, "dynamic")
    with pytest.raises(BackendError, match=r"int8\.onnx: TensorRT 1\.\S+ cannot read it"):
        rehearse(bundle, BuildConfig("int8"), rtx)  # its report does not say how it was quantised
    bundle.parity["int8"] = {"method": "dynamic"}
    with pytest.raises(UsageError, match="quantised dynamically"):
        rehearse(bundle, BuildConfig("int8"), rtx)
    bad = write_tiny_bundle(tmp_path / "other")
    bad.graph().write_bytes(b"no graph")
    with pytest.raises(BackendError, match="cannot read it"):
        rehearse(bad, BuildConfig("fp32"), rtx)


def test_an_engine_that_cannot_be_loaded_here_is_not_stored(
    rtx: TensorRT, no_gpu: None, tmp_path: Path
) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    cache = EngineCache(tmp_path / "cache")
    with pytest.raises(BackendError, match=r"TensorRT failed to build the engine: .*CUDA driver") as caught:
        build(bundle, BuildConfig("fp32"), cache, trt=rtx, gpu=ADA)
    assert "\n" not in str(caught.value) and not (tmp_path / "cache").exists()
    # Hopper is not among the cards that its makers name.
    with pytest.raises(BackendError, match=r"names compute capabilities .* has 9\.0"):
        build(bundle, BuildConfig("fp32"), cache, trt=rtx, gpu=Gpu("NVIDIA H200", "9.0"))


def test_its_engines_are_kept_apart_from_tensorrts(rtx: TensorRT, tmp_path: Path) -> None:
    key = engine_key(write_tiny_bundle(tmp_path / "b"), BuildConfig("fp32"), rtx, ADA)
    assert key.tensorrt == rtx.__version__ and key.flags == ("strongly_typed", "no_tf32", "rtx")


def test_the_commands(no_gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bundle = str(write_tiny_bundle(tmp_path / "b").path)
    invoke = CliRunner().invoke
    result = invoke(app, ["build", bundle, "--rtx", "--dry-run", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["layers"]["all"] > 0
    result = invoke(app, ["build", bundle, "--rtx", "--dry-run"])
    assert "layers: " in result.stdout and "next, on the device: grmp-edge build" in result.stderr
    for arguments in (["build", bundle, "--rtx"], ["score", bundle, str(tmp_path), "--provider", "rtx"]):
        result = invoke(app, arguments)
        assert result.exit_code == 1 and "no NVIDIA driver" in result.stderr.strip().splitlines()[-1]
    for wrong in (["--dry-run"], ["--rtx", "--print-trtexec"]):
        assert invoke(app, ["build", bundle, *wrong]).exit_code == 2
    parts = {part["name"]: part for part in json.loads(invoke(app, ["doctor", "--json"]).stdout)["parts"]}
    assert parts["tensorrt-rtx"]["status"] == "ok"
    assert not (tmp_path / "cache" / "grmp-edge" / "engines").exists()


def test_its_plugin_of_onnxruntime_needs_the_driver(no_gpu: None, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"plugin 'nv-tensorrt-rtx' does not load: .*libcuda") as caught:
        Scorer.open(write_tiny_bundle(tmp_path / "b"), provider="plugin:nv-tensorrt-rtx")
    assert "\n" not in str(caught.value) and "driver" in caught.value.remedy
