"""Labels from ratings and pairs: compared with scipy, with plain means, and with simulated raters."""

from __future__ import annotations

import csv
import json
import os
import shlex
import shutil
import signal
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from conftest import encode, make_image, write_tiny_bundle
from helpers_dashboard import running
from scipy.optimize import minimize
from scipy.stats import spearmanr
from typer.testing import CliRunner

from grmp_edge.cli import app
from grmp_edge.default_bundle import DEFAULT_BUNDLE
from grmp_edge.errors import DataError, SourceError, UsageError
from grmp_edge.runtime.labelling.answers import (
    ANSWERS,
    CHOSEN,
    LABELS,
    Answer,
    Answers,
    agreement,
    labels_of,
    read_answers,
    standing,
    wanted_images,
)
from grmp_edge.runtime.labelling.checks import blurred, original_of
from grmp_edge.runtime.labelling.choose import Sight, _corput, _Doubt, choose_frames
from grmp_edge.runtime.labelling.exchange import export_answers, import_answers
from grmp_edge.runtime.labelling.frames import Frame
from grmp_edge.runtime.labelling.learning import Learning, commands
from grmp_edge.runtime.labelling.looks import LOOK_SIZE
from grmp_edge.runtime.labelling.pairs import PRIOR_STD, Judged, fit_pairs, next_pair
from grmp_edge.runtime.labelling.sitting import Mode, Sitting
from grmp_edge.runtime.scorer import Scorer
from grmp_edge.train.data.labelled import read_csv
from grmp_edge.views import sigmoid


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(12):
        (frames / f"f{number:02}.png").write_bytes(encode(make_image(seed=number), "PNG"))
    return frames


def rate(rater: str, image: str, value: float | None) -> Answer:
    return Answer("scale", rater, (image,), value)


def test_bradley_terry_as_scipy_finds_it() -> None:
    rng = np.random.default_rng(0)
    judged: list[Judged] = []
    for _ in range(60):
        i, j = rng.choice(12, 2, replace=False).tolist()
        judged.append((i, j, float(rng.choice([0.0, 0.5, 1.0], p=[0.45, 0.1, 0.45]))))

    def loss(at: np.ndarray) -> float:
        own = sum(
            -s * np.log(1 / (1 + np.exp(at[j] - at[i]))) - (1 - s) * np.log(1 / (1 + np.exp(at[i] - at[j])))
            for i, j, s in judged
        )
        return float(own + (at**2).sum() / (2 * PRIOR_STD**2))

    best = minimize(loss, np.zeros(12), method="BFGS", options={"gtol": 1e-7})
    strength, covariance = fit_pairs(12, judged)
    assert np.allclose(strength, best.x, atol=1e-4)
    small, axes = 1e-3, np.eye(12)

    def bent(a: np.ndarray, b: np.ndarray) -> float:
        ends = [loss(strength + small * (x * a + y * b)) * x * y for x in (1, -1) for y in (1, -1)]
        return sum(ends) / (4 * small**2)

    curved = np.array([[bent(a, b) for b in axes] for a in axes])  # the Hessian by differences of the loss
    assert np.allclose(covariance, np.linalg.inv(curved), atol=1e-3)
    # One that won each time stays finite, one never asked about stays at 0 and unsure.
    strength, covariance = fit_pairs(3, [(0, 1, 1.0)] * 50)
    assert np.isfinite(strength).all() and strength[0] > 2 and abs(strength[2]) < 1e-9
    assert covariance[2, 2] == pytest.approx(PRIOR_STD**2)


def test_pairs_asked_for_beat_pairs_at_random() -> None:
    rng = np.random.default_rng(1)
    found: dict[str, list[float]] = {"asked": [], "random": []}
    for _ in range(4):
        truth = rng.normal(0, 2, 20)
        for way in found:
            judged: list[Judged] = []
            for _ in range(60):
                pair = (
                    next_pair(20, judged, rng) if way == "asked" else tuple(rng.choice(20, 2, False).tolist())
                )
                assert pair is not None
                i, j = pair
                judged.append((i, j, float(rng.random() < 1 / (1 + np.exp(truth[j] - truth[i])))))
            if way == "asked":
                assert len({frozenset((i, j)) for i, j, _ in judged}) == 60
            found[way].append(float(spearmanr(fit_pairs(20, judged)[0], truth)[0]))
    assert np.mean(found["asked"]) > np.mean(found["random"])
    assert next_pair(3, [(0, 1, 1.0), (1, 2, 1.0)], rng, frozenset({(0, 2)})) is None


def test_the_mos_of_ratings_and_of_both() -> None:
    answers = [rate(rater, f"{n}.png", value) for rater, shift in (("a", 0), ("b", 1)) for n, value in
               enumerate((1 + shift, 2 + shift, 3 + shift, 2 + shift, 4 + shift))]  # fmt: skip
    answers += [rate("a", "0.png", 2.0), rate("b", "9.png", None), Answer("skip", "b", ("8.png",))]
    labels = {label.image: label for label in labels_of(answers)}
    assert set(labels) == {f"{n}.png" for n in range(5)}  # one who cannot tell gives no label
    # The last rating counts, and b is one point (less the changed answer's share) milder throughout.
    assert labels["4.png"].mos == pytest.approx(4.5) and labels["4.png"].raters == 2
    assert [labels[f"{n}.png"].mos for n in range(5)] == pytest.approx([2.0, 2.5, 3.5, 2.5, 4.5])
    (found,) = agreement(answers)
    assert found["srcc"] == pytest.approx(spearmanr([2, 2, 3, 2, 4], [2, 3, 4, 3, 5])[0], abs=1e-3)
    assert labels_of([rate("a", "x", 5.0)])[0].mos == 5.0
    pairs = [Answer("pair", "a", (f"{j}.png", f"{i}.png"), 1.0) for i in range(5) for j in range(i + 1, 5)]
    only = labels_of(pairs)
    assert [label.mos for label in only] == sorted(label.mos for label in only)
    assert all(1 < label.mos < 5 and label.std > 0.05 for label in only)
    both = labels_of([*answers, *pairs, Answer("pair", "a", ("4.png", "7.png"), 0.0)])
    assert {label.image for label in both} == {*labels, "7.png"}
    assert next(label for label in both if label.image == "7.png").mos > 3.5
    alike = agreement([*pairs, *(Answer("pair", "b", one.images[::-1], 0.0) for one in pairs)])
    assert alike[0]["alike"] == 1.0 and alike[0]["pairs"] == 10


def test_the_log_survives_cuts_undo_and_repetition(folder: Path) -> None:
    log = Answers(folder)
    assert log.add(Answer("scale", "me", ("f00.png",), 3.0, id="1"))
    assert not log.add(Answer("scale", "me", ("f00.png",), 5.0, id="1"))
    assert log.add(Answer("scale", "you", ("f00.png",), 1.0))
    assert log.add(Answer("scale", "me", ("f01.png",), 4.0))
    assert log.add(Answer("undo", "me", ()))
    assert stat.S_IMODE((folder / ANSWERS).stat().st_mode) == 0o600
    with (folder / ANSWERS).open("ab") as stream:
        stream.write(b'{"kind": "scale", "rater": "me", "ima')  # a power failure
    bad_value = '{"kind": "scale", "rater": "me", "images": ["a"], "value": 9}'
    for line in ('{"kind": "what"}', bad_value, "[1]"):
        Answers(folder)  # reads on
        with (folder / ANSWERS).open("ab") as stream:
            stream.write(b"\n" + line.encode())
    again = Answers(folder)
    again.add(rate("me", "f02.png", 2.0))
    left = standing(list(read_answers(folder)))
    assert [(one.rater, one.images[0], one.value) for one in left] == [
        ("me", "f00.png", 3.0), ("you", "f00.png", 1.0), ("me", "f02.png", 2.0),
    ]  # fmt: skip
    for bad in (
        ("scale", "me", ("a", "b"), 3.0),
        ("pair", "me", ("a", "a"), 1.0),
        ("scale", "", ("a",), 3.0),
        ("scale", "me", ("a",), 6.0),
        ("scale", "me", ("a",), float("nan")),
        ("undo", "me", ("a",), None),
    ):
        with pytest.raises(UsageError):
            Answer(*bad)


def test_a_sitting_goes_on_and_labels_can_be_trained_on(folder: Path) -> None:
    sitting = Sitting(folder, 8)
    assert len(sitting.chosen) == 8 and not (folder / LABELS).exists()
    seen = []
    for number in range(5):
        task = sitting.state("me", "scale")["task"]
        seen.append(task[0])
        sitting.add({"kind": "scale", "rater": "me", "images": task, "value": 1 + number, "id": str(number)})
    skipped = sitting.state("me", "scale")["task"]
    sitting.add({"kind": "skip", "rater": "me", "images": skipped})
    assert sitting.state("me", "scale")["task"] != skipped
    again = Sitting(folder, 8)  # a restart
    state = again.state("me", "scale")
    assert (state["done"], state["total"], state["labels"]) == (5, 8, 5) and len(set(seen)) == 5
    assert again.chosen == sitting.chosen and state["anchors"][0] == seen[0]
    labelled = read_csv(folder / LABELS, mos_range=(1.0, 5.0))
    assert {path.name for path in labelled.paths} == set(seen)
    assert sorted(labelled.mos.tolist()) == [1, 2, 3, 4, 5]
    # What another process adds, such as an import, is seen.
    Answers(folder).add(rate("third", seen[0], 2.0))
    assert again.state("third", "scale")["done"] == 1
    again.add({"kind": "undo", "rater": "third", "images": []})
    assert set(again.chosen) <= wanted_images(folder)
    again.add({"kind": "undo", "rater": "me", "images": []})  # the skip
    again.add({"kind": "undo", "rater": "me", "images": []})
    assert again.state("me", "scale")["done"] == 4 and again.state("you", "scale")["done"] == 0
    assert again.more(20) == 4 and again.more(20) == 0
    asked = set()
    while (task := again.state("you", "pair")["task"]) is not None:
        asked.add(frozenset(task))
        better = max(task) == task[0]
        again.add({"kind": "pair", "rater": "you", "images": task, "value": float(better)})
    assert len(asked) == 36 == again.state("you", "pair")["total"]
    # Another rater is asked some of the same, to see whether they agree.
    for _ in range(30):
        task = again.state("third", "pair")["task"]
        again.add({"kind": "pair", "rater": "third", "images": task, "value": float(max(task) == task[0])})
    found = [one for one in again.state("you", "pair")["agreement"] if one["raters"] == ["third", "you"]]
    assert found[0]["pairs"] >= 5 and found[0]["alike"] == 1.0
    with pytest.raises(UsageError, match="no such picture"):
        again.add({"kind": "scale", "rater": "me", "images": ["../x"], "value": 3})
    (folder / "f00.png").unlink()
    (folder / CHOSEN).write_text('"f00.png"\n"f01.png"\n7\n')
    assert "f00.png" not in Sitting(folder, 8).chosen


def test_bad_folders(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(SourceError, match="no such folder"):
        Sitting(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="no picture"):
        Sitting(tmp_path / "empty")
    with pytest.raises(SourceError, match="no such folder"):
        Sitting(folder / "f00.png")
    with pytest.raises(UsageError, match="so few"):
        Sitting(folder, 3)
    for wrong, why in (("--bundle", "no such bundle"), ("-o", "exists and is not a bundle")):
        path = folder / ("none" if wrong == "--bundle" else "f00.png")
        shown = CliRunner().invoke(app, ["label", str(folder), wrong, str(path)])
        assert shown.exit_code == 1 and why in shown.stderr  # before anybody has labelled


def test_labels_of_the_users_own_are_not_overwritten(folder: Path) -> None:
    (folder / LABELS).write_text("image,mos\nf00.png,3.5\n")
    for options in ([], ["--export", str(folder.parent / "out.csv")]):
        shown = CliRunner().invoke(app, ["label", str(folder), *options])
        assert shown.exit_code == 2 and "take it in" in shown.stderr
    assert (folder / LABELS).read_text() == "image,mos\nf00.png,3.5\n"


def test_a_picture_that_is_removed_takes_its_label_along(folder: Path) -> None:
    """Training would refuse labels whose picture is not there; the answer stays, should it come back."""
    Answers(folder).add(rate("me", "f00.png", 2.0), rate("me", "f01.png", 4.0))
    sitting = Sitting(folder)
    for there, wanted in ((False, ["f01.png"]), (True, ["f00.png", "f01.png"])):
        if there:
            (folder / "gone.png").rename(folder / "f00.png")
        else:
            (folder / "f00.png").rename(folder / "gone.png")
        sitting.reload()
        rows = list(csv.DictReader((folder / LABELS).read_text().splitlines()))
        assert [row["image"] for row in rows] == wanted


def test_names_that_are_no_text_are_left_out_and_named(folder: Path) -> None:
    """A page can neither be told of them nor ask for them."""
    shutil.copy(os.fsencode(folder / "f00.png"), os.fsencode(folder) + b"/x\xff.png")
    shown = CliRunner().invoke(app, ["label", str(folder), "--export", str(folder.parent / "out.csv")])
    assert shown.exit_code == 0 and "not UTF-8" in shown.stderr
    assert json.dumps(Sitting(folder).state("me", "scale"), ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "odd", [{"rater": "\ud800"}, {"images": ["\udcff.png"]}, {"value": 10**400}, {"at": 1e99}], ids=str
)
def test_answers_that_could_not_be_shown_are_none(folder: Path, odd: dict[str, object]) -> None:
    line = {"kind": "scale", "rater": "me", "images": ["f00.png"], "value": 3, **odd}
    with pytest.raises(UsageError):
        Answer.from_json(line)
    (folder / ANSWERS).write_text(json.dumps(line) + "\n")  # as an earlier version took it
    assert not Sitting(folder).labels


def test_commands_to_paste_are_quoted(folder: Path, tmp_path: Path) -> None:
    mine = folder.rename(tmp_path / "my frames")
    shown = CliRunner().invoke(app, ["label", str(mine), "--export", str(tmp_path / "out.csv")])
    assert str(mine / LABELS) in shlex.split(shown.stderr.partition("next: ")[2])
    (mine / "runs" / "1").mkdir(parents=True)  # whose checkpoint training would refuse to overwrite
    assert str(mine / "runs" / "2") in commands(mine, DEFAULT_BUNDLE, tmp_path / "b", torch=True)[0]


def test_choice_is_spread_over_quality_and_cameras_and_no_two_are_alike() -> None:
    rng = np.random.default_rng(0)
    looks = rng.normal(0, 1, (200, LOOK_SIZE)).astype(np.float32)
    looks[1::2] = looks[::2] + 1e-4  # each has a twin
    frames = [Frame(f"{n}.png", "ab"[n % 40 == 0], value=n // 2 * 2 / 200, look=looks[n]) for n in range(200)]
    chosen = choose_frames(frames, 16)
    assert len({index // 2 for index in chosen}) == 16
    assert all(3 <= sum(index // 50 == quarter for index in chosen) <= 5 for quarter in range(4))
    assert chosen[:8] == choose_frames(frames, 8)
    # Of 200 frames 5 are of the other camera, and most of these are asked about.
    assert sum(frames[index].camera == "b" for index in choose_frames(frames, 60)) >= 4
    more = choose_frames(frames, 16, chosen)
    assert len({index // 2 for index in (*chosen, *more)}) == 32
    assert sorted(choose_frames(frames, 500, chosen)) == sorted(set(range(200)) - set(chosen))
    plain = [Frame(f"{n}.png") for n in range(5)]
    assert sorted(choose_frames(plain, 9)) == list(range(5)) and choose_frames(plain, 1, range(5)) == []


def test_more_are_chosen_by_the_trained_model_where_its_head_is_unsure(folder: Path) -> None:
    # The variance of a ridge regression, by the textbook's formula.
    rng = np.random.default_rng(1)
    points = rng.normal(size=(40, 6)) * np.linspace(1, 3, 40)[:, None]
    frames = [Frame(f"{index}.png") for index in range(40)]
    taken = list(range(0, 40, 4))
    sight = Sight(np.zeros(40), points)
    centred = points - points[taken].mean(axis=0)
    rows = centred / np.sqrt((centred**2).sum(axis=1).mean())
    known = rows[taken]
    inner = np.linalg.inv(known @ known.T + 0.3 * np.eye(len(taken)))
    variance = (rows**2).sum(axis=1) - np.einsum("ij,jk,ik->i", rows @ known.T, inner, rows @ known.T)
    doubt = _Doubt(points, taken)
    for index in taken:
        doubt.label(index)
    assert doubt.variance == pytest.approx(variance)
    # Of equal scores, the nine next to a place are asked about where the variance is largest.
    (first,) = choose_frames(frames, 1, taken, sight=sight)
    left = [index for index in range(40) if index not in taken]
    at = _corput(len(taken)) * 40
    window = sorted(left, key=lambda place: abs(place - at))[:9]
    assert first == max(window, key=lambda index: variance[index])

    # And the sitting takes scores and points of the bundle that training has written.
    bundle = folder.parent / "bundle"
    sitting = Sitting(folder, 6, bundle)
    asked = list(sitting.chosen)
    sitting.import_answers([rate("ann", name, 1.0 + number % 5) for number, name in enumerate(asked)])
    shutil.copytree(DEFAULT_BUNDLE, bundle)
    assert sitting.more(3) == 3
    with Scorer.open(threads=1) as scorer:
        expected = {name: scorer.score(folder / name).value for name in sitting.frames}
    told = sitting._sight(list(sitting.frames))
    assert told is not None and told.points.shape[1] > 1000
    assert sigmoid(told.values) == pytest.approx(list(expected.values()), abs=1e-4)
    order = list(sitting.frames)
    again = choose_frames(list(sitting.frames.values()), 3, [order.index(name) for name in asked], sight=told)
    assert sitting.chosen == [*asked, *(order[index] for index in again)]
    # One whose head cannot be read is no help and no harm.
    shutil.rmtree(bundle)
    write_tiny_bundle(bundle)
    assert sitting.more(2) == 2 and sitting._sight(order) is None


@pytest.mark.parametrize("mode", ["scale", "pair"])
def test_checks_show_who_pays_attention_and_are_no_labels(folder: Path, mode: Mode) -> None:
    sitting = Sitting(folder, 12, checks=3)
    twins = 0
    for rater, careful in (("ann", True), ("bob", False)):
        asked: list[list[str]] = []
        while task := sitting.state(rater, mode)["task"]:
            is_twin = [name.endswith("~twin") for name in task]
            if any(is_twin):
                twins += 1
                assert original_of(task[0]) in [name for earlier in asked[:-5] for name in earlier]
            if mode == "scale":
                value = (2.0 if is_twin[0] else 4.0) if careful else 4.0
            else:
                value = float(not is_twin[0]) if careful else 1.0
            sitting.add({"kind": mode, "rater": rater, "images": task, "value": value})
            asked.append(task)
        assert len(asked) == (12 if mode == "scale" else 36) + sum(
            "~twin" in name for task in asked for name in task
        )
    state = sitting.state("ann", mode)
    passed, given = state["attention"]["ann"]
    assert passed == given >= 1 and state["attention"]["bob"][0] < state["attention"]["bob"][1]
    assert state["done"] == state["total"] and twins == given + state["attention"]["bob"][1]
    assert not any("~" in label.image for label in sitting.labels) and len(sitting.labels) == 12
    assert not any("~" in image for one in sitting.standing for image in one.images)
    # Taken back, a check is asked again.
    last = next(one for one in reversed(list(read_answers(folder))) if one.rater == "bob")
    sitting.add({"kind": "undo", "rater": "bob", "images": []})
    assert sitting.state("bob", mode)["task"] is not None and last.rater == "bob"
    noise = np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)
    assert blurred(noise).std() < noise.std() / 4 and blurred(noise).shape == noise.shape


def test_other_tools(tmp_path: Path, folder: Path) -> None:
    names = [f"f{n:02}.png" for n in range(12)]
    studio = tmp_path / "studio.csv"
    studio.write_text(
        "annotation_id,annotator,created_at,id,image,lead_time,rating\n"
        "1,ann@x.org,2025,1,/data/upload/1/0a1b2c3d-f00.png,3.1,4\n"
        '2,ann@x.org,2025,2,/data/local-files/?d=frames/f01.png,2.0,"[{""rating"": 2}]"\n'
        "3,bob,2025,3,f02.png,1.0,\n"
    )
    found = import_answers(studio, names)
    assert [(one.rater, one.images[0], one.value) for one in found] == [
        ("ann@x.org", "f00.png", 4.0), ("ann@x.org", "f01.png", 2.0),
    ]  # fmt: skip
    tasks = [
        {"data": {"image": "http://h/f%303.png"}, "annotations": [
            {"completed_by": {"email": "c"}, "result": [{"type": "choices", "value": {"choices": ["Good"]}}]},
            {"was_cancelled": True, "result": [{"value": {"rating": 1}}]}]},
        {"image": "f04.png", "quality": "excellent", "annotator": 7},
    ]  # fmt: skip
    (tmp_path / "studio.json").write_text(json.dumps(tasks))
    found_too = import_answers(tmp_path / "studio.json", names)
    assert [(one.rater, one.images[0], one.value) for one in found_too] == [
        ("c", "f03.png", 4.0), ("7", "f04.png", 5.0),
    ]  # fmt: skip
    (tmp_path / "cvat.csv").write_text("ImageID,Source,LabelName,Confidence\nf05,verification,Poor,1\n")
    assert import_answers(tmp_path / "cvat.csv", names)[0].value == 2.0
    for text, why in (
        ("image,mos\nzz.png,3\n", "not in the folder"),
        ("image,mos\nf01.png,70\n", "none"),
        ("image,mos\n", "no rating"),
        ("[3]", "no list"),
        ("[" * 10**5, "cannot be read"),
        ("image,rating\nf01.png,[broken\n", "cannot be read"),
        ('[{"annotations": [5]}]', "cannot be read"),
        ('[{"annotations": null}]', "cannot be read"),
        ('[{"annotations": [{"result": [7]}], "data": [1]}]', "cannot be read"),
    ):
        (tmp_path / "bad.csv").write_text(text)
        with pytest.raises(DataError, match=why):
            import_answers(tmp_path / "bad.csv", names)
    (tmp_path / "stem.csv").write_text("image,mos\nf05,3\n")
    with pytest.raises(DataError, match="not in the folder"):  # nor is it known which of the two
        import_answers(tmp_path / "stem.csv", [*names, "f05.jpg"])
    runner = CliRunner()
    for _ in range(2):  # the same file twice counts once
        shown = runner.invoke(app, ["label", str(folder), "--import", str(studio), "--json"])
        assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout) == {"imported": 0, "labels": 2}
    Answers(folder).add(Answer("pair", "me", ("f02.png", "f03.png"), 0.0))
    shown = runner.invoke(app, ["label", str(folder), "--export", str(tmp_path / "out.csv")])
    assert shown.exit_code == 0 and "3 answers exported" in shown.stdout
    assert "next: grmp-edge train finetune --data" in shown.stderr
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert [row["choice"] for row in rows] == ["Good", "Poor", ""] and rows[2]["better"] == "f03.png"
    back = import_answers(tmp_path / "out.csv", names)
    assert [(one.rater, one.images, one.value) for one in back] == [
        (one.rater, one.images, one.value) for one in found
    ]
    assert export_answers(tmp_path / "none.csv", []) == 0


def test_over_http_with_a_token_and_killed(folder: Path) -> None:
    bundle = write_tiny_bundle(folder.parent / "tiny.bundle")
    options = ("--host", "0.0.0.0", "--port", "0", "-n", "8", "--bundle", bundle.path)
    with running("label", folder, *options, token="s3cret-s3cret-s3cret") as served:
        client, key = served.client, {"Authorization": "Bearer s3cret-s3cret-s3cret"}
        assert client.get("/v1/label").status_code == 401
        assert client.post("/v1/label", json={}).status_code == 401
        page = client.get("/")
        assert page.status_code == 200 and b"label.js" in page.content
        assert "default-src 'none'" in page.headers["content-security-policy"]
        client.headers.update(key)
        task = client.get("/v1/label").json()["task"]
        picture = client.get(f"/v1/label/frames/{task[0]}")
        assert picture.content == (folder / task[0]).read_bytes()
        assert picture.headers["content-type"] == "image/png"
        assert client.get(f"/v1/label/frames/{task[0]}?small_one=1").headers["content-type"] == "image/jpeg"
        for name in ("answers.jsonl", "..%2Ftiny.bundle%2Fbundle.json", "none.png"):
            assert client.get(f"/v1/label/frames/{name}").status_code == 404
        six: dict[str, object] = {"kind": "scale", "rater": "me", "images": task, "value": 6}
        bodies: list[dict[str, object]] = [{}, six, {"kind": []}]
        for body in bodies:
            assert client.post("/v1/label", json=body).status_code == 422
        assert client.post("/v1/label", content=b'{"kind": "undo", "rater": "me"}').status_code == 422
        assert client.post("/v1/label/more", json={"count": -1}).status_code == 422
        answer = {"kind": "scale", "rater": "me", "images": task, "value": 2, "id": "a"}
        for _ in range(2):  # sent again, since the answer was lost
            assert client.post("/v1/label", json=answer).json()["done"] == 1
        refused = client.post("/v1/label/training", json={})
        assert refused.status_code == 422 and "too few" in refused.json()["detail"]
        served.process.send_signal(signal.SIGKILL)
        served.process.wait()
    assert [one.value for one in read_answers(folder)] == [2.0]
    assert (folder / LABELS).read_text().splitlines()[1].startswith(f"{task[0]},2.0000,")


@pytest.mark.parametrize("torch", [True, False])
def test_the_commands_are_there(torch: bool) -> None:
    root: Any = typer.main.get_command(app)
    for line in commands(Path("frames"), Path("default"), Path("new.bundle"), torch):
        command: Any = root
        context: Any = root.make_context("grmp-edge", list(line))
        while context._protected_args:
            words: list[str] = [*context._protected_args, *context.args]
            name, *rest = words
            command = command.commands[name]
            context = command.make_context(name, rest, parent=context)
            if not hasattr(command, "commands"):
                break


def test_training_that_cannot_be_is_told(folder: Path, tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.bundle")
    learning = Learning(folder, bundle.path, tmp_path / "new.bundle")
    sitting = Sitting(folder, 12)
    for number, name in enumerate(sitting.chosen):
        sitting.add({"kind": "scale", "rater": "me", "images": [name], "value": 3})
        if number == 8:
            with pytest.raises(UsageError, match="equal"):
                learning.start(sitting.labels)
    sitting.add({"kind": "scale", "rater": "me", "images": [name], "value": 4})
    (folder / "f03.png").write_bytes(b"broken")
    learning.start(sitting.labels)
    assert learning._thread is not None
    learning._thread.join(300)
    state = learning.state()
    assert state["phase"] == "failed" and "f03.png" in state["lines"][-1], state
    assert not (tmp_path / "new.bundle").exists()
    learning.close()
    assert not (folder / "runs" / "1" / "weights.safetensors").exists()


def test_names_that_a_csv_must_quote_come_back(folder: Path, tmp_path: Path) -> None:
    names = ["=1+1.png", "-b.png", "@c.png", "'d.png", "e\x1b[31m.png", "'=f.png"]
    for number, name in enumerate(names):
        (folder / name).write_bytes(encode(make_image(seed=90 + number), "PNG"))
    sitting = Sitting(folder, count=18)
    sitting.import_answers([rate("ann", name, 1.0 + number % 5) for number, name in enumerate(names)])
    labelled = read_csv(folder / LABELS)
    assert {path.name: round(mos) for path, mos in zip(labelled.paths, labelled.mos, strict=True)} == {
        name: 1 + number % 5 for number, name in enumerate(names)
    }
    export_answers(tmp_path / "other.csv", sitting.standing)
    again = import_answers(tmp_path / "other.csv", list(sitting.frames))
    assert [(one.images[0], one.value) for one in again] == [
        (name, 1.0 + number % 5) for number, name in enumerate(names)
    ]
