"""The cache of built engines, outside the bundle: an engine belongs to one GPU, one TensorRT and one graph.

``NAME.engine`` is plain bytes that trtexec loads; the sidecar ``NAME.json`` says what it was built for.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from grmp_edge.errors import UsageError
from grmp_edge.files import replace_file, sha256_bytes, sha256_file, user_folder

__all__ = ["EngineCache", "EngineKey", "Lookup", "Profile"]


@dataclass(frozen=True)
class Profile:
    """The batch sizes an engine takes. It is tuned for ``best``."""

    smallest: int = 1  # one camera frame
    best: int = 8  # the batch size for folders of pictures
    largest: int = 8  # memory is reserved for it, so no larger than is used

    def __post_init__(self) -> None:
        if not 1 <= self.smallest <= self.best <= self.largest:
            raise UsageError(
                f"the batch sizes {self.smallest},{self.best},{self.largest} are not in order",
                "write MIN,OPT,MAX, for instance --batch 1,8,8",
            )


@dataclass(frozen=True)
class EngineKey:
    """Everything an engine depends on; where one field differs it is another engine."""

    onnx_sha256: str
    tensorrt: str  # its version: engines are not portable between versions
    gpu: str
    compute_capability: str
    precision: str
    input: str
    size: int  # pixels a side
    profile: Profile
    workspace_mib: int
    flags: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        data: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return data

    @property
    def name(self) -> str:
        """The file name without its suffix: a readable part, then 16 hex digits of a hash of all fields."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        gpu = re.sub(r"[^A-Za-z0-9]+", "-", self.gpu).strip("-").lower()
        return f"{self.onnx_sha256[:8]}-{self.precision}-{gpu}-{sha256_bytes(text.encode())[:16]}"

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """How a sidecar's key differs, a phrase for each field."""
        own = self.to_json()
        return [
            f"{name}: {other.get(name)!r} there, {own[name]!r} here"
            for name in own
            if other.get(name) != own[name]
        ]


@dataclass(frozen=True)
class Lookup:
    """The result of looking for a key in the cache."""

    engine: Path | None
    reasons: list[str] = field(default_factory=list)  # why the most similar engine cannot be used


class EngineCache:
    """A folder of engines."""

    def __init__(self, folder: Path | None = None) -> None:
        root = folder or user_folder("cache")
        self.folder = root / "engines"
        self.timings = root / "timings"

    def engine_path(self, key: EngineKey) -> Path:
        """The path of a key's engine, whether it exists or not."""
        return self.folder / f"{key.name}.engine"

    def timing_path(self, key: EngineKey) -> Path:
        """The path of the timing cache, shared by all engines of one GPU and TensorRT version."""
        text = f"{key.tensorrt}-{key.gpu}-{key.compute_capability}"
        return self.timings / f"{re.sub(r'[^A-Za-z0-9.]+', '-', text).lower()}.timing"

    def lookup(self, key: EngineKey) -> Lookup:
        """The engine for a key, its hash checked; or why the most similar one is refused."""
        engine = self.engine_path(key)
        sidecar = _read(engine.with_suffix(".json"))
        if (stranger := _not_ours(self.folder, engine)) is not None:
            return Lookup(None, [stranger])
        if sidecar is not None and engine.is_file():
            differing = key.differences(sidecar.get("key", {}))
            if not differing and sha256_file(engine) == sidecar.get("engine_sha256"):
                return Lookup(engine)
            return Lookup(None, differing or [f"{engine}: damaged (it does not match its sidecar)"])
        others = []
        for path in sorted(self.folder.glob("*.json")) if self.folder.is_dir() else []:
            other = (_read(path) or {}).get("key")
            if isinstance(other, dict):
                others.append(key.differences(other))
        if not others:
            return Lookup(None, ["no engine was built here before"])
        return Lookup(None, min(others, key=len))

    def latest(self, key: EngineKey) -> Path | None:
        """The newest undamaged engine that differs from the key at most in batch sizes and workspace.

        Whoever built it for other sizes than the default ones meant it to be used.
        """
        chosen: tuple[float, Path] | None = None
        for path in self.folder.glob("*.json") if self.folder.is_dir() else ():
            sidecar, engine = _read(path) or {}, path.with_suffix(".engine")
            other = sidecar.get("key")
            if not isinstance(other, dict) or not engine.is_file() or _not_ours(self.folder, engine):
                continue
            free = {name: other.get(name) for name in ("profile", "workspace_mib")}
            if {**key.to_json(), **free} == other and sha256_file(engine) == sidecar.get("engine_sha256"):
                chosen = max(chosen or (0.0, engine), (engine.stat().st_mtime, engine))
        return chosen[1] if chosen else None

    def store(self, key: EngineKey, engine: bytes, details: Mapping[str, Any]) -> Path:
        """Write an engine, then its sidecar with the key and ``details`` (inspection, build time)."""
        path = self.engine_path(key)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replace_file(path, private=True) as temporary:
            temporary.write_bytes(engine)
        data = {"key": key.to_json(), "engine_sha256": sha256_bytes(engine), **details}
        with replace_file(path.with_suffix(".json"), private=True) as temporary:
            temporary.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        return path


def _not_ours(*paths: Path) -> str | None:
    """Why a file or folder is not to be trusted: deserialising an engine runs what it contains.

    Its hash is no proof, since whoever can replace an engine can replace the sidecar beside it.
    """
    for path in paths:
        if path.exists():
            found = path.stat()
            if found.st_uid not in (os.geteuid(), 0):
                return f"{path}: belongs to another user"
            if found.st_mode & 0o002:
                return f"{path}: anybody may write to it; run: chmod o-w {path}"
    return None


def _read(path: Path) -> dict[str, Any] | None:
    """A sidecar, or None if it is missing or damaged, in which case the engine is built again."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None
