"""The few-shot protocol: random 80/20 splits, N labels of the 80 %, agreement on the 20 %.

Paper section 4. One JSON file per split and number of labels, written when it is finished; what is finished
is not run again, and a split that was interrupted continues from its checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grmp_edge.errors import CheckpointError, DataError
from grmp_edge.files import replace_file, sha256_file
from grmp_edge.preprocess import Preprocess
from grmp_edge.train.checkpoint import WEIGHTS, load_checkpoint
from grmp_edge.train.data import Labelled, SplitConfig, split_indices
from grmp_edge.train.finetune import FinetuneConfig, predict
from grmp_edge.train.progress import Reporter, Silent
from grmp_edge.train.protocol import label_name, measure, summarize
from grmp_edge.train.run import ModelConfig, pick_device, run_finetune

__all__ = ["InMemory", "ProtocolConfig", "run_protocol"]

UInt8Array = npt.NDArray[np.uint8]

_VERSION = 1


@dataclass(frozen=True)
class ProtocolConfig:
    """The protocol; the paper's unless a reason is given."""

    splits: int = 10
    labels: tuple[int | None, ...] = (50, 100, 200)  # None: all of the 80 %
    test_fraction: float = 0.2
    # Taken from the N labels to choose the epoch, which the paper's code lets the test part do.
    validation_fraction: float = 0.2
    seed: int = 0  # split k is drawn with seed + k; its test part is the same for every number of labels
    keep_checkpoints: bool = False  # they are needed for export, and large


@dataclass(frozen=True)
class InMemory(Labelled):
    """A labelled set whose squashed pictures are kept: the splits overlap, and decoding is slow.

    Holds at most pictures x side x side x 3 bytes (207 MB for LIVEC at 244).
    """

    base: Labelled | None = None
    kept: dict[int, tuple[UInt8Array, npt.NDArray[np.bool_]]] = field(
        default_factory=dict, compare=False, repr=False
    )

    @classmethod
    def of(cls, data: Labelled) -> InMemory:
        """Wrap a set."""
        return cls(data.name, data.paths, data.mos, data.references, data.distortions, data.scale, base=data)

    def squashed(
        self, indices: Sequence[int], side: int, on_image: Callable[[], None] | None = None
    ) -> UInt8Array:
        """The chosen pictures, (n, side, side, 3) RGB, decoded only if they never were at this side."""
        if side not in self.kept:
            # Pages are taken from the system only when they are written.
            self.kept[side] = np.empty((len(self), side, side, 3), np.uint8), np.zeros(len(self), np.bool_)
        pixels, known = self.kept[side]
        missing = [index for index in dict.fromkeys(indices) if not known[index]]
        if missing:
            found = self.base.squashed if self.base else super().squashed
            pixels[missing] = found(missing, side, on_image)
            known[missing] = True
        return pixels[list(indices)]


def run_protocol(
    output: Path,
    model: ModelConfig,
    start: Path | None,
    data: Labelled,
    config: ProtocolConfig,
    finetune: FinetuneConfig,
    cross: Sequence[Labelled] = (),
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Run what is missing of the protocol into ``output`` and summarise it.

    Args:
        output: a folder; with the same settings as before its finished splits are kept, and more splits or
            numbers of labels may be asked for.
        model: what to build where there is no ``start``; split k then begins from prompts of seed + k.
        start: a pre-training checkpoint.
        data: the set to learn from and test on.
        config: the protocol.
        finetune: the settings of every run; the seed is replaced by the split's.
        cross: further sets on the whole of which every trained model is tested.
        reporter: told of splits, and of the steps within one by their metrics.

    Returns:
        ``splits`` (the content of every split's file, without its predictions) and ``rows`` (see
        :func:`grmp_edge.train.protocol.summarize`).

    Raises:
        CheckpointError: ``output`` holds a protocol of other settings.
        DataError: too few pictures for a number of labels, or an unreadable picture.
    """
    reporter = reporter or Silent()
    runs = [(labels, split) for labels in config.labels for split in range(config.splits)]
    for labels, split in runs:
        split_indices(data, _split_config(config, labels, split))  # too few pictures: say so before the work
    if start is not None and not (start / WEIGHTS).is_file():
        raise CheckpointError(f"{start}: no such checkpoint", "make one with: grmp-edge train pretrain")
    _same_settings(output, _settings(model, start, data, config, finetune, cross))
    kept, others = InMemory.of(data), [InMemory.of(other) for other in cross]
    files = [output / "splits" / f"{label_name(labels)}-{split:02d}.json" for labels, split in runs]
    done = [_finished(file) for file in files]
    reporter.start("splits", len(runs), sum(found is not None for found in done))
    for place, (labels, split) in enumerate(runs):
        if done[place] is not None:
            continue
        found = _run_split(output, model, start, kept, config, finetune, others, labels, split, reporter)
        with replace_file(files[place]) as temporary:
            temporary.write_text(json.dumps(found), encoding="utf-8")
        if not config.keep_checkpoints:
            shutil.rmtree(_folder(output, labels, split), ignore_errors=True)
        done[place] = found
        metrics = found["metrics"]
        reporter.step(1)
        reporter.note(
            f"{label_name(labels)} labels, split {split}: SRCC {_shown(metrics['srcc'])}  "
            f"PLCC {_shown(metrics['plcc'])}  ({found['seconds']:.0f} s)"
        )
    if not config.keep_checkpoints and (output / "runs").is_dir():
        shutil.rmtree(output / "runs")
    finished = [{k: v for k, v in found.items() if k != "predictions"} for found in done if found]
    return {"splits": finished, "rows": summarize(finished)}


def _run_split(
    output: Path,
    model: ModelConfig,
    start: Path | None,
    data: Labelled,
    config: ProtocolConfig,
    finetune: FinetuneConfig,
    cross: Sequence[Labelled],
    labels: int | None,
    split: int,
    reporter: Reporter,
) -> dict[str, Any]:
    began = time.monotonic()
    folder, chosen = _folder(output, labels, split), _split_config(config, labels, split)
    tuned = replace(finetune, seed=chosen.seed)
    built = replace(model, seed=model.seed + split) if start is None else model
    progress = run_finetune(folder, built, start, data, chosen, tuned, True, _Within(reporter))
    loaded = load_checkpoint(folder, model.backbone.pretrained or None)
    network = loaded.model.to(pick_device(model.device))
    side = Preprocess.for_size(network.image.size).resize
    test = list(split_indices(data, chosen).test)
    predicted = predict(network, data.squashed(test, side))
    scale = loaded.mos or data.scale_of(range(len(data)))
    found = {
        "labels": labels,
        "split": split,
        "seed": chosen.seed,
        "epoch": progress["epoch"],
        "selected_on_test": progress["selected_on_test"],
        "metrics": measure(predicted, data.mos[test], scale),
        "zero_shot": progress["metrics"].get("zero_shot_test"),
        "cross": {},
        "predictions": {
            "index": test,
            "mos": data.mos[test].tolist(),
            "value": [float(value) for value in predicted],
        },
    }
    for other in cross:
        every = range(len(other))
        values = np.concatenate(
            [predict(network, other.squashed(every[at : at + 512], side)) for at in range(0, len(other), 512)]
        )
        found["cross"][other.name] = measure(values, other.mos, other.scale_of(every))
    return {**found, "seconds": time.monotonic() - began}


def _split_config(config: ProtocolConfig, labels: int | None, split: int) -> SplitConfig:
    return SplitConfig(labels, config.test_fraction, config.validation_fraction, config.seed + split)


def _folder(output: Path, labels: int | None, split: int) -> Path:
    return output / "runs" / f"{label_name(labels)}-{split:02d}"


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


class _Within:
    """Steps inside a split: their metrics are shown, but what counts is splits."""

    def __init__(self, outer: Reporter) -> None:
        self.outer = outer

    def start(self, stage: str, total: int, done: int = 0) -> None:
        """Ignored: there would be one bar for every stage of every split."""

    def step(self, count: int = 1, **metrics: float) -> None:
        """Show the metrics."""
        self.outer.step(0, **metrics)

    def note(self, text: str) -> None:
        """Pass on."""
        self.outer.note(text)


def _settings(
    model: ModelConfig,
    start: Path | None,
    data: Labelled,
    config: ProtocolConfig,
    finetune: FinetuneConfig,
    cross: Sequence[Labelled],
) -> dict[str, Any]:
    """All that a finished split depends on; splits and labels may grow."""
    protocol = asdict(config)
    for free in ("splits", "labels", "keep_checkpoints"):
        del protocol[free]
    return {
        "format_version": _VERSION,
        "data": _data_settings(data),
        "cross": [_data_settings(other) for other in cross],
        "model": None if start else {"backbone": asdict(model.backbone), "prompts": asdict(model.prompts)},
        "start": sha256_file(start / WEIGHTS) if start and (start / WEIGHTS).is_file() else None,
        "protocol": protocol,
        "finetune": {key: value for key, value in asdict(finetune).items() if key != "seed"},
    }


def _data_settings(data: Labelled) -> dict[str, Any]:
    digest = hashlib.sha256("\n".join(path.name for path in data.paths).encode())
    digest.update(np.ascontiguousarray(data.mos, dtype=np.float64).tobytes())
    return {
        "name": data.name,
        "pictures": len(data),
        "digest": digest.hexdigest(),
        "scale": asdict(data.scale) if data.scale else None,
    }


def _same_settings(output: Path, settings: dict[str, Any]) -> None:
    file = output / "protocol.json"
    wanted = json.loads(json.dumps(settings))
    if not file.exists() or not any((output / "splits").glob("*.json")):  # nothing to disagree with
        with replace_file(file) as temporary:
            temporary.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
        return
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        raise CheckpointError(f"{file}: damaged", "choose another -o") from None
    for key in wanted:
        if found.get(key) != wanted[key]:
            raise CheckpointError(
                f"{output}: holds an evaluation of other settings ({key} differs)",
                "use the same settings and data, or another -o",
            )


def _finished(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_bytes())
        found["metrics"], found["labels"], found["split"]
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{file}: damaged", "remove it, and that split is run again") from None
    return dict(found)
