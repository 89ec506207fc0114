"""A stand-in for the Hugging Face Hub: as much of its HTTP as fetching and pushing files takes."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = 10_000  # bytes from which a file goes through LFS's own requests
WRITE_TOKEN = "hf_write"


@dataclass
class Repository:
    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # by hash, the files
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, changed: dict[str, bytes], branch: str = "main", message: str = "") -> str:
        files = {**self.commits.get(self.branches.get(branch, ""), {}), **changed}
        sha = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        self.messages.append(message)
        return sha

    def find(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        sha = self.branches.get(revision, revision)
        return (sha, self.commits[sha]) if sha in self.commits else None


class Hub:
    """Repositories by name, and what was asked."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.asked: list[str] = []  # "GET /path"
        self.stored: dict[str, bytes] = {}  # LFS, by SHA-256
        self.url = ""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, status: int, body: bytes | dict[str, Any] = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, {"error": code}, X_Error_Code=code, X_Error_Message=code)

    def _go(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        for pattern, method in _ROUTES:
            if match := re.fullmatch(pattern, f"{self.command} {path}"):
                method(self, body, **match.groupdict())
                return
        self._refuse(404, "NoSuchRoute")

    do_GET = do_HEAD = do_POST = do_PUT = _go  # noqa: N815

    def _repository(self, repo: str) -> Repository | None:
        found = self.hub.repositories.get(repo)
        if found is None or (found.private and self.headers.get("Authorization") != f"Bearer {WRITE_TOKEN}"):
            self._refuse(401, "RepoNotFound")
            return None
        return found

    def _may_write(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {WRITE_TOKEN}":
            return True
        self._refuse(401, "Unauthorized")
        return False

    def resolve(self, _: bytes, repo: str, revision: str, name: str) -> None:
        if (repository := self._repository(repo)) is None:
            return
        if (found := repository.find(revision)) is None:
            self._refuse(404, "RevisionNotFound")
            return
        sha, files = found
        if name not in files:
            self._answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
            return
        data = files[name]
        start = int(re.sub(r"\D", "", self.headers.get("Range", "0-").partition("-")[0]) or 0)
        self._answer(200, data[start:], ETag=f'"{hashlib.sha256(data).hexdigest()}"', X_Repo_Commit=sha)

    def revision(self, _: bytes, repo: str, revision: str = "main") -> None:
        if (repository := self._repository(repo)) is None:
            return
        if (found := repository.find(revision)) is None:
            self._refuse(404, "RevisionNotFound")
            return
        siblings = [{"rfilename": name} for name in found[1]]
        self._answer(200, {"id": repo, "sha": found[0], "siblings": siblings, "private": repository.private})

    def create(self, body: bytes) -> None:
        if not self._may_write():
            return
        asked = json.loads(body)
        repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
        url = {"url": f"{self.hub.url}/{repo}"}
        if repo in self.hub.repositories:
            self._answer(409, {"error": "exists", **url})
            return
        self.hub.repositories[repo] = repository = Repository(
            asked.get("visibility") == "private" or bool(asked.get("private"))  # by version
        )
        repository.commit({".gitattributes": b""})
        self._answer(200, url)

    def branch(self, _: bytes, repo: str, branch: str) -> None:
        repository = self._repository(repo)
        if repository is None or not self._may_write():
            return
        repository.branches[branch] = repository.branches["main"]
        self._answer(201)

    def preupload(self, body: bytes, repo: str, revision: str) -> None:
        if self._repository(repo) is None or not self._may_write():
            return
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["size"] >= LARGE else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self._answer(200, {"files": modes})

    def lfs(self, body: bytes, repo: str) -> None:
        objects = []
        for one in json.loads(body)["objects"]:
            upload = {"upload": {"href": f"{self.hub.url}/store/{one['oid']}", "header": {}}}
            objects.append({"oid": one["oid"], "size": one["size"], "actions": upload})
        self._answer(200, {"transfer": "basic", "objects": objects})

    def store(self, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.stored[oid] = body
        self._answer(200)

    def commit(self, body: bytes, repo: str, revision: str) -> None:
        repository = self._repository(repo)
        if repository is None or not self._may_write():
            return
        changed, message = {}, ""
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
            elif entry["key"] == "file":
                changed[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                changed[value["path"]] = self.hub.stored[value["oid"]]
        sha = repository.commit(changed, revision, message)
        self._answer(200, {"commitUrl": f"{self.hub.url}/{repo}/commit/{sha}", "commitOid": sha})

    def yaml(self, _: bytes) -> None:
        self._answer(200, {"errors": [], "warnings": []})


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_ROUTES = (
    (rf"(?:GET|HEAD) /{_REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", _Handler.resolve),
    (rf"GET /api/models/{_REPO}", _Handler.revision),
    (rf"GET /api/models/{_REPO}/revision/(?P<revision>[^/]+)", _Handler.revision),
    (r"POST /api/repos/create", _Handler.create),
    (r"POST /api/validate-yaml", _Handler.yaml),
    (rf"POST /api/models/{_REPO}/branch/(?P<branch>[^/]+)", _Handler.branch),
    (rf"POST /api/models/{_REPO}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    (rf"POST /api/models/{_REPO}/commit/(?P<revision>[^/]+)", _Handler.commit),
    (rf"POST /{_REPO}\.git/info/lfs/objects/batch", _Handler.lfs),
    (r"PUT /store/(?P<oid>\w+)", _Handler.store),
)


@contextlib.contextmanager
def hub() -> Iterator[Hub]:
    """One that runs on a port of its own."""
    state = Hub()
    handler = type("Handler", (_Handler,), {"hub": state})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
