"""Which 50 of a thousand to label: chosen as `label` does, against drawn at random.

    python tests/field/choosing.py LABELS.csv ORIGINALS STATISTICS.npz [--repeats 10]

LABELS.csv has image,mos; ORIGINALS is the folder of these pictures at their own size; STATISTICS.npz is what
`python -m grmp_edge.train.recipe extract` writes of them. From a pool of four fifths some are labelled; ridge
regression on the stem's statistics learns from them, and its SRCC on the last fifth is printed. The predicted
quality that choosing looks at comes from 40 labels of others.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from grmp_edge.metrics import srcc
from grmp_edge.runtime.labelling.choose import Sight, choose_frames
from grmp_edge.runtime.labelling.frames import Frame
from grmp_edge.runtime.labelling.looks import look

Float64Array = npt.NDArray[np.float64]
COUNTS = (50, 60, 70, 85, 100)
PENALTY = 0.3
DRAWS = 5  # at random, of each pool
MORE = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("labels", type=Path)
    parser.add_argument("originals", type=Path)
    parser.add_argument("statistics", type=Path)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    rows = list(csv.DictReader(options.labels.read_text().splitlines()))
    names, mos = [Path(row["image"]).stem for row in rows], np.array([float(row["mos"]) for row in rows])
    files = {path.stem: path for path in options.originals.iterdir()}
    looks = np.stack([look(np.asarray(cv2.imread(str(files[name])), np.uint8)) for name in names])
    with np.load(options.statistics) as data:
        of = [view["source"] for view in json.loads(str(data["rows"]))]
        views = data["stats"].astype(np.float32)
    seen = np.stack([views[[i for i, source in enumerate(of) if source == name]].mean(0) for name in names])
    seen = (seen - seen.mean(0)) / (seen.std(0) + 1e-6)
    gram = np.asarray(seen @ seen.T, np.float64) / seen.shape[1]
    values, vectors = np.linalg.eigh(gram)
    points = vectors[:, -50:] * np.sqrt(values[-50:])

    def learned(train: npt.NDArray[np.int64], test: npt.NDArray[np.int64]) -> Float64Array:
        own = gram[np.ix_(train, train)]
        middle = own - own.mean(0) - own.mean(1)[:, None] + own.mean()
        scale = float(np.trace(middle)) / len(train)
        mean = mos[train].mean()
        weights = np.linalg.solve(middle / scale + PENALTY * np.eye(len(train)), mos[train] - mean)
        across = gram[np.ix_(test, train)]
        across = across - across.mean(1)[:, None] - own.mean(0) + own.mean()
        return np.asarray(across @ weights / scale + mean)

    def located(rows: Float64Array, count: int) -> npt.NDArray[np.int64]:
        """Greedy facility location."""
        apart = np.sqrt(np.maximum(np.add.outer((rows**2).sum(1), (rows**2).sum(1)) - 2 * rows @ rows.T, 0))
        likeness = np.exp(-((apart / (0.5 * np.median(apart))) ** 2))
        best, chosen = np.zeros(len(rows)), list[int]()
        for _ in range(count):
            gain = np.maximum(likeness - best[:, None], 0).sum(axis=0)
            gain[chosen] = -1
            chosen.append(int(gain.argmax()))
            best = np.maximum(best, likeness[:, chosen[-1]])
        return np.array(chosen)

    def unit(rows: npt.NDArray[np.floating]) -> Float64Array:
        return np.asarray(rows / np.median(np.linalg.norm(rows - rows.mean(0), axis=1)), np.float64)

    found: dict[tuple[str, int], list[float]] = {}
    rng = np.random.default_rng(0)
    for _ in range(options.repeats):
        order = rng.permutation(len(mos))
        pool, rest = order[: len(mos) * 4 // 5], order[len(mos) * 4 // 5 :]
        guide, test = rest[:40], rest[40:]
        rank = learned(guide, pool).argsort().argsort() / (len(pool) - 1)
        ways = {f"random {draw}": rng.permutation(len(pool))[: COUNTS[-1]] for draw in range(DRAWS)}
        frames = [
            Frame("", value=float(value), look=looks[index]) for value, index in zip(rank, pool, strict=True)
        ]
        ways["as label chooses"] = np.array(choose_frames(frames, COUNTS[-1]))
        for title, base in (("looks", unit(looks[pool])), ("statistics", unit(points[pool]))):
            for weight in (0.0, 2.0):
                spread = np.column_stack([base, weight * rank])
                ways[f"located: {title}, quality {weight:g}"] = located(spread, COUNTS[-1])
        # Twenty more after a training from the first fifty.
        first = ways["as label chooses"][: COUNTS[0]]
        sight = Sight(learned(pool[first], pool), np.asarray(seen[pool], np.float64))
        left = np.setdiff1d(np.arange(len(pool)), first)
        again = {
            "20 more by the new model": np.array(choose_frames(frames, MORE, first.tolist(), sight=sight)),
            **{f"20 more random {draw}": rng.permutation(left)[:MORE] for draw in range(DRAWS)},
        }
        for title, chosen in again.items():
            key = ("20 more random" if "random" in title else title, COUNTS[0] + MORE)
            train = pool[np.concatenate([first, chosen])]
            found.setdefault(key, []).append(srcc(learned(train, test), mos[test]))
        for title, chosen in ways.items():
            for count in COUNTS:
                key = ("random" if title.startswith("random") else title, count)
                found.setdefault(key, []).append(srcc(learned(pool[chosen[:count]], test), mos[test]))
    for title in dict.fromkeys(title for title, _ in found):
        figures = "  ".join(
            f"{count}: {np.mean(found[title, count]):.3f}" for count in COUNTS if (title, count) in found
        )
        print(f"{title:32}{figures}")


main()
