"""A simulated rater with noise: pairs against ratings at equal numbers of answers.

    python tests/field/raters.py LABELS.csv [--pictures 50] [--repeats 20] [--own 0.5]

LABELS.csv has image,mos,std, such as LIVEC's (scores 0..100). What the rater perceives of a picture is its
MOS and noise of ``--own`` times the set's standard deviation between raters. A rating rounds it to five
points; a pair says which of two is higher. Prints the SRCC of the fitted labels with the true MOS.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

from grmp_edge.metrics import srcc
from grmp_edge.runtime.labelling.answers import Answer, labels_of
from grmp_edge.runtime.labelling.pairs import Judged, fit_pairs, next_pair


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--pictures", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--own", type=float, default=0.5)
    options = parser.parse_args()
    rows = list(csv.DictReader(options.labels.read_text().splitlines()))
    every = np.array([float(row["mos"]) for row in rows])
    spread = options.own * float(np.mean([float(row["std"]) for row in rows]))
    count = options.pictures
    steps = [count * times for times in (1, 2, 3, 5)]
    found: dict[str, dict[int, list[float]]] = {
        way: {n: [] for n in steps} for way in ("rate", "pair", "random")
    }
    for repeat in range(options.repeats):
        rng = np.random.default_rng(repeat)
        mos = every[rng.choice(len(every), count, replace=False)]

        def perceived(index: int, mos: np.ndarray = mos, rng: np.random.Generator = rng) -> float:
            return float(mos[index] + rng.normal(0, spread))

        given: list[Answer] = []
        for number in range(steps[-1]):
            index = number % count
            value = float(np.clip(np.rint(1 + perceived(index) / 25), 1, 5))
            given.append(Answer("scale", f"r{number // count}", (f"{index:03}",), value))
            if number + 1 in steps:
                found["rate"][number + 1].append(srcc([one.mos for one in labels_of(given)], mos))
        for way in ("pair", "random"):
            judged: list[Judged] = []
            for number in range(steps[-1]):
                pair = (
                    next_pair(count, judged, rng) if way == "pair" else rng.choice(count, 2, False).tolist()
                )
                assert pair is not None
                i, j = pair
                judged.append((i, j, float(perceived(i) > perceived(j))))
                if number + 1 in steps:
                    found[way][number + 1].append(srcc(fit_pairs(count, judged)[0], mos))
    for way, by_count in found.items():
        print(f"{way:8}" + "  ".join(f"{n} answers {np.mean(values):.3f}" for n, values in by_count.items()))


main()
