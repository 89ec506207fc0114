"""Providers of onnxruntime that come as plugins, and pictures bound to a device.

No plugin has a device on a machine without its hardware. So the package and its registration are made here,
and it gives onnxruntime's own CPU device: from there on everything is onnxruntime's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from conftest import TINY_SIDE, make_image, tiny_score
from typer.testing import CliRunner

from grmp_edge.bundle import Bundle
from grmp_edge.cli import app
from grmp_edge.errors import BackendError
from grmp_edge.runtime import Scorer, backends, machine, plugins
from grmp_edge.runtime.backends import BackendOptions, bind, open_backend, open_session

PACKAGE = """
def get_library_path(): return {library!r}
def get_ep_names(): return {names!r}
"""

Made = Callable[..., None]


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is registered with onnxruntime, as (name, library); nothing is loaded."""
    calls: list[tuple[str, str]] = []
    monkeypatch.setattr(
        onnxruntime, "register_execution_provider_library", lambda *given: calls.append(given)
    )
    monkeypatch.setattr(plugins, "_registered", {})
    return calls


@pytest.fixture
def make_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    def make(name: str, *names: str) -> None:
        folder = tmp_path / "site" / f"onnxruntime_ep_{name}"
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(PACKAGE.format(library=f"/opt/{name}.so", names=list(names)))
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        monkeypatch.delitem(sys.modules, folder.name, raising=False)

    return make


def test_a_plugin_is_registered_once_and_runs_the_graph(
    tiny_bundle: Bundle, registered: list[tuple[str, str]], make_plugin: Made
) -> None:
    make_plugin("my_maker", "CPUExecutionProvider")
    for _ in range(2):
        with Scorer.open(tiny_bundle, provider="plugin:my-maker:cpu", threads=1) as scorer:
            assert scorer.backend.provider == "CPUExecutionProvider"
            assert scorer.score(make_image()).value == pytest.approx(tiny_score(make_image()), abs=1e-6)
    assert registered == [("my-maker", "/opt/my_maker.so")]


def test_what_does_not_work_is_one_line_and_never_the_cpu_in_silence(
    tiny_bundle: Bundle,
    registered: list[tuple[str, str]],
    make_plugin: Made,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_plugin("absent", "NpuExecutionProvider")
    make_plugin("broken", "BrokenExecutionProvider")
    cases = {
        "plugin:nothing": ("is not installed", "known are openvino, webgpu, nv-tensorrt-rtx"),
        "plugin:openvino": ("is not installed", "install onnxruntime-ep-openvino"),
        "plugin:nv-tensorrt-rtx": ("is not installed", "[rtx]"),
        "plugin:../../evil": ("no such file", ""),
        "plugin:a;b": ("is not installed", ""),
        "plugin:absent": ("supports no device of this machine", "another --provider"),
        "plugin:": ("unknown provider", "plugin:NAME"),
        "plugin:absent:tpu": ("unknown provider", "cpu, gpu, npu"),
        "gpu": ("unknown provider 'gpu'", "plugin:NAME"),
    }
    for provider, (words, remedy) in cases.items():
        result = CliRunner().invoke(
            app, ["score", str(tiny_bundle.path), str(photos), "--provider", provider]
        )
        line = result.stderr.strip().splitlines()[-1]
        assert result.exit_code != 0 and words in line and remedy in line, provider
    # With --allow-cpu it is said, and the CPU scores.
    arguments = ["score", str(tiny_bundle.path), str(photos), "--provider", "plugin:absent", "--allow-cpu"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0 and "running on the CPU: plugin 'absent'" in result.stderr

    def fail(*_: str) -> None:
        raise RuntimeError("Failed to load library\nlibnpu.so")

    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", fail)
    with pytest.raises(BackendError, match="plugin 'broken' does not load: Failed to load library;"):
        Scorer.open(tiny_bundle, provider="plugin:broken")
    monkeypatch.delattr(onnxruntime, "register_execution_provider_library")
    with pytest.raises(BackendError, match="takes no plugins"):
        Scorer.open(tiny_bundle, provider="plugin:absent")


def test_auto_takes_what_bench_measured_on_the_plugin_until_its_library_changes(
    tiny_bundle: Bundle,
    registered: list[tuple[str, str]],
    make_plugin: Made,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    machine.surroundings.cache_clear()
    make_plugin("mine", "CPUExecutionProvider")
    library = tmp_path / "mine.so"
    library.touch()
    package = tmp_path / "site" / "onnxruntime_ep_mine" / "__init__.py"
    package.write_text(PACKAGE.format(library=str(library), names=["CPUExecutionProvider"]))
    arguments = ["bench", str(tiny_bundle.path), "--provider", "plugin:mine", "--runs", "1", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    kept = tmp_path / "cache" / "grmp-edge"
    assert json.loads(result.stdout)["auto"]["precision"] == "fp32"
    for kind in ("checks", "choices"):
        (record,) = kept.glob(f"{kind}/*.json")
        key = json.loads(record.read_text())["key"]
        assert key["provider"] == "plugin:mine" and key["plugin"].startswith(f"{library}, 0 bytes")
    before = {path: path.stat().st_mtime_ns for path in kept.glob("*/*.json")}
    Scorer.open(tiny_bundle, "auto", "plugin:mine").close()
    assert {path: path.stat().st_mtime_ns for path in kept.glob("*/*.json")} == before
    library.write_bytes(b"newer")
    machine.surroundings.cache_clear()  # another process
    Scorer.open(tiny_bundle, "auto", "plugin:mine").close()
    assert len(list(kept.glob("checks/*.json"))) == 2


def test_a_device_of_the_wrong_kind_is_named(
    tiny_bundle: Bundle, registered: list[tuple[str, str]], make_plugin: Made
) -> None:
    make_plugin("mine", "CPUExecutionProvider")
    with pytest.raises(BackendError, match="supports no npu of this machine; it supports: cpu"):
        Scorer.open(tiny_bundle, provider="plugin:mine:npu")


def test_a_plugin_that_takes_nothing_of_the_graph_is_refused(
    tiny_bundle: Bundle, registered: list[tuple[str, str]], make_plugin: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_plugin("mine", "CPUExecutionProvider")
    monkeypatch.setattr(
        onnxruntime.InferenceSession,
        "get_provider_graph_assignment_info",
        lambda _self: [SimpleNamespace(ep_name="OtherExecutionProvider")],
    )
    with pytest.raises(BackendError, match="takes no part of this graph"):
        Scorer.open(tiny_bundle, provider="plugin:mine")


def test_bound_runs_score_as_plain_ones(views_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on CUDA, on the CPU: more batch sizes than are kept, in turn, and from several threads."""
    released: list[int] = []
    session = open_session(views_bundle.graph())
    release = session.release_captured_graph  # type: ignore[attr-defined]

    def noted(number: int) -> None:
        released.append(number)
        release(number)

    monkeypatch.setattr(session, "release_captured_graph", noted, raising=False)
    bound, plain = bind(session, "cpu"), open_session(views_bundle.graph())
    rng = np.random.default_rng(0)
    batches = [
        rng.integers(0, 256, (n, TINY_SIDE, TINY_SIDE, 3), np.uint8) for n in (*range(1, 11), 1, 5, 10)
    ]

    def right(images: np.ndarray) -> bool:
        return all(
            np.array_equal(bound.run(images, name), plain.run([name], {"images": images})[0])
            for name in ("scores", "logits")
        )

    assert all(map(right, batches))
    assert released[:2] == [1, 2] and len(released) == len(set(released))
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(right, batches * 3))
    first = bound.run(batches[0], "scores")
    before = first.copy()
    bound.run(batches[-3], "scores")  # the same size: its memory is used again, the caller's array is not
    assert np.array_equal(first, before)
    with pytest.raises(BackendError, match="onnxruntime failed on a batch of 2"):
        bound.run(np.zeros((2, 5, 5, 3), np.uint8), "scores")
    assert right(batches[1])
    # Where graphs cannot be released, further sizes run without.
    older = bind(open_session(views_bundle.graph()), "cpu")
    monkeypatch.setattr(older, "_can_release", False)
    numbers = []
    for images in batches[:10]:
        older.run(images, "scores")
        numbers.append(older._ready[images.shape].options.get_run_config_entry("gpu_graph_id"))
    assert numbers == [*map(str, range(1, 9)), "-1", "-1"]
    bound.close()


def test_a_cuda_session_takes_graphs_only_where_they_run(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU in CUDA's place: what is asked of the session, and what happens where capturing fails."""
    asked: list[dict[str, str]] = []
    refuse = False

    def opened(path: Path, threads: int | None = None, **given: Any) -> Any:
        options = given["providers"]["CUDAExecutionProvider"]
        asked.append(dict(options))
        if refuse and "enable_cuda_graph" in options:
            raise BackendError("cannot capture")
        session = plain(path, threads)
        monkeypatch.setattr(session, "get_providers", lambda: ["CUDAExecutionProvider"], raising=False)
        return session

    plain = backends.open_session
    monkeypatch.setattr(backends, "open_session", opened)
    monkeypatch.setattr(backends, "bind", lambda session, _device: bind(session, "cpu"))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    pictures = np.stack([make_image(TINY_SIDE, TINY_SIDE, seed) for seed in range(3)])
    scores = []
    for refuse in (False, True):  # noqa: B007
        backend = open_backend(
            tiny_bundle.graph(), tiny_bundle.graphs["fp32"], TINY_SIDE, BackendOptions("cuda")
        )
        assert backend.provider == "cuda" and backend.fallback is None
        scores.append(backend.run(pictures))
        backend.close()
    assert np.array_equal(scores[0], scores[1])
    assert [options.get("enable_cuda_graph") for options in asked] == ["1", "1", None]
    assert all(options["use_tf32"] == "0" for options in asked)
