"""Readers of sets of artificially distorted pictures, as downloaded: TID2013, KADID-10k, PIPAL."""

from __future__ import annotations

import re
from pathlib import Path

from grmp_edge.errors import DataError
from grmp_edge.score import MosScale
from grmp_edge.train.data.set_files import (
    DataSet,
    Entry,
    ImageIndex,
    Range,
    SetInfo,
    build,
    first_folder,
    number,
    read_table,
)

__all__ = ["KADID10K", "PIPAL", "TID2013", "read_kadid10k", "read_pipal", "read_tid2013"]

TID2013 = SetInfo("tid2013", "TID2013", 3000, MosScale(0.0, 9.0))
KADID10K = SetInfo("kadid10k", "KADID-10k", 10125, MosScale(1.0, 5.0))
# Elo ratings; the training part, the only one with public labels.
PIPAL = SetInfo("pipal", "PIPAL", 23200, MosScale(917.0, 1836.0), slack=1.0)

# Ponomarenko et al., Signal Processing: Image Communication 30, 2015, table 1.
_TID_TYPES = (
    "additive gaussian noise", "noise stronger in colour", "spatially correlated noise", "masked noise",
    "high frequency noise", "impulse noise", "quantization noise", "gaussian blur", "image denoising",
    "jpeg", "jpeg2000", "jpeg transmission errors", "jpeg2000 transmission errors",
    "non eccentricity pattern noise", "local block-wise distortions", "mean shift", "contrast change",
    "colour saturation", "multiplicative gaussian noise", "comfort noise",
    "lossy compression of noisy images",
    "colour quantization with dither", "chromatic aberrations", "sparse sampling and reconstruction",
)  # fmt: skip
# Lin, Hosu, Saupe, QoMEX 2019, table 1: the order of grmp_edge.train.pictures.distort.DISTORTIONS.
_KADID_TYPES = (
    "gaussian blur", "lens blur", "motion blur", "color diffusion", "color shift", "color quantization",
    "color saturation 1", "color saturation 2", "jpeg2000", "jpeg", "white noise", "color component noise",
    "impulse noise", "multiplicative noise", "denoise", "brighten", "darken", "mean shift", "jitter",
    "non-eccentricity patch", "pixelate", "quantization", "color block", "high sharpen", "contrast change",
)  # fmt: skip
_NAME = re.compile(r"^(I\d+)_(\d+)_(\d+)\.", re.IGNORECASE)


def read_tid2013(root: Path, images: Path | None = None, mos_range: Range | None = None) -> DataSet:
    """Read ``mos_with_names.txt`` ("5.51429 I01_01_1.bmp", no header) and ``distorted_images/``.

    Names mix ``I`` and ``i`` in the labels and on disk; both are matched without regard to case.

    Raises:
        DataError: a file is missing, a line has another form, or a score is outside 0..9.
    """
    labels = root / "mos_with_names.txt"
    index = ImageIndex([images or first_folder(root, ["distorted_images"], TID2013.title)])
    try:
        lines = labels.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{labels}: cannot be read ({error})", "give the folder of TID2013 as downloaded"
        ) from None
    entries = []
    for count, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where, cells = f"{labels}:{count}", line.split()
        if len(cells) != 2:
            raise DataError(f"{where}: {line!r} is not 'MOS NAME'", "check that it is the original file")
        reference, kind = _parts(cells[1], where, _TID_TYPES)
        entries.append(Entry(where, index.find(cells[1]), number(cells[0], where), reference, kind))
    return build(TID2013, labels, entries, mos_range)


def read_kadid10k(root: Path, images: Path | None = None, mos_range: Range | None = None) -> DataSet:
    """Read ``dmos.csv`` (dist_img,ref_img,dmos,var) and ``images/``.

    The column is called ``dmos``, yet it is a mean opinion score: 5 is imperceptible, 1 very annoying.

    Raises:
        DataError: a file is missing, a name has another form, or a score is outside 1..5.
    """
    labels = first_folder(root, ["dmos.csv"], KADID10K.title)
    index = ImageIndex([images or root / "images"])
    entries = []
    for line, row in read_table(labels, ["dist_img", "ref_img", "dmos"]):
        where, name = f"{labels}:{line}", row["dist_img"].strip()
        _, kind = _parts(name, where, _KADID_TYPES)
        reference = Path(row["ref_img"].strip()).stem.upper()
        entries.append(Entry(where, index.find(name), number(row["dmos"], where), reference, kind))
    return build(KADID10K, labels, entries, mos_range)


def _parts(name: str, where: str, types: tuple[str, ...]) -> tuple[str, str]:
    """``i01_02_3.bmp`` to ("I01", "02 noise stronger in colour")."""
    match = _NAME.match(name)
    if match is None or not 1 <= int(match[2]) <= len(types):
        raise DataError(
            f"{where}: {name!r} does not name reference, type (01-{len(types)}) and level, as I01_02_3",
            "check that it is the original file",
        )
    kind = int(match[2])
    return match[1].upper(), f"{kind:02d} {types[kind - 1]}"


def read_pipal(root: Path, images: Path | None = None, mos_range: Range | None = None) -> DataSet:
    """Read ``Train_Label/*.txt`` (headerless "A0001_00_00.bmp,1520.06") and ``Distortion_1..4/``.

    The middle number of a name is the kind of distortion (00 to 06).

    Raises:
        DataError: a folder or picture is missing, or a score is outside 917..1836.
    """
    folder = first_folder(root, ["Train_Label", "train_label"], PIPAL.title)
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise DataError(f"{folder}: has no label file (*.txt)", "unpack Train_Label of PIPAL")
    parts = [root / f"Distortion_{part}" for part in range(1, 5)]
    found = [part for part in parts if part.is_dir()]
    if images is None and not found:
        raise DataError(f"{root}: has no Distortion_1 to Distortion_4", "unpack the pictures of PIPAL there")
    index = ImageIndex([images] if images else found)
    entries = []
    for file in files:
        for line, row in read_table(file, ["name", "elo"], header=False):
            where, name = f"{file}:{line}", row["name"].strip()
            cells = Path(name).stem.split("_")
            if len(cells) != 3:
                raise DataError(f"{where}: {name!r} is not of the form A0001_00_00.bmp", "unpack it again")
            entries.append(
                Entry(where, index.find(name), number(row["elo"], where), cells[0].upper(), cells[1])
            )
    notes = [] if images or len(found) == 4 else [f"{root}: {len(found)} of PIPAL's 4 folders of pictures"]
    return build(PIPAL, folder, entries, mos_range, notes)
