"""The house itself: documentation that keeps up, files that are there, nothing that must not be."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from grmp_edge.cli import app

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


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
def test_every_command_is_in_the_readme_and_explains_its_options(command: str) -> None:
    assert f"grmp-edge {command}" in README, f"README.md does not mention `grmp-edge {command}`"
    shown = subprocess.run(
        [sys.executable, "-m", "grmp_edge", *command.split(), "--help"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    ).stdout  # fmt: skip
    options = re.split(r"\n(?=  -)", shown[shown.index("Options:") :])[1:]
    assert options
    for option in options:
        words = " ".join(option.split())
        assert re.search(r" [A-Z0-9Ma-z'][^ ]* ", words), f"`{command}` has an option without help: {words}"


def test_rooms_are_relative_links() -> None:
    for room in ("train", "export", "runtime"):
        link = ROOT / "grmp_edge" / room
        assert link.is_symlink() and link.readlink() == Path("..") / room
        assert (ROOT / room / "__init__.py").is_file()


def test_weights_in_the_repository_stay_small() -> None:
    kinds = (".safetensors", ".onnx")
    weights = [
        path
        for path in ROOT.rglob("*")
        if path.suffix in kinds and not path.parts[len(ROOT.parts)].startswith((".", "build"))
    ]
    shipped = [
        path for path in weights if not path.is_symlink() and "grmp_edge" not in path.parts[len(ROOT.parts) :]
    ]
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
    for room in ("grmp_edge", "train", "export", "runtime"):
        for module in (ROOT / room).rglob("*.py"):
            if module.name not in ("__init__.py", "__main__.py"):
                assert f"| {module.name} | " in written, f"{module} is not listed"
