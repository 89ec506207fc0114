"""The protocol: what a split holds, what a second run does, and the figures against scipy."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import TINY_MOS, encode, make_image, tiny_score, write_tiny_bundle
from helpers_train import TINY_CLIP, write_labelled
from matplotlib.figure import Figure
from test_reports import Page
from typer.testing import CliRunner

from grmp_edge.cli import app
from grmp_edge.errors import CheckpointError, DataError
from grmp_edge.score import MosScale
from grmp_edge.train.data.labelled import Labelled, SplitConfig, read_csv, split_indices
from grmp_edge.train.evaluate.plot import draw_splits, plot_svg
from grmp_edge.train.evaluate.protocol import (
    Measures,
    ProtocolConfig,
    SplitResult,
    csv_table,
    markdown_table,
    measure,
    summarize,
    text_table,
)
from grmp_edge.train.evaluate.splits import InMemory, Variant, run_variants
from grmp_edge.train.finetune.config import FinetuneConfig
from grmp_edge.train.network.backbone import BackboneConfig
from grmp_edge.train.network.settings import PromptConfig
from grmp_edge.train.runs import ModelConfig
from grmp_edge.train.session.progress import Reporter

TUNING = FinetuneConfig(epochs=10, lr=0.05)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    folder = tmp_path_factory.mktemp("protocol")
    return read_csv(write_labelled(folder / "data", 30, 35), mos_range=(0, 100))


@pytest.fixture(scope="module")
def model() -> ModelConfig:
    return ModelConfig(BackboneConfig(TINY_CLIP, "random"), PromptConfig(3), device="cpu")


@pytest.fixture(scope="module")
def done(
    data: Labelled, model: ModelConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[SplitResult]]:
    output = tmp_path_factory.mktemp("out")
    config = ProtocolConfig(splits=2, labels=(8, None))
    return output, run_protocol(output, model, None, data, config, TUNING, [half(data)])


def run_protocol(
    output: Path,
    model: ModelConfig,
    start: Path | None,
    data: Labelled,
    config: ProtocolConfig,
    finetune: FinetuneConfig,
    cross: Sequence[Labelled] = (),
    reporter: Reporter | None = None,
) -> list[SplitResult]:
    """The protocol for one way of training."""
    return run_variants([Variant("", output, start, finetune)], model, data, config, cross, reporter)


def half(data: Labelled) -> Labelled:
    return Labelled("half", data.paths[:15], data.mos[:15], scale=data.scale)


def split_file(output: Path, labels: int | str, split: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "splits" / f"{labels}-{split:02d}.json").read_bytes())
    return found


def test_each_split_tests_on_its_own_20_percent(data: Labelled, done: tuple[Path, list[SplitResult]]) -> None:
    import scipy.stats as stats

    output, _ = done
    for labels, name in ((8, 8), (None, "all")):
        for split in range(2):
            found = split_file(output, name, split)
            wanted = split_indices(data, SplitConfig(labels, 0.2, 0.2, split))
            assert found["predictions"]["index"] == list(wanted.test) and len(wanted.test) == 6
            mos, value = np.array(found["predictions"]["mos"]), np.array(found["predictions"]["value"])
            np.testing.assert_array_equal(mos, data.mos[list(wanted.test)])
            metrics = found["metrics"]
            assert metrics["srcc"] == pytest.approx(stats.spearmanr(value, mos).statistic)
            assert metrics["plcc"] == pytest.approx(stats.pearsonr(value, mos).statistic, abs=1e-6)
            assert metrics["krcc"] == pytest.approx(stats.kendalltau(value, mos).statistic)
            assert metrics["rmse"] == pytest.approx(np.sqrt(np.mean((value - mos / 100) ** 2)), abs=1e-6)
            assert not found["selected_on_test"] and set(found["cross"]) == {"half"}
            assert found["cross"]["half"]["count"] == 15
    assert (
        split_file(output, 8, 0)["predictions"]["index"]
        == split_file(output, "all", 0)["predictions"]["index"]
    )
    assert not list(output.glob("runs/*"))


def test_the_table_is_the_spread_over_splits(done: tuple[Path, list[SplitResult]]) -> None:
    output, result = done
    rows = {(row["labels"], row["tested"]): row for row in summarize(result)}
    assert list(rows) == [(0, ""), (8, ""), (8, "half"), (None, ""), (None, "half")]
    values = [split_file(output, 8, split)["metrics"]["srcc"] for split in range(2)]
    found = rows[(8, "")]["srcc"]
    assert found["median"] == pytest.approx(np.median(values))
    assert found["mean"] == pytest.approx(np.mean(values))
    assert found["std"] == pytest.approx(np.std(values, ddof=1))
    assert all("predictions" not in split for split in result)


def test_finished_splits_are_not_run_again_and_more_may_follow(
    data: Labelled, model: ModelConfig, done: tuple[Path, list[SplitResult]], tmp_path: Path
) -> None:
    output, result = done
    config = ProtocolConfig(splits=2, labels=(8, None))
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.json")}
    again = run_protocol(output, model, None, data, config, TUNING, [half(data)])
    assert again == result
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*.json")} == before
    # Older versions recorded null for what goes with the backbone.
    recorded = json.loads((output / "protocol.json").read_bytes())
    recorded["protocol"]["validation_fraction"] = None
    recorded["finetune"] |= dict.fromkeys(("batch", "qgr_strength", "calibration_steps", "average"))
    (output / "protocol.json").write_text(json.dumps(recorded), encoding="utf-8")
    assert run_protocol(output, model, None, data, config, TUNING, [half(data)]) == result
    # A lost split is the only one that is run, and gives the same.
    lost = split_file(output, 8, 1)
    (output / "splits" / "8-01.json").unlink()
    more = run_protocol(output, model, None, data, replace(config, labels=(8,)), TUNING, [half(data)])
    found = split_file(output, 8, 1)
    assert found["predictions"] == lost["predictions"]
    assert len(more) == 2
    assert (output / "splits" / "8-00.json").stat().st_mtime_ns == before[output / "splits" / "8-00.json"]
    with pytest.raises(CheckpointError, match="other settings \\(finetune differs\\)"):
        run_protocol(output, model, None, data, config, replace(TUNING, lr=1.0), [half(data)])
    with pytest.raises(CheckpointError, match="data differs"):
        run_protocol(output, model, None, half(data), replace(config, labels=(4,)), TUNING, [half(data)])
    with pytest.raises(DataError, match="99 labels requested"):
        run_protocol(tmp_path / "new", model, None, data, replace(config, labels=(99,)), TUNING)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        run_protocol(tmp_path / "new", model, tmp_path / "none", data, config, TUNING)
    assert not (tmp_path / "new").exists()


def test_an_interrupted_split_continues_from_its_checkpoint(
    data: Labelled, model: ModelConfig, tmp_path: Path, done: tuple[Path, list[SplitResult]]
) -> None:
    class Stop:
        """Ctrl-C when the first split is done."""

        def start(self, stage: str, total: int, done: int = 0) -> None: ...
        def step(self, count: int = 1, **metrics: float) -> None: ...
        def note(self, text: str) -> None:
            raise KeyboardInterrupt

    config = ProtocolConfig(splits=2, labels=(8,), keep_checkpoints=True)
    with pytest.raises(KeyboardInterrupt):
        run_protocol(tmp_path, model, None, data, config, TUNING, [half(data)], Stop())
    assert [path.name for path in (tmp_path / "splits").iterdir()] == ["8-00.json"]
    (tmp_path / "splits" / "8-00.json").unlink()  # as if the kill had come just before it was written
    run_protocol(tmp_path, model, None, data, config, TUNING, [half(data)])
    for split in range(2):
        found = split_file(tmp_path, 8, split)
        assert found["predictions"] == split_file(done[0], 8, split)["predictions"]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["8-00", "8-01"]


def test_pictures_are_decoded_once(data: Labelled) -> None:
    @dataclass(frozen=True)
    class Counting(Labelled):
        def squashed(self, indices: Sequence[int], side: int, on_image: Any = None) -> Any:
            read.extend(indices)
            return super().squashed(indices, side, on_image)

    read: list[int] = []
    kept = InMemory.of(Counting(data.name, data.paths, data.mos))
    first = kept.squashed([4, 2, 9], 35)
    second = kept.squashed([2, 5, 9, 4, 2], 35)
    assert read == [4, 2, 9, 5]
    np.testing.assert_array_equal(second[[3, 0, 2]], first)
    np.testing.assert_array_equal(second, data.squashed([2, 5, 9, 4, 2], 35))


def test_measure_does_not_clip_and_says_none() -> None:
    found = measure([0.1, 0.5, 0.9], [10, 60, 140], MosScale(0, 100))
    assert found["rmse"] == pytest.approx(np.sqrt((0 + 0.01 + 0.25) / 3))
    assert found["srcc"] == pytest.approx(1)
    assert measure([0.5, 0.5], [1, 2], MosScale(0, 5))["srcc"] is None


def splits_of(values: Sequence[float | None], labels: int | None = 50) -> list[SplitResult]:
    same: list[Measures] = [
        {"srcc": value, "plcc": value, "krcc": value, "rmse": 0.1, "count": 9} for value in values
    ]
    return [{"labels": labels, "split": i, "metrics": metrics} for i, metrics in enumerate(same)]


def test_tables() -> None:
    splits = [*splits_of([0.5, 0.6, 0.9]), *splits_of([0.8], None), *splits_of([None, 0.2], 100)]
    for split, ends in zip(splits, ([0.2, 0.9], [0.4, 0.7], [0.5, 0.6]), strict=False):
        split["metrics"]["srcc_interval"] = ends
    rows = summarize(splits)
    assert [row["labels"] for row in rows] == [50, 100, None]
    assert rows[0]["srcc"]["median"] == 0.6 and rows[1]["srcc"]["mean"] is None
    assert rows[2]["srcc"] == {"median": 0.8, "mean": 0.8, "std": None}
    assert rows[0]["srcc_interval"] == [0.4, 0.7] and rows[1]["srcc_interval"] is None
    text = text_table(rows)
    assert re.search(r"^ +50 +3 +0\.400\.\.0\.700 +0\.600 +0\.667 ± 0\.208", text, re.MULTILINE)
    assert re.search(r"^ +100 +2 +- +- +- ± -", text, re.MULTILINE)
    assert len({len(line) for line in text.splitlines()[:2]}) == 1
    markdown = markdown_table(rows, ["a remark"]).splitlines()
    assert len({line.count("|") for line in markdown[:5]}) == 1 and markdown[-1] == "- a remark"
    table = list(csv.DictReader(csv_table(rows).splitlines()))
    assert (table[0]["srcc_low"], table[0]["srcc_high"], table[1]["srcc_low"]) == ("0.4", "0.7", "")
    assert table[0]["srcc_median"] == "0.6" and table[1]["srcc_median"] == "" and table[2]["labels"] == "all"


def test_the_plot_shows_every_split_and_the_medians() -> None:
    splits = [*splits_of([0.5, 0.6, 0.9]), *splits_of([0.8], None), *splits_of([None, 0.2], 100)]
    axes = Figure().add_subplot()
    draw_splits(axes, splits, "a < b")
    columns = {50: 0, 100: 1, None: 2}
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["50", "100", "all"]
    assert [line.get_label() for line in axes.lines] == ["SRCC median", "PLCC median"]
    for line, dots, shift in zip(axes.lines, axes.collections, (-0.03, 0.03), strict=True):
        points = np.column_stack(line.get_data())
        # With 100 labels a split is undefined, and so is the median.
        np.testing.assert_allclose(points, [(shift, 0.6), (2 + shift, 0.8)])
        shown = {(columns[s["labels"]] + shift, s["metrics"]["srcc"]) for s in splits if s["metrics"]["srcc"]}
        offsets = np.asarray(dots.get_offsets())
        np.testing.assert_allclose(sorted(map(tuple, offsets)), sorted(shown))
    svg = "{http://www.w3.org/2000/svg}"
    text = plot_svg(splits, "a < b")
    drawing = ElementTree.fromstring(text)
    words = [element.text for element in drawing.iter(f"{svg}text")]
    assert {"a < b", "labels", "50", "100", "all", "SRCC median", "PLCC median"} <= set(words)
    dots_drawn = [use for use in drawing.iter(f"{svg}use") if "fill-opacity: 0.45" in use.get("style", "")]
    assert len(dots_drawn) == 2 * 5
    assert plot_svg(splits, "a < b") == text  # the same bytes for the same results
    two: list[Any] = [{**one, "method": method} for method in ("x", "y & z") for one in splits_of([0.5, 0.7])]
    words = [element.text for element in ElementTree.fromstring(plot_svg(two, "t")).iter(f"{svg}text")]
    assert {"x, SRCC", "y & z, SRCC"} <= set(words) and "PLCC median" not in words
    assert ElementTree.fromstring(plot_svg([], "nothing yet")).tag == f"{svg}svg"


def test_the_command(data: Labelled, tmp_path: Path) -> None:
    run = CliRunner()
    common = ["evaluate", "--data", f"csv:{data.name}", "--mos-range", "0,100", "--backbone", TINY_CLIP]
    common += ["--weights", "random", "--epochs", "5", "--splits", "1", "--labels", "8", "--device", "cpu"]
    for options, said in (
        (["--from", "x", "--no-mpp"], "--from and --no-mpp contradict each other"),
        (["--ablate", "--no-qgr"], "--ablate runs with and without MPP and QGR"),
        (["--only-baselines"], "--only-baselines without --baselines"),
        (["--no-mpp", "--test-fraction", "0"], "--test-fraction 0 leaves nothing to test on"),
        (["--no-mpp", "--baselines", "brisk", "--only-baselines"], "'brisk' is unknown; use brisque, niqe"),
    ):
        shown = run.invoke(app, [*common, *options, "-o", str(tmp_path / "a")])
        assert shown.exit_code == 2 and said in shown.stderr, shown.stderr
    shown = run.invoke(app, [*common, "--no-mpp", "-o", str(tmp_path / "a"), "--json"])
    assert shown.exit_code == 0, shown.output
    result = json.loads(shown.stdout)
    assert result["leaks"] == [] and not result["mpp"] and result["qgr"]
    names = {path.name for path in (tmp_path / "a").iterdir() if path.is_file()}
    assert names == {"protocol.json", "results.json", "table.md", "table.csv", "plot.svg"}
    shown = run.invoke(
        app, [*common, "--no-mpp", "--no-qgr", "--preset", "reference", "-o", str(tmp_path / "b")]
    )
    assert shown.exit_code == 0, shown.output
    assert "not an honest figure: the epoch and the learning rate" in shown.stdout
    assert "not an honest figure" in (tmp_path / "b" / "table.md").read_text()
    settings = json.loads((tmp_path / "b" / "protocol.json").read_bytes())
    assert settings["protocol"]["validation_fraction"] == 0 and not settings["finetune"]["qgr"]
    shown = run.invoke(app, [*common, "--labels", "8,few", "--no-mpp", "-o", str(tmp_path / "c")])
    assert shown.exit_code == 2 and "'few' is no number of labels" in shown.stderr


def test_a_bundle_on_a_labelled_set(tmp_path: Path) -> None:
    import scipy.stats as stats

    (tmp_path / "images").mkdir()
    lines, wanted = ["image,mos"], []
    for number in range(10):
        image = make_image(seed=number)
        (tmp_path / "images" / f"{number}.png").write_bytes(encode(image, "PNG"))
        lines.append(f"{number}.png,{1 + 0.4 * ((number * 7) % 10)}")
        wanted.append(tiny_score(image))
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(lines) + "\n")
    (tmp_path / "made").mkdir()
    bundle = write_tiny_bundle(tmp_path / "made" / "tiny.bundle")
    run, output = CliRunner(), tmp_path / "out"
    shown = run.invoke(
        app,
        ["evaluate", "--bundle", str(bundle.path), "--data", str(labels), "--precision", "all",
         "-o", str(output), "--json"],
    )  # fmt: skip
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.stdout)
    assert list(found["results"]) == ["fp32"] and found["pictures"] == 10
    mos = read_csv(labels).mos
    assert found["results"]["fp32"]["srcc"] == pytest.approx(stats.spearmanr(wanted, mos).statistic)
    scaled = (mos - TINY_MOS.low) / (TINY_MOS.high - TINY_MOS.low)
    rmse = np.sqrt(np.mean((np.array(wanted) - scaled) ** 2))
    assert found["results"]["fp32"]["rmse"] == pytest.approx(rmse, abs=1e-5)
    with (output / "bundle.csv").open(newline="") as stream:
        values = [float(row["fp32"]) for row in csv.DictReader(stream)]
    np.testing.assert_allclose(values, wanted, atol=1e-5)
    page = Page(output / "bundle.html")
    given = TINY_MOS.low + np.array(wanted) * (TINY_MOS.high - TINY_MOS.low)
    order = np.argsort(given - mos)
    assert [int(Path(alt).stem) for alt, _ in page.images] == [*order[:5], *order[::-1][:5]]
    assert page.html.count('class="dot"') == 10 and "https:" not in page.html
    shown = run.invoke(
        app,
        [
            "evaluate",
            "--bundle",
            str(bundle.path),
            "--data",
            str(labels),
            "--test-part",
            "3",
            "-o",
            str(output),
        ],
    )
    assert "2 pictures (test part of seed 3)" in shown.stdout
    shown = run.invoke(
        app,
        [
            "evaluate",
            "--bundle",
            str(bundle.path),
            "--data",
            str(labels),
            "--precision",
            "int8",
            "-o",
            str(output),
        ],
    )
    assert shown.exit_code == 2 and "has no int8 graph; it has fp32" in shown.stderr
