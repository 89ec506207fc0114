"""``calibrate``: labels become a new head of an exported bundle, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from helpers_train import tiny_model, tokenizer
from onnx import numpy_helper
from typer.testing import CliRunner

from grmp_edge.bundle import Bundle, write_bundle
from grmp_edge.cli import app
from grmp_edge.errors import BundleError, DataError
from grmp_edge.export.fold import fold
from grmp_edge.export.graph.emit import OPSET, build_onnx
from grmp_edge.head import fit_head
from grmp_edge.onnx_wire import stored_weights
from grmp_edge.parity import gate_report
from grmp_edge.preprocess import NORMALIZATIONS, Preprocess, read_image
from grmp_edge.runtime import Scorer
from grmp_edge.runtime.calibrate import CalibrateConfig, calibrate
from grmp_edge.runtime.graph_head import read_head
from grmp_edge.score import Interval, MosScale, Score
from grmp_edge.train.data.labelled import Labelled, read_csv
from grmp_edge.train.finetune.seen import put_head, see_labelled, see_twins
from grmp_edge.train.network.backbone import Backbone
from grmp_edge.train.network.hybrid import build_hybrid
from grmp_edge.train.network.model import GrmpIqa
from grmp_edge.train.network.settings import PromptConfig
from grmp_edge.train.pictures.twins import TWINS, twin


def exported(model: GrmpIqa, folder: Path) -> Bundle:
    """A bundle of a model's float32 graph, without the gate."""
    folded = fold(model)
    folder.mkdir()
    graph = folder / "model.onnx"
    graph.write_bytes(build_onnx(folded).SerializeToString())
    return write_bundle(
        folder / "bundle", {"fp32": (graph, OPSET)}, backbone={},
        preprocess=Preprocess.for_size(model.image.size, model.native),
        normalization=NORMALIZATIONS[model.config.normalization], mos=None,
        parity={"gate": gate_report({})}, provenance={}, aggregate=model.aggregate, causes=folded.causes,
        logits="logits" if folded.reads else "",
    )  # fmt: skip


def labelled(folder: Path, count: int, side: int) -> Labelled:
    """Noise of different sharpness; the order of the labels is not that of an untrained network."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = ["image,mos"]
    for index in range(count):
        noise = rng.integers(0, 256, (side, side + 20, 3), dtype=np.uint8)
        sharp = (index * 7) % count
        cv2.imwrite(
            str(folder / f"{index}.png"), cv2.GaussianBlur(noise, (0, 0), 0.4 + 0.3 * (count - sharp))
        )
        lines.append(f"{index}.png,{20 + 60 * sharp / count}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return read_csv(folder / "labels.csv", None, (0, 100))


@pytest.fixture(scope="module")
def hybrid() -> GrmpIqa:
    torch.manual_seed(0)
    clip = build_hybrid().eval()
    with torch.no_grad():
        clip.statistics_row.normal_(std=1e-3)
    return GrmpIqa(
        Backbone("embedded-l0", "random", False, "x", clip, tokenizer()), PromptConfig(4, 4, 0.0, "lite")
    ).eval()


def test_the_head_is_the_one_that_training_fits(hybrid: GrmpIqa, tmp_path: Path) -> None:
    """Against the torch path, picture by picture: the same labels, the same head, the same scores."""
    data = replace(labelled(tmp_path / "data", 8, 230), memo={})
    bundle = exported(hybrid, tmp_path / "made")
    kinds = list(TWINS)
    seen, twins = see_labelled(hybrid, data, range(8)), see_twins(hybrid, data, range(8))
    # Labels that contradict the bundle's own score, so that the regression is chosen.
    mos = 20.0 + 60 * (-seen.logits).argsort().argsort() / 8
    made = calibrate(
        bundle, data.picture, mos, MosScale(0, 100), tmp_path / "new",
        CalibrateConfig(threads=1), lambda picture, index: twin(picture, kinds[index % len(kinds)], index),
    )  # fmt: skip
    fit = fit_head(seen, mos / 100, twins)
    assert fit.report["chosen"] == "ridge"
    put_head(hybrid, fit.head)
    with Scorer.open(made.bundle, threads=1) as scorer:
        for index in (0, 3, 7):
            picture = read_image(data.paths[index])
            views = bundle.preprocess.views(picture).pixels
            with torch.no_grad():
                logits = hybrid.readings(hybrid.image_features(hybrid.pixels(torch.from_numpy(views))))
            wanted = 1 / (1 + np.exp(-hybrid.aggregate(logits[:, 0].double().numpy())))
            scored = scorer.score(picture)
            assert scored.value == pytest.approx(wanted, abs=2e-4)
            assert scored.mos == pytest.approx(100 * scored.value)
            # The causes stay.
            assert scored.causes is not None
            causes = logits[:, 1:].double().numpy()
            assert list(scored.causes.values()) == pytest.approx(
                (1 / (1 + np.exp(-(0.5 * causes[0] + 0.5 * causes[1:].mean(0))))).tolist(), abs=1e-3
            )
    assert made.report["fit"]["chosen"] == fit.report["chosen"]
    assert made.report["fit"]["twins"] == 8
    assert made.bundle.provenance["calibrated"]["from"] == bundle.id != made.bundle.id
    assert set(made.bundle.parity["check"]["scores"]) == {"reference", "fp32"}
    # The same graph but for three constants.
    before, after = (onnx.load_model(one.graph()).graph for one in (bundle, made.bundle))
    assert before.node == after.node and before.output == after.output
    changed = {a.name for a, b in zip(before.initializer, after.initializer, strict=True) if a != b}
    assert changed == {"direction", "bias", "statistics.row"}


def test_a_clip_without_a_stem_learns_from_its_feature(tmp_path: Path) -> None:
    model = tiny_model()
    data = labelled(tmp_path / "data", 16, 60)
    bundle = exported(model, tmp_path / "made")
    made = calibrate(bundle, data.picture, data.mos, MosScale(0, 100), tmp_path / "new")
    assert made.report["fit"]["inputs"] == ["features"]
    assert made.report["calibrated"]["count"] == 16
    interval = made.bundle.interval
    assert isinstance(interval, Interval) and interval.labels == 16 and interval.coverage == 0.9
    with Scorer.open(made.bundle) as scorer:
        score = scorer.score(str(data.paths[0]))
    low, high = score.value - interval.half_width, score.value + interval.half_width
    assert score.interval == pytest.approx((max(0.0, low), min(1.0, high)))
    assert json.loads(score.to_json())["interval"] == [round(end, 4) for end in score.interval or ()]
    assert "interval" not in json.loads(Score(0.5, "a", "b").to_json())
    # Once more from the new bundle: its own labels no longer change it much.
    again = calibrate(made.bundle, data.picture, data.mos, MosScale(0, 100), tmp_path / "again")
    assert again.report["calibrated"]["srcc"] is not None


def test_never_worse_than_its_start_on_the_labels(tmp_path: Path) -> None:
    data = labelled(tmp_path / "data", 12, 60)
    bundle = exported(tiny_model(), tmp_path / "made")
    with Scorer.open(bundle) as scorer:
        own = np.array([scorer.score(str(path)).value for path in data.paths])
    mos = 100 * (own.argsort().argsort() / 11)  # labels that the bundle already ranks without a fault
    made = calibrate(bundle, data.picture, mos, MosScale(0, 100), tmp_path / "new")
    assert made.report["fit"]["chosen"] == "start"
    with Scorer.open(made.bundle) as scorer:
        new = np.array([scorer.score(str(path)).value for path in data.paths])
    assert np.array_equal(new.argsort(), own.argsort())


def test_what_cannot_be_calibrated_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    data = labelled(tmp_path / "data", 9, 60)
    bundle = exported(tiny_model(), tmp_path / "made")
    with pytest.raises(DataError, match="7 labels are too few"):
        calibrate(bundle, data.picture, data.mos[:7], MosScale(0, 100), tmp_path / "new")
    graph = onnx.load_model(bundle.graph())
    for weight in graph.graph.initializer:
        if weight.name == "bias":
            weight.name = "shift"
    for node in graph.graph.node:
        node.input[:] = ["shift" if name == "bias" else name for name in node.input]
    old = tmp_path / "old.onnx"
    old.write_bytes(graph.SerializeToString())
    (tmp_path / "older").mkdir()
    older = write_bundle(
        tmp_path / "older" / "bundle", {"fp32": (old, OPSET)}, backbone={}, preprocess=bundle.preprocess,
        normalization=bundle.normalization, mos=None, parity={}, provenance={},
    )  # fmt: skip
    with pytest.raises(BundleError, match=r"has no constant 'bias' that could be replaced; export"):
        calibrate(older, data.picture, data.mos, MosScale(0, 100), tmp_path / "new")

    def killed() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(bundle, data.picture, data.mos, MosScale(0, 100), tmp_path / "new", on_picture=killed)
    assert {path.name for path in tmp_path.iterdir()} == {"data", "made", "older"}


def test_weights_are_found_as_onnx_finds_them(tmp_path: Path) -> None:
    bundle = exported(tiny_model(), tmp_path / "made")
    places = stored_weights(bundle.graph())
    content = bundle.graph().read_bytes()
    weights = {w.name: numpy_helper.to_array(w) for w in onnx.load_model(bundle.graph()).graph.initializer}
    assert set(places) == set(weights)
    for name, place in places.items():
        assert content[place.offset : place.offset + place.length] == weights[name].tobytes()
    head = read_head(bundle, "fp32")
    np.testing.assert_array_equal(head.direction, weights["direction"][:, 0].astype(np.float64))


def test_the_command_needs_no_torch(tmp_path: Path) -> None:
    data = labelled(tmp_path / "data", 12, 60)
    bundle = exported(tiny_model(), tmp_path / "made")
    without = (
        "import sys\n"
        "for name in ('torch', 'open_clip', 'onnx', 'safetensors'): sys.modules[name] = None\n"
        "from grmp_edge.cli import main; main()"
    )
    words = ["calibrate", str(bundle.path), "--data", str(tmp_path / "data" / "labels.csv")]
    more = ["--mos-range", "0,100", "-o", str(tmp_path / "new"), "--json"]
    done = subprocess.run([sys.executable, "-c", without, *words, *more], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["bundle"] == str(tmp_path / "new") and said["calibrated"]["count"] == len(data)
    assert f"next: grmp-edge score {tmp_path / 'new'} SOURCE..." in done.stderr
    shown = CliRunner().invoke(app, [*words, *more[:-1]])
    assert shown.exit_code == 0, shown.output
    assert "so few pictures say next to nothing" in shown.stdout and "holds 90% of opinions" in shown.stdout
