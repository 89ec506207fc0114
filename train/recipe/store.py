"""Outputs of the frozen stem, computed once: what the upper part learns from, in minutes instead of hours.

A store is a folder of chunks, each an .npz: ``stats`` (n, 2976), ``fine`` (n, 112, 14, 14) and ``grid``
(n, 192, 7, 7), float16, and ``rows``, the views' records as JSON. Chunks appear whole, so a store can be read
as far as it is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from grmp_edge.errors import DataError
from grmp_edge.files import replace_file
from grmp_edge.preprocess import NORMALIZATIONS
from grmp_edge.train.network.embedded import load_shipped_stem
from grmp_edge.train.network.model import normalize_pixels
from grmp_edge.train.network.words import CAUSES
from grmp_edge.train.recipe.faults import FAULTS, HEALTHY, LOCAL, Picture
from grmp_edge.train.recipe.sources import Record
from grmp_edge.train.session.progress import Reporter

__all__ = ["Group", "Labels", "Views", "extract", "groups_of", "labels_of", "read_stores"]

Group: TypeAlias = "npt.NDArray[np.int64]"  # indices of all states of one view of one source, clean first

_CHUNK, _BATCH = 480, 16
# How far a fault at severity 0 and 1 should lower the logit.
_DROP_MILD, _DROP_WORST = 0.7, 5.0
# Mean change of a view, grey values, from which a fault shows; more where the fault is local.
_SEEN, _SEEN_LOCAL = 0.25, 3.0
_WHOLLY_CHANGED = 12.0  # grey values: a local fault then counts at its full severity
_FEWEST = 8  # states of a group worth ranking


@dataclass
class Views:
    """Stem outputs of n views (float16, in memory) and what is known of each."""

    stats: Tensor
    fine: Tensor
    grid: Tensor
    rows: list[Record]

    def take(self, index: npt.ArrayLike) -> tuple[Tensor, Tensor, Tensor]:
        """Float32 (fine, grid, stats) of some views."""
        at = torch.as_tensor(np.asarray(index))
        return self.fine[at].float(), self.grid[at].float(), self.stats[at].float()

    def __len__(self) -> int:
        return len(self.rows)


@dataclass
class Labels:
    """What the upper part should say of n fault views."""

    drop: Tensor  # (n,) how far below its clean state the logit should be; 0 for clean and healthy
    fault: Tensor  # (n,) 1: shows a fault; 0: clean or healthy; -1: a fault that hardly shows in this view
    kind: Tensor  # (n,) number of the fault, to order severities of one fault
    causes: Tensor  # (n, causes) 0 or 1
    appeal: Tensor  # (n,) of the clean state, -5 to 4


@torch.no_grad()
def extract(folder: Path, views: Iterable[tuple[Record, Picture]], reporter: Reporter) -> None:
    """Run the stem over views and write its outputs as a store.

    Raises:
        DataError: the folder holds a store already.
    """
    if folder.exists() and any(folder.glob("*.npz")):
        raise DataError(f"{folder}: holds a store already", "remove it, or name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    stem, norm = load_shipped_stem(), NORMALIZATIONS["lite"]
    mean, std = torch.tensor(norm.mean), torch.tensor(norm.std)
    reporter.start(f"stem outputs of {folder.name}", 0)
    for number, many in enumerate(_batches(views, _CHUNK)):
        parts: list[tuple[Tensor, ...]] = []
        for batch in _batches(many, _BATCH):
            pixels = normalize_pixels(torch.from_numpy(np.stack([view for _, view in batch])), mean, std)
            parts.append(tuple(output.half() for output in stem(pixels)))
            reporter.step(len(batch))
        fine, grid, stats = (torch.cat(outputs).numpy() for outputs in zip(*parts, strict=True))
        rows = np.array(json.dumps([record for record, _ in many]))
        with replace_file(folder / f"{number:04d}.npz") as temporary, temporary.open("wb") as stream:
            np.savez(stream, fine=fine, grid=grid, stats=stats, rows=rows)


def read_stores(folders: Sequence[Path]) -> Views:
    """Read stores, one after the other.

    Raises:
        DataError: one is missing or empty.
    """
    rows: list[Record] = []
    parts: dict[str, list[Tensor]] = {"stats": [], "fine": [], "grid": []}
    for folder in folders:
        paths = sorted(folder.glob("[0-9]*.npz"))
        if not paths:
            raise DataError(f"{folder}: no store of stem outputs", "write it with the stage `extract`")
        for path in paths:
            with np.load(path) as file:
                rows += json.loads(str(file["rows"]))
                for name, chunks in parts.items():
                    chunks.append(torch.from_numpy(file[name]))
    stats, fine, grid = (torch.cat(chunks) for chunks in parts.values())
    return Views(stats, fine, grid, rows)


def labels_of(rows: Sequence[Record]) -> Labels:
    """What the states of fault views ask for; the appeal is filled in later."""
    names = [*FAULTS, *HEALTHY, "clean"]
    drop, fault = np.zeros(len(rows), np.float32), np.zeros(len(rows), np.float32)
    causes, names_of_causes = np.zeros((len(rows), len(CAUSES)), np.float32), list(CAUSES)
    for index, row in enumerate(rows):
        if row["kind"] not in FAULTS:
            continue
        local = row["kind"] in LOCAL
        shows = row["change"] >= (_SEEN_LOCAL if local else _SEEN)
        fault[index] = 1 if shows else -1
        if shows:
            share = min(1.0, row["change"] / _WHOLLY_CHANGED) if local else 1.0
            drop[index] = _DROP_MILD + (_DROP_WORST - _DROP_MILD) * row["level"] * share
            causes[index, [names_of_causes.index(cause) for cause in FAULTS[row["kind"]].causes]] = 1
    kinds = torch.tensor([names.index(row["kind"]) for row in rows])
    drops, faults = torch.from_numpy(drop), torch.from_numpy(fault)
    return Labels(drops, faults, kinds, torch.from_numpy(causes), torch.zeros(len(rows)))


def groups_of(rows: Sequence[Record]) -> list[Group]:
    """The groups of states that are worth ranking."""
    members: dict[tuple[str, int], list[int]] = {}
    for index, row in enumerate(rows):
        members.setdefault((row["source"], row["view"]), []).append(index)
    return [
        np.array(group)
        for group in members.values()
        if rows[group[0]]["kind"] == "clean" and len(group) >= _FEWEST
    ]


def _batches(items: Iterable[tuple[Record, Picture]], size: int) -> Iterator[list[tuple[Record, Picture]]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
