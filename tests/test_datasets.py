"""One small tree for each data set, in the layout it is downloaded in, with the traps of the real one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from grmp_edge.errors import DataError, GrmpError
from grmp_edge.score import MosScale
from grmp_edge.train.data.labelled import SplitConfig, split_indices
from grmp_edge.train.data.named_sets import READERS, read_spec
from grmp_edge.train.data.set_files import DataSet
from grmp_edge.train.pictures.distort import DISTORTIONS
from grmp_edge.train.tasks import labelled_tasks


def picture(path: Path, shade: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((8, 10, 3), shade, np.uint8))


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def sheet(path: Path, rows: list[tuple[Any, ...]], title: str = "Sheet1", before: str = "") -> None:
    import openpyxl

    path.parent.mkdir(parents=True, exist_ok=True)
    book = openpyxl.Workbook()
    book.active.title = before or title
    target = book.create_sheet(title) if before else book.active
    for row in rows:
        target.append(row)
    book.save(path)


def read(spec: str, **options: Any) -> DataSet:
    found = read_spec(spec, **options)
    assert isinstance(found, DataSet)
    return found


def names(data: DataSet) -> list[str]:
    return [path.name for path in data.paths]


@pytest.fixture
def tid(tmp_path: Path) -> Path:
    """Two references, two types, two levels; the labels and the files disagree about the case."""
    lines = []
    for reference in (1, 25):
        for kind in (1, 24):
            for level in (1, 5):
                stem = f"{reference:02d}_{kind:02d}_{level}.bmp"
                picture(tmp_path / "distorted_images" / f"{'I' if level == 1 else 'i'}{stem}")
                # As in the real file: "i25", and extensions in either case.
                lines.append(f"{9 - level - kind / 10:.5f} {'i' if reference == 25 else 'I'}{stem}")
    write(tmp_path / "mos_with_names.txt", *lines)
    return tmp_path


def test_tid2013(tid: Path) -> None:
    data = read(f"tid2013:{tid}")
    assert len(data) == 8 and data.scale == MosScale(0, 9)
    assert names(data)[:3] == ["I01_01_1.bmp", "i01_01_5.bmp", "I01_24_1.bmp"]
    np.testing.assert_allclose(data.mos[:3], [7.9, 3.9, 5.6])
    assert data.references is not None and set(data.references) == {"I01", "I25"}
    assert data.distortions is not None
    assert set(data.distortions) == {"01 additive gaussian noise", "24 sparse sampling and reconstruction"}
    assert len(data.notes) == 1 and "8 pictures, TID2013 has 3000" in data.notes[0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("5.5 I01_25_1.bmp", r"mos_with_names\.txt:1: .*type \(01-24\)"),
        ("5.5 photo.bmp", "does not name reference"),
        ("9.5 I01_01_1.bmp", r"mos_with_names\.txt:1: the score 9\.5 is outside 0\.\.9"),
        ("much I01_01_1.bmp", r"mos_with_names\.txt:1: the score 'much' is not a number"),
        ("5.5 I02_01_1.bmp", r"mos_with_names\.txt:1: the picture .*I02_01_1\.bmp is missing"),
        ("5.5", "is not 'MOS NAME'"),
        ("", "has no labelled picture"),
    ],
)
def test_a_bad_line_is_named(tid: Path, line: str, message: str) -> None:
    write(tid / "mos_with_names.txt", line)
    with pytest.raises(DataError, match=message):
        read_spec(f"tid2013:{tid}")


def test_several_missing_pictures_are_counted(tid: Path) -> None:
    for path in sorted((tid / "distorted_images").iterdir())[:3]:
        path.unlink()
    with pytest.raises(DataError, match=r"missing \(and 2 more of 8\)"):
        read_spec(f"tid2013:{tid}")


@pytest.fixture
def kadid(tmp_path: Path) -> Path:
    rows = ["dist_img,ref_img,dmos,var"]
    for reference in range(1, 7):
        picture(tmp_path / "images" / f"I{reference:02d}.png")
        for kind in (1, 10, 25):
            for level in range(1, 6):
                name = f"I{reference:02d}_{kind:02d}_{level:02d}.png"
                picture(tmp_path / "images" / name)
                rows.append(f"{name},I{reference:02d}.png,{5.2 - 0.8 * level:.2f},0.5")
    write(tmp_path / "dmos.csv", *rows)
    return tmp_path


def test_kadid10k_and_its_tasks(kadid: Path) -> None:
    data = read(f"kadid10k:{kadid}")
    assert len(data) == 90 and data.scale == MosScale(1, 5)
    # "dmos" is a MOS: the slightest distortion has the best quality.
    assert data.mos[0] == pytest.approx(4.4) and data.mos[4] == pytest.approx(1.2)
    assert data.quality(data.scale)[0] == pytest.approx(0.85)
    tasks = labelled_tasks(data)
    assert [task.name for task in tasks] == ["01 gaussian blur", "10 jpeg", "25 contrast change"]
    task = tasks[1]
    assert len(task.quality) == 30 and task.read(3).shape == (8, 10, 3)
    rng = np.random.default_rng(0)
    for _ in range(5):
        support, query = task.split(0.8, rng)
        assert {task.references[i] for i in support}.isdisjoint({task.references[i] for i in query})
        assert len(support) + len(query) == 30 and len(support) == 25


def test_no_reference_is_on_two_sides_of_a_split(kadid: Path) -> None:
    data = read(f"kadid10k:{kadid}")
    assert data.references is not None
    for seed in range(5):
        split = split_indices(data, SplitConfig(40, 0.2, 0.4, seed))
        sides = [{data.references[i] for i in part} for part in (split.train, split.validation, split.test)]
        assert sides[2].isdisjoint(sides[0] | sides[1]) and sides[0].isdisjoint(sides[1])


def test_the_names_of_kadids_types_are_those_of_the_distortions() -> None:
    from grmp_edge.train.data.published_sets import _KADID_TYPES, _TID_TYPES

    assert [name.replace(" ", "_").replace("-", "_") for name in _KADID_TYPES] == list(DISTORTIONS)
    assert len(set(_TID_TYPES)) == 24


def test_pipal(tmp_path: Path) -> None:
    for part, name in enumerate(("A0001_00_00", "A0001_06_01", "A0002_03_00", "A0003_01_02"), start=1):
        picture(tmp_path / f"Distortion_{part}" / f"{name}.bmp")
    write(tmp_path / "Train_Label" / "A0001.txt", "A0001_00_00.bmp,1520.06", "A0001_06_01.bmp,1400.5")
    write(tmp_path / "Train_Label" / "A0002.txt", "A0002_03_00.bmp,916.6")  # 917 is rounded
    data = read(f"pipal:{tmp_path}")
    assert names(data) == ["A0001_00_00.bmp", "A0001_06_01.bmp", "A0002_03_00.bmp"]
    np.testing.assert_allclose(data.mos, [1520.06, 1400.5, 916.6])
    assert data.references == ("A0001", "A0001", "A0002") and data.distortions == ("00", "06", "03")
    assert data.scale is not None and data.scale.to_value(916.6) == 0
    (tmp_path / "Train_Label" / "A0002.txt").write_text("A0002_03_00.bmp\n")
    with pytest.raises(DataError, match=r"A0002\.txt:1: the line has too few cells"):
        read_spec(f"pipal:{tmp_path}")


def test_agiqa3k(tmp_path: Path) -> None:
    for name in ("AttnGAN_normal_000.jpg", "sd1.5_lowstep_001.jpg"):
        picture(tmp_path / name)
    write(
        tmp_path / "data.csv",
        "name,prompt,adj1,adj2,style,mos_quality,std_quality,mos_align,std_align",
        '"AttnGAN_normal_000.jpg","a cat, sitting",,,,1.25,0.3,2.0,0.4',
        '"sd1.5_lowstep_001.jpg","a dog",,,anime,3.75,0.3,1.0,0.4',
    )
    data = read(f"agiqa3k:{tmp_path}")
    np.testing.assert_allclose(data.mos, [1.25, 3.75])  # of quality, not of alignment
    assert data.references is None and data.scale == MosScale(0, 5)


KONIQ_NAMES = ("826373.jpg", "10004473376.jpg", "2214729676.jpg")
KONIQ_SETS = ("training", "test", "validation")


@pytest.fixture
def koniq(tmp_path: Path) -> Path:
    """Both csv files, as downloaded, and pictures of both sizes."""
    for folder, shade in (("1024x768", 200), ("512x384", 50)):
        for name in KONIQ_NAMES:
            picture(tmp_path / folder / name, shade)
    write(
        tmp_path / "koniq10k_scores_and_distributions.csv",
        '"image_name","c1","c2","c3","c4","c5","c_total","MOS","SD","MOS_zscore"',
        *(
            f'"{n}",0,0,25,73,7,105,{m},0.5,{z}'
            for n, m, z in zip(KONIQ_NAMES, (3.8, 1.5, 2.6), (78, 12.5, 41.2), strict=True)
        ),
    )
    write(
        tmp_path / "koniq10k_distributions_sets.csv",
        "image_name,c1,c2,c3,c4,c5,c_total,MOS,SD,set",
        *(f"{n},0,0,25,73,7,105,{z},10.5,{s}"
          for n, z, s in zip(KONIQ_NAMES, (78, 12.5, 41.2), KONIQ_SETS, strict=True)),
    )  # fmt: skip
    return tmp_path


def test_both_csv_files_of_koniq10k_give_the_same_scale(koniq: Path) -> None:
    sets = read(f"koniq10k:{koniq}")
    assert "koniq10k_distributions_sets.csv" in sets.notes[0]
    assert sets.parts == KONIQ_SETS
    assert sets.paths[0].parent.name == "1024x768"
    scores = read(f"koniq10k:{koniq / 'koniq10k_scores_and_distributions.csv'}")
    assert "MOS_zscore (0-100)" in scores.notes[0] and scores.parts is None
    for data in (sets, scores):
        np.testing.assert_allclose(data.mos, [78, 12.5, 41.2])
        assert data.scale == MosScale(0, 100) and names(data) == list(KONIQ_NAMES)
    (koniq / "koniq10k_distributions_sets.csv").unlink()
    assert read(f"koniq10k:{koniq}").mos.tolist() == scores.mos.tolist()
    small = read(f"koniq10k:{koniq}", images=koniq / "512x384")
    assert small.squashed([0], 4).mean() == pytest.approx(50, abs=1)


def test_koniq10k_without_z_scores_is_on_1_to_5(koniq: Path) -> None:
    rows = [f"{name},{mos}" for name, mos in zip(KONIQ_NAMES, (3.8, 1.5, 2.6), strict=True)]
    write(koniq / "cut.csv", "image_name,MOS", *rows)
    data = read(f"koniq10k:{koniq / 'cut.csv'}")
    assert data.scale == MosScale(1, 5) and data.mos[0] == 3.8


def test_spaq(tmp_path: Path) -> None:
    header = ("Image name", "MOS", "Brightness", "Colorfulness", "Contrast", "Noisiness", "Sharpness")
    rows = [("00001.jpg", 35.25, 1, 1, 1, 1, 1), ("00002.jpg", 79, 1, 1, 1, 1, 1)]
    sheet(tmp_path / "Annotations" / "MOS and Image attribute scores.xlsx", [header, *rows])
    picture(tmp_path / "TestImage" / "00001.jpg")
    with pytest.raises(DataError, match=r"scores\.xlsx:3: the picture .*00002\.jpg is missing"):
        read_spec(f"spaq:{tmp_path}")
    picture(tmp_path / "TestImage" / "00002.jpg")
    data = read(f"spaq:{tmp_path}")
    assert names(data) == ["00001.jpg", "00002.jpg"] and data.mos.tolist() == [35.25, 79]
    assert data.scale == MosScale(0, 100)


def test_bid(tmp_path: Path) -> None:
    header = ("Image Number", "Average Subjective Grade", "std")
    sheet(tmp_path / "DatabaseGrades.xlsx", [header, (1, 4.5, 0.2), (12, 0.5, 0.2), (None, None, None)])
    for number in (1, 12):
        picture(tmp_path / f"DatabaseImage{number:04d}.JPG")
    data = read(f"bid:{tmp_path}")
    assert names(data) == ["DatabaseImage0001.JPG", "DatabaseImage0012.JPG"]
    assert data.mos.tolist() == [4.5, 0.5] and data.scale == MosScale(0, 5)
    sheet(tmp_path / "DatabaseGrades.xlsx", [header, ("one", 4.5, 0.2)])
    with pytest.raises(DataError, match=r"DatabaseGrades\.xlsx:2: the number of the picture 'one'"):
        read_spec(f"bid:{tmp_path}")


def test_cid2013(tmp_path: Path) -> None:
    rows: list[tuple[Any, ...]] = [("Image set", "Source_ID", "Image set specific  MOS", "Realigned MOS")]
    for scene, camera, mos in ((1, 1, -9.5), (1, 2, 40.5), (2, 1, 87.93)):
        name = f"IS_I_C{scene:02d}_D{camera:02d}"
        picture(tmp_path / "IS1" / f"co{scene}" / f"{name}.jpg")
        rows.append((1, name, 50, mos))
    rows.append((6, "IS_VI_C01_D01", 50, 20))
    picture(tmp_path / "IS6" / "co1" / "IS_VI_C01_D01.jpg")
    sheet(tmp_path / "CID2013 data - version 12112014.xlsx", rows, "CID2013 MOS", before="Read me")
    data = read(f"cid2013:{tmp_path}")
    assert data.mos.tolist() == [-9.5, 40.5, 87.93, 20]
    assert data.references == ("IS_I_C01", "IS_I_C01", "IS_I_C02", "IS_VI_C01")
    assert data.paths[3].parent.parent.name == "IS6"


def test_every_set_is_covered_and_says_what_it_needs(tmp_path: Path) -> None:
    known = "livec tid2013 kadid10k koniq10k spaq bid cid2013 pipal agiqa3k mat csv"
    assert set(READERS) == set(known.split())
    for name, reader in READERS.items():
        with pytest.raises(DataError, match="does not exist; it must contain"):
            read_spec(f"{name}:{tmp_path / 'nowhere'}")
        if name not in ("mat", "csv"):
            assert reader.info is not None and reader.info.name == name
            with pytest.raises(GrmpError, match=str(tmp_path)):  # an empty folder
                read_spec(f"{name}:{tmp_path}")
    with pytest.raises(DataError, match="unknown data set 'livek'; use one of livec"):
        read_spec("livek:/x")
    with pytest.raises(DataError, match="no such folder"):
        read_spec(f"livec:{tmp_path}", images=tmp_path / "nowhere")


def test_csv_by_name_and_by_bare_path(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    write(tmp_path / "my labels.csv", "img_name,mos,std,split", "a.png,3,0.1,train", "b.png,4,0.1,test")
    odd = tmp_path / "odd:name.csv"
    odd.write_bytes((tmp_path / "my labels.csv").read_bytes())
    for spec in (f"csv:{tmp_path / 'my labels.csv'}", str(tmp_path / "my labels.csv"), str(odd)):
        assert read_spec(spec).mos.tolist() == [3, 4]
    ranged = read_spec(odd, mos_range=(1, 5))
    assert ranged.scale == MosScale(1, 5)
