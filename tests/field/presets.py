"""The choices of preset `default`, each alone against what the released code does: an ablation.

    python tests/field/presets.py LABELS.csv PHOTOS -o OUT [--images DIR] [--labels 50] [--splits 10]

LABELS.csv has image,mos (0..100 by --mos-range), PHOTOS is a folder of pristine photographs. Prompts are
meta-learned (MPP) on the embedded backbone, then QGR learns from N labels, split by split; every row is the
first with one choice changed. The network sees the squash alone, as in the paper: only its place is drawn.
The stem, which never changes, is computed once per view and kept in memory. Finished splits stay in OUT, so
the same command goes on.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from grmp_edge.cli.progress import working
from grmp_edge.default_bundle import EMBEDDED
from grmp_edge.preprocess import squash
from grmp_edge.train.data.labelled import read_csv
from grmp_edge.train.evaluate.protocol import INTERVAL, ProtocolConfig, SplitResult, markdown_table, summarize
from grmp_edge.train.evaluate.splits import Variant, run_variants
from grmp_edge.train.meta import MetaConfig
from grmp_edge.train.network.backbone import BackboneConfig
from grmp_edge.train.network.embedded import load_embedded, load_prompts, save_embedded
from grmp_edge.train.network.stem import Stem
from grmp_edge.train.pictures.distort import DISTORTIONS
from grmp_edge.train.presets import PRESETS
from grmp_edge.train.runs import ModelConfig, run_pretrain
from grmp_edge.train.tasks import SyntheticConfig, Task, load_photographs, spread_labels, synthetic_tasks
from grmp_edge.views import Aggregate

DEFAULT = PRESETS["default"]


def main() -> None:
    """Learn the starts, run the splits, print the table after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--mos-range", default="0,100")
    parser.add_argument("--labels", type=int, default=50)
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--max-photos", type=int, default=12)
    parser.add_argument("--distortions", default=",".join(DISTORTIONS), help="comma-separated; default: all")
    parser.add_argument("--meta-epochs", type=int, help="of MPP; default: the backbone's")
    parser.add_argument("--epochs", type=int, help="of QGR; default: the backbone's")
    given = parser.parse_args()
    low, high = map(float, given.mos_range.split(","))
    data = read_csv(given.data, given.images, (low, high))
    given.output.mkdir(parents=True, exist_ok=True)
    weights = given.output / "squash.safetensors"
    clip = load_embedded()
    clip.native, clip.aggregate = 0, Aggregate()
    save_embedded(clip, load_prompts(), weights)
    model = ModelConfig.of(BackboneConfig(EMBEDDED, str(weights)), device="cpu")
    dropping = replace(model, prompts=replace(model.prompts, dropout=0.1))
    photographs = load_photographs(given.photos, most=given.max_photos)
    graded = synthetic_tasks(photographs, SyntheticConfig(tuple(given.distortions.split(","))))
    harmed = [_by_harm(task) for task in graded]
    usual = DEFAULT.meta(EMBEDDED, epochs=given.meta_epochs)
    # The pre-training of each row's start: network, tasks, settings.
    starts: dict[str, tuple[ModelConfig, list[Task], MetaConfig]] = {
        "default": (model, graded, usual),
        "antialiased": (model, graded, replace(usual, squash="antialiased")),
        "dropout": (dropping, graded, usual),
        "harm": (model, harmed, usual),
        "harm apart": (model, harmed, replace(usual, labels_apart=True)),
    }
    tune = partial(DEFAULT.finetune, EMBEDDED, method="qgr", label_scale="declared", epochs=given.epochs)
    rows = [
        ("default", "default", tune()),
        ("pre-training squashes anti-aliased", "antialiased", tune()),
        ("one offset for row and column", "default", tune(offsets="shared")),
        ("a tenth of the prompts dropped in both stages", "dropout", tune(prompt_dropout=True)),
        ("tasks' labels by measured harm", "harm", tune()),
        ("the same, scaled in support and query apart", "harm apart", tune()),
    ]
    _remember()
    with working(given.output, "the same command continues") as progress:
        for name, (network, tasks, config) in starts.items():
            run_pretrain(
                given.output / "starts" / name, network, [tasks], {"photos": len(photographs)}, config,
                resume=True, reporter=progress,
            )  # fmt: skip
        variants = [
            Variant(name, given.output / f"{number}", given.output / "starts" / start, config)
            for number, (name, start, config) in enumerate(rows)
        ]
        table = given.output / "table.md"

        def on_split(found: Sequence[SplitResult]) -> None:
            table.write_text(markdown_table(summarize(found), [INTERVAL]), encoding="utf-8")

        protocol = ProtocolConfig(given.splits, (given.labels,), validation_fraction=0.0)
        run_variants(variants, model, data, protocol, reporter=progress, on_split=on_split)
    print(table.read_text(encoding="utf-8"))


def _by_harm(task: Task) -> Task:
    """A task whose labels are what a distortion does to each picture, so that they differ by content."""
    pristine: dict[str, np.ndarray] = {}
    error = []
    for index, name in enumerate(task.references):
        seen = squash(task.read(index), 112).astype(np.float64)
        error.append(np.log1p(np.square(seen - pristine.setdefault(name, seen)).mean()))
    return replace(task, quality=spread_labels(-np.array(error)))


def _remember() -> None:
    """Compute the stem once for each view: float16 in memory, 70 KB a view."""
    compute, known = Stem.forward, dict[bytes, tuple[Tensor, ...]]()

    def remembered(self: Stem, pixels: Tensor) -> tuple[Tensor, ...]:
        keys = [hashlib.sha1(one.tobytes()).digest() for one in pixels.numpy()]
        for place, key in enumerate(keys):
            if key not in known:
                with torch.no_grad():
                    known[key] = tuple(output[0].half() for output in compute(self, pixels[place, None]))
        rows = zip(*(known[key] for key in keys), strict=True)
        return tuple(torch.stack(parts).float() for parts in rows)

    Stem.forward = remembered  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    main()
