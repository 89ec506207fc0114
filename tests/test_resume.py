"""What a run may be continued with: more epochs and other versions, but not other settings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_train import TINY_CLIP, memory_task, parameters_of, pictures, tiny_model, write_labelled
from typer.testing import CliRunner

from grmp_edge.cli import app
from grmp_edge.errors import CheckpointError, UsageError
from grmp_edge.train.data.labelled import SplitConfig, read_csv
from grmp_edge.train.finetune.config import FinetuneConfig, Part
from grmp_edge.train.finetune.loop import finetune
from grmp_edge.train.meta import MetaConfig, meta_train
from grmp_edge.train.network.backbone import BackboneConfig
from grmp_edge.train.network.settings import PromptConfig
from grmp_edge.train.runs import ModelConfig, build_network, run_finetune, run_pretrain
from grmp_edge.train.session.checkpoint import CheckpointWriter, State, read_state, refuse_unfinished
from grmp_edge.train.session.resume_rules import difference, version_notes

CHOICE = ModelConfig(BackboneConfig(TINY_CLIP, "random"), PromptConfig(visual_tokens=4), "cpu", 3)


def part(count: int, seed: int = 0) -> Part:
    quality = np.random.default_rng(seed + 50).random(count).astype(np.float32)
    return Part(pictures(count, 35, seed), quality)


def test_more_epochs_of_fine_tuning_are_as_if_asked_for_at_once(tmp_path: Path) -> None:
    config = FinetuneConfig(epochs=10, evaluate_every=2, patience=2, lr=0.05)

    def run(folder: Path, config: FinetuneConfig, resume: bool = False) -> dict[str, torch.Tensor]:
        writer = CheckpointWriter(folder, {"finetune": {"epochs": config.epochs}})
        state = writer.resume() if resume else None
        model = tiny_model()
        writer.save(finetune(model, part(6), part(6, 3), config, writer, state))
        return parameters_of(model)

    whole = run(tmp_path / "whole", config)
    run(tmp_path / "grown", replace(config, epochs=4))
    grown = run(tmp_path / "grown", config, resume=True)
    assert all(torch.equal(value, whole[name]) for name, value in grown.items())
    found = [read_state(tmp_path / name).progress for name in ("whole", "grown")]
    assert found[0] == found[1] and found[1]["epoch"] == 10
    assert json.loads((tmp_path / "grown" / "config.json").read_text())["finetune"]["epochs"] == 10
    with pytest.raises(
        CheckpointError, match=r"finetune\.epochs was 10, now 4 \(epochs may only be raised\)"
    ):
        CheckpointWriter(tmp_path / "grown", {"finetune": {"epochs": 4}}).resume()


@pytest.mark.parametrize("reset", [True, False])
def test_more_epochs_of_meta_pre_training_are_as_if_asked_for_at_once(tmp_path: Path, reset: bool) -> None:
    config = MetaConfig(epochs=3, support_batch=8, query_batch=4, held_out=0.34, reset_per_task=reset,
                        inner_lr=5e-3, outer_lr=0.5)  # fmt: skip
    tasks = [memory_task(str(i), 4, 3, seed=i) for i in range(3)]

    def run(folder: Path, epochs: int, resume: bool = False) -> dict[str, torch.Tensor]:
        writer = CheckpointWriter(folder, {"meta": {"epochs": epochs}})
        state = writer.resume() if resume else None
        model = tiny_model()
        meta_train(model, [tasks], replace(config, epochs=epochs), writer, state)
        return parameters_of(model)

    whole = run(tmp_path / "whole", 3)
    run(tmp_path / "grown", 1)
    grown = run(tmp_path / "grown", 3, resume=True)
    assert all(torch.equal(value, whole[name]) for name, value in grown.items())


def settings(**changes: Any) -> dict[str, Any]:
    return {
        "stage": "finetune",
        "finetune": {"epochs": 100, "lr": 0.1},
        "data": {"name": "/a/labels.csv", "digest": "d1", "images": ["/a/1.png"]},
        "versions": {"python": "3.11.4", "torch": "2.15.0+cpu", "numpy": "2.4.6"},
        **changes,
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"versions": {"python": "3.12.0", "torch": "2.16.1", "numpy": "2.4.6"}}, ""),
        ({"data": {"name": "/b/l.csv", "digest": "d1", "images": ["/b/1.png"]}}, ""),
        ({"data": {"name": "/a/labels.csv", "digest": "d2", "images": ["/a/1.png"]}}, "data.digest was"),
        ({"finetune": {"epochs": 200, "lr": 0.1}}, ""),
        ({"finetune": {"epochs": 50, "lr": 0.1}}, "finetune.epochs was 100, now 50 (epochs may only"),
        ({"finetune": {"epochs": 200, "lr": 0.2}}, "finetune.lr was 0.1, now 0.2"),
        ({"preset": "reference", "leaks": ["x"]}, ""),
        ({"meta_select_on": "held-out tasks"}, ""),
        ({"meta_select_on": "target set"}, 'meta_select_on was "held-out tasks", now "target set"'),
        ({"seed": 1}, "seed was null, now 1"),
    ],
)
def test_what_forbids_a_resume(change: dict[str, Any], said: str) -> None:
    found = difference(settings(), settings(**change))
    assert found.startswith(said) and bool(found) == bool(said)


def test_another_minor_version_is_told_and_a_patch_is_not() -> None:
    patch = {"python": "3.11.9", "torch": "2.15.3", "numpy": "2.4.6"}
    assert version_notes(settings(), settings(versions=patch)) == []
    minor = {"python": "3.11.4", "torch": "2.16.0", "numpy": "2.5.0"}
    (note,) = version_notes(settings(), settings(versions=minor))
    assert "torch 2.15.0+cpu -> 2.16.0, numpy 2.4.6 -> 2.5.0" in note and "python" not in note


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unfinished")
    network, found = build_network(CHOICE)
    found |= {"stage": "pretrain", "meta": {"epochs": 9}, "data": {}, "mos": None}
    weights = {name: p.detach() for name, p in network.prompt_parameters()}
    progress = {"stage": "pretrain", "epoch": 4, "complete": False, "history": []}
    CheckpointWriter(folder, found).save(State(weights, {n: t.clone() for n, t in weights.items()}, progress))
    return folder


def test_an_unfinished_pre_training_is_no_start(unfinished: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"epoch 4 of 9\); finish it with .*--resume -o .*--allow-unf"):
        refuse_unfinished(unfinished)
    data = read_csv(write_labelled(tmp_path / "data", 10))
    split, config = SplitConfig(6, 0.4, 0.34), FinetuneConfig.of(TINY_CLIP, epochs=1, lr=0.01, qgr=False)
    with pytest.raises(CheckpointError, match="unfinished run"):
        run_finetune(tmp_path / "run", CHOICE, unfinished, data, split, config)
    assert not (tmp_path / "run").exists()
    result = run_finetune(
        tmp_path / "run", CHOICE, unfinished, data, split, config, allow_unfinished=True, curves="png"
    )
    assert result["complete"] and (tmp_path / "run" / "curves.png").is_file()


def test_options_that_contradict_the_start_are_refused(unfinished: Path, tmp_path: Path) -> None:
    labels = write_labelled(tmp_path / "data", 10)
    common = ["--data", str(labels), "--from", str(unfinished), "-o", str(tmp_path / "run")]
    for command in (["train", "finetune"], ["evaluate", "--labels", "4"]):
        for option, value, has in (
            ("backbone", "ViT-B-32", TINY_CLIP),
            ("normalization", "clip", "imagenet"),
        ):
            shown = CliRunner().invoke(app, [*command, *common, f"--{option}", value])
            assert shown.exit_code == 2, shown.output
            assert f"--{option} {value} contradicts --from {unfinished}, which has {has}" in shown.stderr
    shown = CliRunner().invoke(app, ["train", "finetune", *common, "--normalization", "imagenet"])
    assert shown.exit_code == 1 and "unfinished run" in shown.stderr  # no contradiction


def test_choosing_on_a_test_part_that_is_not_there_is_refused(tmp_path: Path) -> None:
    labels = write_labelled(tmp_path / "data", 10)
    for options in (["--select-on-test"], ["--preset", "reference"]):
        words = ["train", "finetune", "--data", str(labels), "--test-fraction", "0", *options]
        shown = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "run")])
        assert shown.exit_code == 2 and "there is none, as with --test-fraction 0" in shown.stderr
    config = FinetuneConfig.of("embedded-l0", epochs=1, select_on="test")
    with pytest.raises(UsageError, match="none, as with --test-fraction 0"):
        run_finetune(tmp_path / "run", CHOICE, None, read_csv(labels), SplitConfig(6, 0.0), config)


def test_the_target_set_chooses_the_epoch_where_it_is_asked_to(tmp_path: Path) -> None:
    data = read_csv(write_labelled(tmp_path / "data", 8))
    tasks = [memory_task(str(i), 2, 2, size=256, seed=i) for i in range(2)]
    config = MetaConfig(epochs=2, support_batch=4, query_batch=4, held_out=0, inner_lr=1e-2, outer_lr=1.0)
    result = run_pretrain(
        tmp_path / "run", CHOICE, [tasks], {}, config, target=data, preset="reference", curves="png"
    )
    judged = [entry["srcc"] for entry in result["history"]]
    assert result["best_srcc"] == max(judged) and len(judged) == 2
    assert "target set, test pictures included" in result["leaks"][0]
    found = json.loads((tmp_path / "run" / "config.json").read_text())
    assert found["meta_select_on"] == "target set" and found["leaks"] == result["leaks"]
    assert found["preset"] == "reference" and found["target"]["name"] == data.name
    # The leak travels with what is fine-tuned from there.
    split, tuning = (
        SplitConfig(6, 0.25, 0.34),
        FinetuneConfig.of(TINY_CLIP, epochs=1, lr=0.01, qgr=False),
    )
    tuned = run_finetune(tmp_path / "tuned", CHOICE, tmp_path / "run", data, split, tuning)
    assert tuned["leaks"] == result["leaks"]
    with pytest.raises(CheckpointError, match='meta_select_on was "target set", now "held-out tasks"'):
        run_pretrain(tmp_path / "run", CHOICE, [tasks], {}, config, resume=True)
