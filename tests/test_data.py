"""The csv and its errors, the splits, and the decoded pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers_train import pictures, write_labelled

from grmp_edge.errors import DataError
from grmp_edge.train.data.labelled import (
    CsvConfig,
    Labelled,
    SplitConfig,
    data_digest,
    load_squashed,
    read_csv,
    split_indices,
)


def write(
    folder: Path, text: str, encoding: str = "utf-8", names: Sequence[str] = ("a.png", "b.png")
) -> Path:
    folder.mkdir(exist_ok=True)
    for index, name in enumerate(names):
        (folder / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(folder / name), pictures(1, 20, index)[0])
    path = folder / "labels.csv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,mos\na.png,1\nnone.png,2\n", r"labels\.csv:3: picture 'none\.png' is not in "),
        ("image,mos\na.png,good\n", r"labels\.csv:2: the score 'good' is not a number"),
        ("image,mos\na.png,1\nb.png,nan\n", r"labels\.csv:3: the score 'nan'"),
        ("image,mos\na.png,inf\n", r"labels\.csv:2: the score 'inf'"),
        ("image,mos\na.png,\n", r"labels\.csv:2: nothing in column 'mos' \(2 of 2 cells\)"),
        ("image,mos\n\na.png\n", r"labels\.csv:3: nothing in column 'mos' \(1 of 2 cells\)"),
        ("image,mos\n,3\n", r"labels\.csv:2: nothing in column 'image'"),
        ("image,mos\na.png,82,911\n", r"labels\.csv:2: 3 cells, and the header has 2"),
        ("image,mos\na.png,1\nb.png,2\n./a.png,3\n", r"labels\.csv:4: picture '\./a\.png' is on line 2, too"),
        ("image;mos\na.png;1,5\nb.png;2.5\n", r"labels\.csv:3: .*'2\.5' has another decimal sign than '1,5'"),
        ("image,mos,mos\na.png,1,2\n", r"has two columns 'mos'"),
        ("image,x,y\na.png,1,2\n", r"labels\.csv: has no column 'mos' \(it has image, x, y\)"),
        ("image,std\na.png,1\n", r"labels\.csv: has no column 'mos' \(it has image, std\)"),
        ("PK\x03\x04 etc", "an Excel workbook, not a csv"),
        ("mos\n1\n", r"has no column 'image'"),
        ("", r"has no column 'image' \(it has no header\)"),
        ("image,mos\n", r"labels\.csv: has no labelled picture"),
    ],
)
def test_each_error_names_its_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        read_csv(write(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert caught.value.remedy


def test_out_of_range_bad_encoding_missing_file(tmp_path: Path) -> None:
    path = write(tmp_path, "image,mos\na.png,50\nb.png,101\n")
    with pytest.raises(DataError, match=r"labels\.csv:3: the score 101 is outside 0\.\.100"):
        read_csv(path, mos_range=(0, 100))
    with pytest.raises(DataError, match=r"cannot be read as csv.*UTF-8"):
        read_csv(write(tmp_path, "image,mos\na.png,1\n", "utf-16-le"))
    with pytest.raises(DataError, match="no such file"):
        read_csv(tmp_path / "none.csv")
    with pytest.raises(DataError, match="cannot be read as csv"):
        read_csv(tmp_path)


def test_byte_order_mark_spaces_and_pyiqas_columns(tmp_path: Path) -> None:
    data = read_csv(write(tmp_path, "image , MOS\r\na.png, 1.5 \r\nb.png,3\r\n", "utf-8-sig"))
    assert data.mos.tolist() == [1.5, 3.0]
    assert data.references is None
    assert data.scale is None
    pyiqa = read_csv(write(tmp_path, "img_name,mos,std,split\na.png,1,0.1,0\nb.png,2,0.1,1\n"))
    assert [path.name for path in pyiqa.paths] == ["a.png", "b.png"]
    assert pyiqa.fixed is None and "the column split says neither train nor test" in pyiqa.notes[0]
    full = read_csv(
        write(tmp_path, "image,mos,std,reference,distortion\na.png,1,0,r1,jpeg\nb.png,2,0,r2,blur\n"),
        mos_range=(0, 5),
    )
    assert full.references == ("r1", "r2")
    assert full.distortions == ("jpeg", "blur")
    np.testing.assert_allclose(full.quality(full.scale_of([])), [0.2, 0.4])


WRITTEN = {
    "semicolons": ("image;mos\na.png;82.911\nb.png;3\n", "utf-8"),
    "decimal commas": ("image;mos\na.png;82,911\nb.png;3\n", "utf-8"),
    "in quotes": ('image,mos\na.png,"82,911"\nb.png,3\n', "utf-8"),
    "thousands": ('image,mos\na.png,"82.911"\nb.png,"3"\n', "utf-8"),
    "tabs": ("image\tmos\r\na.png\t82,911\r\nb.png\t3\r\n", "utf-16"),
    "UTF-16, big-endian": ("\ufeffimage,mos\na.png,82.911\nb.png,3\n", "utf-16-be"),
    "Excel's own line": ("sep=;\nimage;mos\na.png;82,911\nb.png;3\n", "utf-8-sig"),
    "Windows' code page": ("image;mos;who\na.png;82,911;J\xf6rg\nb.png;3;\n", "cp1252"),
    "backslashes": ("image,mos\n.\\a.png,82.911\n.\\b.png,3\n", "utf-8"),
    "a drive": ('image,mos\n"C:\\my photos\\a.png",82.911\nb.png,3\n', "utf-8"),
    "blank lines": ("\n\nimage;mos\n;\n\na.png;82.911\n;;\nb.png;3\n\n", "utf-8"),
    "empty cells at the end": ("image,mos\na.png,82.911,,\nb.png,3,\n", "utf-8"),
}


@pytest.mark.parametrize("how", WRITTEN)
def test_tables_as_spreadsheets_and_windows_write_them(tmp_path: Path, how: str) -> None:
    data = read_csv(write(tmp_path, *WRITTEN[how]))
    assert [path.name for path in data.paths] == ["a.png", "b.png"]
    assert data.mos.tolist() == [82.911, 3]
    commas = "82,911" in WRITTEN[how][0]
    assert any("82,911 is read as 82.911" in note for note in data.notes) == commas


def test_columns_by_name_and_by_guess(tmp_path: Path) -> None:
    text = "id,photo,rating,std,place\n1,a.png,4,.5,yard\n2,b.png,2,,\n"
    data = read_csv(write(tmp_path, text))
    assert data.mos.tolist() == [4, 2] and [path.name for path in data.paths] == ["a.png", "b.png"]
    assert "column 'photo' is taken for the image" in data.notes[0]
    assert "column 'rating' is taken for the mos (--mos-column)" in data.notes[1]
    asked = read_csv(tmp_path / "labels.csv", config=CsvConfig("Photo", "ID"))
    assert asked.mos.tolist() == [1, 2] and not asked.notes
    with pytest.raises(DataError, match=r"has no column 'mark' \(it has id, photo, rating, std, place\)"):
        read_csv(tmp_path / "labels.csv", config=CsvConfig(mos="mark"))
    bare = read_csv(write(tmp_path, "a.png;4,5\nb.png;2\n"))
    assert bare.mos.tolist() == [4.5, 2]
    assert "no header, the first line names a picture" in bare.notes[0]
    with pytest.raises(DataError, match=r"has no column 'image'.*--image-column"):  # two could be it
        read_csv(write(tmp_path, "one,two,mos\na.png,b.png,1\n"))


def test_ratings_of_one_picture_are_averaged_if_asked(tmp_path: Path) -> None:
    text = "image,mos,distortion\na.png,1,blur\nb.png,2,jpeg\n.\\a.png,4,blur\n"
    data = read_csv(write(tmp_path, text), config=CsvConfig(average=True))
    assert data.mos.tolist() == [2.5, 2] and data.distortions == ("blur", "jpeg")
    assert "on several lines 1 of the pictures" in data.notes[0]


def test_where_pictures_are_looked_for(tmp_path: Path) -> None:
    inside = read_csv(
        write(tmp_path / "one", "image,mos\nc.png,1\na.png,2\n", names=("images/c.png", "a.png"))
    )
    assert [str(p.relative_to(tmp_path / "one")) for p in inside.paths] == ["images/c.png", "a.png"]
    path = write(tmp_path / "two", "image,mos\nc.png,1\n", names=())
    assert read_csv(path, tmp_path / "one" / "images").paths == (tmp_path / "one" / "images" / "c.png",)
    with pytest.raises(DataError, match="--images"):
        read_csv(path, tmp_path / "one")


def made(count: int, references: Sequence[str] | None = None) -> Labelled:
    mos = np.arange(count, dtype=float)
    return Labelled("made", tuple(map(str, range(count))), mos, references)  # type: ignore[arg-type]


def test_split_sizes_and_disjointness() -> None:
    for seed in range(5):
        split = split_indices(made(100), SplitConfig(labels=50, seed=seed))
        assert (len(split.train), len(split.validation), len(split.test)) == (40, 10, 20)
        assert len({*split.train, *split.validation, *split.test}) == 70
        assert split == split_indices(made(100), SplitConfig(labels=50, seed=seed))
    everything = split_indices(made(100), SplitConfig())
    assert sorted([*everything.train, *everything.validation, *everything.test]) == list(range(100))
    assert len({split_indices(made(100), SplitConfig(seed=s)).test for s in range(5)}) == 5


def test_more_labels_keep_the_same_test_part() -> None:
    splits = [split_indices(made(200), SplitConfig(labels=n)) for n in (20, 50, 100)]
    assert splits[0].test == splits[1].test == splits[2].test
    drawn = [{*s.train, *s.validation} for s in splits]
    assert drawn[0] < drawn[1] < drawn[2]


def test_parts_share_no_reference_and_few_labels_come_from_many() -> None:
    references = tuple(f"r{i // 20}" for i in range(400))
    for seed in range(5):
        split = split_indices(made(400, references), SplitConfig(labels=50, seed=seed))
        owners = [{references[i] for i in part} for part in (split.train, split.validation, split.test)]
        assert not owners[0] & owners[1]
        assert not owners[0] & owners[2]
        assert not owners[1] & owners[2]
        assert len(split.train) + len(split.validation) == 50
        assert 2 <= len(split.validation) <= 10
        assert len(split.test) == 80
        assert len(owners[0] | owners[1]) > 10


def test_a_validation_part_too_small_to_rank_is_not_made() -> None:
    assert split_indices(made(10), SplitConfig(labels=5)).validation == ()  # a fifth of 5 is one
    assert len(split_indices(made(10), SplitConfig(labels=6, validation_fraction=0.9)).train) == 2
    one = split_indices(made(10, ("r",) * 5 + ("s",) * 5), SplitConfig())
    assert one.validation == ()
    assert len(one.train) == len(one.test) == 5


def test_too_few() -> None:
    with pytest.raises(DataError, match="9 labels requested, 8 are left beside the 2 for testing"):
        split_indices(made(10), SplitConfig(labels=9))
    with pytest.raises(DataError, match="at least 4"):
        split_indices(made(4), SplitConfig())
    assert split_indices(made(4), SplitConfig(test_fraction=0)).test == ()


def test_equal_labels_have_no_scale() -> None:
    data = made(5)
    assert (data.scale_of([1, 3]).low, data.scale_of([1, 3]).high) == (1.0, 3.0)
    np.testing.assert_allclose(data.quality(data.scale_of([1, 3])), [0, 0, 0.5, 1, 1])
    with pytest.raises(DataError, match="--mos-range"):
        data.scale_of([2])


def test_load_squashed(tmp_path: Path) -> None:
    data = read_csv(write_labelled(tmp_path, 5, 40))
    told = []
    pixels = load_squashed(data.paths, 35, lambda: told.append(1))
    assert len(told) == 5
    for path, found in zip(data.paths, pixels, strict=True):
        plain = cv2.resize(np.asarray(cv2.imread(str(path))), (35, 35), interpolation=cv2.INTER_CUBIC)[
            :, :, ::-1
        ]
        assert np.array_equal(found, plain)
    data.paths[1].write_bytes(b"")
    data.paths[3].write_text("no picture")
    data.paths[4].unlink()
    with pytest.raises(DataError, match=r"1\.png: the file is empty.*\(and 2 more\)"):
        load_squashed(data.paths, 35)


def test_digest_feels_pixels_and_labels() -> None:
    images, mos = pictures(3), np.arange(3.0)
    changed = images.copy()
    changed[1, 2, 3, 0] ^= 1
    digests = {data_digest(images, mos), data_digest(changed, mos), data_digest(images, mos + 1)}
    assert len(digests) == 3
    assert data_digest(images.copy(), mos.copy()) in digests
