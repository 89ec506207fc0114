"""What never changes in fine-tuning, computed once: the frozen blocks' tokens and the teacher's logits."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from grmp_edge.train.data.labelled import Crops
from grmp_edge.train.network.model import GrmpIqa
from grmp_edge.train.network.towers import ImageTower
from grmp_edge.train.session.precision import Numerics
from grmp_edge.train.session.ranks import ALONE, Team

__all__ = ["CentreScores", "Cut", "FrozenCache", "Teacher", "ViewScores", "group_size", "view_weights"]

UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]

# Pictures computed together. A GPU needs many to be busy; on a CPU core, beyond a few the products get no
# faster (8 instead of 1: 5 to 10 % on the embedded backbone) and the activations no longer fit its cache.
_GROUP = {"cuda": 64, "cpu": 8}


class Cut(NamedTuple):
    """Where a training picture is cut out of its squash, and whether it is mirrored."""

    row: int
    column: int
    flip: bool


class Teacher:
    """The plain CLIP of the start, without any prompts, frozen: what the picture shows."""

    def __init__(self, model: GrmpIqa) -> None:
        clip = nn.Module()
        clip.visual = copy.deepcopy(model.image.visual)  # the student's last blocks will move away
        self.tower = ImageTower(clip, model.backbone.name)
        with torch.no_grad():
            self.scenes = model.scene_features()

    @torch.no_grad()
    def logits(self, model: GrmpIqa, pixels: Tensor) -> Tensor:
        """Scaled cosines with the nine scenes, (B, 9)."""
        return model.logits(self.tower.plain(pixels), self.scenes)


def group_size(
    model: GrmpIqa, images: UInt8Array, batch: int, epochs: int, budget: int, independent: bool = True
) -> int:
    """How many pictures to compute together; depends on the settings only.

    ``independent``: rows and columns of a cut are drawn apart, so that there are more views to keep.

    One at a time where batches take only a part of the pictures, and either not every view can be kept or
    the run is too short to come back to most of them: the rest of a group would be computed for nothing.
    """
    margin = images.shape[1] - model.image.size
    width, places = model.image.width, _places(model)
    views = 2 * max(1, margin) ** (2 if independent else 1)
    everything = views * len(images) * places * width * 4
    whole = batch >= len(images) or (everything <= budget and epochs >= views)
    return _GROUP.get(model.ctx.device.type, 1) if whole else 1


class FrozenCache:
    """What never changes in fine-tuning, by picture and view: frozen blocks' tokens, the teacher's logits.

    A view is a cut. Pictures are computed in fixed groups: which ones are computed
    together must not depend on which are missing, for a matrix product's rounding depends on its shape, and
    a resumed run with its empty cache would part from one that was never stopped. Least recently used groups
    leave when the budget is full.

    Args:
        model: its frozen blocks and prompts.
        teacher: None without QGR.
        images: squashed pictures, uint8 (n, R, R, 3).
        budget: bytes of tokens to cache.
        group: pictures computed together.
        numerics: precision of the computation; float32 by default. Cached tokens are always float32.
        team: only the rank's own pictures (see :meth:`Team.mine`) may be asked for.
        dropout: on the prompts, while the model is in training mode; then only the teacher's logits are kept.
    """

    def __init__(
        self,
        model: GrmpIqa,
        teacher: Teacher | None,
        images: UInt8Array,
        budget: int,
        group: int = 1,
        numerics: Numerics | None = None,
        team: Team = ALONE,
        dropout: bool = False,
    ) -> None:
        self.model, self.teacher, self.images = model, teacher, images
        self.budget = 0 if dropout else budget
        self.numerics = numerics or Numerics("fp32", model.ctx.device.type)
        own = [index for index in range(len(images)) if team.mine(index)]
        self.groups = [own[at : at + group] for at in range(0, len(own), group)]
        self.place = {index: (g, row) for g, of in enumerate(self.groups) for row, index in enumerate(of)}
        self.cached: OrderedDict[tuple[int, Cut], tuple[Tensor, Tensor | None]] = OrderedDict()
        self.straight: dict[tuple[int, Cut], Tensor] = {}  # of every group and view seen: it is little
        self.used = 0
        self.extras = [] if dropout else _frozen_prompts(model)

    def get(self, indices: list[int], cut: Cut) -> tuple[Tensor, Tensor | None]:
        """Tokens (B, L, W) after the frozen blocks and the teacher's logits (B, 9), if there is a teacher."""
        places = [self.place[index] for index in indices]
        values = {group: self._group(group, cut) for group in sorted({g for g, _ in places})}
        tokens = torch.stack([values[group][0][row] for group, row in places])
        logits = [teacher[row] for group, row in places if (teacher := values[group][1]) is not None]
        return tokens, torch.stack(logits) if logits else None

    def straight_of(self, indices: list[int], cut: Cut) -> Tensor:
        """What statistics add to the logits of views that :meth:`get` has given, (B, 1), or (B, 0)."""
        places = [self.place[index] for index in indices]
        return torch.stack([self.straight[group, cut][row] for group, row in places])

    def _group(self, group: int, cut: Cut) -> tuple[Tensor, Tensor | None]:
        key = (group, cut)
        if key in self.cached:
            self.cached.move_to_end(key)
            return self.cached[key]
        value = self._compute(self.groups[group], cut)
        size = value[0].element_size() * value[0].nelement()
        while self.cached and self.used + size > self.budget:
            _, (old, _) = self.cached.popitem(last=False)
            self.used -= old.element_size() * old.nelement()
        if self.used + size <= self.budget:
            self.cached[key] = value
            self.used += size
        return value

    @torch.no_grad()
    def _compute(self, indices: Sequence[int], cut: Cut) -> tuple[Tensor, Tensor | None]:
        model = self.model
        pixels = _pixels(model, self.images[list(indices)], cut)
        for numerics in self.numerics.attempts():
            with numerics.autocast():
                tokens, straight = _frozen_tokens(model, pixels, self.extras)
                logits = self.teacher.logits(model, pixels) if self.teacher else None
            if numerics.precision != "fp16" or bool(
                torch.isfinite(tokens).all() and (logits is None or torch.isfinite(logits).all())
            ):
                break
        self.straight[self.place[indices[0]][0], cut] = straight
        return tokens.float(), logits


class CentreScores:
    """Scores the centres of the same pictures repeatedly, with the frozen blocks computed once; float32.

    The pictures are computed in fixed batches, which the ranks of a team share; every rank gets all scores.

    Args:
        model: scored with its current weights.
        images: squashed pictures, uint8 (n, R, R, 3).
        budget: bytes of tokens to cache; what does not fit is computed again each time.
        batch: pictures computed together.
        team: the ranks that share the work; all of them must score together.
    """

    def __init__(
        self, model: GrmpIqa, images: UInt8Array, budget: int = 0, batch: int = 64, team: Team = ALONE
    ) -> None:
        self.model, self.images, self.budget, self.batch, self.team = model, images, budget, batch, team
        self.cached: dict[int, Tensor] = {}
        self.straight: dict[int, Tensor] = {}
        self.used = 0  # bytes
        self.extras = _frozen_prompts(model)

    @property
    def most_bytes(self) -> int:
        """The most bytes that will be cached."""
        return min(self.budget, len(self.images) * _places(self.model) * self.model.image.width * 4)

    @torch.inference_mode()
    def predict(self) -> Float32Array:
        """The probability of high quality, float32 (n,) in 0..1."""
        scores = self.logits().sigmoid()
        return np.asarray(scores.cpu().numpy(), dtype=np.float32)

    @torch.no_grad()
    def logits(self) -> Tensor:
        """The scores' logits, (n,)."""
        return self.model.readings(self.features())[:, 0]

    @torch.no_grad()
    def features(self) -> Tensor:
        """The image features under the current weights, (n, E) or (n, E + 1): see GrmpIqa.image_features."""
        model = self.model
        first, last = model.first_trained_image_block, len(model.image.blocks)
        width = model.image.visual.output_dim
        width += 1 if bool(model.head_row.any()) else 0
        features = torch.zeros(len(self.images), width, device=model.ctx.device)
        for number, at in enumerate(range(0, len(self.images), self.batch)):
            if self.team.mine(number):
                tokens = model.image_tokens(self._tokens(at), first, last)
                features[at : at + self.batch] = torch.cat([model.image_head(tokens), self.straight[at]], 1)
        self.team.sum([features])
        return features

    def _tokens(self, at: int) -> Tensor:
        if at in self.cached:
            return self.cached[at]
        centre = (self.images.shape[1] - self.model.image.size) // 2
        pixels = _pixels(self.model, self.images[at : at + self.batch], Cut(centre, centre, False))
        tokens, self.straight[at] = _frozen_tokens(self.model, pixels, self.extras)
        size = tokens.element_size() * tokens.nelement()
        if self.used + size <= self.budget:
            self.cached[at] = tokens
            self.used += size
        return tokens


class ViewScores:
    """As :class:`CentreScores` for a network that looks at native crops, too; float32.

    Args:
        model: scored with its current weights.
        images: squashed pictures, uint8 (n, R, R, 3).
        crops: their native crops.
        budget, batch, team: as for :class:`CentreScores`.
    """

    def __init__(
        self,
        model: GrmpIqa,
        images: UInt8Array,
        crops: Crops,
        budget: int = 0,
        batch: int = 64,
        team: Team = ALONE,
    ) -> None:
        self.model = model
        own = budget * len(images) // (len(images) + len(crops.of))
        self.wholes = CentreScores(model, images, own, batch, team)
        self.crops = CentreScores(model, crops.pixels, budget - own, batch, team)
        self.mix = view_weights(model, len(images), crops.of)

    @property
    def most_bytes(self) -> int:
        """The most bytes that will be cached."""
        return self.wholes.most_bytes + self.crops.most_bytes

    @torch.no_grad()
    def logits(self) -> Tensor:
        """The pictures' logits, (n,)."""
        return self.mix @ torch.cat([self.wholes.logits(), self.crops.logits()]) + self.model.aggregate.shift

    @torch.inference_mode()
    def predict(self) -> Float32Array:
        """The probability of high quality, float32 (n,) in 0..1."""
        return np.asarray(self.logits().sigmoid().cpu().numpy(), dtype=np.float32)


def view_weights(model: GrmpIqa, count: int, of: npt.NDArray[np.int64]) -> Tensor:
    """What turns logits of n wholes and m crops into the pictures' logits, but for the shift: (n, n + m)."""
    aggregate = model.aggregate
    crops = np.bincount(of, minlength=count)
    weights = np.zeros((count, count + len(of)), np.float32)
    weights[np.arange(count), np.arange(count)] = aggregate.whole + np.where(crops, 0.0, aggregate.native)
    weights[of, count + np.arange(len(of))] = aggregate.native / crops[of]
    return torch.from_numpy(weights).to(model.ctx.device)


def _pixels(model: GrmpIqa, images: UInt8Array, cut: Cut) -> Tensor:
    """Cut squashed pictures (B, R, R, 3) to the network's size S: normalised (B, 3, S, S)."""
    size = model.image.size
    inside = images[:, cut.row : cut.row + size, cut.column : cut.column + size, :]
    if cut.flip:
        inside = inside[:, :, ::-1]
    return model.pixels(torch.from_numpy(np.ascontiguousarray(inside)).to(model.ctx.device))


def _places(model: GrmpIqa) -> int:
    """Tokens of a picture after the frozen blocks."""
    return model.image.length


@torch.no_grad()
def _frozen_prompts(model: GrmpIqa) -> list[tuple[Tensor, Tensor]]:
    return [model.prompt_keys_values(index, 1) for index in range(model.first_trained_image_block)]


def _frozen_tokens(
    model: GrmpIqa, pixels: Tensor, extras: Sequence[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    tokens, straight = model.read(pixels)
    return model.image_tokens(tokens, 0, model.first_trained_image_block, extras), straight
