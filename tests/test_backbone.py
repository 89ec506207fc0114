"""Loading a backbone from every kind of file, and refusing what is not one."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from helpers_train import Tensors, pictures
from safetensors.torch import save_file

from grmp_edge.errors import ModelError
from grmp_edge.train.network import backbone as room
from grmp_edge.train.network.backbone import (
    Backbone,
    BackboneConfig,
    load_backbone,
    load_state,
    read_state_dict,
    state_digest,
)

SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 2, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 32},
    "text_cfg": {"width": 16, "heads": 2, "layers": 2, "context_length": 77, "vocab_size": 49408},
}


@pytest.fixture(autouse=True)
def known(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Small architectures that open_clip knows by name, one with QuickGELU and one with a text module."""
    import json

    folder = tmp_path_factory.mktemp("configs")
    for name, extra in (
        ("tiny-b", {}),
        ("tiny-b-quickgelu", {"quick_gelu": True}),
        ("tiny-c", {"custom_text": True}),
    ):
        (folder / f"{name}.json").write_text(json.dumps({**SMALL, **extra}))
    open_clip.add_model_config(folder)


def state() -> Tensors:
    return load_backbone(BackboneConfig("tiny-b", "random", random_seed=7)).clip.state_dict()


def features(loaded: Backbone) -> torch.Tensor:
    from grmp_edge.train.network.model import GrmpIqa
    from grmp_edge.train.network.settings import PromptConfig

    torch.manual_seed(0)
    model = GrmpIqa(loaded, PromptConfig(visual_tokens=3)).eval()
    scores: torch.Tensor = model(torch.from_numpy(pictures(2)))
    return scores.detach()


class Archive(torch.nn.Module):
    """OpenAI's archives hold the tensors by open_clip's names, in half precision, and three numbers."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        for name, value in tensors.items():
            node = self
            *folders, leaf = name.split(".")
            for folder in folders:
                if folder not in dict(node.named_children()):
                    node.add_module(folder, torch.nn.Module())
                node = getattr(node, folder)
            node.register_parameter(leaf, torch.nn.Parameter(value.clone(), requires_grad=False))
        for name, number in (("input_resolution", 32), ("context_length", 77), ("vocab_size", 49408)):
            self.register_buffer(name, torch.tensor(number))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


# Torch deprecates TorchScript, in which OpenAI released its weights; here such a file is written.
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_every_file_format_gives_the_same_backbone(tmp_path: Path) -> None:
    tensors = {name: value.half().float() for name, value in state().items()}
    save_file(tensors, tmp_path / "w.safetensors")
    torch.save(tensors, tmp_path / "w.pt")
    wrapped = {"epoch": 3, "state_dict": OrderedDict((f"module.{n}", v) for n, v in tensors.items())}
    torch.save(wrapped, tmp_path / "w.pth")
    half = Archive({n: v.half() for n, v in tensors.items()})
    torch.jit.save(torch.jit.script(half), str(tmp_path / "w.jit"))
    loaded = {
        name: load_backbone(BackboneConfig("tiny-b", str(tmp_path / name), quick_gelu=False))
        for name in ("w.safetensors", "w.pt", "w.pth", "w.jit")
    }
    first = loaded["w.safetensors"]
    expected = features(first)
    for name, backbone in loaded.items():
        assert backbone.digest == first.digest, name
        assert backbone.pretrained == str((tmp_path / name).resolve())
        assert torch.equal(features(backbone), expected), name
        assert all(p.dtype == torch.float32 and not p.requires_grad for p in backbone.clip.parameters())
        assert not backbone.clip.training
    # The activation: told by the archive or the name, unless it is said.
    assert load_backbone(BackboneConfig("tiny-b", str(tmp_path / "w.jit"))).quick_gelu
    assert not load_backbone(BackboneConfig("tiny-b", str(tmp_path / "w.pt"))).quick_gelu
    named = load_backbone(BackboneConfig("tiny-b-quickgelu", str(tmp_path / "w.pt")))
    assert named.quick_gelu
    said = load_backbone(BackboneConfig("tiny-b", str(tmp_path / "w.pt"), quick_gelu=True))
    assert said.quick_gelu
    assert named.digest == said.digest == first.digest
    assert torch.equal(features(named), features(said))
    assert not torch.equal(features(named), expected)


def test_what_is_recorded_is_what_was_built() -> None:
    assert load_backbone(BackboneConfig("tiny-b-quickgelu", "random", quick_gelu=False)).quick_gelu


def test_a_state_dict_of_clip_fits_the_custom_text_layout(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "w.pt")
    custom = load_backbone(BackboneConfig("tiny-c", str(tmp_path / "w.pt")))
    plain = load_backbone(BackboneConfig("tiny-b", str(tmp_path / "w.pt")))
    assert torch.allclose(features(custom), features(plain), atol=1e-6)


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")  # torch's word before it refuses
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    mark, file = tmp_path / "ran", tmp_path / "w.pt"
    torch.save({"state_dict": state(), "extra": Payload(mark)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match="beside tensors, which could run code"):
        read_state_dict(file)
    file.write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(ModelError, match=r"could run code|cannot be read as weights"):
        read_state_dict(file)
    assert not mark.exists()


def test_damaged_files(tmp_path: Path) -> None:
    for name in ("w.safetensors", "w.pt"):
        path = tmp_path / name
        for content in (b"", b"not weights at all", b"PK\x03\x04" + bytes(40)):
            path.write_bytes(content)
            with pytest.raises(ModelError, match=f"{name}: ") as caught:
                read_state_dict(path)
            assert "\n" not in str(caught.value)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ModelError, match="is not a state dict"):
        read_state_dict(tmp_path / "list.pt")


def test_a_tensor_that_does_not_fit_is_named() -> None:
    clip = load_backbone(BackboneConfig("tiny-b", "random")).clip
    before = state_digest(clip)
    good = state()
    name = "visual.transformer.resblocks.1.ln_2.weight"
    for change, said in (
        ({name: torch.zeros(17)}, rf"has '{name}' of shape \(17,\), tiny-b needs \(16,\)"),
        ({"visual.proj": good["visual.proj"].reshape(8, 32)}, r"'visual.proj' of shape \(8, 32\)"),
        ({"visual.more": torch.zeros(1)}, "has 'visual.more', which tiny-b does not have"),
    ):  # fmt: skip
        with pytest.raises(ModelError, match=said):
            load_state(clip, {**good, **change}, "file.pt", "tiny-b")
    with pytest.raises(ModelError, match=f"file.pt: lacks '{name}'"):
        load_state(clip, {n: v for n, v in good.items() if n != name}, "file.pt", "tiny-b")
    assert state_digest(clip) == before
    scale = good["logit_scale"].reshape(1)  # some files hold the scalar as a vector of one
    load_state(clip, {**good, "logit_scale": scale}, "file.pt", "tiny-b")
    assert state_digest(clip) != before


def test_unknown_names() -> None:
    with pytest.raises(
        ModelError, match=r"'ViT-Z-1' is not a model of open_clip; use embedded-l0 or one of ViT-"
    ):
        load_backbone(BackboneConfig("ViT-Z-1"))
    with pytest.raises(ModelError, match=r"'nope' is neither a weights file nor a tag of ViT-B-16; .*openai"):
        load_backbone(BackboneConfig("ViT-B-16", "nope"))
    with pytest.raises(ModelError, match=r"cannot read the embedded backbone .*none\.safetensors"):
        load_backbone(BackboneConfig(pretrained="none.safetensors"))


def test_random_depends_on_its_seed_only() -> None:
    torch.manual_seed(1)
    first = load_backbone(BackboneConfig("tiny-b", "random", random_seed=4)).digest
    torch.manual_seed(2)
    assert load_backbone(BackboneConfig("tiny-b", "random", random_seed=4)).digest == first
    assert load_backbone(BackboneConfig("tiny-b", "random", random_seed=5)).digest != first
    assert load_backbone(BackboneConfig(pretrained="random")).pretrained == room.RANDOM


def test_the_digest_feels_names_shapes_and_values() -> None:
    def digest(**tensors: torch.Tensor) -> str:
        module = torch.nn.Module()
        for name, value in tensors.items():
            module.register_buffer(name, value)
        return state_digest(module)

    base = digest(a=torch.arange(4.0))
    assert digest(a=torch.arange(4.0).half()) == base
    others = {
        digest(b=torch.arange(4.0)),
        digest(a=torch.arange(4.0).reshape(2, 2)),
        digest(a=-torch.arange(4.0)),
    }
    assert base not in others
    assert len(others) == 3
