"""What decides the shipped weights: the settings of one phase, and the phases of the recipe."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from grmp_edge.train.network.embedded import Shape
from grmp_edge.train.recipe.objective import LossConfig
from grmp_edge.train.recipe.real_photos import WildConfig
from grmp_edge.train.recipe.scene_quality import FAULTS

__all__ = ["FIRST_SHAPE", "PHASES", "RECIPE", "RecipeConfig"]

RECIPE = "5"
FIRST_SHAPE = Shape(
    layers=8, merge=None
)  # what is trained from random weights; the last phase makes it smaller


@dataclass(frozen=True)
class RecipeConfig:
    """Everything that decides the weights."""

    seed: int = 1  # of pictures, weights and dropout
    steps: int = 1100  # 70,000 pictures: 10 to 45 minutes on two cores
    minutes: float | None = None  # if set, the schedule runs by the clock and ends there or at `steps`
    groups: int = 16  # sources a batch, each in 4 states: as many as fit the 2 cores' cache well
    keep: float = 0.25  # of the patches (FLIP, Li et al. 2023): a step costs a third; faults show everywhere
    full_share: float = 0.08  # of the schedule with all patches, to close the gap to how it is used
    learning_rate: float = 6e-4  # below the usual 1e-3: the start is worth keeping
    warmup: float = 0.04  # of the schedule, so that the text tower does not run off
    weight_decay: float = 0.05  # a hundred photographs are few
    clip_norm: float = 1.0  # against single batches of extreme pictures
    procedural: int = 60  # pictures in the pool, one replaced each step
    held_out: int = 7  # every 7th photograph is never trained on, so that ranking can be measured
    unshrunk: float = 0.0  # see PHASES
    scenes_differ: bool = False  # True in the later PHASES: until then the axis only knows faults
    varied: float = 0.0  # share of clean pictures taken with another lens, in other light: light_and_lens.py
    fault_logits: float = FAULTS  # what the worst faults weigh beside the scene; see scene_quality.py
    start: Path | None = None  # weights to start from, instead of random ones
    blocks: tuple[int, ...] | None = None  # image blocks of the start to keep; None: all
    merge: int | None = None  # with `blocks`: the one of them before which tokens merge; see merging.py
    average: bool = False  # with the weights it started from: better than both (docs/experiments.md, 16)
    save_every: float = 5.0  # minutes between snapshots
    bfloat16: bool = True  # 1.5 times as fast where the CPU has it, and no slower elsewhere
    loss: LossConfig = field(default_factory=LossConfig)
    wild: WildConfig | None = None  # set where unlabelled real photographs take part


# What made the shipped weights. The first phase learns from smoothly shrunk pictures, being easier; the later
# ones mostly from pictures squashed straight from full size, which alias as in use. Three phases only know
# faults; then scenes differ too, at first with a heavier hand on faults, so that these are not forgotten. The
# last two keep what the network turned out to need: five blocks of eight, three of them at a quarter of the
# places, which leaves the time to see more of each picture.
_FAULTS_FIRST = RecipeConfig(
    fault_logits=4.0, loss=LossConfig(rank=0.5, margin=0.5), unshrunk=0.7, full_share=0.12
)
_SCENES = replace(_FAULTS_FIRST, scenes_differ=True, full_share=0.06)
_LAST = RecipeConfig(learning_rate=4e-4, unshrunk=0.7, varied=0.6, scenes_differ=True, average=True)
_THIN = replace(_LAST, keep=0.6, full_share=0.12)
PHASES = (
    replace(_FAULTS_FIRST, seed=1, steps=1090, unshrunk=0.0),
    replace(_FAULTS_FIRST, seed=2, steps=2447, learning_rate=5e-4),
    replace(_FAULTS_FIRST, seed=3, steps=867, learning_rate=4e-4),
    replace(_SCENES, seed=4, steps=450, learning_rate=5e-4),
    replace(_SCENES, seed=5, steps=550, learning_rate=4e-4, average=True),
    replace(_SCENES, seed=11, steps=800, learning_rate=5e-4, varied=0.7, full_share=0.12),
    replace(_LAST, seed=12, steps=500),
    replace(_THIN, seed=13, steps=1000, blocks=(0, 1, 2, 3, 5), merge=2),
    replace(_THIN, seed=14, steps=500),
)
