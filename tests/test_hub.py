"""Bundles from and to the Hugging Face Hub, over HTTP to a stand-in of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers_hub import WRITE_TOKEN, Hub, Repository, hub

from grmp_edge.bundle import manifest_digest
from grmp_edge.default_bundle import DEFAULT_BUNDLE

FILES = {path.name: path.read_bytes() for path in DEFAULT_BUNDLE.iterdir()}

# Runs calls of a scorer, one a line: its bundle's id, its precision and whether torch was loaded, the address
# of a commit, or the error.
SCRIPT = """
import json, sys
from grmp_edge import Scorer
from grmp_edge.errors import GrmpError
for line in sys.stdin:
    name, arguments = json.loads(line)
    try:
        if name == "push":
            with Scorer.open() as scorer:
                print(json.dumps({"url": scorer.push_to_hub(**arguments)}))
            continue
        with Scorer.from_pretrained(**arguments) as scorer:
            answer = {"id": scorer.bundle.id, "folder": str(scorer.bundle.path)}
            print(json.dumps({**answer, "precision": scorer.precision, "torch": "torch" in sys.modules}))
    except GrmpError as error:
        print(json.dumps({"error": str(error)}))
"""


@pytest.fixture
def server() -> Iterator[Hub]:
    with hub() as state:
        yield state


def calls(tmp_path: Path, url: str, *asked: tuple[str, dict[str, Any]], **more: str) -> list[dict[str, Any]]:
    """What each call gave."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",  # its protocol is not HTTP that can be stood in for
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        **more,
    }
    environment.pop("HF_TOKEN", None)
    lines = "\n".join(json.dumps(call) for call in asked)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=lines,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_pushed_bundle_comes_back_and_serves_without_a_network(server: Hub, tmp_path: Path) -> None:
    push = {"repo_id": "team/yard", "private": True, "token": WRITE_TOKEN}
    fetch = {"repo_id": "team/yard", "token": WRITE_TOKEN}
    pushed, again, branch, fetched = calls(
        tmp_path,
        server.url,
        ("push", push),
        ("push", {**push, "commit_message": "once more"}),
        ("push", {**push, "revision": "next"}),
        ("get", {**fetch, "precision": "fp16"}),
    )
    repository = server.repositories["team/yard"]
    assert repository.private and repository.messages[1:3] == ["Bundle 060906a35926", "once more"]
    card = repository.commits[repository.branches["main"]].pop("README.md").decode()
    assert 'Scorer.from_pretrained("team/yard")' in card
    for name in ("main", "next"):
        files = repository.commits[repository.branches[name]]
        assert {key: files[key] for key in FILES} == FILES
    assert repository.branches["main"] in again["url"] and repository.branches["next"] in branch["url"]
    assert pushed["url"].startswith(server.url)
    assert fetched["id"] == "060906a35926" and fetched["precision"] == "fp16" and not fetched["torch"]
    assert {path.name: path.read_bytes() for path in Path(fetched["folder"]).iterdir()} == FILES

    # From the cache: a moved branch is asked for, and nothing but what changed is fetched.
    server.asked.clear()
    repository.commit({"notes.txt": b"x" * 20})
    (moved,) = calls(tmp_path, server.url, ("get", fetch))
    assert moved["folder"] != fetched["folder"]
    assert not [line for line in server.asked if line.startswith("GET") and "/resolve/" in line]
    assert not [line for line in server.asked if "notes.txt" in line]
    offline, pinned, other, unsent, folder = calls(
        tmp_path,
        "http://127.0.0.1:9",
        ("get", fetch),
        ("get", {**fetch, "revision": Path(fetched["folder"]).name}),
        ("get", {"repo_id": "team/other"}),
        ("push", push),
        ("get", {"repo_id": str(DEFAULT_BUNDLE)}),
        HF_HUB_OFFLINE="1",
    )
    assert offline["folder"] == moved["folder"] and pinned["folder"] == fetched["folder"]
    assert "team/other: not in the cache, and the hub cannot be reached; check" in other["error"]
    assert "team/yard: the hub cannot be reached" in unsent["error"]
    assert folder["folder"] == str(DEFAULT_BUNDLE)


def test_what_is_damaged_or_hostile_is_refused_in_one_line(server: Hub, tmp_path: Path) -> None:
    def repository(name: str, **changed: bytes) -> None:
        server.repositories[f"team/{name}"] = Repository()
        server.repositories[f"team/{name}"].commit({**FILES, **changed})

    graph = bytearray(FILES["model.onnx"])
    graph[len(graph) // 2] ^= 1
    repository("bent", **{"model.onnx": bytes(graph)})
    manifest = json.loads(FILES["bundle.json"])
    manifest["graphs"]["fp32"]["file"] = "../../../escaped.onnx"
    manifest["manifest_sha256"] = manifest_digest(manifest)
    repository("hostile", **{"bundle.json": json.dumps(manifest).encode()})
    server.repositories["team/empty"] = Repository()
    server.repositories["team/empty"].commit({"README.md": b"# nothing"})

    refused = calls(
        tmp_path,
        server.url,
        *[("get", {"repo_id": f"team/{name}"}) for name in ("bent", "hostile", "empty", "missing")],
        ("get", {"repo_id": "team/bent", "revision": "v9"}),
        ("get", {"repo_id": "no/such/name"}),
        ("push", {"repo_id": "team/bent", "token": "hf_reader"}),
    )
    parts = [
        "model.onnx: damaged (it does not match the hash in bundle.json); fetch it again",
        "leaves the bundle",
        "team/empty: no bundle",
        "team/missing: no such repository on the hub, or it is private or gated; check the name",
        "team/bent@v9: the repository has no such revision",
        "no/such/name: not a repository's name",
        "team/bent: the hub says",
    ]
    for one, part in zip(refused, parts, strict=True):
        assert part in one["error"] and "\n" not in one["error"], one
    assert not any("escaped" in line for line in server.asked)
    assert server.repositories["team/bent"].messages == [""]
    # A copy that the disk has damaged is fetched again when asked for.
    repository("good")
    (good,) = calls(tmp_path, server.url, ("get", {"repo_id": "team/good"}))
    (Path(good["folder"]) / "model.onnx").write_bytes(bytes(graph))
    bent, mended = calls(
        tmp_path,
        server.url,
        ("get", {"repo_id": "team/good"}),
        ("get", {"repo_id": "team/good", "force_download": True}),
    )
    assert "fetch it again with force_download=True" in bent["error"] and mended["id"] == good["id"]
