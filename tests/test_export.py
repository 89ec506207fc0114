"""Checkpoint to bundle: the gate, what is left when it fails, and the commands ``export`` and ``bench``."""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from helpers_tensorrt import FakeDriver, FakeTensorRT
from helpers_train import TINY_CLIP, pictures, tiny_backbone, tiny_model
from typer.testing import CliRunner

from grmp_edge.bundle import Bundle
from grmp_edge.check_pictures import check_pictures
from grmp_edge.cli import app
from grmp_edge.default_bundle import EMBEDDED
from grmp_edge.errors import BundleError, DataError, MissingDependencyError, ModelError, ParityError
from grmp_edge.export import compare as bench_fold_module
from grmp_edge.export import gate_images as gate_images_module
from grmp_edge.export import pipeline
from grmp_edge.export.fold import FoldedModel, fold
from grmp_edge.export.gate_images import gate_images
from grmp_edge.export.mapped import Spool
from grmp_edge.export.parity import Gate, ParityConfig
from grmp_edge.export.pipeline import ExportConfig, export_bundle
from grmp_edge.export.precision.half import HalfConfig, float32_blocks, simulated_readings
from grmp_edge.parity import LIMITS, judge
from grmp_edge.preprocess import Preprocess
from grmp_edge.runtime.backends import graph_runner, open_session
from grmp_edge.runtime.bench import BenchConfig, bench_bundle
from grmp_edge.runtime.tensorrt.cuda import Gpu
from grmp_edge.score import MosScale
from grmp_edge.train.network.backbone import BackboneConfig, load_backbone
from grmp_edge.train.network.model import GrmpIqa
from grmp_edge.train.network.settings import PromptConfig
from grmp_edge.train.session.checkpoint import Checkpoint, CheckpointWriter, State, backbone_settings

CONFIG: Any = {
    "format_version": 1,
    "backbone": {"name": "tiny", "pretrained": "/home/somebody/weights.pt"},
    "seed": 3,
    "data": {"name": "/home/somebody/labels.csv", "digest": "abc", "images": ["/home/somebody/1.png"]},
    "progress": {"history": [1, 2, 3], "epoch": 7},
}


@pytest.fixture
def model() -> GrmpIqa:
    return tiny_model(seed=6, layers=3)


@pytest.fixture
def checkpoint(model: GrmpIqa, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of a tiny model, without the file format."""
    path = tmp_path / "runs" / "first"
    path.mkdir(parents=True)
    loaded = Checkpoint(path, model, MosScale(1.0, 5.0), CONFIG, [tmp_path / "gone.png"])
    monkeypatch.setattr(pipeline, "load_checkpoint", lambda _path, _weights: loaded)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def poison(change: Callable[[FoldedModel], FoldedModel]) -> Callable[..., FoldedModel]:
    return lambda model: change(fold(model))


def wrong_key(folded: FoldedModel) -> FoldedModel:
    """One key of one prompt of one head of one block is another."""
    keys = folded.blocks[1].prompt_keys.copy()
    keys[1, 2] += 2.0
    block = replace(folded.blocks[1], prompt_keys=keys)
    return replace(folded, blocks=(folded.blocks[0], block, *folded.blocks[2:]))


def louder(*blocks: int) -> Callable[[FoldedModel], FoldedModel]:
    """Attention values past what half can hold in these blocks, the same function in float32."""

    def change(folded: FoldedModel) -> FoldedModel:
        made = list(folded.blocks)
        for index in blocks:
            block = made[index]
            made[index] = replace(
                block,
                v_weight=block.v_weight * 1e7,
                prompt_values=block.prompt_values * 1e7,
                out_weight=block.out_weight / 1e7,
            )
        return replace(folded, blocks=tuple(made))

    return change


def test_bundle_scores_like_the_model(checkpoint: Path, model: GrmpIqa, tmp_path: Path) -> None:
    stages: list[str] = []
    bundle = export_bundle(checkpoint, tmp_path / "out" / "b", ExportConfig(fp16=True), stages.append)
    assert set(bundle.graphs) == {"fp32", "fp16"} and len(stages) > 5
    images = pictures(5, 32, seed=8)
    with torch.no_grad():
        expected = model(torch.from_numpy(images), unfolded=True).numpy()
    for precision, tolerance in (("fp32", 1e-5), ("fp16", 5e-3)):
        run = graph_runner(open_session(bundle.graph(precision)))
        assert run(images) == pytest.approx(expected, abs=tolerance)
        properties = {entry.key: entry.value for entry in onnx.load(bundle.graph(precision)).metadata_props}
        assert properties["grmp_edge.precision"] == precision
        assert "clip" in properties["grmp_edge.normalization"]
    assert bundle.mos == MosScale(1.0, 5.0)
    assert bundle.normalization.name == "clip" and bundle.input_size == 32
    links = bundle.parity["links"]
    assert set(links) == {"fp32", "fp16", "fp16_simulated"}
    assert all(found["passed"] for found in links.values())
    whole, half = links["fp32"]["max_abs"], links["fp16_simulated"]["max_abs"]
    assert whole is not None and half is not None and whole < 1e-5 < half < 5e-3
    assert bundle.parity["reference"]["images"] == 32
    assert bundle.parity["images"].startswith("pictures: 32 computer-made")
    # No path of the training machine, no list of its pictures.
    assert "/home" not in (bundle.path / "bundle.json").read_text()
    assert bundle.provenance["training"]["data"] == {"name": "labels.csv", "digest": "abc"}
    assert bundle.provenance["training"]["progress"] == {"epoch": 7}


@pytest.mark.parametrize(("change", "fp16"), [(wrong_key, False), (louder(0, 1, 2), True)])
def test_a_graph_that_scores_differently_is_not_written(
    change: Callable[[FoldedModel], FoldedModel],
    fp16: bool,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "out" / "bundle"
    export_bundle(checkpoint, output)
    before = contents(tmp_path)
    monkeypatch.setattr(pipeline, "fold", poison(change))
    with pytest.raises(ParityError, match="overflow" if fp16 else "worst difference") as caught:
        export_bundle(checkpoint, output, ExportConfig(fp16=fp16))
    assert caught.value.exit_code == 3
    assert contents(tmp_path) == before
    with pytest.raises(ParityError):
        export_bundle(checkpoint, tmp_path / "out" / "new", ExportConfig(fp16=fp16))
    assert contents(tmp_path) == before and not (tmp_path / "out" / "new").exists()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["bundle"]


def test_constants_that_were_read_are_given_back_before_a_graph_runs(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    judge, release = Gate.judge_readings, Spool.release

    def judged(self: Gate, precision: str, readings: Any) -> Any:
        seen.append(f"judge {precision}")
        return judge(self, precision, readings)

    def released(self: Spool) -> None:
        seen.append("release")
        release(self)

    monkeypatch.setattr(Gate, "judge_readings", judged)
    monkeypatch.setattr(Spool, "release", released)
    result = CliRunner().invoke(app, ["export", str(checkpoint), "-o", str(tmp_path / "b"), "--fp16"])
    assert result.exit_code == 0, result.output
    # The simulation of half hardware, then the file itself.
    assert seen == ["release", "judge fp32", "release", "judge fp16", "release", "judge fp16"]


@pytest.mark.parametrize("blocks", [(1,), (0, 2)])
def test_blocks_that_overflow_half_are_found_and_stay_in_float32(
    blocks: tuple[int, ...],
    checkpoint: Path,
    model: GrmpIqa,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = pictures(4, 32, seed=8)
    # The gate without the widening catches it, and the file alone, as a CPU computes it, would not show it.
    gate = Gate(model, images, ParityConfig())
    folded = louder(*blocks)(fold(model))
    simulated = gate.judge_readings("fp16", simulated_readings(folded, frozenset(), gate, tmp_path))
    assert "overflow" in simulated.problem and not (tmp_path / "simulated.onnx").exists()
    monkeypatch.setattr(pipeline, "fold", poison(louder(*blocks)))
    result = CliRunner().invoke(app, ["export", str(checkpoint), "-o", str(tmp_path / "b"), "--fp16"])
    assert result.exit_code == 0, result.output
    assert f"blocks left in float32: {', '.join(str(block) for block in blocks)}\n" in result.stdout
    bundle = Bundle.load(tmp_path / "b")
    assert bundle.parity["fp32_blocks"] == list(blocks)
    difference = bundle.parity["links"]["fp16_simulated"]["max_abs"]
    assert difference is not None and difference < 5e-3
    weights = {t.name: t.data_type for t in onnx.load(bundle.graph("fp16")).graph.initializer}
    wide = {i for i in range(3) if weights[f"block{i}.mlp.fc.weight"] == onnx.TensorProto.FLOAT}
    assert wide == set(blocks)
    with torch.no_grad():
        expected = model(torch.from_numpy(images), unfolded=True).numpy()
    assert graph_runner(open_session(bundle.graph("fp16")))(images) == pytest.approx(expected, abs=5e-3)


@pytest.mark.parametrize(("seconds", "most"), [(0.0, 1 + 4), (1e9, 1 + 9 + 4 + 2 * 3)])
def test_the_search_for_float32_blocks_is_bounded(seconds: float, most: int, tmp_path: Path) -> None:
    """Nine blocks of which three overflow: what it takes, by counting; and what it ends with passes."""
    loud = (2, 5, 6)
    model, images = tiny_model(layers=9), pictures(4, 32, seed=8)
    gate, folded = Gate(model, images, ParityConfig()), louder(*loud)(fold(model))
    runs: list[str] = []
    wide, verdict = float32_blocks(
        folded, gate, tmp_path, runs.append, config=HalfConfig(ranking_images=2, search_s=seconds)
    )
    assert len(runs) <= most, runs
    assert wide == set(loud) if seconds else wide >= set(loud)
    assert not verdict.problem and verdict.max_abs < 5e-3
    readings = simulated_readings(folded, wide, gate, tmp_path)
    assert gate.judge_readings("fp16", readings) == verdict


@pytest.mark.parametrize("stage", ["writing model.fp16.onnx", "checking model.onnx", "writing {output}"])
def test_an_interrupted_export_leaves_nothing(stage: str, checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "bundle"
    wanted = stage.format(output=output)

    def interrupt(text: str) -> None:
        if text == wanted:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_bundle(checkpoint, output, ExportConfig(fp16=True), interrupt)
    assert list((tmp_path / "out").iterdir()) == []


def test_another_folder_is_not_overwritten_and_that_is_said_first(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.txt").write_text("precious")
    stages: list[str] = []
    with pytest.raises(BundleError, match="not a bundle"):
        export_bundle(checkpoint, tmp_path / "photos", progress=stages.append)
    assert stages == []
    assert contents(tmp_path / "photos") == {"mine.txt": b"precious"}


def test_missing_onnxruntime_names_both_extras(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "find_spec", lambda _name: None)
    with pytest.raises(MissingDependencyError) as caught:
        export_bundle(checkpoint, tmp_path / "b")
    assert "[cpu]" in str(caught.value) and "[gpu]" in str(caught.value) and "\n" not in str(caught.value)


def _scores(spread: float) -> np.ndarray:
    return 0.5 + spread * np.linspace(-1, 1, 32)


@pytest.mark.parametrize(
    ("precision", "spread", "change", "problem"),
    [
        ("fp32", 0.3, lambda s: s + 0.9e-4, ""),
        ("fp32", 0.3, lambda s: s + 1.1e-4, "worst difference"),
        ("fp32", 0.3, lambda s: np.where(s == s.max(), np.nan, s), "not numbers"),
        ("fp16", 0.3, lambda s: s + 4.9e-3, ""),
        ("fp16", 0.3, lambda s: s - 5.1e-3, "worst difference"),
        ("fp16", 0.3, lambda s: np.full_like(s, np.inf), "not numbers"),
        # All alike: their order means nothing and is not judged, their distance is.
        ("fp16", 1e-4, lambda s: s[::-1], ""),
        ("fp16", 1e-4, lambda s: s + 5.1e-3, "worst difference"),
    ],
)
def test_the_gate(
    precision: str, spread: float, change: Callable[[np.ndarray], np.ndarray], problem: str
) -> None:
    reference = _scores(spread)
    verdict = judge(reference, change(reference), LIMITS[precision])
    assert problem in verdict.problem and bool(verdict.problem) == bool(problem)
    json.loads(json.dumps(verdict.to_json(), allow_nan=False))


def test_the_gate_asks_for_the_order_where_there_is_one() -> None:
    reference = _scores(0.3)
    verdict = judge(reference, reference, LIMITS["fp16"])
    assert verdict.to_json()["srcc_needed"] == 0.999 and verdict.srcc == pytest.approx(1)
    # Past no tolerance in distance, yet neighbours further apart than it change places.
    pairs = np.repeat(np.linspace(0.1, 0.9, 16), 2) + np.tile([-3e-3, 3e-3], 16)
    swapped = pairs + np.tile([3.5e-3, -3.5e-3], 16)
    assert np.abs(swapped - pairs).max() < 5e-3
    assert "SRCC 0.99413 without pairs nearer" in judge(pairs, swapped, LIMITS["fp16"]).problem
    assert judge(_scores(1e-4), _scores(1e-4), LIMITS["fp16"]).to_json()["srcc_needed"] is None


def test_a_model_that_gives_no_numbers_is_told_from_a_bad_graph() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.prompt_norm.bias.fill_(torch.inf)
    with pytest.raises(ModelError, match="checkpoint itself"):
        Gate(model, pictures(2), ParityConfig())


def test_gate_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = inspect.unwrap(gate_images_module._procedural)  # anew each time, unlike for the other tests
    monkeypatch.setattr(gate_images_module, "_procedural", drawn)
    preprocess = Preprocess.for_size(32)
    for index, picture in enumerate(pictures(5, 40)):
        cv2.imwrite(str(tmp_path / f"{index}.png"), picture)
    (tmp_path / "labels.csv").write_text("image,mos\n" + "".join(f"{i}.png,3\n" for i in range(5)))
    expected = pictures(5, 40)[:, :, :, ::-1]  # OpenCV writes what it takes for BGR
    for source in (tmp_path, tmp_path / "labels.csv"):
        images, words = gate_images(source, (), preprocess, 3)
        assert images.shape == (3, 32, 32, 3) and words == f"pictures: 3 from {source.name}"
        assert np.array_equal(images[1], preprocess(expected[2]))  # evenly spaced: 0, 2, 4
    images, words = gate_images(None, [tmp_path / "0.png", tmp_path / "gone.png"], preprocess, 12)
    assert images.shape == (12, 32, 32, 3) and images.dtype == np.uint8
    assert words == "pictures: 1 of training, 11 computer-made and distorted (seed 0)"
    assert np.array_equal(images[0], preprocess(expected[0]))
    assert len({image.tobytes() for image in images}) == 12
    again, _ = gate_images(None, [tmp_path / "0.png"], preprocess, 12)
    assert np.array_equal(images, again)
    with pytest.raises(DataError, match="no such"):
        gate_images(tmp_path / "nowhere", (), preprocess, 3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no picture"):
        gate_images(tmp_path / "empty", (), preprocess, 3)


def test_bench_of_a_bundle(tiny_bundle: Bundle) -> None:
    timings = bench_bundle(tiny_bundle, BenchConfig(batches=(1, 3), runs=3, threads=1)).timings
    assert [(timing.name, timing.batch, timing.runs) for timing in timings] == [
        ("fp32", 1, 3),
        ("fp32", 3, 3),
    ]
    for timing in timings:
        assert 0 < timing.fastest_ms <= timing.median_ms and timing.ratio == 1.0
        # The milliseconds are rounded to a microsecond.
        assert timing.batch / timing.images_per_s * 1e3 == pytest.approx(timing.median_ms, abs=6e-4)


def test_bench_command(tiny_bundle: Bundle) -> None:
    result = CliRunner().invoke(
        app, ["bench", str(tiny_bundle.path), "--batch", "2", "--runs", "2", "--json"]
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["id"] == tiny_bundle.id and [entry["batch"] for entry in found["timings"]] == [2]
    for arguments in (["bench"], ["bench", "b", "--backbone", "x"], ["bench", "b", "--random"]):
        assert CliRunner().invoke(app, arguments).exit_code == 2
    result = CliRunner().invoke(app, ["bench", str(tiny_bundle.path), "--batch", "one"])
    assert result.exit_code == 2 and len(result.stderr.strip().splitlines()) == 1


def test_bench_of_folding(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone(size=32, layers=3)
    monkeypatch.setattr(bench_fold_module, "load_backbone", lambda _config: backbone)
    config = BenchConfig(batches=(1, 2), runs=2, threads=1)
    found = bench_fold_module.bench_fold(BackboneConfig("tiny", "random"), config, eager=True, int8=True)
    assert set(found.max_difference) == {"unfolded", "folded", "folded int8"}
    assert max(found.max_difference[name] for name in ("unfolded", "folded")) < 1e-5
    assert 1e-6 < found.max_difference["folded int8"] < 0.05
    counts = found.multiply_adds
    assert counts["folded int8"] == counts["folded"] < counts["unfolded"] <= counts["torch.onnx"]
    names = ["unfolded", "plain CLIP", "folded", "folded int8", "torch.onnx", "PyTorch"]
    assert [(timing.name, timing.batch) for timing in found.timings] == [
        (n, b) for b in (1, 2) for n in names
    ]
    json.dumps(found.to_json(), allow_nan=False)


def _real_checkpoint(path: Path, name: str = EMBEDDED) -> None:
    """A checkpoint as training writes it, with random weights."""
    config, prompts = BackboneConfig(name, "random", random_seed=1), PromptConfig(visual_tokens=10)
    backbone = load_backbone(config)
    torch.manual_seed(0)
    model = GrmpIqa(backbone, prompts)
    settings: dict[str, Any] = {
        "backbone": backbone_settings(backbone, config),
        "prompts": asdict(prompts),
        "mos": {"low": 0.0, "high": 100.0},
        "data": {"name": "labels.csv", "images": []},
    }
    weights = {name: parameter.detach() for name, parameter in model.prompt_parameters()}
    CheckpointWriter(path, settings).save(State(weights, {}, {"complete": True}))


def test_export_command_on_a_real_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # Six pictures, of five views each, instead of 32.
    monkeypatch.setattr(
        pipeline,
        "gate_images",
        lambda source, recorded, preprocess, _: gate_images(source, recorded, preprocess, 6),
    )
    _real_checkpoint(tmp_path / "runs" / "mine")
    result = CliRunner().invoke(app, ["export", "runs/mine", "--fp16"])
    assert result.exit_code == 0, result.output
    assert "next: grmp-edge score bundles/mine" in result.stderr
    assert "model.onnx" in result.stdout and "model.fp16.onnx" in result.stdout
    bundle = Bundle.load(tmp_path / "bundles" / "mine")
    assert bundle.mos == MosScale(0.0, 100.0) and bundle.backbone["name"] == "embedded-l0"

    monkeypatch.setattr(pipeline, "fold", poison(wrong_key_of_many))
    before = contents(tmp_path / "bundles")
    _real_checkpoint(tmp_path / "runs" / "tiny", TINY_CLIP)
    result = CliRunner().invoke(app, ["export", "runs/tiny", "-o", "bundles/mine", "--json"])
    assert result.exit_code == 3 and result.stdout == ""
    assert result.stderr.strip().splitlines()[-1].startswith("error: the fp32 graph does not score")
    assert contents(tmp_path / "bundles") == before


def wrong_key_of_many(folded: FoldedModel) -> FoldedModel:
    """All keys of one prompt, in a network whose random prompts weigh little."""
    first, *others = folded.blocks
    keys = first.prompt_keys.copy()
    keys[:, 3] += 20.0
    return replace(folded, blocks=(replace(first, prompt_keys=keys), *others))


def test_export_of_a_missing_checkpoint_is_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(tmp_path / "none"), "-o", str(tmp_path / "b")])
    assert result.exit_code == 1 and "no such checkpoint" in result.stderr.strip().splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_records_what_its_graphs_give_on_pictures_of_any_machine(
    checkpoint: Path, model: GrmpIqa, tmp_path: Path
) -> None:
    bundle = export_bundle(checkpoint, tmp_path / "b", ExportConfig(fp16=True))
    check = bundle.parity["check"]
    images = check_pictures(check["count"], 32, check["seed"])
    assert check["sha256"] == hashlib.sha256(images.tobytes()).hexdigest()
    with torch.no_grad():
        expected = model(torch.from_numpy(images), unfolded=True).numpy()
    assert set(check["scores"]) == {"reference", "fp32", "fp16"}
    assert check["scores"]["reference"] == pytest.approx(expected, abs=1e-6)
    for precision, tolerance in (("fp32", 1e-5), ("fp16", 5e-3)):
        scores = graph_runner(open_session(bundle.graph(precision)))(images)
        assert check["scores"][precision] == pytest.approx(scores, abs=1e-6)
        assert scores == pytest.approx(expected, abs=tolerance)


def test_export_with_an_engine(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver()
    trt = FakeTensorRT(driver)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for module in ("cuda", "build"):
        monkeypatch.setattr(
            f"grmp_edge.runtime.tensorrt.{module}.find_gpu", lambda: Gpu("Orin (nvgpu)", "8.7")
        )
    for module in ("bindings", "build"):
        monkeypatch.setattr(f"grmp_edge.runtime.tensorrt.{module}.load_tensorrt", lambda: trt)
    monkeypatch.setattr("grmp_edge.runtime.tensorrt.cuda._load", lambda: driver)
    arguments = ["export", str(checkpoint), "-o", str(tmp_path / "b"), "--tensorrt", "--batch", "1,2,2"]
    arguments += ["--triton", str(tmp_path / "models")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    (row,) = [line for line in result.stdout.splitlines() if ".engine" in line]
    assert "fp32, TensorRT 10.3.0" in row
    assert "--provider tensorrt --precision fp32" in result.stderr.strip().splitlines()[-1]
    (engine,) = (tmp_path / "cache" / "grmp-edge" / "engines").glob("*.engine")
    model = tmp_path / "models" / "b"
    assert (model / "1" / "model.plan").read_bytes() == engine.read_bytes()
    assert "max_batch_size: 2\n" in (model / "config.pbtxt").read_text()
    shutil.rmtree(model)
    words = ["build", str(tmp_path / "b"), "--batch", "1,2,2", "--triton", str(tmp_path / "models")]
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 0, again.output
    assert "tritonserver --model-repository" in again.stderr
    assert (model / "1" / "model.plan").read_bytes() == engine.read_bytes()
    shutil.rmtree(model)
    assert json.loads(engine.with_suffix(".json").read_text())["check"]["pictures"] == 16
    assert driver.idle and driver.broken == []
    # An engine that scores otherwise: the bundle and its table are there, the engine is not.
    engine.unlink()
    trt.change = lambda scores: scores + 0.01
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 3 and "model.onnx" in result.stdout
    assert "the fp32 engine does not score as its graph does" in result.stderr.strip().splitlines()[-1]
    assert not engine.exists() and Bundle.load(tmp_path / "b").parity["links"]["fp32"]["passed"]
    assert not model.exists() and "Triton model" not in result.stderr
    assert driver.idle and driver.broken == []


def test_export_with_an_engine_needs_tensorrt_before_anything_else(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    result = CliRunner().invoke(app, ["export", str(checkpoint), "-o", str(tmp_path / "b"), "--tensorrt"])
    last = result.stderr.strip().splitlines()[-1]
    assert result.exit_code == 1 and "tensorrt" in last and "export without --tensorrt" in last
    assert not (tmp_path / "b").exists() and "loading" not in result.stderr
    assert CliRunner().invoke(app, ["export", str(checkpoint), "--batch", "1,2,3"]).exit_code == 2


def test_the_largest_batch_of_a_triton_model(checkpoint: Path, tmp_path: Path) -> None:
    config = tmp_path / "models" / "b" / "config.pbtxt"
    arguments = ["export", str(checkpoint), "-o", str(tmp_path / "b"), "--triton", str(tmp_path / "models")]
    for more, largest in (([], 32), (["--batch", "1,4,16"], 16)):
        result = CliRunner().invoke(app, [*arguments, *more])
        assert result.exit_code == 0, result.output
        assert f"max_batch_size: {largest}\n" in config.read_text()
