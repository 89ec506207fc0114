"""Importing the released state dicts, against scores computed here from the bare tensors."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import pytest
import torch
from helpers_reference import B16, SENTENCES, TINY, pictures, plain_scores, released
from typer.testing import CliRunner

from grmp_edge.cli import app
from grmp_edge.errors import CheckpointError, ModelError
from grmp_edge.train.import_released import ImportConfig, import_reference
from grmp_edge.train.session.checkpoint import load_checkpoint


@pytest.fixture(scope="module", autouse=True)
def tiny_registered(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("configs") / "ViT-T-8-imported.json"
    path.write_text(json.dumps(TINY))
    open_clip.add_model_config(path)
    return path.stem


def scores_of(checkpoint: Path, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    loaded = load_checkpoint(checkpoint)
    with torch.inference_mode():
        return np.asarray(loaded.model(torch.from_numpy(images)), np.float32)


def prefixed(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


class Inner(torch.nn.Module):
    """A module whose state dict has the released names, so that DataParallel itself can wrap it."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, tensor in state.items():
            owner: torch.nn.Module = self
            *path, last = name.split(".")
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, torch.nn.Module())
                owner = owner.get_submodule(part)
            owner.register_buffer(last, tensor)


def saved(kind: str, state: dict[str, torch.Tensor], file: Path) -> Path:
    """The same model as people have it on their disks."""
    moments = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1, momentum=0.9)
    options = argparse.Namespace(lr=1e-3, data="LIVEC", seeds=[1, 2])
    beside = {"optimizer": moments.state_dict(), "epoch": 3, "best_srcc": np.float64(0.8), "args": options}
    content: Any = {
        "bare": state,
        "module": prefixed(state, "module."),
        "module twice": prefixed(state, "module.module."),
        "state_dict": {"state_dict": state, "epoch": 3},
        "both": {"state_dict": prefixed(state, "module."), **beside},
        "model": {"model": state, **beside},
        "model twice": {"model": {"state_dict": prefixed(state, "model.")}},
        "model_state_dict": {"model_state_dict": prefixed(state, "_orig_mod.module."), **beside},
        "half": {"model": {n: t.half() for n, t in state.items()}},
        "old format": state,
    }.get(kind)
    if kind == "DataParallel":
        content = {"net": torch.nn.DataParallel(Inner(state)).state_dict(), **beside}
    if kind.startswith("safetensors"):
        from safetensors.torch import save_file

        file = file.with_suffix(".safetensors")
        save_file(prefixed(state, "module.") if "module" in kind else state, file)
    else:
        torch.save(content, file, _use_new_zipfile_serialization=kind != "old format")
    return file


@pytest.mark.parametrize(
    "kind",
    [
        "bare", "module", "module twice", "state_dict", "both", "model", "model twice", "model_state_dict",
        "half", "old format", "DataParallel", "safetensors", "safetensors module",
    ],
)  # fmt: skip
def test_an_imported_model_scores_as_the_bare_tensors_do(tmp_path: Path, kind: str) -> None:
    state = released(TINY, prompts=7)
    found = import_reference(saved(kind, state, tmp_path / "released.pt"), tmp_path / "checkpoint")
    assert found["backbone"] == "ViT-T-8-imported"
    assert (found["visual_tokens"], found["text_tokens"], found["ignored"]) == (7, 4, [])
    images = pictures(5, 32)
    stored = {n: t.half().float() for n, t in state.items()} if kind == "half" else state
    wanted = plain_scores(stored, TINY, images)
    assert wanted.std() > 0.01
    np.testing.assert_allclose(scores_of(tmp_path / "checkpoint", images), wanted, atol=1e-5)


def test_code_beside_the_tensors_is_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (mark,)

    torch.save({"model": released(TINY, prompts=3), "logger": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ModelError, match="could run code, and is not loaded; where you trust it"):
        import_reference(tmp_path / "evil.pt", tmp_path / "checkpoint")
    assert not mark.exists() and not (tmp_path / "checkpoint").exists()


def test_the_folder_can_be_moved(tmp_path: Path) -> None:
    torch.save(released(TINY, prompts=3), tmp_path / "released.pt")
    import_reference(tmp_path / "released.pt", tmp_path / "here")
    before = scores_of(tmp_path / "here", pictures(2, 32))
    shutil.move(tmp_path / "here", tmp_path / "there")
    (tmp_path / "released.pt").unlink()
    np.testing.assert_array_equal(scores_of(tmp_path / "there", pictures(2, 32)), before)


def test_vit_b16_in_half_precision(tmp_path: Path) -> None:
    state = released(B16, dtype=torch.float16)
    torch.save(state, tmp_path / "released.pt")
    found = import_reference(tmp_path / "released.pt", tmp_path / "checkpoint")
    assert found["backbone"] == "ViT-B-16"
    images = pictures(1, 224)
    wanted = plain_scores(state, B16, images)
    np.testing.assert_allclose(scores_of(tmp_path / "checkpoint", images), wanted, atol=1e-5)


def test_token_tables(tmp_path: Path) -> None:
    state = released(TINY, prompts=3)
    whole = {name: tensor for name, tensor in state.items() if "token_" not in name}
    torch.save(whole, tmp_path / "none.pt")
    with pytest.raises(ModelError, match=r"neither token embeddings nor .*--clip"):
        import_reference(tmp_path / "none.pt", tmp_path / "a")
    assert not (tmp_path / "a").exists()

    torch.manual_seed(5)
    table = 0.3 * torch.randn(49408, 16)
    ids = open_clip.tokenize(SENTENCES)
    torch.save({"token_embedding.weight": table}, tmp_path / "clip.pt")
    import_reference(tmp_path / "none.pt", tmp_path / "a", ImportConfig(clip=tmp_path / "clip.pt"))
    filled = {
        **state,
        "prompt_learner2.token_prefix": table[ids][:, :1],
        "prompt_learner2.token_suffix": table[ids][:, 5:],
    }
    images = pictures(3, 32)
    np.testing.assert_allclose(
        scores_of(tmp_path / "a", images), plain_scores(filled, TINY, images), atol=1e-5
    )

    # A table that does not go with the buffers means other words, or another order of them.
    torch.save(state, tmp_path / "buffers.pt")
    with pytest.raises(ModelError, match="words are not those"):
        import_reference(tmp_path / "buffers.pt", tmp_path / "b", ImportConfig(clip=tmp_path / "clip.pt"))
    swapped = {
        **filled,
        "prompt_learner2.token_suffix": table[ids][:, 5:].flip(0),
        "text_encoder.token_embedding.weight": table,
    }
    torch.save(swapped, tmp_path / "swapped.pt")
    with pytest.raises(ModelError, match="words are not those"):
        import_reference(tmp_path / "swapped.pt", tmp_path / "b")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_learner2.ctx": None}, "lacks 'prompt_learner2.ctx'"),
        ({"image_encoder.prompt_norm.bias": None}, "lacks 'image_encoder.prompt_norm.bias'"),
        ({"image_encoder.ln_post.bias": None}, "lacks 'visual.ln_post.bias'"),
        ({"text_encoder.extra": torch.zeros(2)}, "has 'extra'"),
        ({"image_encoder.deep_prompt_embeddings": torch.zeros(1, 3, 24)}, "'deep_prompt_embeddings' is"),
        (
            {"image_encoder.conv1.weight": torch.zeros(24, 3, 16, 16)},
            "no CLIP of open_clip has 3 image blocks",
        ),
        ({"logit_scale": torch.tensor(torch.nan)}, "'logit_scale' is not finite"),
        ({"prompt_learner2.token_suffix": torch.zeros(2, 70, 16)}, "buffers"),
    ],
)
def test_what_does_not_fit_is_named_and_leaves_nothing(
    tmp_path: Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    state = {**released(TINY, prompts=3), **change}
    state = {name: tensor for name, tensor in state.items() if tensor is not None}
    torch.save(state, tmp_path / "released.pt")
    with pytest.raises(ModelError, match=message):
        import_reference(tmp_path / "released.pt", tmp_path / "checkpoint")
    assert [path.name for path in tmp_path.iterdir()] == ["released.pt"]


def test_unneeded_tensors_are_listed_and_code_is_not_run(tmp_path: Path) -> None:
    torch.save({**released(TINY, prompts=3), "prompt_learner.ctx": torch.zeros(4, 16)}, tmp_path / "more.pt")
    assert import_reference(tmp_path / "more.pt", tmp_path / "a")["ignored"] == ["prompt_learner.ctx"]
    with pytest.raises(CheckpointError, match="exists already"):
        import_reference(tmp_path / "more.pt", tmp_path / "a")

    torch.save({"a": Path("x")}, tmp_path / "pickle.pt")
    with pytest.raises(ModelError, match="could run code"):
        import_reference(tmp_path / "pickle.pt", tmp_path / "b")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ModelError, match=r"text\.pt: cannot be read"):
        import_reference(tmp_path / "text.pt", tmp_path / "b")


def test_import_then_export_then_score(tmp_path: Path) -> None:
    from grmp_edge.runtime import Scorer

    state = released(TINY, prompts=3)
    torch.save(state, tmp_path / "released.pt")
    run = CliRunner()
    checkpoint, bundle = tmp_path / "checkpoint", tmp_path / "bundle"
    done = run.invoke(
        app, ["import-reference", str(tmp_path / "released.pt"), "-o", str(checkpoint),
              "--mos-range", "0,100", "--json"]
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["backbone"] == "ViT-T-8-imported"
    assert f"next: grmp-edge export {checkpoint}" in done.stderr
    done = run.invoke(app, ["export", str(checkpoint), "-o", str(bundle)])
    assert done.exit_code == 0, done.output
    image = pictures(1, 35)[0]  # 32 * 244 / 224, so that squashing changes nothing
    with Scorer.open(bundle) as scorer:
        scored = scorer.score(image)
    wanted = plain_scores(state, TINY, image[None, 1:33, 1:33])[0]
    assert scored.value == pytest.approx(wanted, abs=1e-5)
    assert scored.mos == pytest.approx(100 * wanted, abs=1e-3)


def test_an_imported_model_cannot_be_fine_tuned(tmp_path: Path) -> None:
    from helpers_train import write_labelled

    from grmp_edge.train.data.labelled import SplitConfig, read_csv
    from grmp_edge.train.finetune.config import FinetuneConfig
    from grmp_edge.train.network.backbone import BackboneConfig
    from grmp_edge.train.runs import ModelConfig, run_finetune

    torch.save(released(TINY, prompts=3), tmp_path / "released.pt")
    import_reference(tmp_path / "released.pt", tmp_path / "checkpoint")
    data = read_csv(write_labelled(tmp_path / "data"))
    with pytest.raises(CheckpointError, match="not a pre-training checkpoint"):
        run_finetune(
            tmp_path / "out", ModelConfig.of(BackboneConfig()), tmp_path / "checkpoint", data, SplitConfig(8),
            FinetuneConfig(epochs=1),
        )  # fmt: skip
