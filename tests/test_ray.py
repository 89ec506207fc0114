"""Scoring on a real Ray cluster of this machine: the same results as without it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import encode, make_image, write_clip

from grmp_edge.bundle import Bundle
from grmp_edge.errors import BackendError, GrmpError, UsageError
from grmp_edge.runtime import Failure, Sampling, Score, Scorer
from grmp_edge.runtime.cluster import RayConfig, RayScorer
from grmp_edge.runtime.sources.sources import list_sources

pytestmark = pytest.mark.ray
COMMAND = [sys.executable, "-m", "grmp_edge", "score"]


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    folder = tmp_path / "mixed"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number}.png").write_bytes(encode(make_image(seed=number), "PNG"))
    (folder / "7.png").write_bytes(b"no picture")
    (folder / "odd \udcff\n.png").write_bytes(encode(make_image(seed=30), "PNG"))
    write_clip(folder / "8.mp4")
    return folder


def plain(item: Score | Failure) -> tuple[object, ...]:
    if isinstance(item, Failure):
        return item.source, str(item.error)
    return item.source, item.frame, item.time_s, item.value, item.mos, item.model


def test_the_same_as_without_ray(tiny_bundle: Bundle, mixed: Path) -> None:
    sources, sampling = [mixed, mixed / "no.png", mixed / "*.jpg"], Sampling(every=2)
    with Scorer.open(tiny_bundle, threads=1) as scorer:
        wanted = [plain(item) for item in scorer.score_many(sources, sampling=sampling)]
    # Small parts, so that there are several, and an actor gets several batches.
    config = RayConfig(actors=2, cpus=0.5, names=4, part=15, batch=3)
    with RayScorer(tiny_bundle.path, config=config, sampling=sampling) as scorer:
        assert scorer.model_id == tiny_bundle.id
        found = [plain(item) for item in scorer.results(list_sources(sources))]
        later = list(scorer.results(list_sources([mixed / "8.mp4"]), lambda name: 7))
    assert found == wanted
    assert len(found) == 20 + 1 + 6 + 2
    assert [item.frame for item in later if isinstance(item, Score)] == [8, 10]
    import ray

    assert not ray.is_initialized()


def test_the_command_resumes_on_ray(tiny_bundle: Bundle, mixed: Path, tmp_path: Path) -> None:
    once, output = tmp_path / "once.jsonl", tmp_path / "scores.jsonl"
    arguments = [*map(str, [tiny_bundle.path, mixed]), "--quiet", "--output"]
    subprocess.run([*COMMAND, *arguments, str(once)], capture_output=True)
    whole = once.read_bytes().splitlines(keepends=True)
    output.write_bytes(b"".join(whole[:12]) + whole[12][:20])  # in the middle of the clip
    run = subprocess.run(
        [*COMMAND, *arguments, str(output), "--resume", "--ray", "local"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == ""
    assert "Actor" not in run.stderr and "Traceback" not in run.stderr

    def content(path: Path) -> list[dict[str, object]]:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return [{key: value for key, value in row.items() if key != "latency_ms"} for row in rows]

    assert content(output) == content(once)


def test_what_goes_wrong_is_one_line(tiny_bundle: Bundle, mixed: Path) -> None:
    run = subprocess.run(
        [*COMMAND, str(tiny_bundle.path), str(mixed), "--ray", "no-scheme://x"],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert run.stderr.startswith("error: no Ray cluster at no-scheme://x: ")
    assert len(run.stderr.splitlines()) == 1
    with pytest.raises(GrmpError, match="no int8 graph"):
        RayScorer(tiny_bundle.path, precision="int8")
    with pytest.raises(UsageError):
        RayConfig(actors=0)
    scorer = RayScorer(tiny_bundle.path, config=RayConfig(), provider="cuda")
    try:
        with pytest.raises(BackendError, match=r"scoring on Ray failed: .*cuda"):
            list(scorer.results(list_sources([mixed])))
    finally:
        scorer.close()
