"""Build the source distribution and the wheel, the same bytes from the same commit: ``dist.py [FOLDER]``."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(folder: Path) -> None:
    """Build from the commit at HEAD, not from what lies around, and write both files into ``folder``."""
    commit_time = _run("git", "log", "-1", "--format=%ct").strip()
    os.environ["SOURCE_DATE_EPOCH"] = commit_time  # wheels take their times from it
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as clone:
        _run("git", "clone", "--quiet", "--no-hardlinks", str(ROOT), clone)
        made = _run(sys.executable, "-c", _BUILD, str(folder.resolve()), cwd=clone).splitlines()[-2:]
    _repack(folder / made[0], int(commit_time))
    for name in made:
        print(folder / name)


_BUILD = """
import sys
from setuptools import build_meta
folder = sys.argv[1]  # setuptools changes it
sdist = build_meta.build_sdist(folder)
wheel = build_meta.build_wheel(folder)
print(sdist, wheel, sep="\\n")
"""


def _run(*command: str, cwd: str | Path = ROOT) -> str:
    return subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.PIPE, text=True).stdout


def _repack(sdist: Path, seconds: int) -> None:
    """Setuptools writes the time of building, the builder's name and umask into a source distribution."""
    with tarfile.open(sdist) as archive:
        files = [(member, archive.extractfile(member)) for member in archive.getmembers()]
        packed = sdist.with_suffix(".new")
        with (
            packed.open("wb") as raw,
            gzip.GzipFile("", "wb", 9, raw, mtime=seconds) as zipped,
            tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as plain,
        ):
            for member, content in sorted(files, key=lambda pair: pair[0].name):
                member.mtime, member.uid, member.gid, member.uname, member.gname = seconds, 0, 0, "", ""
                member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
                member.pax_headers = {}
                plain.addfile(member, content)
    packed.replace(sdist)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "dist"))
