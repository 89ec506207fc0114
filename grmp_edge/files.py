"""Files written whole or not at all: to a temporary name beside the target, then renamed.

Also hashes, CSV rows, and a base class for what a ``with`` block closes.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import os
import re
import shlex
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

from grmp_edge.errors import UsageError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "Closing",
    "as_typed",
    "claimed",
    "csv_plain",
    "csv_row",
    "csv_text",
    "folder_beside",
    "hold",
    "is_text",
    "naming",
    "read_text",
    "replace_file",
    "replace_folder",
    "sha256_bytes",
    "sha256_file",
    "umask",
    "user_folder",
]

# XDG's variable and what it means where it is not set.
_XDG = {"cache": ("XDG_CACHE_HOME", ".cache"), "state": ("XDG_STATE_HOME", ".local/state")}


class Closing(ABC):
    """Base class of what a ``with`` block closes at its end."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Release what it holds."""


def user_folder(kind: Literal["cache", "state"]) -> Path:
    """The user's own folder of this program, by the XDG specification; it may not exist yet.

    ``cache`` is for what can be made again, ``state`` for what is lost if it is removed.
    """
    variable, below_home = _XDG[kind]
    base = os.environ.get(variable, "")
    # By the specification, a relative path is to be ignored.
    return (Path(base) if base.startswith("/") else Path.home() / below_home) / "grmp-edge"


def as_typed(path: Path | str) -> str:
    """A path as it is typed in a shell: quoted where it must be, and never like an option."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def read_text(path: Path, other: str = "utf-8") -> str:
    """A file's text: UTF-8, or UTF-16 with a byte order mark, as Windows programs write it.

    Args:
        path: the file.
        other: the encoding where it is neither.

    Raises:
        OSError: it cannot be read.
        UnicodeDecodeError: it is none of these.
    """
    data = path.read_bytes()
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode(other)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_bytes(data: bytes) -> str:
    """SHA-256 of bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


@contextmanager
def naming(path: Path, within: Path | None = None) -> Iterator[None]:
    """Name ``path`` in an OSError without a file, such as that of a full disk, or with one below ``within``.

    Errors of libraries written in Rust, which only tell the number in their text, become OSErrors.
    """
    try:
        yield
    except OSError as error:
        # Of a copy, the second is the file that is written.
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        own = not names or (within is not None and any(name.startswith(str(within)) for name in names))
        if own and error.errno is not None:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from None
        raise
    except Exception as error:
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
        raise


@contextmanager
def replace_file(path: Path, private: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; moved over it on success, removed on any exception.

    ``private``: only the owner may read it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path, path.absolute().with_name(f".{path.name}.")):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            if not private:
                _readable(temporary, 0o666)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; it takes the place of ``path`` on success only.

    A folder cannot be renamed over a non-empty one, so the old one is renamed first, and back if the second
    rename fails.
    """
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path, path.with_name(f".{path.name}.")):
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        aside = temporary.with_name(temporary.name + ".old")
        try:
            yield temporary
            _readable(temporary, 0o777)
            try:
                if path.exists():
                    path.replace(aside)
                temporary.replace(path)
            except BaseException:  # also Ctrl-C between the two renames
                if aside.exists() and not path.exists():
                    aside.replace(path)
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """A folder beside ``path``, removed at the end: what is finished in it is moved, not copied.

    An error of the system in it, such as a full disk, names ``path``.
    """
    beside = path.absolute().with_name(f".{path.name}.")
    beside.parent.mkdir(parents=True, exist_ok=True)
    with naming(path, beside), tempfile.TemporaryDirectory(prefix=beside.name, dir=beside.parent) as folder:
        yield Path(folder)


def _readable(path: Path, mode: int) -> None:
    # tempfile creates private files; give them the permissions of an ordinary new one.
    path.chmod(mode & ~umask())


def umask() -> int:
    """The permissions that new files of this process lack."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def hold(file: int | IO[bytes]) -> bool:
    """Lock an open file or folder until it is closed; False: another process holds it.

    On a file system without locks nothing is held.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make a folder, and hold it while the block runs: one process at a time writes into it.

    A folder that was made and stays empty is removed again.

    Raises:
        UsageError: another process holds it.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not hold(handle):
            raise UsageError(f"{folder}: another grmp-edge writes into it", "wait for it, or give another -o")
        yield
    finally:
        if made:
            with suppress(OSError):
                folder.rmdir()
        os.close(handle)


# What a spreadsheet takes for a formula, and what a terminal obeys.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_ESCAPED = re.compile(r"\\x(0[0-8b-f]|1[0-9a-f]|7f|8[0-9a-f]|9[0-9a-f])")


def is_text(text: str) -> bool:
    """Whether it can be written as UTF-8: no file name of other bytes, no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def csv_text(text: str) -> str:
    """A text that is only ever a text, in a spreadsheet and on a terminal; done twice, it is the same.

    One that begins like a formula gets an apostrophe before it, as spreadsheets write it themselves; control
    characters become ``\\x1b`` and so on.
    """
    quoted = f"'{text}" if text.startswith(_FORMULA) else text
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", quoted)


def csv_plain(cell: str) -> str:
    """The text that :func:`csv_text` made a cell of; a cell that it did not change is returned as it is."""
    text = cell[1:] if cell.startswith("'") and cell[1:].startswith(_FORMULA) else cell
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), text)


def csv_row(cells: Iterable[object], errors: str = "surrogateescape") -> bytes:
    """One row of a CSV, with its line break; None is an empty cell, and a text is as :func:`csv_text` has it.

    Args:
        cells: the values.
        errors: for text that is not UTF-8; by default a file name keeps the bytes it has on disk.
    """
    text = io.StringIO(newline="")
    safe = [csv_text(cell) if isinstance(cell, str) else cell for cell in cells]
    csv.writer(text, lineterminator="\n").writerow(safe)
    return text.getvalue().encode("utf-8", errors)
