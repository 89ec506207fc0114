"""Data sets by name: ``livec:/path``, ``kadid10k:/path``, ``csv:FILE``, or the bare path of a csv."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from grmp_edge.errors import DataError
from grmp_edge.train.data import published_sets as published
from grmp_edge.train.data.labelled import CsvConfig, Labelled, read_csv
from grmp_edge.train.data.set_files import Range, SetInfo, read_reference_mat

__all__ = ["READERS", "Reader", "read_spec"]


@dataclass(frozen=True)
class Reader:
    """The reader of one kind of data set."""

    read: Callable[[Path, Path | None, Range | None], Labelled]
    layout: str  # what the path must contain, in one line
    info: SetInfo | None = None  # None where any set can be in the format


READERS: dict[str, Reader] = {
    "livec": Reader(published.read_livec, "Data/All*_release.mat, Images/", published.LIVEC),
    "tid2013": Reader(published.read_tid2013, "mos_with_names.txt, distorted_images/", published.TID2013),
    "kadid10k": Reader(published.read_kadid10k, "dmos.csv, images/", published.KADID10K),
    "koniq10k": Reader(published.read_koniq10k, "koniq10k_*.csv, 1024x768/ or 512x384/", published.KONIQ10K),
    "spaq": Reader(published.read_spaq, "Annotations/*.xlsx, TestImage/", published.SPAQ),
    "bid": Reader(published.read_bid, "DatabaseGrades.xlsx, DatabaseImage*.JPG", published.BID),
    "cid2013": Reader(
        published.read_cid2013, "CID2013 data - version 12112014.xlsx, IS1..IS6/", published.CID2013
    ),
    "pipal": Reader(published.read_pipal, "Train_Label/*.txt, Distortion_1..4/", published.PIPAL),
    "agiqa3k": Reader(published.read_agiqa3k, "data.csv and the pictures", published.AGIQA3K),
    "mat": Reader(read_reference_mat, "a .mat with X, Y, Xtest, Ytest"),
    "csv": Reader(read_csv, "a csv with the columns image,mos"),
}


def read_spec(
    spec: str | Path,
    images: Path | None = None,
    mos_range: Range | None = None,
    config: CsvConfig | None = None,
    livec_training_pictures: bool = False,
) -> Labelled:
    """Read a labelled set.

    Args:
        spec: ``NAME:PATH`` with a name of ``READERS``, or the path of a csv.
        images: the folder of the pictures where it is not the set's own.
        mos_range: the scale of the labels; by default the set's own, or for a csv the observed range.
        config: the columns of a csv.
        livec_training_pictures: keep the seven that LIVEC's subjects were trained with.

    Returns:
        A :class:`DataSet` for named sets (with ``parts``), a plain Labelled for a csv; higher scores are
        better in all of them.

    Raises:
        DataError: the name is unknown, or the files differ from the published layout; the message names the
            first line or picture.
        MissingDependencyError: the labels need a reader that is not installed.
    """
    name, colon, rest = str(spec).partition(":")
    # A bare path, which may contain a colon or a drive letter.
    if not colon or Path(str(spec)).exists() or (len(name) == 1 and name not in READERS):
        return read_csv(Path(spec), images, mos_range, config)
    reader = READERS.get(name.lower())
    if reader is None:
        raise DataError(f"{spec}: unknown data set {name!r}", f"use one of {', '.join(READERS)}, or a csv")
    path = Path(rest).expanduser()
    if not rest or not path.exists():
        raise DataError(f"{spec}: {rest or 'the path'} does not exist", f"it must contain {reader.layout}")
    if images is not None and not images.is_dir():
        raise DataError(f"{images}: no such folder", "correct --images")
    if reader.read is read_csv:
        return read_csv(path, images, mos_range, config)
    if config is not None and config != CsvConfig():
        raise DataError(
            f"{spec}: its columns are known", "leave out --image-column, --mos-column and --average"
        )
    if livec_training_pictures and reader.info is published.LIVEC:
        return published.read_livec(path, images, mos_range, training=True)
    return reader.read(path, images, mos_range)
