"""Reports as one page that needs nothing else: read by an HTML parser, pictures decoded by Pillow."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import encode, make_image, tiny_score, write_clip, write_tiny_bundle
from PIL import Image
from typer.testing import CliRunner

from grmp_edge.cli import app
from grmp_edge.runtime.reports.scores import ScoreReport
from grmp_edge.score import Score


class Page(HTMLParser):
    """What a browser would see of a report."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.images: list[tuple[str, str]] = []  # alt, src
        self.paths: list[tuple[str, str]] = []  # class, d
        self.addresses: list[str] = []
        self.labels: list[str] = []
        self.text = ""
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.addresses += [own[name] for name in ("src", "href", "srcset", "action") if name in own]
        if tag == "img":
            self.images.append((own["alt"], own["src"]))
        if tag == "path":
            self.paths.append((own.get("class", ""), own["d"]))
        if "aria-label" in own:
            self.labels.append(own["aria-label"])

    def handle_data(self, data: str) -> None:
        self.text += data

    def picture(self, index: int) -> Image.Image:
        return Image.open(io.BytesIO(base64.b64decode(self.images[index][1].partition(",")[2]))).convert(
            "RGB"
        )


def test_a_report_of_scores_shows_the_worst_first_and_fetches_nothing(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle").path
    folder = tmp_path / "in"
    folder.mkdir()
    images = {f"p{seed}.png": make_image(60, 90, seed) // (1 + seed % 4) for seed in range(20)}
    images["<script>alert(1)</script>.png".replace("/", "_")] = make_image(40, 400, 99) // 5
    for name, image in images.items():
        (folder / name).write_bytes(encode(image, "PNG"))
    (folder / "broken.jpg").write_bytes(b"no picture at all")
    report = tmp_path / "out" / "report.html"
    result = CliRunner().invoke(app, ["score", str(bundle), str(folder), "--report", str(report)])
    assert result.exit_code == 1  # the broken one
    page = Page(report)
    assert "script" not in page.tags and "link" not in page.tags
    assert page.addresses and all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    assert "url(" not in page.html and "@import" not in page.html
    order = sorted(images, key=lambda name: tiny_score(images[name]))
    worst, best = order[:12], order[::-1][:4]
    assert [Path(alt).name for alt, _ in page.images] == [*worst, *best]
    for index, name in enumerate([*worst, *best]):
        original = Image.fromarray(images[name])
        shown = page.picture(index)
        original.thumbnail((320, 320), Image.Resampling.BOX)
        assert shown.size == original.size
        assert np.abs(np.asarray(shown, float) - np.asarray(original, float)).mean() < 12
    assert "broken.jpg" in page.text and "21 scored" in page.text and "1 could not be scored" in page.text


def test_a_clip_is_drawn_over_time_with_its_worst_frame(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle").path
    write_clip(tmp_path / "clip.mp4", frames=30)
    report = tmp_path / "report.html"
    lines = CliRunner().invoke(
        app, ["score", str(bundle), str(tmp_path / "clip.mp4"), "--json", "--report", str(report)]
    )
    values = [json.loads(line)["value"] for line in lines.stdout.splitlines()]
    page = Page(report)
    drawn = next(d for name, d in page.paths if name == "mean")
    ys = [float(y) for _, y in re.findall(r"([\d.]+) ([\d.]+)", drawn)]
    assert len(ys) == len(values) == 30
    # The axis: 0 at y = 170, 1 at y = 10.
    np.testing.assert_allclose(ys, 170 - 160 * np.array(values), atol=0.06)
    assert page.images[0][0].endswith(f"frame {int(np.argmin(values))}")


def test_memory_stays_bounded_and_the_line_true_whatever_the_length(tmp_path: Path) -> None:
    report = ScoreReport("m")
    rng = np.random.default_rng(0)
    values = rng.random(10_001)
    for frame, value in enumerate(values):
        report.add(Score(float(value), "long.mp4", "m", frame=frame, time_s=frame / 10))
    report.write(tmp_path / "r.html")
    page = Page(tmp_path / "r.html")
    means = [float(y) for _, y in re.findall(r"([\d.]+) ([\d.]+)", dict(page.paths)["mean"])]
    lows = [float(y) for _, y in re.findall(r"([\d.]+) ([\d.]+)", dict(page.paths)["low"])]
    assert 200 <= len(means) <= 400
    each = 2 ** int(np.ceil(np.log2(10_001 / 400)))
    parts = [values[at : at + each] for at in range(0, len(values), each)]
    np.testing.assert_allclose(means, [170 - 160 * part.mean() for part in parts], atol=0.06)
    np.testing.assert_allclose(lows, [170 - 160 * part.min() for part in parts], atol=0.06)
    assert "10001 scored" in page.text and not page.images  # no such file: no picture


@pytest.mark.parametrize("name", ["report.pdf", "folder.html"])
def test_a_report_that_cannot_be_is_refused_before_the_work(tmp_path: Path, name: str) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle").path
    (tmp_path / "folder.html").mkdir()
    result = CliRunner().invoke(app, ["score", str(bundle), "nothing.png", "--report", str(tmp_path / name)])
    assert result.exit_code == 2 and "one HTML file" in result.stderr
