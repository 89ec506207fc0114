"""Every page in a real browser under axe-core: nothing is found, in light and dark, wide and narrow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import encode, make_image, write_clip
from helpers_browser import Browser, browser, served
from helpers_dashboard import running, write_video
from typer.testing import CliRunner

from grmp_edge.bundle import Bundle
from grmp_edge.cli import app

ROOT = Path(__file__).resolve().parent.parent
AXE = ROOT / "build/npm/node_modules/axe-core/axe.min.js"

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not installed (make page needs npm)"),
]


@pytest.fixture(scope="module")
def page() -> Iterator[Browser]:
    with browser() as tab:
        yield tab


def sound(page: Browser, what: str, *, views: int = 4) -> None:
    """Assert that axe finds nothing, at several sizes and in both colour schemes."""
    page.value(AXE.read_text(encoding="utf-8") + "; null")
    for width, height, dark in ((1280, 900, False), (390, 844, True), (390, 844, False), (1280, 900, True))[
        :views
    ]:
        page.size(width, height, dark=dark)
        told = page.value(
            "axe.run(document, {resultTypes: ['violations']}).then(r => JSON.stringify(r.violations))"
        )
        findings = [
            f"{one['impact']} {one['id']}: {node['html'][:200]} ({node['failureSummary'][:300]})"
            for one in json.loads(told)
            for node in one["nodes"]
        ]
        assert not findings, f"{what}, {width} pixels, {'dark' if dark else 'light'}:\n" + "\n".join(findings)


def test_the_live_page(page: Browser, tiny_bundle: Bundle, tmp_path: Path) -> None:
    video = tmp_path / "v.avi"
    write_video(video)
    (tmp_path / "streams.toml").write_text(
        f'[[camera]]\nname = "gate"\nsource = "file:{video}"\nalert = {{ below = 0.999, for_s = 0 }}\n'
        f'[[camera]]\nname = "yard"\nsource = "file:{video}"\n'
        '[[camera]]\nname = "lost"\nsource = "rtsp://127.0.0.1:9/x"\n'
    )
    with running("serve", tiny_bundle, "--port", "0", "--streams", tmp_path / "streams.toml") as server:
        page.size(1280, 900)
        page.go(server.at + "/")
        page.until("document.querySelectorAll('.mean').length >= 2 && !!document.querySelector('#events li')")
        page.until("['warn', 'bad'].every(level => document.querySelector(`.camera[data-level=${level}]`))")
        page.value("document.querySelector('#help summary').click()")
        sound(page, "live page")


def test_the_page_for_labelling(page: Browser, tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(9):
        (frames / f"{number}.png").write_bytes(encode(make_image(seed=number), "PNG"))
    token = "s3cret-s3cret-s3cret"
    with running("label", frames, "--host", "0.0.0.0", "--port", "0", "-n", "8", token=token) as server:
        page.size(1280, 900)
        page.go(server.at + "/")
        page.until("!document.getElementById('login').hidden")
        sound(page, "login", views=2)
        page.value(f"document.getElementById('token').value = '{token}'")
        page.value("document.getElementById('enter').requestSubmit()")
        page.until("!document.getElementById('intro').hidden")
        sound(page, "introduction", views=2)
        page.value("document.getElementById('begin').click()")
        page.until("document.querySelector('.look img')?.complete")
        sound(page, "rating")
        for number in range(8):
            page.until("!!document.querySelector('#answers button') && !document.body.dataset.busy")
            page.value(f"document.querySelectorAll('#answers button')[{number % 5}].click()")
            page.until(f"document.getElementById('summary').textContent.startsWith('{number + 1} of')")
        page.until("!document.getElementById('end').hidden")
        sound(page, "end", views=2)
        page.value("document.querySelector('#mode input[value=pair]').click()")
        page.until("document.querySelectorAll('.look img').length === 2")
        sound(page, "comparing", views=2)


def test_reports(page: Browser, tiny_bundle: Bundle, tmp_path: Path) -> None:
    pictures = tmp_path / "in"
    pictures.mkdir()
    for number in range(6):
        (pictures / f"{number}.png").write_bytes(encode(make_image(seed=number), "PNG"))
    write_clip(pictures / "clip.avi")
    labels = [f"in/{number}.png,{1 + number % 5}" for number in range(6)]
    (tmp_path / "labels.csv").write_text("\n".join(["image,mos", *labels]) + "\n")
    bundle, run = str(tiny_bundle.path), CliRunner().invoke
    scores, fleet, agreed = (tmp_path / name for name in ("scores.html", "fleet.html", "agreed"))
    assert run(app, ["score", bundle, str(pictures), "--report", str(scores)]).exit_code == 0
    looked = run(app, ["check", bundle, f"file:{pictures / 'clip.avi'}", "--report", str(fleet)])
    assert fleet.is_file(), looked.stderr
    compared = run(
        app, ["evaluate", "--bundle", bundle, "--data", str(tmp_path / "labels.csv"), "-o", str(agreed)]
    )
    assert compared.exit_code == 0, compared.stderr
    for report in (scores, fleet, agreed / "bundle.html"):
        page.size(1280, 900)
        page.go(report.as_uri())
        sound(page, report.name)


def test_the_page_to_try(page: Browser) -> None:
    with served(ROOT / "build/page") as at:
        page.size(1280, 900)
        page.go(at)
        page.until("document.body.dataset.ready", 120)
        sound(page, "page to try")
