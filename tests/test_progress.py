"""What long work says of itself where stderr is a file."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import encode, make_image
from typer.testing import CliRunner

from grmp_edge.cli import app
from grmp_edge.cli.progress import TrainProgress


def test_no_time_left_is_told_before_the_first_step(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("grmp_edge.cli.progress.time.monotonic", lambda: now[0])
    with TrainProgress() as progress:
        progress.start("splits", 30, 10)
        now[0] += 60
        progress.step(0, loss=0.5)  # within the first split
        now[0] += 60
        progress.step(1)
        now[0] += 60
        progress.step(1)
    lines = [line for line in capsys.readouterr().err.splitlines() if "/30" in line]
    assert lines[0].startswith("splits: 10/30") and "left" not in lines[0]
    assert "splits: 11/30" in lines[1] and "about 2280 s left" in lines[1]  # 19 splits of 120 s
    assert "about 1620 s left" in lines[2]  # 18 of 90 s


def test_training_tells_what_the_reader_of_the_data_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "512x384"
    folder.mkdir(parents=True)
    rows = ["image_name,c1,c2,c3,c4,c5,c_total,MOS,SD,set"]
    for number in range(3):
        (folder / f"{number}.png").write_bytes(encode(make_image(seed=number), "PNG"))
        rows.append(f"{number}.png,0,0,25,73,7,105,{20 + 30 * number},10.5,training")
    (tmp_path / "koniq10k_distributions_sets.csv").write_text("\n".join(rows) + "\n")
    words = [
        "train",
        "finetune",
        "--data",
        f"koniq10k:{tmp_path}",
        "--labels",
        "50",
        "-o",
        str(tmp_path / "run"),
    ]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 1 and "50 labels requested" in shown.stderr
    assert "note: koniq10k_distributions_sets.csv" in shown.stderr and "3 pictures" in shown.stderr
