"""What training computes once: frozen tokens in groups, the judge's, tasks' pictures; one query."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from conftest import UInt8Array
from helpers_train import memory_task, pictures, tiny_model
from torch import nn

from grmp_edge.preprocess import squash
from grmp_edge.train.finetune.config import FinetuneConfig, Part
from grmp_edge.train.finetune.frozen_features import CentreScores, Cut, FrozenCache, Teacher, group_size
from grmp_edge.train.finetune.loop import finetune, predict
from grmp_edge.train.network.model import GrmpIqa
from grmp_edge.train.network.towers import block_forward
from grmp_edge.train.session.ranks import Team
from grmp_edge.train.tasks import Batch, PictureCache, ahead, query_batches

SIDE, SIZE = 35, 32
TOKENS = (1 + 16) * 24 * 4  # bytes of one picture in the tiny model


def views(model: GrmpIqa, images: UInt8Array, offset: int, flip: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The frozen blocks by the unfolded path: prompts inserted and replaced, whole blocks."""
    cut = images[:, offset : offset + SIZE, offset : offset + SIZE]
    pixels = model.pixels(torch.from_numpy(np.ascontiguousarray(cut[:, :, ::-1] if flip else cut)))
    tokens = model.image.embed(pixels)
    for index in range(model.first_trained_image_block):
        prompts = model.projected_prompts(index).expand(len(pixels), -1, -1)
        out = model.image.blocks[index](torch.cat([tokens[:, :1], prompts, tokens[:, 1:]], dim=1))
        tokens = torch.cat([out[:, :1], out[:, 1 + prompts.shape[1] :]], dim=1)
    return tokens, pixels


@pytest.mark.parametrize(("group", "team"), [(1, Team()), (4, Team()), (3, Team(1, 2))])
def test_groups_hold_what_the_frozen_blocks_give(group: int, team: Team) -> None:
    model, images = tiny_model(), pictures(11, SIDE)
    teacher = Teacher(model)
    cache = FrozenCache(model, teacher, images, 3 * group * TOKENS, group, team=team)
    own = [index for index in range(11) if team.mine(index)]
    rng = np.random.default_rng(0)
    for _ in range(12):
        chosen = rng.permutation(own)[: rng.integers(1, len(own) + 1)].tolist()
        offset, flip = int(rng.integers(0, 3)), bool(rng.integers(2))
        tokens, logits = cache.get(chosen, Cut(offset, offset, flip))
        expected, pixels = views(model, images[chosen], offset, flip)
        torch.testing.assert_close(tokens, expected, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(logits, teacher.logits(model, pixels), atol=2e-5, rtol=1e-4)
        held = sum(value.nelement() * 4 for value, _ in cache.cached.values())
        assert held == cache.used <= cache.budget


def test_a_group_does_not_depend_on_what_is_missing() -> None:
    model, images = tiny_model(), pictures(10, SIDE)
    computed = []

    class Watched(FrozenCache):
        def _compute(self, indices: Sequence[int], cut: Cut) -> Any:
            computed.append((list(indices), cut))
            return super()._compute(indices, cut)

    ends = []
    for orders in ([[9, 2], [2, 5, 0]], [[5], [9, 0], [2, 7], [2, 5, 0]]):
        cache = Watched(model, None, images, 1 << 20, 4)
        for chosen in orders:
            tokens, logits = cache.get(chosen, Cut(1, 2, True))
        assert logits is None
        ends.append(tokens)
    assert torch.equal(*ends)
    assert sorted(computed[:3]) == sorted(computed[3:])  # each group once, and always whole
    assert sorted(index for indices, _ in computed[:3] for index in indices) == list(range(10))


def test_groups_only_where_nothing_is_computed_in_vain() -> None:
    model = tiny_model()
    images = np.zeros((10, SIDE, SIDE, 3), np.uint8)
    all_views = 2 * 3 * 10 * TOKENS
    assert group_size(model, images, batch=10, epochs=1, budget=0) == 8
    assert group_size(model, images, 9, 6, all_views, independent=False) == 8
    assert group_size(model, images, 9, 6, all_views - 1, independent=False) == 1
    # Three offsets, flipped or not: most of six views are never asked for in five epochs.
    assert group_size(model, images, 9, 5, all_views, independent=False) == 1
    # Rows and columns apart there are 18.
    assert group_size(model, images, 9, 18, 3 * all_views) == 8
    assert group_size(model, images, 9, 17, 3 * all_views) == 1


def blocks_run(model: GrmpIqa) -> dict[int, int]:
    """How many pictures went through each image block."""
    seen: dict[int, int] = {}
    blocks: Any = model.image.blocks
    for index, block in enumerate(blocks):

        def note(module: nn.Module, inputs: tuple[torch.Tensor, ...], index: int = index) -> None:
            seen[index] = seen.get(index, 0) + len(inputs[0])

        block.ln_2.register_forward_pre_hook(note)
    return seen


@pytest.mark.parametrize(("budget", "again"), [(0, 7), (4 * TOKENS, 3), (1 << 20, 0)])
def test_the_judges_frozen_blocks_run_once(budget: int, again: int) -> None:
    model, images = tiny_model(), pictures(7, SIDE)
    scores = CentreScores(model, images, budget, batch=4)
    first = scores.predict()
    blocks: Any = model.image.blocks
    with torch.no_grad():
        blocks[-1].mlp.c_fc.weight.mul_(1.5)  # as training does
    seen = blocks_run(model)
    second = scores.predict()
    assert scores.used <= scores.most_bytes <= max(budget, 7 * TOKENS)
    frozen = model.first_trained_image_block
    assert [seen.get(index, 0) for index in range(len(model.image.blocks))] == [again] * frozen + [7] * (
        len(model.image.blocks) - frozen
    )
    assert np.abs(second - first).max() > 1e-4
    expected = model(torch.from_numpy(images[:, 1:33, 1:33].copy()), unfolded=True).numpy()
    np.testing.assert_allclose(second, expected, atol=1e-6)
    assert np.array_equal(second, predict(model, images, batch=4))


def test_fine_tuning_judges_by_kept_tokens() -> None:
    judge = Part(pictures(5, SIDE, 9), np.linspace(0, 1, 5, dtype=np.float32))
    train = Part(pictures(4, SIDE), np.linspace(1, 0, 4, dtype=np.float32))
    model = tiny_model()
    seen = blocks_run(model)
    finetune(model, train, judge, FinetuneConfig(epochs=6, evaluate_every=2, lr=0.05, qgr=False))
    frozen = model.first_trained_image_block
    rng = [np.random.default_rng([0, epoch]) for epoch in range(6)]
    drawn = {
        (r.permutation(4) is None, int(r.integers(0, 3)), int(r.integers(0, 3)), bool(r.random() < 0.5))
        for r in rng
    }
    assert seen[0] == 5 + 4 * len(drawn)  # the judge's once, and each view once
    assert seen[frozen] == 4 * 5 + 6 * 4  # the start is judged, too


@pytest.mark.parametrize("heads", [1, 2])
def test_one_query_is_the_first_of_all(heads: int) -> None:
    """Against nn.MultiheadAttention, gradients included."""
    model = tiny_model(seed=3)
    block: Any = model.image.blocks[1]
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randn(3, 9, 24, generator=rng, dtype=torch.float64, requires_grad=True)
    prompts = torch.randn(5, 24, generator=rng, dtype=torch.float64, requires_grad=True)
    block = block.double()
    attention = nn.MultiheadAttention(24, block.attn.num_heads, batch_first=True, dtype=torch.float64)
    attention.load_state_dict(block.attn.state_dict())
    parameters = [block.attn.in_proj_weight, block.attn.in_proj_bias]
    for parameter in parameters:
        parameter.requires_grad_(True)
    normed, others = block.ln_1(tokens), block.ln_1(prompts)
    from grmp_edge.train.network.towers import keys_values

    keys, values = keys_values(block, others)
    if heads == 2:  # by picture, as while dropout is active
        keys, values = (part.expand(3, -1, -1, -1) for part in (keys, values))
    found = block_forward(block, tokens, extra=(keys, values), queries=1)
    every = torch.cat([normed, others.expand(3, -1, -1)], dim=1)
    mixed = attention(normed[:, :1], every, every, need_weights=False)[0]
    x = tokens[:, :1] + block.ls_1(mixed)
    expected = x + block.ls_2(block.mlp(block.ln_2(x)))
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)
    own = [attention.in_proj_weight, attention.in_proj_bias]
    gradients = torch.autograd.grad(found.square().sum(), [tokens, prompts, *parameters], retain_graph=True)
    wanted = torch.autograd.grad(expected.square().sum(), [tokens, prompts, *own])
    for a, b in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-8)
    with pytest.raises(ValueError, match="one query"):
        block_forward(block, tokens, queries=2)


def test_task_pictures_are_made_once_within_the_budget() -> None:
    made = []
    task = memory_task("a", 4, 3, size=50)

    def read(index: int) -> UInt8Array:
        made.append(index)
        return task.read(index)

    watched = type(task)("a", task.references, task.quality, read)
    picture = 32 * 32 * 3
    kept = PictureCache(5 * picture)
    for _ in range(3):
        (batch,) = ahead(query_batches(watched, [7, 0, 3, 11, 4, 2, 9], 32, 50, kept))
        expected = np.stack([squash(task.read(index), 32) for index in (7, 0, 3, 11, 4, 2, 9)])
        assert np.array_equal(batch.images, expected)
    assert sorted(made[:7]) == [0, 2, 3, 4, 7, 9, 11]
    assert sorted(made[7:]) == [2, 2, 9, 9]  # the two that found no room
    assert kept.used == 5 * picture
    # Another task of the same name is another task, and another side another picture.
    other = memory_task("a", 4, 3, size=50, seed=5)
    roomy = PictureCache(1 << 20)
    for side in (32, 37):
        for one in (task, other):
            for _ in range(2):
                (found,) = roomy.squashed(one, [1], side)
                assert np.array_equal(found, squash(one.read(1), side))


def test_reading_ahead_passes_errors_on() -> None:
    first = Batch(pictures(1), np.zeros(1, np.float32))

    def broken() -> Iterator[Batch]:
        yield first
        raise OSError("the disk is gone")

    found = ahead(broken())
    assert next(found) is first
    with pytest.raises(OSError, match="gone"):
        next(found)
