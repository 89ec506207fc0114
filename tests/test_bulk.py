"""Many pictures: the same results as one by one, in order, a bounded number at a time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import encode, make_image, tiny_score, write_clip

from grmp_edge.bundle import Bundle
from grmp_edge.errors import BackendError, UsageError
from grmp_edge.runtime import Failure, Picture, Sampling, Score, Scorer
from grmp_edge.runtime.bulk import BulkConfig, score_bulk
from grmp_edge.runtime.sources.listing import natural_key, sort_names, walk
from grmp_edge.runtime.sources.sources import Listed, list_sources


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Pictures, two clips and broken files, in natural order 0 .. 24, clip_a, clip_b, cut."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for number in range(25):
        data = b"a text file" if number in (3, 4, 19) else encode(make_image(seed=number), "PNG")
        (folder / f"{number}.png").write_bytes(data)
    write_clip(folder / "clip_a.mp4")
    write_clip(folder / "clip_b.mp4", frames=9)
    whole = tmp_path / "whole.mkv"
    write_clip(whole, fourcc="MJPG")
    (folder / "cut.mkv").write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    return folder


@pytest.mark.parametrize(
    "config",
    [
        BulkConfig(batch=1, workers=1, runs=1, frames_ahead=1),
        BulkConfig(batch=3, workers=4, runs=2),
        BulkConfig(batch=64, workers=2, runs=3, max_wait_s=0.001),
    ],
)
def test_the_same_as_one_after_another(tiny_bundle: Bundle, mixed: Path, config: BulkConfig) -> None:
    with Scorer.open(tiny_bundle, threads=1) as scorer:
        found = list(score_bulk(scorer, list_sources([mixed, mixed / "no.png"]), config))
    pictures = {f"{mixed}/{number}.png": make_image(seed=number) for number in range(25)}
    failed = {f"{mixed}/{name}" for name in ("3.png", "4.png", "19.png", "cut.mkv", "no.png")}
    order = list(dict.fromkeys(result.source for result in found))
    assert [Path(name).name for name in order] == [
        *(f"{number}.png" for number in range(25)), "clip_a.mp4", "clip_b.mp4", "cut.mkv", "no.png",
    ]  # fmt: skip
    for name, image in pictures.items():
        if name not in failed:
            (score,) = (result for result in found if result.source == name)
            assert isinstance(score, Score)
            assert score.value == pytest.approx(tiny_score(image), abs=1e-6)
    assert {result.source for result in found if isinstance(result, Failure)} == failed
    assert isinstance(found[-2], Failure) and "cut short" in str(found[-2].error)
    for name, count in (("clip_a.mp4", 12), ("clip_b.mp4", 9)):
        frames = [result for result in found if isinstance(result, Score) and result.source.endswith(name)]
        assert [score.frame for score in frames] == list(range(count))
        assert [score.time_s for score in frames] == pytest.approx([i / 10 for i in range(count)], abs=1e-3)
        values = [score.value for score in frames]
        assert values == sorted(values, reverse=True)  # the clip gets darker
        assert values[0] - values[-1] > 0.5


def test_frames_in_colour_are_not_mixed_up(tmp_path: Path) -> None:
    """A graph that weighs only red: a swapped channel order would show."""
    import cv2
    import onnx
    from onnx import TensorProto, helper

    from grmp_edge.bundle import write_bundle
    from grmp_edge.preprocess import NORMALIZATIONS, Preprocess

    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "weights"], ["weighted"]),
        helper.make_node("ReduceMean", ["weighted"], ["scores"], axes=[1, 2, 3], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "red",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 32, 32, 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch"])],
        [helper.make_tensor("weights", TensorProto.FLOAT, [3], [3 / 255, 0.0, 0.0])],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        str(tmp_path / "model.onnx"),
    )
    bundle = write_bundle(
        tmp_path / "b",
        {"fp32": (tmp_path / "model.onnx", 17)},
        backbone={"name": "red"}, preprocess=Preprocess(40, 32), normalization=NORMALIZATIONS["clip"],
        mos=None, parity={}, provenance={},
    )  # fmt: skip
    red = np.zeros((48, 64, 3), np.uint8)
    red[:, :, 0] = 200
    clip = tmp_path / "red.avi"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for _ in range(3):
        writer.write(red[:, :, ::-1])  # OpenCV writes BGR
    writer.release()
    (tmp_path / "red.png").write_bytes(encode(red, "PNG"))
    with Scorer.open(bundle) as scorer:
        found = list(score_bulk(scorer, list_sources([clip, tmp_path / "red.png"])))
        assert [item.value for item in found if isinstance(item, Score)] == pytest.approx(
            [200 / 255] * 4, abs=0.02
        )


def test_frames_are_sampled_and_passed_over(tiny_bundle: Bundle, clip: Path) -> None:
    with Scorer.open(tiny_bundle) as scorer:
        every = list(score_bulk(scorer, list_sources([clip]), sampling=Sampling(every=3)))
        rest = list(score_bulk(scorer, list_sources([clip]), sampling=Sampling(every=3), after=lambda _: 3))
        none = list(score_bulk(scorer, list_sources([clip]), after=lambda _: 11))
    frames = [score.frame for score in every if isinstance(score, Score)]
    assert frames == [0, 3, 6, 9]
    assert [(item.frame, item.value) for item in rest if isinstance(item, Score)] == [
        (item.frame, item.value) for item in every[2:] if isinstance(item, Score)
    ]
    assert none == []


def test_little_is_taken_ahead(tiny_bundle: Bundle, photos: Path) -> None:
    """A million names are not listed before the first is scored, nor while results wait to be taken."""
    taken = 0

    def endless() -> Iterator[Listed]:
        nonlocal taken
        while True:
            taken += 1
            yield photos / "1.png"

    config = BulkConfig(batch=2, workers=2, runs=2)
    with Scorer.open(tiny_bundle, threads=1) as scorer:
        stream: Any = score_bulk(scorer, endless(), config)
        for count in range(1, 60):
            next(stream)
            # What waits in queues, in the batch that fills, and in runs.
            assert taken <= count + 2 * 3 + 2 * (2 + 2)
        stream.close()


def test_failures_do_not_pile_up_behind_a_batch_that_never_fills(tiny_bundle: Bundle, photos: Path) -> None:
    taken = 0

    def one_good_then_bad() -> Iterator[Listed]:
        nonlocal taken
        yield photos / "1.png"
        for number in range(100_000):
            taken = number
            yield photos / f"no{number}.png"

    with Scorer.open(tiny_bundle) as scorer:
        stream: Any = score_bulk(scorer, one_good_then_bad(), BulkConfig(batch=8, workers=1, max_wait_s=60))
        assert isinstance(next(stream), Score)
        assert taken < 200
        stream.close()


def test_what_waits_is_scored_when_nothing_more_comes(tiny_bundle: Bundle, photos: Path) -> None:
    gate = threading.Event()

    def slow() -> Iterator[Listed | None]:
        yield photos / "1.png"
        yield None  # nothing more for now
        gate.wait(30)
        yield photos / "2.png"

    with Scorer.open(tiny_bundle) as scorer:
        stream: Any = score_bulk(scorer, slow(), BulkConfig(batch=8))
        first = next(stream)  # does not wait for the batch to fill
        assert not gate.is_set()
        gate.set()
        (second,) = stream
    assert [Path(item.source).name for item in (first, second)] == ["1.png", "2.png"]


def test_a_slow_pipe_does_not_hold_frames_back(tiny_bundle: Bundle, tmp_path: Path, photos: Path) -> None:
    pipe = tmp_path / "slow.png"
    os.mkfifo(pipe)
    with Scorer.open(tiny_bundle) as scorer:
        stream: Any = score_bulk(scorer, [photos / "1.png", pipe, photos / "2.png"], BulkConfig(batch=3))
        assert next(stream).source == str(photos / "1.png")  # though the next picture is not there yet
        pipe.write_bytes((photos / "10.png").read_bytes())
        values = [item.value for item in stream if isinstance(item, Score)]
    expected = [tiny_score(make_image(seed=seed)) for seed in (10, 2)]
    assert values == pytest.approx(expected, abs=1e-6)


def test_a_read_that_hangs_does_not_keep_it_from_closing(tiny_bundle: Bundle, tmp_path: Path) -> None:
    pipe = tmp_path / "hang.png"
    os.mkfifo(pipe)
    with Scorer.open(tiny_bundle) as scorer:
        stream: Any = score_bulk(scorer, iter([pipe]), BulkConfig(workers=2))
        waiter = threading.Timer(0.3, pipe.write_bytes, [b""])  # in the end, for the thread's sake
        begin = time.monotonic()
        reader = threading.Thread(target=lambda: next(stream, None))
        reader.start()
        waiter.start()
        reader.join(30)
        stream.close()
        assert not reader.is_alive()
    assert time.monotonic() - begin < 30


def test_threads_end_with_the_stream(tiny_bundle: Bundle, mixed: Path) -> None:
    before = threading.active_count()
    with Scorer.open(tiny_bundle, threads=1) as scorer:
        stream: Any = score_bulk(scorer, list_sources([mixed]), BulkConfig(workers=4, runs=2, frames_ahead=1))
        next(stream)
        assert threading.active_count() == before + 6
        stream.close()
        assert threading.active_count() == before
        list(score_bulk(scorer, list_sources([mixed])))
        assert threading.active_count() == before


def test_an_error_of_the_network_ends_it(tiny_bundle: Bundle, mixed: Path) -> None:
    scorer = Scorer.open(tiny_bundle)
    scorer.close()
    with pytest.raises(BackendError, match="closed"):
        list(score_bulk(scorer, list_sources([mixed])))


def test_a_bug_in_a_thread_is_not_swallowed(tiny_bundle: Bundle, photos: Path) -> None:
    with Scorer.open(tiny_bundle) as scorer, pytest.raises(ZeroDivisionError):
        list(score_bulk(scorer, list_sources([photos]), after=lambda _: 1 // 0))


def test_decoded_pictures_may_be_given(tiny_bundle: Bundle) -> None:
    pictures = [Picture(make_image(seed=seed), f"own {seed}") for seed in range(5)]
    odd = Picture(np.zeros((4, 4), np.uint8), "odd")
    with Scorer.open(tiny_bundle) as scorer:
        found = list(score_bulk(scorer, [*pictures, odd]))
    assert [item.source for item in found] == [*(f"own {seed}" for seed in range(5)), "odd"]
    assert isinstance(found[-1], Failure)
    for seed, item in enumerate(found[:5]):
        assert isinstance(item, Score)
        assert item.value == pytest.approx(tiny_score(make_image(seed=seed)), abs=1e-6)


def test_senseless_settings() -> None:
    senseless: tuple[dict[str, Any], ...] = (
        {"batch": 0},
        {"workers": 0},
        {"runs": 0},
        {"frames_ahead": 0},
        {"max_wait_s": 0.0},
    )
    for wrong in senseless:
        with pytest.raises(UsageError):
            BulkConfig(**wrong)


def test_names_are_sorted_in_runs_as_in_memory() -> None:
    rng = np.random.default_rng(0)
    names = [f"cam{a}/{b:0{c}}\n\udcff.png" for a, b, c in rng.integers(1, 40, (2000, 3))]
    wanted = sorted(names, key=lambda name: (natural_key(name), name))
    for in_memory in (7, 300, 1999, 2000, 2001, 10_000):
        assert list(sort_names(iter(names), in_memory)) == wanted
        assert list(sort_names(names[::-1], in_memory)) == wanted
    assert list(sort_names([])) == []


def test_a_long_folder_is_listed_in_little_memory(tmp_path: Path) -> None:
    """60,000 names and their keys in one list would take 35 MB."""
    import tracemalloc

    tracemalloc.start()
    first = next(sort_names((f"{number}.png" for number in range(60_000, 0, -1)), 2_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert first == "1.png"
    assert peak < 8e6


def test_walking_tells_what_cannot_be_listed(tmp_path: Path) -> None:
    errors: list[OSError] = []
    (tmp_path / "b").mkdir()
    (tmp_path / "a").mkdir()
    for name in ("a/2", "a/10", "b/1", "x"):
        (tmp_path / name).touch()
    (tmp_path / "loop").symlink_to("loop")
    found = list(walk(tmp_path, lambda name: True, errors.append))
    assert found == [str(tmp_path / name) for name in ("loop", "x", "a/2", "a/10", "b/1")]
    assert list(walk(tmp_path / "no", lambda name: True, errors.append)) == []
    assert [error.filename for error in errors] == [str(tmp_path / "no")]
