"""The presets differ in named fields only, and each changes what it says."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
from helpers_train import memory_task
from typer.testing import CliRunner

from grmp_edge.cli import app
from grmp_edge.errors import UsageError
from grmp_edge.train.data import SplitConfig
from grmp_edge.train.finetune import FinetuneConfig
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
    assert DEFAULT.meta(MetaConfig(epochs=3)) == MetaConfig(epochs=3)
    assert DEFAULT.finetune(FinetuneConfig(lr=0.5)) == FinetuneConfig(lr=0.5)
    assert DEFAULT.split(SplitConfig(50)) == SplitConfig(50)
    phase = [memory_task(f"task {i}") for i in range(25)]
    assert DEFAULT.tasks([phase]) == [phase]
    assert leaks(DEFAULT.finetune(FinetuneConfig())) == []


def test_the_reference_is_as_released_and_says_so() -> None:
    meta = REFERENCE.meta(MetaConfig(inner_lr=0.5))
    assert (meta.reset_per_task, meta.held_out, meta.inner_lr) == (False, 0.0, 0.5)
    assert REFERENCE.finetune(FinetuneConfig(lr=0.5)) == FinetuneConfig(lr=0.5, select_on="test")
    assert REFERENCE.split(SplitConfig(50, seed=4)) == SplitConfig(50, validation_fraction=0.0, seed=4)
    said = leaks(REFERENCE.finetune(FinetuneConfig()), {"meta_select_on": "target set"})
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
