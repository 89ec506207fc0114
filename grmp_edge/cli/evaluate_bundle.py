"""``evaluate --bundle``: an exported bundle's graphs on a labelled set, without torch."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from grmp_edge.cli.groups import option
from grmp_edge.errors import DataError, UsageError
from grmp_edge.files import as_typed

if TYPE_CHECKING:
    from grmp_edge.runtime import Scorer
    from grmp_edge.train.data.labelled import Labelled

__all__ = ["BundleOptions", "evaluate_bundle"]

_BUNDLE = "With --bundle"
_BATCH = 8  # where CPUs stop gaining


@dataclass(frozen=True)
class BundleOptions:
    """An exported bundle, tested as it is."""

    bundle: Annotated[
        Path | None, option("--bundle", "Evaluate this exported bundle as it is; trains nothing.")
    ] = None
    precision: Annotated[
        Literal["fp32", "fp16", "int8", "all"], option("--precision", "Which graph, or all it has.", _BUNDLE)
    ] = "fp32"
    provider: Annotated[str, option("--provider", "auto, cpu, cuda or tensorrt.", _BUNDLE)] = "auto"
    test_part: Annotated[
        int | None,
        option("--test-part", "Only the 20 % that training with this seed set aside for testing.", _BUNDLE),
    ] = None


def evaluate_bundle(
    path: Path,
    data: Labelled,
    options: BundleOptions,
    test_fraction: float,
    output: Path,
    as_json: bool,
) -> None:
    """Score a set with one or all graphs of a bundle; print and write their agreement with the labels.

    Args:
        path: the bundle.
        data: the labelled set.
        options: which graphs, where they run, and the part of the set.
        test_fraction: share of the test part.
        output: folder for ``bundle.json`` and ``bundle.csv`` (picture, mos and score by precision), and
            ``bundle.html``, a page to look at.
        as_json: print JSON on stdout instead of a table.

    Raises:
        UsageError: the bundle lacks the precision.
        DataError: a picture cannot be read, or the labels can hardly be on the bundle's scale.
    """
    from grmp_edge.bundle import PRECISIONS, Bundle
    from grmp_edge.metrics import interval_words
    from grmp_edge.runtime import Scorer
    from grmp_edge.runtime.reports.agreement import write_agreement
    from grmp_edge.train.data.labelled import SplitConfig, split_indices
    from grmp_edge.train.data.sides import refuse_other_scale
    from grmp_edge.train.evaluate.protocol import measure

    precision, test_part = options.precision, options.test_part
    bundle = Bundle.load(path)
    precisions = [name for name in PRECISIONS if name in bundle.graphs] if precision == "all" else [precision]
    if precision not in ("all", *bundle.graphs):
        raise UsageError(f"{path}: has no {precision} graph", f"it has {', '.join(bundle.graphs)}")
    indices = list(range(len(data)))
    if data.fixed is not None:
        indices = list(split_indices(data, SplitConfig()).test) or indices
        print(f"note: only the {len(indices)} pictures of the test part are scored", file=sys.stderr)
    elif test_part is not None:
        split = split_indices(data, SplitConfig(None, test_fraction, 0.0, test_part))
        indices = list(split.test)
    # RMSE must not compare stars with percents: a csv that declares no scale must be on the bundle's.
    if bundle.mos is not None:
        refuse_other_scale(data, bundle.mos, f"{path}")
    scale = data.scale or bundle.mos or data.scale_of(range(len(data)))
    mos = data.mos[indices]
    scores = {}
    for name in precisions:
        with Scorer.open(bundle, name, options.provider) as scorer:
            scores[name] = _scores(scorer, data, indices, name)
    results: dict[str, Any] = {}
    for name, values in scores.items():
        results[name] = measure(values, mos, scale)
        if name != precisions[0]:
            gaps = [abs(a - b) for a, b in zip(values, scores[precisions[0]], strict=True)]
            results[name] |= {f"max_difference_to_{precisions[0]}": max(gaps)}
    result = {
        "bundle": str(path),
        "model": bundle.id,
        "data": data.name,
        "pictures": len(indices),
        "test_part": test_part,
        "results": results,
    }
    if test_part is None and data.fixed is None and bundle.mos is not None:
        print(
            "note: the bundle was fine-tuned on labels; if they were of this set, only --test-part SEED is "
            "an honest test",
            file=sys.stderr,
        )
    _write(output, result, data, indices, scores)
    first = results[precisions[0]]
    write_agreement(
        output / "bundle.html",
        result,
        [str(data.paths[index]) for index in indices],
        [float(score) for score in mos],
        scores[precisions[0]],
        scale,
        interval_words(first["srcc_interval"], first["count"]),
    )
    if as_json:
        print(json.dumps(result))
    else:
        _print(result)
    print(
        f"written: {output}/bundle.json, bundle.csv, bundle.html\n"
        f"next: grmp-edge score {as_typed(path)} SOURCE...",
        file=sys.stderr,
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
    output: Path, result: dict[str, Any], data: Labelled, indices: list[int], scores: dict[str, list[float]]
) -> None:
    import csv

    from grmp_edge.files import replace_file

    with replace_file(output / "bundle.json") as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    with (
        replace_file(output / "bundle.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream,
    ):
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["image", "mos", *scores])
        for row, index in enumerate(indices):
            values = [f"{column[row]:.7f}" for column in scores.values()]
            writer.writerow([data.paths[index], f"{data.mos[index]:.6g}", *values])


def _print(result: dict[str, Any]) -> None:
    from grmp_edge.metrics import interval_words

    part = "" if result["test_part"] is None else f" (test part of seed {result['test_part']})"
    print(f"{result['data']}: {result['pictures']} pictures{part}")
    print(f"{'precision':>9}  {'SRCC':>7}  {'PLCC':>7}  {'KRCC':>7}  {'RMSE':>7}  largest difference")
    for name, metrics in result["results"].items():
        numbers = "  ".join(
            f"{'-' if metrics[key] is None else format(metrics[key], '.4f'):>7}"
            for key in ("srcc", "plcc", "krcc", "rmse")
        )
        gap = next(
            (f"{value:.2e}" for key, value in metrics.items() if key.startswith("max_difference")), "-"
        )
        print(f"{name:>9}  {numbers}  {gap}")
    first = next(iter(result["results"].values()))
    print(f"SRCC {interval_words(first['srcc_interval'], first['count'])} (95 %, by bootstrap)")
