"""The presets differ in named fields only, and each changes what it says."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
from helpers_train import memory_task
from typer.testing import CliRunner

from grmp_edge.cli import app
from grmp_edge.cli.options import Normalization
from grmp_edge.cli.training_options import PresetName
from grmp_edge.errors import UsageError
from grmp_edge.train.data.labelled import SplitConfig
from grmp_edge.train.finetune.config import FinetuneConfig
from grmp_edge.train.meta import MetaConfig
from grmp_edge.train.presets import PRESETS, Preset, differences, leaks, preset_named

DEFAULT, REFERENCE = PRESETS["default"], PRESETS["reference"]


def test_every_field_is_a_difference_with_a_reason() -> None:
    found = {item.field: item for item in differences(DEFAULT, REFERENCE)}
    assert set(found) == {item.name for item in fields(Preset)} - {"name"}
    assert all(len(item.reason) > 30 for item in found.values())
    assert found["select_on"].first == "validation" and found["select_on"].second == "test"
    assert json.dumps([vars(item) for item in found.values()])
    assert differences(DEFAULT, DEFAULT) == []


def test_the_default_changes_nothing_of_the_configs() -> None:
    assert DEFAULT.meta("ViT-B-16", epochs=3) == MetaConfig(epochs=3)
    assert DEFAULT.finetune("ViT-B-16", lr=0.5) == FinetuneConfig(lr=0.5)
    assert DEFAULT.split("ViT-B-16", labels=50) == SplitConfig(50)
    assert DEFAULT.finetune("embedded-l0", lr=None) == FinetuneConfig.of("embedded-l0")
    phase = [memory_task(f"task {i}") for i in range(25)]
    assert DEFAULT.tasks([phase]) == [phase]
    assert leaks(DEFAULT.finetune("ViT-B-16")) == []


def test_the_reference_is_as_released_and_says_so() -> None:
    meta = REFERENCE.meta("ViT-B-16", inner_lr=0.5)
    assert (meta.reset_per_task, meta.held_out, meta.inner_lr) == (False, 0.0, 0.5)
    assert (meta.carry_adam, meta.squash, meta.labels_apart) == (True, "antialiased", True)
    wanted = FinetuneConfig(
        lr=0.5, select_on="test", calibration_steps=0, text_rate=1.0, average=False, flip="by column",
        prompt_dropout=True, label_scale="drawn", offsets="independent",
    )  # fmt: skip
    assert REFERENCE.finetune("ViT-B-16", lr=0.5) == wanted
    assert REFERENCE.split("ViT-B-16", labels=50, seed=4) == SplitConfig(50, validation_fraction=0.0, seed=4)
    said = leaks(REFERENCE.finetune("ViT-B-16"), {"meta_select_on": "target set"})
    alike = REFERENCE.finetune("embedded-l0")
    assert (alike.calibration_steps, alike.text_rate, alike.average, alike.lr) == (0, 1.0, False, 0.03)
    assert len(said) == 2 and "test part" in said[0] and "target set" in said[1]


def test_the_reference_visits_24_of_kadids_types_and_splits_by_picture() -> None:
    tid, kadid = ([memory_task(f"{i:02d}") for i in range(1, n + 1)] for n in (24, 25))
    kept = REFERENCE.tasks([tid, kadid])
    assert [len(phase) for phase in kept] == [24, 24]
    assert kept[1][-1].name == "24"
    assert len(set(tid[0].references)) == 5 and len(set(kept[0][0].references)) == 15
    assert kept[0][0].quality is tid[0].quality


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(UsageError, match="'paper' is unknown; use default or reference"):
        preset_named("paper")
    shown = CliRunner().invoke(app, ["evaluate", "--data", "x.csv", "--no-mpp", "--preset", "paper"])
    assert shown.exit_code == 2


def test_the_command_lists_every_difference_with_its_reason() -> None:
    shown = CliRunner().invoke(app, ["train", "presets"])
    assert shown.exit_code == 0, shown.output
    said = json.loads(CliRunner().invoke(app, ["train", "presets", "--json"]).stdout)
    assert {item["field"] for item in said} == {item.name for item in fields(Preset)} - {"name"}
    for item in said:
        assert item["field"] in shown.stdout and item["reason"] in shown.stdout
    assert "select_on: default validation, reference test" in shown.stdout
    assert "in neither: half precision without loss scaling" in shown.stdout


def test_options_override_the_preset() -> None:
    from grmp_edge.cli.training_options import MetaOptions, ModelOptions, SplitOptions, TuningOptions

    tuned: list[tuple[float | None, bool | None, PresetName, tuple[float | None, str]]] = [
        (None, None, "default", (0.2, "validation")),
        (None, None, "reference", (0.0, "test")),
        (0.3, None, "reference", (0.3, "test")),
        (None, False, "reference", (0.0, "validation")),
        (0.0, True, "default", (0.0, "test")),
    ]
    for fraction, on_test, preset, expected in tuned:
        split = SplitOptions(validation_fraction=fraction, preset=preset).config("ViT-B-16", 50)
        tuning = TuningOptions(select_on_test=on_test, preset=preset).config("ViT-B-16", "auto")
        assert (split.validation_fraction, tuning.select_on) == expected
    for mos_range, ends in ((None, "drawn"), ("0,100", "declared")):
        tuning = TuningOptions(preset="reference", mos_range=mos_range).config("ViT-B-16", "auto")
        assert tuning.label_scale == ends
    for given, name, resets in (
        (None, "default", True), (None, "reference", False), (True, "reference", True),
        (False, "default", False),
    ):  # fmt: skip
        meta = MetaOptions(reset_per_task=given).config("ViT-B-16", preset_named(name), "auto")
        assert meta.reset_per_task is resets
    models: list[tuple[Normalization | None, str | None, PresetName, str]] = [
        (None, None, "default", "lite"),
        (None, None, "reference", "lite"),  # what the stem was trained with
        (None, "ViT-B-16", "reference", "imagenet"),
        ("clip", None, "reference", "clip"),
        (None, "ViT-B-16", "default", "imagenet"),
    ]
    for normalization, backbone, preset, value in models:
        model = ModelOptions(backbone, normalization=normalization, preset=preset, device="cpu")
        assert model.config().prompts.normalization == value


@pytest.mark.parametrize("backbone", ["embedded-l0", "ViT-B-16"])
def test_calibration_and_the_text_sides_rate_can_be_asked_for(backbone: str) -> None:
    from grmp_edge.cli.training_options import TuningOptions

    def tuning(given: tuple[bool | None, float | None], preset: PresetName) -> tuple[int, float]:
        options = TuningOptions(calibrate=given[0], text_rate=given[1], preset=preset)
        config = options.config(backbone, "auto")
        return config.calibration_steps, config.text_rate

    usual = (400, 0.0) if backbone == "embedded-l0" else (0, 1.0)
    presets: dict[PresetName, tuple[int, float]] = {
        "default": usual,
        "reference": (0, 1.0),
    }
    for preset, unasked in presets.items():
        assert tuning((None, None), preset) == unasked
        assert tuning((True, 0.25), preset) == (400, 0.25)
        assert tuning((False, None), preset) == (0, unasked[1])
    words = CliRunner().invoke(app, ["train", "finetune", "--help"], env={"COLUMNS": "200"}).output
    assert "--calibrate" in words and "--text-rate" in words


def test_the_reference_needs_a_target_set_for_pre_training(tmp_path: Path) -> None:
    words = ["train", "pretrain", "--preset", "reference", "-o", str(tmp_path / "run")]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 2 and "target set; give it with --data" in shown.stderr
    assert not (tmp_path / "run").exists()
