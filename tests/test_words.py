"""English as an engineer says it: phrases that read as translated are flagged in all that users can read."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# What was written, and what an engineer would say.
PHRASES = {
    r"\b(?:was|were|is|are) not to be had\b": "could not be obtained",
    r"\bto be had\b": "available",
    r"\bcannot be had\b": "cannot be recovered, are not available",
    r"\bis none that can be\b": "impossible",
    r"\bas such\b": "separately, by name",
    r"\bsay(?:s)? no before\b": "reject before",
    r"\bgo(?:es|ne)? on with\b": "continue",
    r"\bof one's own\b": "your own",
    r"\bhold(?:s)? against\b": "compare with",
    r"\bgoes by\b": "is called, follows",
    r"\bhow (?:it|they) (?:is|are) called\b": "its name",
    r"\bwhat it (?:bears|stands)\b": "what it contains",
    r"\bis told\b": "is given, knows",
    r"\bit is to be noted\b": "note",
    r"\bmake possible\b": "allow",
    r"\binformations\b": "information",
    r"\bactually\b|\bsimply\b|\bjust works\b|\bpowerful\b|\bseamless(?:ly)?\b|\bleverag": "nothing",
}


def texts() -> Iterator[tuple[str, str]]:
    """Pages, and the strings of the code that are longer than a name, with where they stand."""
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))):
        if path.name != "experiments.md":  # a log, which is not rewritten
            yield path.name, path.read_text(encoding="utf-8")
    for room in ("grmp_edge", "train", "export", "runtime"):
        for path in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", node.value
    for path in sorted((ROOT / "runtime" / "static").glob("*.html")):
        yield path.name, path.read_text(encoding="utf-8")


@pytest.mark.parametrize("phrase", PHRASES)
def test_no_phrase_reads_as_translated(phrase: str) -> None:
    pattern = re.compile(phrase, re.I)
    hits = [f"{where}: {match[0]!r}" for where, text in _TEXTS for match in pattern.finditer(text)]
    assert hits == [], f"say: {PHRASES[phrase]}"


_TEXTS = list(texts())


def test_paths_in_commands_to_paste_are_quoted() -> None:
    """A next step that is printed works where names hold blanks."""
    bare = re.compile(
        r"grmp-edge [a-z][^\"\n]*\{[\w.]*(?:output|folder|bundle|path|target|file|spec|source)\}"
    )
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for room in ("grmp_edge", "train", "export", "runtime")
        for path in sorted((ROOT / room).rglob("*.py"))
        for match in bare.finditer(path.read_text(encoding="utf-8"))
    ]
    assert not [line for line in found if "cli/train.py" not in line]  # a template, filled in at the end
