"""Hand-crafted metrics under the same protocol: the same splits, N labels and test parts. No torch.

With 0 labels a metric is tested by its own score; with N, an SVR learns from its features of those N pictures
(all of them: what the model keeps for validation included), tuned by cross-validation within them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grmp_edge.errors import DataError
from grmp_edge.files import replace_file
from grmp_edge.preprocess import read_image
from grmp_edge.train.data.labelled import Labelled, split_indices
from grmp_edge.train.data.set_files import DataSet
from grmp_edge.train.evaluate.handcrafted import Metric
from grmp_edge.train.evaluate.protocol import ProtocolConfig, measure, summarize
from grmp_edge.train.evaluate.store import data_settings, finished, keep, same_settings, split_file
from grmp_edge.train.evaluate.svr import SvrConfig, fit_predict
from grmp_edge.train.session.progress import Reporter, Silent

__all__ = ["Measured", "measure_set", "run_baselines"]

Float = npt.NDArray[np.float64]

_VERSION = 1


@dataclass(frozen=True)
class Measured:
    """A metric on every picture of a set."""

    features: Float  # (n, k), finite
    scores: Float  # (n,), higher is better; finite
    flat: int  # pictures without any texture, which the metric cannot measure: they have the set's median


def run_baselines(
    output: Path,
    metrics: Mapping[str, Metric],
    data: Labelled,
    config: ProtocolConfig,
    search: SvrConfig | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Run what is missing of the protocol for hand-crafted metrics.

    Args:
        output: a folder; each metric has one in it, with its features and its finished splits.
        metrics: by name (see :func:`grmp_edge.train.evaluate.handcrafted.metrics_named`).
        data: the set to learn from and test on.
        config: the protocol; 0 labels are always tested.
        search: how the SVR's settings are found.
        reporter: told of pictures and of splits.

    Returns:
        ``splits`` and ``rows``, as of :func:`grmp_edge.train.evaluate.splits.run_variants`; RMSE is None with
        0 labels, as a metric's own score has another unit.

    Raises:
        CheckpointError: a folder holds a protocol of other settings.
        DataError: too few pictures for a number of labels, or an unreadable picture.
    """
    reporter, search = reporter or Silent(), search or SvrConfig()
    counts: list[int | None] = [0, *(labels for labels in config.labels if labels != 0)]
    runs = [(labels, split) for split in range(config.splits) for labels in counts]
    for labels, split in runs:
        split_indices(data, config.split(labels, split))
    for name, metric in metrics.items():
        same_settings(output / name, _settings(metric, data, config, search))
    splits: list[dict[str, Any]] = []
    for name, metric in metrics.items():
        measured = measure_set(output / name / "features.npz", metric, data, reporter)
        if measured.flat:
            reporter.note(f"{metric.title}: {measured.flat} pictures have no texture to measure")
        files = [split_file(output / name, labels, split) for labels, split in runs]
        done = [finished(file) for file in files]
        reporter.start(f"{metric.title}: splits", len(runs), sum(one is not None for one in done))
        for (labels, split), file, before in zip(runs, files, done, strict=True):
            found = before
            if found is None:
                found = _split(measured, data, config, search, labels, split)
                keep(file, found)
                reporter.step()
            content = {key: value for key, value in found.items() if key != "predictions"}
            splits.append({"method": metric.title, **content})
    return {"splits": splits, "rows": summarize(splits)}


def measure_set(file: Path, metric: Metric, data: Labelled, reporter: Reporter) -> Measured:
    """A metric on every picture of a set, at the pictures' own size; kept in ``file`` for the next time."""
    key = json.dumps(
        {"data": data_settings(data), "metric": metric.about, "version": _VERSION}, sort_keys=True
    )
    kept = _kept(file, key)
    if kept is None:
        reporter.start(f"{metric.title}: features", len(data))
        pixels = data.pixels if isinstance(data, DataSet) else None
        rows, values = [], []
        for index, path in enumerate(data.paths):
            image = read_image(path) if pixels is None else np.asarray(pixels[index], dtype=np.uint8)
            try:
                measured = metric.measure(image)
            except DataError as error:
                raise DataError(f"{path}: {error.message}", error.remedy) from None
            rows.append(measured[0])
            values.append(measured[1])
            reporter.step()
        kept = np.array(rows, dtype=np.float64), np.array(values, dtype=np.float64)
        with replace_file(file) as temporary, temporary.open("wb") as stream:
            np.savez(stream, features=kept[0], scores=kept[1], key=np.array(key))
    features, scores = kept
    bad = ~(np.isfinite(features).all(1) & np.isfinite(scores))
    if bad.all():
        raise DataError(f"{data.name}: no picture has any texture to measure", "are they pictures at all?")
    features[bad], scores[bad] = np.median(features[~bad], 0), np.median(scores[~bad])
    return Measured(features, scores, int(bad.sum()))


def _kept(file: Path, key: str) -> tuple[Float, Float] | None:
    try:
        with np.load(file, allow_pickle=False) as content:
            if str(content["key"]) == key:
                return content["features"], content["scores"]
    except (OSError, ValueError, KeyError, EOFError):
        pass  # none yet, or not whole: measured again
    return None


def _split(
    measured: Measured,
    data: Labelled,
    config: ProtocolConfig,
    search: SvrConfig,
    labels: int | None,
    split: int,
) -> dict[str, Any]:
    drawn = split_indices(data, config.split(labels, split))
    test = list(drawn.test)
    chosen: dict[str, float] | None = None
    if labels == 0:
        values = measured.scores[test]
        found = measure(values, data.mos[test], data.scale_of(range(len(data))))
        found["rmse"] = None
    else:
        known = sorted([*drawn.train, *drawn.validation])
        scale = data.scale_of(known)
        target = data.quality(scale)[known].astype(np.float64)
        fit = fit_predict(measured.features[known], target, measured.features[test], search)
        values, chosen = fit.predicted, {"cost": fit.cost, "gamma": fit.gamma, "error": fit.error}
        found = measure(values, data.mos[test], scale)
    return {
        "labels": labels,
        "split": split,
        "seed": config.seed + split,
        "metrics": found,
        "svr": chosen,
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
