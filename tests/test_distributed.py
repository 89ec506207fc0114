"""Several processes: the same prompts and weights as one, one line when one fails, resuming together."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import helpers_process
import numpy as np
import pytest
import torch
from conftest import until
from helpers_process import COMMAND, EAGER, RANDOM, Process, environment, run
from helpers_train import Tensors, tiny_model, write_labelled
from safetensors.torch import load_file

from grmp_edge.train.network.losses import quality_loss, semantic_loss
from grmp_edge.train.session.ranks import Team

TESTS = Path(__file__).resolve().parent

# What every rank runs: a tiny model learns, rank 0 writes what came out.
LEARN = """
import sys
sys.path.insert(0, {tests!r})
import torch
from pathlib import Path
from safetensors.torch import save_file
from helpers_train import memory_task, parameters_of, pictures, tiny_model
from test_finetune import part
from grmp_edge.train.session.checkpoint import CheckpointWriter
from grmp_edge.train.session.ranks import joined
from grmp_edge.train.finetune.config import FinetuneConfig
from grmp_edge.train.finetune.loop import finetune
from grmp_edge.train.meta import MetaConfig, meta_train
from grmp_edge.train.network.settings import PromptConfig

torch.set_num_threads(1)
with joined("cpu") as team:
    for reset, cache in ((True, 2 << 30), (False, 0)):
        model = tiny_model(prompts=PromptConfig(visual_tokens=5, dropout=0.2))
        config = MetaConfig(epochs=2, support_batch=5, query_batch=3, held_out=0.25, inner_lr=1e-3,
                            outer_lr=0.5, reset_per_task=reset)
        tasks = [memory_task(str(i), 4, 3, seed=i) for i in range(5)]
        history = meta_train(model, [tasks[:3], tasks[3:]], config)
        found = {{"prompt." + n: v for n, v in parameters_of(model).items()}}
        # Batches of 4 of 7 pictures: shares of different size.
        state = finetune(model, part(7), part(5, seed=4),
                         FinetuneConfig(epochs=8, evaluate_every=2, batch=4, lr=0.05, cache_bytes=cache,
                                        # Apart: QGR's choices turn on rounding where a product is near 0.
                                        qgr=reset, calibration_steps=0 if reset else 5))
        found |= {{"weight." + n: v for n, v in parameters_of(model).items()}}
        told = {{"told": history + state.progress["history"]}}
        folder = Path({folder!r}) / f"{{reset}}-{{team.rank}}"
        CheckpointWriter(folder, told).save(state)
        save_file({{n: v.contiguous() for n, v in found.items()}}, folder / "found.safetensors")
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(*arguments: object, size: int, code: str = COMMAND) -> list[Process]:
    """The ranks as a user without torchrun starts them."""
    team = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": free_port()}
    common = {name: str(value) for name, value in team.items()} | {"MASTER_ADDR": "127.0.0.1"}
    return [
        helpers_process.start(*arguments, code=code, **common, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank in range(size)
    ]


def ended(processes: Sequence[Process]) -> list[tuple[int, str, str]]:
    """(status, stdout, stderr) by rank."""
    said = [process.communicate() for process in processes]
    return [(process.returncode or 0, *words) for process, words in zip(processes, said, strict=True)]


def learn(folder: Path, size: int) -> None:
    folder.mkdir()
    code = LEARN.format(tests=str(TESTS), folder=str(folder))
    processes = start(size=size, code=code) if size > 1 else [helpers_process.start(code=code)]
    for status, _, err in ended(processes):
        assert status == 0, err


def learned(folder: Path, reset: bool, rank: int) -> tuple[Tensors, list[dict[str, float]]]:
    found = folder / f"{reset}-{rank}"
    return load_file(found / "found.safetensors"), json.loads((found / "config.json").read_text())["told"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same learning by one process and by three."""
    folder = tmp_path_factory.mktemp("learned")
    learn(folder / "alone", 1)
    learn(folder / "together", 3)
    return folder


@pytest.mark.parametrize("reset", [True, False])
def test_any_number_of_ranks_learns_what_one_does(runs: Path, reset: bool) -> None:
    alone, told = learned(runs / "alone", reset, 0)
    together = [learned(runs / "together", reset, rank)[0] for rank in range(3)]
    said = learned(runs / "together", reset, 0)[1]
    before = dict(tiny_model().named_parameters())
    for other in together[1:]:
        assert all(torch.equal(value, other[name]) for name, value in together[0].items())
    moved = 0
    for name, value in alone.items():
        shift = (value - before[name.split(".", 1)[1]]).abs().max()
        moved += bool(shift > 1e-4)
        assert (together[0][name] - value).abs().max() <= 1e-6 + 1e-4 * shift, name
    assert moved > 20
    assert len(said) == len(told) == 2 + 4
    for found, expected in zip(said, told, strict=True):
        assert found.keys() == expected.keys()
        for key, number in expected.items():
            # A correlation of four nearly equal scores moves further than the scores.
            assert found[key] == pytest.approx(number, rel=1e-3, abs=1e-5), key


def test_losses_of_shares_add_up_to_the_mean() -> None:
    rng = torch.Generator().manual_seed(0)
    logits, quality = torch.randn(7, 2, generator=rng), torch.rand(7, generator=rng)
    scenes, teacher = torch.randn(7, 9, generator=rng), torch.randn(7, 9, generator=rng)
    p = logits.double().softmax(-1)[:, 0]
    plain = -(quality * p.log() + (1 - quality) * (1 - p).log()).mean()
    shares = sum(quality_loss(logits[at], quality[at], 7) for at in (slice(0, 3), slice(3, 7)))
    assert float(shares) == pytest.approx(float(plain), rel=1e-6)
    q, t = scenes.double().softmax(-1), teacher.double().softmax(-1)
    shares = sum(semantic_loss(scenes[at], teacher[at], 7) for at in (slice(0, 1), slice(1, 7)))
    assert float(shares) == pytest.approx(float(-(t * q.log()).sum(-1).mean()), rel=1e-6)


OPTIONS = [*RANDOM, "--curves", "none"]
TASKS = ["--distortions", "jpeg,gaussian_blur", "--max-photos", "2", "--meta-epochs", "1"]


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labelled(tmp_path_factory.mktemp("data"), 10)


def torchrun(*arguments: object) -> list[object]:
    return [
        "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1",
        "--master-port", free_port(), *arguments,
    ]  # fmt: skip


# What torchrun starts: it hands its environment to the test, which forks the rank from a process that has
# torch, and ends as that does.
RANK = """
import json, os, sys
from pathlib import Path
rank = Path(sys.argv[1], os.environ["RANK"])
rank.write_text(json.dumps(dict(os.environ)))
rank.rename(rank.with_suffix(".begun"))
sys.exit(int(rank.with_suffix(".ended").read_text()))
"""


def test_torchrun_trains_both_stages(tmp_path: Path, labels: Path) -> None:
    common = ["train", *OPTIONS, "--data", labels, "--epochs", "2", "--lr", "0.01", *TASKS, "--json"]
    program = tmp_path / "program.py"
    program.write_text(RANK)
    for rank in range(2):
        os.mkfifo(tmp_path / f"{rank}.ended")
    launcher = subprocess.Popen([sys.executable, *map(str, torchrun(program, tmp_path))], env=environment())
    try:
        begun = [tmp_path / "0.begun", tmp_path / "1.begun"]
        until(lambda: all(file.exists() for file in begun) or launcher.poll() is not None, 300)
        variables = [json.loads(file.read_text()) for file in begun]
        told = ended([helpers_process.start(*common, "-o", tmp_path / "two", **each) for each in variables])
        for rank, (status, _, _) in enumerate(told):
            (tmp_path / f"{rank}.ended").write_text(str(status))
        assert launcher.wait(60) == 0, told
    finally:
        launcher.terminate()
        launcher.wait(60)
    (line,) = "".join(out for _, out, _ in told).splitlines()  # of one rank, not of both
    said = json.loads(line)
    assert "".join(err for _, _, err in told).count("next: grmp-edge export") == 1
    alone = run(*common, "-o", tmp_path / "one")
    assert alone.returncode == 0, alone.stderr
    expected = json.loads(alone.stdout)
    for part, found in expected["metrics"].items():
        flat = {**found, "srcc_interval": None}
        assert {**said["metrics"][part], "srcc_interval": None} == pytest.approx(flat, abs=1e-4), part
        assert said["metrics"][part]["srcc_interval"] == pytest.approx(found["srcc_interval"], abs=1e-4)
    for folder in ("", "pretrain"):
        one, two = (load_file(tmp_path / name / folder / "weights.safetensors") for name in ("one", "two"))
        assert all(torch.allclose(value, two[name], rtol=1e-4, atol=1e-5) for name, value in one.items())
    settings = json.loads((tmp_path / "two" / "config.json").read_text())
    assert settings["finetune"]["precision"] == "fp32"


@pytest.mark.parametrize("options", [["--method", "head"], ["--method", "qgr", "--epochs", "2"]])
def test_ranks_evaluate_as_one_does(tmp_path: Path, labels: Path, options: list[str]) -> None:
    common = ["evaluate", *RANDOM, "--data", labels, "--splits", "2", "--labels", "0,6", "--no-mpp", "--json"]
    common += options
    said = ended(start(*common, "-o", tmp_path / "two", size=2))
    assert [status for status, _, _ in said] == [0, 0], said
    alone = run(*common, "-o", tmp_path / "one")
    assert alone.returncode == 0, alone.stderr
    found, expected = json.loads(said[0][1]), json.loads(alone.stdout)
    assert said[1][1:] == ("", "")
    assert len(found["splits"]) == len(expected["splits"]) == 4
    names, same = (
        sorted(file.relative_to(tmp_path / which) for file in (tmp_path / which).rglob("?-0?.json"))
        for which in ("one", "two")
    )
    assert len(names) == 4 and names == same
    for name in names:
        one, two = (json.loads((tmp_path / which / name).read_bytes()) for which in ("one", "two"))
        assert two["predictions"]["index"] == one["predictions"]["index"]
        assert two["predictions"]["value"] == pytest.approx(one["predictions"]["value"], abs=1e-4)
    assert not (tmp_path / "two" / "runs").exists()


def test_what_is_seen_is_shared(labels: Path) -> None:
    """Each rank looks at its own pictures alone, and has all of them."""
    code = f"""
import json, torch
from pathlib import Path
from grmp_edge.train.data.labelled import Labelled, read_csv
from grmp_edge.train.finetune.seen import see_labelled
from grmp_edge.train.network.backbone import BackboneConfig
from grmp_edge.train.runs import ModelConfig, build_network
from grmp_edge.train.session.ranks import joined
torch.set_num_threads(1)
read, plain = [], Labelled.picture
Labelled.picture = lambda self, index: (read.append(index), plain(self, index))[1]
with joined("cpu") as team:
    network, _ = build_network(ModelConfig.of(BackboneConfig("embedded-l0", "random"), device="cpu"))
    seen = see_labelled(network, read_csv(Path({str(labels)!r})), [4, 2, 5, 7, 1])
    print(json.dumps([read, seen.logits.tolist(), float(seen.statistics.sum()), seen.features[3].tolist()]))
"""
    one = json.loads(run(code=code).stdout)
    two = [json.loads(out) for _, out, _ in ended(start(size=2, code=code))]
    assert [one[0], two[0][0], two[1][0]] == [[4, 2, 5, 7, 1], [4, 5, 1], [2, 7]]
    for found in two:
        assert found[1] == pytest.approx(one[1]) and found[2] == pytest.approx(one[2])
        assert found[3] == pytest.approx(one[3])


def tuning(labels: Path, folder: Path, *more: object) -> list[object]:
    options = ["--labels", "6", "--epochs", "12", "--no-qgr", "--lr", "0.01", "-o", folder, *more]
    return ["train", "finetune", *OPTIONS, "--data", labels, *options]


def wait_for(file: Path, processes: Sequence[Process]) -> None:
    until(lambda: file.exists() or any(process.poll() is not None for process in processes), 300)
    assert file.exists(), [process.communicate() for process in processes]


def errors(said: Sequence[tuple[int, str, str]]) -> list[str]:
    return [line for _, _, err in said for line in err.splitlines() if line.startswith("error: ")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, labels: Path) -> Tensors:
    """The weights of two ranks that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    said = ended(start(*tuning(labels, folder), size=2, code=EAGER))
    assert [status for status, _, _ in said] == [0, 0], said
    assert said[1][1:] == ("", "")
    return load_file(folder / "weights.safetensors")


@pytest.mark.parametrize("kind", ["killed", "interrupted"])
def test_stopped_ranks_resume_together(tmp_path: Path, labels: Path, whole: Tensors, kind: str) -> None:
    folder = tmp_path / "stopped"
    ranks = start(*tuning(labels, folder), size=2, code=EAGER)
    wait_for(folder / "config.json", ranks)
    if kind == "killed":
        ranks[1].send_signal(signal.SIGKILL)
    else:
        for rank in ranks:
            rank.send_signal(signal.SIGINT)
    said = ended(ranks)
    assert "Traceback" not in said[0][2] + said[1][2]
    (line,) = errors(said)
    if kind == "killed":
        assert said[0][0] == 1
        assert "lost the other processes of this training" in line and "--resume" in line
    else:
        assert [status for status, _, _ in said] == [130, 130]
        assert line == "error: interrupted"
        assert "the same command with --resume continues" in said[0][2]  # whichever rank was first to go
        return  # resuming is the same
    assert json.loads((folder / "config.json").read_text())["progress"]["complete"] is False
    again = ended(start(*tuning(labels, folder, "--resume"), size=2, code=EAGER))
    assert [status for status, _, _ in again] == [0, 0], again
    weights = load_file(folder / "weights.safetensors")
    assert weights.keys() == whole.keys()
    assert all(torch.equal(value, weights[name]) for name, value in whole.items())


def test_a_bad_csv_is_told_once(tmp_path: Path, labels: Path) -> None:
    csv = tmp_path / "labels.csv"
    csv.write_text("image,mos\nnone.png,1\n")
    said = ended(start("train", "--data", csv, "-o", tmp_path / "run", *OPTIONS, size=2))
    assert [status for status, _, _ in said] == [1, 1]
    (line,) = errors(said)
    assert line.startswith(f"error: {csv}:2: picture 'none.png' is not in ")
    assert "Traceback" not in said[0][2] + said[1][2]


def test_an_incomplete_environment_is_told(tmp_path: Path, labels: Path) -> None:
    process = helpers_process.start(
        "train",
        "--data",
        labels,
        "-o",
        tmp_path / "run",
        WORLD_SIZE="2",
        RANK="0",
        LOCAL_RANK="0",
        MASTER_PORT="1",
    )
    _, err = process.communicate()
    assert process.returncode == 2
    assert err.strip() == (
        "error: WORLD_SIZE is 2, but MASTER_ADDR is not set; start with torchrun, or set it"
    )


def test_work_is_divided_without_rest() -> None:
    owners = np.array([[Team(rank, 3).mine(number) for number in range(20)] for rank in range(3)])
    assert (owners.sum(axis=0) == 1).all()
    assert sorted(owners.sum(axis=1)) == [6, 7, 7]
