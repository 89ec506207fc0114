"""The appeal of scenes: what different pictures without faults, and with them, are said to be worth."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from conftest import UInt8Array

from grmp_edge.export.default_model import scene_aware_tasks
from grmp_edge.preprocess import squash
from grmp_edge.train.network.embedded import build_embedded, token_ids_of
from grmp_edge.train.pictures.procedural import procedural_image
from grmp_edge.train.recipe.captions import Statistics, vocabulary
from grmp_edge.train.recipe.faults import KINDS, apply_fault
from grmp_edge.train.recipe.groups import SQUASHED, Batch, Source, make_batch, statistics
from grmp_edge.train.recipe.objective import LossConfig, Objective, normalise
from grmp_edge.train.recipe.scene_quality import appeal, perceived_quality
from grmp_edge.train.tasks import SyntheticConfig

ORDINARY = Statistics(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def scene() -> UInt8Array:
    return squash(procedural_image(np.random.default_rng(4), 384, "dead_leaves"), SQUASHED)


def test_an_ordinary_scene_weighs_nothing() -> None:
    assert appeal(ORDINARY, ORDINARY) == 0.0
    assert perceived_quality(1.0, 0.0) == pytest.approx(0.8, abs=0.005)


@pytest.mark.parametrize(
    "better, worse",
    [
        (Statistics(0, 0, 0, 1), Statistics(0, 0, 0, -1)),  # detail
        (Statistics(0, 0, 1, 0), Statistics(0, 0, -1, 0)),  # colour
        (Statistics(0.2, 0, 0, 0), Statistics(-1.5, 0, 0, 0)),  # not dark
        (Statistics(0.9, 0, 0, 0), Statistics(0.5, 0, 0, 0)),  # a little more light is better than less
        (Statistics(0, 0, 0, 0, 1), Statistics(0, 0, 0, 0, -1)),  # sharpness of what detail there is
        (Statistics(1.2, 0, 0, 0), Statistics(1.5, 0, 0, 0, 0, 1)),  # not burnt out
    ],
)
def test_sharp_colourful_well_lit_scenes_are_preferred(better: Statistics, worse: Statistics) -> None:
    assert appeal(better, better) > appeal(worse, worse)
    assert perceived_quality(0.5, appeal(better, better)) > perceived_quality(0.5, appeal(worse, worse))


def test_no_fault_makes_a_picture_more_appealing(scene: UInt8Array) -> None:
    clean = statistics(scene)
    for kind in KINDS:
        for level in (1, 5):
            shown = statistics(apply_fault(scene, kind, level, np.random.default_rng(level)))
            assert appeal(clean, shown) <= appeal(clean, clean), kind


def test_sharpness_is_of_focus_and_not_of_contrast_or_content(scene: UInt8Array) -> None:
    flat = np.asarray(scene * 0.4 + 60, np.uint8)
    soft = np.asarray(cv2.GaussianBlur(scene, (0, 0), 1.2), np.uint8)
    sharp, low, blurred = statistics(scene), statistics(flat), statistics(soft)
    assert low.detail < sharp.detail - 0.8 and abs(low.sharpness - sharp.sharpness) < 0.15
    assert blurred.sharpness < sharp.sharpness - 0.8


def test_blown_is_the_share_that_is_burnt_out() -> None:
    image = np.full((224, 224, 3), 120, np.uint8)
    assert statistics(image).blown == pytest.approx(-0.1 / 0.15, abs=1e-6)
    image[:56] = 250  # a quarter
    assert statistics(image).blown == pytest.approx(2.0)
    image[14:56] = 120  # a sixteenth
    assert statistics(image).blown == pytest.approx(1.0, abs=1e-6)


def test_states_are_ranked_by_their_faults_however_appealing_the_scene(scene: UInt8Array) -> None:
    """In quality the states of a brilliant picture lie too close together to be told apart."""
    made = make_batch(np.random.default_rng(7), [Source("one", scene, "others", 1.0)] * 3, 3, 1.0, True)
    kept = made.remaining.reshape(3, 4)
    assert (kept[:, 0] > kept[:, 1] + 0.03).all() and (kept[:, 1] > kept[:, 2] + 0.03).all()
    objective = Objective(build_embedded(), LossConfig(), token_ids_of(vocabulary()))

    def rank(batch: Batch) -> float:
        torch.manual_seed(1)
        with torch.no_grad():
            return float(objective(batch, normalise(torch.from_numpy(batch.images)))[1]["rank"])

    assert rank(replace(made, quality=np.full_like(made.quality, 0.99))) == pytest.approx(rank(made))
    assert rank(replace(made, remaining=np.full_like(made.remaining, 0.99))) == 0 < rank(made)


def test_worst_faults_weigh_more_than_ordinary_differences_of_scenes() -> None:
    sharp, plain = Statistics(0, 0, 0.4, 0.4), Statistics(0, 0, -0.4, -0.4)
    assert perceived_quality(0.1, appeal(sharp, sharp)) < perceived_quality(1.0, appeal(plain, plain))


def test_a_scene_out_of_focus_is_worth_less_only_where_scenes_differ(scene: UInt8Array) -> None:
    soft = np.asarray(cv2.GaussianBlur(scene, (0, 0), 4), np.uint8)
    found = {}
    for differ in (False, True):
        for name, image in (("sharp", scene), ("soft", soft)):
            made = make_batch(
                np.random.default_rng(7), [Source(name, image, "others", 1.0)] * 8, 8, 1.0, differ
            )
            clean = made.severity.max(axis=1) == 0
            assert clean.any()
            found[name, differ] = made.quality[clean]
    assert (found["sharp", False] == 1).all() and (found["soft", False] == 1).all()
    assert (found["sharp", True] > found["soft", True] + 0.1).all()


def test_tasks_grade_the_scene_beside_the_level(scene: UInt8Array) -> None:
    soft = np.asarray(cv2.GaussianBlur(scene, (0, 0), 4), np.uint8)
    photographs = [Source("sharp", scene, "others", 1.0), Source("soft", soft, "others", 1.0)]
    tasks = scene_aware_tasks(photographs, SyntheticConfig(distortions=("jpeg", "darken")))
    assert [task.name for task in tasks] == ["jpeg", "darken"]
    for task in tasks:
        quality = task.quality.reshape(2, 6)
        assert (np.diff(quality, axis=1) < 0).all() and (quality[0] > quality[1]).all()
        assert quality.dtype == np.float32 and quality.min() > 0 and quality.max() < 1
