"""Clean pictures under other light, colours and focus."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from conftest import UInt8Array

from grmp_edge.train.pictures.procedural import procedural_image
from grmp_edge.train.recipe import light_and_lens as room

CHANGES = ("_SOFT", "_COLOUR", "_HAZE", "_LIGHT", "_TONE")


Only = Callable[[str], None]


@pytest.fixture(scope="module")
def scene() -> UInt8Array:
    return procedural_image(np.random.default_rng(11), 256)


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Only:
    """Make one change certain and all others impossible."""

    def choose(change: str) -> None:
        for name in CHANGES:
            monkeypatch.setattr(room, name, 1.0 if name == change else 0.0)

    return choose


def many(scene: UInt8Array, count: int = 60) -> list[UInt8Array]:
    return [room.vary(np.random.default_rng(i), scene) for i in range(count)]


def test_a_change_is_a_function_of_the_seed_and_leaves_its_picture_alone(scene: UInt8Array) -> None:
    before = scene.copy()
    made = many(scene)
    assert np.array_equal(scene, before)
    assert all(picture.shape == scene.shape and picture.dtype == np.uint8 for picture in made)
    assert all(np.array_equal(one, two) for one, two in zip(made, many(scene), strict=True))
    left = np.mean([np.array_equal(picture, scene) for picture in made])
    assert 0.02 < left < 0.4 and len({picture.tobytes() for picture in made}) > 30


def test_a_soft_lens_takes_detail_and_keeps_light(scene: UInt8Array, only: Only) -> None:
    only("_SOFT")
    for picture in many(scene, 12):
        assert cv2.Laplacian(picture, cv2.CV_64F).var() < cv2.Laplacian(scene, cv2.CV_64F).var()
        assert picture.mean() == pytest.approx(scene.mean(), abs=1.0)


def test_softness_is_the_same_to_the_eye_whatever_the_size(scene: UInt8Array, only: Only) -> None:
    only("_SOFT")
    large = np.asarray(cv2.resize(scene, (1024, 1024), interpolation=cv2.INTER_CUBIC), np.uint8)
    for seed in range(6):
        small, big = (room.vary(np.random.default_rng(seed), picture) for picture in (scene, large))
        shrunk = cv2.resize(big, (256, 256), interpolation=cv2.INTER_AREA)
        edge, whole = np.s_[8:-8, 8:-8], scene.astype(float)
        lost = [np.abs(whole - picture)[edge].mean() for picture in (small, shrunk)]
        assert lost[1] == pytest.approx(lost[0], rel=0.35)


def test_colours_change_and_brightness_hardly(scene: UInt8Array, only: Only) -> None:
    only("_COLOUR")
    scene = np.clip(scene * np.array([0.9, 0.6, 0.3]) + 20, 0, 255).astype(np.uint8)

    def chroma(picture: UInt8Array) -> float:
        values = picture.astype(float)
        return float(np.abs(values - values.mean(axis=2, keepdims=True)).mean())

    made = many(scene, 40)
    paler = np.mean([chroma(picture) < chroma(scene) for picture in made])
    assert 0.4 < paler < 0.95
    assert np.mean([picture.mean() for picture in made]) == pytest.approx(scene.mean(), rel=0.1)


def test_haze_takes_contrast(scene: UInt8Array, only: Only) -> None:
    only("_HAZE")
    for picture in many(scene, 12):
        assert picture.std() < 0.95 * scene.std() and picture.min() > scene.min() + 10


def test_light_is_uneven_and_smooth(only: Only) -> None:
    only("_LIGHT")
    grey = np.full((256, 256, 3), 100, np.uint8)
    for picture in many(grey, 12):
        field = picture[..., 0].astype(float)
        assert (picture[..., 0] == picture[..., 2]).all() and np.ptp(field) > 8
        assert np.abs(np.diff(field, axis=0)).max() <= 8 and np.abs(np.diff(field, axis=1)).max() <= 8


def test_tones_are_darkened_more_often_than_lit(scene: UInt8Array, only: Only) -> None:
    only("_TONE")
    darker = np.mean([picture.mean() < scene.mean() for picture in many(scene, 200)])
    assert darker == pytest.approx(2 / 3, abs=0.1)
    for picture in many(scene, 12):  # a curve keeps the order of tones
        flat, before = picture.reshape(-1), scene.reshape(-1)
        order = np.argsort(before, kind="stable")
        assert (np.diff(flat[order].astype(int)) >= 0).all()
