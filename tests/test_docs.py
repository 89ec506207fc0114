"""README and the documentation's site: their commands, their output, their links, without a network."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from grmp_edge.cli import app

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    path.name: path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
    if path.name != "experiments.md"  # what an experiment ran is history
}


def documented() -> list[tuple[str, str]]:
    """Each command line of ours that a page shows, with the page's name."""
    lines = []
    for name, text in PAGES.items():
        for block in re.findall(r"^ *```(?:console)?\n(.*?)^ *```", text, re.M | re.S):
            joined = re.sub(r"\\\n\s*", " ", block)
            for line in re.findall(r"^ *(?:[$#] )?(?:.*\| )?(grmp-edge .*)$", joined, re.M):
                lines.append((name, re.split(r" #| [|>&]|;", line)[0].strip()))
        # In running text a command may be named without its arguments.
        lines += [(name, f"{line} --help") for line in re.findall(r"`(grmp-edge [a-z-]+ [^`]*)`", text)]
    return [(name, line) for name, line in dict.fromkeys(lines) if not re.search(r"\.\.\.|COMMAND", line)]


@pytest.mark.parametrize(("page", "line"), documented())
def test_each_documented_command_line_is_one(page: str, line: str) -> None:
    """Its commands and options exist and take such values; nothing runs."""
    program, *words = shlex.split(" ".join(line.split()))
    command: Any = typer.main.get_command(app)
    try:
        context = command.make_context(program, list(words))
        while hasattr(command, "commands") and (rest := [*context._protected_args, *context.args]):
            command = command.commands[rest[0]]
            context = command.make_context(rest[0], rest[1:], parent=context)
    except typer.Exit:
        assert words[-1] in ("--help", "--version", "-V")


def test_the_readmes_scores_are_what_its_commands_print(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"## Score\n\n```console\n(.*?)```", README, re.S)
    sample, score = re.findall(r"^\$ grmp-edge (.*)$", block, re.M)
    for line in (sample, score):
        done = CliRunner().invoke(app, shlex.split(line))
        assert done.exit_code == 0, done.output
    shown, printed = ([row.split() for row in text.splitlines()] for text in (block, done.stdout))
    rows = [row for row in shown if row[-1].endswith(".png")]
    assert len(rows) == 12 and printed[0] == shown[2]
    for expected, row in zip(rows, printed[1:], strict=True):
        assert row[1:] == expected[1:]
        # Versions of OpenCV and kinds of CPU differ by less; an answer with another meaning by more.
        assert float(row[0]) == pytest.approx(float(expected[0]), abs=0.02)


def test_messages_of_the_troubleshooting_page_are_those_of_the_code() -> None:
    code = "".join(
        re.sub(r'"\s*\n\s*f?r?"', "", path.read_text(encoding="utf-8"))
        for room in ("grmp_edge", "train", "export", "runtime")
        for path in (ROOT / room).rglob("*.py")
    )
    messages = re.findall(r"^\| `([^`]+)` \|", PAGES["troubleshooting.md"], re.M)
    parts = [part.strip(" :,") for message in messages for part in message.split("...")]
    assert len(messages) > 15
    assert [part for part in parts if len(part) > 5 and part not in code] == []


def test_metrics_of_the_page_on_grafana_exist() -> None:
    from grmp_edge.runtime.web.prometheus import CameraMetrics

    text = CameraMetrics(["gate"], list, list, int).text()
    there = set(re.findall(r"^# TYPE (\S+)", text, re.M))
    named = set(re.findall(r"grmp_edge_\w+", PAGES["grafana.md"]))
    assert len(named) >= 7
    assert {name.removesuffix("_bucket") for name in named} <= there


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "-d", str(folder)],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    # Strict: a link to a page or a heading that is not there fails.
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_opens_from_a_folder(site: Path) -> None:
    pages = {path.name: path.read_text(encoding="utf-8") for path in site.glob("*.html")}
    assert len(pages) > 25 and (site / "search" / "search_index.js").is_file()
    for name, text in pages.items():
        loaded = re.findall(r'<(?:script|img|link|iframe)[^>]*?(?:src|href)="([^"]+)"', text)
        assert not [address for address in loaded if "//" in address], name
        for address in loaded:
            if not address.startswith(("data:", "/")):
                assert (site / address.split("?")[0]).exists(), (name, address)
    commands = pages["commands.html"]
    for words in ("data sample", "train finetune", "score", "watch", "memory accept"):
        assert f'id="grmp-edge-{words.replace(" ", "-")}"' in commands
    assert "--allow-cpu" in commands and "$ grmp-edge doctor" in re.sub("<[^>]+>", "", commands)
    assert "max_fps" in pages["settings.html"] and "hysteresis" in pages["settings.html"]
    assert "ParityError" in pages["exit-codes.html"] and "score_many" in pages["python.html"]
