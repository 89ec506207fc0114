"""The recipe of the embedded backbone: from photographs and procedural pictures to the weights that ship.

python -m grmp_edge.train.recipe --photos DIR -o embedded-s16.safetensors

Without further options it runs all phases of the recipe; with any, a single phase, for instance to continue
with unlabelled frames of your own cameras: ``--start FILE --wild DIR --groups 8``.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from open_clip.model import CLIP
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from grmp_edge.errors import DataError, GrmpError
from grmp_edge.train.network.embedded import (
    build_embedded,
    load_embedded,
    save_embedded,
    thinned,
    token_ids_of,
)
from grmp_edge.train.network.merging import GroupDropout
from grmp_edge.train.recipe.batches import batches_of
from grmp_edge.train.recipe.captions import vocabulary
from grmp_edge.train.recipe.config import FIRST_SHAPE, PHASES, RECIPE, RecipeConfig
from grmp_edge.train.recipe.groups import load_photos
from grmp_edge.train.recipe.measure import judge_of, ranking_report
from grmp_edge.train.recipe.objective import Objective, normalise
from grmp_edge.train.recipe.patch_conv import as_patches
from grmp_edge.train.recipe.real_photos import WildConfig, load_wild
from grmp_edge.train.recipe.start import start_image_tower

__all__ = ["main", "train_backbone"]


def _optimizer(objective: Objective, config: RecipeConfig) -> torch.optim.AdamW:
    decay: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, value in objective.named_parameters():
        if not value.requires_grad:
            continue
        exempt = value.ndim < 2 or "embedding" in name or name == "rows"
        (plain if exempt else decay).append(value)
    groups = [{"params": decay, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98))


def _rate(config: RecipeConfig, done: float) -> float:
    """Learning rate at the share ``done`` of the schedule: linear warm-up, then a half cosine to zero."""
    if done < config.warmup:
        return config.learning_rate * (done + 1e-3) / config.warmup
    phase = (done - config.warmup) / (1 - config.warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, phase)))


@torch.no_grad()
def _average(model: CLIP, others: Mapping[str, Tensor]) -> None:
    """Move every weight half of the way to another's (Wortsman et al. 2022, "model soups")."""
    for name, value in model.named_parameters():
        value.lerp_(others[name], 0.5)


def train_backbone(
    photos: Sequence[Path],
    out: Path,
    config: RecipeConfig,
    console: Console,
    wild_photos: Sequence[Path] = (),
) -> CLIP:
    """Train the backbone and write it, with a snapshot every few minutes.

    Args:
        photos: folders of clean photographs.
        out: the safetensors file; its folder must exist.
        config: the recipe.
        console: where progress goes.
        wild_photos: folders of real photographs of any quality; read where ``config.wild`` is set.

    Returns:
        The trained network, in evaluation mode.

    Raises:
        DataError: no photographs.
        ModelError: the weights became infinite.
    """
    training, held = load_photos(photos, config.held_out)
    if len(training) + config.procedural < config.groups:
        raise DataError(f"{len(training)} photographs are too few", f"give at least {config.groups}")
    wild = load_wild(wild_photos, config.wild.held_out)[0] if config.wild else []
    if config.wild and len(wild) < config.wild.groups:
        raise DataError(f"{len(wild)} real photographs are too few", f"give at least {config.wild.groups}")
    torch.manual_seed(config.seed)
    model = load_embedded(config.start) if config.start else build_embedded(FIRST_SHAPE)
    if config.blocks is not None:
        model = thinned(model, config.blocks, config.merge)
    model.train()
    # Now, as the snapshots may take the place of the file.
    began_with = {n: v.detach().clone() for n, v in model.named_parameters()} if config.average else {}
    model.visual.conv1 = as_patches(model.visual.conv1)
    ids = token_ids_of(vocabulary())
    objective = Objective(model, config.loss, ids, config.wild)
    optimizer = _optimizer(objective, config)
    names = sorted({photo.name.split("/")[0] for photo in (*training, *wild)})
    header = {"recipe": RECIPE, "seed": str(config.seed), "data": ", ".join([*names, "procedural"])}
    header["config"] = repr({**asdict(config), "start": config.start.name if config.start else None})
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    dropping = GroupDropout(config.keep, int(model.visual.grid_size[0]))
    smooth: dict[str, float] = {}
    step, done = 0, 0.0
    with batches_of(training, wild, config) as batches, Progress(*columns, console=console) as progress:
        task = progress.add_task("backbone", total=1.0, state="starting")
        pixels = normalise(torch.from_numpy(next(batches).images))
        if not config.start:
            start_image_tower(model, pixels, config.seed)
        began = saved = time.monotonic()
        while step < config.steps and done < 1:
            batch = next(batches)
            model.visual.patch_dropout = dropping if done < 1 - config.full_share else nn.Identity()
            for group in optimizer.param_groups:
                group["lr"] = _rate(config, done)
            pixels = normalise(torch.from_numpy(batch.images))
            # For the few tokens left the plain attention kernel is faster, for all of them the fused one.
            few = model.visual.patch_dropout is dropping
            with sdpa_kernel(SDPBackend.MATH if few else SDPBackend.FLASH_ATTENTION):
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.bfloat16):
                    loss, parts = objective(batch, pixels)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
            nn.utils.clip_grad_norm_(objective.parameters(), config.clip_norm)
            optimizer.step()
            step += 1
            now = time.monotonic()
            clock = (now - began) / (60 * config.minutes) if config.minutes else 0.0
            done = max(step / config.steps, clock)
            for name, value in parts.items():
                smooth[name] = value if name not in smooth else 0.97 * smooth[name] + 0.03 * value
            figures = " ".join(f"{name} {value:.3f}" for name, value in smooth.items())
            rate = step * len(batch.images) / (now - began)
            progress.update(task, completed=min(1.0, done), state=f"step {step} {rate:.0f}/s {figures}")
            if step % 50 == 0 and not console.is_terminal:
                console.print(
                    f"{now - began:6.0f} s  step {step}  {rate:.0f} pictures/s  {figures}", soft_wrap=True
                )
            if now - saved > 60 * config.save_every:
                saved = now
                objective.settle()
                save_embedded(model, out, ids, {**header, "steps": str(step)})
    objective.settle()
    model.visual.patch_dropout = nn.Identity()
    model.eval()
    if began_with:
        _average(model, began_with)
    digest = save_embedded(model, out, ids, {**header, "steps": str(step)})
    console.print(f"wrote {out}, {step} steps, SHA-256 {digest}")
    if held:
        console.print(ranking_report(judge_of(model), held, seed=config.seed))
    return model


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and train; returns the exit code."""
    parser = argparse.ArgumentParser(description="train the embedded backbone")
    parser.add_argument("--photos", type=Path, nargs="+", required=True, help="folders of clean photographs")
    parser.add_argument("--wild", type=Path, nargs="+", default=[], help="folders of real photographs")
    parser.add_argument("--groups", type=int)
    parser.add_argument("--minutes", type=float, help="run the schedule by the clock")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--start", type=Path, help="weights to start from")
    parser.add_argument("--blocks", type=_numbers, help="image blocks of the start to keep, such as 0,1,2,5")
    parser.add_argument("--merge", type=int, help="the kept block before which tokens merge")
    parser.add_argument("--unshrunk", type=float)
    parser.add_argument("--varied", type=float, help="share of pictures in other light, colours and focus")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--scenes-differ", action="store_true", default=None, help="see scene_quality.py")
    parser.add_argument(
        "--average", action="store_true", default=None, help="with the weights it starts from"
    )
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: its own choice")
    parser.add_argument("-o", "--out", type=Path, required=True)
    given = vars(parser.parse_args(arguments))
    photos, out, threads, wild = (given.pop(name) for name in ("photos", "out", "threads", "wild"))
    if threads:
        torch.set_num_threads(threads)
    console = Console(stderr=True)
    asked = {name: value for name, value in given.items() if value is not None}
    if asked and wild:  # shown whole, they are soon memorised: docs/experiments.md, 13
        asked |= {"wild": WildConfig(), "full_share": 0.0}
    phases = (replace(RecipeConfig(), **asked),) if asked else PHASES
    if wild and not asked:
        parser.error("--wild needs a single phase: give --start or --steps with it")
    if "average" in asked and "start" not in asked:
        parser.error("--average needs --start: otherwise it would average with random weights")
    if ("blocks" in asked and "start" not in asked) or ("merge" in asked and "blocks" not in asked):
        parser.error("--merge needs --blocks, and --blocks needs --start")
    try:
        for number, phase in enumerate(phases):
            console.print(f"phase {number + 1} of {len(phases)}")
            train_backbone(photos, out, replace(phase, start=out) if number else phase, console, wild)
    except GrmpError as error:
        console.print(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        console.print("stopped; the last snapshot, if any, is kept")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
