"""The line that adds packages to this very copy, however it came: clone, wheel, git, pip, pipx, uv, uvx."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

__all__ = ["install_line", "pip_line", "where_from"]

_NAME = "grmp-edge"
_CHECKOUT = Path(__file__).resolve().parent.parent


def install_line(*extras: str) -> str:
    """The command that installs this copy again, with ``extras``; what is there already stays.

    It can be pasted into a POSIX shell.
    """
    source, requirement = _requirement(extras)
    if _is_uvx():  # its environment is a cache: named anew for each run
        engines = {"gpu": "onnxruntime-gpu", "cpu": "onnxruntime"}
        named = engines.keys() & set(extras)  # never both
        there = [extra for extra, package in engines.items() if not named and _installed(package)]
        return f"uvx --from {shlex.quote(_requirement((*there, *extras))[1])} {_NAME}"
    return pip_line("install", *(["-e"] if source == "clone" else []), requirement)


def pip_line(command: str, *words: str) -> str:
    """A pip command for this interpreter's environment: ``pip_line("uninstall", "onnxruntime")``."""
    python, rest = sys.executable, [shlex.quote(word) for word in words]
    if (Path(sys.prefix) / "pipx_metadata.json").is_file():
        start = ["pipx", "runpip", Path(sys.prefix).name, command]
    elif find_spec("pip") is not None:
        here = Path(shutil.which("pip") or "").parent == Path(python).parent
        start = ["pip", command] if here else [python, "-m", "pip", command]
    elif _made_by_uv():
        start = ["uv", "pip", command, "--python", python]
    else:
        start = ["pip", "--python", python, command]
    return " ".join([*map(shlex.quote, start), *rest])


def where_from() -> str:
    """How this copy was installed, in words."""
    source, requirement = _requirement(())
    return {
        "clone": f"from the clone {requirement}",
        "index": "from a package index",
    }.get(source, f"from {requirement.partition(' @ ')[2]}")


def _requirement(extras: tuple[str, ...]) -> tuple[str, str]:
    """("clone", "index" or "url"; what pip calls this copy with these extras)."""
    listed = f"[{','.join(extras)}]" if extras else ""
    if (_CHECKOUT / "pyproject.toml").is_file():
        return "clone", f"{_CHECKOUT}{listed}"
    record = _direct_url()
    url = str(record.get("url", ""))
    parts = urlsplit(url)
    if not url or (parts.scheme == "file" and not Path(unquote(parts.path)).exists()):
        # pip adds extras to an installed version without asking an index for that version.
        return "index", f"{_NAME}{listed}"
    if "vcs_info" in record:
        url = f"{record['vcs_info']['vcs']}+{url}@{record['vcs_info']['commit_id']}"
    return (
        "url",
        f"{_NAME}{listed} @ {url.replace(' ', '%20')}",
    )  # pip records the address of a clone unescaped


def _direct_url() -> dict[str, Any]:
    """What the installer recorded (PEP 610); empty: it came from an index, or nothing is recorded."""
    try:
        record: dict[str, Any] = json.loads(metadata.distribution(_NAME).read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, json.JSONDecodeError):
        return {}
    return record


def _installed(package: str) -> bool:
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


def _made_by_uv() -> bool:
    try:
        return "\nuv = " in (Path(sys.prefix) / "pyvenv.cfg").read_text(encoding="utf-8")
    except OSError:
        return False


def _is_uvx() -> bool:
    """Whether the environment lies in uv's cache, which is marked as one."""
    return _made_by_uv() and any((folder / "CACHEDIR.TAG").is_file() for folder in Path(sys.prefix).parents)
