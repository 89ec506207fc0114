"""The checkpoint on disk: atomic, strict about what it belongs to, and small."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_train import Tensors, pictures
from safetensors import safe_open
from safetensors.torch import save_file

from grmp_edge.errors import CheckpointError
from grmp_edge.score import MosScale
from grmp_edge.train.network.backbone import BackboneConfig, load_backbone
from grmp_edge.train.network.model import GrmpIqa
from grmp_edge.train.network.settings import PromptConfig
from grmp_edge.train.session import checkpoint as room
from grmp_edge.train.session.checkpoint import (
    CheckpointWriter,
    State,
    backbone_settings,
    copy_parameters,
    load_checkpoint,
)

PROMPTS: dict[str, Any] = {"visual_tokens": 3, "text_tokens": 4, "dropout": 0.1, "normalization": "clip"}


def save(folder: Path, **settings: object) -> GrmpIqa:
    """A pre-training checkpoint of the embedded network at random; returns its model."""
    config = BackboneConfig(pretrained="random")
    backbone = load_backbone(config)
    torch.manual_seed(5)
    model = GrmpIqa(backbone, PromptConfig(**PROMPTS)).eval()
    said = {"backbone": backbone_settings(backbone, config), "prompts": PROMPTS, "mos": {"low": 1, "high": 5}}
    weights = copy_parameters(model.prompt_parameters())
    writer = CheckpointWriter(folder, {**said, **settings})
    writer.save(State(weights, {}, {"complete": True}))
    return model


def test_round_trip_keeps_only_what_was_trained(tmp_path: Path) -> None:
    model = save(tmp_path)
    with safe_open(tmp_path / "weights.safetensors", framework="pt") as file:
        assert set(file.keys()) == {name for name, _ in model.prompt_parameters()}
    loaded = load_checkpoint(tmp_path)
    batch = torch.from_numpy(pictures(1, 224))
    assert torch.equal(loaded.model(batch), model(batch))
    assert not loaded.model.training
    assert loaded.mos == MosScale(1, 5)
    assert loaded.config["prompts"]["normalization"] == "clip"


def writer_of(folder: Path, **settings: object) -> CheckpointWriter:
    return CheckpointWriter(folder, {"stage": "x", **settings})


def state(value: float) -> State:
    return State(
        {"a": torch.full((3,), value)}, {"a": torch.full((3,), -value)}, {"complete": False, "epoch": value}
    )


def test_a_failure_while_writing_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = writer_of(tmp_path)
    writer.save(state(1.0))

    def half(tensors: Tensors, path: Path, metadata: dict[str, str]) -> None:
        save_file(tensors, path, metadata=metadata)
        path.write_bytes(path.read_bytes()[:50])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(room, "save_file", half)
        with pytest.raises(OSError, match="No space"):
            writer.save(state(2.0))
    found = writer.resume()
    assert found is not None and found.progress["epoch"] == 1.0
    assert found.weights["a"].tolist() == [1, 1, 1]
    assert found.resume["a"].tolist() == [-1, -1, -1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "weights.safetensors"]


def test_the_first_write_cut_between_its_two_files_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(room, "save_file", fail)
        with pytest.raises(KeyboardInterrupt):
            writer_of(tmp_path).save(state(1.0))
    assert writer_of(tmp_path).resume() is None  # begins anew
    writer_of(tmp_path).save(state(1.0))
    resumed = writer_of(tmp_path).resume()
    assert resumed is not None and resumed.progress["epoch"] == 1.0


def test_resume_names_the_setting_that_differs(tmp_path: Path) -> None:
    settings = {"lr": 0.1, "split": {"seed": 1, "labels": None}, "images": ["a", "b"]}
    assert writer_of(tmp_path, **settings).resume() is None
    writer_of(tmp_path, **settings).save(state(1.0))
    assert writer_of(tmp_path, **settings).resume() is not None
    for change, said in (
        ({"lr": 0.2}, r"lr was 0\.1, now 0\.2"),
        ({"split": {"seed": 1, "labels": 5}}, r"split\.labels was null, now 5"),
        ({"images": ["a"]}, "images was"),
        ({"more": 1}, "more was null, now 1"),
    ):
        with pytest.raises(CheckpointError, match=f"cannot resume, {said}"):
            writer_of(tmp_path, **{**settings, **change}).resume()
    with pytest.raises(CheckpointError, match="lr was"):
        writer_of(tmp_path, **{k: v for k, v in settings.items() if k != "lr"}).resume()


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    writer_of(tmp_path).refuse_overwrite()
    writer_of(tmp_path).save(state(1.0))
    with pytest.raises(CheckpointError, match="already holds a training run; continue it with --resume"):
        writer_of(tmp_path).refuse_overwrite()


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "gone", "no_progress"])
def test_damaged_weights(tmp_path: Path, damage: str) -> None:
    save(tmp_path)
    path = tmp_path / "weights.safetensors"
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "no_progress":
        save_file({"ctx": torch.zeros(1)}, path)
    else:
        path.write_bytes({"cut": content[:-7], "empty": b"", "garbage": b"x" * 999}[damage])
    with pytest.raises(CheckpointError, match=r"weights\.safetensors"):
        load_checkpoint(tmp_path)


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_damaged_or_foreign_settings(tmp_path: Path) -> None:
    save(tmp_path)
    path = tmp_path / "config.json"
    good = path.read_text()
    for text in ("", "{", "[]", "{}", '{"format_version": "x"}'):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.json: damaged"):
            load_checkpoint(tmp_path)
    path.write_text(good)
    edit(tmp_path, lambda c: c["prompts"].update(normalization="other"))
    with pytest.raises(CheckpointError, match=r"config\.json: damaged"):
        load_checkpoint(tmp_path)
    path.write_text(good)
    edit(tmp_path, lambda c: c.update(format_version=2))
    with pytest.raises(CheckpointError, match=r"version 2 is newer.*\(1\); update grmp-edge"):
        load_checkpoint(tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "none")


def test_other_backbone_weights_are_refused(tmp_path: Path) -> None:
    save(tmp_path)
    edit(tmp_path, lambda c: c["backbone"].update(random_seed=1))
    with pytest.raises(CheckpointError, match=r"other weights of embedded-l0 \(digest .*--weights"):
        load_checkpoint(tmp_path)


def test_tensors_that_do_not_fit_or_are_missing(tmp_path: Path) -> None:
    save(tmp_path)
    edit(tmp_path, lambda c: c["prompts"].update(visual_tokens=4))
    with pytest.raises(CheckpointError, match=r"'(deep_)?prompt_embeddings' \(\d+, 3, 192\) does not match"):
        load_checkpoint(tmp_path)
    edit(tmp_path, lambda c: c["prompts"].update(visual_tokens=3))
    path = tmp_path / "weights.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys() if name != "ctx"}  # noqa: SIM118
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(CheckpointError, match="lacks 'ctx'"):
        load_checkpoint(tmp_path)
