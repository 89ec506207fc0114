"""A release: archives of the same bytes, one version everywhere, workflows that name what exists."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from grmp_edge import __version__

yaml = pytest.importorskip("yaml")
if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_same_commit_gives_the_same_bytes(tmp_path: Path) -> None:
    """Of the source distribution; the wheel's times come from SOURCE_DATE_EPOCH, as wheels' do."""
    (commit_time,) = subprocess.run(
        ["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    digests = set()
    for folder in ("one", "two"):
        command = [sys.executable, str(ROOT / "deploy" / "dist.py"), str(tmp_path / folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        made = sorted((tmp_path / folder).iterdir())
        assert [path.suffix for path in made] == [".whl", ".gz"] and __version__ in made[0].name
        digests.add(tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in made))
    assert len(digests) == 1
    with tarfile.open(made[1]) as archive:
        members = archive.getmembers()
    assert {(member.mtime, member.uid, member.uname) for member in members} == {(int(commit_time), 0, "")}
    assert f"grmp_edge-{__version__}/runtime/default_model/bundle.json" in {one.name for one in members}


def test_one_version_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    recipe = yaml.safe_load((ROOT / "deploy" / "conda" / "recipe.yaml").read_text(encoding="utf-8"))
    assert citation["version"] == recipe["context"]["version"] == __version__
    assert "version" in PROJECT["dynamic"] and citation["license"] == PROJECT["license"]


def test_conda_asks_for_what_pip_asks_for() -> None:
    recipe = yaml.safe_load((ROOT / "deploy" / "conda" / "recipe.yaml").read_text(encoding="utf-8"))
    conda = {words[0]: words[1:] for words in (line.split() for line in recipe["requirements"]["run"])}
    extras = PROJECT["optional-dependencies"]
    asked = [*PROJECT["dependencies"], *extras["video"], *extras["cpu"]]
    for requirement in asked:
        match = re.match(r"([\w-]+)(?:\[\w+\])?([^;]*)", requirement)
        assert match is not None
        name, limits = match[1], match[2].strip()
        if name != "grmp-edge":
            name = {"opencv-python-headless": "py-opencv"}.get(name, name)
            assert conda[name] == [limits], requirement


def test_workflows_and_templates_are_yaml_and_name_what_exists() -> None:
    files = [*(ROOT / ".github").rglob("*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / "mkdocs.yml"]
    assert len(files) >= 6
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert yaml.safe_load(text), path
        for named in re.findall(r"\b(?:deploy|docs|\.ci)/[\w./-]+\w", text):
            assert (ROOT / named).exists(), (path, named)
        for extras in re.findall(r"\[([a-z,]+)\]['\"]", text):
            assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys(), (path, extras)
