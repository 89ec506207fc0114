"""The command ``evaluate``: the few-shot protocol, or an exported bundle on a labelled set."""

from __future__ import annotations

import json
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from grmp_edge import cli_options as opt
from grmp_edge.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    from grmp_edge.train.evaluate import ProtocolConfig
    from grmp_edge.train.finetune import FinetuneConfig

__all__ = ["register"]


class PresetName(str, Enum):
    default = "default"
    reference = "reference"


class PrecisionChoice(str, Enum):
    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"
    all = "all"


def register(app: typer.Typer) -> None:
    """Add ``evaluate`` to the app."""
    app.command()(evaluate)


def evaluate(
    data: Annotated[
        str, typer.Option("--data", help="Labelled set: NAME:PATH (see grmp-edge data check) or a csv.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for tables, plot and finished splits.")
    ] = Path("runs/evaluation"),
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help="Evaluate this exported bundle as it is; trains nothing.")
    ] = None,
    precision: Annotated[
        PrecisionChoice, typer.Option("--precision", help="Of the bundle: which graph, or all it has.")
    ] = PrecisionChoice.fp32,
    provider: Annotated[
        str, typer.Option("--provider", help="Of the bundle: auto, cpu, cuda or tensorrt.")
    ] = "auto",
    test_part: Annotated[
        int | None,
        typer.Option(
            "--test-part", help="Of the bundle: only the 20 % that training with this seed kept for testing."
        ),
    ] = None,
    splits: Annotated[int, typer.Option("--splits", min=1, help="Random 80/20 splits.")] = 10,
    labels: Annotated[
        str,
        typer.Option("--labels", "-n", help="Numbers of labels, comma-separated; 'all': the whole 80 %."),
    ] = "50,100,200",
    cross: Annotated[
        list[str] | None,
        typer.Option("--cross", help="Test every trained model on this set too; repeatable."),
    ] = None,
    start: Annotated[Path | None, typer.Option("--from", help="Pre-training checkpoint (MPP).")] = None,
    no_mpp: Annotated[bool, typer.Option("--no-mpp", help="Fine-tune from fresh prompts.")] = False,
    no_qgr: opt.NoQgr = False,
    preset: Annotated[
        PresetName,
        typer.Option(
            "--preset", help="reference: as the released code, with its leaks; the result is marked."
        ),
    ] = PresetName.default,
    images: opt.Images = None,
    mos_range: opt.MosRange = None,
    test_fraction: opt.TestFraction = 0.2,
    validation_fraction: Annotated[
        float | None,
        typer.Option(
            "--validation-fraction", min=0.0, max=0.9, help="Share of the labels that chooses the epoch."
        ),
    ] = None,
    backbone: opt.BackboneName = "embedded-s16",
    weights: opt.Weights = "",
    quick_gelu: opt.QuickGelu = None,
    normalization: opt.Norm = None,
    epochs: opt.Epochs = 2000,
    lr: opt.Lr = None,
    batch: opt.BatchSize = 192,
    strength: opt.Lambda = 5.0,
    projection: opt.ProjectionOption = opt.ProjectionChoice.per_tensor,
    select_on_test: opt.SelectOnTest = False,
    keep_checkpoints: Annotated[
        bool, typer.Option("--keep-checkpoints", help="Keep every split's checkpoint in OUTPUT/runs.")
    ] = False,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    as_json: opt.AsJson = False,
) -> None:
    """Run the few-shot protocol on a labelled set, or test an exported bundle on it.

    The protocol: random 80/20 splits, N labels of the 80 %, agreement on the 20 %; finished splits are kept,
    so that the same command continues what was interrupted.
    """
    from grmp_edge.cli_progress import TrainProgress
    from grmp_edge.cli_stages import ModelChoice, _range
    from grmp_edge.train.datasets import notes_of, read_spec

    if bundle is None and (start is None) != no_mpp:
        raise UsageError(
            "say where the prompts come from",
            "either --from PRETRAIN (made by: grmp-edge train pretrain) or --no-mpp",
        )
    labelled = read_spec(data, images, _range(mos_range))
    others = [read_spec(spec) for spec in cross or ()]
    for one in (labelled, *others):
        for note in notes_of(one):
            print(f"note: {note}", file=sys.stderr)
    if bundle is not None:
        from grmp_edge.cli_evaluate_bundle import evaluate_bundle

        evaluate_bundle(
            bundle, labelled, precision.value, provider, test_part, test_fraction, output, as_json
        )
        return
    _need_torch()
    from grmp_edge.train.evaluate import ProtocolConfig, run_protocol
    from grmp_edge.train.finetune import FinetuneConfig
    from grmp_edge.train.presets import leaks, preset_named

    chosen = preset_named(preset.value)
    finetune = FinetuneConfig(
        epochs=epochs, lr=lr, batch=batch, qgr=not no_qgr, qgr_strength=strength, projection=projection.value
    )
    finetune = chosen.finetune(finetune)
    if select_on_test:
        from dataclasses import replace

        finetune = replace(finetune, select_on="test")
    protocol = ProtocolConfig(
        splits,
        _labels(labels),
        test_fraction,
        chosen.validation_fraction if validation_fraction is None else validation_fraction,
        seed,
        keep_checkpoints,
    )
    wanted = normalization or (opt.Normalization(chosen.normalization) if chosen.normalization else None)
    model = ModelChoice(backbone, weights, quick_gelu, wanted, seed, device).config()
    with TrainProgress() as progress:
        result = run_protocol(output, model, start, labelled, protocol, finetune, others, progress)
    result = {
        "data": labelled.name,
        "preset": preset.value,
        "mpp": start is not None,
        "qgr": not no_qgr,
        "seed": seed,
        "leaks": leaks(finetune, _pretraining(start)),
        **result,
    }
    _finish(result, output, protocol, finetune, as_json)


def _finish(
    result: dict[str, Any], output: Path, protocol: ProtocolConfig, finetune: FinetuneConfig, as_json: bool
) -> None:
    from grmp_edge.files import replace_file
    from grmp_edge.train.datasets import READERS
    from grmp_edge.train.protocol import csv_table, markdown_table, text_table
    from grmp_edge.train.protocol_plot import plot_svg

    rows = result["rows"]
    kind, colon, _ = result["data"].partition(":")
    name = kind if colon and kind in READERS else Path(result["data"]).name
    parts = "with" if result["mpp"] else "without", "with" if result["qgr"] else "without"
    title = f"{name}: {parts[0]} MPP, {parts[1]} QGR, preset {result['preset']}"
    remarks = [
        f"{title}, seed {result['seed']}, at most {finetune.epochs} epochs",
        f"test part {protocol.test_fraction:.0%} of the set, validation "
        f"{protocol.validation_fraction:.0%} of the labels",
        "raw scores without a logistic fit; RMSE on a scale of 0 to 1; labels 0: before fine-tuning",
        *(f"not an honest figure: {leak}" for leak in result["leaks"]),
    ]
    for file, text in (
        ("results.json", json.dumps(result, indent=2) + "\n"),
        ("table.md", markdown_table(rows, remarks)),
        ("table.csv", csv_table(rows)),
        ("plot.svg", plot_svg(result["splits"], title)),
    ):
        with replace_file(output / file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    if as_json:
        print(json.dumps(result))
    else:
        print(title)
        print(text_table(rows))
        for leak in result["leaks"]:
            print(f"not an honest figure: {leak}")
    print(
        f"written: {output}/table.md, table.csv, plot.svg, results.json\n"
        "next: grmp-edge train --data ... (one model of these settings), then grmp-edge export",
        file=sys.stderr,
    )


def _labels(text: str) -> tuple[int | None, ...]:
    found: list[int | None] = []
    for part in text.replace(" ", "").split(","):
        if part == "all":
            found.append(None)
        elif part.isdecimal() and int(part) >= 4:
            found.append(int(part))
        else:
            raise UsageError(f"--labels {text!r}: {part!r} is no number of labels", "for instance 50,100,all")
    return tuple(dict.fromkeys(found))


def _pretraining(start: Path | None) -> dict[str, Any]:
    """A pre-training checkpoint's settings, as far as they tell of a leak."""
    try:
        return dict(json.loads((start / "config.json").read_bytes())) if start else {}
    except (OSError, ValueError):
        return {}


def _need_torch() -> None:
    from importlib.util import find_spec

    for package in ("torch", "open_clip", "safetensors"):
        if find_spec(package) is None:
            raise MissingDependencyError(package, "train", "the protocol trains, which")
