"""When a head of few labels should be taken, and when the start should stay: rules compared on many draws.

    python tests/field/heads.py LABELS.csv STORE [--draws 80]

LABELS.csv has image,mos (0..100), STORE is the folder that `python -m grmp_edge.train.recipe extract
--only livec` writes of the same pictures, in the same order. N labels are drawn from a pool; head and
start are compared on 233 other pictures. Starts: `own` (weights A), `blurred` (the same with noise as
large as its spread) and `taught` (with a row that ridge regression found on 429 pictures of neither).
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from grmp_edge.head import Seen, _Ridge, _Setting, folds_of, target_logits
from grmp_edge.metrics import srcc
from grmp_edge.train.recipe.store import read_stores
from grmp_edge.train.recipe.upper import Upper

_VIEWS = 5
_SETTING = _Setting(("statistics",), 0.3)
Float = npt.NDArray[np.float64]


def main() -> None:
    """Read, draw, print a table for each start and number of labels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("--draws", type=int, default=80)
    given = parser.parse_args()
    with given.data.open(newline="") as stream:
        quality = np.array([float(row["mos"]) / 100 for row in csv.DictReader(stream)])
    seen = _seen(given.store)
    print("| start | labels | start | head | above it, folds' means | .7/sqrt(n) less | **above it** |")
    print("|---|---|---|---|---|---|---|")
    for kind in ("own", "blurred", "taught"):
        for count in (24, 50, 100):
            rows = np.array([_draw(seen, quality, kind, count, number) for number in range(given.draws)])
            start, start_test, head_test, folds_own, common = rows.T
            cells = [f"{start_test.mean():.3f}", f"{head_test.mean():.3f}"]
            for taken in (folds_own > start, folds_own > start - 0.7 / count**0.5, common > start):
                got = np.where(taken, head_test, start_test)
                cells.append(f"{got.mean():.3f} ({np.mean(got < start_test):.0%} worse)")
            print(f"| {kind} | {count} | {' | '.join(cells)} |", flush=True)


@torch.no_grad()
def _seen(store: Path) -> Seen:
    """What weights A make of each picture, from stored outputs of the stem."""
    upper, views = Upper.load(None), read_stores([store])
    aggregate = upper.model.aggregate
    rows = []
    for at in range(0, len(views), 7 * _VIEWS):
        fine, grid, stats = views.take(np.arange(at, min(len(views), at + 7 * _VIEWS)))
        feature, logits = upper(fine, grid, stats)
        parts = torch.cat([logits[:, :1], feature, upper.standardised(stats)], dim=1).double().numpy()
        rows += [aggregate(one) - aggregate.shift for one in np.split(parts, len(parts) // _VIEWS)]
    table, width = np.stack(rows), 1 + feature.shape[1]
    return Seen(table[:, 0] + aggregate.shift, table[:, 1:width], table[:, width:])


def _draw(seen: Seen, quality: Float, kind: str, count: int, number: int) -> list[float]:
    """SRCC of the start within the labels and on the test pictures; the head's on these; two estimates."""
    rng = np.random.default_rng([number, count, 5])
    order = rng.permutation(len(seen))
    test, pool, others = order[:233], order[233:733], order[733:]
    if kind == "blurred":
        seen = replace(seen, logits=seen.logits + seen.logits.std() * rng.normal(size=len(seen)))
    if kind == "taught":
        taught = _Ridge(seen.take(others), None, target_logits(quality[others])).head(_SETTING)
        seen = replace(seen, logits=taught(seen))
    labelled = rng.permutation(pool)[:count]
    known, target = seen.take(labelled), target_logits(quality[labelled])
    ridge, folds = _Ridge(known, None, target), folds_of(count, 0, 3)
    rounds, _ = ridge.left_out(_SETTING, folds)
    common = float(np.mean([srcc(one, target) for one in rounds]))
    own = []
    for at, one in enumerate(rounds):
        moved = one.copy()
        for learned, left in folds[5 * at : 5 * at + 5]:
            moved[left] += target[learned].mean() - target.mean()
        own.append(srcc(moved, target))
    head = srcc(ridge.head(_SETTING)(seen.take(test)), quality[test])
    start = srcc(seen.logits[test], quality[test])
    return [srcc(known.logits, target), start, head, float(np.mean(own)), common]


if __name__ == "__main__":
    main()
