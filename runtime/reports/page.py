"""The frame of all reports: one template, pictures and plots inside the file, no script, nothing fetched."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from grmp_edge import __version__
from grmp_edge.errors import MissingDependencyError, UsageError
from grmp_edge.files import replace_file
from grmp_edge.preprocess import fit_within
from grmp_edge.runtime.reports import plots

__all__ = ["check_report_path", "data_uri", "write_report"]

UInt8Array = npt.NDArray[np.uint8]

_SIZE = (320, 320)  # pixels that a picture in a report fits into: sharp on a phone, 10 to 15 KB
_QUALITY = 75
_TEMPLATES = Path(__file__).resolve().parent / "templates"


def check_report_path(path: Path) -> None:
    """Reject a report that could not be written, before the work that it is about.

    Raises:
        UsageError: the path is a folder, or does not end in .html.
        MissingDependencyError: Jinja2 is not installed.
    """
    if path.is_dir() or path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{path}: a report is one HTML file", "give --report a name such as report.html")
    try:
        import jinja2  # noqa: F401
    except ImportError:
        raise MissingDependencyError("jinja2", "cpu", "a report") from None


def data_uri(image: UInt8Array) -> str:
    """A JPEG of a picture, uint8 (H, W, 3) BGR, as the address of an ``img``."""
    done, data = cv2.imencode(".jpg", fit_within(image, *_SIZE), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    if not done:
        return ""
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii")


def write_report(path: Path, template: str, context: Mapping[str, Any]) -> None:
    """Fill a template of this folder and write it, whole or not at all.

    Text is escaped by the template engine, so that a file's name cannot be markup.

    Raises:
        OSError: the file cannot be written.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        histogram=plots.histogram, timeline=plots.timeline, scatter=plots.scatter, data_uri=data_uri
    )
    made = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    page = environment.get_template(template).render(version=__version__, made=made, **context)
    with replace_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
