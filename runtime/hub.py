"""Bundles on the Hugging Face Hub, or on a server that speaks its protocol (``HF_ENDPOINT``)."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from grmp_edge.bundle import MANIFEST, Bundle
from grmp_edge.errors import BundleError, GrmpError, MissingDependencyError, first_line
from grmp_edge.redact import scrub

__all__ = ["fetch_bundle", "push_bundle"]

_CARD = "README.md"
_TEXT = """\
---
library_name: grmp-edge
tags:
- image-quality-assessment
- onnx
---

# {name}

Scores a picture's quality without a reference, 0 (bad) to 1 (good). Bundle `{id}` of
grmp-edge, on the backbone {backbone}; graphs: {graphs}.

```python
from grmp_edge import Scorer

with Scorer.from_pretrained("{repo}") as scorer:
    print(scorer.score("photo.jpg").value)
```
"""


def fetch_bundle(
    repo_id: str,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Bundle:
    """Fetch a bundle into the hub's cache and check each file; see :meth:`Scorer.from_pretrained`.

    Nothing is fetched that the manifest does not list, and all of it is of one commit.
    """
    if Path(repo_id).is_dir():
        return Bundle.load(repo_id)
    hub = _load()
    options: dict[str, Any] = {
        "repo_id": repo_id,
        "token": token,
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
        "force_download": force_download,
        "library_name": "grmp-edge",
    }
    with _one_line(repo_id, revision):
        manifest = Path(hub.hf_hub_download(filename=MANIFEST, revision=revision, **options))
        folder = manifest.parent  # snapshots/COMMIT
        for name in Bundle.read_manifest(folder).file_names[1:]:
            hub.hf_hub_download(filename=name, revision=folder.name, **options)
    try:
        return Bundle.load(folder)
    except BundleError as error:
        raise BundleError(
            error.message, "fetch it again with force_download=True; or it is damaged on the hub"
        ) from None


def push_bundle(
    bundle: Bundle,
    repo_id: str,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
) -> str:
    """Push a bundle's files, checked first, as one commit; see :meth:`Scorer.push_to_hub`."""
    bundle = Bundle.load(bundle.path)
    hub = _load()
    with _one_line(repo_id, revision):
        api = hub.HfApi(token=token, library_name="grmp-edge")
        repo = str(api.create_repo(repo_id, private=private, exist_ok=True).repo_id)
        if revision is not None and not create_pr:
            api.create_branch(repo, branch=revision, exist_ok=True)
        files: dict[str, Path | bytes] = {name: bundle.path / name for name in bundle.file_names}
        if not api.file_exists(repo, _CARD, revision=revision):
            files[_CARD] = _card(bundle, repo).encode()
        commit = api.create_commit(
            repo,
            [hub.CommitOperationAdd(name, content) for name, content in files.items()],
            commit_message=commit_message or f"Bundle {bundle.id}",
            revision=revision,
            create_pr=create_pr,
        )
    return str(commit.pr_url or commit.commit_url)


def _card(bundle: Bundle, repo: str) -> str:
    return _TEXT.format(
        name=repo.rpartition("/")[2],
        repo=repo,
        id=bundle.id,
        backbone=bundle.backbone.get("name", "unknown"),
        graphs=", ".join(bundle.graphs),
    )


def _load() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ModuleNotFoundError as error:
        if error.name != "huggingface_hub":
            raise
        raise MissingDependencyError("huggingface_hub", "hub", "the Hugging Face Hub") from None


@contextmanager
def _one_line(repo_id: str, revision: str | None) -> Iterator[None]:
    """Turn the hub's errors into one line that begins with the repository's name."""
    from huggingface_hub import errors

    name = f"{repo_id}@{revision}" if revision else repo_id
    settings = "the network, HF_ENDPOINT and HF_HUB_OFFLINE"
    elsewhere = "or fetch it where there is a network: hf download REPOSITORY --local-dir FOLDER"
    try:
        yield
    except GrmpError:
        raise
    except errors.RevisionNotFoundError:
        raise BundleError(f"{name}: the repository has no such revision", "check its branches") from None
    except errors.RepositoryNotFoundError:
        raise BundleError(
            f"{name}: no such repository on the hub, or it is private or gated",
            "check the name, or sign in with: hf auth login",
        ) from None
    except errors.LocalEntryNotFoundError:
        raise BundleError(
            f"{name}: not in the cache, and the hub cannot be reached",
            f"check {settings}; {elsewhere}",
        ) from None
    except errors.EntryNotFoundError as error:
        raise BundleError(
            f"{name}: no bundle, or not all of it ({scrub(first_line(error))})",
            "push one with Scorer.push_to_hub",
        ) from None
    except errors.HfHubHTTPError as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        remedy = "sign in with: hf auth login" if status in (401, 403) else "try again later"
        raise BundleError(f"{name}: the hub says {scrub(first_line(error))}", remedy) from None
    except errors.HFValidationError as error:
        raise BundleError(
            f"{name}: not a repository's name ({first_line(error)})", "use organisation/name"
        ) from None
    except Exception as error:  # connections fail with the errors of an HTTP library that differs by version
        raise BundleError(
            f"{name}: the hub cannot be reached ({scrub(first_line(error))})",
            f"check {settings}",
        ) from None
