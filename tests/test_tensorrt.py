"""TensorRT without TensorRT: the cache and its reasons, trtexec's line, the operators of our graphs; and the
build's path through a stand-in of the bindings, since theirs need a GPU's libraries."""

from __future__ import annotations

import importlib.util
import json
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from conftest import write_tiny_graph
from helpers_train import tiny_model
from onnx import TensorProto, helper
from tensorrt_operators import OPERATORS, REFUSED, unsupported
from typer.testing import CliRunner

from grmp_edge.bundle import Bundle
from grmp_edge.cli import app
from grmp_edge.errors import BackendError, BundleError, MissingDependencyError, UsageError
from grmp_edge.export.fold import fold
from grmp_edge.export.graph.builder import GraphBuilder
from grmp_edge.export.graph.emit import build_onnx
from grmp_edge.export.precision.quantize import build_int8, layers
from grmp_edge.files import user_folder
from grmp_edge.runtime.backends import BackendOptions, open_backend
from grmp_edge.runtime.tensorrt import bindings
from grmp_edge.runtime.tensorrt.build import BuildConfig, build, count_types, trtexec_line
from grmp_edge.runtime.tensorrt.cuda import Gpu, find_gpu
from grmp_edge.runtime.tensorrt.engine_cache import EngineCache, EngineKey, Profile

ORIN = Gpu("Orin (nvgpu)", "8.7")
KEY = EngineKey(
    "ab" * 32, "10.3.0", ORIN.name, "8.7", "fp16", "images", 224, Profile(), 1024, ("strongly_typed",)
)
FP32 = BuildConfig("fp32")


@pytest.mark.parametrize("quick", [False, True])
def test_tensorrt_has_every_operator_and_type_of_our_graphs(quick: bool) -> None:
    folded = fold(tiny_model(layers=3, quick_gelu=quick))
    scales = dict.fromkeys(layers(folded), 0.1)
    for graph in (
        build_onnx(folded),
        build_onnx(folded, "fp16"),
        build_onnx(folded, "fp16", {1}),
        build_int8(folded, "static", scales),
    ):
        assert unsupported(graph) == []
    assert not set(OPERATORS) & REFUSED
    dynamic = unsupported(build_int8(folded, "dynamic", {}))
    assert any("DynamicQuantizeLinear" in problem for problem in dynamic)


def test_the_check_finds_what_tensorrt_refuses() -> None:
    def graph(*nodes: onnx.NodeProto, opset: int = 17, weights: Any = ()) -> onnx.ModelProto:
        shape = helper.make_tensor_value_info
        made = helper.make_graph(
            nodes,
            "g",
            [shape("x", TensorProto.UINT8, [2, 3])],
            [shape("y", TensorProto.FLOAT, None)],
            weights,
        )
        return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)

    node, cast = helper.make_node, helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT)
    assert unsupported(graph(cast, node("Erf", ["f"], ["y"]))) == []
    cases = {
        "opset 21": graph(cast, node("Erf", ["f"], ["y"]), opset=21),
        "not in the table": graph(cast, node("Hardmax", ["f"], ["y"])),
        "reads UINT8": graph(node("Transpose", ["x"], ["t"], name="t"), node("Cast", ["t"], ["y"], to=1)),
        "reads DOUBLE": graph(
            node("Cast", ["x"], ["d"], to=TensorProto.DOUBLE),
            node("Erf", ["d"], ["e"]),
            node("Cast", ["e"], ["y"], to=TensorProto.FLOAT),
        ),
        "zero point": graph(
            cast,
            node("QuantizeLinear", ["f", "s", "z"], ["q"]),
            node("DequantizeLinear", ["q", "s", "z"], ["y"]),
            weights=[
                helper.make_tensor("s", TensorProto.FLOAT, [], [0.1]),
                helper.make_tensor("z", TensorProto.INT8, [], [3]),
            ],
        ),
        "is not a constant": graph(
            cast,
            node("Constant", [], ["a"], value=helper.make_tensor("a", TensorProto.INT64, [1], [0])),
            node("Unsqueeze", ["f", "a"], ["y"]),
        ),
    }  # fmt: skip
    for words, model in cases.items():
        assert any(words in problem for problem in unsupported(model)), words
    builder = GraphBuilder()
    x = builder.cast(builder.input("x", "u8", (2, 3)), "f32", "f")
    (mixed,) = builder.convert("LayerNormalization", {"n": "f32"}, x, builder.constant("w", [1.0] * 3, "f16"))
    assert any("mixes" in problem for problem in unsupported(builder.model("g", [(mixed, (2, 3))], {})))


def test_the_cache_gives_back_what_was_stored_and_says_why_not(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    assert cache.lookup(KEY).reasons == ["no engine was built here before"]
    path = cache.store(KEY, b"plan", {"layers": {"all": 3}})
    assert cache.lookup(KEY).engine == path == cache.engine_path(KEY)
    assert path.read_bytes() == b"plan" and "orin-nvgpu" in path.name
    sidecar = json.loads(path.with_suffix(".json").read_text())
    assert sidecar["key"]["profile"] == {"smallest": 1, "best": 8, "largest": 8}
    changes: dict[str, Any] = {
        "onnx_sha256": "cd" * 32, "tensorrt": "10.16.1", "gpu": "Thor", "compute_capability": "11.0",
        "precision": "fp32", "input": "x", "size": 336, "profile": Profile(1, 1, 1), "workspace_mib": 64,
        "flags": (),
    }  # fmt: skip
    assert set(changes) == set(KEY.to_json())
    for name, value in changes.items():
        other = replace(KEY, **{name: value})
        found = cache.lookup(other)
        assert found.engine is None and len(found.reasons) == 1
        assert found.reasons[0].startswith(f"{name}: ") and "there" in found.reasons[0]
        assert cache.engine_path(other) != path
    # The nearest is named, not the first.
    cache.store(replace(KEY, gpu="Thor", size=336, workspace_mib=1), b"other", {})
    assert cache.lookup(replace(KEY, tensorrt="11.0")).reasons == ["tensorrt: '10.3.0' there, '11.0' here"]
    path.write_bytes(b"plaN")
    assert "damaged" in cache.lookup(KEY).reasons[0]
    path.with_suffix(".json").write_text("{")
    assert cache.lookup(KEY).engine is None


def test_the_cache_is_where_xdg_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert EngineCache().folder == tmp_path / "grmp-edge" / "engines"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert EngineCache().folder == tmp_path / "home" / ".cache" / "grmp-edge" / "engines"
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert user_folder("state") == tmp_path / "home" / ".local" / "state" / "grmp-edge"


@pytest.mark.parametrize("sizes", [(0, 1, 1), (2, 1, 3), (1, 4, 3)])
def test_wrong_profiles_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match="not in order"):
        Profile(*sizes)


def test_trtexec_line(tiny_bundle: Bundle, tmp_path: Path) -> None:
    line = trtexec_line(tiny_bundle, BuildConfig("fp32", Profile(1, 2, 4), 512), tmp_path / "a b", Path("t"))
    words = shlex.split(line)
    assert words[0] == "trtexec" and f"--saveEngine={tmp_path / 'a b'}" in words
    assert {
        "--stronglyTyped", "--minShapes=images:1x32x32x3", "--optShapes=images:2x32x32x3",
        "--maxShapes=images:4x32x32x3", "--memPoolSize=workspace:512M", "--noTF32",
    } <= set(words)  # fmt: skip
    assert "--stronglyTyped" not in trtexec_line(tiny_bundle, FP32, tmp_path, Path("t"), major=11)
    with pytest.raises(BundleError, match="no fp16"):
        trtexec_line(tiny_bundle, BuildConfig("fp16"), tmp_path, Path("t"))
    dynamic = replace(
        tiny_bundle, graphs={"int8": tiny_bundle.graphs["fp32"]}, parity={"int8": {"method": "dynamic"}}
    )
    with pytest.raises(UsageError, match="dynamically"):
        trtexec_line(dynamic, BuildConfig("int8"), tmp_path, Path("t"))


def test_build_command_without_tensorrt(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    invoke = CliRunner().invoke
    result = invoke(app, ["build", str(tiny_bundle.path), "--print-trtexec", "--batch", "1,1,2"])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("trtexec --onnx=") and "maxShapes=images:2x32x32x3" in result.stdout
    result = invoke(app, ["build", str(tiny_bundle.path), "--print-trtexec", "--json"])
    assert shlex.split(json.loads(result.stdout)["trtexec"])[0] == "trtexec"
    for wrong in (["--precision", "fp4"], ["--batch", "8"], ["--batch", "8,4,1"], ["--workspace", "0"]):
        assert invoke(app, ["build", str(tiny_bundle.path), *wrong]).exit_code == 2, wrong
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorrt" else real(name))
    result = invoke(app, ["build", str(tiny_bundle.path)])
    assert result.exit_code == 1 and "[tensorrt]'" in result.stderr.strip().splitlines()[-1]
    with pytest.raises(MissingDependencyError):
        bindings.load_tensorrt()


def test_an_absent_driver_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_name: str) -> None:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr("ctypes.CDLL", absent)
    with pytest.raises(BackendError, match="no NVIDIA driver"):
        find_gpu()


LAYERS = {"Layers": [
    {"Name": "a", "Outputs": [{"Format/Datatype": "Half"}]},
    {"Name": "b", "Outputs": [{"Format/Datatype": "Row major linear FP16 format"}]},
    {"Name": "c", "Outputs": [{"Format/Datatype": "Row major linear FP32"}]},
    {"Name": "d", "Outputs": [{"Format/Datatype": "Int8"}]},
    {"Name": "e", "Outputs": []}, "f",
]}  # fmt: skip


def test_the_share_of_half_layers_is_counted() -> None:
    assert count_types(LAYERS) == {"all": 6, "fp16": 2, "fp32": 1, "int8": 1, "fp8": 0, "other": 2}


class StandIn:
    """The bindings' surface as runtime/tensorrt/bindings.py has it; it builds nothing and notes all."""

    def __init__(
        self, version: str, plan: bytes | None = b"plan", message: str = "", parses: bool = True
    ) -> None:
        self.__version__, self.plan, self.message, self.parses = version, plan, message, parses
        self.asked: dict[str, Any] = {"timing": []}
        severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)
        self.ILogger = type("ILogger", (), {"Severity": severity})
        self.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=3)
        self.MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
        self.BuilderFlag = SimpleNamespace(TF32="tf32")
        self.ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
        self.LayerInformationFormat = SimpleNamespace(JSON="json")

    def Builder(self, logger: Any) -> Any:  # noqa: N802
        asked = self.asked
        logger.log(2, "only a warning")

        def build_serialized_network(_network: Any, config: Any) -> bytes | None:
            asked["verbosity"] = config.profiling_verbosity
            if self.message:
                logger.log(1, self.message)
            return self.plan

        def set_timing_cache(cache: Any, _ignore: bool) -> bool:
            return bool(cache.content != b"of another device")

        def create_timing_cache(content: bytes) -> Any:
            asked["timing"].append(content)
            return SimpleNamespace(content=content)

        return SimpleNamespace(
            create_network=lambda flags: asked.update(flags=flags) or SimpleNamespace(num_layers=0),
            create_optimization_profile=lambda: SimpleNamespace(
                set_shape=lambda *shapes: asked.update(shapes=shapes)
            ),
            create_builder_config=lambda: SimpleNamespace(
                set_memory_pool_limit=lambda *limit: asked.update(limit=limit),
                clear_flag=lambda flag: asked.update(cleared=flag),
                add_optimization_profile=lambda _profile: 0,
                create_timing_cache=create_timing_cache,
                set_timing_cache=set_timing_cache,
                get_timing_cache=lambda: SimpleNamespace(serialize=lambda: b"timings"),
            ),
            build_serialized_network=build_serialized_network,
        )

    def OnnxParser(self, _network: Any, _logger: Any) -> Any:  # noqa: N802
        def parse(path: str) -> bool:
            self.asked["path"] = path
            return self.parses

        return SimpleNamespace(
            parse_from_file=parse, num_errors=1, get_error=lambda _index: "node 3: no importer for Foo"
        )

    def Runtime(self, _logger: Any) -> Any:  # noqa: N802
        inspector = SimpleNamespace(get_engine_information=lambda _format: json.dumps(LAYERS))
        engine = SimpleNamespace(create_engine_inspector=lambda: inspector)
        return SimpleNamespace(deserialize_cuda_engine=lambda _plan: engine)


def stand_in(version: str, **options: Any) -> Any:
    """Untyped, since it has only what a build uses."""
    return StandIn(version, **options)


@pytest.mark.parametrize(("version", "flags"), [("10.3.0", 8), ("10.16.1.11", 8), ("11.4.0.106", 0)])
def test_one_path_for_all_versions(version: str, flags: int, tiny_bundle: Bundle, tmp_path: Path) -> None:
    trt, cache = stand_in(version), EngineCache(tmp_path / "cache")
    config = BuildConfig("fp32", Profile(1, 2, 4), workspace_mib=64)
    tiny_bundle = replace(tiny_bundle, parity={})  # or the engine would be run, which needs a GPU
    before = {path: path.read_bytes() for path in tiny_bundle.path.iterdir()}
    built = build(tiny_bundle, config, cache, trt=trt, gpu=ORIN)
    assert trt.asked["flags"] == flags and trt.asked["limit"] == ("workspace", 64 << 20)
    assert trt.asked["shapes"] == ("images", (1, 32, 32, 3), (2, 32, 32, 3), (4, 32, 32, 3))
    assert trt.asked["cleared"] == "tf32"  # float32 means float32
    assert trt.asked["path"] == str(tiny_bundle.graph()) and trt.asked["verbosity"] == "detailed"
    assert built.engine.read_bytes() == b"plan" and not built.cached
    assert built.details["layers"]["fp16"] == 2
    assert {path: path.read_bytes() for path in tiny_bundle.path.iterdir()} == before
    again = build(tiny_bundle, config, cache, trt=stand_in(version, plan=None), gpu=ORIN)
    assert again.cached and again.engine == built.engine and again.details["layers"]["all"] == 6
    other = build(tiny_bundle, config, cache, trt=trt, gpu=Gpu("Orin Nano", "8.7"))
    assert other.reasons == ["gpu: 'Orin (nvgpu)' there, 'Orin Nano' here"]
    forced = build(tiny_bundle, replace(config, rebuild=True), cache, trt=trt, gpu=ORIN)
    assert forced.reasons == ["asked to rebuild"] and trt.asked["timing"] == [b"", b"", b"timings"]
    # A timing cache of another device is not used.
    cache.timing_path(built.key).write_bytes(b"of another device")
    build(tiny_bundle, replace(config, rebuild=True), cache, trt=trt, gpu=ORIN)
    assert trt.asked["timing"][-2:] == [b"of another device", b""]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            "[defaultAllocator.cpp] Requested amount of GPU memory could not be allocated: out of memory",
            "--batch",
        ),
        ("Could not find any implementation: insufficient workspace", "raise --workspace"),
        ("something else\nin two lines", "failed to build the engine: something else in two lines"),
    ],
)
def test_a_failed_build_is_one_line_and_leaves_nothing(
    message: str, words: str, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    trt, cache = stand_in("10.3.0", plan=None, message=message), EngineCache(tmp_path / "cache")
    with pytest.raises(BackendError) as caught:
        build(tiny_bundle, FP32, cache, trt=trt, gpu=ORIN)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()
    with pytest.raises(BackendError, match="no importer for Foo"):
        build(tiny_bundle, FP32, cache, trt=stand_in("10.3.0", parses=False), gpu=ORIN)


def test_providers_with_options_still_run_on_the_cpu(tiny_bundle: Bundle, tmp_path: Path) -> None:
    from grmp_edge.runtime.backends import PROVIDERS, _provider_options

    half, whole = tmp_path / "model.fp16.onnx", tmp_path / "model.onnx"
    options = _provider_options(PROVIDERS["tensorrt"], half, "ab" * 32)
    assert options["trt_engine_cache_enable"] == "1" and "grmp-edge" in options["trt_engine_cache_path"]
    assert options["trt_fp16_enable"] == "1"
    other = _provider_options(PROVIDERS["tensorrt"], whole, "cd" * 32)
    assert other["trt_fp16_enable"] == "0"
    # onnxruntime names engines without regard to weights, so two graphs must never share a folder.
    assert other["trt_engine_cache_path"] != options["trt_engine_cache_path"]
    write_tiny_graph(whole)
    backend = open_backend(whole, tiny_bundle.graphs["fp32"], 32, BackendOptions("cpu"))
    assert backend.provider == "cpu"


@pytest.mark.tensorrt
def test_a_real_engine(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """On a machine with TensorRT and a GPU: built, cached, and found again."""
    pytest.importorskip("tensorrt", reason="not run: needs TensorRT's libraries and a GPU")
    cache = EngineCache(tmp_path / "cache")
    built = build(tiny_bundle, BuildConfig("fp32", Profile(1, 2, 2), 64), cache)
    assert built.engine.stat().st_size > 0 and built.details["layers"]["all"] > 0
    assert build(tiny_bundle, BuildConfig("fp32", Profile(1, 2, 2), 64), cache).cached
