"""Imports point one way, and nothing heavy is loaded before it is needed."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("train", "export", "runtime")
# What each part may import of the others. Only the command line sees all, inside its functions.
ALLOWED = {
    "core": set(),
    "train": {"core"},
    "export": {"core", "train", "runtime"},
    "runtime": {"core"},
    "cli": {"core", "cli", *ROOMS},
}
HEAVY = {"torch", "open_clip", "onnx", "onnxruntime", "tensorrt", "safetensors"}


@functools.cache
def files() -> dict[Path, str]:
    """Every module of the package with its part."""
    parts = dict.fromkeys((ROOT / "grmp_edge").glob("*.py"), "core")
    # The two front doors hand on what lies in the rooms, and like the commands load it only when asked.
    parts.update(dict.fromkeys((ROOT / "grmp_edge" / name for name in ("__init__.py", "__main__.py")), "cli"))
    for folder, part in (("grmp_edge/cli", "cli"), *((room, room) for room in ROOMS)):
        parts.update(dict.fromkeys((ROOT / folder).rglob("*.py"), part))
    return parts


def module_name(path: Path) -> str:
    """The dotted name under which a file is imported."""
    names = list(path.relative_to(ROOT).with_suffix("").parts)
    if names[-1] == "__init__":
        names.pop()
    return ".".join(names if names[0] == "grmp_edge" else ["grmp_edge", *names])


@functools.cache
def graph() -> dict[str, set[str]]:
    """Which module imports which, anywhere in it, TYPE_CHECKING included; doors (__init__) left out."""
    modules = {module_name(path): path for path in files() if path.stem != "__init__"}
    edges: dict[str, set[str]] = {}
    for name, path in modules.items():
        ends = {each if each in modules else each.rpartition(".")[0] for each in imported_in(path)}
        edges[name] = (ends & set(modules)) - {name}
    return edges


def folder(module: str) -> str:
    """A module's folder below a room or the command line; for what lies beside a room's door, the module."""
    names = module.split(".")
    return ".".join(names[:3]) if len(names) > 3 else "grmp_edge.cli" if names[1] == "cli" else module


def circles(edges: dict[str, set[str]]) -> set[frozenset[str]]:
    """The sets of nodes that can reach each other."""

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        todo = list(edges[start])
        while todo:
            at = todo.pop()
            if at not in seen:
                seen.add(at)
                todo.extend(edges[at])
        return seen

    far = {node: reach(node) for node in edges}
    return {frozenset(end for end in far[node] if node in far[end]) for node in far if node in far[node]}


def imports(tree: ast.AST) -> set[str]:
    """The dotted names of everything imported anywhere below ``tree``."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they go"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@functools.cache
def imported_in(path: Path) -> set[str]:
    return imports(ast.parse(path.read_text(encoding="utf-8")))


def part(name: str) -> str | None:
    """The part of the project that a dotted name belongs to."""
    if name.split(".")[0] != "grmp_edge":
        return None
    second = [*name.split("."), ""][1]
    if second in ROOMS:
        return second
    return "cli" if second == "cli" else "core"


def at_import_time(tree: ast.Module) -> ast.Module:
    """The module without its functions' bodies and its type-checking blocks."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if ast.unparse(node.test) == "TYPE_CHECKING" else node

    stripped = Strip().visit(tree)
    assert isinstance(stripped, ast.Module)
    return stripped


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    own = files()[path]
    found = {other for name in imported_in(path) if (other := part(name))}
    assert found <= ALLOWED[own] | {own}
    bare = {name.split(".")[0] for name in imported_in(path)}
    assert not bare & set(ROOMS), "import the rooms as grmp_edge.train and so on"
    early = imports(at_import_time(ast.parse(path.read_text(encoding="utf-8"))))
    eager = {name.split(".")[0] for name in early}
    if own not in ("train", "export"):
        assert not eager & HEAVY
    if own == "cli":
        assert not {part(name) for name in early} & set(ROOMS)
        assert not eager & {"numpy", "cv2"}


def test_every_part_is_looked_at() -> None:
    assert set(files().values()) == set(ALLOWED)


def test_modules_import_each_other_in_no_circle() -> None:
    edges = graph()
    assert edges["grmp_edge.runtime.bulk"] >= {"grmp_edge.runtime.scorer"}
    assert circles(edges) == set()


def test_folders_import_each_other_in_no_circle() -> None:
    edges: dict[str, set[str]] = {}
    for module, ends in graph().items():
        own = folder(module)
        edges.setdefault(own, set()).update({folder(end) for end in ends} - {own})
    assert {"grmp_edge.train.network", "grmp_edge.runtime.live", "grmp_edge.cli"} <= set(edges)
    assert circles(edges) == set()


def test_nothing_in_training_needs_the_recipe_and_nothing_below_the_cameras_knows_them() -> None:
    """Rules of one direction that circles alone would not show."""
    for module, ends in graph().items():
        own, others = folder(module), {folder(end) for end in ends}
        if own.startswith("grmp_edge.train.") and own != "grmp_edge.train.recipe":
            assert "grmp_edge.train.recipe" not in others, module
        if own in ("grmp_edge.runtime.sources", "grmp_edge.runtime.video"):
            assert not others & {"grmp_edge.runtime.scorer", "grmp_edge.runtime.live"}, module
        if own == "grmp_edge.train.network":
            assert not {end for end in others if end.startswith("grmp_edge.train.")} - {own}, module


def loaded_by(*arguments: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after running with these arguments."""
    run = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    rows = [
        line.rsplit("|", 1)[1].strip() for line in run.stderr.splitlines() if line.startswith("import time:")
    ]
    assert len(rows) > 50
    return {name.split(".")[0] for name in rows}


def test_help_loads_nothing_heavy() -> None:
    loaded = loaded_by("-m", "grmp_edge", "--help")
    assert "typer" in loaded
    assert not loaded & {*HEAVY, "cv2", "numpy", "scipy", "PIL", "rich"}


def test_the_runtime_loads_neither_torch_nor_a_backend() -> None:
    loaded = loaded_by("-c", "import grmp_edge.runtime")
    assert {"grmp_edge", "cv2"} <= loaded
    assert not loaded & HEAVY


def test_the_package_alone_loads_nothing_heavy() -> None:
    loaded = loaded_by("-c", "import grmp_edge; grmp_edge.__version__")
    assert "grmp_edge" in loaded
    assert not loaded & {*HEAVY, "cv2", "numpy", "typer"}


def test_the_scorer_is_at_the_front_door() -> None:
    import grmp_edge
    import grmp_edge.runtime

    assert grmp_edge.Scorer is grmp_edge.runtime.Scorer
    with pytest.raises(AttributeError, match="no attribute 'Score'"):
        grmp_edge.Score  # noqa: B018


def test_doctor_loads_no_torch() -> None:
    loaded = loaded_by("-m", "grmp_edge", "doctor", "--json")
    assert "onnxruntime" in loaded
    assert not loaded & {"torch", "open_clip", "onnx", "safetensors"}


def test_all_names_exist() -> None:
    import grmp_edge.runtime

    for name in grmp_edge.runtime.__all__:
        assert hasattr(grmp_edge.runtime, name)
    assert {"Scorer", "Score"} <= set(grmp_edge.runtime.__all__)
