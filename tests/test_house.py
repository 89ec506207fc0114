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
    weights = [path for path in ROOT.rglob("*.safetensors") if ".venv" not in path.parts[len(ROOT.parts)]]
    shipped = [
        path for path in weights if not path.is_symlink() and "grmp_edge" not in path.parts[len(ROOT.parts) :]
    ]
    assert shipped
    assert sum(path.stat().st_size for path in shipped) <= 25 * 1024 * 1024


def test_readme_tree_lists_every_module() -> None:
    for room in ("grmp_edge", "train", "export", "runtime"):
        for module in (ROOT / room).glob("*.py"):
            if module.name not in ("__init__.py", "__main__.py"):
                assert module.stem in README, f"README.md's tree does not mention {room}/{module.name}"
