"""The 25 distortions: contract, determinism, and that each does what its name says, more at each level."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import Float64Array, UInt8Array

from grmp_edge.errors import DataError, ImageError
from grmp_edge.train.pictures.distort import DISTORTIONS, LEVELS, distort
from grmp_edge.train.pictures.procedural import procedural_image

NAMES = [
    "gaussian_blur",
    "lens_blur",
    "motion_blur",
    "color_diffusion",
    "color_shift",
    "color_quantization",
    "color_saturation_1",
    "color_saturation_2",
    "jpeg2000",
    "jpeg",
    "white_noise",
    "color_component_noise",
    "impulse_noise",
    "multiplicative_noise",
    "denoise",
    "brighten",
    "darken",
    "mean_shift",
    "jitter",
    "non_eccentricity_patch",
    "pixelate",
    "quantization",
    "color_block",
    "high_sharpen",
    "contrast_change",
]


@pytest.fixture(scope="module")
def pictures() -> list[UInt8Array]:
    kinds = ("landscape", "street", "dead_leaves", "still_life")
    return [procedural_image(np.random.default_rng(i), 256, kind) for i, kind in enumerate(kinds)]


def levels(picture: UInt8Array, kind: str, seed: int = 5) -> list[UInt8Array]:
    return [distort(picture, kind, level, np.random.default_rng(seed)) for level in LEVELS]


def ssim(a: UInt8Array, b: UInt8Array) -> float:
    """Mean SSIM of the grey pictures (Wang et al. 2004), written out independently of the code under test."""
    x, y = (cv2.cvtColor(p, cv2.COLOR_RGB2GRAY).astype(np.float64) for p in (a, b))

    def mean(v: Float64Array) -> Float64Array:
        return np.asarray(cv2.GaussianBlur(v, (11, 11), 1.5))

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    return float(np.mean((2 * mx * my + 6.5) * (2 * cov + 58.5) / ((mx**2 + my**2 + 6.5) * (vx + vy + 58.5))))


def falls(values: Iterable[float]) -> bool:
    return all(b < a for a, b in pairwise(values))


def test_names_are_kadid10k_in_order() -> None:
    assert list(DISTORTIONS) == NAMES


@pytest.mark.parametrize("kind", NAMES)
def test_shape_type_determinism_and_input_untouched(kind: str, pictures: list[UInt8Array]) -> None:
    picture = pictures[0]
    before = picture.copy()
    one, two = levels(picture, kind), levels(picture, kind)
    for a, b in zip(one, two, strict=True):
        assert a.dtype == np.uint8 and a.shape == picture.shape and a.flags.c_contiguous
        assert np.array_equal(a, b)
        assert not np.shares_memory(a, picture)
    assert np.array_equal(before, picture)


@pytest.mark.parametrize("kind", NAMES)
def test_each_level_is_farther_from_the_original(kind: str, pictures: list[UInt8Array]) -> None:
    for i, picture in enumerate(pictures):
        error = [float(np.mean((d.astype(float) - picture) ** 2)) for d in levels(picture, kind, seed=i)]
        assert error[0] > 0.3, "the first level must be visible"
        assert falls([-e for e in error]), error


STRUCTURAL = [
    "gaussian_blur",
    "lens_blur",
    "motion_blur",
    "jpeg2000",
    "jpeg",
    "white_noise",
    "impulse_noise",
    "multiplicative_noise",
    "denoise",
    "jitter",
    "pixelate",
    "color_block",
    "high_sharpen",
]


@pytest.mark.parametrize("kind", STRUCTURAL)
def test_each_level_has_lower_ssim(kind: str, pictures: list[UInt8Array]) -> None:
    # Averaged over pictures: SSIM of a single one may wobble by a thousandth.
    scores = np.mean([[ssim(p, d) for d in levels(p, kind)] for p in pictures], axis=0)
    assert falls(scores), scores
    assert scores[0] < 0.995


@pytest.mark.parametrize("kind", ["gaussian_blur", "lens_blur", "motion_blur"])
def test_blurs_take_detail_away(kind: str, pictures: list[UInt8Array]) -> None:
    for picture in pictures:
        detail = [float(cv2.Laplacian(d, cv2.CV_64F).std()) for d in (picture, *levels(picture, kind))]
        assert detail[5] < 0.6 * detail[0]


def test_noise_has_the_stated_sigma() -> None:
    grey = np.full((128, 128, 3), 128, np.uint8)
    found = [float(d.astype(float).std()) for d in levels(grey, "white_noise")]
    assert found == pytest.approx(DISTORTIONS["white_noise"].strengths, rel=0.05)


def test_denoise_smears(pictures: list[UInt8Array]) -> None:
    """Less is left of the noise than was put in, and less of the detail than there was."""
    for picture in pictures:
        noisy = distort(picture, "white_noise", 4, np.random.default_rng(0)).astype(float)
        smeared = distort(picture, "denoise", 4, np.random.default_rng(0)).astype(float)
        assert np.mean((smeared - picture) ** 2) < np.mean((noisy - picture) ** 2)
        detail = [cv2.Laplacian(p, cv2.CV_64F).std() for p in (picture.astype(float), smeared)]
        assert detail[1] < 0.8 * detail[0]


def test_impulse_noise_hits_the_stated_share() -> None:
    grey = np.full((256, 256, 3), 128, np.uint8)
    for result, share in zip(
        levels(grey, "impulse_noise"), DISTORTIONS["impulse_noise"].strengths, strict=True
    ):
        hit = (result != 128).any(axis=-1)
        assert hit.mean() == pytest.approx(share, rel=0.25)
        assert set(np.unique(result[hit])) <= {0, 255}


@pytest.mark.parametrize("kind", ["jpeg", "jpeg2000"])
def test_coded_pictures_hold_less_and_less(kind: str, pictures: list[UInt8Array]) -> None:
    size = [
        float(np.mean([len(cv2.imencode(".jpg", p, [cv2.IMWRITE_JPEG_QUALITY, 95])[1]) for p in ps]))
        for ps in zip(*(levels(p, kind) for p in pictures), strict=True)
    ]
    assert falls(size), size


def test_tone_and_colour_go_the_way_their_names_say(pictures: list[UInt8Array]) -> None:
    for picture in pictures:
        assert falls([d.mean() for d in (picture, *levels(picture, "darken"))])
        assert falls([-d.mean() for d in (picture, *levels(picture, "brighten"))])

        def chroma(p: UInt8Array) -> float:
            return float(np.ptp(p.astype(float), axis=-1).mean())

        assert falls([chroma(d) for d in (picture, *levels(picture, "color_saturation_1"))])
        assert falls([-chroma(d) for d in (picture, *levels(picture, "color_saturation_2"))])
        assert chroma(levels(picture, "color_saturation_1")[4]) < 1
        for result, count in zip(
            levels(picture, "quantization"), DISTORTIONS["quantization"].strengths, strict=True
        ):
            assert len(np.unique(result)) <= count
        for result, count in zip(
            levels(picture, "color_quantization"), DISTORTIONS["color_quantization"].strengths, strict=True
        ):
            assert len(np.unique(result.reshape(-1, 3), axis=0)) <= count


def test_mean_shift_and_contrast_go_both_ways(pictures: list[UInt8Array]) -> None:
    picture = (pictures[0] // 3 + 85).astype(np.uint8)  # room above and below
    shifts = {
        round(float(distort(picture, "mean_shift", 2, np.random.default_rng(s)).mean() - picture.mean()))
        for s in range(20)
    }
    assert shifts == {-24, 24}
    spreads = [
        distort(picture, "contrast_change", 3, np.random.default_rng(s)).std() / picture.std()
        for s in range(20)
    ]
    assert min(spreads) < 0.6 and max(spreads) > 1.5


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("shape", [(8, 8, 3), (37, 61, 3), (90, 20, 3)])
def test_small_and_odd_sizes(kind: str, shape: tuple[int, int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for result in levels(picture, kind):
        assert result.shape == shape and result.dtype == np.uint8


def test_plain_and_strided_pictures(pictures: list[UInt8Array]) -> None:
    plain = np.full((64, 64, 3), 77, np.uint8)
    strided = pictures[0][::-2, ::2]
    for kind in NAMES:
        assert distort(plain, kind, 5, np.random.default_rng(0)).shape == plain.shape
        expected = distort(np.ascontiguousarray(strided), kind, 3, np.random.default_rng(0))
        assert np.array_equal(distort(strided, kind, 3, np.random.default_rng(0)), expected)


@pytest.mark.parametrize(
    ("kind", "level"), [("fog", 1), ("jpeg", 0), ("jpeg", 6), ("jpeg", 2.5), ("jpeg", True)]
)
def test_unknown_kind_or_level(kind: str, level: Any, pictures: list[UInt8Array]) -> None:
    with pytest.raises(DataError) as caught:
        distort(pictures[0], kind, level, np.random.default_rng(0))
    assert str(kind if kind == "fog" else level) in str(caught.value) and caught.value.remedy


@pytest.mark.parametrize(
    "bad", [np.zeros((32, 32), np.uint8), np.zeros((32, 32, 3)), np.zeros((4, 32, 3), np.uint8), None]
)
def test_what_is_no_picture(bad: Any) -> None:
    with pytest.raises(ImageError):
        distort(bad, "jpeg", 1, np.random.default_rng(0))
