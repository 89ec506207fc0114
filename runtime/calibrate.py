"""Recalibration on the device: a few labels become a new head of an exported bundle, without torch.

The network is frozen, so what it sees in the labelled pictures is read once, and the head is a ridge
regression in closed form (:mod:`grmp_edge.head`): the one that ``train`` fits by default from the same
labels. The new bundle has the same graphs but for the head's constants.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grmp_edge import __version__
from grmp_edge.bundle import Bundle, refuse_other, write_bundle
from grmp_edge.check_pictures import NAME, check_pictures
from grmp_edge.errors import DataError, ParityError
from grmp_edge.files import folder_beside, sha256_bytes
from grmp_edge.head import Fit, Seen, Twins, conformal_width, cross_validated, fit_head
from grmp_edge.metrics import agreement, srcc_interval
from grmp_edge.parity import LinkReport, ParityReport, judge, limit_for
from grmp_edge.runtime.backends import BackendOptions, OnnxRuntimeBackend
from grmp_edge.runtime.graph_head import GraphHead, Reading, ViewReader, read_head, write_head
from grmp_edge.score import Interval, MosScale
from grmp_edge.views import sigmoid

__all__ = ["CalibrateConfig", "Calibrated", "calibrate", "see"]

UInt8Array = npt.NDArray[np.uint8]
Float = npt.NDArray[np.float64]

_LEAST = 8  # labels; of fewer, cross-validation has nothing to learn from
_ROOM = 16  # views in one run
_AGAINST = "the fp32 graph's features by the new head, float64"


@dataclass(frozen=True)
class CalibrateConfig:
    """How a head is fitted."""

    coverage: float = 0.9  # of the scores' intervals; nine labels suffice for it, .95 needs nineteen
    seed: int = 0  # of the folds
    twins: int = 32  # distorted copies of pictures, at most: they cost as much, and more tell little more
    threads: int | None = None  # of onnxruntime; None: its choice


@dataclass(frozen=True)
class Calibrated:
    """The new bundle, and how well it does."""

    bundle: Bundle
    report: dict[str, Any]  # plain JSON: see :func:`calibrate`


def calibrate(
    bundle: Bundle,
    pictures: Callable[[int], UInt8Array],
    mos: npt.NDArray[np.float64],
    scale: MosScale,
    output: Path,
    config: CalibrateConfig | None = None,
    twin: Callable[[UInt8Array, int], UInt8Array] | None = None,
    on_picture: Callable[[], None] = lambda: None,
) -> Calibrated:
    """Fit a bundle's head to labels and write it as a new bundle, in one step.

    Args:
        bundle: an exported one with a float32 graph; it stays as it is.
        pictures: picture i of the labelled ones, uint8 (H, W, 3) RGB.
        mos: their opinion scores (n,).
        scale: of the scores.
        output: the bundle to write.
        config: how to fit.
        twin: a plainly distorted copy of a picture, by its number: what must score lower. None: none.
        on_picture: called after each picture and each copy.

    Returns:
        The new bundle; its ``report`` has ``start`` and ``calibrated`` (SRCC, PLCC, KRCC, RMSE in 0..1,
        count and the interval of SRCC; the second by cross-validation, in which every picture is scored by a
        head that did not see its label), ``fit`` (how the head was chosen), ``interval``, ``left_out``
        (graphs that did not pass, with the reason) and ``seconds``.

    Raises:
        BundleError: the graphs' heads cannot be replaced, or ``output`` is no bundle and exists.
        DataError: too few labels.
        ParityError: the new float32 graph does not score as it was calculated.
    """
    config, started = config or CalibrateConfig(), time.monotonic()
    if len(mos) < _LEAST:
        raise DataError(
            f"{len(mos)} labels are too few to calibrate with", f"label {_LEAST} pictures or more"
        )
    refuse_other(output)
    head = read_head(bundle, "fp32")
    others = {name: read_head(bundle, name) for name in bundle.graphs}
    precisions = [name for name, other in others.items() if _same_head(head, other)]
    with folder_beside(output) as folder:
        probe, work = folder / "probe", folder / "work"
        probe.mkdir()
        work.mkdir()
        read = ViewReader(bundle, probe, config.threads)
        seen, first = see(bundle, read, (pictures(i) for i in range(len(mos))), on_picture)
        twins = None
        if twin is not None and bundle.preprocess.native:
            count = min(len(mos), config.twins)
            made, _ = see(bundle, read, (twin(pictures(i), i) for i in range(count)), on_picture)
            twins = Twins(made, np.arange(count, dtype=np.int64))
        quality = np.array([scale.to_value(float(value)) for value in mos])
        actual = (mos - scale.low) / (scale.high - scale.low)
        fit = fit_head(seen, quality, twins, config.seed)
        honest = sigmoid(cross_validated(seen, quality, twins, config.seed))
        aggregate = bundle.aggregate
        new = head.after(fit.head, aggregate.whole + aggregate.native, aggregate.shift)
        for name in dict.fromkeys(
            file for one in precisions for file in (bundle.graph(one), *bundle.data_files(one))
        ):
            shutil.copyfile(name, work / name.name)
        write_head(bundle, new, work, precisions)
        parity, left_out = _gate(bundle, work, precisions, new, first, read, config)
        left_out |= {name: "its head is another" for name in others if name not in precisions}
        kept = [name for name in precisions if name not in left_out]
        width = conformal_width(honest, actual, config.coverage)
        interval = None if width is None else Interval(width, config.coverage, len(mos))
        report: dict[str, Any] = {
            "start": _measures(sigmoid(seen.logits), actual),
            "calibrated": _measures(honest, actual),
            "fit": dict(fit.report),
            "interval": None if interval is None else asdict(interval),
            "left_out": left_out,
        }
        provenance = {**bundle.provenance, "calibrated": _provenance(bundle, fit, report, len(mos))}
        logits = next(iter(bundle.graphs.values())).logits
        made_bundle = write_bundle(
            output,
            {name: (work / bundle.graphs[name].file, bundle.graphs[name].opset) for name in kept},
            files=[work / name for name, file in bundle.files.items() if set(file.graphs) & set(kept)],
            backbone=bundle.backbone,
            preprocess=bundle.preprocess,
            normalization=bundle.normalization,
            mos=scale,
            parity=parity,
            provenance=provenance,
            aggregate=aggregate,
            causes=bundle.causes,
            logits=logits,
            interval=interval,
        )
    return Calibrated(made_bundle, {**report, "seconds": time.monotonic() - started})


def _same_head(head: GraphHead, other: GraphHead) -> bool:
    """Whether two graphs have the same head: theirs is replaced by the same constants."""
    return len(head.row) == len(other.row) and np.allclose(head.direction, other.direction, atol=1e-4)


def see(
    bundle: Bundle, read: ViewReader, pictures: Any, on_picture: Callable[[], None]
) -> tuple[Seen, list[tuple[UInt8Array, Reading]]]:
    """What the network sees in pictures, aggregated over views; and views of the first for the gate."""
    logits, features, statistics = [], [], []
    first: list[tuple[UInt8Array, Reading]] = []
    aggregate = bundle.aggregate
    for picture in pictures:
        views = bundle.preprocess.views(picture).pixels
        reading = _joined([read(views[at : at + _ROOM]) for at in range(0, len(views), _ROOM)])
        logits.append(float(aggregate(reading.logits)))
        # The shift belongs to the logit alone.
        features.append(aggregate(reading.features) - aggregate.shift)
        statistics.append(aggregate(reading.statistics) - aggregate.shift)
        if len(first) < _ROOM:
            first.append((views, reading))
        on_picture()
    return Seen(np.array(logits), np.stack(features), np.stack(statistics)), first


def _joined(parts: Sequence[Reading]) -> Reading:
    return Reading(
        np.concatenate([part.logits for part in parts]),
        np.concatenate([part.features for part in parts]),
        np.concatenate([part.statistics for part in parts]),
    )


def _gate(
    bundle: Bundle,
    work: Path,
    precisions: Sequence[str],
    head: GraphHead,
    first: Sequence[tuple[UInt8Array, Reading]],
    read: ViewReader,
    config: CalibrateConfig,
) -> tuple[ParityReport, dict[str, str]]:
    """Judge the new graphs by the bundle's own limits; the report, and why graphs are left out.

    What they are compared with is calculated apart from them: in float64, from the features of the old graph.
    """
    views = np.concatenate([pixels for pixels, _ in first])
    reference = sigmoid(np.concatenate([reading.by(head) for _, reading in first]))
    check = bundle.parity.get("check")
    seed, count = (check["seed"], check["count"]) if check and check["pictures"] == NAME else (0, 16)
    computed = check_pictures(count, bundle.input_size, seed)
    scores: dict[str, list[float]] = {"reference": sigmoid(read(computed).by(head)).tolist()}
    links: dict[str, LinkReport] = {}
    left_out: dict[str, str] = {}
    for precision in precisions:
        graph = bundle.graphs[precision]
        options = BackendOptions("cpu", config.threads)
        backend = OnnxRuntimeBackend(work / graph.file, graph, bundle.input_size, options)
        try:
            parts = [backend.raw(views[at : at + _ROOM]) for at in range(0, len(views), _ROOM)]
            verdict = judge(
                reference, np.concatenate(parts).astype(np.float64), limit_for(bundle.parity, precision)
            )
            scores[precision] = backend.raw(computed).tolist()
        finally:
            backend.close()
        if verdict.problem:
            left_out[precision] = verdict.problem
            del scores[precision]
            continue
        links[precision] = {"against": _AGAINST, **verdict.to_json(), "passed": True}
    if "fp32" in left_out:
        raise ParityError(
            f"the calibrated fp32 graph does not score as calculated: {left_out['fp32']}",
            "nothing was written; report it with what grmp-edge doctor prints",
        )
    parity = ParityReport(
        images=f"{len(first)} labelled pictures; {len(views)} views",
        reference={
            "model": _AGAINST,
            "images": len(views),
            "mean": float(reference.mean()),
            "std": float(reference.std()),
        },
        links=links,
        check={
            "pictures": NAME,
            "seed": seed,
            "count": count,
            "sha256": sha256_bytes(computed.tobytes()),
            "scores": scores,
        },
    )
    if "gate" in bundle.parity:
        parity["gate"] = bundle.parity["gate"]
    return parity, left_out


def _measures(predicted: Float, actual: Float) -> dict[str, Any]:
    values = {
        name: None if np.isnan(value) else value
        for name, value in asdict(agreement(predicted, actual)).items()
    }
    return {**values, "srcc_interval": srcc_interval(predicted, actual)}


def _provenance(bundle: Bundle, fit: Fit, report: dict[str, Any], labels: int) -> dict[str, Any]:
    return {
        "by": f"grmp-edge {__version__}",
        "from": bundle.id,
        "labels": labels,
        "head": dict(fit.report),
        "cross_validation": report["calibrated"],
    }
