"""The page for labelling in a real browser: ratings and pairs, by keys and touch, twice interrupted."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import encode, make_image, write_tiny_bundle
from helpers_browser import Browser, browser
from helpers_dashboard import running

from grmp_edge.runtime.labelling.answers import LABELS, labels_of, read_answers, standing
from grmp_edge.train.data.labelled import read_csv

pytestmark = pytest.mark.system

COUNT = 50
IDLE = "!document.body.dataset.busy && [...document.querySelectorAll('.look img')].every(i => i.complete)"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures whose quality is their number: ever more blurred."""
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(COUNT + 2):
        image = np.random.default_rng(number).integers(0, 256, (90, 160, 3), dtype=np.uint8)
        blurred = cv2.GaussianBlur(image, (0, 0), 0.3 + 0.1 * (COUNT - number + 2))
        (frames / f"q{number:02}.png").write_bytes(encode(np.asarray(blurred, np.uint8), "PNG"))
    return frames


def shown(page: Browser) -> list[str]:
    """The names of the pictures on the stage."""
    page.until(f"document.querySelector('.look img') && {IDLE}")
    text = page.value("JSON.stringify([...document.querySelectorAll('.look img')].map(i => i.src))")
    return [src.rpartition("/")[2] for src in json.loads(text)]


def press(page: Browser, key: str) -> None:
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key=key, text=key if kind == "keyDown" else "")


def tap(page: Browser, selector: str) -> None:
    """A finger on the middle of an element."""
    box = json.loads(
        page.value(f"JSON.stringify(document.querySelector({selector!r}).getBoundingClientRect())")
    )
    point = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    page.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[point])
    page.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])


def begin(page: Browser, at: str) -> None:
    page.go(at + "/")
    page.until("!document.getElementById('intro').hidden || !document.getElementById('sitting').hidden")
    if not page.value("document.getElementById('intro').hidden"):
        page.value("document.getElementById('begin').click()")


def quality(name: str) -> int:
    return int(name[1:3])


def test_fifty_ratings_twice_interrupted_on_a_phone(folder: Path) -> None:
    seen: list[str] = []
    with browser() as page:
        page.size(375, 667)
        page.call("Emulation.setTouchEmulationEnabled", enabled=True)
        for until in (17, 34, COUNT):  # the server is killed after each, and started anew
            with running("label", folder, "--port", "0", "-n", str(COUNT)) as served:
                begin(page, served.at)
                while len(seen) < until:
                    (name,) = shown(page)
                    seen.append(name)
                    value = 1 + 4 * quality(name) // (COUNT + 1)
                    tap(page, f"#answers button[data-value='{value}']")
                    page.until(f"document.getElementById('summary').textContent.startsWith('{len(seen)} of')")
                assert page.value("document.documentElement.scrollWidth") <= 375
                if until == COUNT:
                    page.until("document.getElementById('end-title').textContent === 'All 50 done'")
                    assert page.value("document.getElementById('sitting').hidden")
                served.process.send_signal(signal.SIGKILL)
                served.process.wait()
        assert not [text for text in page.complaints if "Failed to load" not in text and "ERR_" not in text]
    assert len(set(seen)) == COUNT
    labelled = read_csv(folder / LABELS, mos_range=(1.0, 5.0))
    assert {path.name for path in labelled.paths} == set(seen)
    ranks = [quality(path.name) for path in labelled.paths]
    assert np.corrcoef(ranks, labelled.mos)[0, 1] > 0.95


def test_pairs_by_keyboard_with_undo_zoom_and_a_lost_server(folder: Path) -> None:
    bundle = write_tiny_bundle(folder.parent / "tiny.bundle")
    with browser() as page:
        page.size(1280, 800)
        with running("label", folder, "--port", "0", "-n", "6", "--bundle", bundle.path) as served:
            begin(page, served.at)
            page.value("document.querySelector('#mode input[value=pair]').click()")
            page.until("document.querySelectorAll('.look img').length === 2")
            first = shown(page)
            press(page, "z")
            images = "[...document.querySelectorAll('.look img')]"
            sizes = f"JSON.stringify({images}.map(i => [i.width, i.naturalWidth]))"
            assert json.loads(page.value(sizes)) == [[160, 160], [160, 160]]
            press(page, "z")
            assert json.loads(page.value(sizes))[0][0] > 300
            press(page, "s")  # later
            page.until(f"!document.querySelector('.look img').src.endsWith({first[0]!r}) && {IDLE} || {IDLE}")
            for number in range(12):
                pair = shown(page)
                assert len(set(pair)) == 2
                press(page, "1" if quality(pair[0]) > quality(pair[1]) else "3")
                page.until(f"document.getElementById('summary').textContent.startsWith('{number + 1} of')")
            press(page, "u")
            page.until("document.getElementById('summary').textContent.startsWith('11 of')")
            shown(page)
            port = served.at.rpartition(":")[2]
            served.process.kill()
            served.process.wait()
            press(page, "x")  # cannot tell: said while the server is away
            page.until("document.getElementById('problem').textContent.startsWith('Not saved yet')")
        with running("label", folder, "--port", port, "-n", "6"):
            page.until("document.getElementById('problem').hidden && !document.body.dataset.busy")
            page.until("document.getElementById('summary').textContent.startsWith('12 of')")
    left = standing(list(read_answers(folder)))
    assert sum(one.kind == "pair" for one in left) == 12 and sum(one.value is None for one in left) == 2
    labels = labels_of(left)
    ranks = [quality(label.image) for label in labels]
    assert np.corrcoef(np.argsort(np.argsort(ranks)), [label.mos for label in labels])[0, 1] > 0.8


def test_the_login_and_strange_names(folder: Path) -> None:
    strange = "<img src=x onerror=alert(1)>#?%.png"
    (folder / strange).write_bytes(encode(make_image(), "PNG"))
    (folder / "z.tif").write_bytes(encode(make_image(seed=3), "TIFF"))
    options = ("--host", "0.0.0.0", "--port", "0", "-n", "60")
    with running("label", folder, *options, token="s3cret-s3cret-s3cret") as served, browser() as page:
        page.size(1280, 800)
        page.go(served.at + "/")
        page.until("!document.getElementById('login').hidden && document.getElementById('sitting').hidden")
        page.value("document.getElementById('token').value = 's3cret-s3cret-s3cret'")
        page.value("document.getElementById('enter').requestSubmit()")
        page.until("!document.getElementById('intro').hidden")
        page.value("document.getElementById('begin').click()")
        names = set()
        for number in range(COUNT + 4):
            (name,) = shown(page)
            names.add(name)
            assert page.value("document.querySelector('.look img').naturalWidth") > 0
            press(page, "4" if number % 2 else "2")
            page.until(f"document.getElementById('summary').textContent.startsWith('{number + 1} of')")
        assert len(names) == COUNT + 4
        page.go(served.at + "/")  # the token is kept for this tab
        page.until("document.getElementById('end-title').textContent === 'All 54 done'")
        assert not page.value("document.querySelector('[onerror]') !== null")
    assert len(standing(list(read_answers(folder)))) == COUNT + 4
