"""Hand-crafted metrics under the same protocol: the same splits, N labels and test parts. No torch.

With 0 labels a metric is tested by its own score. With N, an SVR learns from its features of those N
pictures, tuned by cross-validation within them; that includes the pictures the model keeps for validation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grmp_edge.errors import DataError
from grmp_edge.files import replace_file
from grmp_edge.preprocess import read_image
from grmp_edge.train.data.labelled import Labelled, split_indices
from grmp_edge.train.data.set_files import DataSet
from grmp_edge.train.evaluate.handcrafted import Metric, metrics_named
from grmp_edge.train.evaluate.protocol import ProtocolConfig, SplitResult, measure
from grmp_edge.train.evaluate.store import (
    check_settings,
    data_settings,
    read_result,
    split_file,
    without_predictions,
    write_result,
)
from grmp_edge.train.evaluate.svr import SvrConfig, fit_predict
from grmp_edge.train.evaluate.tables import Tables
from grmp_edge.train.session.progress import Reporter, Silent

__all__ = ["BaselineConfig", "Measured", "evaluate_baselines", "measure_set", "run_baselines"]

Float = npt.NDArray[np.float64]

_VERSION = 1


@dataclass(frozen=True)
class BaselineConfig:
    """The hand-crafted metrics to compare with."""

    names: tuple[str, ...]  # of grmp_edge.train.evaluate.handcrafted.METRICS
    niqe_photos: Path | None = None  # fit NIQE's model to these photographs; None: its authors' model
    search: SvrConfig = field(default_factory=SvrConfig)


@dataclass(frozen=True)
class Measured:
    """A metric on every picture of a set."""

    features: Float  # (n, k), finite
    scores: Float  # (n,), higher is better; finite
    flat: int  # pictures without any texture, which the metric cannot measure: they have the set's median


def evaluate_baselines(
    config: BaselineConfig,
    data: Labelled,
    protocol: ProtocolConfig,
    tables: Tables,
    reporter: Reporter | None = None,
) -> None:
    """Run hand-crafted metrics on the splits, in ``tables.output/baselines``, and write the tables.

    Raises:
        UsageError: a metric is unknown.
        MissingDependencyError: a package of the extra is not installed.
        CheckpointError, DataError: see :func:`run_baselines`.
    """
    metrics = metrics_named(config.names, config.niqe_photos)
    tables.baselines = run_baselines(
        tables.output / "baselines", metrics, data, protocol, config.search, reporter
    )
    tables.remarks["baselines"] = [
        "baselines: with 0 labels the metric's own score, higher being better, else an RBF support vector "
        "regression on its features of all N labels, tuned by cross-validation within them",
        *(f"{metric.title}: {metric.about}" for metric in metrics.values()),
    ]
    tables.write()


def run_baselines(
    output: Path,
    metrics: Mapping[str, Metric],
    data: Labelled,
    config: ProtocolConfig,
    search: SvrConfig | None = None,
    reporter: Reporter | None = None,
) -> list[SplitResult]:
    """Run what is missing of the protocol for hand-crafted metrics.

    Args:
        output: a folder; each metric has one in it, with its features and its finished splits.
        metrics: by name (see :func:`grmp_edge.train.evaluate.handcrafted.metrics_named`).
        data: the set to learn from and test on.
        config: the protocol; 0 labels are always tested.
        search: the search for the SVR's settings.
        reporter: receives pictures, then splits, as steps.

    Returns:
        All splits, metric by metric, without their predictions. RMSE is None with 0 labels, as a metric's own
        score has another unit.

    Raises:
        CheckpointError: a folder holds a protocol of other settings.
        DataError: too few pictures for a number of labels, or an unreadable picture.
    """
    reporter, search = reporter or Silent(), search or SvrConfig()
    counts: list[int | None] = [0, *(labels for labels in config.labels if labels != 0)]
    jobs = [(labels, split) for split in range(config.splits) for labels in counts]
    for labels, split in jobs:
        split_indices(data, config.split(labels, split))  # too few pictures: fail before the work
    for name, metric in metrics.items():
        check_settings(output / name, _settings(metric, data, config, search))
    splits = []
    for name, metric in metrics.items():
        measured = measure_set(output / name / "features.npz", metric, data, reporter)
        if measured.flat:
            reporter.note(f"{metric.title}: {measured.flat} pictures have no texture to measure")
        files = [split_file(output / name, labels, split) for labels, split in jobs]
        results = [read_result(file) for file in files]
        reporter.start(f"{metric.title}: splits", len(jobs), sum(result is not None for result in results))
        for (labels, split), file, result in zip(jobs, files, results, strict=True):
            if result is None:
                result = _run_split(measured, data, config, search, labels, split)
                write_result(file, result)
                reporter.step()
            splits.append(without_predictions(result, metric.title))
    return splits


def measure_set(file: Path, metric: Metric, data: Labelled, reporter: Reporter) -> Measured:
    """A metric on every picture of a set, at the pictures' own size; cached in ``file``."""
    key = json.dumps(
        {"data": data_settings(data), "metric": metric.about, "version": _VERSION}, sort_keys=True
    )
    cached = _read_cache(file, key)
    if cached is None:
        reporter.start(f"{metric.title}: features", len(data))
        pixels = data.pixels if isinstance(data, DataSet) else None
        rows, values = [], []
        for index, path in enumerate(data.paths):
            image = read_image(path) if pixels is None else np.asarray(pixels[index], dtype=np.uint8)
            try:
                row, value = metric.measure(image)
            except DataError as error:
                raise DataError(f"{path}: {error.message}", error.remedy) from None
            rows.append(row)
            values.append(value)
            reporter.step()
        cached = np.array(rows, dtype=np.float64), np.array(values, dtype=np.float64)
        with replace_file(file) as temporary, temporary.open("wb") as stream:
            np.savez(stream, features=cached[0], scores=cached[1], key=np.array(key))
    features, scores = cached
    bad = ~(np.isfinite(features).all(1) & np.isfinite(scores))
    if bad.all():
        raise DataError(f"{data.name}: no picture has any texture to measure", "check that these are photos")
    features[bad], scores[bad] = np.median(features[~bad], 0), np.median(scores[~bad])
    return Measured(features, scores, int(bad.sum()))


def _read_cache(file: Path, key: str) -> tuple[Float, Float] | None:
    try:
        with np.load(file, allow_pickle=False) as content:
            if str(content["key"]) == key:
                return content["features"], content["scores"]
    except (OSError, ValueError, KeyError, EOFError):
        pass  # missing or incomplete: measured again
    return None


def _run_split(
    measured: Measured,
    data: Labelled,
    config: ProtocolConfig,
    search: SvrConfig,
    labels: int | None,
    split: int,
) -> SplitResult:
    drawn = split_indices(data, config.split(labels, split))
    test = list(drawn.test)
    svr: dict[str, float] | None = None
    if labels == 0:
        values = measured.scores[test]
        metrics = measure(values, data.mos[test], data.scale_of(range(len(data))))
        metrics["rmse"] = None
    else:
        known = sorted([*drawn.train, *drawn.validation])
        scale = data.scale_of(known)
        target = data.quality(scale)[known].astype(np.float64)
        fit = fit_predict(measured.features[known], target, measured.features[test], search)
        values, svr = fit.predicted, {"cost": fit.cost, "gamma": fit.gamma, "error": fit.error}
        metrics = measure(values, data.mos[test], scale)
    return {
        "labels": labels,
        "split": split,
        "seed": config.seed + split,
        "metrics": metrics,
        "svr": svr,
        "predictions": {"index": test, "mos": data.mos[test].tolist(), "value": values.tolist()},
    }


def _settings(metric: Metric, data: Labelled, config: ProtocolConfig, search: SvrConfig) -> dict[str, Any]:
    return {
        "format_version": _VERSION,
        "data": data_settings(data),
        "metric": metric.about,
        "protocol": {"test_fraction": config.test_fraction, "seed": config.seed},
        "search": asdict(search),
    }
