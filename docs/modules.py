"""Write docs/modules.md, the list of all modules, from their docstrings: python docs/modules.py"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {
    "grmp_edge": "the core: numpy and OpenCV only, no torch",
    "train": "torch: from labels to a checkpoint",
    "export": "from a checkpoint to a bundle",
    "runtime": "torch-free: scoring, on files and on cameras",
}


def first_sentence(module: Path) -> str:
    """The first sentence or paragraph of a module's docstring, on one line."""
    text = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return paragraph.split(". ")[0].rstrip(".").replace("|", "\\|")


def listing() -> str:
    """The whole file."""
    lines = [
        "# Every module",
        "",
        "Written by `python docs/modules.py` from the modules' own first sentences.",
        "",
    ]
    for room, what in ROOMS.items():
        for folder in (ROOT / room, *sorted((ROOT / room).iterdir())):
            door = folder / "__init__.py"
            if not door.is_file() or folder.is_symlink():
                continue
            inner = folder != ROOT / room
            title = f"### {room}/{folder.name}/: {first_sentence(door)}" if inner else f"## {room}/: {what}"
            lines += [title, "", "| module | |", "|---|---|"]
            for module in sorted(folder.glob("*.py")):
                if module.stem not in ("__init__", "__main__"):
                    lines.append(f"| {module.name} | {first_sentence(module)} |")
            lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    (ROOT / "docs" / "modules.md").write_text(listing(), encoding="utf-8")
