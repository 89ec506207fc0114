"""The command ``train`` as a user meets it, in processes of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import until
from helpers_process import EAGER, RANDOM, ROOT, environment, run, start
from helpers_train import Tensors, write_labelled
from safetensors.torch import load_file

QUICK = [*RANDOM, "--curves", "none"]  # drawing them takes longer than these runs
TASKS = ["--distortions", "jpeg,gaussian_blur", "--max-photos", "2", "--meta-epochs", "1"]


def strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labelled(tmp_path_factory.mktemp("data"), 10)


def test_both_stages_then_each_alone(tmp_path: Path, labels: Path) -> None:
    both = tmp_path / "both"
    common = [*QUICK, "--data", labels, "--epochs", "1", "--lr", "0.01"]
    done = run("train", *common, *TASKS, "-o", both, "--json")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    said = strict(line)
    assert said["checkpoint"] == str(both)
    assert said["stage"] == "finetune"
    assert said["complete"] is True
    assert {"train", "test", "zero_shot_test"} <= set(said["metrics"])
    for word in ("meta-pre-training: 2 steps", "fine-tuning: 1 steps", "2 tasks of 12 pictures"):
        assert word in done.stderr
    assert done.stderr.splitlines()[-1] == f"next: grmp-edge export {both} --fp16 -o bundles/both"
    for folder in (both, both / "pretrain"):
        strict((folder / "config.json").read_text())

    first = tmp_path / "first"
    one = ["--distortions", "jpeg", *TASKS[2:]]
    alone = run("train", "pretrain", *QUICK, *one, "-o", first)
    assert alone.returncode == 0, alone.stderr
    assert alone.stdout == ""
    assert f"next: grmp-edge train finetune --from {first} --data LABELS.csv" in alone.stderr
    second = tmp_path / "second"
    start = both / "pretrain"
    tuned = run("train", "finetune", *common, "--from", start, "-o", second)
    assert tuned.returncode == 0, tuned.stderr
    assert "SRCC" in tuned.stdout
    # One command does what the two do.
    weights = [load_file(folder / "weights.safetensors") for folder in (both, second)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())

    again = run("train", "finetune", *common, "-o", second)
    assert again.returncode == 1
    assert again.stderr.strip().splitlines()[-1].startswith(f"error: {second}: already holds a training run")
    other = run("train", "finetune", *common, "--from", start, "-o", second, "--seed", "1", "--resume")
    assert other.returncode == 1
    assert "cannot resume, " in other.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"bad": "3.png,good"}, 1, "labels.csv:5: the score 'good' is not a number"),
        ({"options": ["--labels", "11"]}, 1, "11 labels requested, 10 are left"),
        ({"options": ["--mos-range", "9,1"]}, 2, "--mos-range '9,1' is not a range"),
        ({"options": ["--mos-range", "0,10"]}, 1, "is outside 0..10"),
        ({"before": ["--seed", "3"]}, 2, "--seed stands before 'finetune'"),
        ({"options": ["--backbone", "RN50"]}, 1, "backbone 'RN50'"),
        ({"options": ["--from", "nowhere"]}, 1, "nowhere: no such checkpoint"),
    ],
)
def test_one_clear_line(tmp_path: Path, change: dict[str, Any], status: int, said: str) -> None:
    csv = write_labelled(tmp_path, 10)
    lines = csv.read_text().splitlines()
    if "bad" in change:
        lines[4] = change["bad"]
        csv.write_text("\n".join(lines))
    options = [*RANDOM, "--data", csv, "-o", tmp_path / "run", *change.get("options", [])]
    done = run("train", *change.get("before", []), "finetune", *options)
    assert done.returncode == status
    assert done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert done.stderr.splitlines()[-1] == errors[0]
    assert said in errors[0]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_no_data_and_a_bad_csv_are_told_before_the_first_stage(tmp_path: Path) -> None:
    nothing = run("train", "-o", tmp_path / "run")
    assert nothing.returncode == 2
    assert nothing.stderr.strip() == (
        "error: training needs labelled pictures; give a csv with the columns image,mos: --data FILE"
    )
    csv = tmp_path / "labels.csv"
    csv.write_text("image,mos\nnone.png,1\n")
    bad = run("train", "--data", csv, "-o", tmp_path / "run", *RANDOM, *TASKS)
    assert bad.returncode == 1
    (line,) = bad.stderr.strip().splitlines()
    assert line.startswith(f"error: {csv}:2: picture 'none.png' is not in ")


def test_without_the_extra_one_line_names_it(tmp_path: Path, labels: Path) -> None:
    """An installation without the train extra: every package of this one but those that it brings."""
    site = tmp_path / "site"
    site.mkdir()
    for folder in map(Path, (np.__path__[0], torch.__path__[0])):
        for entry in folder.parent.iterdir():
            if not entry.name.startswith(
                ("torch", "open_clip", "safetensors", "functorch", "grmp_edge", "__")
            ):
                target = site / entry.name
                if not target.exists():
                    target.symlink_to(entry)
    variables = environment(PYTHONPATH=f"{ROOT}{os.pathsep}{site}")
    for stage in ([], ["finetune"]):
        words = ["train", *stage, "--data", str(labels), "-o", str(tmp_path / "run")]
        bare = [sys.executable, "-S", "-m", "grmp_edge"]
        done = subprocess.run([*bare, *words], capture_output=True, text=True, env=variables)
        assert done.returncode == 1
        (line,) = done.stderr.strip().splitlines()
        assert line == (
            "error: training needs the package 'torch', which is not installed; "
            f"run: {sys.executable} -m pip install -e '{ROOT}[train]'"
        )


def progress_of(folder: Path) -> dict[str, Any]:
    try:
        progress: dict[str, Any] = json.loads((folder / "config.json").read_text())["progress"]
        return progress
    except FileNotFoundError:
        return {}


def stopped(folder: Path, arguments: Sequence[object], number: signal.Signals) -> tuple[int, str, str]:
    """Start, wait for the first save, send the signal; returns the finished process's words."""
    process = start(*arguments, code=EAGER)
    until(lambda: process.poll() is not None or bool(progress_of(folder)), 300)
    process.send_signal(number)
    out, err = process.communicate()
    return process.returncode or 0, out, err


def tuning(labels: Path, folder: Path, *more: object) -> list[object]:
    options = ["--labels", "6", "--epochs", "12", "--no-qgr", "--lr", "0.01", "-o", folder]
    return ["train", "finetune", *QUICK, "--data", labels, *options, *more]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, labels: Path) -> Tensors:
    """The weights of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = run(*tuning(labels, folder), code=EAGER)
    assert done.returncode == 0, done.stderr
    return load_file(folder / "weights.safetensors")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_stopped_runs_resume_to_the_same_weights(
    tmp_path: Path, labels: Path, whole: Tensors, number: signal.Signals
) -> None:
    folder = tmp_path / "stopped"
    status, out, err = stopped(folder, tuning(labels, folder), number)
    assert not progress_of(folder)["complete"]
    assert out == ""
    if number == signal.SIGINT:
        assert status == 130
        assert err.splitlines()[-1] == "error: interrupted"
        assert "--resume" in err.splitlines()[-2]
        assert "Traceback" not in err
    else:
        assert status == -signal.SIGKILL
    again = run(*tuning(labels, folder, "--resume", "--json"), code=EAGER)
    assert again.returncode == 0, again.stderr
    assert strict(again.stdout)["complete"] is True
    weights = load_file(folder / "weights.safetensors")
    assert weights.keys() == whole.keys()
    assert all(torch.equal(value, weights[name]) for name, value in whole.items())


def test_a_finished_run_takes_more_epochs(tmp_path: Path, labels: Path, whole: Tensors) -> None:
    folder = tmp_path / "grown"
    short = [word if word != "12" else "5" for word in tuning(labels, folder)]
    assert run(*short, "--curves", "png").returncode == 0
    assert (folder / "curves.png").stat().st_size > 1000
    fewer = run(*[word if word != "12" else "4" for word in tuning(labels, folder)], "--resume")
    assert fewer.returncode == 1 and "epochs may only be raised" in fewer.stderr
    grown = run(*tuning(labels, folder, "--resume"))
    assert grown.returncode == 0, grown.stderr
    weights = load_file(folder / "weights.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in whole.items())


def test_help_names_the_stages_and_their_options() -> None:
    words = [sys.executable, "-m", "grmp_edge", "train", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment())
    assert done.returncode == 0
    for word in (
        "pretrain",
        "finetune",
        "presets",
        "--resume",
        "--lambda",
        "--photos",
        "--select-on-test",
        "--preset",
        "--curves",
    ):
        assert word in done.stdout
