"""MATLAB layouts: LIVEC as downloaded, and the reference's .mat files of both versions."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import scipy.io as scipy_io

from grmp_edge.errors import DataError, MissingDependencyError
from grmp_edge.score import MosScale
from grmp_edge.train.data.named_sets import read_spec
from grmp_edge.train.data.set_files import DataSet
from grmp_edge.train.evaluate.splits import InMemory


def livec(root: Path, count: int = 12, names: list[str] | None = None) -> None:
    """t1..t7 in trainingImages, then the numbered ones; names in a cell array, scores in one row."""
    names = names or [*(f"t{i}.bmp" for i in range(1, 8)), *(f"{i}.bmp" for i in range(3, 3 + count - 7))]
    cells = np.empty((len(names), 1), object)
    for row, name in enumerate(names):
        cells[row, 0] = name
        folder = root / "Images" / ("trainingImages" if name.startswith("t") else "")
        folder.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(folder / name), np.full((6, 6, 3), row, np.uint8))
    (root / "Data").mkdir(exist_ok=True)
    mos = np.linspace(5, 95, len(names))[None]
    scipy_io.savemat(root / "Data" / "AllImages_release.mat", {"AllImages_release": cells})
    scipy_io.savemat(root / "Data" / "AllMOS_release.mat", {"AllMOS_release": mos})
    scipy_io.savemat(root / "Data" / "AllStdDev_release.mat", {"AllStdDev_release": mos})


def test_livec_drops_the_seven_training_pictures(tmp_path: Path) -> None:
    livec(tmp_path)
    data = read_spec(f"livec:{tmp_path}")
    assert [path.name for path in data.paths] == ["3.bmp", "4.bmp", "5.bmp", "6.bmp", "7.bmp"]
    np.testing.assert_allclose(data.mos, np.linspace(5, 95, 12)[7:])
    assert data.scale == MosScale(0, 100)
    assert isinstance(data, DataSet) and "5 pictures, LIVE In the Wild has 1162" in data.notes[0]
    assert data.squashed([1], 4)[0, 0, 0].tolist() == [8, 8, 8]  # the ninth, so names and scores keep step


def test_the_reference_keeps_the_seven(tmp_path: Path) -> None:
    livec(tmp_path)
    data = read_spec(f"livec:{tmp_path}", livec_training_pictures=True)
    assert [path.name for path in data.paths[:8]] == [*(f"t{i}.bmp" for i in range(1, 8)), "3.bmp"]
    np.testing.assert_allclose(data.mos, np.linspace(5, 95, 12))
    assert isinstance(data, DataSet) and "LIVE In the Wild has 1169" in data.notes[0]
    assert data.squashed([8], 4)[0, 0, 0].tolist() == [8, 8, 8]


def test_livec_that_does_not_fit_together(tmp_path: Path) -> None:
    livec(tmp_path)
    (tmp_path / "Images" / "5.bmp").unlink()
    with pytest.raises(DataError, match=r"AllImages_release\.mat:10: the picture .*5\.bmp is missing"):
        read_spec(f"livec:{tmp_path}")
    mos = tmp_path / "Data" / "AllMOS_release.mat"
    scipy_io.savemat(mos, {"AllMOS_release": np.ones((1, 11))})
    with pytest.raises(DataError, match="has 11 scores for 12 pictures"):
        read_spec(f"livec:{tmp_path}")
    scipy_io.savemat(mos, {"other": np.ones((1, 11))})
    with pytest.raises(DataError, match=r"no variable 'AllMOS_release' \(it has other\)"):
        read_spec(f"livec:{tmp_path}")
    mos.write_bytes(b"not a mat file at all" * 10)
    with pytest.raises(DataError, match=r"AllMOS_release\.mat: cannot be read as a \.mat file"):
        read_spec(f"livec:{tmp_path}")


def pictures(count: int, seed: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 244, 244), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["v5", "v7.3 by MATLAB", "v7.3 by Python"])
def test_reference_mat(tmp_path: Path, kind: str) -> None:
    x, x_test = pictures(3, 1), pictures(2, 2)
    y, y_test = np.array([[0.5, 0.25, 0.75]]), np.array([[1.0, 0.0]])
    path = tmp_path / "split.mat"
    content = {"X": x, "Y": y, "Xtest": x_test, "Ytest": y_test}
    if kind == "v5":
        scipy_io.savemat(path, content)
    else:
        import h5py

        # MATLAB puts 512 bytes of its own before the file and stores arrays with their axes reversed.
        with h5py.File(path, "w", userblock_size=512 if kind.endswith("MATLAB") else 0) as file:
            for name, array in content.items():
                file[name] = array.T if kind.endswith("MATLAB") else array
        if kind.endswith("MATLAB"):
            with path.open("r+b") as stream:
                stream.write(b"MATLAB 7.3 MAT-file".ljust(512))
    data = read_spec(f"mat:{path}")
    assert isinstance(data, DataSet)
    np.testing.assert_allclose(data.mos, [0.5, 0.25, 0.75, 1, 0])
    assert data.parts == ("training",) * 3 + ("test",) * 2
    # The pictures come as they are, height before width, channels last.
    shown = data.squashed([4, 0], 244)
    np.testing.assert_array_equal(shown[0], np.transpose(x_test[1], (1, 2, 0)))
    np.testing.assert_array_equal(shown[1, 10, 200], x[0, :, 10, 200])
    # The protocol's copy in memory takes them from the same place.
    np.testing.assert_array_equal(InMemory.of(data).squashed([4, 0, 4], 244)[[2, 1]], shown)
    small = data.squashed([2], 61)
    wanted = cv2.resize(np.transpose(x[2], (1, 2, 0)), (61, 61), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_array_equal(small[0], wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": np.zeros((3, 3, 8, 8))}, r"X is float64 \(3, 3, 8, 8\), not uint8"),
        ({"X": np.zeros((3, 8, 8), np.uint8)}, "not uint8"),
        ({"Y": np.zeros((1, 4))}, "4 scores for the 3 pictures of X"),
        ({"Ytest": np.array([[np.nan]])}, "score of Xtest is not a number"),
    ],
)
def test_a_reference_mat_that_does_not_fit(tmp_path: Path, change: dict[str, object], message: str) -> None:
    content = {
        "X": np.zeros((3, 3, 8, 8), np.uint8), "Y": np.zeros((1, 3)),
        "Xtest": np.zeros((1, 3, 8, 8), np.uint8), "Ytest": np.zeros((1, 1)),
    }  # fmt: skip
    scipy_io.savemat(tmp_path / "a.mat", {**content, **change})
    with pytest.raises(DataError, match=message):
        read_spec(f"mat:{tmp_path / 'a.mat'}")
    with pytest.raises(DataError, match=r"outside 1\.\.5"):
        scipy_io.savemat(tmp_path / "b.mat", content)
        read_spec(f"mat:{tmp_path / 'b.mat'}", mos_range=(1, 5))


@pytest.mark.parametrize(("module", "spec"), [("scipy.io", "livec"), ("openpyxl", "bid"), ("h5py", "mat")])
def test_a_missing_reader_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, spec: str
) -> None:
    livec(tmp_path)
    (tmp_path / "DatabaseGrades.xlsx").write_bytes(b"")
    (tmp_path / "v73.mat").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    monkeypatch.setitem(sys.modules, module, None)  # as where it is not installed
    with pytest.raises(MissingDependencyError, match=r"pip install -e '\S+\[data\]'$"):
        read_spec(f"{spec}:{tmp_path / 'v73.mat' if spec == 'mat' else tmp_path}")
