"""Meta-prompt pre-training against a plain loop with a hand-written Adam."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import UInt8Array
from helpers_train import PROMPTS, TINY_CLIP, Stop, Tensors, memory_task, parameters_of, tiny_model

from grmp_edge.errors import CheckpointError, DataError, UsageError
from grmp_edge.metrics import srcc
from grmp_edge.train import meta as meta_module
from grmp_edge.train.meta import MetaConfig, adapt, evaluate_tasks, hold_out, meta_train
from grmp_edge.train.network.backbone import BackboneConfig
from grmp_edge.train.network.model import GrmpIqa
from grmp_edge.train.network.settings import PromptConfig
from grmp_edge.train.pictures.smooth import smooth_squash
from grmp_edge.train.runs import ModelConfig, run_pretrain
from grmp_edge.train.session.checkpoint import CheckpointWriter
from grmp_edge.train.session.progress import Silent
from grmp_edge.train.tasks import PictureCache, Squash, Task, query_batches, support_batches

SQUASHES: tuple[Squash, ...] = ("bicubic", "antialiased")
SMALL = MetaConfig(epochs=2, support_batch=5, query_batch=2, held_out=0, inner_lr=1e-3, outer_lr=0.1)


class Adam:
    """Kingma and Ba's algorithm 1, by hand."""

    def __init__(self, parameters: Mapping[str, torch.Tensor], lr: float) -> None:
        self.parameters, self.lr, self.t = parameters, lr, 0
        self.m = {n: torch.zeros_like(p) for n, p in parameters.items()}
        self.v = {n: torch.zeros_like(p) for n, p in parameters.items()}

    def step(self, gradients: Tensors) -> None:
        self.t += 1
        for name, g in gradients.items():
            self.m[name] = 0.9 * self.m[name] + 0.1 * g
            self.v[name] = 0.999 * self.v[name] + 0.001 * g * g
            m_hat = self.m[name] / (1 - 0.9**self.t)
            v_hat = self.v[name] / (1 - 0.999**self.t)
            with torch.no_grad():
                self.parameters[name] -= self.lr * m_hat / (v_hat.sqrt() + 1e-8)


def plain_loss(model: GrmpIqa, batch: Any) -> torch.Tensor:
    """From probabilities of the unfolded network: the slow way round."""
    p: torch.Tensor = model(torch.from_numpy(batch.images), unfolded=True)
    y = torch.from_numpy(batch.quality)
    return -(y * p.log() + (1 - y) * (1 - p).log()).mean()


def plain_meta(model: GrmpIqa, phases: Any, config: MetaConfig) -> Any:
    parameters = dict(model.prompt_parameters())
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    theta = {n: p.detach().clone() for n, p in parameters.items()}
    inner = theta
    adam = Adam(parameters, config.inner_lr)
    for epoch in range(config.epochs):
        for number, phase in enumerate(phases):
            order = np.random.default_rng([config.seed, epoch, number]).permutation(len(phase))
            ends = []
            for visited in order:
                task = phase[visited]
                with torch.no_grad():
                    for name, parameter in parameters.items():
                        parameter.copy_(theta[name] if config.reset_per_task else inner[name])
                rng = np.random.default_rng([config.seed, epoch, number, visited])
                rng.integers(2**62)  # the seed of dropout, which is off here
                support, query = task.split(0.8, rng)
                queries = list(query_batches(task, query, model.image.size, config.query_batch))
                if number > 0 or not config.carry_adam:
                    adam = Adam(parameters, config.inner_lr)
                batches = support_batches(task, support, model.image.size, config.support_batch, rng)
                for step, batch in enumerate(batches):
                    for part in (batch, queries[step % len(queries)]):
                        loss = plain_loss(model, part)
                        gradients = torch.autograd.grad(loss, list(parameters.values()))
                        adam.step(dict(zip(parameters, gradients, strict=True)))
                inner = {n: p.detach().clone() for n, p in parameters.items()}
                ends.append(inner)
            theta = {
                n: theta[n] - config.outer_lr * sum(theta[n] - end[n] for end in ends) / len(ends)
                for n in theta
            }
    return theta


@pytest.mark.parametrize(("reset", "carry"), [(True, False), (False, False), (False, True), (True, True)])
def test_a_whole_run_is_the_plain_loop(reset: bool, carry: bool) -> None:
    config = replace(SMALL, reset_per_task=reset, carry_adam=carry)
    phases = [
        [memory_task("a", seed=1), memory_task("b", seed=2)],
        [memory_task("c", 4, 2, seed=3), memory_task("d", 4, 2, seed=4)],
    ]
    start = parameters_of(tiny_model())
    expected = plain_meta(tiny_model(), phases, config)
    model = tiny_model()
    history = meta_train(model, phases, config)
    for name, value in expected.items():
        found = dict(model.named_parameters())[name].detach()
        moved = (value - start[name]).abs().max()
        assert moved > 1e-5
        # Adam's first steps have size lr whatever the gradient: where it is nearly 0 its sign may differ.
        assert (found - value).abs().max() < 0.02 * moved, name
        assert (found - value).abs().mean() < 1e-3 * moved, name
    assert [entry["epoch"] for entry in history] == [1, 2]
    assert all(entry["srcc"] is None and entry["loss"] > 0 for entry in history)


def test_the_carried_optimiser_by_hand() -> None:
    """Two tasks, two phases, two epochs, one number: f(x) = a x, so every gradient is a, whatever x is."""

    class Line(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))

    slopes, lr, beta = {(0, 0): 1.0, (0, 1): -3.0, (1, 0): 0.5, (1, 1): 2.0}, 0.1, 0.5

    def steps(state: tuple[int, float, float], g: float) -> tuple[tuple[int, float, float], float]:
        """Support and query: two steps of Kingma and Ba's algorithm, and how far they move."""
        t, m, v = state
        moved = 0.0
        for _ in range(2):
            t, m, v = t + 1, 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            moved -= lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)) ** 0.5 + 1e-8)
        return (t, m, v), moved

    def by_hand(carry: bool) -> list[float]:
        theta, inner, state, found = 0.0, 0.0, (0, 0.0, 0.0), []
        for epoch in range(2):
            for phase in range(2):
                ends = []
                for task in np.random.default_rng([0, epoch, phase]).permutation(2).tolist():
                    if phase == 1 or not carry:
                        state = (0, 0.0, 0.0)
                    state, moved = steps(state, slopes[phase, task])
                    inner += moved  # never reset, as released
                    ends.append(inner)
                theta -= beta * sum(theta - end for end in ends) / 2
                found.append(theta)
        return found

    def by_code(carry: bool) -> float:
        line = Line()
        visits = iter(
            [
                slopes[phase, task]
                for epoch in range(2)
                for phase in range(2)
                for task in np.random.default_rng([0, epoch, phase]).permutation(2).tolist()
            ]
        )

        def two_steps(*given: Any) -> float:
            optimiser, slope = given[5], next(visits)
            for _ in range(2):
                optimiser.zero_grad()
                torch.autograd.backward((slope * line.x).sum())
                optimiser.step()
            return 0.0

        model: Any = line
        model.prompt_parameters = line.named_parameters
        config = replace(SMALL, inner_lr=lr, outer_lr=beta, reset_per_task=False, carry_adam=carry)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(meta_module, "adapt", two_steps)
            tasks = [[memory_task(f"{phase}{task}") for task in range(2)] for phase in range(2)]
            meta_train(model, tasks, config)
        return float(line.x.detach())

    carried, fresh = by_hand(True), by_hand(False)
    assert by_code(True) == pytest.approx(carried[-1], abs=1e-12)
    assert by_code(False) == pytest.approx(fresh[-1], abs=1e-12)
    # What the carried moments of the first task do to the second one's steps is no small matter.
    assert abs(carried[0] - fresh[0]) > 0.1 * abs(fresh[0])


def test_the_released_squash_is_scikit_images() -> None:
    transform = pytest.importorskip("skimage.transform")
    rng = np.random.default_rng(0)
    for height, width, side in ((500, 375, 224), (60, 90, 74), (30, 500, 64), (9, 9, 32), (1, 40, 32)):
        picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        expected = transform.resize(picture, (side, side))  # floats, anti-aliased, bilinear: its defaults
        np.testing.assert_allclose(smooth_squash(picture, side) / 255, expected, atol=2e-6)
    task = memory_task("a", size=90)
    (plain,) = query_batches(task, [3], 32, 5, PictureCache())
    (smooth,) = query_batches(task, [3], 32, 5, PictureCache(squash="antialiased"))
    np.testing.assert_allclose(smooth.images[0] / 255, transform.resize(task.read(3), (32, 32)), atol=2e-6)
    assert plain.images.dtype == np.uint8 and smooth.images.dtype == np.float32
    # And it reaches the network: other pixels, another loss.
    losses = [meta_train(tiny_model(), [[task]], replace(SMALL, squash=s))[0]["loss"] for s in SQUASHES]
    assert losses[0] != losses[1]


def test_offsets_leave_the_last_one_out() -> None:
    """Every pixel's red is its column, its green its row: a cut's corner tells its offsets."""
    rows, columns = np.mgrid[0:256, 0:256].astype(np.uint8)
    picture = np.stack([columns, rows, rows], -1)
    task = Task("a", ("r",) * 400, np.zeros(400, np.float32), lambda index: picture)
    cache = PictureCache(1 << 30)
    cache.squashed(task, [0], 256)
    cache.cached |= {
        (key[0], index, 256): value for key, value in cache.cached.items() for index in range(400)
    }
    seen = []
    for batch in support_batches(task, range(400), 224, 40, np.random.default_rng(0), cache):
        seen += [(int(one[0, :, 0].min()), int(one[0, 0, 1])) for one in batch.images]
    assert {column for column, _ in seen} == {row for _, row in seen} == set(range(32))


def test_labels_apart_fill_the_scale_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    task = memory_task("a")
    told: list[tuple[int, list[float]]] = []

    def watch(model: GrmpIqa, optimizer: object, batch: Any, *rest: object) -> float:
        told.append((len(batch.images), batch.quality.tolist()))
        return 0.5

    monkeypatch.setattr(meta_module, "_step", watch)
    for apart in (False, True):
        told.clear()
        adapt(tiny_model(), task, replace(SMALL, labels_apart=apart, support_batch=75), [7])
        rng = np.random.default_rng([7])
        rng.integers(2**62)
        for found, part in zip(told, task.split(0.8, rng), strict=True):
            labels = task.quality[part[: found[0]]].astype(float)
            whole = task.quality[part].astype(float)
            scaled = (labels - whole.min()) / (whole.max() - whole.min())
            np.testing.assert_allclose(found[1], scaled if apart else labels, atol=1e-6)


def test_reset_and_no_reset_differ() -> None:
    ends = []
    for reset in (True, False):
        model = tiny_model()
        tasks = [[memory_task("a", seed=1), memory_task("b", seed=2)]]
        meta_train(model, tasks, MetaConfig(**{**SMALL.__dict__, "reset_per_task": reset}))
        ends.append(parameters_of(model))
    assert not torch.allclose(ends[0]["ctx"], ends[1]["ctx"], atol=1e-6)


def test_only_the_prompts_move() -> None:
    model = tiny_model(prompts=PromptConfig(visual_tokens=5, dropout=0.1))
    before = parameters_of(model)
    meta_train(model, [[memory_task("a", seed=1)]], SMALL)
    prompts = {"ctx", "prompt_embeddings", "deep_prompt_embeddings", "prompt_proj.weight",
               "prompt_proj.bias", "prompt_norm.weight", "prompt_norm.bias"}  # fmt: skip
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]) == (name not in prompts), name
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training


def test_support_and_query_share_no_reference() -> None:
    task = memory_task("a", references=5, each=3)
    seen = set()
    for seed in range(30):
        support, query = task.split(0.8, np.random.default_rng(seed))
        owners = [{task.references[i] for i in part} for part in (support, query)]
        assert not owners[0] & owners[1]
        assert sorted(support + query) == list(range(15))
        assert (len(support), len(query)) == (12, 3)
        seen.add(tuple(sorted(query)))
    assert len(seen) == 5  # redrawn at every visit


def test_two_references_leave_one_on_each_side() -> None:
    task = memory_task("a", references=2)
    support, query = task.split(0.99, np.random.default_rng(0))
    assert len(support) == len(query) == 3


def test_support_is_augmented_and_query_is_not() -> None:
    size, side = 32, 37  # round(32 * 256 / 224)
    task = memory_task("a", references=4, each=3, size=side)
    rng = np.random.default_rng(0)
    (batch,) = support_batches(task, range(12), size, 75, rng)
    assert batch.images.shape == (12, size, size, 3)
    found = []
    for i, image in enumerate(batch.images):
        for flip in (False, True):
            plain = image[:, ::-1] if flip else image
            found += [
                (i, top, left, flip)
                for top in range(side - size + 1)
                for left in range(side - size + 1)
                if np.array_equal(task.read(i)[top : top + size, left : left + size], plain)
            ]
    assert [entry[0] for entry in found] == list(range(12))  # each is one cut of its picture
    assert {entry[3] for entry in found} == {False, True}
    assert len({entry[1:3] for entry in found}) > 6
    parts = list(query_batches(task, [3, 1, 2], side, 2))
    assert [len(part.images) for part in parts] == [2, 1]
    assert np.array_equal(parts[0].images[0], task.read(3))
    assert parts[1].quality[0] == task.quality[2]


def test_held_out_tasks_are_not_trained_on_and_choose_the_epoch() -> None:
    reads: dict[str, list[int]] = {name: [] for name in "abcdef"}
    tasks = []
    for number, name in enumerate(reads):
        task = memory_task(name, seed=number)

        def read(index: int, task: Task = task, name: str = name) -> UInt8Array:
            reads[name].append(index)
            return task.read(index)

        tasks.append(type(task)(name, task.references, task.quality, read))
    # The larger step size makes the epochs differ.
    config = MetaConfig(epochs=4, support_batch=6, query_batch=3, held_out=0.3, inner_lr=0.02, outer_lr=1.0,
                        picture_bytes=0)  # fmt: skip
    training, held = hold_out([tasks], config)
    assert len(held) == 2
    assert {t.name for t in held}.isdisjoint(t.name for t in training[0])
    assert len(training[0]) == 4
    model = tiny_model()
    history = meta_train(model, [tasks], config)
    for task in held:
        # Read once in order at each epoch's end, and never otherwise.
        assert sorted(reads[task.name]) == sorted(list(range(15)) * 4)
    values = [entry["srcc"] for entry in history]
    assert len(set(values)) > 1
    scores = [
        model(torch.from_numpy(next(iter(query_batches(t, range(15), 32, 50))).images)).detach().numpy()
        for t in held
    ]
    kept = np.mean([srcc(score, task.quality) for score, task in zip(scores, held, strict=True)])
    assert kept == pytest.approx(max(values), abs=1e-9)
    assert evaluate_tasks(model, held, 4) == pytest.approx(max(values), abs=1e-9)


def test_a_judge_chooses_the_epoch_and_nothing_is_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [memory_task(str(i), seed=i) for i in range(4)]
    config = MetaConfig(epochs=4, support_batch=6, query_batch=3, held_out=0.5, inner_lr=0.02, outer_lr=1.0)
    said, seen, steps, target = iter([0.2, 0.6, 0.4, 0.5]), [], [], memory_task("target", seed=8)

    class Count(Silent):
        def step(self, count: int = 1, **metrics: object) -> None:
            steps.append(count)

    def judged(model: GrmpIqa, judges: list[Task], *rest: object) -> float:
        assert not model.training and judges == [target]
        seen.append(parameters_of(model))
        return next(said)

    monkeypatch.setattr(meta_module, "evaluate_tasks", judged)
    model = tiny_model()
    history = meta_train(model, [tasks], config, reporter=Count(), judge=target)
    assert [entry["srcc"] for entry in history] == [0.2, 0.6, 0.4, 0.5]
    assert sum(steps) == 4 * 4
    kept = parameters_of(model)
    assert all(torch.equal(value, kept[name]) for name, value in seen[1].items())
    assert not torch.equal(kept["ctx"], seen[3]["ctx"])


def test_hold_out_by_the_seed_and_never_all() -> None:
    tasks = [memory_task(str(i), 2, 1) for i in range(10)]
    names = [{t.name for t in hold_out([tasks], MetaConfig(seed=s, held_out=0.3))[1]} for s in range(6)]
    assert all(len(found) == 3 for found in names)
    assert len(set(map(frozenset, names))) > 1
    kept, held = hold_out([tasks[:1], tasks[1:2]], MetaConfig(held_out=0.99))
    assert sum(map(len, kept)) == 1
    assert len(held) == 1
    with pytest.raises(DataError, match="no task"):
        meta_train(tiny_model(), [], SMALL)


def test_loss_that_explodes_is_told() -> None:
    config = MetaConfig(**{**SMALL.__dict__, "inner_lr": 1e30})
    with pytest.raises(UsageError, match="--inner-lr"):
        adapt_all(tiny_model(), config)


def adapt_all(model: GrmpIqa, config: MetaConfig) -> None:
    for _, parameter in model.prompt_parameters():
        parameter.requires_grad_(True)
    for seed in range(3):
        adapt(model, memory_task("a", seed=seed), config, [seed])


CHOICE = ModelConfig(BackboneConfig(TINY_CLIP, "random"), PROMPTS, "cpu", 3)


def trained(
    folder: Path, reset: bool, stop: int | None = None, resume: bool = False, carry: bool = False
) -> Any:
    """A run of 3 epochs of 3 tasks (one is held out) with dropout, perhaps interrupted at a step."""
    prompts = PromptConfig(visual_tokens=5, dropout=0.2)
    config = MetaConfig(epochs=3, support_batch=8, query_batch=4, held_out=0.25, reset_per_task=reset,
                        inner_lr=5e-3, outer_lr=0.5, carry_adam=carry)  # fmt: skip
    tasks = [memory_task(str(i), 4, 3, seed=i) for i in range(4)]
    writer = CheckpointWriter(folder, {"stage": "pretrain"})
    state = writer.resume() if resume else None
    model = tiny_model(prompts=prompts)
    history = meta_train(model, [tasks], config, writer, state, Stop(stop) if stop else None)
    return parameters_of(model), history


@pytest.mark.parametrize(("reset", "carry"), [(True, False), (False, True)])
def test_interrupted_anywhere_resumes_bit_for_bit(tmp_path: Path, reset: bool, carry: bool) -> None:
    whole, history = trained(tmp_path / "whole", reset, carry=carry)
    for stop in (2, 4, 8):  # in the first, second and third epoch
        folder = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            trained(folder, reset, stop=stop, carry=carry)
        again, told = trained(folder, reset, resume=True, carry=carry)
        assert all(torch.equal(value, whole[name]) for name, value in again.items())
        assert told == history


def test_run_pretrain_refuses_what_it_cannot_continue(tmp_path: Path) -> None:
    tasks = [memory_task(str(i), 2, 2, size=256, seed=i) for i in range(2)]
    config = MetaConfig(epochs=1, support_batch=4, query_batch=4, held_out=0)
    result = run_pretrain(tmp_path / "run", CHOICE, [tasks], {"made": "here"}, config)
    assert result["complete"]
    assert result["best_srcc"] is None
    again = run_pretrain(tmp_path / "run", CHOICE, [tasks], {"made": "here"}, config, resume=True)
    assert again == result
    with pytest.raises(CheckpointError, match="--resume"):
        run_pretrain(tmp_path / "run", CHOICE, [tasks], {"made": "here"}, config)
    with pytest.raises(CheckpointError, match=r'data\.made was "here", now "there"'):
        run_pretrain(tmp_path / "run", CHOICE, [tasks], {"made": "there"}, config, resume=True)
    other = MetaConfig(**{**config.__dict__, "inner_lr": 0.5})
    with pytest.raises(CheckpointError, match=r"meta\.inner_lr was 0\.0001, now 0\.5"):
        run_pretrain(tmp_path / "run", CHOICE, [tasks], {"made": "here"}, other, resume=True)


def test_settings_go_with_the_backbone() -> None:
    reference = MetaConfig.of("ViT-B-16")
    assert reference == MetaConfig() and (reference.epochs, reference.inner_lr, reference.outer_lr) == (
        50,
        1e-4,
        1e-2,
    )
    embedded = MetaConfig.of("embedded-l0")
    assert (embedded.epochs, embedded.inner_lr, embedded.outer_lr) == (3, 1e-3, 1.0)
    assert embedded.reset_per_task and embedded.support_batch == reference.support_batch
