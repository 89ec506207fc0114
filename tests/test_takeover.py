"""A running watch takes over its bundle's next version, without a lost frame."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest
from conftest import UInt8Array, make_image, write_tiny_bundle
from helpers_live import FakeCapture, opener, take

from grmp_edge.bundle import Bundle
from grmp_edge.files import replace_folder
from grmp_edge.runtime import Scorer
from grmp_edge.runtime.live import takeover
from grmp_edge.runtime.live.alarms import CameraAlarms
from grmp_edge.runtime.live.alert import AlertRule
from grmp_edge.runtime.live.config import CameraConfig, LiveConfig
from grmp_edge.runtime.live.live import Live, LiveScore
from grmp_edge.runtime.live.memory import read_json


def other_version(bundle: Bundle, folder: Path, shift: float = -3.0) -> Bundle:
    folder.mkdir()
    return write_tiny_bundle(folder / "new.bundle", shift=shift)


def put(new: Path, at: Path) -> None:
    with replace_folder(at) as temporary:
        shutil.copytree(new, temporary, dirs_exist_ok=True)


def frame(index: int) -> UInt8Array:
    return make_image(seed=index % 50)


@pytest.mark.parametrize("spoiled", [False, True])
def test_no_frame_is_lost(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoiled: bool
) -> None:
    monkeypatch.setattr(takeover, "_LOOK_S", 0.02)
    new = other_version(tiny_bundle, tmp_path / "other")
    told: list[str] = []
    heard = threading.Condition()

    def tell(text: str) -> None:
        with heard:
            told.append(text)
            heard.notify_all()

    first = Scorer.open(tiny_bundle, threads=1)
    camera = CameraConfig("a", policy="every", queue=100_000)
    captures = {"a": lambda: FakeCapture(frame, 0.002)}
    scored: list[LiveScore] = []

    def change() -> None:
        if spoiled:
            (tiny_bundle.path / "model.onnx").write_bytes(b"no graph")
            (tiny_bundle.path / "bundle.json").touch()
            with heard:
                assert heard.wait_for(lambda: len(told) >= 1, 60)
        put(new.path, tiny_bundle.path)

    changer = threading.Thread(target=change)
    with (
        Live(first, [camera], opener=opener(captures)) as live,
        takeover.following(live, tiny_bundle.path, lambda bundle: Scorer.open(bundle, threads=1), tell),
    ):
        until = 0
        for event in live.events():
            if not isinstance(event, LiveScore):
                continue
            scored.append(event)
            if len(scored) == 10:
                changer.start()
            if event.score.model == new.id and not until:
                until = len(scored) + 10
            if until and len(scored) >= until:
                live.stop()
        live.scorer.close()
    changer.join()
    assert [event.score.frame for event in scored] == list(range(len(scored)))  # each, once, in order
    models = [event.score.model for event in scored]
    change_at = models.index(new.id)
    assert models == [tiny_bundle.id] * change_at + [new.id] * (len(models) - change_at)
    with Scorer.open(new, threads=1) as scorer:
        index = scored[-1].score.frame
        assert index is not None
        image = frame(index)[:, :, ::-1].copy()
        assert scored[-1].score.value == pytest.approx(scorer.score(image).value, abs=1e-6)
    if spoiled:
        assert "cannot be used" in told[0] and "old model scores on" in told[0]
        assert len([text for text in told if "cannot be used" in text]) <= 2
    assert f"scoring with model {new.id} now" in told[-1]


def test_what_cannot_be_taken_over_is_refused(tiny_bundle: Bundle, views_bundle: Bundle) -> None:
    with Scorer.open(tiny_bundle, threads=1) as scorer, Scorer.open(views_bundle, threads=1) as other:
        live = Live(scorer, [CameraConfig("a")], opener=opener({}))
        with pytest.raises(ValueError, match="another way"):
            live.take_over(other)


def test_alarms_of_scores_end_with_the_model_and_those_of_the_camera_stay() -> None:
    alarms = CameraAlarms(
        AlertRule(below=0.5, for_s=0.0, preset="normal", offline_s=0.0), "a", "one", now=0.0
    )
    alarms.change(0.0, "running", "ok")
    assert [alert.kind for alert in alarms.score(1.0, 1.0, 0.1)] == ["low"]
    (cleared,) = alarms.new_model(2.0, "two")
    assert (cleared.kind, cleared.raised) == ("low", False) and "another model" in cleared.detail
    assert not list(alarms.raised) and alarms.memory.model == "two"
    alarms.change(3.0, "restarting", "ok")
    alarms.tick(10.0)
    assert list(alarms.raised) == ["offline"] and alarms.new_model(11.0, "three") == []
    assert list(alarms.raised) == ["offline"]


def test_the_memory_is_of_the_model_that_scores(tiny_bundle: Bundle, tmp_path: Path) -> None:
    new = other_version(tiny_bundle, tmp_path / "other")
    folder = tmp_path / "memory"
    rule = AlertRule(preset="normal")
    known = CameraAlarms(rule, "a", tiny_bundle.id, folder, now=0.0)
    folder.mkdir()
    known.memory.seed([(None, 0.6), (None, 0.7)])
    known.save(0.0)

    def model_in(suffix: str) -> object:
        memory = read_json(folder / f"a{suffix}")["memory"]
        assert isinstance(memory, dict)
        return memory["model"]

    live = Live(
        Scorer.open(tiny_bundle, threads=1),
        [CameraConfig("a", alert=rule)],
        LiveConfig(memory=str(folder)),
        opener({"a": lambda: FakeCapture(frame, 0.01)}),
    )

    def scored_by(bundle: Bundle) -> None:
        take(live, lambda found: isinstance(found[-1], LiveScore) and found[-1].score.model == bundle.id)

    with live:
        scored_by(tiny_bundle)
        assert live.memory("a").middle == pytest.approx(0.65)
        live.take_over(Scorer.open(new, threads=1))
        scored_by(new)
        (status,) = live.status()
        assert (live.memory("a").model, live.memory("a").days) == (new.id, 0)
        assert "another model" in status.fresh
    live.scorer.close()
    assert (model_in(".json"), model_in(".before")) == (new.id, tiny_bundle.id)

    # Whoever goes back to the bundle before, within a run or by a restart, finds what it knew.
    again = CameraAlarms(rule, "a", tiny_bundle.id, folder, now=0.0)
    assert again.memory.middle == pytest.approx(0.65) and not again.fresh
    assert (model_in(".json"), model_in(".before")) == (tiny_bundle.id, new.id)
    again.new_model(1.0, "third")
    assert again.memory.days == 0
    again.new_model(2.0, tiny_bundle.id)
    assert again.memory.middle == pytest.approx(0.65)
