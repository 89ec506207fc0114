"""Merged tokens: against average pooling, open_clip's own blocks, and the graph's operators."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from open_clip.transformer import ResidualAttentionBlock
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from grmp_edge.errors import ModelError
from grmp_edge.export.compare import build_plain, build_unfolded, trace_unfolded
from grmp_edge.export.fold import fold
from grmp_edge.export.graph.emit import build_onnx
from grmp_edge.runtime.backends import graph_runner, open_session
from grmp_edge.train.network.backbone import Backbone
from grmp_edge.train.network.embedded import (
    Shape,
    build_embedded,
    load_embedded,
    save_embedded,
    thinned,
    token_ids_of,
)
from grmp_edge.train.network.merging import GroupDropout, MergingBlock, merge_from, merged
from grmp_edge.train.network.model import GrmpIqa
from grmp_edge.train.network.settings import PromptConfig
from grmp_edge.train.pictures.procedural import procedural_image
from grmp_edge.train.recipe.__main__ import main
from grmp_edge.train.recipe.captions import vocabulary


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(5)


def pooled(tokens: torch.Tensor, side: int) -> torch.Tensor:
    grid = tokens[:, 1:].transpose(1, 2).unflatten(2, (side, side))  # type: ignore[no-untyped-call]
    return torch.cat([tokens[:, :1], F.avg_pool2d(grid, 2).flatten(2).transpose(1, 2)], dim=1)


def by_hand(model: CLIP, pixels: torch.Tensor, merge: int | None) -> torch.Tensor:
    """open_clip's modules one by one, with average pooling before block ``merge``; (N, E)."""
    visual = model.visual
    tokens, side = visual._embeds(pixels), 14
    for index, block in enumerate(visual.transformer.resblocks):
        if index == merge:
            tokens = pooled(tokens, side)
        tokens = ResidualAttentionBlock.forward(block, tokens)
    return F.normalize(visual.ln_post(tokens[:, 0]) @ visual.proj, dim=-1)


def test_merging_is_average_pooling_of_places() -> None:
    tokens = torch.randn(3, 1 + 36, 8)
    assert torch.allclose(merged(tokens, 6), pooled(tokens, 6), atol=1e-6)


def test_dropped_groups_merge_into_what_they_would_have_been() -> None:
    tokens = torch.randn(4, 1 + 196, 8)
    dropout = GroupDropout(0.25, 14)
    left = dropout(tokens)
    assert left.shape == (4, 1 + 4 * 12, 8) and torch.equal(left[:, 0], tokens[:, 0])
    everything = pooled(tokens, 14)
    distances = torch.cdist(merged(left, 14)[:, 1:].double(), everything[:, 1:].double())
    nearest = distances.min(dim=-1)
    assert nearest.values.max() < 1e-5
    chosen = nearest.indices
    assert all(len(set(row.tolist())) == 12 for row in chosen) and len(set(map(tuple, chosen.tolist()))) == 4
    assert torch.equal(dropout.eval()(tokens), tokens)
    assert torch.equal(GroupDropout(1.0, 14)(tokens), tokens)  # what is whole must merge as such


@torch.no_grad()
@pytest.mark.parametrize("shape", [Shape(3, 1), Shape(3, 2), Shape(2, 0), Shape(2, None)])
def test_the_network_merges_before_its_block(shape: Shape) -> None:
    model = build_embedded(shape).eval()
    pixels = torch.randn(2, 3, 224, 224)
    assert torch.allclose(
        model.encode_image(pixels, normalize=True), by_hand(model, pixels, shape.merge), atol=1e-5
    )


@torch.no_grad()
@pytest.mark.parametrize("shape", [Shape(3, 1), Shape(3, 2)])
def test_prompts_do_not_merge_and_the_graph_scores_alike(shape: Shape) -> None:
    clip = build_embedded(shape)
    model = GrmpIqa(
        Backbone(
            "embedded-s16", "random", False, "", clip, lambda texts: torch.randint(0, 9, (len(texts), 77))
        ),
        PromptConfig(visual_tokens=5),
    ).eval()
    images = torch.randint(0, 256, (3, 224, 224, 3), dtype=torch.uint8)
    pixels = model.pixels(images)
    assert torch.allclose(model.image.plain(pixels), by_hand(clip, pixels, shape.merge), atol=1e-5)

    # The paper's data flow with open_clip's blocks, pooled here.
    visual, side = clip.visual, 14
    tokens = visual._embeds(pixels)
    for index, block in enumerate(visual.transformer.resblocks):
        if index == shape.merge:
            tokens = pooled(tokens, side)
        prompts = model.projected_prompts(index).expand(len(pixels), -1, -1)
        found = ResidualAttentionBlock.forward(
            block, torch.cat([tokens[:, :1], prompts, tokens[:, 1:]], dim=1)
        )
        tokens = torch.cat([found[:, :1], found[:, 6:]], dim=1)
        assert tokens.shape[1] == model.image.places(index)
    wanted = F.normalize(visual.ln_post(model.prompt_norm(tokens[:, 0])) @ visual.proj, dim=-1)
    assert torch.allclose(model.image_features_unfolded(pixels), wanted, atol=1e-5)
    assert torch.allclose(model.image_features(pixels), wanted, atol=1e-5)

    scores = model.logits(wanted, model.quality_features()).softmax(-1)[:, 0].numpy()
    for graph in (build_onnx(fold(model)), build_unfolded(model), trace_unfolded(model, 3)):
        found = graph_runner(open_session(graph.SerializeToString()))(images.numpy())
        assert np.allclose(found, scores, atol=1e-5)
    plain = (
        model.logits(by_hand(clip, pixels, shape.merge), model.quality_features()).softmax(-1)[:, 0].numpy()
    )
    found = graph_runner(open_session(build_plain(model).SerializeToString()))(images.numpy())
    assert np.allclose(found, plain, atol=1e-5)


def test_an_odd_grid_does_not_merge() -> None:
    model = build_embedded(Shape(3, 1))
    with pytest.raises(ValueError, match="7 places"):
        merge_from(model.visual, 2)


def test_thinning_keeps_the_chosen_blocks(tmp_path: Path) -> None:
    whole = build_embedded(Shape(4, None))
    thin = thinned(whole, (0, 3), 1)
    own, other = thin.state_dict(), whole.state_dict()
    for place, index in ((0, 0), (1, 3)):
        for name in ("ln_1.bias", "attn.in_proj_weight", "mlp.c_proj.weight"):
            at = "visual.transformer.resblocks.{}." + name
            assert torch.equal(own[at.format(place)], other[at.format(index)])
    assert torch.equal(own["visual.proj"], other["visual.proj"])
    path = tmp_path / "thin.safetensors"
    save_embedded(thin, path, [0, 1])
    back = load_embedded(path)
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        found, wanted = back.encode_image(pixels), by_hand(thin.half().float().eval(), pixels, 1)
    assert torch.allclose(F.normalize(found, dim=-1), wanted, atol=1e-5)


@pytest.mark.parametrize(
    "blocks, merge", [((0, 2), None), ((1, 0), None), ((), None), ((-1, 0), 0), ((0, 1), 2)]
)
def test_what_is_not_there_cannot_be_kept(blocks: tuple[int, ...], merge: int | None) -> None:
    with pytest.raises(ModelError, match="of 2"):
        thinned(build_embedded(Shape(2, None)), blocks, merge)


def test_a_phase_that_thins_writes_the_smaller_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(2)
    for index in range(4):
        cv2.imwrite(str(photos / f"{index}.png"), procedural_image(rng, 256, "dead_leaves"))
    start, out = tmp_path / "start.safetensors", tmp_path / "out.safetensors"
    whole = build_embedded(Shape(3, None))
    save_embedded(whole, start, token_ids_of(vocabulary()))
    given = ["--photos", str(photos), "-o", str(out), "--groups", "2", "--threads", "1", "--steps", "2"]
    chosen = ["--blocks", "0,2", "--merge", "1"]
    with pytest.raises(SystemExit):
        main([*given, *chosen])
    assert "--blocks needs --start" in capsys.readouterr().err
    assert main([*given, *chosen, "--start", str(start), "--learning-rate", "1e-9"]) == 0
    blocks = load_embedded(out).visual.transformer.resblocks
    assert [type(block) for block in blocks] == [ResidualAttentionBlock, MergingBlock]
    for made, old in ((blocks[0], 0), (blocks[1], 2)):
        before = whole.visual.transformer.resblocks[old].mlp.c_fc.weight
        torch.testing.assert_close(made.mlp.c_fc.weight, before, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("merge", ["2", "-1", "none"])
def test_a_file_that_merges_where_no_block_is_is_refused(tmp_path: Path, merge: str) -> None:
    path = tmp_path / "bad.safetensors"
    save_embedded(build_embedded(Shape(2, 1)), path, [0, 1])
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    assert header["merge"] == "1"
    save_file(load_file(path), path, {**header, "merge": merge})
    with pytest.raises(ModelError, match="not an embedded backbone"):
        load_embedded(path)
