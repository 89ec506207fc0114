"""The house itself: documentation that keeps up, files that are there, nothing that must not be."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from conftest import Shell

from grmp_edge.cli import app

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Without the log of experiments: an entry may name what a later one removed.
GUIDES = [
    ROOT / "CONTRIBUTING.md",
    *sorted(path for path in (ROOT / "docs").glob("*.md") if path.stem != "experiments"),
]
ROOMS = ("train", "export", "runtime")


def _commands() -> list[str]:
    found = []

    def walk(command: object, path: str) -> None:
        children = getattr(command, "commands", None)
        if children is None or getattr(command, "invoke_without_command", False):
            found.append(path)
        for name, child in (children or {}).items():
            walk(child, f"{path} {name}".strip())

    walk(typer.main.get_command(app), "")
    return [command for command in found if command]


@pytest.mark.parametrize("command", _commands())
def test_every_command_is_in_the_readme_and_explains_its_options(command: str, shell: Shell) -> None:
    told = [README, *(path.read_text(encoding="utf-8") for path in GUIDES)]
    assert any(f"grmp-edge {command}" in text for text in told), f"no page mentions `grmp-edge {command}`"
    done = shell(*command.split(), "--help")
    assert done.returncode == 0
    shown = done.stdout
    options = re.split(r"\n(?=  -)", shown[shown.index("Options:") :])[1:]
    assert options
    for option in options:
        words = " ".join(option.split())
        assert re.search(r" [A-Z0-9Ma-z'][^ ]* ", words), f"`{command}` has an option without help: {words}"


def test_rooms_are_relative_links() -> None:
    for room in ROOMS:
        link = ROOT / "grmp_edge" / room
        assert link.is_symlink() and link.readlink() == Path("..") / room
        assert (ROOT / room / "__init__.py").is_file()


def test_weights_in_the_repository_stay_small() -> None:
    rooms = [path for path in ROOT.iterdir() if not path.name.startswith((".", "build", "grmp_edge"))]
    weights = [
        path
        for room in rooms
        for path in (room, *room.rglob("*"))
        if path.suffix in (".safetensors", ".onnx")
    ]
    shipped = [path for path in weights if not path.is_symlink()]
    assert shipped
    assert sum(path.stat().st_size for path in shipped) <= 25 * 1024 * 1024


def test_the_list_of_modules_is_up_to_date() -> None:
    made = subprocess.run(
        [sys.executable, "-c", "import modules; print(modules.listing(), end='')"],
        cwd=ROOT / "docs",
        capture_output=True,
        text=True,
        check=True,
        encoding="utf-8",
    ).stdout
    written = (ROOT / "docs" / "modules.md").read_text(encoding="utf-8")
    assert made == written, "run: python docs/modules.py"
    for room in ("grmp_edge", *ROOMS):
        for module in (ROOT / room).rglob("*.py"):
            if module.name not in ("__init__.py", "__main__.py"):
                assert f"| {module.name} | " in written, f"{module} is not listed"


def test_paths_and_names_in_the_guides_exist() -> None:
    """Also that a table row's name is defined in the file named beside it."""
    texts = [README, *(path.read_text(encoding="utf-8") for path in GUIDES)]
    paths = {path for text in texts for path in re.findall(r"`((?:[a-z_]+/)+[\w*.-]*)`", text)}
    inside = {
        path for path in paths if path.split("/")[0] in (*ROOMS, "grmp_edge", "tests", "docs", "deploy")
    }
    assert {"runtime/sinks/make.py", "train/recipe/"} <= inside
    assert not [path for path in inside if not list(ROOT.glob(path.rstrip("/")))]
    rows = re.findall(r"`([\w/.]+\.py)`, `(\w+)`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert len(rows) >= 6
    for path, name in rows:
        assert re.search(rf"^{name}\b", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), (path, name)
    links = {link for text in texts[1:] for link in re.findall(r"\]\((?!http)([^)#\s]+)\)", text)}
    folders = (ROOT, ROOT / "docs")
    links -= {
        "commands.md",
        "exit-codes.md",
        "settings.md",
    }  # made by docs/hooks.py; the site's build checks them
    assert not [link for link in links if not any((folder / link).exists() for folder in folders)]


def test_terms_of_the_glossary_are_sorted_into_sections_and_stand_once() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    terms = [
        term
        for line in re.findall(r"^- (\*\*.*?)[:.]", text, re.M)
        for term in re.findall(r"\*\*(.+?)\*\*", line)
    ]
    assert len(terms) > 50
    assert sorted({term for term in terms if terms.count(term) > 1}) == []
