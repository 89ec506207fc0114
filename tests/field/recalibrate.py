"""`calibrate` beside `train finetune` on the same splits: SRCC, seconds, memory.

    python tests/field/recalibrate.py LABELS.csv [--images DIR] [--labels 50] [--splits 10]

Both start from the weights that saw no person's score and learn from the same N labels of each random split,
as a user runs them: one process each, in turn. Both results then score the same pictures of the split's 20 %.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

from grmp_edge.export.default_model import load_weights
from grmp_edge.export.parity import ParityConfig
from grmp_edge.export.pipeline import ExportConfig, export_model
from grmp_edge.metrics import srcc
from grmp_edge.runtime import Scorer
from grmp_edge.train.data.labelled import SplitConfig, read_csv, split_indices
from grmp_edge.train.finetune.seen import predict_labelled
from grmp_edge.train.network.embedded import EMBEDDED_PATH
from grmp_edge.train.session.checkpoint import load_checkpoint


def main() -> None:
    """Export the start, learn both ways on each split, print a line a split and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--mos-range", default="0,100")
    parser.add_argument("--labels", type=int, default=50)
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--tested", type=int, help="pictures of a test part at most; default: all")
    given = parser.parse_args()
    low, high = map(float, given.mos_range.split(","))
    data = read_csv(given.data, given.images, (low, high))
    rows: list[list[float]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        start = folder / "start"
        export_model(load_weights(EMBEDDED_PATH), start, ExportConfig(parity=ParityConfig(images=2)))
        for split in range(given.splits):
            parts = split_indices(data, SplitConfig(given.labels, 0.2, 0.0, split))
            test = list(parts.test)[: given.tested]
            labels = folder / f"{split}.csv"
            with labels.open("w", newline="") as stream:
                writer = csv.writer(stream)
                writer.writerow(["image", "mos"])
                writer.writerows([data.paths[index].resolve(), data.mos[index]] for index in parts.train)
            same = ["--data", labels, "--mos-range", given.mos_range]
            run, made = folder / f"run-{split}", folder / f"bundle-{split}"
            tuned = _run("train", "finetune", *same, "--test-fraction", 0, "-o", run)
            fitted = _run("calibrate", start, *same, "-o", made)
            by_run = predict_labelled(load_checkpoint(run).model, data, test)
            with Scorer.open(made, provider="cpu", threads=1) as scorer:
                by_bundle = np.array([scorer.score(data.paths[index]).value for index in test])
            figures = [srcc(values, data.mos[test]) for values in (by_run, by_bundle)]
            rows.append([*figures, *tuned, *fitted, float(np.abs(by_run - by_bundle).max())])
            print(f"split {split}: {_shown(rows[-1])}", flush=True)
    print(f"medians: {_shown([median(column) for column in zip(*rows, strict=True)])}")


def _shown(row: list[float]) -> str:
    tuned, fitted, wall, cpu, memory, own_wall, own_cpu, own_memory, apart = row
    return (
        f"finetune SRCC {tuned:.3f}, {wall:.1f} s, {cpu:.1f} CPU s, {memory:.0f} MB; "
        f"calibrate SRCC {fitted:.3f}, {own_wall:.1f} s, {own_cpu:.1f} CPU s, {own_memory:.0f} MB; "
        f"scores at most {apart:.4f} apart"
    )


# Between this process and the command: a child begins with the most memory that its parent has had.
_BETWEEN = (
    "import json, resource, subprocess, sys; status = subprocess.call(sys.argv[1:], stdout=sys.stderr); "
    "used = resource.getrusage(resource.RUSAGE_CHILDREN); "
    "print(json.dumps([status, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))"
)


def _run(*arguments: object) -> tuple[float, float, float]:
    """Wall and processor seconds, and the most memory in MB, of one command."""
    began = time.monotonic()
    command = [sys.executable, "-m", "grmp_edge", *map(str, arguments)]
    done = subprocess.run([sys.executable, "-c", _BETWEEN, *command], capture_output=True, text=True)
    status, cpu, memory = json.loads(done.stdout)
    if status:
        raise SystemExit(done.stderr)
    return time.monotonic() - began, cpu, memory


if __name__ == "__main__":
    main()
