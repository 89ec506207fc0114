"""Whole or not at all: replacing files and folders."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
from pathlib import Path

import pytest

from grmp_edge.errors import UsageError
from grmp_edge.files import (
    as_typed,
    claimed,
    read_text,
    replace_file,
    replace_folder,
    sha256_bytes,
    sha256_file,
)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_hashes(tmp_path: Path) -> None:
    data = os.urandom((1 << 20) + 17)  # more than the chunk it reads
    (tmp_path / "data").write_bytes(data)
    assert sha256_file(tmp_path / "data") == sha256_bytes(data) == hashlib.sha256(data).hexdigest()


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "scores.csv"
    for text in ("one", "two"):
        with replace_file(path) as temporary:
            assert temporary.parent == path.parent
            temporary.write_text(text)
        assert tree(tmp_path) == {"new/scores.csv": text.encode()}
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_a_failure_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("old")
    with pytest.raises(error), replace_file(path) as temporary:
        temporary.write_text("half")
        raise error
    assert tree(tmp_path) == {"scores.csv": b"old"}


def test_a_folder_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    for name in ("first", "second"):
        with replace_folder(path) as temporary:
            (temporary / "deep").mkdir()
            (temporary / "deep" / name).write_text(name)
        assert tree(tmp_path) == {f"bundle/deep/{name}": name.encode()}
    assert list(tmp_path.iterdir()) == [path]
    plain = tmp_path / "plain"
    plain.mkdir()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_folder(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "good").write_text("old")
    with pytest.raises(error), replace_folder(path) as temporary:
        (temporary / "half").write_text("half")
        raise error
    assert tree(tmp_path) == {"bundle/good": b"old"}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_the_old_folder_comes_back_when_the_second_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "good").write_text("old")
    rename = Path.replace

    def fail_on_the_new_one(self: Path, target: Path) -> Path:
        if target == path and (self / "new").exists():
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", fail_on_the_new_one)
    with pytest.raises(error), replace_folder(path) as temporary:
        (temporary / "new").write_text("new")
    assert tree(tmp_path) == {"bundle/good": b"old"}
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_without_a_file_is_given_its_name(tmp_path: Path) -> None:
    """As safetensors reports a full disk, and as Python does."""
    target = tmp_path / "weights.safetensors"
    for raised in (OSError(28, "No space left on device"), ValueError("I/O error: no space (os error 28)")):
        with pytest.raises(OSError, match="No space left") as caught, replace_file(target):
            raise raised
        assert (caught.value.errno, caught.value.filename) == (28, str(target))
    with pytest.raises(FileNotFoundError) as other, replace_folder(tmp_path / "folder"):
        (tmp_path / "not there").read_bytes()
    assert other.value.filename == str(tmp_path / "not there")


def test_an_error_names_the_target_and_not_the_file_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    with pytest.raises(IsADirectoryError) as caught, replace_file(Path("folder")) as temporary:
        temporary.touch()
    assert caught.value.filename == "folder"
    with pytest.raises(OSError, match="No space left") as full, replace_folder(tmp_path / "b") as temporary:
        raise OSError(28, "", "/the/source", None, str(temporary / "copy"))  # as shutil does
    assert full.value.filename == str(tmp_path / "b")


def test_a_path_as_it_is_typed(tmp_path: Path) -> None:
    for name in ("plain", "two words", "it's", "$HOME", "-o", "new\nline"):
        shown = subprocess.check_output(["sh", "-c", f"printf %s {as_typed(name)}"], text=True)
        assert Path(shown) == Path(name)


def test_one_process_at_a_time_writes_into_a_folder(tmp_path: Path) -> None:
    """Two trainings into one -o would mix their files: the settings of one, the weights of the other."""
    folder = tmp_path / "runs" / "a"
    with claimed(folder):
        with pytest.raises(UsageError, match="another grmp-edge writes into it"), claimed(folder):
            pass
        assert folder.is_dir()
    assert not folder.exists()  # nothing was written
    with claimed(folder):
        (folder / "x").touch()
    assert folder.is_dir()


def test_text_of_windows(tmp_path: Path) -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "cp1252"):
        (tmp_path / "a.txt").write_bytes("süß = 1\n".encode(encoding))
        assert read_text(tmp_path / "a.txt", "cp1252") == "süß = 1\n"
    with pytest.raises(UnicodeDecodeError):
        read_text(tmp_path / "a.txt")
