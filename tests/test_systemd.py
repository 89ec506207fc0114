"""Telling systemd, by a real socket; the unit and images in deploy/ as their readers see them."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from conftest import write_clip

from grmp_edge.bundle import Bundle
from grmp_edge.cli import app
from grmp_edge.runtime.service import notify, supervised

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
UNIT = ROOT / "deploy" / "grmp-edge-watch.service"
IMAGES = sorted((ROOT / "deploy").glob("Dockerfile.*"))


@pytest.fixture
def door(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    name = str(tmp_path / "notify")
    if getattr(request, "param", "path") == "abstract":
        name = f"\0grmp-edge-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as found:
        found.bind(name)
        found.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", name.replace("\0", "@"))
        monkeypatch.delenv("WATCHDOG_USEC", raising=False)
        yield found


def words(door: socket.socket, until: str) -> list[str]:
    found: list[str] = []
    while not found or found[-1] != until:
        found.append(door.recv(4096).decode())
    return found


@pytest.mark.parametrize("door", ["path", "abstract"], indirect=True)
def test_a_word_arrives(door: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    assert notify("STATUS=well")
    assert door.recv(100) == b"STATUS=well"
    monkeypatch.setenv("NOTIFY_SOCKET", "/no/such/socket")
    assert not notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "not-a-path")
    assert not notify("READY=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert not notify("READY=1")


def test_the_watchdog_falls_silent_when_the_work_hangs(
    door: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    start = time.monotonic()
    with supervised(time.monotonic):
        alive = [door.recv(4096).decode() for _ in range(4)]
    assert alive == ["READY=1", *["WATCHDOG=1"] * 3]
    assert time.monotonic() - start >= 3 * 0.19  # no more often than at half of WATCHDOG_USEC
    assert words(door, "STOPPING=1")[-1] == "STOPPING=1"
    hung = time.monotonic() - 1
    looks = threading.Semaphore(0)

    def beat() -> float:
        looks.release()
        return hung

    with supervised(beat):
        assert all(looks.acquire(timeout=60) for _ in range(3))
    assert words(door, "STOPPING=1") == ["READY=1", "STOPPING=1"]


def test_no_watchdog_where_none_is_set_or_it_is_anothers(
    door: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for usec, pid in ((None, None), ("100000", "1"), ("soon", None)):
        for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", pid)):
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        with supervised(time.monotonic):
            assert not [thread for thread in threading.enumerate() if thread.name == "watchdog"]
        assert words(door, "STOPPING=1") == ["READY=1", "STOPPING=1"]


def test_watch_tells_that_it_is_ready_alive_and_stops(
    door: socket.socket, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    clip = tmp_path / "clip.mp4"
    write_clip(clip, frames=30, fps=10.0)
    process = subprocess.Popen(
        [sys.executable, "-m", "grmp_edge", "watch", str(tiny_bundle.path), str(clip), "--json"],
        env={**os.environ, "WATCHDOG_USEC": "1000000"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert door.recv(100) == b"READY=1"
        assert [door.recv(100) for _ in range(2)] == [b"WATCHDOG=1"] * 2
        process.terminate()
        words(door, "STOPPING=1")
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert all(json.loads(line) for line in output.splitlines())


def check_command(arguments: list[str]) -> None:
    """Parse a command as the program would, without running it."""
    command = typer.main.get_command(app)
    name, *rest = arguments
    found = command.commands[name]  # type: ignore[attr-defined]
    context = found.make_context(name, rest, resilient_parsing=False)
    assert context.params["arguments"]


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(UNIT)
    return parser


def test_the_unit_runs_a_command_that_exists() -> None:
    service = unit()["Service"]
    program, *arguments = shlex.split(service["ExecStart"])
    assert Path(program).name == "grmp-edge"
    check_command(arguments)
    assert (service["Type"], service["Restart"]) == ("notify", "always")
    assert int(service["WatchdogSec"]) > 0


def test_the_unit_gives_up_what_it_does_not_need() -> None:
    service = unit()["Service"]
    for name in (
        "DynamicUser", "NoNewPrivileges", "ProtectHome", "PrivateTmp", "PrivateDevices", "PrivateUsers",
        "ProtectKernelTunables", "RestrictSUIDSGID", "MemoryDenyWriteExecute", "LockPersonality",
    ):  # fmt: skip
        assert service[name] == "yes", name
    assert service["ProtectSystem"] == "strict"
    assert service["CapabilityBoundingSet"] == ""


@pytest.mark.system
def test_systemd_reads_the_unit(tmp_path: Path) -> None:
    text = re.sub(r"ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text())
    (tmp_path / UNIT.name).write_text(text)
    folder = tmp_path / f"{UNIT.name}.d"
    shutil.copytree(ROOT / "deploy" / folder.name, folder)
    for arguments in (["verify"], ["security", "--offline=yes", "--threshold=25"]):
        if arguments[0] == "security":
            shutil.rmtree(folder)  # it loosens what a GPU needs
        run = subprocess.run(
            ["systemd-analyze", *arguments, str(tmp_path / UNIT.name)], capture_output=True, text=True
        )
        assert run.returncode == 0, run.stdout + run.stderr
        assert UNIT.name not in run.stderr  # where it warns


def steps(image: Path) -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", image.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.name)
def test_an_image_is_made_of_what_is_there(image: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = steps(image)
    copied = set()
    for name, rest in found:
        if name == "COPY" and "--from" not in rest:
            *sources, _ = rest.split()
            copied |= set(sources)
    assert all((ROOT / source).exists() for source in copied)
    # What the build of the package reads.
    assert {"pyproject.toml", project["project"]["readme"], "LICENSE"} <= copied
    assert set(project["tool"]["setuptools"]["package-dir"].values()) <= copied
    (extras,) = re.findall(r"'\.\[([a-z,]+)\]'", " ".join(rest for name, rest in found if name == "RUN"))
    assert set(extras.split(",")) <= set(project["project"]["optional-dependencies"])


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.name)
def test_an_image_runs_without_root_a_command_that_exists(image: Path) -> None:
    found = steps(image)
    names = [name for name, _ in found]
    last = len(names) - 1 - names[::-1].index("FROM")
    user = names.index("USER", last)
    assert found[user][1] not in ("root", "0")
    assert user < names.index("ENTRYPOINT", last)
    assert json.loads(dict(found)["ENTRYPOINT"]) == ["grmp-edge"]
    check_command(json.loads(dict(found)["CMD"]))
    health = dict(found)["HEALTHCHECK"]
    compile(json.loads(health[health.index("[") :])[2], "healthcheck", "exec")
    assert "/healthz" in health
    for name, rest in found:
        if name == "RUN" and "apt-get install" in rest:
            assert "--no-install-recommends" in rest and "rm -rf /var/lib/apt/lists/*" in rest
        if name == "RUN" and "pip install" in rest:
            assert "--no-cache-dir" in rest
        if name == "FROM":
            assert re.search(r":\S|^\$\{BASE\}", rest), "a base without a tag"
