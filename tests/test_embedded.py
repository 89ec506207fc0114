"""The embedded backbone: its file, the recipe's parts, and what the shipped weights can do."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import VisionTransformer
from safetensors import safe_open
from torch.nn import functional

from grmp_edge.default_bundle import EMBEDDED
from grmp_edge.errors import DataError, ModelError
from grmp_edge.train.network import embedded
from grmp_edge.train.network.backbone import BackboneConfig
from grmp_edge.train.network.settings import PromptConfig
from grmp_edge.train.network.words import SCENES, scene_prompts
from grmp_edge.train.pictures.distort import distort
from grmp_edge.train.pictures.procedural import procedural_image
from grmp_edge.train.recipe.captions import KIND_WORDS, Statistics, caption, vocabulary
from grmp_edge.train.recipe.faults import KINDS
from grmp_edge.train.recipe.groups import VARIANTS, Batch, load_photos, make_batch, procedural_sources
from grmp_edge.train.recipe.measure import shown, zero_shot
from grmp_edge.train.recipe.objective import LossConfig, Objective, normalise, text_features
from grmp_edge.train.recipe.start import cosine_filters, start_image_tower
from grmp_edge.train.runs import ModelConfig


@pytest.fixture(scope="module")
def model() -> CLIP:
    return embedded.load_embedded()


@pytest.fixture(scope="module")
def batch() -> Batch:
    rng = np.random.default_rng(0)
    return make_batch(rng, procedural_sources(rng, 4, 256), 3)


def test_architecture_is_an_open_clip_vit_one_block_of_which_merges(model: CLIP) -> None:
    assert type(model) is CLIP and type(model.visual) is VisionTransformer
    assert model.visual.pool_type == "tok" and not model.training
    assert len(model.visual.transformer.resblocks) == 5
    assert sum(p.numel() for p in model.visual.parameters()) == pytest.approx(4.26e6, rel=0.01)
    assert all(p.dtype == torch.float32 and p.requires_grad for p in model.parameters())
    with torch.no_grad():
        assert model.encode_image(torch.zeros(2, 3, 224, 224)).shape == (2, 256)
        assert model.encode_text(SimpleTokenizer()(["high quality."])).shape == (1, 256)


def test_round_trip_keeps_features_and_prunes_tokens(tmp_path: Path) -> None:
    torch.manual_seed(3)
    made = embedded.build_embedded().eval()
    ids = embedded.token_ids_of(vocabulary())
    path = tmp_path / "small.safetensors"
    digest = embedded.save_embedded(made, path, ids, {"seed": "3"})
    assert len(digest) == 64 and [p.name for p in tmp_path.iterdir()] == [path.name]
    back = embedded.load_embedded(path)
    pixels, words = torch.randn(1, 3, 224, 224), SimpleTokenizer()(["a photo of a night", "low quality."])
    with torch.no_grad():
        torch.testing.assert_close(back.encode_image(pixels), made.encode_image(pixels), atol=5e-3, rtol=5e-3)
        torch.testing.assert_close(back.encode_text(words), made.encode_text(words), atol=5e-3, rtol=5e-3)
    unused = SimpleTokenizer().encode("zebra")[0]
    assert unused not in ids
    mean = made.token_embedding.weight[ids].mean(dim=0)
    torch.testing.assert_close(back.token_embedding.weight[unused], mean, atol=1e-3, rtol=1e-3)
    with safe_open(path, "pt") as file:
        assert file.metadata()["seed"] == "3" and file.metadata()["name"] == EMBEDDED


def test_loading_leaves_the_random_stream_alone(model: CLIP) -> None:
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    embedded.load_embedded()
    assert torch.equal(torch.randn(3), expected)


def test_bad_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="cannot read"):
        embedded.load_embedded(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(ModelError, match="not an embedded backbone"):
        embedded.load_embedded(tmp_path / "bad.safetensors")
    altered = bytearray(embedded.EMBEDDED_PATH.read_bytes())
    altered[-1] ^= 1
    (tmp_path / "altered.safetensors").write_bytes(altered)
    monkeypatch.setattr(embedded, "EMBEDDED_PATH", tmp_path / "altered.safetensors")
    with pytest.raises(ModelError, match="SHA-256"):
        embedded.load_embedded()


def test_saving_what_is_not_finite_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"old")
    broken = embedded.build_embedded()
    with torch.no_grad():
        broken.visual.proj[0, 0] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        embedded.save_embedded(broken, path, [0, 1])
    with pytest.raises(ModelError, match="token ids"):
        embedded.save_embedded(embedded.build_embedded(), path, [])
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_every_word_of_captions_and_prompts_has_its_row() -> None:
    ids = set(embedded.token_ids_of(vocabulary()))
    rng = np.random.default_rng(0)
    texts = ["X X X X high quality.", "X X X X low quality.", *scene_prompts()]
    for _ in range(3000):
        faults = [(str(rng.choice(KINDS)), int(rng.integers(1, 6))) for _ in range(int(rng.integers(0, 4)))]
        found = Statistics(*rng.uniform(-2, 2, 6))
        texts.append(caption(rng, str(rng.choice(SCENES)), float(rng.random()), faults, found))
    assert set(embedded.token_ids_of(texts)) <= ids
    assert set(KIND_WORDS) == set(KINDS)


def test_shipped_words_differ(model: CLIP) -> None:
    texts = [
        "X X X X high quality.",
        "X X X X low quality.",
        "high quality.",
        "low quality.",
        *scene_prompts(),
    ]
    with torch.no_grad():
        found = model.encode_text(SimpleTokenizer()(texts), normalize=True)
    assert float(found[0] @ found[1]) < 0.95 and float(found[2] @ found[3]) < 0.95
    # The words mean the same behind a context as without one.
    axes = functional.normalize(torch.stack([found[0] - found[1], found[2] - found[3]]), dim=1)
    assert float(axes[0] @ axes[1]) > 0.9
    scenes = found[4:] @ found[4:].T
    assert float((scenes - torch.eye(9)).max()) < 0.999


def test_shipped_weights_put_clean_above_faulty(model: CLIP) -> None:
    """Pictures of seeds that training did not draw: training seeds its generator with pairs."""
    clean = [procedural_image(np.random.default_rng(90_000 + i), 384) for i in range(40)]
    before = zero_shot(model, [shown(picture) for picture in clean])
    for kind, least in FLOORS.items():
        after = zero_shot(
            model, [shown(distort(p, kind, 5, np.random.default_rng(i))) for i, p in enumerate(clean)]
        )
        assert (before > after).mean() >= least, kind


# Measured on the shipped weights (all forty for each) less a margin of three pictures.
FLOORS = dict.fromkeys(("gaussian_blur", "white_noise", "jpeg2000", "darken", "jpeg"), 0.92)


def test_batches_are_reproducible_and_labelled(batch: Batch) -> None:
    rng = np.random.default_rng(0)
    again = make_batch(rng, procedural_sources(rng, 4, 256), 3)
    assert np.array_equal(again.images, batch.images) and again.captions == batch.captions
    count = 3 * VARIANTS
    assert batch.images.shape == (count, 224, 224, 3) and batch.images.dtype == np.uint8
    assert batch.severity.shape == (count, len(KINDS)) and batch.statistics.shape == (count, 6)
    quality = batch.quality.reshape(3, VARIANTS)
    assert (quality[:, 0] > quality[:, 1]).all() and (quality[:, 1] > quality[:, 2]).all()
    assert (batch.severity.max(axis=1) == 0).tolist() == (batch.quality == 1).tolist()
    assert np.array_equal(batch.remaining, batch.quality)  # as long as scenes do not differ


def test_unshrunk_pictures_keep_more_detail() -> None:
    def detail(unshrunk: float) -> float:
        made = make_batch(
            np.random.default_rng(1), procedural_sources(np.random.default_rng(1), 6, 448), 6, unshrunk
        )
        every = [cv2.Laplacian(picture, cv2.CV_64F).var() for picture in made.images[::VARIANTS]]
        return float(np.mean(every))

    assert detail(1.0) > 1.1 * detail(0.0)


def test_photographs_are_held_out_by_place(tmp_path: Path) -> None:
    for i in range(9):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((64, 64, 3), 20 * i, np.uint8))
    train, held = load_photos([tmp_path], held_out=4)
    assert [s.name for s in held] == [f"{tmp_path.name}/{i}" for i in (0, 4, 8)] and len(train) == 6
    assert load_photos([tmp_path], held_out=0)[1] == []
    (tmp_path / "z.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"z\.png"):
        load_photos([tmp_path])
    with pytest.raises(DataError, match="no picture"):
        load_photos([tmp_path / "nothing"])


def test_start_is_whitened_and_filters_are_independent(batch: Batch) -> None:
    filters = cosine_filters(252, 16, np.random.default_rng(0)).reshape(252, -1)
    gram = functional.normalize(torch.from_numpy(filters), dim=1)
    gram = gram @ gram.T - torch.eye(252)
    assert float(gram.abs().median()) < 1e-3
    torch.manual_seed(0)
    made = embedded.build_embedded().eval()
    pixels = normalise(torch.from_numpy(batch.images))
    start_image_tower(made, pixels, seed=0)
    with torch.no_grad():
        answers = made.visual.conv1(pixels)[:, :252].std(dim=(0, 2, 3))
        torch.testing.assert_close(answers, torch.ones(252), atol=1e-3, rtol=1e-3)
        features = made.encode_image(pixels)
    assert bool(torch.isfinite(features).all()) and float(features.std(dim=0).mean()) > 1e-3


def test_short_texts_encode_as_padded_ones() -> None:
    torch.manual_seed(0)
    made = embedded.build_embedded().eval()
    ids = SimpleTokenizer()(["high quality.", "a photo of a night with some grain."])
    short = ids[:, : int(ids.argmax(dim=-1).max()) + 1]
    with torch.no_grad():
        expected = made.encode_text(ids, normalize=True)
        found = text_features(made, short, made.token_embedding(short))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_few_steps_lower_the_loss(batch: Batch) -> None:
    torch.manual_seed(0)
    made = embedded.build_embedded()
    pixels = normalise(torch.from_numpy(batch.images))
    start_image_tower(made, pixels, seed=0)
    objective = Objective(made, LossConfig(), embedded.token_ids_of(vocabulary()))
    before = objective.rows.detach().clone()
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=5e-4)
    losses = []
    for _ in range(5):
        loss, parts = objective(batch, pixels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] and all(np.isfinite(list(parts.values())))
    assert not torch.equal(objective.rows, before)
    objective.settle()
    row = SimpleTokenizer().encode("quality")[0]
    place = embedded.token_ids_of(vocabulary()).index(row)
    assert torch.equal(made.token_embedding.weight[row], objective.rows[place])


def test_prompts_are_fewer_among_fewer_places() -> None:
    assert ModelConfig.of(BackboneConfig()).prompts == PromptConfig(visual_tokens=50, normalization="clip")
    assert ModelConfig.of(BackboneConfig("ViT-B-16")).prompts == PromptConfig(visual_tokens=100)
    assert ModelConfig.of(BackboneConfig(), "imagenet").prompts.normalization == "imagenet"
