"""NVIDIA's own cuda.h, from the package nvidia-cuda-runtime: prototypes as ctypes, and constants."""

from __future__ import annotations

import re
from ctypes import POINTER, c_char, c_char_p, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from functools import cache
from importlib.metadata import files
from pathlib import Path
from typing import Any

_PACKAGE = "nvidia-cuda-runtime"
_TYPES: dict[str, Any] = {
    "int": c_int,
    "unsigned int": c_uint,
    "size_t": c_size_t,
    "unsigned long long": c_ulonglong,
    "uint64_t": c_ulonglong,
    "char": c_char,
}
_POINTERS = {"char *": POINTER(c_char), "const char **": POINTER(c_char_p)}


@cache
def _header() -> str:
    (path,) = (Path(str(file.locate())) for file in files(_PACKAGE) or () if file.name == "cuda.h")
    text = re.sub(r"/\*.*?\*/", " ", path.read_text(encoding="utf-8", errors="replace"), flags=re.DOTALL)
    # Behind this are the declarations of older versions, which the library itself is built with.
    return text[: text.rindex("#if defined(__CUDA_API_VERSION_INTERNAL)")]


@cache
def prototype(name: str) -> tuple[Any, ...]:
    """The types of a function's arguments. ``name`` is that of the library, such as ``cuMemAlloc_v2``."""
    macro = re.compile(rf"#\s*define\s+(cu\w+)\s+(?:__CUDA_API_PTSZ\()?{name}\)?\s")
    names = {name, *macro.findall(_header())}
    pattern = rf"^CUresult CUDAAPI (?:{'|'.join(sorted(names))})\(([^)]*)\);"
    (arguments,) = set(re.findall(pattern, _header(), re.MULTILINE))
    return tuple(_argument(" ".join(each.split())) for each in arguments.split(","))


def constant(name: str) -> int:
    """The value of an enumerator."""
    match = re.search(rf"\b{name}\s*=\s*(0x[0-9A-Fa-f]+|\d+)", _header())
    assert match, name
    return int(match[1], 0)


def _argument(text: str) -> Any:
    """A parameter such as ``const void *srcHost``."""
    match = re.fullmatch(r"(.*?[ *])\w+", text)
    assert match, text
    declared = match[1].strip()
    if declared in _POINTERS:
        return _POINTERS[declared]
    if declared in ("void *", "const void *"):
        return c_void_p
    if declared.endswith("*"):
        return POINTER(_resolve(declared[:-1].strip()))
    return _resolve(declared)


def _resolve(declared: str) -> Any:
    """A C type with the header's typedefs followed; enumerations are int, pointers to structures void *."""
    if declared in ("void *", "void"):
        return c_void_p
    if declared in _TYPES:
        return _TYPES[declared]
    text = _header()
    if re.search(rf"^typedef struct \w+ \*{declared};", text, re.MULTILINE):
        return c_void_p
    if re.search(rf"^\}} {declared};", text, re.MULTILINE):
        return c_int
    # Windows has its own name of one; of a type that differs between 64 and 32 bits the first is for 64.
    aliases = re.findall(rf"^typedef ([\w ]+) {declared};", text, re.MULTILINE)
    assert aliases, declared
    return next(_resolve(alias) for alias in aliases if alias != "unsigned __int64")
