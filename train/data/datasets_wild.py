"""Readers of sets of authentic and generated pictures, as downloaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from grmp_edge.errors import DataError
from grmp_edge.score import MosScale
from grmp_edge.train.data.datasets_mat import load_mat
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
    read_xlsx,
    xlsx_columns,
)

__all__ = [
    "AGIQA3K", "BID", "CID2013", "KONIQ10K", "LIVEC", "SPAQ", "read_agiqa3k", "read_bid", "read_cid2013",
    "read_koniq10k", "read_livec", "read_spaq",
]  # fmt: skip

LIVEC = SetInfo("livec", "LIVE In the Wild", 1162, MosScale(0.0, 100.0))
KONIQ10K = SetInfo("koniq10k", "KonIQ-10k", 10073, MosScale(0.0, 100.0))
SPAQ = SetInfo("spaq", "SPAQ", 11125, MosScale(0.0, 100.0))
BID = SetInfo("bid", "BID", 586, MosScale(0.0, 5.0))
CID2013 = SetInfo("cid2013", "CID2013", 474, MosScale(-9.5, 87.9), slack=0.1)
AGIQA3K = SetInfo("agiqa3k", "AGIQA-3K", 2982, MosScale(0.0, 5.0))

_LIVEC_TRAINING = 7  # shown to the subjects beforehand; not part of the benchmark


def read_livec(root: Path, images: Path | None = None, mos_range: Range | None = None) -> DataSet:
    """Read ``Data/AllImages_release.mat``, ``Data/AllMOS_release.mat`` and ``Images/``.

    The first seven entries are the subjects' training pictures (``Images/trainingImages/``) and are dropped,
    unless the file has the 1,162 others only.

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
    skipped = 0 if len(names) == LIVEC.count else _LIVEC_TRAINING
    index = ImageIndex([images or root / "Images"])
    entries = []
    for row in range(skipped, len(names)):
        where = f"{names_file}:{row + 1}"
        entries.append(Entry(where, index.find(names[row]), number(mos[row], f"{mos_file}:{row + 1}")))
    return build(LIVEC, names_file, entries, mos_range)


def _matlab_text(cell: Any) -> str:
    """A cell array's text, however deep scipy nests it."""
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
    ``koniq10k_scores_and_distributions.csv`` has MOS 1-5 and MOS_zscore 0-100, of which the second is taken.
    The first file is preferred; ``root`` may also be one of the two files.

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
        # The first file with the z-scores cut away; on 0-100 no picture of the set is this low throughout.
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
        DataError: a file or picture is missing, a number is none, or a score is outside 0..5.
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

    The realigned scores put the six image sets on one scale. A name as IS_I_C01_D01 has image set, scene and
    camera; image set and scene are taken as the reference, so that no scene is on both sides of a split.

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
