"""What a wheel puts where, and that scoring with it needs no torch."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from conftest import encode, make_image, tiny_score, write_tiny_bundle
from uv import find_uv_bin

ROOT = Path(__file__).parent.parent


def run(*command: str | Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd="/")
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def pip(python: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run this environment's pip on another one: putting pip into that takes as long as all the rest."""
    return run(sys.executable, "-m", "pip", "--python", python, *arguments)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean clone: building in place would leave build/ and egg-info in the checkout."""
    copy = tmp_path_factory.mktemp("source") / "a clone"
    copy.mkdir()
    for name in ("grmp_edge", "train", "export", "runtime", "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).is_dir():
            # symlinks=True keeps the links grmp_edge/train -> ../train, as git does.
            shutil.copytree(ROOT / name, copy / name, True, shutil.ignore_patterns("__pycache__"))
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, copy / name)
    for kind in ("*.safetensors", "*.onnx"):  # nothing here scores by them, and packing them takes seconds
        for weights in copy.rglob(kind):
            weights.write_bytes(b"weights")
    git = ("git", "-C", copy, "-c", "user.name=A", "-c", "user.email=a@example.org")
    run(*git, "init", "-q")
    run(*git, "add", ".")
    run(*git, "commit", "-q", "-m", "All")
    return copy


@pytest.fixture(scope="module")
def wheel(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", out, clone)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with the wheel and its [cpu] extra."""
    environment = tmp_path_factory.mktemp("fresh")
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    python = environment / "bin" / "python"
    pip(python, "install", "-q", "--no-compile", f"{wheel}[cpu]")
    return python


def test_what_the_wheel_holds(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"grmp_edge"}
    assert "grmp_edge/py.typed" in names
    for path in [*ROOT.glob("grmp_edge/*.py"), *ROOT.glob("grmp_edge/cli/*.py")]:
        assert path.relative_to(ROOT).as_posix() in names
    for room in ("train", "export", "runtime"):
        for path in (ROOT / room).rglob("*.py"):
            assert f"grmp_edge/{path.relative_to(ROOT).as_posix()}" in names
        assert [name for name in names if name.startswith(f"grmp_edge/{room}/")]


def test_base_and_cpu_score_without_torch(python: Path, tmp_path: Path) -> None:
    installed = {
        package["name"].lower() for package in json.loads(pip(python, "list", "--format=json").stdout)
    }
    assert {"grmp-edge", "onnxruntime", "opencv-python-headless"} <= installed
    assert not [name for name in installed if re.match(r"torch|open.clip|onnx$|nvidia|triton|tensorrt", name)]

    image = make_image(300, 400, seed=4)
    (tmp_path / "photo.png").write_bytes(encode(image, "PNG"))
    bundle = write_tiny_bundle(tmp_path / "bundle")
    command = python.with_name("grmp-edge")
    result = run(command, "score", bundle.path, tmp_path / "photo.png", "--json")
    assert json.loads(result.stdout)["value"] == pytest.approx(tiny_score(image), abs=1e-6)
    doctor = json.loads(run(command, "doctor", "--json").stdout)
    status = {part["name"]: part["status"] for part in doctor["parts"]}
    assert (status["provider cpu"], status["torch"]) == ("ok", "missing")


def test_without_a_backend_one_line_names_the_extra(python: Path, wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(encode(make_image(), "PNG"))
    bundle = write_tiny_bundle(tmp_path / "bundle")
    pip(python, "uninstall", "-q", "-y", "onnxruntime")
    command = python.with_name("grmp-edge")
    result = run(command, "score", bundle.path, tmp_path / "photo.png", expect=1)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: scoring needs the package 'onnxruntime', which is not installed")
    spec = re.escape(f"grmp-edge[cpu] @ {wheel.as_uri()}")
    assert re.search(rf"run: pip --python {re.escape(str(python))} install '{spec}'$", line)
    doctor = run(command, "doctor", expect=1).stdout
    assert re.search(rf"^missing +onnxruntime .* install '{spec}'$", doctor, re.MULTILINE)


@pytest.mark.parametrize("way", ["clone", "wheel", "git"])
def test_the_line_that_adds_an_extra_fits_the_way_of_installation(
    way: str, clone: Path, wheel: Path, tmp_path: Path
) -> None:
    """The line is run in a shell, in an environment that sees the packages of this one."""
    environment = tmp_path / "an environment"
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "seen.pth").write_text(sysconfig.get_path("purelib"))
    python = environment / "bin" / "python"
    source = {"clone": ("-e", clone), "wheel": (wheel,), "git": (f"git+{clone.as_uri()}",)}[way]
    pip(python, "install", "-q", "--ignore-installed", "--no-deps", "--no-build-isolation", *source)
    code = "from grmp_edge.install import install_line; print(install_line('mqtt'))"
    line = run(python, "-c", code).stdout.strip()
    commit = run("git", "-C", clone, "rev-parse", "HEAD").stdout.strip()
    words = {
        "clone": ["-e", f"{clone}[mqtt]"],
        "wheel": [f"grmp-edge[mqtt] @ {wheel.as_uri()}"],
        "git": [f"grmp-edge[mqtt] @ git+{clone.as_uri()}@{commit}"],
    }[way]
    assert shlex.split(line) == [str(python), "-m", "pip", "install", *words]
    done = run("sh", "-c", f"{line} --dry-run --no-build-isolation")
    assert "paho-mqtt" in done.stdout  # looked at, so the extra was understood


def test_uv_is_named_where_it_made_the_environment(wheel: Path, tmp_path: Path) -> None:
    uv = Path(find_uv_bin())
    python = tmp_path / "env" / "bin" / "python"
    run(uv, "venv", "-q", "--python", sys.executable, tmp_path / "env")
    run(uv, "pip", "install", "-q", "--no-deps", "--python", python, wheel)
    code = "from grmp_edge.install import install_line; print(install_line('mqtt'))"
    line = run(python, "-c", code).stdout.strip()
    spec = f"grmp-edge[mqtt] @ {wheel.as_uri()}"
    assert shlex.split(line) == ["uv", "pip", "install", "--python", str(python), spec]
    run(uv, "pip", "install", "-q", "--no-deps", "--dry-run", *shlex.split(line)[3:])
