"""The model that ships: whole, small, the same in every precision, and used where no bundle is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import make_image, tiny_score
from onnx import TensorProto, numpy_helper

from grmp_edge.bundle import Bundle, write_bundle
from grmp_edge.cli import app
from grmp_edge.default_bundle import DEFAULT_BUNDLE, bundle_and_sources
from grmp_edge.export.default_model import load_weights
from grmp_edge.export.fold import fold
from grmp_edge.export.graph.emit import GraphPrecision, build_onnx
from grmp_edge.export.shared_weights import share_weights
from grmp_edge.preprocess import NORMALIZATIONS, Preprocess
from grmp_edge.runtime import Scorer
from grmp_edge.train.network.backbone import BackboneConfig, load_backbone
from grmp_edge.train.network.embedded import DEFAULT_PATH, EMBEDDED_PATH, STEM_PATH
from grmp_edge.train.network.model import GrmpIqa
from grmp_edge.train.runs import ModelConfig

FILES = (STEM_PATH, EMBEDDED_PATH)
PIXELS = np.random.default_rng(5).integers(0, 256, (3, 224, 224, 3), np.uint8)


@pytest.fixture(scope="module")
def model() -> GrmpIqa:
    """The embedded backbone with random prompts."""
    torch.manual_seed(3)
    return GrmpIqa(load_backbone(BackboneConfig()), ModelConfig.of(BackboneConfig()).prompts).eval()


@pytest.fixture(scope="module")
def whole(model: GrmpIqa, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """An ordinary bundle of it, each graph in one piece."""
    folder = tmp_path_factory.mktemp("whole")
    graphs: dict[str, tuple[Path, int]] = {}
    precision: GraphPrecision
    for precision, name in (("fp32", "model.onnx"), ("fp16", "model.fp16.onnx")):
        onnx.save(build_onnx(fold(model), precision), folder / name)
        graphs[precision] = (folder / name, 17)
    return write_bundle(
        folder / "bundle",
        graphs,
        backbone={},
        preprocess=Preprocess.for_size(224, native=4),
        normalization=NORMALIZATIONS["lite"],
        mos=None,
        parity={},
        provenance={},
        aggregate=model.aggregate,
        causes=model.causes,
        logits="logits",
    )


def run(path: Path) -> np.ndarray:
    """Scores and logits (3, 2 + causes)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    scores, logits = onnxruntime.InferenceSession(str(path), options).run(None, {"images": PIXELS})
    return np.concatenate([scores[:, None], logits], axis=1)


def test_shared_weights_score_the_same_bit_by_bit(whole: Bundle, tmp_path: Path) -> None:
    shared = share_weights(whole, FILES, tmp_path / "shared")
    size = sum(path.stat().st_size for path in shared.path.iterdir())
    assert size < 1.1 * sum(path.stat().st_size for path in FILES)
    assert (shared.aggregate, shared.causes) == (whole.aggregate, whole.causes)
    assert size < 0.5 * sum(path.stat().st_size for path in whole.path.iterdir())
    for precision in ("fp32", "fp16"):
        assert np.array_equal(run(whole.graph(precision)), run(shared.graph(precision)))


def test_what_is_shared_is_read_from_the_file(whole: Bundle, tmp_path: Path) -> None:
    """The scores follow the bytes of the file: there is no second copy of what it holds."""
    for each in FILES:
        shared = share_weights(whole, FILES, tmp_path / "shared")
        file = shared.path / each.name
        content = bytearray(file.read_bytes())
        content[-2_000_000:] = bytes(2_000_000)
        file.write_bytes(content)
        for precision in ("fp32", "fp16"):
            assert not np.array_equal(run(whole.graph(precision)), run(shared.graph(precision)))


def test_a_model_of_other_weights_is_not_shared(whole: Bundle, tmp_path: Path) -> None:
    other = onnx.load_model(whole.graph("fp32"))
    for weight in other.graph.initializer:
        if weight.data_type == TensorProto.FLOAT and len(weight.dims) > 1:
            changed = numpy_helper.to_array(weight) * np.float32(1.1)
            weight.CopyFrom(numpy_helper.from_array(changed, weight.name))
    onnx.save(other, tmp_path / "model.onnx")
    bundle = write_bundle(
        tmp_path / "other",
        {"fp32": (tmp_path / "model.onnx", 17)},
        backbone={},
        preprocess=Preprocess.for_size(224),
        normalization=NORMALIZATIONS["lite"],
        mos=None,
        parity={},
        provenance={},
    )
    with pytest.raises(ValueError, match="holds none"):
        share_weights(bundle, FILES, tmp_path / "shared")
    assert not (tmp_path / "shared").exists()


def test_what_ships_belongs_together() -> None:
    bundle, loaded = Bundle.load("default"), load_weights(DEFAULT_PATH).model
    assert set(bundle.graphs) == {"fp32", "fp16", "int8"} and bundle.path == DEFAULT_BUNDLE
    assert {STEM_PATH.name, DEFAULT_PATH.name} <= set(bundle.files)
    assert STEM_PATH.parent == DEFAULT_PATH.parent == bundle.path
    assert (bundle.aggregate, bundle.causes, bundle.preprocess.native) == (loaded.aggregate, loaded.causes, 4)
    with torch.no_grad():
        expected = loaded.readings(loaded.image_features(loaded.pixels(torch.from_numpy(PIXELS))))
    assert run(bundle.graph("fp32"))[:, 1:] == pytest.approx(expected.numpy(), abs=1e-4)


def test_the_default_model_knows_ruin_in_every_precision() -> None:
    """Clean computer-made scenes above the same heavily blurred, noisy and dark, most of the time."""
    from grmp_edge.train.pictures.distort import distort
    from grmp_edge.train.pictures.procedural import procedural_image

    clean = [procedural_image(np.random.default_rng(70_000 + i), 256) for i in range(8)]
    ruined = {
        kind: [distort(p, kind, 5, np.random.default_rng(i)) for i, p in enumerate(clean)]
        for kind in ("gaussian_blur", "white_noise", "jpeg")
    }
    for precision in ("fp32", "fp16", "int8"):
        with Scorer.open("default", precision, threads=1) as scorer:
            count = 8 if precision == "fp32" else 4  # the graphs agree: the bundle's own report
            before = np.array([scorer.score(picture).value for picture in clean[:count]])
            for kind, worst in ruined.items():
                after = np.array([scorer.score(picture).value for picture in worst[:count]])
                assert (before > after).mean() >= 0.75, (precision, kind)


def test_arguments_without_a_bundle(tmp_path: Path, whole: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), make_image())
    (tmp_path / "folder").mkdir()
    picture, folder = str(tmp_path / "a.png"), str(tmp_path / "folder")
    assert bundle_and_sources([str(whole.path), picture]) == (whole.path, [picture])
    assert bundle_and_sources(["default", picture]) == (DEFAULT_BUNDLE, [picture])
    for sources in (
        [picture],
        [folder, picture],
        ["rtsp://host/a", "0"],
        ["0", "1"],
        ["-"],
        ["*.png", picture],
    ):
        assert bundle_and_sources(sources) == (DEFAULT_BUNDLE, sources)
    assert bundle_and_sources([]) == (DEFAULT_BUNDLE, [])
    # A bundle that is not there is told as such, not as a picture that is not there.
    assert bundle_and_sources(["bundles/yard", picture]) == (Path("bundles/yard"), [picture])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "default").mkdir()
    assert bundle_and_sources(["default", picture]) == (DEFAULT_BUNDLE, ["default", picture])


MODELS = {
    "runs/x": (("weights.safetensors", "config.json", "curves.png"), "a checkpoint, not a bundle"),
    "my.bundle": ((), "no such bundle"),
    "half.bundle": (("a.png",), "not a bundle (it has no bundle.json)"),
    "graphs": (("model.onnx", "a.png"), "not a bundle (it has no bundle.json)"),
    "files/model.onnx": (None, "a bundle is a folder"),
    "files/bundle.json": (None, "a bundle is a folder"),
    "gone.onnx": ((), "no such bundle"),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("place", ["first", "alone", "last"])
def test_no_model_is_taken_for_a_source(
    tmp_path: Path, name: str, place: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the default model would say of the pictures beside it is not what was asked."""
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("a.png", make_image())
    files, said = MODELS[name]
    for file in (name,) if files is None else tuple(f"{name}/{file}" for file in files):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_bytes(Path("a.png").read_bytes())
    arguments = {"first": [name, "a.png"], "alone": [name], "last": ["a.png", name]}[place]
    with pytest.raises(SystemExit) as ended:
        app(["score", *arguments], prog_name="grmp-edge")
    shown = capsys.readouterr()
    assert ended.value.code in (1, 2)
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert line.startswith(f"error: {name}: " + ("a model among the sources" if place == "last" else said))
    if name == "runs/x" and place != "last":
        assert line.endswith("; make one with: grmp-edge export runs/x -o x.bundle")


def test_the_bundle_by_option(
    tmp_path: Path, tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    """All arguments are sources then, even the pictures in a checkpoint's folder."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "weights.safetensors").touch()
    cv2.imwrite(str(tmp_path / "x" / "a.png"), make_image())
    with pytest.raises(SystemExit) as ended:
        app(["score", "--json", "--bundle", str(tiny_bundle.path), str(tmp_path / "x")])
    shown = capsys.readouterr()
    assert ended.value.code == 0
    assert json.loads(shown.out)["value"] == pytest.approx(tiny_score(make_image()), abs=1e-6)
    assert shown.err.startswith(f"1 scored with {tiny_bundle.path} (model {tiny_bundle.id})")


def test_score_without_a_bundle(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), make_image(300, 400))
    done = subprocess.run(
        [sys.executable, "-m", "grmp_edge", "score", str(tmp_path / "a.png"), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = done.stdout.splitlines()
    decoded = cv2.imread(str(tmp_path / "a.png"))
    assert decoded is not None
    picture = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    bundle = Bundle.load("default")
    views = [cv2.resize(picture, (244, 244), interpolation=cv2.INTER_CUBIC)[10:234, 10:234]]
    views += [picture[top : top + 224, left : left + 224] for top in (0, 76) for left in (0, 176)]
    session = onnxruntime.InferenceSession(str(bundle.graph("fp32")))
    logits = session.run(["logits"], {"images": np.stack(views)})[0][:, 0]
    expected = bundle.aggregate.whole * logits[0] + bundle.aggregate.native * logits[1:].mean()
    expected = 1 / (1 + np.exp(-(expected + bundle.aggregate.shift)))
    assert json.loads(line)["value"] == pytest.approx(float(expected), abs=1e-5)
    assert "the model that ships" in done.stderr
