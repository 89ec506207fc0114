"""What a machine finds out: whether a graph computes here what it should, and which graph is fastest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from conftest import CHECK_PICTURES, TINY_SIDE, make_image, tiny_parity, tiny_score, write_tiny_graph
from typer.testing import CliRunner

from grmp_edge.bundle import Bundle, manifest_digest, write_bundle
from grmp_edge.cli import app
from grmp_edge.errors import BackendError, BundleError, ParityError, UsageError
from grmp_edge.preprocess import NORMALIZATIONS, Preprocess
from grmp_edge.runtime import Scorer, machine
from grmp_edge.runtime.backends import BackendOptions, OnnxRuntimeBackend
from grmp_edge.runtime.bench import BundleBench, Timing
from grmp_edge.runtime.choose import choose, remember
from grmp_edge.runtime.cluster import RayScorer
from grmp_edge.views import sigmoid

RIGHT = sigmoid(CHECK_PICTURES.mean(axis=(1, 2, 3)) / 32 - 4)


@pytest.fixture(autouse=True)
def new_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache in which nothing is known yet, on a machine fast enough for all pictures."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(machine, "_SECONDS", 1e9)
    return tmp_path / "cache" / "grmp-edge"


def make_bundle(folder: Path, scores: Mapping[str, np.ndarray]) -> Bundle:
    """A bundle of tiny graphs that records these scores of the check pictures, by precision."""
    folder.mkdir()
    files = {precision: folder / f"{precision}.onnx" for precision in scores}
    for file in files.values():
        write_tiny_graph(file)
    return write_bundle(
        folder / "b",
        {precision: (file, 17) for precision, file in files.items()},
        backbone={},
        preprocess=Preprocess(40, TINY_SIDE),
        normalization=NORMALIZATIONS["clip"],
        mos=None,
        parity=tiny_parity(scores),
        provenance={},
    )


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch sizes that onnxruntime's backend runs."""
    sizes: list[int] = []
    plain = OnnxRuntimeBackend.raw

    def raw(self: OnnxRuntimeBackend, batch: Any, output: str = "") -> Any:
        sizes.append(len(batch))
        return plain(self, batch, output)

    monkeypatch.setattr(OnnxRuntimeBackend, "raw", raw)
    return sizes


def test_a_graph_is_judged_before_its_first_score_and_not_again(
    tmp_path: Path, new_machine: Path, runs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path / "made", {"fp32": RIGHT})
    Scorer.open(bundle).close()
    assert sum(runs) == 16
    (record,) = new_machine.glob("checks/*.json")
    data = json.loads(record.read_text())
    assert data["value"]["pictures"] == 16 and data["value"]["max_abs"] < 1e-6
    assert {"graph", "provider", "cpu", "onnxruntime"} <= set(data["key"])
    Scorer.open(bundle).close()
    assert sum(runs) == 16
    for damaged in ("{", "[" * 100_000, json.dumps({"key": data["key"]})):
        runs.clear()
        record.write_text(damaged)
        Scorer.open(bundle).close()
        assert sum(runs) == 16 and json.loads(record.read_text())["value"] == data["value"]
    newer = {**machine.surroundings("cpu"), "onnxruntime": "99.0"}
    monkeypatch.setattr(machine, "surroundings", lambda _provider: newer)
    Scorer.open(bundle).close()
    assert sum(runs) == 32


def test_a_graph_that_cannot_be_judged_is_scored_and_said(
    tmp_path: Path, runs: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    bundle = make_bundle(tmp_path / "made", {"fp32": RIGHT, "int8": RIGHT})
    recorded = tiny_parity({"fp32": RIGHT})
    newer = replace(bundle, parity={"check": {**recorded["check"], "pictures": "value-noise-9"}})
    for given, precision in ((replace(bundle, parity=recorded), "int8"), (newer, "fp32")):
        caplog.clear()
        Scorer.open(given, precision).close()
        (line,) = caplog.messages
        assert f"the {precision} graph is not compared" in line and "export it again" in line
    caplog.clear()
    Scorer.open(bundle, "int8").close()
    assert not caplog.messages and sum(runs) == 16


@pytest.mark.parametrize(
    "damage",
    [
        {"count": 10**9},
        {"count": "16"},
        {"seed": -1},
        {"scores": {"fp32": [0.5]}},
        {"scores": {"fp32": ["x"] * 16}},
        {"sha256": None},
    ],
)
def test_a_check_that_nobody_can_judge_by_is_damage(damage: dict[str, Any], tmp_path: Path) -> None:
    """A bundle from elsewhere cannot make the device draw pictures for ever, or pass for want of scores."""
    bundle = make_bundle(tmp_path / "made", {"fp32": RIGHT})
    file = bundle.path / "bundle.json"
    data = json.loads(file.read_text())
    data["parity"]["check"].update(damage)
    file.write_text(json.dumps({**data, "manifest_sha256": manifest_digest(data)}))
    with pytest.raises(BundleError, match=r"parity\.check"):
        Bundle.load(bundle.path)


@pytest.mark.parametrize("command", ["score", "api"])
def test_a_graph_that_computes_something_else_here_scores_nothing(
    command: str, tmp_path: Path, new_machine: Path, photos: Path
) -> None:
    bundle = make_bundle(tmp_path / "made", {"fp32": RIGHT, "int8": RIGHT + 0.011})
    if command == "score":
        arguments = ["score", str(bundle.path), str(photos), "--precision", "int8"]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 3 and not result.stdout
        words = result.stderr.strip().splitlines()[-1]
    else:
        with pytest.raises(ParityError) as caught:
            Scorer.open(bundle, "int8")
        words = str(caught.value)
    assert "int8 graph" in words and "mean difference 0.011, tolerance 0.01" in words
    assert "--precision fp32" in words
    assert not list(new_machine.glob("checks/*"))  # an update may mend it, so it is asked again
    with Scorer.open(bundle) as scorer:
        assert scorer.score(make_image()).value == pytest.approx(tiny_score(make_image()), abs=1e-6)


def test_a_slow_network_is_judged_on_its_first_batch(
    tmp_path: Path, runs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_SECONDS", 0.0)
    order = RIGHT.copy()
    order[:4] += [0.009, -0.009, 0.009, -0.009]  # a mean that passes; so few have no order to judge
    Scorer.open(make_bundle(tmp_path / "made", {"int8": order}), "int8").close()
    assert sum(runs) == 4
    with pytest.raises(ParityError, match="4 pictures"):
        Scorer.open(make_bundle(tmp_path / "other", {"int8": RIGHT + 0.011}), "int8")


def test_a_cache_that_cannot_be_written_stops_nothing(
    tmp_path: Path, runs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    bundle = make_bundle(tmp_path / "made", {"fp32": RIGHT})
    for _ in range(2):
        Scorer.open(bundle).close()
    assert sum(runs) == 32


def bench(refused: Mapping[str, str] | None = None, **ratios: tuple[float, float]) -> BundleBench:
    timings = [
        Timing(name, size, 5, 1.0, 1.0, 1.0, 1.0, 1.0, ratio)  # by the clock all alike
        for name, pair in ratios.items()
        for size, ratio in zip((1, 8), pair, strict=True)
    ]
    return BundleBench(timings, dict(refused or {}))


@pytest.mark.parametrize(
    ("ratios", "precision"),
    [
        ({"fp32": (1, 1), "int8": (0.6, 0.5)}, "int8"),
        ({"fp32": (1, 1), "int8": (1.1, 0.8)}, "fp32"),  # never the slower one, at any size
        ({"fp32": (1, 1), "int8": (0.97, 0.97)}, "fp32"),  # noise
        ({"fp32": (1, 1), "fp16": (0.5, 0.5), "int8": (0.4, 0.4)}, "int8"),
        ({"fp32": (1, 1), "fp16": (0.5, 0.5), "int8": (0.6, 0.6)}, "fp16"),
        ({"fp16": (1, 1), "int8": (1.2, 1.2)}, "fp16"),  # the first that works is what ratios refer to
    ],
)
def test_the_fastest_is_taken_if_it_is_faster_everywhere(
    ratios: dict[str, tuple[float, float]], precision: str, tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path / "made", dict.fromkeys(ratios, RIGHT))
    choice = remember(bundle, "cpu", bench({"fp64": "is refused"}, **ratios))
    assert choice.precision == precision
    smaller = any(ratio < 1 for pair in ratios.values() for ratio in pair) and precision == "fp32"
    assert ("at most 0.90" in choice.reason) or not smaller
    other = next(name for name in ratios if name != precision)
    assert f"{other} takes " in choice.reason and "fp64 is refused here: is refused" in choice.reason
    assert choose(bundle, BackendOptions("cpu")) == choice == choose(bundle, BackendOptions())


def test_the_choice_is_measured_once_and_leaves_out_what_is_refused(
    tmp_path: Path, new_machine: Path, photos: Path
) -> None:
    bundle = make_bundle(tmp_path / "made", {"fp32": RIGHT, "int8": RIGHT + 0.011})
    arguments = ["score", str(bundle.path), str(photos), "--precision", "auto", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0 and len(result.stdout.splitlines()) == 3
    line = next(line for line in result.stderr.splitlines() if line.startswith("precision auto: fp32; "))
    assert "int8 is refused here" in line and "mean difference 0.011" in line
    (kept,) = new_machine.glob("choices/*.json")
    before = kept.stat().st_mtime_ns
    with Scorer.open(bundle, "auto") as scorer:
        assert scorer.precision == "fp32" and "refused" in scorer.chosen
    assert kept.stat().st_mtime_ns == before
    # What another version may have left there is measured anew.
    others: list[dict[str, object]] = [{"graph": "fp32"}, {"precision": []}]
    for value in others:
        kept.write_text(json.dumps({**json.loads(kept.read_text()), "value": value}))
        assert choose(bundle, BackendOptions("cpu")).precision == "fp32"
    before = kept.stat().st_mtime_ns
    # bench measures anew, and says what auto takes from then on.
    result = CliRunner().invoke(app, ["bench", str(bundle.path), "--runs", "1", "--json"])
    assert result.exit_code == 0, result.stderr
    measured = json.loads(result.stdout)
    assert measured["auto"]["precision"] == "fp32" and "int8" in measured["refused"]
    assert kept.stat().st_mtime_ns > before


def test_auto_where_nothing_can_be_chosen(tmp_path: Path, tiny_bundle: Bundle) -> None:
    with Scorer.open(tiny_bundle, "auto") as scorer:
        assert scorer.precision == "fp32" and scorer.chosen == "the bundle has no other graph"
    with pytest.raises(ParityError):
        choose(make_bundle(tmp_path / "other", {"fp32": RIGHT + 1, "int8": RIGHT + 1}), BackendOptions())
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        both = make_bundle(tmp_path / "both", {"fp32": RIGHT, "int8": RIGHT})
        with pytest.raises(BackendError, match="'cuda' is not in"):
            Scorer.open(both, "auto", "cuda")
        with Scorer.open(both, "auto", "cuda", allow_cpu=True) as scorer:
            assert scorer.backend.provider == "cpu" and scorer.backend.fallback and scorer.chosen
    with pytest.raises(UsageError, match="each machine's own choice"):
        RayScorer(tiny_bundle.path, "auto")


@pytest.mark.parametrize("setting", [None, "0"])
def test_onnxruntime_reports_nothing_unless_asked_to(setting: str | None, tmp_path: Path) -> None:
    """From 1.29 on it keeps a data base of events in the cache, and sends it."""
    unset = ("ORT_DISABLE_TELEMETRY", "CI", "GITHUB_ACTIONS")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {} if setting is None else {"ORT_DISABLE_TELEMETRY": setting}
    code = (
        "import os; from grmp_edge import Scorer; Scorer.open(); print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == (setting or "1")
    if setting is None:
        made = {path.name for path in (tmp_path / "cache").iterdir()}
        assert made == {"grmp-edge"}
