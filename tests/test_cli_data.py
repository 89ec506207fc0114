"""``grmp-edge data sample``, ``data check`` and ``data preview`` as commands."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import encode, make_image
from typer.testing import CliRunner

from grmp_edge.cli import app
from grmp_edge.train.data.labelled import SplitConfig, split_indices
from grmp_edge.train.data.named_sets import read_spec
from grmp_edge.train.pictures.contact_sheet import SheetConfig, contact_sheet
from grmp_edge.train.pictures.distort import DISTORTIONS, distort

RUN = CliRunner()


@pytest.fixture
def kadid(tmp_path: Path) -> Path:
    """Two references with two types at five levels, KADID-10k's layout."""
    folder = tmp_path / "kadid"
    (folder / "images").mkdir(parents=True)
    rows = ["dist_img,ref_img,dmos,var"]
    for reference in (1, 2):
        for kind in (1, 10):
            for level in range(1, 6):
                name = f"I{reference:02d}_{kind:02d}_{level:02d}.png"
                (folder / "images" / name).write_bytes(encode(make_image(seed=level), "PNG"))
                rows.append(f"{name},I{reference:02d}.png,{6 - level},0.2")
    (folder / "dmos.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_check_counts_what_is_there(kadid: Path) -> None:
    shown = RUN.invoke(app, ["data", "check", f"kadid10k:{kadid}"])
    assert shown.exit_code == 0, shown.output
    assert "20 pictures, all readable" in shown.stdout
    assert "1 to 5; higher is better" in shown.stdout
    assert "references   2" in shown.stdout and "distortions  2 types" in shown.stdout
    assert "  10 jpeg " in shown.stdout
    # Scores 1, 2, 3, 4 and 5, four of each, in ten bins of 0.4.
    bars = [line for line in shown.stdout.splitlines() if " .. " in line]
    assert [index for index, line in enumerate(bars) if line.endswith("#" * 40)] == [0, 2, 5, 7, 9]
    assert sum("#" in line for line in bars) == 5 and len(bars) == 10
    assert "note: " in shown.stderr and "KADID-10k has 10125" in shown.stderr
    assert f"next: grmp-edge train pretrain --meta-data kadid10k:{kadid}" in shown.stderr


def test_check_as_json(kadid: Path) -> None:
    shown = RUN.invoke(app, ["data", "check", f"kadid10k:{kadid}", "--json", "--no-read"])
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.stdout)
    assert found["images"] == 20 and found["references"] == 2 and found["scale"] == [1, 5]
    assert found["distortions"] == {"01 gaussian blur": 10, "10 jpeg": 10}
    scores = np.repeat([1, 2, 3, 4, 5], 4)
    assert found["histogram"]["counts"] == np.histogram(scores, 10, (1, 5))[0].tolist()
    assert found["mos"]["mean"] == pytest.approx(3) and found["mos"]["std"] == pytest.approx(scores.std())
    assert not found["read"] and found["duplicates"] == 0 and len(found["notes"]) == 1


def test_check_names_the_damaged_picture(kadid: Path) -> None:
    (kadid / "images" / "I02_01_03.png").write_bytes(b"")
    shown = RUN.invoke(app, ["data", "check", f"kadid10k:{kadid}"])
    assert shown.exit_code == 1 and shown.stdout == ""
    assert "I02_01_03.png: the file is empty" in shown.stderr
    assert RUN.invoke(app, ["data", "check", f"kadid10k:{kadid}", "--no-read"]).exit_code == 0
    (kadid / "images" / "I02_01_03.png").unlink()
    shown = RUN.invoke(app, ["data", "check", f"kadid10k:{kadid}", "--no-read"])
    assert shown.exit_code == 1 and "I02_01_03.png is missing" in shown.stderr
    assert len([line for line in shown.stderr.splitlines() if line.startswith("error:")]) == 1


def test_preview_shows_every_type_and_level(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(encode(make_image(200, 240, seed=3), "PNG"))
    sheet = tmp_path / "sheet.png"
    shown = RUN.invoke(
        app, ["data", "preview", "--picture", str(tmp_path / "photo.png"), "--cell", "64", "-o", str(sheet)]
    )
    assert shown.exit_code == 0, shown.output
    assert "25 types" in shown.stderr and "next: grmp-edge train pretrain" in shown.stderr
    drawn = cv2.imread(str(sheet))
    assert drawn is not None and drawn.shape == (28 + 25 * 68, 190 + 6 * 68, 3)


def test_a_cell_is_the_centre_of_the_distorted_picture() -> None:
    photographs = [(str(seed), make_image(128, 128, seed)) for seed in range(2)]
    config = SheetConfig(("jpeg", "white_noise", "darken"), cell=48, side=128, seed=7)
    sheet = contact_sheet(photographs, config)
    for row, kind in enumerate(config.distortions):
        pristine = photographs[row % 2][1]
        number = list(DISTORTIONS).index(kind)
        for column in range(6):
            rng = np.random.default_rng([7, number, row % 2])
            wanted = distort(pristine, kind, column, rng) if column else pristine
            top, left = 28 + 52 * row, 190 + 52 * column
            np.testing.assert_array_equal(sheet[top : top + 48, left : left + 48], wanted[40:88, 40:88])
        assert (sheet[top : top + 48, :190] < 128).any()  # the name is written beside it
    np.testing.assert_array_equal(sheet, contact_sheet(photographs, config))


def test_preview_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(encode(make_image(), "PNG"))
    photo = ["data", "preview", "--picture", str(tmp_path / "photo.png"), "--distortions", "jpeg"]
    for more, message, status in (
        (["-o", str(tmp_path / "sheet.txt")], "end the name in .png or .jpg", 1),
        (["--photos", str(tmp_path)], "give one of them", 2),
        (["--distortions", "fog"], "unknown distortion 'fog'", 1),
    ):
        shown = RUN.invoke(app, [*photo, *more])
        assert shown.exit_code == status and message in shown.stderr, shown.output
    assert not (tmp_path / "sheet.txt").exists()
    shown = RUN.invoke(app, [*photo, "-o", str(tmp_path / "sheet.jpg")])
    assert shown.exit_code == 0 and cv2.imread(str(tmp_path / "sheet.jpg")) is not None


@pytest.mark.parametrize("arguments, expected", [([], 50), (["--pictures", "12"], 10)])
def test_the_number_of_labels_in_the_next_line_is_there(
    tmp_path: Path, arguments: list[str], expected: int
) -> None:
    folder = tmp_path / "sample-data"
    made = RUN.invoke(app, ["data", "sample", "-o", str(folder), *arguments])
    csv = folder / "labels.csv"
    plain = csv.with_name("plain.csv")  # without the column of distortions: check proposes labels, too
    plain.write_text("".join(f"{','.join(row.split(',')[:2])}\n" for row in csv.read_text().splitlines()))
    checked = RUN.invoke(app, ["data", "check", str(plain), "--no-read"])
    for path, told in ((csv, made), (plain, checked)):
        line = re.search(rf"next: grmp-edge train --data {re.escape(str(path))} --labels (\d+)", told.stderr)
        assert line, told.stderr
        assert int(line[1]) == expected
        split = split_indices(read_spec(str(path)), SplitConfig(labels=expected))
        assert len(split.train) + len(split.validation) == expected
