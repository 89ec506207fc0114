"""Readers of published sets as downloaded: artificially distorted, authentic and generated pictures."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

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
    load_mat,
    read_table,
    read_xlsx,
    xlsx_columns,
)
from grmp_edge.train.data.tables import number

__all__ = [
    "AGIQA3K", "BID", "CID2013", "KADID10K", "KONIQ10K", "LIVEC", "PIPAL", "SPAQ", "TID2013", "read_agiqa3k",
    "read_bid", "read_cid2013", "read_kadid10k", "read_koniq10k", "read_livec", "read_pipal", "read_spaq",
    "read_tid2013",
]  # fmt: skip

TID2013 = SetInfo("tid2013", "TID2013", 3000, MosScale(0.0, 9.0))
KADID10K = SetInfo("kadid10k", "KADID-10k", 10125, MosScale(1.0, 5.0))
# Elo ratings; the training part, the only one with public labels.
PIPAL = SetInfo("pipal", "PIPAL", 23200, MosScale(917.0, 1836.0), slack=1.0)
LIVEC = SetInfo("livec", "LIVE In the Wild", 1162, MosScale(0.0, 100.0))
KONIQ10K = SetInfo("koniq10k", "KonIQ-10k", 10073, MosScale(0.0, 100.0))
SPAQ = SetInfo("spaq", "SPAQ", 11125, MosScale(0.0, 100.0))
BID = SetInfo("bid", "BID", 586, MosScale(0.0, 5.0))
CID2013 = SetInfo("cid2013", "CID2013", 474, MosScale(-9.5, 87.9), slack=0.1)
AGIQA3K = SetInfo("agiqa3k", "AGIQA-3K", 2982, MosScale(0.0, 5.0))

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

    Names mix ``I`` and ``i`` in the labels and on disk; case is ignored.

    Raises:
        DataError: a file is missing, a line is malformed, or a score is outside 0..9.
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

    The column is named ``dmos`` but is a mean opinion score: 5 is imperceptible, 1 very annoying.

    Raises:
        DataError: a file is missing, a name is malformed, or a score is outside 1..5.
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
    present = [part for part in parts if part.is_dir()]
    if images is None and not present:
        raise DataError(f"{root}: has no Distortion_1 to Distortion_4", "unpack the pictures of PIPAL there")
    index = ImageIndex([images] if images else present)
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
    notes = (
        [] if images or len(present) == 4 else [f"{root}: {len(present)} of PIPAL's 4 folders of pictures"]
    )
    return build(PIPAL, folder, entries, mos_range, notes)


_LIVEC_TRAINING = 7  # shown to the subjects beforehand; not part of the benchmark


def read_livec(
    root: Path, images: Path | None = None, mos_range: Range | None = None, training: bool = False
) -> DataSet:
    """Read ``Data/AllImages_release.mat``, ``Data/AllMOS_release.mat`` and ``Images/``.

    The first seven entries are the subjects' training pictures (``Images/trainingImages/``). They are
    dropped, unless the file lists only the other 1,162 or ``training`` asks for them.

    Raises:
        DataError: a file or picture is missing, the two files differ in length, or a score is outside 0..100.
    """
    names_file = first_folder(root, ["Data/AllImages_release.mat"], LIVEC.title)
    mos_file = first_folder(root, ["Data/AllMOS_release.mat"], LIVEC.title)
    names = [_matlab_text(cell) for cell in load_mat(names_file, "AllImages_release").ravel()]
    mos = load_mat(mos_file, "AllMOS_release").ravel()
    if len(names) != len(mos):
        raise DataError(
            f"{mos_file}: has {len(mos)} scores for {len(names)} pictures", "download LIVE In the Wild again"
        )
    skipped = 0 if training or len(names) == LIVEC.count else _LIVEC_TRAINING
    folder = images or root / "Images"
    index = ImageIndex([folder, folder / "trainingImages"] if training else [folder])
    entries = []
    for row in range(skipped, len(names)):
        where = f"{names_file}:{row + 1}"
        entries.append(Entry(where, index.find(names[row]), number(mos[row], f"{mos_file}:{row + 1}")))
    count = LIVEC.count + _LIVEC_TRAINING if training else None
    return build(LIVEC, names_file, entries, mos_range, expected=count)


def _matlab_text(cell: Any) -> str:
    """The text in a cell array, however deeply scipy nests it."""
    while not isinstance(cell, str):
        if not hasattr(cell, "ravel") or cell.size != 1:
            return str(cell)
        cell = cell.ravel()[0]
    return str(cell).strip()


_KONIQ_SETS = "koniq10k_distributions_sets.csv"
_KONIQ_SCORES = "koniq10k_scores_and_distributions.csv"


def read_koniq10k(root: Path, images: Path | None = None, mos_range: Range | None = None) -> DataSet:
    """Read one of KonIQ-10k's two csv files and ``1024x768/`` or ``512x384/``.

    ``koniq10k_distributions_sets.csv`` has MOS 0-100 and the official training, validation and test sets;
    ``koniq10k_scores_and_distributions.csv`` has MOS 1-5 and MOS_zscore 0-100; the second is used. The first
    file is preferred; ``root`` may also be one of the two files.

    Raises:
        DataError: a file or picture is missing, or a score is outside 0..100.
    """
    file = root if root.is_file() else first_folder(root, [_KONIQ_SETS, _KONIQ_SCORES], KONIQ10K.title)
    index = ImageIndex([images or first_folder(file.parent, ["1024x768", "512x384"], KONIQ10K.title)])
    rows = read_table(file, ["image_name", "MOS"])
    column, info, notes = "MOS", KONIQ10K, [f"{file.name}, pictures of {index.folders[0].name}/"]
    if rows and "MOS_zscore" in rows[0][1]:
        column = "MOS_zscore"
        notes = [f"{notes[0]}, scores of MOS_zscore (0-100), not of MOS (1-5)"]
    elif rows and "set" not in rows[0][1]:
        # The second file without its z-scores, if all scores are at most 5: on 0-100 some would be higher.
        low = all(number(row["MOS"], f"{file}:{line}") <= 5 for line, row in rows)
        info = replace(KONIQ10K, scale=MosScale(1.0, 5.0)) if low else KONIQ10K
    entries = []
    for line, row in rows:
        where, part = f"{file}:{line}", row.get("set")
        mos = number(row[column], where)
        entries.append(Entry(where, index.find(row["image_name"].strip()), mos, part=part))
    return build(info, file, entries, mos_range, notes)


def read_spaq(root: Path, images: Path | None = None, mos_range: Range | None = None) -> DataSet:
    """Read ``Annotations/MOS and Image attribute scores.xlsx`` (Image name, MOS, ...) and ``TestImage/``.

    Raises:
        DataError: a file, column or picture is missing, or a score is outside 0..100.
    """
    file = first_folder(
        root,
        [f"{folder}MOS and Image attribute scores.xlsx" for folder in ("Annotations/", "annotations/", "")],
        SPAQ.title,
    )
    rows = read_xlsx(file)
    name, mos = xlsx_columns(file, rows, ["Image name", "MOS"])
    index = ImageIndex([images or root / "TestImage"])
    entries = [
        Entry(f"{file}:{line}", index.find(str(cells[name]).strip()), number(cells[mos], f"{file}:{line}"))
        for line, cells in rows[1:]
    ]
    return build(SPAQ, file, entries, mos_range)


def read_bid(root: Path, images: Path | None = None, mos_range: Range | None = None) -> DataSet:
    """Read ``DatabaseGrades.xlsx`` (number, MOS) and ``DatabaseImage%04d.JPG`` beside it.

    Raises:
        DataError: a file or picture is missing, a number is invalid, or a score is outside 0..5.
    """
    file = first_folder(root, ["DatabaseGrades.xlsx"], BID.title)
    index = ImageIndex([images] if images else [root, root / "ImageDatabase"])
    entries = []
    for line, cells in read_xlsx(file):
        if len(cells) < 2 or (line == 1 and isinstance(cells[0], str)):  # the header
            continue
        where = f"{file}:{line}"
        name = f"DatabaseImage{int(number(cells[0], where, 'number of the picture')):04d}.JPG"
        entries.append(Entry(where, index.find(name), number(cells[1], where)))
    return build(BID, file, entries, mos_range)


def read_cid2013(root: Path, images: Path | None = None, mos_range: Range | None = None) -> DataSet:
    """Read ``CID2013 data - version 12112014.xlsx`` (Source_ID, Realigned MOS) and ``IS1..IS6/coN/*.jpg``.

    The realigned scores put the six image sets on one scale. A name such as IS_I_C01_D01 gives image set,
    scene and camera; image set and scene count as the reference, so that a split never divides a scene.

    Raises:
        DataError: a file, column or picture is missing, or a score is outside -9.5..87.9.
    """
    file = first_folder(root, ["CID2013 data - version 12112014.xlsx"], CID2013.title)
    rows = read_xlsx(file, "CID2013 MOS")
    source, mos = xlsx_columns(file, rows, ["Source_ID", "Realigned MOS"])
    folders = [images] if images else sorted(path for path in root.glob("IS*/*") if path.is_dir())
    if not folders:
        raise DataError(f"{root}: has no pictures IS1/co1/*.jpg", "unpack the pictures of CID2013 there")
    index = ImageIndex(folders)
    entries = []
    for line, cells in rows[1:]:
        where, name = f"{file}:{line}", str(cells[source]).strip()
        file_name = name if name.lower().endswith(".jpg") else f"{name}.jpg"
        scene = name.upper().rpartition("_")[0] or name
        entries.append(Entry(where, index.find(file_name), number(cells[mos], where), scene))
    return build(CID2013, file, entries, mos_range)


def read_agiqa3k(root: Path, images: Path | None = None, mos_range: Range | None = None) -> DataSet:
    """Read ``data.csv`` (name,...,mos_quality,std_quality,...) and the pictures beside it.

    Raises:
        DataError: a file, column or picture is missing, or a score is outside 0..5.
    """
    file = first_folder(root, ["data.csv"], AGIQA3K.title)
    index = ImageIndex([images] if images else [root, root / "images", root / "AGIQA-3K"])
    entries = []
    for line, row in read_table(file, ["name", "mos_quality"]):
        where = f"{file}:{line}"
        entries.append(Entry(where, index.find(row["name"].strip()), number(row["mos_quality"], where)))
    return build(AGIQA3K, file, entries, mos_range)
