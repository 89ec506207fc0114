"""What is learned from and what is tested on: fixed splits, test sets, the same picture twice, two scales."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from conftest import encode, make_image, write_tiny_bundle
from helpers_train import write_labelled
from typer.testing import CliRunner

from grmp_edge.cli import app
from grmp_edge.cli.training_options import SplitOptions
from grmp_edge.errors import DataError, UsageError
from grmp_edge.metrics import interval_words, srcc, srcc_interval
from grmp_edge.score import MosScale
from grmp_edge.train.data.labelled import SplitConfig, read_csv, split_indices
from grmp_edge.train.data.sides import refuse_other_scale, refuse_shared, with_test
from grmp_edge.train.finetune.config import FinetuneConfig

RUN = CliRunner()


def add_column(csv: Path, name: str, values: list[str]) -> Path:
    lines = csv.read_text().splitlines()
    csv.write_text("\n".join([f"{lines[0]},{name}", *map(",".join, zip(lines[1:], values, strict=True))]))
    return csv


def test_a_column_split_divides_as_it_says(tmp_path: Path) -> None:
    csv = write_labelled(tmp_path, 12)
    words = ["train", "Training", "val", "test"] * 3
    data = read_csv(add_column(csv, "split", words))
    for seed in range(3):
        split = split_indices(data, SplitConfig(labels=5, seed=seed))
        assert split.test == (3, 7, 11) and split.validation == (2, 6, 10)
        assert len(split.train) == 5 and set(split.train) <= {0, 1, 4, 5, 8, 9}
    with pytest.raises(DataError, match="7 labels requested, 6 are left beside the 3"):
        split_indices(data, SplitConfig(labels=7))
    csv.write_text(csv.read_text().replace("Training", "learn", 1))
    with pytest.raises(DataError, match=r"labels\.csv:3: the split 'learn' is unknown; write train, valid"):
        read_csv(csv)


def test_the_same_picture_is_never_on_both_sides(tmp_path: Path) -> None:
    csv = write_labelled(tmp_path, 12)
    for copy in ("3", "7"):  # two pictures, each under two names
        shutil.copyfile(tmp_path / f"{copy}.png", tmp_path / f"1{copy}x.png")
    with csv.open("a") as stream:
        stream.write("13x.png,30\n17x.png,40\n")
    data = read_csv(csv)
    for seed in range(20):
        split = split_indices(data, SplitConfig(test_fraction=0.3, seed=seed))
        for pair in ((3, 12), (7, 13)):
            assert len({index in split.test for index in pair}) == 1
    sides = ["train"] * 12 + ["test"] * 2
    with pytest.raises(DataError, match=r"3\.png \(train\) and .*13x\.png \(test\) are of the same picture"):
        split_indices(read_csv(add_column(csv, "split", sides)), SplitConfig())
    other = write_labelled(tmp_path / "other", 8, seed=5)
    refuse_shared(data, read_csv(other))
    shutil.copyfile(tmp_path / "5.png", tmp_path / "other" / "2.png")
    with pytest.raises(DataError, match=r"other/2\.png is the same picture as .*/5\.png, which is learned"):
        refuse_shared(data, read_csv(other))


def test_a_test_set_of_its_own(tmp_path: Path) -> None:
    data = read_csv(write_labelled(tmp_path / "a", 10))
    test = read_csv(write_labelled(tmp_path / "b", 6, seed=4))
    both = with_test(data, test)
    split = split_indices(both, SplitConfig(labels=4, validation_fraction=0.0))
    assert split.test == tuple(range(10, 16)) and set(split.train) < set(range(10))
    assert both.paths[10] == test.paths[0] and both.mos[10] == test.mos[0]
    stars = tmp_path / "b" / "labels.csv"
    stars.write_text("image,mos\n" + "".join(f"{i}.png,{1 + i / 3:.2f}\n" for i in range(6)))
    with pytest.raises(DataError, match=r"are of 0\.\.100"):
        with_test(read_csv(tmp_path / "a" / "labels.csv", None, (0, 100)), read_csv(stars, None, (1, 5)))
    # Six labels are too few to tell their scale by; ten are not.
    with_test(data, read_csv(stars))
    write_labelled(tmp_path / "c", 12, seed=6)
    stars = tmp_path / "c" / "labels.csv"
    stars.write_text("image,mos\n" + "".join(f"{i}.png,{1 + i / 3:.2f}\n" for i in range(12)))
    with pytest.raises(DataError, match=r"labels of 1\.\.4\.67 are hardly on the scale of .*--mos-range L"):
        with_test(data, read_csv(stars))


def test_labels_of_another_scale_are_refused_by_a_bundle(tmp_path: Path) -> None:
    csv = write_labelled(tmp_path, 12)  # 0..100
    bundle = write_tiny_bundle(tmp_path / "tiny.bundle")  # 1..5
    words = ["evaluate", "--bundle", str(bundle.path), "--data", str(csv), "-o", str(tmp_path / "out")]
    refused = RUN.invoke(app, words)
    assert refused.exit_code == 1 and not (tmp_path / "out").exists()
    assert "are hardly on the scale of" in refused.stderr and "1..5; state their own scale" in refused.stderr
    shown = RUN.invoke(app, [*words, "--mos-range", "0,100"])
    assert shown.exit_code == 0, shown.output
    assert "so few pictures say next to nothing" in shown.stdout
    # The other way round, stars on a scale of percents.
    data = read_csv(csv)
    for scale in (MosScale(-50, 1000), MosScale(0, 10), MosScale(300, 400)):
        with pytest.raises(DataError, match="hardly on the scale"):
            refuse_other_scale(data, scale, "the bundle")
    for scale in (MosScale(0, 100), MosScale(20, 90), MosScale(-10, 150)):
        refuse_other_scale(data, scale, "the bundle")
    refuse_other_scale(read_csv(csv, None, (0, 100)), MosScale(1, 5), "the bundle")


def test_a_bundle_is_tested_on_the_test_part_alone(tmp_path: Path) -> None:
    lines = ["image,mos,split"]
    for number in range(12):
        (tmp_path / f"{number}.png").write_bytes(encode(make_image(seed=number), "PNG"))
        lines.append(f"{number}.png,{1 + number / 3},{'test' if number % 3 else 'train'}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    bundle = write_tiny_bundle(tmp_path / "tiny.bundle")
    shown = RUN.invoke(
        app,
        ["evaluate", "--bundle", str(bundle.path), "--data", str(tmp_path / "labels.csv"), "--json",
         "-o", str(tmp_path / "out")],
    )  # fmt: skip
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["pictures"] == 8
    assert "only the 8 pictures of the test part are scored" in shown.stderr


def test_names_are_found_without_regard_to_case_and_it_is_told(tmp_path: Path) -> None:
    csv = write_labelled(tmp_path / "Set", 5)
    (tmp_path / "Set" / "Deep").mkdir()
    (tmp_path / "Set" / "1.png").rename(tmp_path / "Set" / "Deep" / "ONE.PNG")
    csv.write_text(csv.read_text().replace("1.png", "deep/one.png").replace("2.png", "2.PNG"))
    data = read_csv(csv)
    assert [path.name for path in data.paths] == ["0.png", "ONE.PNG", "2.png", "3.png", "4.png"]
    (note,) = data.notes
    assert "without regard to case, deep/one.png is taken to be Deep/ONE.PNG and 1 more names" in note
    (tmp_path / "Set" / "Deep" / "one.Png").write_bytes(b"")
    with pytest.raises(DataError, match=r"picture 'deep/one\.png' is not in"):  # either could be meant
        read_csv(csv)


def test_cross_sets_have_folders_of_their_own_and_share_no_picture(tmp_path: Path) -> None:
    csv = write_labelled(tmp_path / "own", 8)
    other = write_labelled(tmp_path / "pictures", 8, seed=3)
    moved = tmp_path / "elsewhere.csv"
    moved.write_text(other.read_text())
    words = ["evaluate", "--data", str(csv), "-o", str(tmp_path / "out"), "--labels", "few"]
    found = RUN.invoke(app, [*words, "--cross", str(moved), "--cross-images", str(tmp_path / "pictures")])
    assert "'few' is no number of labels" in found.stderr  # so the set was read
    lost = RUN.invoke(app, [*words, "--cross", str(moved)])
    assert "picture '0.png' is not in" in lost.stderr
    folders = ["--cross-images", str(tmp_path), "--cross-images", str(tmp_path)]
    uneven = RUN.invoke(app, [*words, "--cross", str(moved), *folders])
    assert uneven.exit_code == 2 and "2 --cross-images for 1 --cross" in uneven.stderr
    same = RUN.invoke(app, [*words, "--cross", str(csv)])
    assert same.exit_code == 1 and "is the same picture as" in same.stderr


def test_fifty_labels_are_all_learned_from() -> None:
    head, qgr = FinetuneConfig(method="head"), FinetuneConfig()
    for count, labels, config, given, share in (
        (50, None, head, None, 0.0),
        (50, 50, head, None, 0.0),
        (50, 50, qgr, None, 0.0),
        (50, None, qgr, None, 0.2),
        (50, None, head, 0.2, 0.2),
        (100, 50, head, None, 0.2),
        (50, 40, head, None, 0.2),
        (50, 41, head, None, 0.0),
        (50, None, FinetuneConfig(method="head", select_on="test"), None, 0.2),
    ):
        assert SplitOptions(given).fitting(count, labels, config).test_fraction == share


def test_the_bootstrap_interval_is_scipys() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=60)
    y = x + rng.normal(size=60)
    found = srcc_interval(x, y)
    wanted = scipy.stats.bootstrap(
        (x, y), lambda a, b: scipy.stats.spearmanr(a, b).statistic, paired=True, vectorized=False,
        n_resamples=1000, method="percentile", rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert found == pytest.approx((wanted.low, wanted.high), abs=0.03)
    assert found is not None and found[0] < srcc(x, y) < found[1]
    assert srcc_interval(x, y) == found
    assert srcc_interval(np.ones(9), np.arange(9.0)) is None and srcc_interval([1, 2, 3], [1, 2, 3]) is None
    assert interval_words(found, 60).endswith(f"{found[1]:.2f}")
    assert "next to nothing" in interval_words(found, 10) and "3 pictures say nothing" in interval_words(
        None, 3
    )


def test_a_folder_for_no_test_set_is_refused(tmp_path: Path) -> None:
    words = ["--data", "x.csv", "--test-images", str(tmp_path)]
    for command in (["train"], ["train", "finetune"], ["evaluate"]):
        shown = RUN.invoke(app, [*command, *words])
        assert shown.exit_code == 2 and "--test-images without --test-data" in shown.stderr, shown.output
    assert issubclass(UsageError, Exception)
