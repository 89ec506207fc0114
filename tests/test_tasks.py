"""Tasks from labelled sets and from photographs."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers_train import pictures, write_labelled

from grmp_edge.errors import DataError
from grmp_edge.train.data.labelled import Labelled, read_csv
from grmp_edge.train.pictures.distort import DISTORTIONS
from grmp_edge.train.tasks import (
    SyntheticConfig,
    labelled_tasks,
    load_photographs,
    procedural_photographs,
    synthetic_tasks,
)

PHOTOS = [(f"p{i}", image) for i, image in enumerate(pictures(3, 64))]


def test_synthetic_tasks_are_a_function_of_seed_type_photograph_and_level() -> None:
    first = synthetic_tasks(PHOTOS, SyntheticConfig(("white_noise", "jpeg")))
    again = synthetic_tasks(PHOTOS, SyntheticConfig(("jpeg", "white_noise")))[::-1]
    other = synthetic_tasks(PHOTOS, SyntheticConfig(("white_noise",), seed=1))[0]
    for a, b in zip(first, again, strict=True):
        assert a.name == b.name
        assert all(np.array_equal(a.read(i), b.read(i)) for i in (17, 3, 0, 9))
    assert not np.array_equal(first[0].read(3), other.read(3))
    assert not np.array_equal(first[0].read(3), first[1].read(3))


def test_quality_falls_from_the_photograph_itself_to_the_worst_level() -> None:
    (task,) = synthetic_tasks(PHOTOS, SyntheticConfig(("gaussian_blur",)))
    np.testing.assert_allclose(
        task.quality.reshape(3, 6), np.tile([1, 0.8, 0.6, 0.4, 0.2, 0], (3, 1)), atol=1e-6
    )
    assert task.references == tuple(f"p{i}" for i in range(3) for _ in range(6))
    for photo in range(3):
        pristine = PHOTOS[photo][1]
        assert np.array_equal(task.read(6 * photo), pristine)
        errors = [np.abs(task.read(6 * photo + k).astype(int) - pristine).mean() for k in range(6)]
        assert all(np.diff(errors) > 0)


def test_all_25_types_by_default_and_an_unknown_one_is_named() -> None:
    assert [task.name for task in synthetic_tasks(PHOTOS, SyntheticConfig())] == list(DISTORTIONS)
    assert len(DISTORTIONS) == 25
    with pytest.raises(DataError, match=r"unknown distortion 'jpg'.*jpeg2000"):
        synthetic_tasks(PHOTOS, SyntheticConfig(("jpeg", "jpg")))


def test_photographs(tmp_path: Path) -> None:
    for index in range(5):
        folder = tmp_path / ("deep" if index % 2 else ".")
        folder.mkdir(exist_ok=True)
        cv2.imwrite(str(folder / f"{index}.png"), cv2.resize(pictures(1, 64, index)[0], (200, 100)))
    (tmp_path / "notes.txt").write_text("not a picture")
    found = load_photographs(tmp_path, max_side=80)
    assert [name for name, _ in found] == ["0.png", "2.png", "4.png", "deep/1.png", "deep/3.png"]
    with pytest.raises(DataError, match="too small"):  # 50x25 after reducing
        load_photographs(tmp_path, max_side=50)
    assert {pixels.shape for _, pixels in found} == {(40, 80, 3)}
    assert len(load_photographs(tmp_path, 200, most=2)) == 2
    (tmp_path / "deep" / "1.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"deep/1\.png"):
        load_photographs(tmp_path, 200)


def test_photographs_that_cannot_serve(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        load_photographs(tmp_path / "none")
    with pytest.raises(DataError, match="0 photographs, but tasks need at least 2"):
        load_photographs(tmp_path)
    cv2.imwrite(str(tmp_path / "thin.png"), np.zeros((900, 20, 3), np.uint8))
    with pytest.raises(DataError, match=r"thin\.png: too small or too narrow"):
        load_photographs(tmp_path)


def test_computer_made_photographs_are_reproducible() -> None:
    first, again = procedural_photographs(2, 64, 5), procedural_photographs(2, 64, 5)
    assert [name for name, _ in first] == ["procedural-0", "procedural-1"]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(first, again, strict=True))
    assert not np.array_equal(first[0][1], first[1][1])
    assert not np.array_equal(first[0][1], procedural_photographs(1, 64, 6)[0][1])


def test_labelled_tasks_by_type(tmp_path: Path) -> None:
    plain = read_csv(write_labelled(tmp_path, 12))
    with pytest.raises(DataError, match="column 'distortion'"):
        labelled_tasks(plain)
    kinds = tuple("blur" if i % 2 else "noise" for i in range(12))
    references = tuple(f"r{i // 4}" for i in range(12))
    data = Labelled("made", plain.paths, plain.mos, references, kinds)
    tasks = labelled_tasks(data, min_pictures=6)
    assert [task.name for task in tasks] == ["blur", "noise"]
    for task, labels in zip(tasks, (data.mos[1::2], data.mos[::2]), strict=True):  # every type fills 0..1
        expected_quality = (labels - labels.min()) / (labels.max() - labels.min())
        np.testing.assert_allclose(task.quality, expected_quality, atol=1e-6)
    assert tasks[0].references == references[1::2]
    expected = np.asarray(cv2.imread(str(plain.paths[3])))[:, :, ::-1]
    assert np.array_equal(tasks[0].read(1), expected)
    with pytest.raises(DataError, match="no distortion type has 7 pictures"):
        labelled_tasks(data, min_pictures=7)
    alone = Labelled("made", plain.paths, plain.mos, ("r",) * 12, kinds)
    with pytest.raises(DataError, match="two references"):
        labelled_tasks(alone, min_pictures=2)
