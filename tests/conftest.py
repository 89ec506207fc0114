"""Pictures, a clip and a bundle, all made here: small, and with scores that numpy can work out."""

from __future__ import annotations

import functools
import io
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from grmp_edge.bundle import Bundle, write_bundle
from grmp_edge.check_pictures import NAME, check_pictures
from grmp_edge.cli import app
from grmp_edge.export import gate_images as gate_images_module
from grmp_edge.files import sha256_bytes
from grmp_edge.parity import ParityReport
from grmp_edge.preprocess import NORMALIZATIONS, Preprocess
from grmp_edge.score import MosScale
from grmp_edge.views import Aggregate, sigmoid

UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

# Some tests load onnxruntime before grmp-edge does, which switches this off.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# Read when torch is loaded, as grmp-edge has it: its threads do not spin where the machine has other work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A shell ignores Ctrl-C for what it starts in the background, and children inherit that; the tests that
# interrupt a command need it back, wherever they are started from.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The user's own cache and memory of cameras are left alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def gate_pictures_drawn_once() -> Iterator[None]:
    """The same 32 for every export: drawing them costs more than all else that a tiny network needs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate_images_module, "_procedural", functools.cache(gate_images_module._procedural))
        yield


TINY_SIDE = 32  # what the tiny graph reads
TINY_MOS = MosScale(1.0, 5.0)
# Of the bundle with views: the causes, what a channel's mean adds to their logits, and how views become one.
TINY_CAUSES = ("blur", "dark")
TINY_WEIGHTS = np.array([[1 / 96] * 3, [0.05, -0.02, -0.01], [-0.02, -0.03, 0.01]])
TINY_BIASES = np.array([-4.0, -2.0, 5.0])
TINY_AGGREGATE = Aggregate(0.7, 0.2, 0.1)
CHECK_PICTURES = check_pictures(16, TINY_SIDE)


def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Poll for what another thread or process does without an event to wait on; the one place that does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def make_image(height: int = 48, width: int = 64, seed: int = 0) -> UInt8Array:
    """A smooth random picture without any symmetry, uint8 (height, width, 3) RGB."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


def encode(image: Image.Image | UInt8Array, kind: str, **options: object) -> bytes:
    """A picture file's bytes, written by PIL."""
    buffer = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def tiny_score(image: UInt8Array) -> float:
    """What the tiny graph must say of a decoded picture: sigmoid(mean of the input / 32 - 4), by numpy."""
    squashed = cv2.resize(image, (40, 40), interpolation=cv2.INTER_CUBIC)[4:36, 4:36]
    return float(1 / (1 + np.exp(-(squashed.astype(np.float64).mean() / 32 - 4))))


def tiny_logits(views: UInt8Array) -> npt.NDArray[np.float64]:
    """What the tiny graph with causes must give of views (N, 32, 32, 3): (N, 3), by numpy."""
    means = views.astype(np.float64).mean(axis=(1, 2))
    return np.asarray(means @ TINY_WEIGHTS.T + TINY_BIASES)


def tiny_parity(scores: Mapping[str, npt.NDArray[np.floating]]) -> ParityReport:
    """A bundle's parity with what its graphs must give of the check pictures, by precision."""
    return {
        "images": "pictures: none",
        "check": {
            "pictures": NAME,
            "seed": 0,
            "count": len(CHECK_PICTURES),
            "sha256": sha256_bytes(CHECK_PICTURES.tobytes()),
            # Rounded: another last digit of more would be the same number, and no damage.
            "scores": {precision: values.round(9).tolist() for precision, values in scores.items()},
        },
    }


def write_tiny_logits_graph(path: Path) -> None:
    """uint8 (N, 32, 32, 3) -> logits float32 (N, 3), and their first column's sigmoid as scores (N,)."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["means"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["means", "weights"], ["products"]),
        helper.make_node("Add", ["products", "biases"], ["logits"]),
        helper.make_node("Gather", ["logits", "first"], ["logit"], axis=1),
        helper.make_node("Sigmoid", ["logit"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", TINY_SIDE, TINY_SIDE, 3])],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch"]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(TINY_BIASES)]),
        ],
        [
            numpy_helper.from_array(TINY_WEIGHTS.T.astype(np.float32), "weights"),
            numpy_helper.from_array(TINY_BIASES.astype(np.float32), "biases"),
            numpy_helper.from_array(np.array(0, np.int64), "first"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def write_views_bundle(
    path: Path,
    native: int = 4,
    causes: Sequence[str] = TINY_CAUSES,
    aggregate: Aggregate | None = TINY_AGGREGATE,
) -> Bundle:
    """A bundle of schema 3 round the tiny graph with causes."""
    made = path.parent / "model.onnx"
    write_tiny_logits_graph(made)
    return write_bundle(
        path,
        {"fp32": (made, 17)},
        backbone={"name": "tiny"},
        preprocess=Preprocess(40, TINY_SIDE, native=native),
        normalization=NORMALIZATIONS["lite"],
        mos=TINY_MOS,
        parity=tiny_parity({"fp32": sigmoid(tiny_logits(CHECK_PICTURES)[:, 0])}),
        provenance={"made_by": "tests"},
        aggregate=aggregate,
        causes=causes,
        logits="logits",
    )


def write_tiny_graph(path: Path, side: int = TINY_SIDE, scale: float = 1 / 32, shift: float = -4.0) -> None:
    """uint8 (N, side, side, 3) -> Cast -> ReduceMean -> affine -> Sigmoid -> float32 (N,)."""
    import onnx
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", side, side, 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch"])],
        [
            helper.make_tensor("scale", TensorProto.FLOAT, [], [scale]),
            helper.make_tensor("shift", TensorProto.FLOAT, [], [shift]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def write_tiny_bundle(
    path: Path, mos: MosScale | None = TINY_MOS, side: int = TINY_SIDE, shift: float = -4.0
) -> Bundle:
    """A real bundle round the tiny graph; with a ``shift`` that is no number nothing to compare with."""
    made = path.parent / "model.onnx"
    write_tiny_graph(made, side, shift=shift)
    scores = sigmoid(CHECK_PICTURES.mean(axis=(1, 2, 3)) / 32 + shift)
    return write_bundle(
        path,
        {"fp32": (made, 17)},
        backbone={"name": "tiny"},
        preprocess=Preprocess(40, TINY_SIDE),
        normalization=NORMALIZATIONS["clip"],
        mos=mos,
        parity=tiny_parity({"fp32": scores} if np.isfinite(scores).all() else {}),
        provenance={"made_by": "tests"},
    )


def write_clip(path: Path, frames: int = 12, fourcc: str = "mp4v", fps: float = 10.0) -> list[float]:
    """A real video of grey frames that get darker; returns the grey of each."""
    levels = [float(240 - 18 * index) for index in range(frames)]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*fourcc), fps, (64, 48))
    assert writer.isOpened()
    for level in levels:
        writer.write(np.full((48, 64, 3), level, np.uint8))
    writer.release()
    return levels


Shell = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def shell(capfd: pytest.CaptureFixture[str]) -> Shell:
    """``grmp-edge`` in this process: one of its own would load for longer than most commands run.

    What libraries write to the real stdout and stderr is there too.
    """

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        words = [str(word) for word in arguments]
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            app(words, prog_name="grmp-edge")
        assert isinstance(ended.value.code, int)
        return subprocess.CompletedProcess(words, ended.value.code, *capfd.readouterr())

    return run


@pytest.fixture
def tiny_bundle(tmp_path: Path) -> Bundle:
    folder = tmp_path / "made"
    folder.mkdir()
    return write_tiny_bundle(folder / "tiny.bundle")


@pytest.fixture
def views_bundle(tmp_path: Path) -> Bundle:
    """It reads the whole and four native crops, and names two causes."""
    folder = tmp_path / "made-views"
    folder.mkdir()
    return write_views_bundle(folder / "views.bundle")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with 1.png, 2.png and 10.png, different from each other."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in (1, 2, 10):
        (folder / f"{number}.png").write_bytes(encode(make_image(seed=number), "PNG"))
    return folder


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """12 frames at 10 a second, each darker than the one before."""
    path = tmp_path / "clip.mp4"
    write_clip(path)
    return path
