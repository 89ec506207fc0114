"""The live page as a browser shows it: Debian's Chromium, without a screen."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import UInt8Array
from helpers_browser import Browser, browser
from helpers_dashboard import NAME, running, write_video
from helpers_live import free_port
from PIL import Image

from grmp_edge.bundle import Bundle
from grmp_edge.runtime.live.memory import Memory, memory_file, write_json

pytestmark = pytest.mark.system


def pixels(page: Browser) -> UInt8Array:
    return np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))


def test_the_cameras_at_any_width(tiny_bundle: Bundle, tmp_path: Path) -> None:
    low, high = write_video(tmp_path / "v.avi")
    dead = f"rtsp://me:SECRET@127.0.0.1:{free_port()}/a/very/long/path/of/a/camera?channel=1"
    (tmp_path / "streams.toml").write_text(
        f'[[camera]]\nname = "{NAME}"\nsource = "file:{tmp_path / "v.avi"}"\n'
        f'[[camera]]\nname = "gate"\nsource = "file:{tmp_path / "v.avi"}"\n'
        "alert = { below = 0.999, for_s = 0 }\n"
        f'[[camera]]\nsource = "{dead}"\n'
    )
    options = ("--port", "0", "--streams", tmp_path / "streams.toml")
    with running("serve", tiny_bundle, *options) as served, browser() as page:
        page.size(1280, 900)
        page.go(served.at + "/")
        page.until("document.querySelectorAll('.mean').length >= 2")  # a second of both is in the charts
        page.until("[...document.querySelectorAll('.picture:not([hidden])')].length === 2")
        page.until("document.querySelectorAll('.camera')[2].dataset.level === 'warn'")
        names = json.loads(page.value(texts(".camera .name")))
        assert names[:2] == [NAME, "gate"] and names[2].startswith("rtsp://127.0.0.1:")
        shown = [float(text) for text in json.loads(page.value(texts(".score strong")))[:2]]
        assert low - 0.01 <= shown[0] <= high + 0.01
        assert 0 < shown[1] < 1
        badges = json.loads(page.value(texts(".badge")))
        assert badges == ["● running", "▲ low score", "▲ reconnecting"]
        assert "alert under 1.00" in page.value("document.querySelectorAll('.chart svg')[1].textContent")
        label = page.value("document.querySelectorAll('.chart svg')[0].getAttribute('aria-label')")
        assert label.startswith("Score over the last 5 minutes: now 0.")
        assert page.value("document.querySelector('.picture').naturalWidth") == 320
        events = json.loads(page.value(texts("#events li")))
        assert any("gate" in event and "Alert: score 0." in event for event in events)
        assert (
            page.value("document.getElementById('summary').textContent") == "2 of 3 running · 1 needs a look"
        )
        assert "SECRET" not in page.value("document.documentElement.outerHTML")
        # What a camera is called stayed text, and nothing else was complained of.
        assert page.value("window.hacked === undefined && !document.querySelector('.name *')")
        first = page.value("document.querySelector('.picture').src")
        page.until(f"document.querySelector('.picture').src !== '{first}'")  # it goes on by itself
        for width, columns in ((360, 1), (1280, 2)):
            for dark in (False, True):
                page.size(width, 900, dark)
                page.until(
                    f"innerWidth === {width} && document.querySelector('.chart svg').clientWidth > 200"
                )
                assert page.value("document.documentElement.scrollWidth") <= width
                lefts = page.value("[...document.querySelectorAll('.camera')].map(c => c.offsetLeft)")
                assert len(set(lefts)) == columns
                assert bool(pixels(page)[-1, 2].mean() < 60) is dark
        page.value("document.querySelectorAll('#range input')[2].click()")
        page.until("document.querySelector('.chart svg').getAttribute('aria-label').includes('24 hours')")
        assert page.complaints == []
        served.process.kill()
        page.until("document.getElementById('link').textContent.startsWith('connection lost')")


def texts(selector: str) -> str:
    return f"JSON.stringify([...document.querySelectorAll('{selector}')].map(node => node.textContent))"


def test_what_is_usual_and_accepted_as_normal(tiny_bundle: Bundle, tmp_path: Path) -> None:
    _, high = write_video(tmp_path / "v.avi")
    memory = Memory(tiny_bundle.id)
    memory.seed([(None, min(0.98, high + 0.3))] * 9)
    file = memory_file(tmp_path / "memory", "gate")
    write_json(file, {"camera": "gate", "memory": memory.to_json(), "at": time.time()})
    (tmp_path / "streams.toml").write_text(
        f'[live]\nmemory = "{tmp_path / "memory"}"\n'
        f'[[camera]]\nname = "gate"\nsource = "file:{tmp_path / "v.avi"}"\n'
        "alert = { below = 0.001, for_s = 0.5 }\n"
    )
    options = ("--port", "0", "--streams", tmp_path / "streams.toml")
    with running("serve", tiny_bundle, *options) as served, browser() as page:
        page.size(1280, 900)
        page.go(served.at + "/")
        page.until("document.querySelector('.chart path.usual') !== null")
        page.until("document.querySelector('.badge')?.textContent === '▲ score dropped'")
        page.until("document.querySelector('#events a:not([hidden]) img')?.naturalWidth === 320")
        usual = served.client.get("/v1/cameras/gate/usual").json()
        assert (usual["days"], usual["bin_s"], len(usual["bins"])) == (2, 1800, 48)
        assert usual["bins"][0][0] == pytest.approx(min(0.98, high + 0.3), abs=1e-3)
        assert "hardly ever" in page.value("document.querySelector('.doubt').textContent")
        assert "known for 2 days" in page.value("document.querySelector('.limits').title")
        assert page.value("document.querySelectorAll('.help dt').length") == 5
        click = "document.querySelector('.accept:not([hidden]) button').click()"
        page.value(click)
        assert "Click again" in page.value("document.querySelector('.accept button').textContent")
        page.value(click)
        page.until("document.querySelector('.badge').textContent === '● running'")
        page.until("document.querySelector('.accept').hidden")
        assert served.client.get("/v1/alerts/999.jpg").status_code == 404
        assert page.complaints == []
    assert json.loads(file.read_text())["raised"] == []


def test_the_login(tiny_bundle: Bundle, tmp_path: Path) -> None:
    write_video(tmp_path / "v.avi")
    source = f"file:{tmp_path / 'v.avi'}"
    watch = running(
        "watch", tiny_bundle, source, "--http", "0.0.0.0:0", "--json", token="s3cret-s3cret-s3cret"
    )
    with watch as served, browser() as page:
        page.size(360, 740)
        page.go(served.at + "/")
        visible = "!document.getElementById('login').hidden && document.getElementById('main').hidden"
        page.until(visible)
        assert page.value("document.documentElement.scrollWidth") <= 360
        assert page.value("document.activeElement.id") == "token"
        for token in ("wrong", "s3cret-s3cret-s3cret"):
            page.value(f"document.getElementById('token').value = '{token}'")
            page.value("document.getElementById('enter').requestSubmit()")
            if token == "wrong":
                page.until("document.getElementById('wrong').textContent === 'That is not the token.'")
        page.until("document.querySelectorAll('.picture:not([hidden])').length === 1")
        assert page.value("document.cookie") == ""  # no script can read it
        page.go(served.at + "/")  # it holds
        page.until("document.querySelectorAll('.picture:not([hidden])').length === 1")
        page.value("document.getElementById('logout').click()")
        page.until(visible)
        page.go(served.at + "/")
        page.until(visible)
        # The refusals are told as failed requests; there is nothing else.
        assert all("401" in complaint for complaint in page.complaints)
