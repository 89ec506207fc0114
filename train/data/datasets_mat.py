"""MATLAB files: version 5 through scipy, version 7.3 (HDF5) through h5py; nothing is unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grmp_edge.errors import DataError, MissingDependencyError
from grmp_edge.score import MosScale
from grmp_edge.train.data.set_files import DataSet, Range

__all__ = ["load_mat", "read_reference_mat"]


def load_mat(path: Path, *names: str) -> Any:
    """Read variables of a .mat file of either version: an array, or a tuple of them for several names.

    Version 7.3 stores arrays in MATLAB's order of axes, so h5py shows them reversed; they are turned back.

    Raises:
        DataError: the file is missing or damaged, or lacks a variable.
        MissingDependencyError: scipy or h5py is not installed.
    """
    try:
        head = path.open("rb").read(520)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})", "check the path") from None
    try:
        # A 7.3 file is HDF5, whose signature comes first or after MATLAB's header of 512 bytes.
        found = (_read_hdf5 if b"\x89HDF\r\n" in head else _read_v5)(path, names)
    except (DataError, MissingDependencyError):
        raise
    except Exception as error:  # scipy and h5py raise many kinds for a damaged file
        raise DataError(f"{path}: cannot be read as a .mat file ({error})", "copy it again") from None
    return found[0] if len(names) == 1 else found


def _read_v5(path: Path, names: tuple[str, ...]) -> tuple[Any, ...]:
    try:
        import scipy.io
    except ImportError:
        raise MissingDependencyError("scipy", "data", f"reading {path.name}") from None
    content = scipy.io.loadmat(str(path), variable_names=list(names))
    content |= {name: None for name, _, _ in scipy.io.whosmat(str(path)) if name not in content}
    return tuple(_found(path, content, name) for name in names)


def _read_hdf5(path: Path, names: tuple[str, ...]) -> tuple[Any, ...]:
    try:
        import h5py
    except ImportError:
        raise MissingDependencyError("h5py", "data", f"reading {path.name}") from None
    with h5py.File(path, "r") as file:
        arrays = []
        for name in names:
            stored = _found(path, file, name)
            if not isinstance(stored, h5py.Dataset) or stored.dtype.hasobject:
                raise DataError(f"{path}: {name!r} is no plain array", "save it as numbers")
            arrays.append(np.asarray(stored).T)
    return tuple(arrays)


def _found(path: Path, content: Any, name: str) -> Any:
    if name not in content:
        known = ", ".join(sorted(key for key in content if not key.startswith(("__", "#")))) or "nothing"
        raise DataError(f"{path}: has no variable {name!r} (it has {known})", "give the right file")
    return content[name]


def read_reference_mat(path: Path, images: Path | None = None, mos_range: Range | None = None) -> DataSet:
    """Read a .mat of the GRMP-IQA reference: X, Y (training) and Xtest, Ytest, one split of a set.

    X and Xtest are (n, 3, 244, 244) uint8 RGB; Y and Ytest have n scores. The pictures stay in memory
    (178,608 bytes each); ``parts`` says which were X ("training") and which Xtest ("test").

    Raises:
        DataError: a variable is missing or has another shape or type, or a score is not finite.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file", "give a .mat with X, Y, Xtest and Ytest")
    x, y, x_test, y_test = load_mat(path, "X", "Y", "Xtest", "Ytest")
    pixels, mos, parts = [], [], []
    for name, stored, scores, part in (("X", x, y, "training"), ("Xtest", x_test, y_test, "test")):
        pixels.append(_pictures(path, name, np.asarray(stored)))
        values = np.asarray(scores, dtype=np.float64).ravel()
        if len(values) != len(pixels[-1]):
            raise DataError(
                f"{path}: {len(values)} scores for the {len(pixels[-1])} pictures of {name}",
                "make the file again",
            )
        if not np.isfinite(values).all():
            raise DataError(f"{path}: a score of {name} is not a number", "make the file again")
        mos.append(values)
        parts += [part] * len(values)
    both = np.concatenate(mos)
    low, high = mos_range or (-np.inf, np.inf)
    if both.min() < low or both.max() > high:
        raise DataError(
            f"{path}: scores of {both.min():g}..{both.max():g} are outside {low:g}..{high:g}",
            "correct --mos-range",
        )
    return DataSet(
        name=f"mat:{path}",
        paths=tuple(path / f"{part}-{index}" for index, part in enumerate(parts)),
        mos=both,
        scale=MosScale(*mos_range) if mos_range else None,
        parts=tuple(parts),
        pixels=np.concatenate(pixels),
    )


def _pictures(path: Path, name: str, stored: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    # A 7.3 file written from Python, not by MATLAB, has the axes in their order, so load_mat reversed them.
    if stored.ndim == 4 and stored.shape[1] != 3 and stored.shape[2] == 3:
        stored = stored.T
    if stored.ndim != 4 or stored.dtype != np.uint8 or stored.shape[1] != 3:
        raise DataError(
            f"{path}: {name} is {stored.dtype} {stored.shape}, not uint8 (n, 3, height, width)",
            "make the file again as the reference's readme says",
        )
    return np.ascontiguousarray(stored.transpose(0, 2, 3, 1))
