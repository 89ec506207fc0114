"""The embedded backbone: its files, what they refuse, and what the shipped weights can do."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from safetensors import safe_open
from torch.nn import functional

from grmp_edge.default_bundle import EMBEDDED
from grmp_edge.errors import ModelError
from grmp_edge.train.network import embedded
from grmp_edge.train.network.backbone import BackboneConfig, load_backbone
from grmp_edge.train.network.hybrid import HybridVisual, build_hybrid
from grmp_edge.train.network.model import GrmpIqa
from grmp_edge.train.network.settings import PromptConfig
from grmp_edge.train.network.stem import read_stem, save_stem
from grmp_edge.train.network.words import cause_prompts, quality_prompts, scene_prompts
from grmp_edge.train.pictures.distort import distort
from grmp_edge.train.pictures.procedural import procedural_image
from grmp_edge.train.recipe import convert as convert_module
from grmp_edge.train.recipe.convert import ConvertConfig, convert
from grmp_edge.train.runs import ModelConfig
from grmp_edge.train.session.checkpoint import load_parameters
from grmp_edge.views import Aggregate

PROMPTS = {"ctx": torch.ones(4, 128), "prompt_embeddings": torch.zeros(1, 16, 192)}


@pytest.fixture(scope="module")
def clip() -> CLIP:
    return embedded.load_embedded()


@pytest.fixture(scope="module")
def model() -> GrmpIqa:
    """The shipped backbone with its prompts."""
    network = GrmpIqa(load_backbone(BackboneConfig())).eval()
    load_parameters(network, embedded.load_prompts(), embedded.EMBEDDED_PATH)
    return network


def test_architecture_is_a_clip_with_a_pretrained_stem(clip: CLIP) -> None:
    assert type(clip) is CLIP and type(clip.visual) is HybridVisual and not clip.training
    assert len(clip.visual.transformer.resblocks) == 2 and clip.native == 4
    stem = sum(parameter.numel() for parameter in clip.visual.stem.parameters())
    upper = sum(parameter.numel() for parameter in clip.visual.parameters()) - stem
    assert stem == pytest.approx(2.34e6, rel=0.01) and upper == pytest.approx(2.24e6, rel=0.05)
    assert all(parameter.dtype == torch.float32 for parameter in clip.parameters())
    assert not any(parameter.requires_grad for parameter in clip.visual.stem.parameters())


def test_prompts_and_normalisation_are_its_own(model: GrmpIqa) -> None:
    assert ModelConfig.of(BackboneConfig()).prompts == PromptConfig(16, 4, 0.0, "lite") == model.config
    assert {name: tuple(value.shape) for name, value in embedded.load_prompts().items()} == {
        name: tuple(value.shape) for name, value in model.prompt_parameters()
    }


def test_round_trip_keeps_features_and_prunes_tokens(tmp_path: Path, clip: CLIP) -> None:
    torch.manual_seed(3)
    made = build_hybrid().eval()
    made.visual.stem.load_state_dict(clip.visual.stem.state_dict())
    made.visual.embedding.stats_mean += 1 / 3  # no number of float16
    made.native, made.aggregate = 2, Aggregate(0.25, 0.75, -0.125)
    path = tmp_path / "small.safetensors"
    digest = embedded.save_embedded(made, PROMPTS, path, metadata={"seed": "3"})
    assert len(digest) == 64 and [p.name for p in tmp_path.iterdir()] == [path.name]
    back = embedded.load_embedded(path)
    assert (back.native, back.aggregate) == (made.native, made.aggregate)
    assert torch.equal(back.visual.embedding.stats_mean, made.visual.embedding.stats_mean)
    assert {name: value.tolist() for name, value in embedded.load_prompts(path).items()} == {
        name: value.tolist() for name, value in PROMPTS.items()
    }
    pixels, words = torch.randn(1, 3, 224, 224), SimpleTokenizer()(["a photo of a night", "low quality."])
    with torch.no_grad():
        torch.testing.assert_close(back.visual.embed(pixels), made.visual.embed(pixels), atol=2e-2, rtol=2e-2)
        torch.testing.assert_close(back.encode_text(words), made.encode_text(words), atol=5e-3, rtol=5e-3)
    unused = SimpleTokenizer().encode("zebra")[0]
    mean = made.token_embedding.weight[embedded.own_token_ids()].mean(dim=0)
    torch.testing.assert_close(back.token_embedding.weight[unused], mean, atol=1e-3, rtol=1e-3)
    with safe_open(path, "pt") as file:
        assert file.metadata()["seed"] == "3" and file.metadata()["name"] == EMBEDDED
        assert not any("stem" in name for name in file.keys())  # noqa: SIM118 (no mapping)


def test_loading_leaves_the_random_stream_alone(clip: CLIP) -> None:
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    embedded.load_embedded()
    assert torch.equal(torch.randn(3), expected)


def altered(path: Path, to: Path) -> Path:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    to.write_bytes(content)
    return to


def test_bad_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for load in (embedded.load_embedded, embedded.load_prompts):
        with pytest.raises(ModelError, match="cannot read"):
            load(tmp_path / "none.safetensors")
        (tmp_path / "bad.safetensors").write_bytes(b"not safetensors at all")
        with pytest.raises(ModelError, match="not an embedded backbone"):
            load(tmp_path / "bad.safetensors")
    with pytest.raises(ModelError, match="not an embedded backbone"):  # tensors, but another file's
        embedded.load_embedded(embedded.STEM_PATH)
    with pytest.raises(ModelError, match="no prompts"):
        embedded.load_prompts(embedded.STEM_PATH)
    with monkeypatch.context() as patch:
        own = altered(embedded.EMBEDDED_PATH, tmp_path / embedded.EMBEDDED_PATH.name)
        patch.setattr(embedded, "EMBEDDED_PATH", own)
        for load in (embedded.load_embedded, embedded.load_prompts):
            with pytest.raises(ModelError, match="SHA-256"):
                load()
    with monkeypatch.context() as patch:
        patch.setattr(embedded, "STEM_PATH", altered(embedded.STEM_PATH, tmp_path / embedded.STEM_PATH.name))
        with pytest.raises(ModelError, match=r"lite0-stem\.safetensors was altered"):
            embedded.load_embedded()


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    broken = build_hybrid()
    broken.visual.ln_post = torch.nn.LayerNorm(8)
    embedded.save_embedded(broken, PROMPTS, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=f"does not fit the architecture {EMBEDDED}"):
        embedded.load_embedded(tmp_path / "w.safetensors")


def test_saving_what_is_not_finite_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"old")
    broken = build_hybrid()
    with torch.no_grad():
        broken.visual.proj[0, 0] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        embedded.save_embedded(broken, PROMPTS, path)
    with pytest.raises(ModelError, match="token ids"):
        embedded.save_embedded(build_hybrid(), PROMPTS, path, [])
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_every_word_that_is_asked_with_has_its_row() -> None:
    ids = set(embedded.own_token_ids())
    texts = [*quality_prompts(4), *quality_prompts(0), *scene_prompts(), *cause_prompts()]
    assert set(embedded.token_ids_of(texts)) <= ids and len(ids) < 100


def test_shipped_words_differ(model: GrmpIqa) -> None:
    with torch.no_grad():
        high, low = model.quality_features()
        scenes = model.scene_features()
    assert float(high @ low) < 0.99
    assert float((scenes @ scenes.T - torch.eye(9)).max()) < 0.999
    directions = functional.normalize(model.cause_rows, dim=0)
    assert float((directions.T @ directions - torch.eye(7)).max()) < 0.9


def test_shipped_weights_put_clean_above_faulty(model: GrmpIqa) -> None:
    clean = [procedural_image(np.random.default_rng(90_000 + i), 224) for i in range(12)]

    def scores(pictures: list[np.ndarray]) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(model(torch.from_numpy(np.stack(pictures))))

    before = scores(clean)
    for kind in ("gaussian_blur", "white_noise", "jpeg"):
        after = scores([distort(p, kind, 5, np.random.default_rng(i)) for i, p in enumerate(clean)])
        assert (before > after).mean() >= 0.9, kind


def first_state(model: GrmpIqa) -> dict[str, torch.Tensor]:
    """The model's weights by the names of the training's first implementation."""
    names = {
        "visual.embedding.": "image.embedding.",
        "visual.transformer.resblocks.": "image.blocks.",
        "visual.": "image.",
    }
    state = {}
    for name, value in model.clip.state_dict().items():
        old = next((own for own in names if name.startswith(own)), "")
        if not name.startswith("visual.stem."):
            state[names.get(old, "texts.") + name.removeprefix(old)] = value
    visual = torch.cat([model.prompt_embeddings, model.deep_prompt_embeddings]).detach()
    state |= {"image.prompts": visual, "texts.ctx": model.ctx.detach()}
    for part in ("prompt_proj", "prompt_norm"):
        state |= {f"image.{part}.{name}": value for name, value in getattr(model, part).state_dict().items()}
    return state


def test_a_state_of_the_first_implementation_is_converted(
    model: GrmpIqa, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert_module, "DIGESTS_PATH", tmp_path / "digests.json")
    state = first_state(model)
    extra = {"read_out.weight": torch.zeros(2, 2), "aggregate.whole": torch.tensor(0.75)}
    torch.save({**state, **extra}, tmp_path / "a.pt")
    digest = convert(ConvertConfig(tmp_path / "a.pt", tmp_path / "own.safetensors", "a test"))
    assert len(digest) == 64 and not (tmp_path / "digests.json").exists()  # it is not the shipped one
    clip, prompts = embedded.load_embedded(tmp_path / "own.safetensors"), embedded.load_prompts()
    assert clip.aggregate == Aggregate(0.75, 0.5, 0.0)
    for name, value in clip.state_dict().items():
        if name != "token_embedding.weight":  # whose other rows are another mean
            assert torch.equal(value, model.clip.state_dict()[name]), name
    for name, parameter in model.prompt_parameters():
        assert torch.equal(parameter, prompts[name]), name
    without = {name: value for name, value in state.items() if name != "image.proj"}
    for broken in (without, {**state, "image.more": torch.zeros(2)}):
        torch.save(broken, tmp_path / "a.pt")
        with pytest.raises(ModelError, match=r"'visual\.proj' does not fit|'prompts\.more' does not fit"):
            convert(ConvertConfig(tmp_path / "a.pt", tmp_path / "own.safetensors"))
    with pytest.raises(ModelError, match="cannot be read"):
        convert(ConvertConfig(tmp_path / "none.pt", tmp_path / "own.safetensors"))


def test_digests_are_noted_for_what_ships_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = json.loads(embedded.DIGESTS_PATH.read_text())
    assert set(listed) == {embedded.EMBEDDED_PATH.name, embedded.STEM_PATH.name}
    monkeypatch.setattr(convert_module, "DIGESTS_PATH", tmp_path / "digests.json")
    convert_module.record_digest(tmp_path / embedded.EMBEDDED_PATH.name, "a")
    assert not (tmp_path / "digests.json").exists()
    convert_module.record_digest(embedded.EMBEDDED_PATH, "b")
    assert json.loads((tmp_path / "digests.json").read_text()) == {embedded.EMBEDDED_PATH.name: "b"}


def test_the_stem_is_written_as_it_is_read(tmp_path: Path, clip: CLIP) -> None:
    digest = save_stem(clip.visual.stem, tmp_path / "stem.safetensors")
    data = (tmp_path / "stem.safetensors").read_bytes()
    assert hashlib.sha256(data).hexdigest() == digest
    shipped = clip.visual.stem.state_dict()
    assert all(torch.equal(value, shipped[name]) for name, value in read_stem(data).state_dict().items())
