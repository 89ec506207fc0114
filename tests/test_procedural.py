"""Procedural pictures: determinism, shape, and that they look like something."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from grmp_edge.errors import DataError
from grmp_edge.train.network.words import SCENES
from grmp_edge.train.pictures.procedural import PROCEDURAL, procedural_image


@pytest.mark.parametrize("kind", PROCEDURAL)
@pytest.mark.parametrize("size", [32, 129, 256])
def test_shape_and_determinism(kind: str, size: int) -> None:
    one = procedural_image(np.random.default_rng(3), size, kind)
    two = procedural_image(np.random.default_rng(3), size, kind)
    assert one.shape == (size, size, 3) and one.dtype == np.uint8
    assert np.array_equal(one, two)
    assert not np.array_equal(one, procedural_image(np.random.default_rng(4), size, kind))


@pytest.mark.parametrize("kind", PROCEDURAL)
def test_pictures_are_neither_plain_nor_noise(kind: str) -> None:
    for seed in range(4):
        picture = procedural_image(np.random.default_rng(seed), 256, kind)
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(float)
        assert grey.std() > 4, "it shows something"
        near = np.corrcoef(grey[:, 1:].ravel(), grey[:, :-1].ravel())[0, 1]
        assert near > 0.4, "neighbours are alike, as they are not in noise"
        assert 5 < grey.mean() < 252


@pytest.mark.parametrize("kind", ["dead_leaves", "page", "landscape", "street", "room", "still_life"])
def test_scenes_have_sharp_edges(kind: str) -> None:
    picture = procedural_image(np.random.default_rng(1), 256, kind)
    soft = cv2.GaussianBlur(picture, (0, 0), 2)
    assert cv2.Laplacian(picture, cv2.CV_64F).var() > 3 * cv2.Laplacian(soft, cv2.CV_64F).var()


def test_every_kind_is_drawn_and_named() -> None:
    rng = np.random.default_rng(0)
    drawn = {procedural_image(rng, 32).tobytes() for _ in range(20)}
    assert len(drawn) == 20
    assert all(scene in SCENES and weight > 0 for _, scene, weight in PROCEDURAL.values())


def test_errors_name_the_remedy() -> None:
    with pytest.raises(DataError, match="unknown procedural"):
        procedural_image(np.random.default_rng(0), 64, "cat")
    with pytest.raises(DataError, match="32 or more"):
        procedural_image(np.random.default_rng(0), 16)
