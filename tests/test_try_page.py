"""The page to try, in a real browser: pictures score as on the CPU, and the camera is scored."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import encode, make_image
from helpers_browser import Browser, browser, served

from grmp_edge.preprocess import Preprocess
from grmp_edge.runtime import Scorer
from grmp_edge.views import spread

PAGE = Path(__file__).resolve().parent.parent / "build/page"

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not (PAGE / "ort").is_dir(), reason="the page is not built (make page needs npm)"),
]
CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")


@pytest.fixture(scope="module")
def page() -> Iterator[Browser]:
    with served(PAGE) as at, browser(*CAMERA) as tab:
        tab.size(1280, 900)
        tab.go(at)
        tab.until("document.body.dataset.ready", 120)
        yield tab
        assert not tab.complaints


def as_blob(data: bytes) -> str:
    return f"new Blob([Uint8Array.from(atob('{base64.b64encode(data).decode()}'), c => c.charCodeAt(0))])"


def pictures() -> dict[str, bytes]:
    """Sizes about those of crop and squash, all that is converted on the way, and a large one."""
    from PIL import Image

    def saved(image: Image.Image, kind: str, **how: Any) -> bytes:
        target = io.BytesIO()
        image.save(target, kind, **how)
        return target.getvalue()

    scene = np.asarray(
        cv2.resize(make_image(90, 160, seed=7), (1920, 1080), interpolation=cv2.INTER_LANCZOS4)
    )
    photo = Image.fromarray(make_image(480, 640, seed=2))
    turned = Image.Exif()
    turned[0x0112] = 6
    clear = photo.resize((300, 400)).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize((300, 400)))
    return {
        "png": encode(make_image(320, 333, seed=1), "PNG"),
        "jpeg": saved(photo, "JPEG", quality=60),
        "small": encode(make_image(90, 130, seed=4), "PNG"),
        "one pixel high": encode(make_image(1, 700, seed=4), "PNG"),
        "tall": encode(make_image(900, 230, seed=5), "PNG"),
        "grey": saved(photo.convert("L"), "JPEG"),
        "turned": saved(photo, "JPEG", exif=turned),
        "clear": saved(clear, "PNG"),
        "webp": saved(photo, "WEBP", lossless=True),
        "full hd": saved(Image.fromarray(scene), "JPEG", quality=85),
    }


def test_pictures_score_as_on_the_cpu(page: Browser) -> None:
    with Scorer.open() as scorer:
        for name, data in pictures().items():
            expected = scorer.score(data)
            told = json.loads(page.value(f"scoreOf({as_blob(data)}).then(JSON.stringify)"))
            assert told["value"] == pytest.approx(expected.value, abs=1e-3), name
            assert expected.causes is not None
            assert told["causes"] == pytest.approx(dict(expected.causes), abs=1e-2), name


def test_the_views_are_those_of_the_package(page: Browser) -> None:
    shapes = [(h, w) for h in (1, 224, 225, 480, 1081, 2160) for w in (3, 224, 447, 640, 3840)]
    asked = [[height, width, count] for height, width in shapes for count in (1, 2, 4, 6, 9)]
    told = page.value(
        "import('./views.js').then(m => JSON.stringify("
        f"{json.dumps(asked)}.map(([h, w, n]) => m.spread(h, w, n, 224))))"
    )
    for (height, width, count), boxes in zip(asked, json.loads(told), strict=True):
        expected = [vars(box) for box in spread(height, width, count, 224)]
        assert boxes == expected, (height, width, count)
    # The filter itself, on noise: of OpenCV's two ways to round one level.
    image = np.random.default_rng(0).integers(0, 256, (301, 517, 3), dtype=np.uint8)
    rgba = base64.b64encode(np.dstack([image, np.full(image.shape[:2], 255, np.uint8)]).tobytes()).decode()
    told = page.value(
        "import('./views.js').then(m => { const data = Uint8Array.from(atob('"
        + rgba
        + "'), c => c.charCodeAt(0));"
        "return btoa(String.fromCharCode(...m.squash({data, width: 517, height: 301}, 80))); })"
    )
    squashed = np.frombuffer(base64.b64decode(told), np.uint8).reshape(80, 80, 3).astype(int)
    expected_pixels = Preprocess(80, 80)(image).astype(int)
    assert np.abs(squashed - expected_pixels).max() <= 1
    assert (squashed == expected_pixels).mean() > 0.9


def test_a_dropped_picture_and_the_camera_are_shown_with_their_scores(page: Browser) -> None:
    drop = (
        "(() => { const given = new DataTransfer();"
        f"given.items.add(new File([{as_blob(pictures()['jpeg'])}], 'yard.jpg', {{type: 'image/jpeg'}}));"
        "document.dispatchEvent(new DragEvent('drop', {dataTransfer: given, cancelable: true})); })()"
    )
    page.value(drop)
    page.until("document.getElementById('summary').textContent === 'yard.jpg'")
    assert float(page.value("document.getElementById('value').textContent")) < 1
    assert page.value("document.querySelectorAll('#causes meter').length") == 7
    page.value(drop.replace(as_blob(pictures()["jpeg"]), "'no picture'"))
    page.until("document.getElementById('problem').textContent.startsWith('yard.jpg cannot be scored')")
    page.value("document.getElementById('camera').click()")
    page.until("document.getElementById('summary').textContent === 'Your camera'")
    page.until("document.getElementById('chart').getAttribute('aria-label').startsWith('Score over')")
    page.value("document.getElementById('camera').click()")
    page.until("document.getElementById('video').hidden")
    for width, height in ((1280, 900), (390, 844)):
        page.size(width, height)
        assert page.value("document.documentElement.scrollWidth") <= width
