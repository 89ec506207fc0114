"""Scoring through a real session, against numpy."""

from __future__ import annotations

import json
import math
import re
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import TINY_MOS, encode, make_image, tiny_score, write_tiny_bundle

from grmp_edge.bundle import Bundle
from grmp_edge.errors import BackendError, BundleError, ImageError, UsageError
from grmp_edge.runtime import BackendOptions, Failure, Picture, Sampling, Score, Scorer
from grmp_edge.runtime.backends import OnnxRuntimeBackend, open_backend
from grmp_edge.runtime.measure.doctor import can_score, examine
from grmp_edge.runtime.measure.probe import FLOAT, operator_graph
from grmp_edge.score import Origin


def test_a_path_bytes_and_an_array(tiny_bundle: Bundle, photos: Path) -> None:
    path, image = photos / "2.png", make_image(seed=2)
    with Scorer.open(tiny_bundle.path) as scorer:
        results = [
            scorer.score(path),
            scorer.score(str(path)),
            scorer.score(path.read_bytes(), name="upload"),
            scorer.score(image),
            scorer.score(image.astype(np.uint16) * 257),
        ]
    for result in results:
        assert result.value == pytest.approx(tiny_score(image), abs=1e-6)
        assert result.mos == pytest.approx(1 + 4 * result.value)
        assert result.model == tiny_bundle.id
        assert result.latency_ms is not None
        assert result.latency_ms > 0
    assert [result.source for result in results] == [str(path), str(path), "upload", "image 0", "image 0"]


def test_a_batch_scores_as_its_pictures_do(tiny_bundle: Bundle) -> None:
    images = [make_image(40 + seed, 90 - seed, seed) for seed in range(5)]
    with Scorer.open(tiny_bundle, threads=1) as scorer:
        batch = scorer.score_batch(images, names=list("abcde"))
        alone = [scorer.score(image) for image in images]
        assert scorer.score_batch([]) == []
        with pytest.raises(ValueError, match="1 names for 5 images"):
            scorer.score_batch(images, names=["a"])
    assert [score.source for score in batch] == list("abcde")
    expected = [tiny_score(image) for image in images]
    assert [score.value for score in batch] == pytest.approx(expected, abs=1e-6)
    assert [score.value for score in alone] == pytest.approx(expected, abs=1e-6)
    assert len(set(expected)) == 5


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_a_stream_keeps_its_order_past_failures(tiny_bundle: Bundle, photos: Path, batch_size: int) -> None:
    (photos / "3.png").write_text("a text file")
    (photos / "4.png").touch()
    odd = Picture(np.zeros((4, 4), np.uint8), "odd")
    with Scorer.open(tiny_bundle) as scorer:
        results = list(scorer.score_many([photos, odd, Picture(make_image(seed=5), "own")], batch_size))
    assert [Path(result.source).name for result in results] == [
        "1.png", "2.png", "3.png", "4.png", "10.png", "odd", "own",
    ]  # fmt: skip
    assert [isinstance(result, Score) for result in results] == [True, True, False, False, True, False, True]
    for result, seed in zip(results, (1, 2, 0, 0, 10, 0, 5), strict=True):
        if isinstance(result, Score):
            assert result.value == pytest.approx(tiny_score(make_image(seed=seed)), abs=1e-6)


def test_a_stream_is_lazy(tiny_bundle: Bundle) -> None:
    taken = []

    def pictures() -> object:
        for index in range(100):
            taken.append(index)
            yield Picture(make_image(), str(index))

    with Scorer.open(tiny_bundle) as scorer:
        stream = scorer.score_many(pictures(), batch_size=4)  # type: ignore[arg-type]
        next(stream)
        assert taken == [0, 1, 2, 3]


def test_a_darkening_video_scores_lower_and_lower(tiny_bundle: Bundle, clip: Path) -> None:
    with Scorer.open(tiny_bundle) as scorer:
        scores = [item for item in scorer.score_many([clip], 5) if isinstance(item, Score)]
        sampled = list(scorer.score_many([clip], 5, Sampling(every=4)))
    assert [score.frame for score in scores] == list(range(12))
    assert all(later.value < earlier.value for earlier, later in pairwise(scores))
    assert [score.time_s for score in scores] == pytest.approx([index / 10 for index in range(12)], abs=1e-3)
    assert [item.value for item in sampled if isinstance(item, Score)] == [scores[i].value for i in (0, 4, 8)]


def test_json_lines(tiny_bundle: Bundle) -> None:
    score = Score(0.123456789, "weird \udcff\n.png", "id", time_s=1.0, frame=0)
    line = score.to_json()
    assert line.isascii()
    assert "\n" not in line
    assert json.loads(line) == {
        "value": 0.123457, "source": "weird \udcff\n.png", "model": "id", "time_s": 1.0, "frame": 0,
    }  # fmt: skip


def test_bad_pictures(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with Scorer.open(tiny_bundle) as scorer:
        for bad in (tmp_path / "no.png", b"", b"text", np.zeros((3, 3, 3), np.float32)):
            with pytest.raises(ImageError):
                scorer.score(bad)
        with pytest.raises(ImageError):
            scorer.score_batch([make_image(), b""])


def test_without_a_bundle_the_one_that_ships_is_opened() -> None:
    from grmp_edge import Scorer as AtTheDoor
    from grmp_edge.default_bundle import DEFAULT_BUNDLE

    with AtTheDoor.open() as scorer:
        assert scorer.bundle.path == DEFAULT_BUNDLE
        assert 0.0 <= scorer.score(make_image()).value <= 1.0


def test_where_a_result_came_from(tiny_bundle: Bundle, clip: Path) -> None:
    with Scorer.open(tiny_bundle) as scorer:
        (score,) = scorer.score_many([clip], sampling=Sampling(every=100))
        assert isinstance(score, Score)
        assert score.origin == Origin(str(clip), 0, 0.0) == Origin(score.source, score.frame, score.time_s)
        picture = Picture(make_image(), "own", 3)
        (again,) = scorer.score_prepared([picture.origin], [scorer.prepare(picture.image)])
    assert again.origin == picture.origin == Origin("own", 3)


def test_closed(tiny_bundle: Bundle) -> None:
    with Scorer.open(tiny_bundle) as scorer:
        pass
    with pytest.raises(BackendError, match="closed"):
        scorer.score(make_image())


def test_many_threads(tiny_bundle: Bundle) -> None:
    images = [make_image(seed=seed) for seed in range(4)]
    found: dict[int, list[float]] = {}
    with Scorer.open(tiny_bundle, threads=1) as scorer:

        def work(seed: int) -> None:
            found[seed] = [scorer.score(images[seed]).value for _ in range(25)]

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for seed, values in found.items():
        assert values == pytest.approx([tiny_score(images[seed])] * 25, abs=1e-6)
    assert len(found) == 4


def test_the_provider_in_use_is_told(tiny_bundle: Bundle) -> None:
    with Scorer.open(tiny_bundle, provider="cpu") as scorer:
        assert (scorer.backend.name, scorer.backend.provider, scorer.precision) == (
            "onnxruntime",
            "cpu",
            "fp32",
        )
        assert isinstance(scorer.backend, OnnxRuntimeBackend)


def test_wrong_options(tiny_bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="unknown provider 'gpu'"):
        BackendOptions("gpu")
    with pytest.raises(BackendError, match="0 threads"):
        BackendOptions(threads=0)
    with pytest.raises(BundleError, match="no int8 graph"):
        Scorer.open(tiny_bundle, precision="int8")


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_no_silent_fall_back(tiny_bundle: Bundle, provider: str) -> None:
    import onnxruntime as ort

    full = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}[provider]
    try:
        scorer = Scorer.open(tiny_bundle, provider=provider)
    except BackendError as error:
        # Here it cannot work, and the error says which provider and what to do.
        assert full not in ort.get_available_providers() or not _loads(full)
        assert provider in str(error)
        assert error.remedy
    else:
        assert scorer.backend.provider == provider
        assert _loads(full)


def _loads(full: str) -> bool:
    import onnxruntime as ort

    return (
        full
        in ort.InferenceSession(
            operator_graph("Add", (FLOAT, FLOAT), FLOAT, 1), providers=[full]
        ).get_providers()
    )


def test_a_graph_that_is_none(tmp_path: Path, tiny_bundle: Bundle) -> None:
    graph = tmp_path / "bad.onnx"
    graph.write_bytes(b"no protobuf at all")
    with pytest.raises(BackendError, match=r"bad\.onnx: onnxruntime .* cannot load it") as caught:
        open_backend(graph, tiny_bundle.graphs["fp32"], 32, BackendOptions())
    assert "\n" not in str(caught.value)


def test_a_graph_of_another_size_than_promised(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b", side=48)
    with pytest.raises(BackendError, match=r"promises images uint8 \(batch, 32, 32, 3\)"):
        Scorer.open(bundle)


def test_a_graph_that_gives_no_probability(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b", shift=math.nan)
    with Scorer.open(bundle) as scorer, pytest.raises(BackendError, match=r"not a number in 0\.\.1"):
        scorer.score(make_image())


def test_the_scale_of_the_labels_is_optional(tmp_path: Path) -> None:
    with Scorer.open(write_tiny_bundle(tmp_path / "b", mos=None)) as scorer:
        score = scorer.score(make_image())
    assert score.mos is None
    assert "mos" not in json.loads(score.to_json())
    assert TINY_MOS.to_mos(0.25) == 2.0
    assert TINY_MOS.to_value(9.0) == 1.0


def test_the_probe_graph_is_a_valid_model() -> None:
    model = onnx.load_from_string(operator_graph("Add", (FLOAT, FLOAT), FLOAT, 1))
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Add"]


def test_doctor_runs_what_it_reports() -> None:
    import onnxruntime as ort

    parts = {part.name: part for part in examine()}
    assert parts["provider cpu"].status == "ok"
    assert can_score(list(parts.values()))
    assert ort.__version__ in parts["onnxruntime"].detail
    for part in parts.values():
        if part.name.startswith("provider ") and part.status == "ok":
            assert part.detail == "a session was created and run"
        if part.status == "missing" and part.name != "gpu":
            assert re.search(r"pip install -e '\S+\[\w+\]'", part.remedy)
    assert not can_score(
        [part for part in parts.values() if part.name != "provider cpu" and part.status != "ok"]
    )


def test_a_failure_is_one_line(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "two\nlines.png").touch()
    with Scorer.open(tiny_bundle) as scorer:
        (failure,) = scorer.score_many([tmp_path / "two\nlines.png"])
    assert isinstance(failure, Failure)
    assert "\n" not in str(failure.error)


def test_encoded_kinds_score_alike(tiny_bundle: Bundle) -> None:
    image = make_image()
    with Scorer.open(tiny_bundle) as scorer:
        for kind in ("PNG", "BMP", "TIFF", "PPM"):
            assert scorer.score(encode(image, kind)).value == pytest.approx(tiny_score(image), abs=1e-6)
