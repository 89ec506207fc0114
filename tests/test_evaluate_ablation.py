"""The ablation and the zero-shot rows: what is run, what is shared, and that the command needs no other."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats as stats
from helpers_train import TINY_CLIP, write_labelled
from typer.testing import CliRunner

from grmp_edge.cli import app
from grmp_edge.errors import CheckpointError
from grmp_edge.preprocess import Preprocess
from grmp_edge.train.data.labelled import Labelled, SplitConfig, read_csv, split_indices
from grmp_edge.train.evaluate.protocol import ProtocolConfig, SplitResult, summarize
from grmp_edge.train.evaluate.splits import ablation, run_variants
from grmp_edge.train.finetune.config import FinetuneConfig
from grmp_edge.train.finetune.loop import predict
from grmp_edge.train.network.backbone import BackboneConfig
from grmp_edge.train.network.settings import PromptConfig
from grmp_edge.train.runs import ModelConfig, build_network
from grmp_edge.train.session.checkpoint import CheckpointWriter, State, load_checkpoint

MODEL = ModelConfig(BackboneConfig(TINY_CLIP, "random"), PromptConfig(3), device="cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    folder = tmp_path_factory.mktemp("ablation")
    return read_csv(write_labelled(folder / "data", 24, 35), mos_range=(0, 100))


@pytest.fixture(scope="module")
def start(data: Labelled, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-training checkpoint, its prompts unlike those of any seed that the protocol draws."""
    folder = tmp_path_factory.mktemp("pretrain")
    network, settings = build_network(replace(MODEL, seed=77))
    weights = {name: p.detach() for name, p in network.prompt_parameters()}
    settings |= {"stage": "pretrain", "meta": {"epochs": 2}, "data": {}, "mos": None}
    progress = {"stage": "pretrain", "epoch": 2, "complete": True, "history": []}
    CheckpointWriter(folder, settings).save(State(weights, {}, progress))
    return folder


@pytest.fixture(scope="module")
def done(
    data: Labelled, start: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[SplitResult], list[int]]:
    output = tmp_path_factory.mktemp("out")
    seen: list[int] = []
    config = ProtocolConfig(splits=2, labels=(0, 8))
    variants = ablation(output, start, FinetuneConfig(epochs=5, lr=0.05))
    found = run_variants(variants, MODEL, data, config, on_split=lambda splits: seen.append(len(splits)))
    return output, found, seen


def test_the_table_has_the_four_ways_and_each_zero_shot_once(
    done: tuple[Path, list[SplitResult], list[int]],
) -> None:
    _, found, seen = done
    rows = [(row["method"], row["labels"], row["splits"]) for row in summarize(found)]
    assert rows == [
        ("MPP + QGR", 0, 2), ("MPP + QGR", 8, 2), ("no MPP", 0, 2), ("no MPP", 8, 2),
        ("no QGR", 8, 2), ("neither", 8, 2),
    ]  # fmt: skip
    assert seen == list(range(1, 13))


def test_every_way_was_trained_as_it_says(
    done: tuple[Path, list[SplitResult], list[int]], start: Path
) -> None:
    output, _, _ = done
    for folder, mpp, qgr in (
        ("full", True, True), ("no-mpp", False, True), ("no-qgr", True, False), ("neither", False, False)
    ):  # fmt: skip
        settings = json.loads((output / folder / "protocol.json").read_bytes())
        assert settings["finetune"]["qgr"] is qgr
        assert (settings["start"] is not None) is mpp and (settings["model"] is None) is mpp
        names = {path.stem for path in (output / folder / "splits").iterdir()}
        assert names == {"8-00", "8-01"} | ({"0-00", "0-01"} if qgr else set())
    # Over both splits: where the two gradients never conflict, QGR leaves them as they are.
    values = [
        [
            json.loads((output / way / "splits" / f"8-0{split}.json").read_bytes())["predictions"]["value"]
            for split in range(2)
        ]
        for way in ("full", "no-mpp", "no-qgr", "neither")
    ]
    assert all(values[a] != values[b] for a in range(4) for b in range(a))


def test_zero_labels_test_the_model_as_it_is(
    data: Labelled, done: tuple[Path, list[SplitResult], list[int]], start: Path
) -> None:
    output, _, _ = done
    for way, network in (
        ("full", load_checkpoint(start).model),
        ("no-mpp", build_network(replace(MODEL, seed=1))[0]),
    ):
        found = json.loads((output / way / "splits" / "0-01.json").read_bytes())
        test = list(split_indices(data, SplitConfig(None, 0.2, 0.2, 1)).test)
        wanted = predict(network, data.squashed(test, Preprocess.for_size(32).resize))
        np.testing.assert_allclose(found["predictions"]["value"], wanted, atol=1e-6)
        assert found["metrics"]["srcc"] == pytest.approx(stats.spearmanr(wanted, data.mos[test]).statistic)
        # Fine-tuning begins from there.
        tuned = json.loads((output / way / "splits" / "8-01.json").read_bytes())
        assert tuned["zero_shot"]["srcc"] == pytest.approx(found["metrics"]["srcc"])


def test_an_unfinished_start_is_refused(data: Labelled, start: Path, tmp_path: Path) -> None:
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    for file in start.iterdir():
        text = file.read_bytes()
        (unfinished / file.name).write_bytes(text)
    config = json.loads((unfinished / "config.json").read_text())
    config["progress"] |= {"complete": False, "epoch": 1}
    (unfinished / "config.json").write_text(json.dumps(config))
    variants = ablation(tmp_path / "out", unfinished, FinetuneConfig(epochs=5, lr=0.05))[:1]
    protocol = ProtocolConfig(splits=1, labels=(0,))
    with pytest.raises(CheckpointError, match=r"unfinished run \(epoch 1 of 2\); finish it.*--resume"):
        run_variants(variants, MODEL, data, protocol)
    assert not (tmp_path / "out").exists()
    assert run_variants(variants, MODEL, data, protocol, allow_unfinished=True)[0]["labels"] == 0


def test_one_command_pre_trains_ablates_and_compares(data: Labelled, tmp_path: Path) -> None:
    run, output = CliRunner(), tmp_path / "out"
    words = ["evaluate", "--data", f"csv:{data.name}", "--mos-range", "0,100", "--backbone", TINY_CLIP]
    words += ["--weights", "random", "--epochs", "5", "--splits", "1", "--labels", "0,8", "--device", "cpu"]
    words += ["--distortions", "jpeg,gaussian_blur", "--max-photos", "2", "--meta-epochs", "1"]
    words += ["--ablate", "--preset", "reference", "--baselines", "laplacian", "-o", str(output), "--json"]
    shown = run.invoke(app, words)
    assert shown.exit_code == 0, shown.output
    result = json.loads(shown.stdout)
    methods = ["MPP + QGR", "no MPP", "no QGR", "neither", "Laplacian variance"]
    assert list(dict.fromkeys(row["method"] for row in result["rows"])) == methods
    assert result["ablation"] and len(result["leaks"]) == 2
    assert "test pictures included" in result["leaks"][1]
    with (output / "table.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [(row["method"], row["labels"]) for row in table if row["method"] == methods[-1]] == [
        (methods[-1], "0"),
        (methods[-1], "8"),
    ]
    assert (output / "table.md").read_text().count("not an honest figure") == 2
    plot = (output / "plot.svg").read_text()
    assert all(f"{method}, SRCC" in plot for method in methods)
    config = json.loads((output / "pretrain" / "config.json").read_bytes())
    assert config["meta_select_on"] == "target set" and config["preset"] == "reference"
    assert config["prompts"]["normalization"] == "imagenet" and not config["meta"]["reset_per_task"]
    before = {path: path.stat().st_mtime_ns for path in output.rglob("splits/*.json")}
    assert len(before) == 4 + 2 + 2
    again = run.invoke(app, words)
    assert json.loads(again.stdout)["rows"] == result["rows"]
    assert {path: path.stat().st_mtime_ns for path in output.rglob("splits/*.json")} == before
