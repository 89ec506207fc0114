"""Views: where native crops lie, what they hold, and how their logits become one score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from grmp_edge.errors import ImageError
from grmp_edge.preprocess import Preprocess
from grmp_edge.runtime.live.rotation import Rotation
from grmp_edge.views import EVEN, Aggregate, Box, Views, cover, crop, logit, sigmoid, spread

SIDE = 24
SIZES = [(100, 200), (24, 24), (25, 300), (9, 60), (5, 7), (1, 1), (1080, 1920), (300, 24)]


UInt8Array = npt.NDArray[np.uint8]


def picture(height: int, width: int, seed: int = 0) -> UInt8Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 9])
def test_crops_lie_inside_and_are_spread(height: int, width: int, count: int) -> None:
    boxes = spread(height, width, count, SIDE)
    assert 1 <= len(boxes) == len(set(boxes)) <= count
    for box in boxes:
        assert 0 <= box.left <= width - box.width and 0 <= box.top <= height - box.height
        assert box.width == min(SIDE, width) and box.height == min(SIDE, height)
    # As much room on the one side as on the other, to the pixel that rounding moves.
    left, right = boxes[0].left, width - boxes[-1].left - boxes[-1].width
    assert abs(left - right) <= 1
    if min(height, width) >= SIDE * count:
        assert len(boxes) == count


def test_four_are_two_by_two_and_three_follow_the_long_side() -> None:
    assert [(box.left, box.top) for box in spread(100, 200, 4, 20)] == [
        (40, 15),
        (140, 15),
        (40, 65),
        (140, 65),
    ]
    assert len({box.top for box in spread(100, 200, 3, 20)}) == 1
    assert len({box.left for box in spread(200, 100, 3, 20)}) == 1
    assert spread(100, 100, 0, 20) == ()


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_cover_shows_every_pixel_with_the_fewest_crops(height: int, width: int) -> None:
    seen = np.zeros((height, width), bool)
    boxes = cover(height, width, SIDE)
    for box in boxes:
        seen[box.top : box.top + box.height, box.left : box.left + box.width] = True
    assert seen.all() and len(boxes) == max(1, -(-height // SIDE)) * max(1, -(-width // SIDE))


def test_a_crop_is_the_pictures_own_pixels_or_its_mirror() -> None:
    image = picture(50, 60)
    assert np.array_equal(crop(image, Box(7, 11, SIDE, SIDE), SIDE), image[11 : 11 + SIDE, 7 : 7 + SIDE])
    small = picture(10, 60)
    cut = crop(small, Box(3, 0, SIDE, 10), SIDE)
    assert cut.shape == (SIDE, SIDE, 3)
    # Mirrored without its edge twice, as numpy's "reflect".
    expected = np.pad(small[:, 3 : 3 + SIDE], ((7, 7), (0, 0), (0, 0)), mode="reflect")
    assert np.array_equal(cut, expected)
    assert crop(picture(1, 1), Box(0, 0, 1, 1), SIDE).shape == (SIDE, SIDE, 3)


def test_views_are_the_whole_then_the_crops_in_rgb() -> None:
    preprocess = Preprocess(26, SIDE, native=4)
    image = picture(90, 120)
    views = preprocess.views(image)
    assert views.pixels.shape == (5, SIDE, SIDE, 3) and len(views.boxes) == 4
    assert np.array_equal(views.pixels[0], preprocess(image))
    box = views.boxes[2]
    assert np.array_equal(views.pixels[3], image[box.top : box.top + SIDE, box.left : box.left + SIDE])
    assert np.array_equal(preprocess.views(image[:, :, ::-1].copy(), bgr=True).pixels, views.pixels)
    assert Preprocess(26, SIDE).views(image).pixels.shape == (1, SIDE, SIDE, 3)
    with pytest.raises(ImageError, match="native"):
        Preprocess(26, SIDE, native=-1)
    with pytest.raises(ValueError, match="boxes"):
        Views(views.pixels, views.boxes[:2])


def test_the_aggregate_is_linear_in_logits() -> None:
    logits = np.array([[2.0, 0.5], [1.0, -1.0], [-3.0, 4.0]])
    combined = Aggregate(0.7, 0.2, -0.1)(logits)
    assert combined == pytest.approx([0.7 * 2 + 0.2 * -1 - 0.1, 0.7 * 0.5 + 0.2 * 1.5 - 0.1])
    alone = Aggregate(0.7, 0.2, -0.1)(logits[:1])
    assert alone == pytest.approx([0.9 * 2 - 0.1, 0.9 * 0.5 - 0.1])
    assert Aggregate()(logits) == pytest.approx(logits[0])
    assert EVEN(logits) == pytest.approx([(2 - 1) / 2, (0.5 + 1.5) / 2])


def test_a_score_and_its_logit_are_the_same_to_the_last_bit() -> None:
    bits = np.random.default_rng(0).integers(0, np.float32(1.0).view(np.uint32), 20_000, dtype=np.uint32)
    edges = np.array([0.0, 1e-45, 1e-38, 0.5, 1 - 2**-24, 1.0], np.float32)
    values = np.concatenate([bits.view(np.float32), edges, np.linspace(0, 1, 5000, dtype=np.float32)])
    assert np.isfinite(logit(values)).all()
    assert np.array_equal(sigmoid(logit(values)).astype(np.float32), values)
    with np.errstate(all="raise", under="ignore"):
        assert sigmoid([-1e6, 1e6]) == pytest.approx([0, 1])


def views_of(rotation: Rotation, image: UInt8Array) -> Views:
    """What a camera's frame is read as."""
    return rotation.add(Preprocess(26, SIDE).views(image, True), image)


def test_a_cameras_crops_take_turns_until_the_whole_frame_has_been_seen() -> None:
    rotation = Rotation(Preprocess(26, SIDE, native=4), 2)
    image = picture(100, 150)
    every = set(cover(100, 150, SIDE))
    seen: list[Box] = []
    while len(seen) < len(every):
        views = views_of(rotation, image)
        assert views.pixels.shape[0] == 3
        assert np.array_equal(views.pixels[0], Preprocess(26, SIDE)(image, True))
        box = views.boxes[1]
        cut = image[box.top : box.top + SIDE, box.left : box.left + SIDE, ::-1]
        assert np.array_equal(views.pixels[2], cut)
        seen += views.boxes
    assert set(seen[: len(every)]) == every
    # Another size begins anew; a bundle without views has none.
    assert set(views_of(rotation, picture(60, 60)).boxes) <= set(cover(60, 60, SIDE))
    assert views_of(Rotation(Preprocess(26, SIDE), 2), image).boxes == ()
    assert views_of(Rotation(Preprocess(26, SIDE, native=4), 0), image).boxes == ()


def test_what_was_read_of_other_places_counts_until_the_whole_changes() -> None:
    rotation = Rotation(Preprocess(26, SIDE, native=4), 1)
    image = picture(24, 48)  # two places
    first = views_of(rotation, image)
    places, logits = rotation.complete(first, np.array([[1.0], [0.5]]))
    assert places == first.boxes and logits[:, 0].tolist() == [1.0, 0.5]
    second = views_of(rotation, image)
    assert second.boxes != first.boxes
    places, logits = rotation.complete(second, np.array([[1.1], [-2.0]]))
    by_place = dict(zip(places, logits[1:, 0].tolist(), strict=True))
    assert by_place == {first.boxes[0]: 0.5, second.boxes[0]: -2.0} and logits[0, 0] == 1.1
    # The lens is covered: what was read of the other place speaks of another picture.
    third = views_of(rotation, image)
    places, logits = rotation.complete(third, np.array([[-3.0], [-4.0]]))
    assert places == third.boxes and logits[:, 0].tolist() == [-3.0, -4.0]


def test_a_picture_of_any_size_has_views(tmp_path: Path) -> None:
    preprocess = Preprocess(244, 224, native=4)
    for size in ((3840, 2160), (1080, 1920), (30, 17), (224, 224), (5000, 100)):
        Image.new("RGB", size, (90, 120, 30)).save(tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as opened:
            views = preprocess.views(np.asarray(opened))
        assert views.pixels.shape[1:] == (224, 224, 3)
        assert (views.pixels == (90, 120, 30)).all()
