"""Benchmarks do what they say: real stages, a plain loop that is plain; and what --allow-cpu allows."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import Shell, UInt8Array, make_image, tiny_score

from grmp_edge.bundle import Bundle
from grmp_edge.errors import BackendError, SourceError, UsageError
from grmp_edge.runtime import Scorer
from grmp_edge.runtime.backends import PROVIDERS
from grmp_edge.runtime.measure import limits
from grmp_edge.runtime.measure.footprint import installed_sizes, measure
from grmp_edge.runtime.measure.stages import bench_frames
from grmp_edge.runtime.measure.video import PLAIN, VideoBenchConfig, bench_video
from grmp_edge.views import Views


def test_stages_are_timed_on_large_pictures(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = 0.05
    shapes: list[tuple[int, ...]] = []
    with Scorer.open(tiny_bundle) as scorer:
        prepare, network = scorer.prepare, scorer.backend.run

        def slow_prepare(image: UInt8Array) -> Views:
            shapes.append(image.shape)
            time.sleep(slow)
            return prepare(image)

        def slow_network(batch: UInt8Array) -> Any:
            time.sleep(2 * slow)
            return network(batch)

        monkeypatch.setattr(scorer, "prepare", slow_prepare)
        monkeypatch.setattr(scorer.backend, "run", slow_network)
        rows = bench_frames(scorer, runs=2)
    assert [row.size for row in rows] == ["1080p", "4K"]
    assert {(1080, 1920, 3), (2160, 3840, 3)} <= set(shapes)
    for row in rows:
        assert row.squash_ms >= 1000 * slow
        assert row.network_ms >= 2000 * slow
        assert 2000 * slow / 8 <= row.network_batch_ms < row.network_ms
        assert row.colour_ms > 0 and row.full_colour_ms > 0
        assert row.decode_ms > 0
    assert rows[1].decode_ms > rows[0].decode_ms


def test_a_video_end_to_end_against_a_plain_loop(tiny_bundle: Bundle, tmp_path: Path) -> None:
    clip = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for seed in range(11):
        writer.write(make_image(seed=seed)[:, :, ::-1])
    writer.release()
    threads = cv2.getNumThreads()
    rows = bench_video(tiny_bundle, clip, VideoBenchConfig(rounds=1, every=2, batch=4))
    assert cv2.getNumThreads() == threads
    assert [(row.name, row.frames) for row in rows] == [(PLAIN, 6), ("grmp-edge fp32", 6)]
    assert rows[0].speedup == 1.0
    for row in rows:
        assert row.difference < 1e-6  # the same decoder, the same pixels, the same graph
        assert row.outside_network < 1.0
        assert row.frames_per_s > 0
    with pytest.raises(SourceError):
        bench_video(tiny_bundle, tmp_path / "no.mp4")
    with pytest.raises(UsageError):
        VideoBenchConfig(rounds=0)


def test_the_bench_command(
    tiny_bundle: Bundle, clip: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = shell("bench", tiny_bundle.path, "--video", clip, "--runs", "1", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert [row["name"] for row in found["timings"]] == ["plain loop", "grmp-edge fp32"]
    # A limit below what was measured is no limit.
    monkeypatch.setattr(limits, "measure_machine", lambda _threads: limits.Machine(1.0, 1.0, 1.0))
    result = shell("bench", tiny_bundle.path, "--runs", "1", "--batch", "1")
    assert result.returncode == 0, result.stderr
    assert "the shares of it are too large" in result.stderr
    assert re.search(r"^1080p +[\d.]+ +[\d.]+ ", result.stdout, re.MULTILINE)
    assert re.search(r"^4K ", result.stdout, re.MULTILINE)
    result = shell("bench", "--backbone", "ViT-B-16", "--video", clip)
    assert result.returncode == 2


def without(provider: str) -> bool:
    import onnxruntime

    return PROVIDERS[provider] not in onnxruntime.get_available_providers()


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_the_cpu_is_used_only_where_it_is_allowed(
    tiny_bundle: Bundle, photos: Path, provider: str, shell: Shell
) -> None:
    commands = [["score", tiny_bundle.path, photos]]
    if provider == "cuda":
        commands.append(["bench", tiny_bundle.path, "--runs", "1"])
    for command in commands:
        refused = shell(*command, "--provider", provider)
        if not without(provider):  # a machine that has it: nothing falls back
            assert refused.returncode == 0 and "warning" not in refused.stderr
            continue
        assert refused.returncode == 1
        assert refused.stdout == ""
        (line,) = refused.stderr.splitlines()
        assert provider in line and "--allow-cpu" in line
        allowed = shell(*command, "--provider", provider, "--allow-cpu")
        assert allowed.returncode == 0
        warnings = [line for line in allowed.stderr.splitlines() if line.startswith("warning: ")]
        assert len(warnings) == 1 and provider in warnings[0] and "on the CPU" in warnings[0]
    if without(provider):
        with pytest.raises(BackendError):
            Scorer.open(tiny_bundle, provider=provider)
        with Scorer.open(tiny_bundle, provider=provider, allow_cpu=True) as scorer:
            assert (scorer.backend.provider, bool(scorer.backend.fallback)) == ("cpu", True)
            assert scorer.score(make_image()).value == pytest.approx(tiny_score(make_image()), abs=1e-6)
    with Scorer.open(tiny_bundle, provider="cpu", allow_cpu=True) as scorer:
        assert scorer.backend.fallback is None


def test_a_gpu_that_fails_later_is_not_replaced_in_silence(tiny_bundle: Bundle) -> None:
    """onnxruntime's own answer to a failing provider is to print and to go on with the CPU."""
    with Scorer.open(tiny_bundle) as scorer:
        session: Any = scorer.backend._session  # type: ignore[attr-defined]
        assert session._enable_fallback is False


def test_what_scoring_weighs(tiny_bundle: Bundle, shell: Shell) -> None:
    sizes = installed_sizes()
    assert {"grmp-edge", "numpy", "opencv-python-headless", "onnxruntime", "typer"} <= set(sizes)
    assert not {"torch", "pytest", "fastapi", "open-clip-torch"} & set(sizes)
    package = Path(np.__file__).parent
    on_disk = sum(
        path.stat().st_size for path in package.rglob("*") if path.is_file() and path.suffix == ".so"
    )
    assert sizes["numpy"] > on_disk > 1e6
    found = measure(tiny_bundle.path)
    assert found.memory is not None
    assert 20e6 < found.memory.imported <= found.memory.opened <= found.memory.peak < 2e9
    assert found.installed == sum(found.packages.values())
    result = shell("doctor", "--footprint", "--bundle", tiny_bundle.path, "--json")
    assert json.loads(result.stdout)["memory"]["scoring"] > 20e6
    shown = shell("doctor", "--footprint").stdout
    assert re.search(r"^ +[\d.]+ MB  numpy$", shown, re.MULTILINE)
    assert shell("doctor", "--bundle", tiny_bundle.path).returncode == 2
