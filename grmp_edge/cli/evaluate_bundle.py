"""``evaluate --bundle``: an exported bundle's graphs on a labelled set, without torch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grmp_edge.errors import DataError, UsageError

if TYPE_CHECKING:
    from grmp_edge.runtime import Scorer
    from grmp_edge.train.data.labelled import Labelled

__all__ = ["evaluate_bundle"]

_BATCH = 8  # where CPUs stop gaining


def evaluate_bundle(
    path: Path,
    data: Labelled,
    precision: str,
    provider: str,
    test_part: int | None,
    test_fraction: float,
    output: Path,
    as_json: bool,
) -> None:
    """Score a set with one or all graphs of a bundle, print and write the agreement of each.

    Args:
        path: the bundle.
        data: the labelled set.
        precision: one, or ``all`` that the bundle has.
        provider: as for ``grmp-edge score``.
        test_part: only the test part of the split of this seed; None for the whole set.
        test_fraction: its share.
        output: folder for ``bundle.json`` and ``bundle.csv`` (picture, mos and score by precision).
        as_json: print JSON on stdout instead of a table.

    Raises:
        UsageError: the bundle lacks the precision.
        DataError: a picture cannot be read.
    """
    from grmp_edge.bundle import PRECISIONS, Bundle
    from grmp_edge.runtime import Scorer
    from grmp_edge.train.data.labelled import SplitConfig, split_indices
    from grmp_edge.train.evaluate.protocol import measure

    bundle = Bundle.load(path)
    wanted = [name for name in PRECISIONS if name in bundle.graphs] if precision == "all" else [precision]
    if precision not in ("all", *bundle.graphs):
        raise UsageError(f"{path}: has no {precision} graph", f"it has {', '.join(bundle.graphs)}")
    indices = list(range(len(data)))
    if test_part is not None:
        split = split_indices(data, SplitConfig(None, test_fraction, 0.0, test_part))
        indices = list(split.test)
    # The set's own scale: RMSE must not compare stars with percents. A csv without one has the bundle's.
    scale = data.scale or bundle.mos or data.scale_of(range(len(data)))
    mos = data.mos[indices]
    scores = {}
    for name in wanted:
        with Scorer.open(bundle, name, provider) as scorer:
            scores[name] = _scores(scorer, data, indices, name)
    results: dict[str, Any] = {}
    for name, values in scores.items():
        results[name] = measure(values, mos, scale)
        if name != wanted[0]:
            gaps = [abs(a - b) for a, b in zip(values, scores[wanted[0]], strict=True)]
            results[name] |= {f"max_difference_to_{wanted[0]}": max(gaps)}
    found = {
        "bundle": str(path),
        "model": bundle.id,
        "data": data.name,
        "pictures": len(indices),
        "test_part": test_part,
        "results": results,
    }
    if test_part is None and bundle.mos is not None:
        print(
            "note: the bundle was fine-tuned on labels; if they were of this set, only --test-part SEED is "
            "an honest test",
            file=sys.stderr,
        )
    _write(output, found, data, indices, scores)
    if as_json:
        print(json.dumps(found))
    else:
        _print(found)
    print(
        f"written: {output}/bundle.json, bundle.csv\nnext: grmp-edge score {path} SOURCE...", file=sys.stderr
    )


def _scores(scorer: Scorer, data: Labelled, indices: list[int], name: str) -> list[float]:
    from grmp_edge.cli.progress import TrainProgress
    from grmp_edge.runtime import Picture, Score
    from grmp_edge.train.data.set_files import DataSet

    pixels = data.pixels if isinstance(data, DataSet) else None
    sources = (
        str(data.paths[i]) if pixels is None else Picture(pixels[i], str(data.paths[i])) for i in indices
    )
    values = []
    with TrainProgress() as progress:
        progress.start(f"scoring with {name}", len(indices))
        for item in scorer.score_many(sources, _BATCH):
            if not isinstance(item, Score):
                raise DataError(str(item.error), "replace or remove the picture")
            values.append(item.value)
            progress.step()
    return values


def _write(
    output: Path, found: dict[str, Any], data: Labelled, indices: list[int], scores: dict[str, list[float]]
) -> None:
    import csv

    from grmp_edge.files import replace_file

    with replace_file(output / "bundle.json") as temporary:
        temporary.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    with (
        replace_file(output / "bundle.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream,
    ):
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["image", "mos", *scores])
        for row, index in enumerate(indices):
            values = [f"{column[row]:.7f}" for column in scores.values()]
            writer.writerow([data.paths[index], f"{data.mos[index]:.6g}", *values])


def _print(found: dict[str, Any]) -> None:
    part = "" if found["test_part"] is None else f" (test part of seed {found['test_part']})"
    print(f"{found['data']}: {found['pictures']} pictures{part}")
    print(f"{'precision':>9}  {'SRCC':>7}  {'PLCC':>7}  {'KRCC':>7}  {'RMSE':>7}  largest difference")
    for name, result in found["results"].items():
        numbers = "  ".join(
            f"{'-' if result[key] is None else format(result[key], '.4f'):>7}"
            for key in ("srcc", "plcc", "krcc", "rmse")
        )
        gap = next((f"{value:.2e}" for key, value in result.items() if key.startswith("max_difference")), "-")
        print(f"{name:>9}  {numbers}  {gap}")
