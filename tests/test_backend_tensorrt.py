"""Native TensorRT scoring against a driver and bindings that hold to their documented rules; and, where there
is a GPU, against the real ones."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import threading
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_ulonglong, c_void_p
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from conftest import make_image, tiny_logits, tiny_score, write_tiny_graph, write_views_bundle
from cuda_header import constant, prototype
from helpers_tensorrt import FakeDriver, FakeTensorRT

from grmp_edge.bundle import Bundle, write_bundle
from grmp_edge.check_pictures import check_pictures
from grmp_edge.errors import BackendError, BundleError, ParityError
from grmp_edge.metrics import srcc
from grmp_edge.parity import LIMITS, Limit, ParityReport, gate_report
from grmp_edge.preprocess import NORMALIZATIONS, Preprocess
from grmp_edge.runtime import Scorer
from grmp_edge.runtime.gate import check_scores
from grmp_edge.runtime.tensorrt import bindings
from grmp_edge.runtime.tensorrt import build as tensorrt_build
from grmp_edge.runtime.tensorrt import cuda as cuda_module
from grmp_edge.runtime.tensorrt.backend import NativeConfig, TensorRTBackend
from grmp_edge.runtime.tensorrt.build import BuildConfig, build, open_native
from grmp_edge.runtime.tensorrt.cuda import CudaDriver, DeviceBuffer, Gpu, PinnedBuffer, find_gpu
from grmp_edge.runtime.tensorrt.engine_cache import EngineCache, Profile
from grmp_edge.views import sigmoid

SIDE = 32
ORIN = Gpu("Orin (nvgpu)", "8.7")


def pictures(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    levels = rng.integers(0, 256, (count, 1, 1, 1))
    noise = rng.integers(-20, 20, (count, SIDE, SIDE, 3))
    return np.asarray(np.clip(levels + noise, 0, 255), dtype=np.uint8)


def expected(images: np.ndarray) -> np.ndarray:
    scores: np.ndarray = 1 / (1 + np.exp(-(images.astype(np.float64).mean(axis=(1, 2, 3)) / 32 - 4)))
    return scores


def make_bundle(path: Path, gate: dict[str, Limit] | None = None, check: bool = True) -> Bundle:
    """A bundle round the tiny graph with scores to compare with, worked out by numpy."""
    path.parent.mkdir(parents=True, exist_ok=True)
    graph = path.parent / "model.onnx"
    write_tiny_graph(graph)
    images = check_pictures(16, SIDE)
    parity: ParityReport = {} if gate is None else {"gate": gate_report(gate)}
    if check:
        parity["check"] = {
            "pictures": "value-noise-1",
            "seed": 0,
            "count": 16,
            "sha256": hashlib.sha256(images.tobytes()).hexdigest(),
            "scores": {"reference": expected(images).tolist(), "fp32": expected(images).tolist()},
        }
    return write_bundle(
        path,
        {"fp32": (graph, 17)},
        backbone={},
        preprocess=Preprocess(40, SIDE),
        normalization=NORMALIZATIONS["clip"],
        mos=None,
        parity=parity,
        provenance={},
    )


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "made" / "b")


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver()


def engine_bytes(bundle: Bundle, trt: FakeTensorRT, profile: Profile) -> bytes:
    builder = trt.Builder(None)
    network, config = builder.create_network(), builder.create_builder_config()
    trt.OnnxParser(network, None).parse_from_file(str(bundle.graph()))
    made = builder.create_optimization_profile()
    made.set_shape("images", *((n, SIDE, SIDE, 3) for n in (profile.smallest, profile.best, profile.largest)))
    config.add_optimization_profile(made)
    plan: bytes = builder.build_serialized_network(network, config)
    return plan


def opened(
    bundle: Bundle,
    trt: FakeTensorRT,
    profile: Profile | None = None,
    config: NativeConfig | None = None,
) -> TensorRTBackend:
    plan = engine_bytes(bundle, trt, profile or Profile(1, 4, 4))
    return TensorRTBackend(plan, bundle.graphs["fp32"], SIDE, trt, config, CudaDriver(library=trt.driver))


def test_a_graph_is_captured_at_the_second_run_and_then_launched(bundle: Bundle, driver: FakeDriver) -> None:
    trt = FakeTensorRT(driver)
    backend = opened(bundle, trt)
    assert (backend.name, backend.provider) == ("TensorRT 10.3.0 native", "tensorrt")
    for run in range(5):
        images = pictures(3, seed=run)  # others every time: the copy in is part of the graph
        assert backend.run(images) == pytest.approx(expected(images), abs=1e-6)
        assert driver.launches == max(0, run)
    assert len(driver.executables) == 1 and not driver.graphs
    one = pictures(1, seed=9)
    assert backend.run(one) == pytest.approx(expected(one), abs=1e-6)
    assert backend.details == {"batches": [1, 4, 4], "cuda_graphs": [3], "cuda_graphs_refused": None}
    assert trt.executed == [3] * 5 + [1]
    backend.close()
    assert driver.broken == [] and driver.idle
    backend.close()
    assert driver.broken == []
    with pytest.raises(BackendError, match="closed"):
        backend.run(one)


def test_large_batches_are_split_and_small_ones_filled_up(bundle: Bundle, driver: FakeDriver) -> None:
    trt = FakeTensorRT(driver)
    backend = opened(bundle, trt, Profile(2, 4, 4))
    for count, parts in ((11, [4, 4, 3]), (1, [2]), (9, [4, 4, 2]), (4, [4])):
        del trt.executed[:]
        images = pictures(count, seed=count)
        scores = backend.run(images)
        assert scores.shape == (count,) and scores.dtype == np.float32
        assert scores == pytest.approx(expected(images), abs=1e-6)
        assert trt.executed == parts
    assert backend.run(pictures(0)).shape == (0,)
    backend.close()
    assert driver.broken == [] and driver.idle


def test_logits_are_a_second_output(tmp_path: Path, driver: FakeDriver) -> None:
    bundle = write_views_bundle(tmp_path / "b")
    images = pictures(11)
    backend = opened(bundle, FakeTensorRT(driver))
    for _ in range(3):  # the third runs as captured graphs
        logits = backend.read(images)
        assert logits.dtype == np.float64 and logits == pytest.approx(tiny_logits(images), abs=1e-4)
        scores = backend.run(images)
        assert scores == pytest.approx(1 / (1 + np.exp(-tiny_logits(images)[:, 0])), abs=1e-5)
    assert backend.read(images[:0]).shape == (0, 3)
    # Scratch, and in and out of input, scores and logits, each on both sides.
    assert sorted(kind for kind, _ in driver.memory.values()) == ["device"] * 4 + ["host"] * 3
    backend.close()
    assert not driver.memory and not driver.broken


def test_scores_alone_are_read_as_logits_to_the_bit(bundle: Bundle, driver: FakeDriver) -> None:
    backend = opened(bundle, FakeTensorRT(driver))
    images = pictures(9)
    assert np.array_equal(sigmoid(backend.read(images)[:, 0]).astype(np.float32), backend.run(images))
    backend.close()


def test_an_engine_without_the_logits_or_with_unknown_ones_is_refused(
    bundle: Bundle, tmp_path: Path, driver: FakeDriver
) -> None:
    trt = FakeTensorRT(driver)
    views = write_views_bundle(tmp_path / "b")
    for engine_of, graph in ((bundle, views), (views, bundle)):
        plan = engine_bytes(engine_of, trt, Profile(1, 4, 4))
        with pytest.raises(BackendError, match="unlike the bundle's graph"):
            TensorRTBackend(plan, graph.graphs["fp32"], SIDE, trt, cuda=CudaDriver(library=driver))
    other = replace(views.graphs["fp32"], logits="odds")
    with pytest.raises(BackendError, match="has the tensors"):
        TensorRTBackend(
            engine_bytes(views, trt, Profile(1, 4, 4)), other, SIDE, trt, cuda=CudaDriver(library=driver)
        )
    assert not driver.memory and not driver.broken


def test_logits_that_are_no_numbers_are_refused(tmp_path: Path, driver: FakeDriver) -> None:
    backend = opened(
        write_views_bundle(tmp_path / "b"), FakeTensorRT(driver, change=lambda own: own * np.nan)
    )
    with pytest.raises(BackendError, match="not numbers"):
        backend.read(pictures(2))
    backend.close()


def test_only_so_many_batch_sizes_are_kept(bundle: Bundle, driver: FakeDriver) -> None:
    trt = FakeTensorRT(driver)
    backend = opened(bundle, trt, config=NativeConfig(batch_sizes=2))
    for count in (1, 1, 2, 2, 1, 3, 3, 1, 2, 1):
        images = pictures(count, seed=count)
        assert backend.run(images) == pytest.approx(expected(images), abs=1e-6)
        assert len(driver.executables) <= 2
    backend.close()
    assert driver.broken == [] and driver.idle
    with pytest.raises(BackendError):
        NativeConfig(batch_sizes=0)


def test_threads_take_turns(bundle: Bundle, driver: FakeDriver) -> None:
    trt = FakeTensorRT(driver)
    backend = opened(bundle, trt)
    wrong: list[str] = []

    def score(number: int) -> None:
        for run in range(20):
            images = pictures(1 + (number + run) % 6, seed=number * 100 + run)
            found = backend.run(images)
            if np.abs(found - expected(images)).max() > 1e-6:
                wrong.append(f"{number}, {run}")

    threads = [threading.Thread(target=score, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    backend.close()
    assert wrong == [] and driver.broken == [] and driver.idle and not driver.stack


def test_a_network_that_cannot_be_captured_is_run_without_a_graph(bundle: Bundle, driver: FakeDriver) -> None:
    trt = FakeTensorRT(driver)
    trt.refuse_capture = True
    backend = opened(bundle, trt)
    for run in range(4):
        images = pictures(2, seed=run)
        assert backend.run(images) == pytest.approx(expected(images), abs=1e-6)
    assert driver.launches == 0 and backend.details["cuda_graphs"] == []
    assert "not permitted when stream is capturing" in (backend.details["cuda_graphs_refused"] or "")
    backend.close()
    plain = opened(bundle, FakeTensorRT(driver), config=NativeConfig(cuda_graphs=False))
    for _ in range(3):
        plain.run(pictures(2))
    assert driver.launches == 0 and plain.details["cuda_graphs_refused"] == "not asked for"
    plain.close()
    assert driver.broken == [] and driver.idle


def test_pictures_that_do_not_fit_are_refused(bundle: Bundle, driver: FakeDriver) -> None:
    backend = opened(bundle, FakeTensorRT(driver))
    cases: list[np.ndarray] = [
        pictures(2).astype(np.float32),
        np.zeros((2, 16, 16, 3), np.uint8),
        np.zeros((2, 3, SIDE, SIDE), np.uint8),
    ]
    for wrong in cases:
        with pytest.raises(BackendError, match="reads uint8"):
            backend.run(wrong)
    backend.close()


@pytest.mark.parametrize("value", [np.nan, 1.5, -0.2])
def test_what_is_no_probability_is_refused(value: float, bundle: Bundle, driver: FakeDriver) -> None:
    backend = opened(bundle, FakeTensorRT(driver, change=lambda scores: scores * 0 + value))
    with pytest.raises(BackendError, match=r"not a number in 0\.\.1"):
        backend.run(pictures(2))
    assert np.array_equal(backend.raw(pictures(2)), np.full(2, value, np.float32), equal_nan=True)
    backend.close()
    assert driver.idle


def test_rounding_past_one_is_cut_off(bundle: Bundle, driver: FakeDriver) -> None:
    backend = opened(bundle, FakeTensorRT(driver, change=lambda scores: scores * 0 + 1.0005))
    assert backend.run(pictures(2)).tolist() == [1.0, 1.0]
    backend.close()


def test_whatever_fails_leaves_nothing_on_the_device(bundle: Bundle, driver: FakeDriver) -> None:
    trt = FakeTensorRT(driver)
    opened(bundle, trt).close()
    count = driver.allocations
    assert count >= 5
    for number in range(1, count + 1):
        other = FakeDriver()
        other.fail_allocation = number
        with pytest.raises(BackendError, match=r"memory is not enough .*OUT_OF_MEMORY.*--batch"):
            opened(bundle, FakeTensorRT(other))
        assert other.idle and other.broken == [], number
    graph = bundle.graphs["fp32"]
    plan = engine_bytes(bundle, trt, Profile(1, 4, 4))
    cases: tuple[tuple[bytes, Any, int, str], ...] = (
        (b"no engine", graph, SIDE, "cannot load the engine: Serialization assertion"),
        (plan, replace(graph, input="pixels"), SIDE, "has the tensors images, scores"),
        (plan, graph, 48, "has images as DataType.UINT8"),
    )
    for content, promised, size, words in cases:
        with pytest.raises(BackendError, match=words):
            TensorRTBackend(content, promised, size, trt, cuda=CudaDriver(library=driver))
        assert driver.idle and driver.broken == []
    trt.refuse_context = True
    backend = opened(bundle, trt)
    with pytest.raises(BackendError, match="cannot make the engine ready: out of memory"):
        backend.run(pictures(1))
    backend.close()
    trt.refuse_context, trt.refuse_run = False, True
    backend = opened(bundle, trt)
    with pytest.raises(BackendError, match="failed on a batch of 2: an illegal memory access"):
        backend.run(pictures(2))
    backend.close()
    assert driver.idle and driver.broken == []


def test_prototypes_and_constants_are_those_of_nvidias_header() -> None:
    for name, arguments in cuda_module._SIGNATURES.items():
        assert prototype(name) == arguments, name
    assert {
        name: constant(name)
        for name in (
            "CUDA_ERROR_OUT_OF_MEMORY",
            "CU_STREAM_NON_BLOCKING",
            "CU_STREAM_CAPTURE_MODE_THREAD_LOCAL",
            "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR",
            "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR",
        )
    } == {
        "CUDA_ERROR_OUT_OF_MEMORY": cuda_module._OUT_OF_MEMORY,
        "CU_STREAM_NON_BLOCKING": cuda_module._NON_BLOCKING,
        "CU_STREAM_CAPTURE_MODE_THREAD_LOCAL": cuda_module._THREAD_LOCAL,
        "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR": cuda_module._MAJOR,
        "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR": cuda_module._MINOR,
    }


def test_the_header_is_read_as_c_would() -> None:
    """What the comparison above means: versions, typedefs and pointers are told apart."""
    assert prototype("cuMemAlloc_v2") == (POINTER(c_ulonglong), c_size_t)
    assert prototype("cuGetErrorName") == (c_int, POINTER(c_char_p))
    assert prototype("cuMemcpyHtoDAsync_v2") == (c_ulonglong, c_void_p, c_size_t, c_void_p)
    with pytest.raises(ValueError):
        prototype("cuNoSuchFunction")


def test_the_gpu_is_named_by_the_driver(driver: FakeDriver) -> None:
    assert find_gpu(library=driver) == ORIN
    with pytest.raises(BackendError, match="cuDeviceGet failed with status 101"):
        find_gpu(1, library=driver)
    assert driver.broken == []


def test_an_old_or_absent_driver_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match=r"older than CUDA 11\.4"):
        CudaDriver(library=object())
    with pytest.raises(BackendError, match=r"cuDeviceGet failed with status 101"):
        CudaDriver(1, library=FakeDriver())

    def absent(_name: str) -> None:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr("ctypes.CDLL", absent)
    with pytest.raises(BackendError, match="no NVIDIA driver"):
        CudaDriver()


def test_the_stand_in_finds_broken_rules(driver: FakeDriver) -> None:
    """The tests above mean something only if these are seen."""
    cuda = CudaDriver(library=driver)
    with pytest.raises(BackendError, match="INVALID_CONTEXT"):
        cuda.create_stream()
    with cuda.current():
        stream = cuda.create_stream()
        device, host = DeviceBuffer(cuda, 16), PinnedBuffer(cuda, (16,), np.uint8)
        with pytest.raises(BackendError):
            cuda.copy_in(device, host, 17, stream)
        host.array[:] = 7
        cuda.copy_in(device, host, 16, stream)
        assert driver.bytes_at(device.pointer, 16, "device")[0] == 0xA5  # not before it is waited for
        cuda.synchronize(stream)
        assert driver.bytes_at(device.pointer, 16, "device")[0] == 7
        cuda.copy_out(host, device, 16, stream)
        device.free()
        device.free()
        with pytest.raises(BackendError):
            cuda.copy_in(device, host, 16, stream)
    assert len(driver.broken) == 4


def test_an_engine_is_kept_only_if_it_scores_as_the_graph(
    bundle: Bundle, driver: FakeDriver, tmp_path: Path
) -> None:
    cache = EngineCache(tmp_path / "cache")
    config = BuildConfig("fp32", Profile(1, 2, 4))

    def made(change: Callable[[Any], Any], of: Bundle = bundle) -> Any:
        trt = FakeTensorRT(driver, change=change)
        return build(of, config, cache, trt=trt, gpu=ORIN, cuda=lambda: CudaDriver(library=driver))

    far = r"worst difference 0\.0003, tolerance 0\.0001 \(mean 0\.0003, SRCC 1\.00000, 16 pictures\)"
    for change, words in (
        (lambda scores: scores + 3e-4, far),
        (lambda scores: scores * np.nan, "16 of 16 scores are not numbers"),
    ):
        with pytest.raises(ParityError, match=words) as caught:
            made(change)
        assert caught.value.exit_code == 3 and "not kept" in str(caught.value)
        assert not list(cache.folder.glob("*")) and driver.idle
    good = made(lambda scores: scores + 3e-5)
    check = good.details["check"]
    assert check["pictures"] == 16 and check["max_abs"] == pytest.approx(3e-5, rel=0.05)
    sidecar = json.loads(good.engine.with_suffix(".json").read_text())
    assert sidecar["check"] == check and sidecar["key"]["flags"] == ["strongly_typed", "no_tf32"]
    assert json.loads(good.engine.read_bytes())["tf32"] is False
    # A cached one is not built, and so not judged, again.
    assert made(lambda scores: scores * np.nan).cached
    # Nothing to compare with: kept, and told.
    told: list[str] = []
    old = make_bundle(tmp_path / "old" / "b", check=False)
    trt = FakeTensorRT(driver)
    other = EngineCache(tmp_path / "second")
    built = build(old, config, other, told.append, trt=trt, gpu=ORIN, cuda=lambda: CudaDriver(library=driver))
    assert built.details["check"] is None and any("not compared" in line for line in told)
    assert driver.idle and driver.broken == []


def test_the_device_gate_in_task_units(tmp_path: Path) -> None:
    """For int8 the mean and the order are judged, the order only where there is any."""
    bundle = make_bundle(tmp_path / "made" / "b", gate={"fp32": LIMITS["int8"]})
    assert expected(check_pictures(16, SIDE)).std() > 0.02
    found = check_scores(bundle, "fp32", lambda images: (expected(images) + 0.009).astype(np.float32))
    assert found is not None and found["srcc_needed"] == 0.99 and found["srcc"] == 1.0
    with pytest.raises(ParityError, match=r"mean difference 0\.011, tolerance 0\.01 "):
        check_scores(bundle, "fp32", lambda images: (expected(images) + 0.011).astype(np.float32))
    order = np.argsort(expected(check_pictures(16, SIDE)))

    def swapped(images: np.ndarray) -> np.ndarray:
        scores = expected(images)
        scores[order[[7, 10]]] = scores[order[[10, 7]]]
        return scores.astype(np.float32)

    with pytest.raises(ParityError, match=r"SRCC 0\.\d+, needed 0\.99 "):
        check_scores(bundle, "fp32", swapped)
    parity = json.loads(json.dumps(bundle.parity))
    parity["check"]["scores"]["fp32"] = [0.5] * 16
    even = replace(bundle, parity=parity)
    half = check_scores(even, "fp32", lambda images: np.full(len(images), 0.5, np.float32))
    assert half is not None and half["srcc_needed"] is None and half["srcc"] is None
    parity["check"]["sha256"] = "0" * 64
    with pytest.raises(BundleError, match="makes other check pictures"):
        check_scores(replace(bundle, parity=parity), "fp32", expected)
    parity["check"]["pictures"] = "value-noise-2"
    assert check_scores(replace(bundle, parity=parity), "fp32", expected) is None


def test_an_engine_that_ranks_otherwise_is_refused_where_the_scores_spread_little(bundle: Bundle) -> None:
    """SRCC 0.585 at a spread of 0.0122: the device asked for the order from 0.02 on, the export from 0.01."""
    reference = 0.5 + 0.0122 * (np.arange(16) - 7.5) / np.arange(16).std()
    order = [*range(8, -1, -1), *range(10, 16), 9]
    assert srcc(reference[order], reference) == pytest.approx(0.585, abs=5e-4)
    assert np.abs(reference[order] - reference).mean() < 0.01  # the mean alone would let it pass
    parity = json.loads(json.dumps(bundle.parity))
    parity["check"]["scores"]["int8"] = reference.tolist()
    for gate in ({}, {"gate": gate_report(LIMITS)}):  # a bundle of an older version, and a new one
        known = replace(bundle, parity=parity | gate)
        with pytest.raises(ParityError, match=r"the int8 engine .* SRCC 0\.58529, needed 0\.99 "):
            check_scores(known, "int8", lambda images: reference[order].astype(np.float32))
        assert check_scores(known, "int8", lambda images: reference.astype(np.float32)) is not None


def test_check_pictures_never_change() -> None:
    """Bundles in the field have scores of exactly these."""
    found = check_pictures(2, 32)
    assert hashlib.sha256(found.tobytes()).hexdigest() == (
        "7107e8fd4576e00c1c1c002594e2ebb0e9204f66834355b890b89f5b4aa1615c"
    )
    assert np.array_equal(check_pictures(5, 32)[:2], found)
    assert not np.array_equal(check_pictures(2, 32, seed=1), found)
    many = check_pictures(16, 224)
    assert len({picture.tobytes() for picture in many}) == 16
    contrast, sharpness = many.std(axis=(1, 2, 3)), np.abs(np.diff(many.astype(int), axis=2)).mean((1, 2, 3))
    assert contrast.max() / contrast.min() > 5 and sharpness.max() / sharpness.min() > 20


def test_check_pictures_as_documented() -> None:
    """One pixel worked out by hand from docs/bundle.md, in plain integers."""
    mask, size, index, seed = (1 << 64) - 1, 40, 5, 3

    def splitmix(stream: int, number: int) -> int:
        z = ((stream << 32) + (number + 1) * 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    def at(row: int, column: int, channel: int) -> int:
        total = 0
        for layer, (cell, loud) in enumerate(
            zip((64, 32, 16, 8, 4, 2, 1), (8, 8, 6, 4, 3, 2, 1), strict=True)
        ):
            stream, side = seed * 1_000_003 + index * 101 + layer, size // cell + 2

            def grid(y: int, x: int, stream: int = stream, side: int = side) -> int:
                return splitmix(stream, (y * side + x) * 3 + channel) >> 56

            y, x, dy, dx = row // cell, column // cell, row % cell, column % cell
            upper = grid(y, x) * (cell - dy) + grid(y + 1, x) * dy
            lower = grid(y, x + 1) * (cell - dy) + grid(y + 1, x + 1) * dy
            total += loud * ((upper * (cell - dx) + lower * dx) // cell**2)
        return min(255, max(0, (total // 32 - 128) * 24 // 16 + 128))

    found = check_pictures(index + 1, size, seed)[index]
    for row, column, channel in ((0, 0, 0), (39, 39, 2), (17, 5, 1), (8, 31, 2)):
        assert found[row, column, channel] == at(row, column, channel)


def test_the_scorer_runs_natively_where_the_bindings_import(
    bundle: Bundle, driver: FakeDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    trt = FakeTensorRT(driver, "10.16.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(bindings, "load_tensorrt", lambda: trt)
    monkeypatch.setattr(tensorrt_build, "find_gpu", lambda: ORIN)
    real = ("grmp_edge.runtime.tensorrt.cuda._load", lambda: driver)
    monkeypatch.setattr(*real)
    image = make_image(seed=3)
    with caplog.at_level(logging.WARNING, "grmp_edge"):
        with Scorer.open(bundle, provider="tensorrt") as scorer:
            assert (scorer.backend.name, scorer.backend.provider) == ("TensorRT 10.16.1 native", "tensorrt")
            assert scorer.backend.fallback is None
            assert scorer.score(image).value == pytest.approx(tiny_score(image), abs=1e-6)
        assert "takes minutes" in caplog.text
        caplog.clear()
        with Scorer.open(bundle, provider="tensorrt") as scorer:  # from the cache
            assert scorer.score(image).value == pytest.approx(tiny_score(image), abs=1e-6)
        assert caplog.text == ""
    assert driver.idle and driver.broken == []
    # An engine that another bundle or TensorRT built is none of this one's.
    trt.__version__ = "10.17.0"
    with caplog.at_level(logging.WARNING, "grmp_edge"), Scorer.open(bundle, provider="tensorrt"):
        assert "building fp32 on Orin" in caplog.text
    # A gate that fails is told; onnxruntime does not step in for a wrong engine.
    trt.__version__, trt.change = "10.18.0", lambda scores: scores + 0.1
    with pytest.raises(ParityError):
        Scorer.open(bundle, provider="tensorrt")
    monkeypatch.undo()


def test_an_engine_built_for_other_batches_is_used(
    bundle: Bundle, driver: FakeDriver, tmp_path: Path
) -> None:
    trt, cache = FakeTensorRT(driver), EngineCache(tmp_path / "cache")
    options: dict[str, Any] = {
        "trt": trt, "gpu": ORIN, "cache": cache, "cuda": lambda: CudaDriver(library=driver)
    }  # fmt: skip
    built = build(bundle, BuildConfig("fp32", Profile(1, 2, 2), 64), **options)
    backend = open_native(bundle, "fp32", **options)
    assert backend.details["batches"] == [1, 2, 2]
    backend.close()
    assert len(list(cache.folder.glob("*.engine"))) == 1
    built.engine.write_bytes(b"damaged")
    backend = open_native(bundle, "fp32", **options)
    assert backend.details["batches"] == [1, 8, 8]
    backend.close()
    other = make_bundle(tmp_path / "other" / "b")
    write_tiny_graph(tmp_path / "model.onnx", shift=-3.0)
    shutil.copy(tmp_path / "model.onnx", other.path / "model.onnx")
    changed = replace(other.graphs["fp32"], sha256="0" * 64)
    assert cache.latest(tensorrt_build.engine_key(other, BuildConfig("fp32"), trt, ORIN)) is not None
    other = replace(other, graphs={"fp32": changed})
    assert cache.latest(tensorrt_build.engine_key(other, BuildConfig("fp32"), trt, ORIN)) is None


@pytest.mark.gpu
def test_the_real_driver() -> None:
    """Memory, a stream and a graph on a real device."""
    cuda = CudaDriver()
    with cuda.current():
        stream = cuda.create_stream()
        device = DeviceBuffer(cuda, 1 << 20)
        host, back = PinnedBuffer(cuda, (1 << 20,), np.uint8), PinnedBuffer(cuda, (1 << 20,), np.uint8)
        assert device.pointer % 256 == 0

        def work() -> None:
            cuda.copy_in(device, host, host.size, stream)
            cuda.copy_out(back, device, back.size, stream)

        graph = cuda.capture(stream, work)
        for seed in range(3):
            host.array[:] = np.random.default_rng(seed).integers(0, 256, host.size, dtype=np.uint8)
            cuda.launch(graph, stream)
            cuda.synchronize(stream)
            assert np.array_equal(back.array, host.array)
        with pytest.raises(BackendError, match="CAPTURE"):
            cuda.capture(stream, lambda: cuda.synchronize(stream))
        work()
        cuda.synchronize(stream)
        cuda.destroy_graph(graph)
        for buffer in (device, host, back):
            buffer.free()
        cuda.destroy_stream(stream)
    cuda.close()


@pytest.mark.tensorrt
def test_a_real_engine_scores(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with TensorRT and a GPU: gate, graphs, split batches, threads, against onnxruntime."""
    pytest.importorskip("tensorrt", reason="not run: needs TensorRT's libraries and a GPU")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    session = onnxruntime.InferenceSession(str(bundle.graph()), providers=["CPUExecutionProvider"])
    with Scorer.open(bundle, provider="tensorrt") as scorer:
        backend = scorer.backend
        assert isinstance(backend, TensorRTBackend) and backend.name.startswith("TensorRT ")
        for count in (1, 1, 1, 3, 3, 3, 11):
            images = pictures(count, seed=count)
            assert backend.run(images) == pytest.approx(session.run(None, {"images": images})[0], abs=1e-4)
        assert backend.details["cuda_graphs"] == [1, 3] and not backend.details["cuda_graphs_refused"]
