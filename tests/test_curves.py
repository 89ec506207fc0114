"""Training curves: the picture decoded, the event files read by TensorBoard itself, both over a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from helpers_train import memory_task, pictures, tiny_model
from matplotlib.figure import Figure
from typer.testing import CliRunner

from grmp_edge.cli import app
from grmp_edge.errors import MissingDependencyError
from grmp_edge.train.finetune.config import FinetuneConfig, Part
from grmp_edge.train.finetune.loop import finetune
from grmp_edge.train.meta import MetaConfig, meta_train
from grmp_edge.train.session import curves as room
from grmp_edge.train.session.checkpoint import CheckpointWriter, State
from grmp_edge.train.session.curves import CurveKind, Panel, Series, curves_for, draw_panels, panels

BLUE = np.array([180, 119, 31])  # of the first curve, as OpenCV orders it


def near_blue(image: np.ndarray) -> np.ndarray:
    return np.asarray(np.abs(image.astype(int) - BLUE).max(-1) < 40)


def part_of(count: int, seed: int = 0) -> Part:
    quality = np.random.default_rng(seed + 50).random(count).astype(np.float32)
    return Part(pictures(count, 35, seed), quality)


def tuned(folder: Path, epochs: int, kind: CurveKind, resume: bool = False) -> State:
    config = FinetuneConfig(epochs=epochs, evaluate_every=1, lr=0.05)
    writer = CheckpointWriter(folder, {"finetune": {"epochs": epochs}}, curves_for(kind, folder))
    state = writer.resume() if resume else None
    final = finetune(tiny_model(), part_of(6), part_of(6, seed=3), config, writer, state)
    writer.save(final)
    return final


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_every_epoch_once_also_after_a_resume(tmp_path: Path) -> None:
    first = tuned(tmp_path, 3, "tensorboard")
    assert len(first.progress["history"]) == 3
    second = tuned(tmp_path, 6, "tensorboard", resume=True)
    history = second.progress["history"]
    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4, 5, 6]
    found = scalars(tmp_path / "tensorboard")
    names = {"loss", "semantic", "cosine", "changed", "srcc", "lr"}
    assert set(found) == {f"finetune/{name}" for name in names}
    for name in names:
        wanted: list[Any] = [(entry["epoch"], pytest.approx(entry[name], rel=1e-6)) for entry in history]
        assert found[f"finetune/{name}"] == wanted


def test_meta_pre_training_has_a_curve_per_phase(tmp_path: Path) -> None:
    phases = [[memory_task(f"{p}{i}", 4, 3, seed=3 * p + i) for i in range(2)] for p in range(2)]
    config = MetaConfig(epochs=2, support_batch=8, query_batch=4, held_out=0.25)
    model = tiny_model()
    writer = CheckpointWriter(tmp_path, {"meta": {}}, curves_for("tensorboard", tmp_path))
    history = meta_train(model, phases, config, writer)
    found = scalars(tmp_path / "tensorboard")
    for k in range(2):
        wanted: list[Any] = [(entry["epoch"], pytest.approx(entry["phase_losses"][k])) for entry in history]
        assert found[f"pretrain/loss/phase_{k + 1}"] == wanted
    assert [step for step, _ in found["pretrain/srcc"]] == [1, 2]
    # Three tasks are trained on, one is held out: the mean is over tasks, not over phases.
    entry = history[0]
    one, two = sorted(entry["phase_losses"], key=lambda v: abs(v - entry["loss"]))
    assert entry["loss"] == pytest.approx((2 * one + two) / 3)


def test_the_picture_is_whole_at_every_save_and_grows(tmp_path: Path) -> None:
    sizes = []
    draw_all = curves_for("png", tmp_path)
    assert draw_all is not None
    for count in (1, 2, 8):
        history = [
            {"epoch": 5 * (i + 1), "loss": 1 / (i + 1), "srcc": 0.1 * i, "lr": 0.1} for i in range(count)
        ]
        draw_all({"stage": "finetune", "epoch": 5 * count, "history": history})
        image = cv2.imread(str(tmp_path / "curves.png"))
        assert image is not None and image.shape == (40 + 2 * 340, 2 * 620, 3)
        sizes.append(int(near_blue(image[:340]).sum()))
    assert sizes[0] < sizes[1] < sizes[2]
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


def drawn(*shown: Panel) -> Figure:
    figure = Figure()
    draw_panels(figure, shown, "a title")
    return figure


def test_a_curve_lies_where_its_values_are() -> None:
    rising = Series("x", "rise", tuple((epoch, epoch / 10) for epoch in range(1, 101)))
    falling = Series("y", "fall", tuple((epoch, 10.0 ** -(epoch // 10)) for epoch in range(50)))
    bad = Series("z", "bad", ((1, 0.5), (2, float("nan")), (3, float("inf")), (4, -1.0), (5, 0.0)))
    figure = drawn(
        Panel("both", (rising, falling)), Panel("rate", (falling, bad), logarithmic=True),
        Panel("none", (Series("z", "z", ()),)),
    )  # fmt: skip
    assert figure.get_suptitle() == "a title"
    both, rate, none, unused = figure.axes
    assert both.get_title() == "both" and both.get_xlabel() == "epoch"
    for line, series in zip(both.lines, (rising, falling), strict=True):
        np.testing.assert_array_equal(line.get_xydata(), series.points)
    legend = both.get_legend()
    assert legend is not None and [text.get_text() for text in legend.get_texts()] == ["rise", "fall"]
    assert both.get_yscale() == "linear" and rate.get_yscale() == "log"
    # Tenfold steps are equally high; what has no logarithm is left out.
    heights = [rate.transData.transform((0, 10.0**-k))[1] for k in range(5)]
    assert np.ptp(np.diff(heights)) < 1e-6
    np.testing.assert_array_equal(rate.lines[1].get_xydata(), [(1, 0.5)])
    assert [text.get_text() for text in none.texts] == ["no values yet"] and none.get_legend() is None
    assert not unused.lines


def test_the_decoded_picture_shows_the_curve(tmp_path: Path) -> None:
    history = [{"epoch": epoch, "loss": epoch / 10} for epoch in range(1, 101)]
    draw_all = curves_for("png", tmp_path)
    assert draw_all is not None
    draw_all({"stage": "pretrain", "epoch": 100, "history": history})  # one curve a panel: no legend
    image = cv2.imread(str(tmp_path / "curves.png"))
    assert image is not None and image.shape == (40 + 340, 2 * 620, 3)
    rows, columns = np.nonzero(near_blue(image[:, :620]))
    slope, start = np.polyfit(columns, rows, 1)
    off = np.abs(rows - (slope * columns + start))
    assert (
        slope < 0 and np.median(off) < 2 and rows.max() - rows.min() > 200
    )  # rising, over the panel's height


def test_ticks_of_epochs_are_whole() -> None:
    for last in (2, 3, 7, 2000):
        points = tuple((epoch, 0.5 * epoch) for epoch in range(1, last + 1))
        axes = drawn(Panel("p", (Series("x", "x", points),))).axes[0]
        ticks = axes.get_xticks()
        assert len(ticks) >= 2 and all(tick == round(tick) for tick in ticks)


def test_values_that_are_none_leave_a_gap() -> None:
    history: list[dict[str, Any]] = [
        {"epoch": 1, "loss": 1.0, "srcc": None, "lr": 0.1},
        {"epoch": 2, "loss": 0.5, "srcc": 0.3, "lr": 0.1},
    ]
    found = {s.name: s.points for p in panels({"stage": "finetune", "history": history}) for s in p.series}
    assert found["srcc"] == ((2, 0.3),) and found["loss"] == ((1, 1.0), (2, 0.5))
    assert found["semantic"] == ()


def test_without_the_package_one_line_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"needs the package 'tensorboard'.*\[tensorboard\]"):
        curves_for("tensorboard", tmp_path)
    with pytest.raises(MissingDependencyError, match=r"needs the package 'matplotlib'.*\[train\]"):
        curves_for("png", tmp_path)
    assert curves_for("none", tmp_path) is None
    shown = CliRunner().invoke(app, ["train", "pretrain", "--curves", "gif"])
    assert shown.exit_code == 2


def test_curves_do_not_change_training(tmp_path: Path) -> None:
    a, b = tuned(tmp_path / "a", 3, "png"), tuned(tmp_path / "b", 3, "none")
    assert all(torch.equal(value, b.weights[name]) for name, value in a.weights.items())
    assert (tmp_path / "a" / "curves.png").exists() and not (tmp_path / "b" / "curves.png").exists()


def test_a_head_in_closed_form_has_no_curve(tmp_path: Path) -> None:
    draw = curves_for("png", tmp_path)
    assert draw is not None
    draw({"stage": "finetune", "epoch": 0, "history": [], "head": {"chosen": "ridge"}})
    assert not list(tmp_path.iterdir())
